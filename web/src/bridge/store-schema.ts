/** What the database holds. */

import type { DBSchema, IDBPDatabase, IDBPTransaction, StoreNames } from "idb";
import type { BlobKey } from "../protocol.ts";

/** Bytes of a part; the last one of a file may be shorter. */
export const PART_SIZE = 4 * 1024 * 1024;

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

export interface WriteRecord {
  key: BlobKey;
  /** Milliseconds since the epoch. */
  started: number;
}

export interface Schema extends DBSchema {
  files: { key: BlobKey; value: FileRecord };
  parts: { key: [blob: string, index: number]; value: ArrayBuffer };
  writes: { key: string; value: WriteRecord };
  documents: { key: string; value: unknown };
}

export type Database = IDBPDatabase<Schema>;
export type StoreName = StoreNames<Schema>;
export type Transaction<Mode extends IDBTransactionMode> = IDBPTransaction<Schema, StoreName[], Mode>;

/** The keys of all parts of a file. */
export function partsOf(blob: string): IDBKeyRange {
  return IDBKeyRange.bound([blob], [blob, []]);
}
