/** Which bytes are there, told from the keys of parts alone. */

import type { FileRecord, PartKey } from "./store-schema.ts";

/** A part, and the bytes of the file that it holds. */
export interface Piece {
  key: PartKey;
  offset: number;
  length: number;
}

/** Some bytes of a piece: `begin` and `end` count from its beginning. */
export interface Stretch {
  piece: Piece;
  begin: number;
  end: number;
}

export function endOf(piece: Piece): number {
  return piece.offset + piece.length;
}

export function overlaps(piece: Piece, begin: number, end: number): boolean {
  return piece.offset < end && begin < endOf(piece);
}

/** Pieces by their keys, in order. `file` is needed for files of version 1, whose keys do not tell lengths. */
export function toPieces(keys: PartKey[], file?: FileRecord): Piece[] {
  return keys.map((key) => {
    if (key.length === 3) {
      return { key, offset: key[1], length: key[2] };
    }
    const partSize = file?.partSize ?? 0;
    const offset = key[1] * partSize;
    return { key, offset, length: Math.max(0, Math.min(partSize, (file?.size ?? 0) - offset)) };
  });
}

/** Puts a piece where it belongs in a list that is in order. */
export function insert(pieces: Piece[], piece: Piece): void {
  let index = pieces.length;
  while (index > 0 && (pieces[index - 1] as Piece).offset > piece.offset) {
    index -= 1;
  }
  pieces.splice(index, 0, piece);
}

/** What is there: ranges [begin, end) in order, which do not touch each other. */
export function rangesOf(pieces: Piece[]): [begin: number, end: number][] {
  const ranges: [number, number][] = [];
  for (const piece of pieces) {
    const last = ranges.at(-1);
    if (last !== undefined && piece.offset <= last[1]) {
      last[1] = Math.max(last[1], endOf(piece));
    } else {
      ranges.push([piece.offset, endOf(piece)]);
    }
  }
  return ranges;
}

/** How many bytes are there. */
export function sizeOf(pieces: Piece[]): number {
  return rangesOf(pieces).reduce((sum, [begin, end]) => sum + end - begin, 0);
}

/** Where the bytes from `begin` to `end` lie, in order; undefined when some are missing. */
export function stretchesOf(pieces: Piece[], begin: number, end: number): Stretch[] | undefined {
  const stretches: Stretch[] = [];
  let position = begin;
  for (const piece of pieces) {
    if (position >= end || piece.offset > position) {
      break;
    }
    if (endOf(piece) > position) {
      const until = Math.min(end, endOf(piece));
      stretches.push({ piece, begin: position - piece.offset, end: until - piece.offset });
      position = until;
    }
  }
  return position >= end ? stretches : undefined;
}

/** Whether all bytes of a file are there. */
export function isWhole(file: FileRecord, keys: PartKey[]): boolean {
  return stretchesOf(toPieces(keys, file), 0, file.size) !== undefined;
}
