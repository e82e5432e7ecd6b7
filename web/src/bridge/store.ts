/**
 * The blob store in IndexedDB: files in parts of a bounded size, and small documents.
 *
 * A file is visible from the one transaction that commits it. Until then its parts belong to an entry in `writes`,
 * and whoever opens the store later removes the parts of writers that died. A file of which parts are missing is not
 * there: whoever notices removes it.
 */

import { NamedError } from "../errors.ts";
import type { BlobKey } from "../protocol.ts";
import { HASHED_AT_ONCE, sha256, startHasher } from "./hashing.ts";
import { StoreDatabase } from "./store-database.ts";
import { Drafts } from "./store-drafts.ts";
import { checkKey, damagedError, estimate, isUnreadable, label, replacedError } from "./store-errors.ts";
import { isWhole, stretchesOf, toPieces } from "./store-pieces.ts";
import { type FileRecord, type PartKey, partsOf } from "./store-schema.ts";
import type { StoreWriter } from "./store-writer.ts";

export type { FileRecord } from "./store-schema.ts";
export { StoreWriter } from "./store-writer.ts";

const DEFAULT_NAME = "pywebml";

/** How many parts are read before somebody asks for them. */
const PARTS_AHEAD = 3;

export interface StoreOptions {
  /** Default `pywebml`. */
  name?: string;
  /** Script of the hash worker; without it large files are hashed in this thread. */
  hashWorkerUrl?: string | undefined;
}

/** Bytes used by visible and by unfinished files, and those that can still be written (null: unknown). */
export interface StoreUsage {
  files: number;
  drafts: number;
  available: number | null;
}

/** One part of a file that is being read. */
interface Source {
  key: PartKey;
  length: number;
  /** Files of version 1 have none. */
  blob: Blob | undefined;
}

/** Opens the store and removes what dead writers left. Throws `StoreUnavailableError`. */
export async function openStore(options: StoreOptions = {}): Promise<Store> {
  const store = new Store(options);
  await store.open();
  return store;
}

export class Store {
  readonly #database: StoreDatabase;
  readonly #drafts: Drafts;
  readonly #hashWorkerUrl: string | undefined;

  constructor({ name = DEFAULT_NAME, hashWorkerUrl }: StoreOptions) {
    this.#database = new StoreDatabase(name);
    this.#drafts = new Drafts(this.#database, hashWorkerUrl);
    this.#hashWorkerUrl = hashWorkerUrl;
  }

  async open(): Promise<void> {
    await this.#database.connect();
    // Leftovers cost room, nothing else: when removing them fails, the next opening tries again.
    await this.#drafts.sweep().catch(() => undefined);
  }

  /** Gives the connection back. Every later call fails. */
  async close(): Promise<void> {
    await this.#database.close();
  }

  /**
   * Starts a file, or goes on with one that was suspended with the same token. Nobody sees it before `commit`.
   * Without a token nothing is kept when the writer ends otherwise.
   */
  async openWriter(key: BlobKey, token = ""): Promise<StoreWriter> {
    checkKey(key);
    return this.#drafts.open(key, token);
  }

  /** Token and bytes of a suspended writer. */
  async draft(key: BlobKey): Promise<[token: string, size: number] | undefined> {
    checkKey(key);
    return this.#drafts.find(key);
  }

  /** Removes suspended writers, of these keys or of all. */
  async dropDrafts(keys?: BlobKey[]): Promise<void> {
    keys?.forEach(checkKey);
    await this.#drafts.drop(keys);
  }

  /** Keys and bytes of suspended writers, and of those at work, the oldest first. */
  async drafts(): Promise<[key: BlobKey, size: number][]> {
    return this.#drafts.list();
  }

