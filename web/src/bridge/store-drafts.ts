/** Unfinished files: starting them, going on with them, and removing those that nobody will go on with. */

import type { BlobKey } from "../protocol.ts";
import { toHex } from "./hashing.ts";
import { type Lock, seesOthers, takeLock } from "./locks.ts";
import type { StoreDatabase } from "./store-database.ts";
import { Draft, dropWrite } from "./store-draft.ts";
import { label } from "./store-errors.ts";
import { sizeOf, toPieces } from "./store-pieces.ts";
import { partsOf, type WriteRecord } from "./store-schema.ts";
import { StoreWriter } from "./store-writer.ts";

/** Without Web Locks nobody can tell a slow writer from a dead one: after a day it counts as dead. */
const DEAD_AFTER_MS = 24 * 60 * 60 * 1000;

/** What nobody has gone on with for so long is given up. */
const STALE_AFTER_MS = 7 * 24 * 60 * 60 * 1000;

/** The lock of a tab that was closed is free a moment later. */
const LOCK_WAIT_MS = 1_000;

interface Write {
  blob: string;
  record: WriteRecord;
}

export class Drafts {
  readonly #database: StoreDatabase;
  readonly #hashWorkerUrl: string | undefined;

  constructor(database: StoreDatabase, hashWorkerUrl: string | undefined) {
    this.#database = database;
    this.#hashWorkerUrl = hashWorkerUrl;
  }

  /** Starts a file, or goes on with one of the same token. Those under other tokens are dropped. */
  async open(key: BlobKey, token: string): Promise<StoreWriter> {
    let writer: StoreWriter | undefined;
    for (const write of await this.#suspended([key])) {
      if (writer === undefined && write.record.token === token) {
        writer = await this.#resume(write);
      } else {
        await this.#dropUnheld(write.blob);
      }
    }
    return writer ?? this.#start(key, token);
  }

  /** Token and bytes of the latest writer: a suspended one, or one at work, perhaps in another tab. */
  async find(key: BlobKey): Promise<[token: string, size: number] | undefined> {
    const [write] = await this.#suspended([key]);
    const size = write === undefined ? 0 : await this.#sizeOf([write]);
    return write !== undefined && size > 0 ? [write.record.token, size] : undefined;
  }

  /** Removes suspended writers, of these keys or of all. */
  async drop(keys: BlobKey[] | undefined): Promise<void> {
    for (const { blob } of await this.#suspended(keys)) {
      await this.#dropUnheld(blob);
    }
  }

  /** Keys and bytes of all files that can be gone on with, or are at work, the oldest first. */
  async list(): Promise<[key: BlobKey, size: number][]> {
    const writes = (await this.#suspended(undefined)).reverse();
    const sizes = await this.#sizes(writes);
    const drafts = writes.map(({ record }, index): [BlobKey, number] => [record.key, sizes[index] ?? 0]);
    return drafts.filter(([, size]) => size > 0);
  }

  /** Bytes of all files that can be gone on with. */
  async size(): Promise<number> {
    return this.#sizeOf(await this.#suspended(undefined));
  }

  /** Removes what dead writers left, and parts that belong to nobody. */
  async sweep(): Promise<void> {
    const now = Date.now();
    for (const { blob, record } of await this.#writes(undefined)) {
      const age = now - record.updated;
      if (record.token === "" ? seesOthers() || age > DEAD_AFTER_MS : age > STALE_AFTER_MS) {
        await this.#dropUnheld(blob);
      }
    }
    for (const blob of await this.#orphans()) {
      // Nobody writes under this name again: the record of a writer, or of a file, is there before its parts.
      await this.#database.transact(["parts"], "readwrite", "stored parts", (tx) =>
        tx.objectStore("parts").delete(partsOf(blob)),
      );
    }
  }

