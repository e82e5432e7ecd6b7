/** The bytes of an unfinished file, as pieces in the database. */

import { NamedError } from "../errors.ts";
import type { BlobKey } from "../protocol.ts";
import type { StoreDatabase } from "./store-database.ts";
import { isUnreadable, label } from "./store-errors.ts";
import { endOf, insert, overlaps, type Piece, rangesOf, stretchesOf } from "./store-pieces.ts";
import { type PartKey, partsOf, type Transaction } from "./store-schema.ts";

/** How often the record of a file that is being written says that it still is. */
const TOUCH_EVERY_MS = 5_000;

/** As many of the latest pieces can be read again without the disk: they may be about to be checked. */
const RECENT_PIECES = 4;

/** Without an fsync of its own: the commit has one, and bytes that are lost before it are fetched again. */
const RELAXED: IDBTransactionOptions = { durability: "relaxed" };

/** A piece that waits for the next transaction. */
interface Arrival {
  offset: number;
  blob: Blob;
  /** Pieces that have some of these bytes. */
  older: Piece[];
  landed(): void;
  failed(error: unknown): void;
}

/** A change on its way to the database, and the bytes that it concerns. */
interface Flight {
  begin: number;
  end: number;
  done: Promise<void>;
}

/** Pieces never overlap, and later bytes replace earlier ones. Several changes may be on their way at the same time. */
export class Draft {
  readonly database: StoreDatabase;
  readonly key: BlobKey;
  /** Names its parts. */
  readonly blob: string;
  state: "open" | "committed" | "suspended" | "aborted" = "open";
  #pieces: Piece[];
  readonly #flights = new Set<Flight>();
  #arrivals: Arrival[] = [];
  #storing = false;
  /** By piece; the browser keeps their bytes outside this heap. */
  readonly #recent = new Map<Piece, Blob>();

  /** `pieces`: what is there already, in order. */
  constructor(database: StoreDatabase, key: BlobKey, blob: string, pieces: Piece[]) {
    this.database = database;
    this.key = key;
    this.blob = blob;
    this.#pieces = pieces;
  }

  /** Ranges [begin, end) in order, which do not touch each other. */
  ranges(): [begin: number, end: number][] {
    return rangesOf(this.#pieces);
  }

  /** Where the first hole begins. */
  front(): number {
    const [begin, end] = this.ranges()[0] ?? [0, 0];
    return begin === 0 ? end : 0;
  }

  /** Writes a blob as one piece, without reading it. Answers with the first byte that was replaced, if any. */
  async put(offset: number, blob: Blob): Promise<number> {
    if (blob.size === 0) {
      return Number.POSITIVE_INFINITY;
    }
    return this.#exclusively(offset, offset + blob.size, "write", (older) =>
      this.#store(offset, blob, older),
    );
  }

  /** Forgets all pieces that have some of these bytes. Answers with the first byte that went, if any. */
  async discard(begin: number, end: number): Promise<number> {
    return this.#exclusively(begin, end, "change", (older) => this.#delete(older));
  }