  async info(key: BlobKey): Promise<FileRecord | undefined> {
    checkKey(key);
    const [record, keys] = await this.#database.transact(
      ["files", "parts"],
      "readonly",
      label(key),
      async (tx) => {
        const record = await tx.objectStore("files").get(key);
        const keys = record && (await tx.objectStore("parts").getAllKeys(partsOf(record.blob)));
        return [record, keys ?? []] as const;
      },
    );
    if (record !== undefined && !isWhole(record, keys)) {
      await this.#remove([record]);
      return undefined;
    }
    return record;
  }

  /** All files of a kind, ordered by key. */
  async list(kind: string): Promise<FileRecord[]> {
    // In IndexedDB's order an array comes after every string, so this is every key that begins with `kind`.
    const range = IDBKeyRange.bound([kind], [kind, []]);
    const [records, keys] = await this.#database.transact(
      ["files", "parts"],
      "readonly",
      `the list of '${kind}'`,
      (tx) => Promise.all([tx.objectStore("files").getAll(range), tx.objectStore("parts").getAllKeys()]),
    );
    const keysOf = new Map<string, PartKey[]>(records.map(({ blob }) => [blob, []]));
    for (const partKey of keys) {
      keysOf.get(partKey[0])?.push(partKey);
    }
    const broken = records.filter((record) => !isWhole(record, keysOf.get(record.blob) ?? []));
    if (broken.length > 0) {
      await this.#remove(broken);
    }
    return records.filter((record) => !broken.includes(record));
  }

  /**
   * The bytes in order, a few parts in memory at a time. Throws `StoreError` when the file is not there, and
   * `DamagedFileError` when the browser lost some of it.
   */
  async *parts(key: BlobKey): AsyncGenerator<Uint8Array<ArrayBuffer>, void, undefined> {
    yield* this.#ahead(...(await this.#sources(key)));
  }

  /**
   * The bytes in order, as blobs that have not been read. They stay readable when the file is replaced or deleted.
   * Throws as `parts` does; reading a blob throws the browser's errors.
   */
  async blobs(key: BlobKey): Promise<Blob[]> {
    const [record, sources] = await this.#sources(key);
    const blobs: Blob[] = [];
    for (const source of sources) {
      blobs.push(source.blob ?? new Blob([await this.#bytes(record, source)]));
    }
    return blobs;
  }

  /** The whole file in one piece. Throws as `parts` does. */
  async read(key: BlobKey): Promise<Uint8Array<ArrayBuffer>> {
    const [record, sources] = await this.#sources(key);
    const whole = await together(sources);
    if (whole?.byteLength === record.size) {
      return whole;
    }
    // Part by part it turns out what is the matter with which.
    const bytes = new Uint8Array(record.size);
    let offset = 0;
    for await (const part of this.#ahead(record, sources)) {
      bytes.set(part, offset);
      offset += part.byteLength;
    }
    return bytes;
  }

  /** Whether the bytes are all there and still have the SHA-256 they were stored with. */
  async verify(key: BlobKey): Promise<boolean> {
    for (let record = await this.info(key); record !== undefined; ) {
      const intact = await this.#isIntact(record);
      const current = await this.info(key);
      // A file that was replaced in between is looked at anew: its bytes were not those of the record.
      if (intact || current?.blob === record.blob) {
        return intact;
      }
      record = current;
    }
    return false;
  }

  /** Replaces the metadata of files in one step; names that do not exist are passed over. */
  async update(changes: [key: BlobKey, metadata: Record<string, unknown>][]): Promise<void> {
    await this.#database.transact(["files"], "readwrite", "changes of metadata", async (tx) => {
      const files = tx.objectStore("files");
      for (const [key, metadata] of changes) {
        checkKey(key);
        const record = await files.get(key);
        if (record !== undefined) {
          await files.put({ ...record, metadata });
        }
      }
    });
  }

  /** Removes files in one step; names that do not exist are passed over. */
  async delete(keys: BlobKey[]): Promise<void> {
    keys.forEach(checkKey);
    await this.#database.transact(["files", "parts"], "readwrite", "a deletion", async (tx) => {
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
    return this.#database.transact(["documents"], "readonly", `document '${key}'`, (tx) =>
      tx.objectStore("documents").get(key),
    );
  }

  async putDocument(key: string, value: unknown): Promise<void> {
    await this.#database.transact(["documents"], "readwrite", `document '${key}'`, (tx) =>
      tx.objectStore("documents").put(value, key),
    );
  }

  async deleteDocument(key: string): Promise<void> {
    await this.#database.transact(["documents"], "readwrite", `document '${key}'`, (tx) =>
      tx.objectStore("documents").delete(key),
    );
  }

  /** The browser's own figure of what is used is rounded and late, so the files are counted. */
  async usage(): Promise<StoreUsage> {
    const files = await this.#database.transact(["files"], "readonly", "the list of files", (tx) =>
      tx.objectStore("files").getAll(),
    );
    const room = await estimate().catch(() => undefined);
    return {
      files: files.reduce((sum, file) => sum + file.size, 0),
      drafts: await this.#drafts.size(),
      available: room === undefined ? null : Math.max(0, room.quota - room.used),
    };
  }

  /** Asks the browser never to evict this origin's storage. Workers cannot ask: there it tells what was granted. */
  async persist(): Promise<boolean> {
    const storage = globalThis.navigator?.storage as Partial<StorageManager> | undefined;
    if (storage?.persist !== undefined) {
      return storage.persist();
    }
    return (await storage?.persisted?.()) ?? false;
  }

  async #isIntact(record: FileRecord): Promise<boolean> {
    try {
      return (await this.#hash(record)) === record.sha256;
    } catch (error) {
      if (error instanceof NamedError && ["DamagedFileError", "StoreError"].includes(error.name)) {
        return false;
      }
      throw error;
    }
  }

  async #hash(record: FileRecord): Promise<string> {
    if (record.size <= HASHED_AT_ONCE) {
      return sha256(await this.read(record.key));
    }
    const hasher = await startHasher(this.#hashWorkerUrl);
    try {
      const [, sources] = await this.#sources(record.key);
      for (const source of sources) {
        const blob = source.blob ?? new Blob([await this.#bytes(record, source)]);
        await this.#readable(record, () => hasher.update(blob));
      }
      return await hasher.digest();
    } finally {
      hasher.stop();
    }
  }

  /** A file's record, and its parts in order as they are now, in one view of the database. */
  async #sources(key: BlobKey): Promise<[FileRecord, Source[]]> {
    const record = await this.info(key);
    if (record === undefined) {
      throw new NamedError("StoreError", `There is no stored file ${label(key)}. Download it first.`, {
        key,
      });
    }
    const range = partsOf(record.blob);
    const [keys, values] = await this.#database.transact(["parts"], "readonly", label(key), (tx) => {
      const parts = tx.objectStore("parts");
      return Promise.all([
        parts.getAllKeys(range),
        // Of version 1 these would be all bytes of the file.
        record.partSize === undefined ? parts.getAll(range) : [],
      ]);
    });
    const stretches = stretchesOf(toPieces(keys, record), 0, record.size);
    if (stretches === undefined) {
      throw await this.#damaged(record, "parts");
    }
    const sources = stretches.map(({ piece }, index) => {
      const value = values[index];
      return { key: piece.key, length: piece.length, blob: value instanceof Blob ? value : undefined };
    });
    return [record, sources];
  }

  async *#ahead(
    record: FileRecord,
    sources: Source[],
  ): AsyncGenerator<Uint8Array<ArrayBuffer>, void, undefined> {
    const ahead: Promise<Uint8Array<ArrayBuffer>>[] = [];
    for (const source of sources) {
      const part = this.#bytes(record, source);
      // Whoever stops reading does not hear of parts that could not be read.
      part.catch(() => undefined);
      ahead.push(part);
      if (ahead.length > PARTS_AHEAD) {
        yield (await ahead.shift()) as Uint8Array<ArrayBuffer>;
      }
    }
    for (const part of ahead) {
      yield await part;
    }
  }

  async #bytes(record: FileRecord, { key, length, blob }: Source): Promise<Uint8Array<ArrayBuffer>> {
    const buffer =
      blob === undefined
        ? await this.#database.transact(["parts"], "readonly", label(record.key), (tx) =>
            tx.objectStore("parts").get(key),
          )
        : await this.#readable(record, () => blob.arrayBuffer());
    if (!(buffer instanceof ArrayBuffer) || buffer.byteLength !== length) {
      throw await this.#damaged(record, `${length} bytes`);
    }
    return new Uint8Array(buffer);
  }

  async #readable<Result>(record: FileRecord, read: () => Promise<Result>): Promise<Result> {
    try {
      return await read();
    } catch (error) {
      throw isUnreadable(error) ? await this.#damaged(record, "bytes") : error;
    }
  }

  /** Removes a file of which bytes are missing, unless it is another one by now. */
  async #damaged(record: FileRecord, what: string): Promise<NamedError> {
    return (await this.#remove([record])) === 0 ? replacedError(record.key) : damagedError(record.key, what);
  }

  /** Removes files that are still the same. Answers how many that were. */
  async #remove(records: FileRecord[]): Promise<number> {
    return this.#database.transact(["files", "parts"], "readwrite", "damaged files", async (tx) => {
      let removed = 0;
      for (const { key, blob } of records) {
        const current = await tx.objectStore("files").get(key);
        if (current?.blob === blob) {
          removed += 1;
          await tx.objectStore("files").delete(key);
          await tx.objectStore("parts").delete(partsOf(blob));
        }
      }
      return removed;
    });
  }
}

/** All bytes, put together by the browser: in half the time that copying them here takes. Nothing if that fails. */
async function together(sources: Source[]): Promise<Uint8Array<ArrayBuffer> | undefined> {
  const blobs = sources.flatMap(({ blob }) => blob ?? []);
  if (blobs.length < sources.length) {
    return undefined;
  }
  try {
    if (blobs.length > 1) {
      // Reading several at once may never end in Chromium when one of them is gone from the disk.
      await Promise.all(blobs.map((blob) => blob.slice(-1).arrayBuffer()));
    }
    return new Uint8Array(await new Blob(blobs).arrayBuffer());
  } catch {
    return undefined;
  }
}
