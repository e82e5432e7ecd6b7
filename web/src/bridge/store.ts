/**
 * The blob store in IndexedDB: files in parts of a bounded size, and small documents.
 *
 * A file is visible from the one transaction that commits it. Until then its parts belong to an entry in `writes`,
 * and whoever opens the store later removes the parts of writers that died.
 */

import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex } from "@noble/hashes/utils.js";
import { openDB } from "idb";
import { NamedError } from "../errors.ts";
import type { BlobKey } from "../protocol.ts";
import { checkKey, errorName, estimate, label, replacedError, storeError } from "./store-errors.ts";
import {
  type Database,
  type FileRecord,
  partsOf,
  type Schema,
  type StoreName,
  type Transaction,
} from "./store-schema.ts";
import { StoreWriter } from "./store-writer.ts";

export type { FileRecord } from "./store-schema.ts";
export { StoreWriter } from "./store-writer.ts";

const DEFAULT_NAME = "pywebml";
const SCHEMA_VERSION = 1;

const HASHED_AT_ONCE = 64 * 1024 * 1024;

/** Without Web Locks nobody can tell a slow writer from a dead one: after a day it counts as dead. */
const DEAD_AFTER_MS = 24 * 60 * 60 * 1000;

/** Opens the store and removes what dead writers left. Throws `StoreUnavailableError`. */
export async function openStore(name: string = DEFAULT_NAME): Promise<Store> {
  const store = new Store(name);
  await store.open();
  return store;
}

export class Store {
  readonly name: string;
  #database: Promise<Database> | undefined;
  #closed = false;

  constructor(name: string) {
    this.name = name;
  }

  async open(): Promise<void> {
    await this.#connect();
    // Leftovers cost room, nothing else: when removing them fails, the next opening tries again.
    await this.#sweep().catch(() => undefined);
  }

  /** Gives the connection back. Every later call fails. */
  async close(): Promise<void> {
    this.#closed = true;
    const database = this.#database;
    this.#database = undefined;
    await database?.then(
      (open) => open.close(),
      () => undefined,
    );
  }

  /** Starts a file. Nobody sees it before `commit`. */
  async openWriter(key: BlobKey): Promise<StoreWriter> {
    checkKey(key);
    const blob = randomId();
    const release = await holdLock(lockName(blob));
    try {
      await this.transact(["writes"], "readwrite", label(key), (tx) =>
        tx.objectStore("writes").put({ key, started: Date.now() }, blob),
      );
    } catch (error) {
      release();
      throw error;
    }
    return new StoreWriter(this, key, blob, release);
  }

  async info(key: BlobKey): Promise<FileRecord | undefined> {
    checkKey(key);
    return this.transact(["files"], "readonly", label(key), (tx) => tx.objectStore("files").get(key));
  }

  /** All files of a kind, ordered by key. */
  async list(kind: string): Promise<FileRecord[]> {
    // In IndexedDB's order an array comes after every string, so this is every key that begins with `kind`.
    const range = IDBKeyRange.bound([kind], [kind, []]);
    return this.transact(["files"], "readonly", `the list of '${kind}'`, (tx) =>
      tx.objectStore("files").getAll(range),
    );
  }

  /** The bytes in order, one part in memory at a time. Throws `StoreError` when the file is not there or not whole. */
  async *parts(key: BlobKey): AsyncGenerator<Uint8Array<ArrayBuffer>, void, undefined> {
    const record = await this.#existing(key);
    for (let index = 0; index < record.parts; index++) {
      const part = await this.transact(["parts"], "readonly", label(key), (tx) =>
        tx.objectStore("parts").get([record.blob, index]),
      );
      const expected = Math.min(record.partSize, record.size - index * record.partSize);
      if (!(part instanceof ArrayBuffer) || part.byteLength !== expected) {
        throw await this.#brokenFile(record, index, expected, part);
      }
      yield new Uint8Array(part);
    }
  }

  /** The whole file in one piece. Throws `StoreError` when it is not there or not whole. */
  async read(key: BlobKey): Promise<Uint8Array<ArrayBuffer>> {
    const { size } = await this.#existing(key);
    const bytes = new Uint8Array(size);
    let offset = 0;
    for await (const part of this.parts(key)) {
      if (offset + part.byteLength > size) {
        throw replacedError(key);
      }
      bytes.set(part, offset);
      offset += part.byteLength;
    }
    if (offset !== size) {
      throw replacedError(key);
    }
    return bytes;
  }