  /** Waits for the changes of these bytes that are on their way now, however they end. */
  async landed(begin = 0, end = Number.POSITIVE_INFINITY): Promise<void> {
    const flights = [...this.#flights].filter((flight) => flight.begin < end && begin < flight.end);
    await Promise.allSettled(flights.map((flight) => flight.done));
  }

  /** Lets go of what only makes reading fast. */
  forget(): void {
    this.#recent.clear();
  }

  /** The blobs of written bytes, in order. Throws `StoreError` where some are missing. */
  async blobs(begin: number, end: number): Promise<{ piece: Piece; blob: Blob }[]> {
    const stretches = stretchesOf(this.#pieces, begin, end);
    if (stretches === undefined || begin < 0 || begin > end) {
      throw this.holeError(begin, end);
    }
    const values = await this.database.transact(["parts"], "readonly", label(this.key), (tx) =>
      Promise.all(
        stretches.map(({ piece }) => this.#recent.get(piece) ?? tx.objectStore("parts").get(piece.key)),
      ),
    );
    const found: { piece: Piece; blob: Blob }[] = [];
    for (const [index, { piece, begin, end }] of stretches.entries()) {
      const value = values[index];
      if (!(value instanceof Blob)) {
        throw await this.#lost(piece);
      }
      found.push({ piece, blob: value.slice(begin, end) });
    }
    return found;
  }

  /** The blob of the piece that begins at `offset`, if there is one. */
  async pieceAt(offset: number): Promise<Blob | undefined> {
    const piece = this.#pieces.find((piece) => piece.offset === offset);
    return piece === undefined ? undefined : (await this.blobs(offset, endOf(piece)))[0]?.blob;
  }

  /** Written bytes, all in memory. Throws `StoreError` where some are missing. */
  async bytes(begin: number, end: number): Promise<Uint8Array<ArrayBuffer>> {
    const blobs = await this.blobs(begin, end);
    const buffers = await Promise.all(
      blobs.map(({ piece, blob }) => this.readable(piece, () => blob.arrayBuffer())),
    );
    if (buffers.length === 1) {
      return new Uint8Array(buffers[0] as ArrayBuffer);
    }
    const whole = new Uint8Array(end - begin);
    let filled = 0;
    for (const buffer of buffers) {
      whole.set(new Uint8Array(buffer), filled);
      filled += buffer.byteLength;
    }
    return whole;
  }

  /** Reads a piece in some way; when its bytes are gone, it is forgotten, and a `StoreError` says so. */
  async readable<Result>(piece: Piece, read: () => Promise<Result>): Promise<Result> {
    try {
      return await read();
    } catch (error) {
      throw isUnreadable(error) ? await this.#lost(piece) : error;
    }
  }

  /** Without its record, parts of this file would belong to nobody. */
  async touch(tx: Transaction<"readwrite">): Promise<void> {
    const writes = tx.objectStore("writes");
    const record = await writes.get(this.blob);
    if (record === undefined) {
      throw this.clearedError();
    }
    const now = Date.now();
    if (now - record.updated > TOUCH_EVERY_MS) {
      await writes.put({ ...record, updated: now }, this.blob);
    }
  }

  /** Removes it. A committed file has no entry in `writes` and is left alone. */
  async drop(): Promise<void> {
    await dropWrite(this.database, this.blob);
  }

  expectOpen(call: string): void {
    if (this.state !== "open") {
      throw new NamedError(
        "StoreError",
        `Cannot ${call} ${label(this.key)}: its writer is ${this.state}. Start a new one with openWriter.`,
      );
    }
  }

  holeError(begin: number, end: number): NamedError {
    return new NamedError(
      "StoreError",
      `Of the bytes ${begin} to ${end} of ${label(this.key)} some have not been written. Write them first.`,
      { key: this.key, begin, end },
    );
  }

  clearedError(): NamedError {
    return new NamedError(
      "StoreError",
      `The storage was cleared while ${label(this.key)} was written to it. Download the file again.`,
      { key: this.key },
    );
  }

  /** Changes bytes while nobody else changes the same pieces. `work` gets the pieces that have some of them. */
  async #exclusively(
    begin: number,
    end: number,
    call: string,
    work: (older: Piece[]) => Promise<void>,
  ): Promise<number> {
    for (;;) {
      this.expectOpen(call);
      const older = this.#pieces.filter((piece) => overlaps(piece, begin, end));
      const from = Math.min(begin, older[0]?.offset ?? begin);
      const to = Math.max(end, ...older.slice(-1).map(endOf));
      const busy = [...this.#flights].filter((flight) => flight.begin < to && from < flight.end);
      if (busy.length === 0) {
        const flight = { begin: from, end: to, done: work(older) };
        this.#flights.add(flight);
        try {
          await flight.done;
        } finally {
          this.#flights.delete(flight);
        }
        return older[0]?.offset ?? Number.POSITIVE_INFINITY;
      }
      await Promise.allSettled(busy.map((flight) => flight.done));
    }
  }

  /** Puts a piece, and what it leaves of older ones, into the database: all that wait in one transaction. */
  async #store(offset: number, blob: Blob, older: Piece[]): Promise<void> {
    const done = new Promise<void>((landed, failed) => {
      this.#arrivals.push({ offset, blob, older, landed, failed });
    });
    if (!this.#storing) {
      this.#storing = true;
      // It never fails: each arrival hears of its own end.
      void this.#storeArrivals();
    }
    await done;
  }

  async #storeArrivals(): Promise<void> {
    while (this.#arrivals.length > 0) {
      await this.#storeAll(this.#arrivals.splice(0));
    }
    this.#storing = false;
  }

  async #storeAll(arrivals: Arrival[]): Promise<void> {
    const size = arrivals.reduce((sum, { blob }) => sum + blob.size, 0);
    const added: Piece[][] = [];
    try {
      await this.database.transact(
        ["parts", "writes"],
        "readwrite",
        `${size} bytes of ${label(this.key)}`,
        async (tx) => {
          await this.touch(tx);
          for (const arrival of arrivals) {
            added.push(await this.#put(tx, arrival));
          }
        },
        RELAXED,
      );
    } catch (error) {
      if (arrivals.length > 1) {
        // One may be stored where all together could not.
        for (const arrival of arrivals) {
          await this.#storeAll([arrival]);
        }
        return;
      }
      if (error instanceof NamedError && error.name === "QuotaExceededError") {
        error.details.needed = size;
      }
      arrivals[0]?.failed(error);
      return;
    }
    for (const [index, { older, blob, landed }] of arrivals.entries()) {
      const pieces = added[index] ?? [];
      this.#replace(older, pieces);
      this.#remember(pieces.at(-1), blob);
      landed();
    }
  }

  /** Answers with the pieces that there are now, the new one last. */
  async #put(tx: Transaction<"readwrite">, { offset, blob, older }: Arrival): Promise<Piece[]> {
    const parts = tx.objectStore("parts");
    const end = offset + blob.size;
    const added: Piece[] = [];
    const add = async (at: number, bytes: Blob) => {
      const key: PartKey = [this.blob, at, bytes.size];
      await parts.put(bytes, key);
      added.push({ key, offset: at, length: bytes.size });
    };
    for (const piece of older) {
      const bytes = await parts.get(piece.key);
      await parts.delete(piece.key);
      if (bytes instanceof Blob && piece.offset < offset) {
        await add(piece.offset, bytes.slice(0, offset - piece.offset));
      }
      if (bytes instanceof Blob && end < endOf(piece)) {
        await add(end, bytes.slice(end - piece.offset));
      }
    }
    await add(offset, blob);
    return added;
  }

