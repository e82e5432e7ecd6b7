/** A file on its way into the store. */

import { NamedError } from "../errors.ts";
import type { BlobKey } from "../protocol.ts";
import { HashFollower } from "./hash-follower.ts";
import { HASHED_AT_ONCE, partHash, sha256 as sha256Of, threadHasher } from "./hashing.ts";
import type { Lock } from "./locks.ts";
import type { Draft } from "./store-draft.ts";
import { label } from "./store-errors.ts";
import { isWhole } from "./store-pieces.ts";
import { type FileRecord, partsOf } from "./store-schema.ts";

/** Bytes of a piece that `write` makes; the last one may be shorter. */
const PIECE_SIZE = 8 * 1024 * 1024;

/**
 * One file being written. The bytes given to `write` must not change until it resolves. Several `put` may be on their
 * way at the same time; later bytes replace earlier ones.
 */
export class StoreWriter {
  readonly #draft: Draft;
  readonly #token: string;
  readonly #lock: Lock;
  readonly #hashWorkerUrl: string | undefined;
  #buffer: Uint8Array<ArrayBuffer> | undefined;
  #filled = 0;
  /** Where the bytes in the buffer belong: behind what was there from the beginning, and was appended since. */
  #appendAt: number;
  /** Why bytes that were given to `write` are missing. */
  #failure: unknown;
  #finished: { size: number; sha256: string } | undefined;
  #record: FileRecord | undefined;
  #follower: HashFollower | undefined;
  /** Whoever checks a file by its parts needs no hash of the whole. */
  #checkedByParts = false;
  #stopping = false;
  #queue: Promise<unknown> = Promise.resolve();

  /** `lock` is held until the writer ends; `hashWorkerUrl` is the script of the hash worker. */
  constructor(draft: Draft, token: string, lock: Lock, hashWorkerUrl: string | undefined) {
    this.#draft = draft;
    this.#token = token;
    this.#lock = lock;
    this.#hashWorkerUrl = hashWorkerUrl;
    this.#appendAt = draft.front();
  }

  get key(): BlobKey {
    return this.#draft.key;
  }

