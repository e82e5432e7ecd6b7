/**
 * The blob store in IndexedDB: files in parts of a bounded size, and small documents.
 *
 * A file is visible from the one transaction that commits it. Until then its parts belong to an entry in `writes`,
 * and whoever opens the store later removes the parts of writers that died.
 */

import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex } from "@noble/hashes/utils.js";
import { type DBSchema, type IDBPDatabase, type IDBPTransaction, openDB, type StoreNames } from "idb";
import { NamedError } from "../errors.ts";
import type { BlobKey } from "../protocol.ts";

/** Bytes of a part; the last one of a file may be shorter. */
export const PART_SIZE = 4 * 1024 * 1024;

const DEFAULT_NAME = "pywebml";
const SCHEMA_VERSION = 1;

/** Without Web Locks nobody can tell a slow writer from a dead one: after a day it counts as dead. */
const DEAD_AFTER_MS = 24 * 60 * 60 * 1000;

/** A complete, visible file. */
export interface FileRecord {
  key: BlobKey;
  /** In bytes. */
  size: number;
  /** Of its bytes, lower-case hexadecimal. */
  sha256: string;
  /** Seconds since the epoch. */
  updated: number;
  metadata: Record<string, unknown>;
  /** Names its parts. */
  blob: string;
  partSize: number;
  parts: number;
}

interface WriteRecord {
  key: BlobKey;
  /** Milliseconds since the epoch. */
  started: number;
}

interface Schema extends DBSchema {
  files: { key: BlobKey; value: FileRecord };
  parts: { key: [blob: string, index: number]; value: ArrayBuffer };
  writes: { key: string; value: WriteRecord };
  documents: { key: string; value: unknown };
}

type Database = IDBPDatabase<Schema>;
type StoreName = StoreNames<Schema>;
type Transaction<Mode extends IDBTransactionMode> = IDBPTransaction<Schema, StoreName[], Mode>;

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

/** One file being written. Calls queue up; the bytes given to `write` must not change until it resolves. */
export class StoreWriter {
  readonly key: BlobKey;
  readonly #store: Store;
  readonly #blob: string;
  readonly #releaseLock: () => void;
  readonly #hash = sha256.create();
  #state: "open" | "finished" | "committed" | "aborted" | "failed" = "open";
  #buffer: Uint8Array<ArrayBuffer> | undefined;
  #filled = 0;
  #size = 0;
  #parts = 0;
  #sha256 = "";
  #record: FileRecord | undefined;
  #queue: Promise<unknown> = Promise.resolve();

  constructor(store: Store, key: BlobKey, blob: string, releaseLock: () => void) {
    this.#store = store;
    this.key = key;
    this.#blob = blob;
    this.#releaseLock = releaseLock;
  }

