/** Session workers as Python sees them: few crossings, tensors as byte arrays beside a short description. */

import { fromErrorData, NamedError } from "../errors.ts";
import type {
  BlobKey,
  Feed,
  LoadedSession,
  Reply,
  RunResult,
  SessionMethods,
  SessionOptions,
  TensorData,
  TensorType,
} from "../protocol.ts";
import { isReference } from "../protocol.ts";
import { startModuleWorker } from "../workers.ts";

interface Waiting {
  resolve(value: unknown): void;
  reject(error: NamedError): void;
}

/** What Python gets of a tensor: its bytes or strings, or nothing when it stayed in the runtime. */
type Payload = Uint8Array | string[] | null;

/** `[milliseconds of the run, [name, type, dims, handle or null] of every tensor]` as JSON; then their payloads. */
type Results = [description: string, ...payloads: Payload[]];

export async function startSessionWorker(
  url: string,
  runtime: BlobKey,
  numThreads: number,
): Promise<SessionWorker> {
  const worker = new SessionWorker(url);
  try {
    await worker.start(runtime, numThreads);
    return worker;
  } catch (error) {
    worker.terminate();
    throw error;
  }
}

export class SessionWorker {
  readonly #worker: Worker;
  readonly #waiting = new Map<number, Waiting>();
  /** Who wants to know when nothing is waiting any more. */
  readonly #settled = new Set<() => void>();
  #lastId = 0;
  #closed: NamedError | undefined;

  constructor(url: string) {
    this.#worker = startModuleWorker(url, "pywebml-session");
    this.#worker.onmessage = (event: MessageEvent<Reply>) => this.#receive(event.data);
    this.#worker.onerror = (event) => {
      event.preventDefault();
      const reason = event.message || "its script could not be loaded or started";
      this.#close(
        new NamedError(
          "RuntimeStartError",
          `The session worker ${url} failed: ${reason}. Is the file there?`,
          { url },
        ),
      );
    };
    this.#worker.onmessageerror = () => {
      this.#close(new NamedError("SessionClosedError", "A message of the session worker could not be read."));
    };
  }

  async start(runtime: BlobKey, numThreads: number): Promise<void> {
    await this.#call("start", { runtime, numThreads });
  }

  /** Answers with `LoadedSession` as JSON. `options` is `SessionOptions` as JSON. */
  async createSession(model: BlobKey, externalData: [string, BlobKey][], options: string): Promise<string> {
    const parsed = JSON.parse(options) as SessionOptions;
    const loaded = (await this.#call("createSession", {
      model,
      externalData,
      options: parsed,
    })) as LoadedSession;
    return JSON.stringify(loaded);
  }

  /**
   * Runs a session. `text` is a `RunCall` as JSON, `packed` the bytes of all its arrays one after the other, which are
   * given away, and `strings` the strings of all its string tensors.
   */
  async run(text: string, packed: Uint8Array<ArrayBuffer>, strings: string[][]): Promise<Results> {
    const { session, feeds: described, outputs, keep } = JSON.parse(text) as RunCall;
    const names: string[] = [];
    const feeds: Feed[] = [];
    let offset = 0;
    let stringTensors = 0;
    for (const [name, type, dims, byteLength] of described) {
      names.push(name);
      if (typeof type === "number") {
        feeds.push({ handle: type, type: "float32", dims: [] });
      } else if (type === "string") {
        feeds.push({ type, dims, data: strings[stringTensors++] ?? [] });
      } else {
        feeds.push({ type, dims, data: packed.subarray(offset, offset + byteLength) });
        offset += byteLength;
      }
    }
    const result = (await this.#call("run", { session, names, feeds, outputs, keep }, [
      packed.buffer,
    ])) as RunResult;
    return toResults(result.names, result.tensors, result.runMs);
  }

  async fetchTensor(handle: number): Promise<Results> {
    const tensor = (await this.#call("fetchTensor", { handle })) as TensorData;
    return toResults([""], [tensor], 0);
  }

  releaseTensor(handle: number): void {
    this.#tell("releaseTensor", { handle });
  }

  async releaseSession(session: number): Promise<void> {
    if (this.#closed === undefined) {
      await this.#call("releaseSession", { session });
    }
  }

  /** Waits until nothing is computing, at most so long; whether that is so. */
  async settle(milliseconds: number): Promise<boolean> {
    if (this.#waiting.size > 0) {
      let timer: ReturnType<typeof setTimeout> | undefined;
      await new Promise<void>((resolve) => {
        this.#settled.add(resolve);
        timer = setTimeout(resolve, milliseconds);
      });
      clearTimeout(timer);
    }
    return this.#waiting.size === 0;
  }

  /** Stops at once, whatever it is doing; its memory comes back whole. */
  terminate(): void {
    this.#close(
      new NamedError(
        "SessionClosedError",
        "The session worker was stopped. Create the engine again to go on.",
      ),
    );
  }

  #call<Method extends keyof SessionMethods>(
    method: Method,
    params: Parameters<SessionMethods[Method]>[0],
    transfer: Transferable[] = [],
  ): Promise<unknown> {
    if (this.#closed !== undefined) {
      return Promise.reject(this.#closed);
    }
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#worker.postMessage({ id, method, params }, transfer);
    });
  }

  /** For calls whose answer interests nobody, not even when the worker is gone. */
  #tell<Method extends keyof SessionMethods>(
    method: Method,
    params: Parameters<SessionMethods[Method]>[0],
  ): void {
    if (this.#closed === undefined) {
      this.#worker.postMessage({ id: ++this.#lastId, method, params });
    }
  }

  #receive(reply: Reply): void {
    const waiting = this.#waiting.get(reply.id);
    this.#waiting.delete(reply.id);
    this.#reportSettled();
    if (reply.ok) {
      waiting?.resolve(reply.result);
    } else {
      waiting?.reject(fromErrorData(reply.error));
    }
  }

  #close(error: NamedError): void {
    if (this.#closed === undefined) {
      this.#closed = error;
      this.#worker.terminate();
      for (const waiting of this.#waiting.values()) {
        waiting.reject(error);
      }
      this.#waiting.clear();
      this.#reportSettled();
    }
  }

  #reportSettled(): void {
    if (this.#waiting.size === 0 && this.#settled.size > 0) {
      for (const report of this.#settled) {
        report();
      }
      this.#settled.clear();
    }
  }
}

/** `[name, type, dims, bytes]`, or `[name, handle]` for a tensor that is in the runtime already. */
type Described = [name: string, type: TensorType | number, dims: number[], byteLength: number];

interface RunCall {
  session: number;
  feeds: Described[];
  outputs: string[] | null;
  keep: string[];
}

function toResults(names: string[], tensors: Feed[], runMs: number): Results {
  const described = tensors.map((tensor, index) => [
    names[index],
    tensor.type,
    tensor.dims,
    isReference(tensor) ? tensor.handle : null,
  ]);
  const payloads = tensors.map((tensor): Payload => {
    if (isReference(tensor)) {
      return null;
    }
    return tensor.data instanceof ArrayBuffer ? new Uint8Array(tensor.data) : tensor.data;
  });
  return [JSON.stringify([runMs, described]), ...payloads];
}
