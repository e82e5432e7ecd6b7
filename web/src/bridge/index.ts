/**
 * Everything outside that Python reaches in a browser: network, IndexedDB, session workers.
 *
 * Python gets it as the JavaScript module `pywebml_bridge`. Metadata crosses as JSON text, which is one crossing
 * whatever its size; bytes cross as typed arrays.
 */

import { NamedError } from "../errors.ts";
import type { BlobKey } from "../protocol.ts";
import { verifySignature } from "./crypto.ts";
import { type BlobSink, request } from "./http.ts";
import { takeLock } from "./locks.ts";
import { type OutsidePiece, type OutsideTarget, outsideFiles, writeOutside } from "./outside.ts";
import { fetchRanges } from "./ranges.ts";
import { startSessionWorker } from "./sessions.ts";
import { openStore, type Store, type StoreWriter } from "./store.ts";

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
    opening ??= openStore({ hashWorkerUrl: options.sessionWorkerUrl }).catch((error) => {
      // A store that could not be opened may be openable later.
      opening = undefined;
      throw error;
    });
    return opening;
  };

  return {
    environment: (): string => JSON.stringify(environment(options.baseUrl)),

    request,
    fetchRanges: async (
      url: string,
      headers: string,
      plan: string,
      writer: BridgeWriter,
      onBytes: (count: number) => void,
      signal: AbortSignal,
    ): Promise<string> =>
      toText(await fetchRanges(url, JSON.parse(headers), JSON.parse(plan), writer, onBytes, signal)),
    verifySignature,

    openWriter: async (key: BlobKey, token?: string): Promise<BridgeWriter> =>
      new BridgeWriter(await (await store()).openWriter(key, token)),
    draft: async (key: BlobKey): Promise<string> => toText(await (await store()).draft(key)),
    dropDrafts: async (keys?: BlobKey[] | null): Promise<void> =>
      (await store()).dropDrafts(keys ?? undefined),
    drafts: async (): Promise<string> => toText(await (await store()).drafts()),
    info: async (key: BlobKey): Promise<string> => toText(await (await store()).info(key)),
    list: async (kind: string): Promise<string> => toText(await (await store()).list(kind)),
    read: async (key: BlobKey): Promise<Uint8Array> => (await store()).read(key),
    verify: async (key: BlobKey): Promise<boolean> => (await store()).verify(key),
    update: async (changes: string): Promise<void> => (await store()).update(JSON.parse(changes)),
    delete: async (keys: BlobKey[]): Promise<void> => (await store()).delete(keys),
    usage: async (): Promise<string> => toText(await (await store()).usage()),
    persist: async (): Promise<boolean> => (await store()).persist(),

    takeLock: (name: string, signal: AbortSignal) => takeLock(`pywebml:${name}`, { signal }),

    outsideFiles,
    writeOutside: async (
      target: OutsideTarget,
      files: [path: string, pieces: OutsidePiece[]][],
      signal: AbortSignal,
    ): Promise<Blob | undefined> => writeOutside(await store(), target, files, signal),

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

/** JSON; empty for nothing. */
function toText(value: unknown): string {
  return value === undefined ? "" : JSON.stringify(value);
}

/** A writer whose answers cross as JSON. */
class BridgeWriter implements BlobSink {
  readonly #target: StoreWriter;

  constructor(target: StoreWriter) {
    this.#target = target;
  }

  write(bytes: Uint8Array): Promise<void> {
    return this.#target.write(bytes);
  }

  append(blob: Blob): Promise<void> {
    return this.#target.append(blob);
  }

  put(offset: number, blob: Blob): Promise<void> {
    return this.#target.put(offset, blob);
  }

  async present(): Promise<string> {
    return toText(await this.#target.present());
  }

  read(begin: number, end: number): Promise<Uint8Array> {
    return this.#target.read(begin, end);
  }

  digest(begin: number, end: number): Promise<string> {
    return this.#target.digest(begin, end);
  }

  discard(begin: number, end: number): Promise<void> {
    return this.#target.discard(begin, end);
  }

  async finish(sha256?: string): Promise<string> {
    return toText(await this.#target.finish(sha256));
  }

  async commit(metadata: string): Promise<string> {
    return toText(await this.#target.commit(JSON.parse(metadata)));
  }

  suspend(): Promise<void> {
    return this.#target.suspend();
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