  async #start(key: BlobKey, token: string): Promise<StoreWriter> {
    const blob = randomId();
    const lock = await takeLock(lockName(blob), {});
    const now = Date.now();
    try {
      await this.#database.transact(["writes"], "readwrite", label(key), (tx) =>
        tx.objectStore("writes").put({ key, started: now, updated: now, token }, blob),
      );
    } catch (error) {
      lock.release();
      throw error;
    }
    return this.#writer(new Draft(this.#database, key, blob, []), token, lock);
  }

  async #resume({ blob, record }: Write): Promise<StoreWriter | undefined> {
    const { key, token } = record;
    let lock: Lock;
    try {
      lock = await takeLock(lockName(blob), { signal: AbortSignal.timeout(LOCK_WAIT_MS) });
    } catch {
      // Somebody is writing it, against the rule; two writers of their own do no harm.
      return undefined;
    }
    try {
      const keys = await this.#database.transact(["writes", "parts"], "readwrite", label(key), async (tx) => {
        const writes = tx.objectStore("writes");
        const current = await writes.get(blob);
        if (current === undefined) {
          return undefined;
        }
        await writes.put({ ...current, updated: Date.now() }, blob);
        return tx.objectStore("parts").getAllKeys(partsOf(blob));
      });
      if (keys !== undefined) {
        return this.#writer(new Draft(this.#database, key, blob, toPieces(keys)), token, lock);
      }
    } catch (error) {
      lock.release();
      throw error;
    }
    lock.release();
    return undefined;
  }

  #writer(draft: Draft, token: string, lock: Lock): StoreWriter {
    return new StoreWriter(draft, token, lock, this.#hashWorkerUrl);
  }

  async #dropUnheld(blob: string): Promise<void> {
    const lock = await takeLock(lockName(blob), { ifAvailable: true });
    if (lock !== undefined) {
      try {
        await dropWrite(this.#database, blob);
      } finally {
        lock.release();
      }
    }
  }

  /** Those with a token, the latest first. */
  async #suspended(keys: BlobKey[] | undefined): Promise<Write[]> {
    const writes = await this.#writes(keys);
    return writes
      .filter(({ record }) => record.token !== "")
      .sort((one, two) => two.record.updated - one.record.updated);
  }

  async #writes(keys: BlobKey[] | undefined): Promise<Write[]> {
    return this.#database.transact(["writes"], "readonly", "unfinished files", async (tx) => {
      const writes = tx.objectStore("writes");
      const found: Write[] = [];
      for (const key of keys ?? [undefined]) {
        const blobs = await (key ? writes.index("key").getAllKeys(key) : writes.getAllKeys());
        const records = await (key ? writes.index("key").getAll(key) : writes.getAll());
        found.push(...blobs.map((blob, index) => ({ blob, record: records[index] as WriteRecord })));
      }
      return found;
    });
  }

  async #sizeOf(writes: Write[]): Promise<number> {
    return (await this.#sizes(writes)).reduce((sum, size) => sum + size, 0);
  }

  async #sizes(writes: Write[]): Promise<number[]> {
    return this.#database.transact(["parts"], "readonly", "unfinished files", async (tx) => {
      const keys = await Promise.all(
        writes.map(({ blob }) => tx.objectStore("parts").getAllKeys(partsOf(blob))),
      );
      return keys.map((keys) => sizeOf(toPieces(keys)));
    });
  }

  /** Names of parts that belong to no file, visible or unfinished. */
  async #orphans(): Promise<string[]> {
    return this.#database.transact(["files", "parts", "writes"], "readonly", "stored parts", async (tx) => {
      const keys = await tx.objectStore("parts").getAllKeys();
      const known = new Set<string>(await tx.objectStore("writes").getAllKeys());
      for (const file of await tx.objectStore("files").getAll()) {
        known.add(file.blob);
      }
      return [...new Set(keys.map(([blob]) => blob))].filter((blob) => !known.has(blob));
    });
  }
}

/** 128 random bits; `crypto.randomUUID` is missing on pages without HTTPS. */
function randomId(): string {
  return toHex(crypto.getRandomValues(new Uint8Array(16)));
}

function lockName(blob: string): string {
  return `pywebml:write:${blob}`;
}