  /** Whether the bytes are all there and still have the SHA-256 they were stored with. */
  async verify(key: BlobKey): Promise<boolean> {
    const record = await this.info(key);
    if (record === undefined) {
      return false;
    }
    try {
      return (await this.#hash(record)) === record.sha256;
    } catch (error) {
      if (error instanceof NamedError && error.name === "StoreError") {
        return false;
      }
      throw error;
    }
  }

  async #hash({ key, size }: FileRecord): Promise<string> {
    // The browser's own hash works beside this thread, but wants all bytes at once.
    const subtle = globalThis.crypto?.subtle as SubtleCrypto | undefined;
    if (subtle !== undefined && size <= HASHED_AT_ONCE) {
      return bytesToHex(new Uint8Array(await subtle.digest("SHA-256", await this.read(key))));
    }
    const hash = sha256.create();
    for await (const part of this.parts(key)) {
      hash.update(part);
    }
    return bytesToHex(hash.digest());
  }

  /** Removes files in one step; names that do not exist are passed over. */
  async delete(keys: BlobKey[]): Promise<void> {
    keys.forEach(checkKey);
    await this.transact(["files", "parts"], "readwrite", "a deletion", async (tx) => {
      for (const key of keys) {
        const record = await tx.objectStore("files").get(key);
        if (record !== undefined) {
          await tx.objectStore("files").delete(key);
          await tx.objectStore("parts").delete(partsOf(record.blob));
        }
      }
    });
  }

  async getDocument(key: string): Promise<unknown> {
    return this.transact(["documents"], "readonly", `document '${key}'`, (tx) =>
      tx.objectStore("documents").get(key),
    );
  }

  async putDocument(key: string, value: unknown): Promise<void> {
    await this.transact(["documents"], "readwrite", `document '${key}'`, (tx) =>
      tx.objectStore("documents").put(value, key),
    );
  }

  async deleteDocument(key: string): Promise<void> {
    await this.transact(["documents"], "readwrite", `document '${key}'`, (tx) =>
      tx.objectStore("documents").delete(key),
    );
  }

  /**
   * Bytes of all files here, and bytes that the browser allows the whole origin (0: unknown). The browser's own figure
   * of what is used is rounded and late, so the files are counted.
   */
  async usage(): Promise<[used: number, quota: number]> {
    const files = await this.transact(["files"], "readonly", "the list of files", (tx) =>
      tx.objectStore("files").getAll(),
    );
    const [, quota] = await estimate();
    return [files.reduce((sum, file) => sum + file.size, 0), quota];
  }

  /** Asks the browser never to evict this origin's storage. Workers cannot ask: there it tells what was granted. */
  async persist(): Promise<boolean> {
    const storage = globalThis.navigator?.storage as Partial<StorageManager> | undefined;
    if (storage?.persist !== undefined) {
      return storage.persist();
    }
    return (await storage?.persisted?.()) ?? false;
  }

  /**
   * One transaction: `work` may await requests of the transaction and nothing else. `what` is for messages.
   * Errors of the database come out under our names.
   */
  async transact<Mode extends "readonly" | "readwrite", Result>(
    stores: StoreName[],
    mode: Mode,
    what: string,
    work: (tx: Transaction<Mode>) => Promise<Result>,
    options?: IDBTransactionOptions,
  ): Promise<Result> {
    let tx: Transaction<Mode>;
    try {
      tx = (await this.#connect()).transaction(stores, mode, options);
    } catch (error) {
      if (errorName(error) !== "InvalidStateError") {
        throw await storeError(error, what);
      }
      // The browser closed the connection after we looked. Nothing has been done with it: open another one.
      this.#database = undefined;
      try {
        tx = (await this.#connect()).transaction(stores, mode, options);
      } catch (again) {
        throw await storeError(again, what);
      }
    }
    const done = tx.done.then(
      () => undefined,
      (error: unknown) => ({ error }),
    );
    let result: Result;
    try {
      result = await work(tx);
    } catch (error) {
      abortQuietly(tx);
      // A request of an aborted transaction only says AbortError; the transaction knows why (no room, for example).
      const failure = errorName(error) === "AbortError" ? ((await done)?.error ?? error) : error;
      throw await storeError(failure, what);
    }
    const failure = await done;
    if (failure !== undefined) {
      throw await storeError(failure.error, what);
    }
    return result;
  }

  async #connect(): Promise<Database> {
    if (this.#closed) {
      throw new NamedError(
        "StoreUnavailableError",
        `The store '${this.name}' was closed. Open it again before you use it.`,
      );
    }
    if (this.#database === undefined) {
      const opening = this.#openDatabase();
      this.#database = opening;
      opening.catch(() => this.#forget(opening));
    }
    return this.#database;
  }

  #forget(database: Promise<Database> | undefined): void {
    if (this.#database === database) {
      this.#database = undefined;
    }
  }

  async #openDatabase(): Promise<Database> {
    if (globalThis.indexedDB === undefined) {
      throw new NamedError(
        "StoreUnavailableError",
        "There is no IndexedDB here. Open the page in a browser window that may store data (no sandboxed frame).",
      );
    }
    let isBlocked: (error: NamedError) => void = () => undefined;
    const blocked = new Promise<never>((_resolve, reject) => {
      isBlocked = reject;
    });
    let abandoned = false;
    const opened = openDB<Schema>(this.name, SCHEMA_VERSION, {
      upgrade: (database) => {
        database.createObjectStore("files", { keyPath: "key" });
        database.createObjectStore("parts");
        database.createObjectStore("writes");
        database.createObjectStore("documents");
      },
      blocked: (current, wanted) =>
        isBlocked(
          new NamedError(
            "StoreUnavailableError",
            `Database '${this.name}' must go from version ${current} to ${wanted}, but another tab still uses it. ` +
              "Close the other tabs of this site, then try again.",
          ),
        ),
      // Somebody wants to upgrade or delete the database: make way, the next call opens it again.
      blocking: (_current, _wanted, event) => {
        this.#database = undefined;
        (event.target as IDBDatabase).close();
      },
      terminated: () => {
        this.#database = undefined;
      },
    });
    // After `blocked` the opening may still succeed when nobody waits any more.
    opened.then(
      (database) => {
        if (abandoned) {
          database.close();
        }
      },
      () => undefined,
    );
    try {
      return await Promise.race([opened, blocked]);
    } catch (error) {
      abandoned = true;
      throw await storeError(error, `database '${this.name}'`);
    }
  }

