/** The page's connection to the host worker. */

import { fromErrorData, NamedError } from "../errors.ts";
import type { HostEvent, HostMessage, HostStart } from "../host-protocol.ts";
import { startModuleWorker } from "../workers.ts";
import type { ProgressEvent } from "./types.ts";

type OnProgress = (event: ProgressEvent) => void;

interface Waiting {
  resolve(value: unknown): void;
  reject(error: Error): void;
  progress: OnProgress | undefined;
  chunk: ((value: unknown) => void) | undefined;
}

export interface CallOptions {
  onProgress?: OnProgress | undefined;
  onChunk?: ((value: unknown) => void) | undefined;
  signal?: AbortSignal | undefined;
}

/** One host worker. When it dies it takes its calls along; the next call starts another. */
export class Host {
  readonly ready: Promise<void>;
  readonly #worker: Worker;
  readonly #pyodideUrl: string;
  readonly #waiting = new Map<number, Waiting>();
  readonly #starting = new Set<OnProgress>();
  #lastId = 0;
  #latest: ProgressEvent = startingEvent(0, "Loading Python");
  #failure: NamedError | undefined;
  #isReady = false;
  #settleReady: { resolve(): void; reject(error: Error): void } = { resolve: () => {}, reject: () => {} };

  constructor(options: HostStart["start"]) {
    this.ready = new Promise((resolve, reject) => {
      this.#settleReady = { resolve, reject };
    });
    // Whoever calls gets the failure; nobody calling is no reason for an unhandled rejection.
    this.ready.catch(() => undefined);
    this.#pyodideUrl = new URL("pyodide/", options.assetsBase).href;
    const url = new URL("host.mjs", options.assetsBase).href;
    this.#worker = startModuleWorker(url, "pywebml-host");
    this.#worker.onmessage = (event: MessageEvent<HostEvent>) => this.#receive(event.data);
    this.#worker.onerror = (event) => {
      event.preventDefault();
      const reason = event.message || "it could not be loaded";
      this.#fail(
        new NamedError("RuntimeStartError", `The worker ${url} failed: ${reason}. Is assetsBase right?`, {
          url,
        }),
      );
    };
    this.#worker.postMessage({ start: options } satisfies HostStart);
  }

  get failed(): boolean {
    return this.#failure !== undefined;
  }

  /** Have the steps of the start reported, beginning with the present one. */
  watchStart(onProgress: OnProgress | undefined): void {
    if (onProgress !== undefined && !this.#isReady) {
      onProgress(this.#latest);
      this.#starting.add(onProgress);
    }
  }

  /** Calls a method of `pywebml/worker.py`. */
  call(method: string, params: Record<string, unknown>, options: CallOptions = {}): Promise<unknown> {
    const { signal } = options;
    if (this.#failure !== undefined) {
      return Promise.reject(this.#failure);
    }
    if (signal?.aborted) {
      return Promise.reject(abortError(signal));
    }
    this.watchStart(options.onProgress);
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      const stop = () => {
        this.#send({ id, abort: String(signal?.reason ?? "The caller stopped the work.") });
        settle();
        reject(abortError(signal as AbortSignal));
      };
      const settle = () => {
        signal?.removeEventListener("abort", stop);
        this.#waiting.delete(id);
        if (options.onProgress !== undefined) {
          this.#starting.delete(options.onProgress);
        }
      };
      signal?.addEventListener("abort", stop, { once: true });
      this.#waiting.set(id, {
        resolve: (value) => {
          settle();
          resolve(value);
        },
        reject: (error) => {
          settle();
          reject(error);
        },
        progress: options.onProgress,
        chunk: options.onChunk,
      });
      try {
        this.#send({ id, method, params });
      } catch (error) {
        settle();
        reject(
          new NamedError(
            "InputError",
            `The arguments of ${method} cannot be sent to a worker: ${String(error)}.`,
          ),
        );
      }
    });
  }

  terminate(): void {
    this.#fail(new NamedError("EngineClosedError", "pywebml was shut down by the page."));
  }

  #send(message: HostMessage): void {
    this.#worker.postMessage(message);
  }

  #receive(event: HostEvent): void {
    if ("starting" in event) {
      this.#latest = startingEvent(event.starting.progress, event.starting.text);
      for (const onProgress of this.#starting) {
        onProgress(this.#latest);
      }
    } else if ("ready" in event) {
      this.#isReady = true;
      this.#starting.clear();
      this.#settleReady.resolve();
    } else if ("failed" in event) {
      const { message, details } = event.failed;
      this.#fail(
        this.#isReady
          ? new NamedError(
              "EngineClosedError",
              `Python broke down: ${message} All engines are gone; the next createEngine starts anew.`,
              details,
            )
          : new NamedError(
              "RuntimeStartError",
              `Python could not be started: ${message} Check that ${this.#pyodideUrl} holds all files of the build, and that the network works; then try again.`,
              details,
            ),
      );
    } else {
      const waiting = this.#waiting.get(event.id);
      if (event.kind === "progress") {
        waiting?.progress?.(event.value as unknown as ProgressEvent);
      } else if (event.kind === "chunk") {
        waiting?.chunk?.(event.value);
      } else if (event.kind === "result") {
        waiting?.resolve(event.value);
      } else {
        waiting?.reject(fromErrorData(event.value));
      }
    }
  }

  #fail(error: NamedError): void {
    if (this.#failure === undefined) {
      this.#failure = error;
      this.#worker.terminate();
      this.#settleReady.reject(error);
      for (const waiting of [...this.#waiting.values()]) {
        waiting.reject(error);
      }
    }
  }
}

export function abortError(signal: AbortSignal): NamedError {
  const reason: unknown = signal.reason;
  const why = reason instanceof Error ? reason.message : String(reason ?? "The caller stopped the work.");
  return new NamedError("AbortError", why);
}

function startingEvent(progress: number, text: string): ProgressEvent {
  return {
    type: "starting",
    statusText: progress === 0 ? "initiate" : progress === 100 ? "done" : "in_progress",
    id: "pywebml",
    progress,
    totalLoaded: 0,
    currentLoaded: 0,
    total: 0,
    units: "bytes",
    ok: true,
    metadata: { step: text },
  };
}