  #remember(piece: Piece | undefined, blob: Blob): void {
    if (piece !== undefined) {
      this.#recent.set(piece, blob);
      const oldest = this.#recent.keys().next().value;
      if (oldest !== undefined && this.#recent.size > RECENT_PIECES) {
        this.#recent.delete(oldest);
      }
    }
  }

  async #delete(pieces: Piece[]): Promise<void> {
    const work = async (tx: Transaction<"readwrite">) => {
      await Promise.all(pieces.map((piece) => tx.objectStore("parts").delete(piece.key)));
    };
    await this.database.transact(["parts"], "readwrite", label(this.key), work, RELAXED);
    this.#replace(pieces, []);
  }

  #replace(older: Piece[], added: Piece[]): void {
    if (older.length > 0) {
      this.#pieces = this.#pieces.filter((piece) => !older.includes(piece));
      for (const piece of older) {
        this.#recent.delete(piece);
      }
    }
    for (const piece of added) {
      insert(this.#pieces, piece);
    }
  }

  /** Forgets a piece whose bytes are gone. */
  async #lost(piece: Piece): Promise<NamedError> {
    await this.#delete([piece]).catch(() => undefined);
    return new NamedError(
      "StoreError",
      `The browser lost bytes ${piece.offset} to ${endOf(piece)} of the unfinished file ${label(this.key)}. ` +
        "Download them again.",
      { key: this.key, begin: piece.offset, end: endOf(piece) },
    );
  }
}

/** Removes an unfinished file. A committed one has no entry in `writes` and is left alone. */
export async function dropWrite(database: StoreDatabase, blob: string): Promise<void> {
  await database.transact(["writes", "parts"], "readwrite", "an unfinished file", async (tx) => {
    if ((await tx.objectStore("writes").getKey(blob)) !== undefined) {
      await tx.objectStore("parts").delete(partsOf(blob));
      await tx.objectStore("writes").delete(blob);
    }
  });
}