  /** Removes the parts of writers that are gone: their lock is free. */
  async #sweep(): Promise<void> {
    const [blobs, records] = await this.transact(["writes"], "readonly", "unfinished files", (tx) =>
      Promise.all([tx.objectStore("writes").getAllKeys(), tx.objectStore("writes").getAll()]),
    );
    const locks = lockManager();
    for (const [index, blob] of blobs.entries()) {
      if (locks !== undefined) {
        await locks.request(lockName(blob), { ifAvailable: true }, async (lock) => {
          if (lock !== null) {
            await this.dropWrite(blob);
          }
        });
      } else if (Date.now() - (records[index]?.started ?? 0) > DEAD_AFTER_MS) {
        await this.dropWrite(blob);
      }
    }
  }

  /** Removes an unfinished file. A committed one has no entry in `writes` and is left alone. */
  async dropWrite(blob: string): Promise<void> {
    await this.transact(["writes", "parts"], "readwrite", "an unfinished file", async (tx) => {
      if ((await tx.objectStore("writes").getKey(blob)) !== undefined) {
        await tx.objectStore("parts").delete(partsOf(blob));
        await tx.objectStore("writes").delete(blob);
      }
    });
  }

  async #existing(key: BlobKey): Promise<FileRecord> {
    const record = await this.info(key);
    if (record === undefined) {
      throw new NamedError("StoreError", `There is no stored file ${label(key)}. Download it first.`, {
        key,
      });
    }
    return record;
  }

  async #brokenFile(record: FileRecord, index: number, expected: number, part: unknown): Promise<NamedError> {
    const now = await this.info(record.key);
    if (now?.blob !== record.blob) {
      return replacedError(record.key);
    }
    const found =
      part instanceof ArrayBuffer ? `has ${part.byteLength} bytes instead of ${expected}` : "is missing";
    return new NamedError(
      "StoreError",
      `Part ${index + 1} of ${record.parts} of the stored file ${label(record.key)} ${found}: ` +
        "the browser lost a piece of its storage. Delete this model and download it again.",
      { key: record.key, part: index, expected },
    );
  }
}

/** 128 random bits; `crypto.randomUUID` is missing on pages without HTTPS. */
function randomId(): string {
  return bytesToHex(crypto.getRandomValues(new Uint8Array(16)));
}

function lockName(blob: string): string {
  return `pywebml:write:${blob}`;
}

function lockManager(): LockManager | undefined {
  return globalThis.navigator?.locks;
}

/** Takes a Web Lock until the returned function is called or this worker or page dies. */
async function holdLock(name: string): Promise<() => void> {
  const locks = lockManager();
  if (locks === undefined) {
    return () => undefined;
  }
  return new Promise((resolve, reject) => {
    locks.request(name, () => new Promise<void>((release) => resolve(release))).catch(reject);
  });
}

function abortQuietly(tx: { abort(): void }): void {
  try {
    tx.abort();
  } catch {
    // It has ended already.
  }
}
