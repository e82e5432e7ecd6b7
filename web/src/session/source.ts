/** Where the bytes of a model come from, and how they get into the runtime's memory: in slices, never whole. */

import type { ExternalData, LazyBytes } from "onnxruntime-web/ort-wasm-simd-threaded.mjs";
import { NamedError } from "../errors.ts";
import { free } from "../free.ts";
import type { BlobKey } from "../protocol.ts";

/** Most bytes that are outside the runtime's memory at a time. */
const SLICE = 8 * 1024 * 1024;

/** A piece of a file: no bytes, but a handle on them. */
export interface Piece {
  /** In bytes. */
  readonly size: number;
  /** Bytes [begin, end) of it, at once, in a buffer that becomes the caller's. */
  read(begin: number, end: number): ArrayBuffer;
}

/** A stored file. */
export interface ModelSource {
  key: BlobKey;
  /** For messages. */
  name: string;
  /** In bytes: the sum of all pieces. */
  size: number;
  /** All of it, in order. */
  pieces(): Promise<Piece[]>;
}

/** A blob as a worker can read it. */
export function blobPiece(blob: Blob): Piece {
  return {
    size: blob.size,
    read: (begin, end) => new FileReaderSync().readAsArrayBuffer(blob.slice(begin, end)),
  };
}

/** Copies ranges of a file into the runtime's memory. */
export class ModelFile {
  readonly #source: ModelSource;
  /** Every piece with its place in the file. */
  readonly #pieces: { begin: number; end: number; piece: Piece }[] = [];

  private constructor(source: ModelSource) {
    this.#source = source;
  }

  /** Throws `ModelLoadError` when the pieces are not as long as the file; errors of the source come through. */
  static async open(source: ModelSource): Promise<ModelFile> {
    const file = new ModelFile(source);
    let begin = 0;
    for (const piece of await source.pieces()) {
      file.#pieces.push({ begin, end: begin + piece.size, piece });
      begin += piece.size;
    }
    if (begin !== source.size) {
      throw new NamedError(
        "ModelLoadError",
        `The file ${source.name} should have ${source.size} bytes, but ${begin} are stored. ` +
          "Delete it and download it again.",
        { expected: source.size, received: begin },
      );
    }
    return file;
  }

  /**
   * Copies bytes [begin, end) into `memory` at `offset`. Throws `ModelLoadError` for a range beyond the end, and
   * `DamagedFileError` when the browser cannot read what it has stored.
   */
  copy(begin: number, end: number, memory: Uint8Array, offset: number): void {
    const { name, size } = this.#source;
    if (end > size) {
      throw new NamedError(
        "ModelLoadError",
        `The model asks for bytes ${begin} to ${end} of ${name}, which has ${size}. The two files do not belong ` +
          "together, or one of them is damaged: delete the model and download it again.",
        { begin, end, size },
      );
    }
    for (const piece of this.#pieces) {
      const last = Math.min(end, piece.end);
      for (let from = Math.max(begin, piece.begin); from < last; from += SLICE) {
        const to = Math.min(from + SLICE, last);
        const bytes = new Uint8Array(this.#read(piece.piece, from - piece.begin, to - piece.begin));
        memory.set(bytes, offset + from - begin);
        free(bytes);
      }
    }
  }

  #read(piece: Piece, begin: number, end: number): ArrayBuffer {
    let reason: string;
    try {
      const buffer = piece.read(begin, end);
      if (buffer.byteLength === end - begin) {
        return buffer;
      }
      reason = `${buffer.byteLength} bytes came instead of ${end - begin}`;
    } catch (error) {
      // NotReadableError and NotFoundError, mostly: what was stored on disk has gone.
      if (!(error instanceof DOMException)) {
        throw error;
      }
      reason = `${error.name}: ${error.message}`;
    }
    const { key, name } = this.#source;
    throw new NamedError(
      "DamagedFileError",
      `The browser could not read the stored file ${name} (${reason}). Try again; if that does not help, delete the ` +
        "model and download it again.",
      { key },
    );
  }
}

/** `Memory.lazyBytes`. */
export type StandIn = (fill: (memory: Uint8Array, offset: number) => void) => LazyBytes;

/** What the runtime gets of a file with external data. It swallows errors, so the first one is kept. */
export class ExternalFile implements ExternalData {
  /** A longer range would be refused without a word about the file. It is refused below. */
  readonly byteLength = Number.MAX_SAFE_INTEGER;
  readonly #file: ModelFile;
  readonly #standIn: StandIn;
  #failure: unknown;

  constructor(file: ModelFile, standIn: StandIn) {
    this.#file = file;
    this.#standIn = standIn;
  }

  get failure(): unknown {
    return this.#failure;
  }

  subarray(begin: number, end: number): LazyBytes {
    return this.#standIn((memory, offset) => {
      try {
        this.#file.copy(begin, end, memory, offset);
      } catch (error) {
        this.#failure ??= error;
        throw error;
      }
    });
  }
}
