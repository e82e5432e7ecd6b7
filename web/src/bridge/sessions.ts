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

/** [description of every tensor as JSON, their payloads]. */
type Results = [description: string, payloads: Payload[]];

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
   * Runs a session. `description` is a JSON list of `[name, type, dims]`, or `[name, handle]` for a tensor that is in
   * the runtime already; `payloads` has the bytes or strings of each, and is given away.
   */
  async run(
    session: number,
    description: string,
    payloads: Payload[],
    outputs: string[] | null,
    keep: string[],
  ): Promise<[runMs: number, ...Results]> {
    const names: string[] = [];
    const feeds: Feed[] = [];
    const transfer: ArrayBuffer[] = [];
    for (const [index, [name, type, dims]] of (JSON.parse(description) as Described[]).entries()) {
      const payload = payloads[index];
      names.push(name);
      if (typeof type === "number") {
        feeds.push({ handle: type, type: "float32", dims: [] });
      } else if (payload instanceof Uint8Array) {
        const data = payload.buffer as ArrayBuffer;
        feeds.push({ type, dims: dims ?? [], data });
        transfer.push(data);
      } else {
        feeds.push({ type, dims: dims ?? [], data: payload ?? [] });
      }
    }
    const params = { session, names, feeds, outputs, keep };
    const result = (await this.#call("run", params, transfer)) as RunResult;
    return [result.runMs, ...toResults(result.names, result.tensors)];
  }

  async fetchTensor(handle: number): Promise<Results> {
    const tensor = (await this.#call("fetchTensor", { handle })) as TensorData;
    return toResults([""], [tensor]);
  }

  releaseTensor(handle: number): void {
    this.#tell("releaseTensor", { handle });
  }

  async releaseSession(session: number): Promise<void> {
    if (this.#closed === undefined) {
      await this.#call("releaseSession", { session });
    }
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
    }
  }
}

type Described = [name: string, type: TensorType | number, dims?: number[]];

function toResults(names: string[], tensors: Feed[]): Results {
  const description = tensors.map((tensor, index) => [
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
  return [JSON.stringify(description), payloads];
}