  /** Appends bytes. */
  write(bytes: Uint8Array): Promise<void> {
    return this.#enqueue(async () => {
      this.#expect("open", "write");
      this.#hash.update(bytes);
      let offset = 0;
      while (offset < bytes.byteLength) {
        this.#buffer ??= new Uint8Array(PART_SIZE);
        const count = Math.min(PART_SIZE - this.#filled, bytes.byteLength - offset);
        this.#buffer.set(bytes.subarray(offset, offset + count), this.#filled);
        this.#filled += count;
        offset += count;
        if (this.#filled === PART_SIZE) {
          await this.#flush();
        }
      }
      this.#size += bytes.byteLength;
    });
  }

  /** Flushes; size and hash are for the caller to check before `commit`. */
  finish(): Promise<{ size: number; sha256: string }> {
    return this.#enqueue(() => this.#finish());
  }

  /** Makes the file visible in one step, replacing an older one of the same name. */
  commit(metadata: Record<string, unknown>): Promise<FileRecord> {
    return this.#enqueue(async () => {
      if (this.#record !== undefined) {
        return this.#record;
      }
      await this.#finish();
      const record: FileRecord = {
        key: this.key,
        size: this.#size,
        sha256: this.#sha256,
        updated: Date.now() / 1000,
        metadata,
        blob: this.#blob,
        partSize: PART_SIZE,
        parts: this.#parts,
      };
      await this.#store.transact(
        ["files", "parts", "writes"],
        "readwrite",
        label(this.key),
        async (tx) => {
          await this.#checkAlive(tx);
          const older = await tx.objectStore("files").get(this.key);
          if (older !== undefined) {
            await tx.objectStore("parts").delete(partsOf(older.blob));
          }
          await tx.objectStore("files").put(record);
          await tx.objectStore("writes").delete(this.#blob);
        },
        { durability: "strict" },
      );
      this.#record = record;
      this.#state = "committed";
      this.#releaseLock();
      return record;
    });
  }

  /** Drops what was written. Harmless after `commit` or another `abort`. */
  abort(): Promise<void> {
    return this.#enqueue(async () => {
      if (this.#state === "committed" || this.#state === "aborted") {
        return;
      }
      this.#state = "aborted";
      this.#buffer = undefined;
      // When the database fails here, the free lock lets the next opening remove the parts; the caller has an
      // error of its own to report.
      await this.#store.dropWrite(this.#blob).catch(() => undefined);
      this.#releaseLock();
    });
  }

  async #finish(): Promise<{ size: number; sha256: string }> {
    if (this.#state !== "finished") {
      this.#expect("open", "finish");
      if (this.#filled > 0) {
        await this.#flush();
      }
      this.#buffer = undefined;
      this.#sha256 = bytesToHex(this.#hash.digest());
      this.#state = "finished";
    }
    return { size: this.#size, sha256: this.#sha256 };
  }

  async #flush(): Promise<void> {
    const buffer = this.#buffer?.buffer;
    if (buffer === undefined) {
      return;
    }
    const part = this.#filled === PART_SIZE ? buffer : buffer.slice(0, this.#filled);
    try {
      await this.#store.transact(["parts", "writes"], "readwrite", label(this.key), async (tx) => {
        await this.#checkAlive(tx);
        await tx.objectStore("parts").put(part, [this.#blob, this.#parts]);
      });
    } catch (error) {
      // A hole cannot be filled later.
      this.#state = "failed";
      throw error;
    }
    this.#parts += 1;
    this.#filled = 0;
  }

  /** Without its entry in `writes`, parts of this writer would belong to nobody. */
  async #checkAlive(tx: Transaction<"readwrite">): Promise<void> {
    if ((await tx.objectStore("writes").getKey(this.#blob)) === undefined) {
      throw new NamedError(
        "StoreError",
        `The storage was cleared while ${label(this.key)} was written to it. Download the file again.`,
      );
    }
  }

  #expect(state: "open", call: string): void {
    if (this.#state !== state) {
      throw new NamedError(
        "StoreError",
        `Cannot ${call} ${label(this.key)}: its writer is ${this.#state}. Start a new one with openWriter.`,
      );
    }
  }

  #enqueue<Result>(work: () => Promise<Result>): Promise<Result> {
    const result = this.#queue.then(work);
    this.#queue = result.catch(() => undefined);
    return result;
  }
}

function partsOf(blob: string): IDBKeyRange {
  return IDBKeyRange.bound([blob], [blob, []]);
}

function checkKey(key: BlobKey): void {
  if (!Array.isArray(key) || key.length !== 4 || !key.every((part) => typeof part === "string")) {
    throw new NamedError(
      "StoreError",
      `A file is named by four strings (kind, owner, revision, path), not by ${JSON.stringify(key)}.`,
    );
  }
}

function label(key: BlobKey): string {
  const [, owner, revision, path] = key;
  return `'${path}' of ${owner} (${revision})`;
}

function replacedError(key: BlobKey): NamedError {
  return new NamedError(
    "StoreError",
    `The stored file ${label(key)} was replaced or deleted while it was read. Read it again.`,
    { key },
  );
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

async function estimate(): Promise<[used: number, quota: number]> {
  const answer = await globalThis.navigator?.storage?.estimate?.();
  return [answer?.usage ?? 0, answer?.quota ?? 0];
}

function errorName(error: unknown): string {
  return error instanceof Error ? error.name : "";
}

function abortQuietly(tx: { abort(): void }): void {
  try {
    tx.abort();
  } catch {
    // It has ended already.
  }
}

/** What a DOMException of the database means for the user. */
async function storeError(error: unknown, what: string): Promise<NamedError> {
  if (error instanceof NamedError) {
    return error;
  }
  const name = errorName(error);
  const words = error instanceof Error ? error.message : String(error);
  if (name === "QuotaExceededError") {
    const [used, quota] = await estimate().catch(() => [0, 0]);
    return new NamedError(
      "QuotaExceededError",
      `The browser has no room left for ${what} (${used} of ${quota} bytes are used). ` +
        "Delete stored models or free disk space, then try again.",
      { used, quota },
    );
  }
  if (name === "DataError" || name === "DataCloneError") {
    return new NamedError(
      "StoreError",
      `The database cannot store ${what}: ${words} Give plain data (text, numbers, lists, dictionaries).`,
    );
  }
  if (name === "VersionError") {
    return new NamedError(
      "StoreUnavailableError",
      `The stored data was written by a newer version of this page (${words}). Reload the page.`,
    );
  }
  return new NamedError(
    "StoreUnavailableError",
    `The browser's database failed at ${what}: ${name || "Error"}: ${words} ` +
      "Storage may be switched off (private window, site settings), full or damaged. " +
      "Allow this site to store data or clear its data, then try again.",
  );
}
