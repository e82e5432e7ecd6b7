/**
 * The JavaScript heaps of a page and all its workers, measured from outside by the DevTools protocol.
 *
 * A figure is the sum of what `Runtime.getHeapUsage` tells of every heap: JavaScript objects (`usedSize`), the browser's
 * own objects behind them (`embedderHeapUsedSize`) and the bytes of ArrayBuffers (`backingStorageSize`), garbage that
 * nobody has collected yet included. WebAssembly memories and SharedArrayBuffers are not in it, nor are the bytes of
 * Blobs, which the browser's main process keeps on disk; `memory.spec.ts` proves that. (The page's own
 * `measureUserAgentSpecificMemory` counts shared WebAssembly memories as JavaScript and collects garbage first.)
 *
 * A thread that is computing answers all the same. One that waits does not, as the runtime's threads do when they have
 * nothing to do: its last figure counts on, since nothing can change it meanwhile.
 */

import { existsSync, readFileSync } from "node:fs";
import type { CDPSession, Page } from "@playwright/test";

interface Usage {
  usedSize: number;
  embedderHeapUsedSize: number;
  backingStorageSize: number;
}

type Listener = (params: Record<string, unknown>) => void;

/** Where commands go: the page's own session, or that of a worker, which speaks through its parent's. */
interface Session {
  send(method: string, params?: Record<string, unknown>): Promise<unknown>;
  on(event: string, listener: Listener): void;
  onClose?(listener: () => void): void;
}

/** One heap and what it said last. */
class Heap {
  /** Of the worker; the runtime's threads are `em-pthread`. */
  readonly name: string;
  bytes = 0;
  /** Longest time between two answers in milliseconds. */
  gap = 0;
  answers = 0;
  readonly #session: Session;
  #asking: Promise<void> | undefined;
  #answered = performance.now();

  constructor(session: Session, name: string) {
    this.#session = session;
    this.name = name;
  }

  /** Asks, unless an older question is still open; waits a little. */
  async ask(): Promise<void> {
    if (this.#asking === undefined) {
      this.#asking = this.#session
        .send("Runtime.getHeapUsage")
        .then((answer) => this.#take(answer as Usage))
        // A worker may end in the middle of the question.
        .catch(() => undefined)
        .finally(() => {
          this.#asking = undefined;
        });
      await atMost(50, this.#asking);
    }
  }

  async collectGarbage(): Promise<void> {
    await atMost(
      1000,
      this.#session.send("HeapProfiler.collectGarbage").catch(() => undefined),
    );
  }

  startAnew(): void {
    this.gap = 0;
    this.answers = 0;
    this.#answered = performance.now();
  }

  #take({ usedSize, embedderHeapUsedSize, backingStorageSize }: Usage): void {
    const now = performance.now();
    this.bytes = usedSize + embedderHeapUsedSize + backingStorageSize;
    this.gap = Math.max(this.gap, now - this.#answered);
    this.#answered = now;
    this.answers += 1;
  }
}

async function atMost(milliseconds: number, work: Promise<unknown>): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise((resolve) => {
    timer = setTimeout(resolve, milliseconds);
  });
  await Promise.race([work, late]);
  clearTimeout(timer);
}

/**
 * Memory of the browser's processes that is no mapped file, as Linux counts it; elsewhere 0. It has what no heap
 * counts: WebAssembly's memories, bytes of Blobs on their way, and buffers that were detached and not freed.
 */
class Processes {
  readonly #session: CDPSession;
  #pids: number[] = [];

  constructor(session: CDPSession) {
    this.#session = session;
  }

  /** Looks which processes there are: those of pages and workers, and the browser's own. */
  async find(): Promise<void> {
    const { processInfo } = await this.#session.send("SystemInfo.getProcessInfo");
    this.#pids = processInfo.filter(({ type }) => ["renderer", "browser"].includes(type)).map(({ id }) => id);
  }

  measure(): number {
    return this.#pids.reduce((sum, pid) => {
      const file = `/proc/${pid}/status`;
      const text = existsSync(file) ? readFileSync(file, "latin1") : "";
      const kilobytes = [...text.matchAll(/^Rss(?:Anon|Shmem):\s+(\d+)/gm)].map(([, digits]) =>
        Number(digits),
      );
      return kilobytes.reduce((total, count) => total + count * 1024, sum);
    }, 0);
  }
}

/** What was seen while something was done. The runtime's threads are left out of `answers` and `gap`: they wait. */
export interface Peak {
  /** Bytes in all heaps together. */
  peak: number;
  /** Which heap had how many bytes of it. */
  parts: [name: string, bytes: number][];
  /** Bytes in the browser's processes. */
  processes: number;
  /** Of the heap that answered least often. */
  answers: number;
  /** Longest time between two answers of a heap in milliseconds. */
  gap: number;
}

