/** Where the bytes of a model come from. */

import type { ExternalData } from "onnxruntime-web/ort-wasm-simd-threaded.mjs";

/** A file that comes in pieces. */
export interface ModelSource {
  /** For messages. */
  name: string;
  /** In bytes: the sum of all parts. */
  size: number;
  parts(): AsyncIterable<Uint8Array>;
}

/** Lets the runtime read external data from a list of parts, without joining them. */
export class PartList implements ExternalData {
  readonly byteLength: number;
  readonly #parts: Uint8Array[];
  /** Where each part begins. */
  readonly #begins: number[] = [];

  constructor(parts: Uint8Array[]) {
    this.#parts = parts;
    let begin = 0;
    for (const part of parts) {
      this.#begins.push(begin);
      begin += part.byteLength;
    }
    this.byteLength = begin;
  }

  /** A view where the range lies in one part, else a copy of just that range. */
  subarray(begin: number, end: number): Uint8Array {
    let index = this.#indexOf(begin);
    const first = this.#parts[index];
    const offset = begin - (this.#begins[index] ?? 0);
    if (first !== undefined && offset + (end - begin) <= first.byteLength) {
      return first.subarray(offset, offset + (end - begin));
    }
    const joined = new Uint8Array(end - begin);
    let filled = 0;
    while (filled < joined.byteLength) {
      const part = this.#parts[index];
      if (part === undefined) {
        throw new RangeError(`Bytes ${begin} to ${end} are beyond the end, ${this.byteLength}.`);
      }
      const from = begin + filled - (this.#begins[index] ?? 0);
      const piece = part.subarray(from, from + joined.byteLength - filled);
      joined.set(piece, filled);
      filled += piece.byteLength;
      index += 1;
    }
    return joined;
  }

  /** The last part that begins at or before this byte, by bisection. */
  #indexOf(byte: number): number {
    let low = 0;
    let high = this.#begins.length - 1;
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if ((this.#begins[middle] ?? 0) <= byte) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return low;
  }
}
