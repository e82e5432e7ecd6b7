/**
 * Everything outside that Python reaches in a browser: network, IndexedDB, session workers.
 *
 * Python gets it as the JavaScript module `pywebml_bridge`. Metadata crosses as JSON text, which is one crossing
 * whatever its size; bytes cross as typed arrays.
 */

import { NamedError } from "../errors.ts";
import type { BlobKey } from "../protocol.ts";
import { verifySignature } from "./crypto.ts";
import { type ByteSink, request } from "./http.ts";
import { startSessionWorker } from "./sessions.ts";
import { type FileRecord, openStore, type Store, type StoreWriter } from "./store.ts";

declare const __ORT_VERSION__: string;
/** SHA-256 of the root that signs the settings mirror of this build. */
declare const __SETTINGS_ROOT_HASH__: string;

export interface BridgeOptions {
  /** Address of `session.mjs`. */
  sessionWorkerUrl: string;
  /** What relative addresses are relative to; default the page's or worker's own address. */
  baseUrl?: string;
}

export type Bridge = ReturnType<typeof createBridge>;

export function createBridge(options: BridgeOptions) {
  let opening: Promise<Store> | undefined;
  const store = (): Promise<Store> => {
    opening ??= openStore().catch((error) => {
      // A store that could not be opened may be openable later.
      opening = undefined;
      throw error;
    });
    return opening;
  };

  return {
    environment: (): string => JSON.stringify(environment(options.baseUrl)),

    request,
    verifySignature,

    openWriter: async (key: BlobKey): Promise<BridgeWriter> =>
      new BridgeWriter(await (await store()).openWriter(key)),
    info: async (key: BlobKey): Promise<string> => {
      const record = await (await store()).info(key);
      return record === undefined ? "" : JSON.stringify(record);
    },
    list: async (kind: string): Promise<string> => JSON.stringify(await (await store()).list(kind)),
    read: async (key: BlobKey): Promise<Uint8Array> => (await store()).read(key),
    verify: async (key: BlobKey): Promise<boolean> => (await store()).verify(key),
    delete: async (keys: BlobKey[]): Promise<void> => (await store()).delete(keys),
    usage: async (): Promise<[number, number]> => (await store()).usage(),
    persist: async (): Promise<boolean> => (await store()).persist(),

    getDocument: async (key: string): Promise<string> => {
      const text = await (await store()).getDocument(key);
      return typeof text === "string" ? text : "";
    },
    putDocument: async (key: string, text: string): Promise<void> => (await store()).putDocument(key, text),
    deleteDocument: async (key: string): Promise<void> => (await store()).deleteDocument(key),

    startSessionWorker: (runtime: BlobKey, numThreads: number) =>
      startSessionWorker(options.sessionWorkerUrl, runtime, numThreads),
  };
}

/** A writer whose answers cross as JSON. */
class BridgeWriter implements ByteSink {
  readonly #target: StoreWriter;

  constructor(target: StoreWriter) {
    this.#target = target;
  }

  write(bytes: Uint8Array): Promise<void> {
    return this.#target.write(bytes);
  }

  async finish(): Promise<string> {
    return JSON.stringify(await this.#target.finish());
  }

  async commit(metadata: string): Promise<string> {
    const record: FileRecord = await this.#target.commit(JSON.parse(metadata));
    return JSON.stringify(record);
  }

  abort(): Promise<void> {
    return this.#target.abort();
  }
}

function environment(baseUrl: string | undefined) {
  if (typeof WebAssembly !== "object") {
    throw new NamedError("RuntimeStartError", "This browser has no WebAssembly; use a current browser.");
  }
  return {
    baseUrl: baseUrl ?? globalThis.document?.baseURI ?? location.href,
    crossOriginIsolated: globalThis.crossOriginIsolated === true,
    hardwareConcurrency: navigator.hardwareConcurrency || 1,
    locale: navigator.language,
    osName: osName(navigator.userAgent),
    runtimeVersion: __ORT_VERSION__,
    settingsRootHash: __SETTINGS_ROOT_HASH__,
    deviceMemory: (navigator as { deviceMemory?: number }).deviceMemory ?? null,
    webgpu: "gpu" in navigator,
  };
}

/** In the words of settings records. Order matters: Android's user agent says Linux too. */
const OS_NAMES: [pattern: RegExp, name: string][] = [
  [/Android/, "Android"],
  [/iPhone|iPad/, "iOS"],
  [/Windows/, "WINNT"],
  [/Mac OS X/, "Darwin"],
  [/Linux|CrOS/, "Linux"],
];

function osName(userAgent: string): string {
  return OS_NAMES.find(([pattern]) => pattern.test(userAgent))?.[1] ?? "";
}
