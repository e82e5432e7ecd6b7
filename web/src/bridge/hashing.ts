/** SHA-256: by the browser beside this thread where all bytes may be in memory at once, else piece by piece. */

import { createSHA256 } from "hash-wasm";
import { free } from "../free.ts";
import { startModuleWorker } from "../workers.ts";
import { HASH_WORKER, type HashReply, type HashRequest } from "./hash-protocol.ts";

/** The browser's own hash wants all bytes at once. */
export const HASHED_AT_ONCE = 32 * 1024 * 1024;

/** How much of a blob is in memory while it is hashed; the next slice is read meanwhile. */
const SLICE_SIZE = 4 * 1024 * 1024;

/** A hash of bytes that come as blobs, one after the other. */
export interface BlobHasher {
  /** Throws what the browser throws when a blob cannot be read. */
  update(blob: Blob): Promise<void>;
  digest(): Promise<string>;
  /** Gives up; calls that are waiting fail. Harmless after `digest`. */
  stop(): void;
}

/** SHA-256 of bytes that may be in memory at once, lower-case hexadecimal. They are gone afterwards. */
export async function sha256(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  const hash = toHex(await digest(bytes));
  free(bytes);
  return hash;
}

async function digest(bytes: Uint8Array<ArrayBuffer>): Promise<Uint8Array<ArrayBuffer>> {
  // The types promise it, but browsers leave it out on pages over plain http.
  const subtle = globalThis.crypto?.subtle as SubtleCrypto | undefined;
  return new Uint8Array(
    subtle === undefined
      ? (await createSHA256()).update(bytes).digest("binary")
      : await subtle.digest("SHA-256", bytes),
  );
}

/** As many are hashed beside each other. */
const BLOCKS_AT_ONCE = 4;

/** Bytes of a block: with more, every hash would need memory of its own. */
const BLOCK_SIZE = 512 * 1024;

/** The hash of a part of a file: SHA-256 over the SHA-256 of every block. The bytes are gone afterwards. */
export async function partHash(pieces: Iterable<Promise<Uint8Array<ArrayBuffer>>>): Promise<string> {
  const blocks: Uint8Array<ArrayBuffer>[] = [];
  for (const piece of pieces) {
    const bytes = await piece;
    for (let begin = 0; begin < bytes.byteLength; begin += BLOCKS_AT_ONCE * BLOCK_SIZE) {
      const views: Uint8Array<ArrayBuffer>[] = [];
      for (let index = 0; index < BLOCKS_AT_ONCE && begin + index * BLOCK_SIZE < bytes.byteLength; index++) {
        const at = begin + index * BLOCK_SIZE;
        views.push(bytes.subarray(at, at + BLOCK_SIZE));
      }
      blocks.push(...(await Promise.all(views.map(digest))));
    }
    free(bytes);
  }
  const all = new Uint8Array(blocks.length * 32);
  blocks.forEach((block, index) => {
    all.set(block, index * 32);
  });
  return toHex(await digest(all));
}

/** A hasher in a worker of its own; without `workerUrl`, or when that does not start, in this thread. */
export async function startHasher(workerUrl: string | undefined): Promise<BlobHasher> {
  if (workerUrl !== undefined) {
    try {
      const hasher = new WorkerHasher(workerUrl);
      await hasher.ready();
      return hasher;
    } catch {
      // Slower, and the same hash.
    }
  }
  return threadHasher();
}

/** A hasher in this thread. */
export async function threadHasher(): Promise<BlobHasher> {
  const hash = await createSHA256();
  let stopped = false;
  let last: Promise<void> = Promise.resolve();
  const add = async (blob: Blob): Promise<void> => {
    let next = read(blob, 0);
    for (let offset = 0; offset < blob.size; offset += SLICE_SIZE) {
      const slice = await next;
      next = read(blob, offset + SLICE_SIZE);
      // Somebody waits for it only in the next round.
      next.catch(() => undefined);
      if (stopped) {
        throw new Error("The hash was given up.");
      }
      hash.update(slice);
      free(slice);
    }
  };
  return {
    update: (blob) => {
      // One blob after the other, however many are given; after one that failed there is no hash.
      last = last.then(() => add(blob));
      last.catch(() => undefined);
      return last;
    },
    digest: async () => {
      await last;
      return hash.digest();
    },
    stop: () => {
      stopped = true;
    },
  };
}

async function read(blob: Blob, offset: number): Promise<Uint8Array<ArrayBuffer>> {
  return offset < blob.size
    ? new Uint8Array(await blob.slice(offset, offset + SLICE_SIZE).arrayBuffer())
    : new Uint8Array();
}

interface Waiting {
  resolve(sha256: string): void;
  reject(error: Error): void;
}

class WorkerHasher implements BlobHasher {
  readonly #worker: Worker;
  /** Answers come in the order of the questions. */
  readonly #waiting: Waiting[] = [];
  #stopped: Error | undefined;

  constructor(url: string) {
    this.#worker = startModuleWorker(url, HASH_WORKER);
    this.#worker.onmessage = (event: MessageEvent<HashReply>) => {
      const waiting = this.#waiting.shift();
      const reply = event.data;
      if ("error" in reply) {
        waiting?.reject(new DOMException(reply.error.message, reply.error.name));
      } else {
        waiting?.resolve(reply.sha256);
      }
    };
    this.#worker.onerror = (event) => {
      event.preventDefault();
      this.#stop(new Error(event.message || "the hash worker did not start"));
    };
  }

  async ready(): Promise<void> {
    await this.#call({});
  }

  async update(blob: Blob): Promise<void> {
    await this.#call({ blob });
  }

  async digest(): Promise<string> {
    const sha256 = await this.#call({ digest: true });
    this.stop();
    return sha256;
  }

  stop(): void {
    this.#stop(new Error("The hash was given up."));
  }

  #stop(error: Error): void {
    if (this.#stopped === undefined) {
      this.#stopped = error;
      this.#worker.terminate();
      for (const waiting of this.#waiting.splice(0)) {
        waiting.reject(error);
      }
    }
  }

  #call(request: HashRequest): Promise<string> {
    if (this.#stopped !== undefined) {
      return Promise.reject(this.#stopped);
    }
    return new Promise((resolve, reject) => {
      this.#waiting.push({ resolve, reject });
      this.#worker.postMessage(request);
    });
  }
}

export function toHex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