  /** Appends bytes: after a resume to what is there from the beginning without a hole. */
  write(bytes: Uint8Array): Promise<void> {
    return this.#enqueue(async () => {
      this.#expectWritable();
      let offset = 0;
      while (offset < bytes.byteLength) {
        this.#buffer ??= new Uint8Array(PIECE_SIZE);
        const count = Math.min(PIECE_SIZE - this.#filled, bytes.byteLength - offset);
        this.#buffer.set(bytes.subarray(offset, offset + count), this.#filled);
        this.#filled += count;
        offset += count;
        if (this.#filled === PIECE_SIZE) {
          await this.#flush();
        }
      }
    });
  }

  /** Appends a blob as one piece, without reading it. */
  append(blob: Blob): Promise<void> {
    return this.#enqueue(async () => {
      this.#expectWritable();
      await this.#flush();
      await this.put(this.#appendAt, blob);
      this.#appendAt += blob.size;
    });
  }

  /** Writes a blob as one piece, without reading it. */
  async put(offset: number, blob: Blob): Promise<void> {
    this.#expectWritable();
    this.#changed(await this.#draft.put(offset, blob));
    this.#follow();
  }

  /** Ranges [begin, end) in order, which do not touch each other. */
  async present(): Promise<[begin: number, end: number][]> {
    await this.#settle("look at");
    return this.#draft.ranges();
  }

  /** Written bytes. Throws `StoreError` where some are missing. */
  async read(begin: number, end: number): Promise<Uint8Array<ArrayBuffer>> {
    await this.#settle("read", begin, end);
    return this.#draft.bytes(begin, end);
  }

  /** Hash of written bytes, as `partHash` has it. Throws `StoreError` where some are missing. */
  async digest(begin: number, end: number): Promise<string> {
    this.#checkedByParts = true;
    this.#dropFollower();
    await this.#settle("read", begin, end);
    return partHash(this.#slices(begin, end));
  }

  /** Written bytes, read when they are wanted; at least one piece, so that a range that is not there is an error. */
  *#slices(begin: number, end: number): Generator<Promise<Uint8Array<ArrayBuffer>>> {
    let from = begin;
    do {
      const to = Math.min(from + PIECE_SIZE, end);
      yield this.#draft.bytes(from, to);
      from = to;
    } while (from < end);
  }

  /** Forgets written bytes: all pieces that have some of them. */
  async discard(begin: number, end: number): Promise<void> {
    await this.#settle("change");
    this.#expectWritable();
    this.#changed(await this.#draft.discard(begin, end));
    this.#appendAt = Math.min(this.#appendAt, this.#draft.front());
  }

  /** Flushes; size and hash are for the caller to check before `commit`. A hash that is given is taken as it is. */
  finish(sha256?: string): Promise<{ size: number; sha256: string }> {
    return this.#enqueue(() => this.#finish(sha256));
  }

  /** Makes the file visible in one step, replacing an older one of the same name. */
  commit(metadata: Record<string, unknown>): Promise<FileRecord> {
    return this.#enqueue(async () => {
      if (this.#record !== undefined) {
        return this.#record;
      }
      const { size, sha256 } = await this.#finish(undefined);
      const { database, key, blob } = this.#draft;
      const record: FileRecord = { key, size, sha256, updated: Date.now() / 1000, metadata, blob };
      await database.transact(
        ["files", "parts", "writes"],
        "readwrite",
        label(key),
        async (tx) => {
          const parts = tx.objectStore("parts");
          await this.#draft.touch(tx);
          if (!isWhole(record, await parts.getAllKeys(partsOf(blob)))) {
            throw this.#draft.clearedError();
          }
          const older = await tx.objectStore("files").get(key);
          if (older !== undefined) {
            await parts.delete(partsOf(older.blob));
          }
          await tx.objectStore("files").put(record);
          await tx.objectStore("writes").delete(blob);
        },
        { durability: "strict" },
      );
      this.#record = record;
      this.#end("committed");
      this.#lock.release();
      return record;
    });
  }

  /** Stops and keeps what was written for the next writer with this token. Harmless when the writer has ended. */
  suspend(): Promise<void> {
    if (this.#token === "") {
      return this.abort();
    }
    this.#stopHash();
    return this.#enqueue(async () => {
      if (this.#draft.state !== "open") {
        return;
      }
      // What cannot be kept is fetched again; the caller has an error of its own to report.
      await this.#flush().catch(() => undefined);
      this.#end("suspended");
      await this.#draft.landed();
      if (this.#draft.ranges().length === 0) {
        await this.#draft.drop().catch(() => undefined);
      }
      this.#lock.release();
    });
  }

  /** Drops what was written. Harmless when the writer has ended. */
  abort(): Promise<void> {
    this.#stopHash();
    return this.#enqueue(async () => {
      if (this.#draft.state !== "open") {
        return;
      }
      this.#end("aborted");
      await this.#draft.landed();
      // When the database fails here, the free lock lets the next opening remove the parts.
      await this.#draft.drop().catch(() => undefined);
      this.#lock.release();
    });
  }

  #end(state: "committed" | "suspended" | "aborted"): void {
    this.#draft.state = state;
    this.#buffer = undefined;
    this.#draft.forget();
    this.#dropFollower();
  }

  async #finish(given: string | undefined): Promise<{ size: number; sha256: string }> {
    this.#draft.expectOpen("finish");
    if (this.#finished !== undefined) {
      return this.#finished;
    }
    await this.#flush();
    this.#buffer = undefined;
    await this.#draft.landed();
    const size = this.#draft.ranges().at(-1)?.[1] ?? 0;
    if (this.#draft.front() < size) {
      throw this.#draft.holeError(0, size);
    }
    this.#finished = { size, sha256: given ?? (await this.#hash(size)) };
    return this.#finished;
  }

  async #flush(): Promise<void> {
    if (this.#failure !== undefined) {
      throw this.#failure;
    }
    if (this.#buffer === undefined || this.#filled === 0) {
      return;
    }
    const count = this.#filled;
    this.#filled = 0;
    try {
      // The blob takes a copy, so the buffer serves for the next piece.
      await this.put(this.#appendAt, new Blob([this.#buffer.subarray(0, count)]));
    } catch (error) {
      // Whoever gave these bytes does not have them any more.
      this.#failure = error;
      throw error;
    }
    this.#appendAt += count;
  }

  /** What was given of these bytes so far is in the database. */
  async #settle(call: string, begin = 0, end = Number.POSITIVE_INFINITY): Promise<void> {
    await this.#enqueue(async () => {
      this.#draft.expectOpen(call);
      await this.#flush();
    });
    await this.#draft.landed(begin, end);
  }

  #expectWritable(): void {
    this.#draft.expectOpen("write");
    if (this.#finished !== undefined) {
      throw new NamedError(
        "StoreError",
        `Cannot write ${label(this.key)}: its writer has finished. Start a new one with openWriter.`,
      );
    }
  }

  /** Bytes have changed, from `replaced` on such as were there. */
  #changed(replaced: number): void {
    if (replaced < (this.#follower?.position ?? 0)) {
      this.#dropFollower();
    }
  }

  /** SHA-256 of the whole file. */
  async #hash(size: number): Promise<string> {
    if (size <= HASHED_AT_ONCE) {
      return sha256Of(await this.#draft.bytes(0, size));
    }
    const follower = this.#follower ?? this.#startFollower();
    try {
      await follower.follow();
      if (follower.position === size) {
        return await follower.digest();
      }
    } catch {
      // It failed, or could not read a piece: below it shows which.
    } finally {
      this.#dropFollower();
    }
    return this.#hashHere(0, size);
  }

  /** SHA-256 in this thread, with little of the bytes in memory. */
  async #hashHere(begin: number, end: number): Promise<string> {
    const hasher = await threadHasher();
    for (const { piece, blob } of await this.#draft.blobs(begin, end)) {
      this.#draft.expectOpen("read");
      if (this.#stopping) {
        hasher.stop();
      }
      await this.#draft.readable(piece, () => hasher.update(blob));
    }
    return hasher.digest();
  }

  /** Lets the hash go on behind the download, once the file turns out to be too large to be hashed at once. */
  #follow(): void {
    const wanted = this.#draft.state === "open" && !this.#checkedByParts;
    if (wanted && this.#draft.front() > HASHED_AT_ONCE) {
      const follower = this.#follower ?? this.#startFollower();
      // When it fails, `finish` hashes.
      follower.follow().catch(() => undefined);
    }
  }

  #startFollower(): HashFollower {
    this.#follower = new HashFollower(this.#hashWorkerUrl, (offset) => this.#draft.pieceAt(offset));
    return this.#follower;
  }

  /** A hash that is under way is of no use to a writer that ends. */
  #stopHash(): void {
    this.#stopping = true;
    this.#dropFollower();
  }

  #dropFollower(): void {
    this.#follower?.stop();
    this.#follower = undefined;
  }

  #enqueue<Result>(work: () => Promise<Result>): Promise<Result> {
    const result = this.#queue.then(work);
    this.#queue = result.catch(() => undefined);
    return result;
  }
}
