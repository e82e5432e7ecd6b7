/** A file on its way into the store. */

import { sha256 } from "@noble/hashes/sha2.js";
import { bytesToHex } from "@noble/hashes/utils.js";
import { NamedError } from "../errors.ts";
import type { BlobKey } from "../protocol.ts";
import type { Store } from "./store.ts";
import { label } from "./store-errors.ts";
import { type FileRecord, PART_SIZE, partsOf, type Transaction } from "./store-schema.ts";

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
