/** Names that one holder at a time may have: Web Locks, and where there are none a list of our own. */

export interface Lock {
  /** Gives the name back. Harmless when called again. */
  release(): void;
}

interface Options {
  /** Stop waiting. The promise is then rejected. */
  signal?: AbortSignal;
  /** Do not wait: undefined when somebody has it. */
  ifAvailable?: boolean;
}

/**
 * Waits for a name and takes it. It is free again when it is released, or when this worker or page dies.
 *
 * Browsers have Web Locks in secure contexts only; elsewhere nobody but this worker or page itself is kept out.
 */
export function takeLock(name: string, options: { signal?: AbortSignal }): Promise<Lock>;
export function takeLock(name: string, options: Options): Promise<Lock | undefined>;
export async function takeLock(name: string, options: Options): Promise<Lock | undefined> {
  options.signal?.throwIfAborted();
  const manager = lockManager();
  if (manager === undefined) {
    return takeOwn(name, options);
  }
  return new Promise((resolve, reject) => {
    const { signal } = options;
    let givenUp = false;
    // Chromium (156) never answers a request that is aborted while it still looks whether the page may ask.
    signal?.addEventListener("abort", () => {
      givenUp = true;
      reject(signal.reason);
    });
    const hold = (lock: unknown) => {
      if (lock === null || givenUp) {
        resolve(undefined);
        return undefined;
      }
      return new Promise<void>((release) => resolve({ release }));
    };
    // The two options exclude each other.
    manager.request(name, signal ? { signal } : options, hold).catch(reject);
  });
}

/** Whether holders in other tabs are seen. */
export function seesOthers(): boolean {
  return lockManager() !== undefined;
}

function lockManager(): LockManager | undefined {
  return globalThis.navigator?.locks;
}

/** Who waits for a name that somebody here has. */
const queues = new Map<string, (() => void)[]>();

async function takeOwn(name: string, { signal, ifAvailable }: Options): Promise<Lock | undefined> {
  const queue = queues.get(name);
  if (queue === undefined) {
    queues.set(name, []);
  } else if (ifAvailable) {
    return undefined;
  } else {
    await new Promise<void>((resolve, reject) => {
      queue.push(resolve);
      signal?.addEventListener("abort", () => {
        const index = queue.indexOf(resolve);
        if (index >= 0) {
          queue.splice(index, 1);
          reject(signal.reason);
        }
      });
    });
  }
  let held = true;
  return {
    release: () => {
      if (held) {
        held = false;
        passOn(name);
      }
    },
  };
}

function passOn(name: string): void {
  const next = queues.get(name)?.shift();
  if (next === undefined) {
    queues.delete(name);
  } else {
    next();
  }
}