export class Heaps {
  readonly #heaps = new Set<Heap>();
  readonly #processes: Processes;

  private constructor(processes: Processes) {
    this.#processes = processes;
  }

  /** Watches the page, and its workers and theirs as they come and go. */
  static async watch(page: Page): Promise<Heaps> {
    const browser = await page.context().browser()?.newBrowserCDPSession();
    if (browser === undefined) {
      throw new Error("The page's context has no browser.");
    }
    const heaps = new Heaps(new Processes(browser));
    await heaps.#add((await page.context().newCDPSession(page)) as CDPSession & Session, "page");
    return heaps;
  }

  /** How many heaps there are. */
  get count(): number {
    return this.#heaps.size;
  }

  /** Bytes in all heaps as they are now. */
  async measure(): Promise<number> {
    await Promise.all([...this.#heaps].map((heap) => heap.ask()));
    return [...this.#heaps].reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /** Bytes in the browser's processes as they are now. */
  async processes(): Promise<number> {
    await this.#processes.find();
    return this.#processes.measure();
  }

  /** Bytes in all heaps without garbage. */
  async settled(): Promise<number> {
    // Objects behind objects go one collection later.
    for (let round = 0; round < 2; round++) {
      await Promise.all([...this.#heaps].map((heap) => heap.collectGarbage()));
    }
    return this.measure();
  }

  /** The most that all heaps had together while `work` was done, looked at every 25 ms. */
  async peak(work: () => Promise<unknown>): Promise<Peak> {
    const watched = [...this.#heaps].filter(({ name }) => name !== "em-pthread");
    for (const heap of watched) {
      heap.startAnew();
    }
    const found: Omit<Peak, "answers" | "gap"> = { peak: 0, parts: [], processes: await this.processes() };
    let done = false;
    const working = work().finally(() => {
      done = true;
    });
    const settled = working.catch(() => undefined);
    while (!done) {
      await atMost(25, settled);
      const bytes = await this.measure();
      found.processes = Math.max(found.processes, this.#processes.measure());
      if (bytes > found.peak) {
        found.peak = bytes;
        found.parts = [...this.#heaps].map((heap) => [heap.name, heap.bytes]);
      }
    }
    await working;
    return {
      ...found,
      answers: Math.min(...watched.map(({ answers }) => answers)),
      gap: Math.max(...watched.map(({ gap }) => gap)),
    };
  }

  async #add(session: Session, name: string): Promise<void> {
    const heap = new Heap(session, name);
    this.#heaps.add(heap);
    session.onClose?.(() => this.#heaps.delete(heap));
    const children = new Map<string, Child>();
    session.on("Target.attachedToTarget", ({ sessionId, targetInfo }) => {
      const child = new Child(session, sessionId as string);
      children.set(sessionId as string, child);
      // One that ends at once does not answer.
      this.#add(child, (targetInfo as { title: string }).title).catch(() => undefined);
    });
    session.on("Target.receivedMessageFromTarget", ({ sessionId, message }) => {
      children.get(sessionId as string)?.receive(message as string);
    });
    session.on("Target.detachedFromTarget", ({ sessionId }) => {
      children.get(sessionId as string)?.close();
    });
    // At once: a thread that has begun to wait does not tell.
    void heap.ask();
    await session.send("Target.setAutoAttach", {
      autoAttach: true,
      waitForDebuggerOnStart: false,
      flatten: false,
    });
  }
}

/** A worker's session inside its parent's. */
class Child implements Session {
  readonly #parent: Session;
  readonly #id: string;
  readonly #listeners = new Map<string, Listener>();
  readonly #waiting = new Map<number, { resolve(result: unknown): void; reject(error: Error): void }>();
  #last = 0;
  #closed: () => void = () => undefined;

  constructor(parent: Session, id: string) {
    this.#parent = parent;
    this.#id = id;
  }

  send(method: string, params: Record<string, unknown> = {}): Promise<unknown> {
    const id = ++this.#last;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      const message = JSON.stringify({ id, method, params });
      this.#parent.send("Target.sendMessageToTarget", { sessionId: this.#id, message }).catch(reject);
    });
  }

  on(event: string, listener: Listener): void {
    this.#listeners.set(event, listener);
  }

  onClose(listener: () => void): void {
    this.#closed = listener;
  }

  receive(text: string): void {
    const { id, method, params, result, error } = JSON.parse(text);
    if (method !== undefined) {
      this.#listeners.get(method)?.(params);
    } else if (error !== undefined) {
      this.#waiting.get(id)?.reject(new Error(error.message));
    } else {
      this.#waiting.get(id)?.resolve(result);
    }
    this.#waiting.delete(id);
  }

  /** Nobody answers any more. */
  close(): void {
    this.#closed();
    for (const { reject } of this.#waiting.values()) {
      reject(new Error("The worker has ended."));
    }
    this.#waiting.clear();
  }
}
