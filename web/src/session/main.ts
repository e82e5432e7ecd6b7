/**
 * Entry of a session worker: one ONNX Runtime and its sessions, driven by messages.
 *
 * The runtime's threads start from this same script: its glue sees that by the worker's name and takes over. So does
 * the store's hash worker.
 */

import { HASH_WORKER } from "../bridge/hash-protocol.ts";
import { serveHash } from "../bridge/hash-worker.ts";
import { openStore, type Store } from "../bridge/store.ts";
import { NamedError, toErrorData } from "../errors.ts";
import {
  type BlobKey,
  type Feed,
  isReference,
  type Reply,
  type SessionMethods,
  type SessionRequest,
} from "../protocol.ts";
import { Runtime } from "./runtime.ts";
import { blobPiece, type ModelSource } from "./source.ts";

type Handlers = {
  [Method in keyof SessionMethods]: (
    params: Parameters<SessionMethods[Method]>[0],
  ) => Promise<ReturnType<SessionMethods[Method]>>;
};

/** What one call answers with, and the buffers that go along instead of being copied. */
interface Answer {
  reply: Reply;
  transfer: ArrayBuffer[];
}

/** Every method over one store and, after `start`, one runtime. */
function makeHandlers(): Handlers {
  let store: Promise<Store> | undefined;
  let runtime: Runtime | undefined;

  const opened = () => {
    // A store that could not be opened is tried again by the next call.
    store ??= openStore().catch((error: unknown) => {
      store = undefined;
      throw error;
    });
    return store;
  };
  const started = () => {
    if (runtime === undefined) {
      throw new NamedError("SessionClosedError", "The runtime has not been started. Call 'start' first.");
    }
    return runtime;
  };
  const source = async (key: BlobKey): Promise<ModelSource> => {
    const files = await opened();
    const record = await files.info(key);
    if (record === undefined) {
      throw new NamedError("StoreError", `There is no stored file '${key.join("/")}'. Download it first.`, {
        key,
      });
    }
    return {
      key,
      name: `${key[1]}/${key[3]}`,
      size: record.size,
      pieces: async () => (await files.blobs(key)).map(blobPiece),
    };
  };
  /** Reads a file through the store: when bytes are missing, it removes the file and has an error of its own. */
  const check = async (key: BlobKey) => {
    for await (const _part of (await opened()).parts(key)) {
      // Nobody wants them.
    }
  };

  return {
    start: async (params) => {
      if (runtime !== undefined) {
        throw new NamedError(
          "RuntimeStartError",
          "The runtime of this worker was started already. Use another worker.",
        );
      }
      const numThreads = canStartThreads() ? Math.max(1, Math.floor(params.numThreads)) : 1;
      runtime = await Runtime.start(await (await opened()).read(params.runtime), numThreads);
      return { numThreads };
    },
    createSession: async ({ model, externalData, options }) => {
      const current = started();
      const external = new Map<string, ModelSource>();
      for (const [name, key] of externalData) {
        external.set(name, await source(key));
      }
      try {
        return await current.createSession(await source(model), external, options);
      } catch (error) {
        if (error instanceof NamedError && error.name === "DamagedFileError") {
          await check(error.details.key as BlobKey);
        }
        throw error;
      }
    },
    run: async ({ session, names, feeds, outputs, keep }) =>
      started().run(session, names, feeds, outputs, keep),
    fetchTensor: async ({ handle }) => started().fetchTensor(handle),
    releaseTensor: async ({ handle }) => {
      runtime?.releaseTensor(handle);
      return null;
    },
    releaseSession: async ({ session }) => {
      runtime?.releaseSession(session);
      return null;
    },
  };
}

/**
 * Threads need shared memory, which only an isolated page may pass on, and they start from this script, which must be
 * of the page's own origin for that.
 */
function canStartThreads(): boolean {
  return globalThis.crossOriginIsolated && new URL(import.meta.url).origin === globalThis.location.origin;
}

async function answer(handlers: Handlers, { id, method, params }: SessionRequest): Promise<Answer> {
  try {
    if (!Object.hasOwn(handlers, method)) {
      throw new NamedError("SessionError", `A session worker has no method '${method}'.`);
    }
    const handler = handlers[method] as (params: unknown) => Promise<unknown>;
    const result = await handler(params);
    return { reply: { id, ok: true, result }, transfer: buffersOf(result) };
  } catch (error) {
    return { reply: { id, ok: false, error: toErrorData(error) }, transfer: [] };
  }
}

/** The buffers of a result's tensors. */
function buffersOf(result: unknown): ArrayBuffer[] {
  if (typeof result !== "object" || result === null) {
    return [];
  }
  const tensors = "tensors" in result ? (result.tensors as Feed[]) : "data" in result ? [result as Feed] : [];
  return tensors.flatMap((tensor) =>
    !isReference(tensor) && tensor.data instanceof ArrayBuffer ? [tensor.data] : [],
  );
}

function serve(scope: DedicatedWorkerGlobalScope): void {
  const handlers = makeHandlers();
  // One call at a time, in the order of their messages.
  let last: Promise<void> = Promise.resolve();
  scope.addEventListener("message", (event: MessageEvent<SessionRequest>) => {
    last = last.then(async () => {
      const { reply, transfer } = await answer(handlers, event.data);
      scope.postMessage(reply, transfer);
    });
  });
}

if (self.name === HASH_WORKER) {
  serveHash(self as unknown as DedicatedWorkerGlobalScope);
} else if (!self.name?.startsWith("em-pthread")) {
  serve(self as unknown as DedicatedWorkerGlobalScope);
}
