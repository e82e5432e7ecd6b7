/** What the database holds, and how an older one becomes it. */

import type { DBSchema, IDBPDatabase, IDBPTransaction, StoreNames } from "idb";
import type { BlobKey } from "../protocol.ts";

export const SCHEMA_VERSION = 2;

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
  /** Of files that version 1 wrote: bytes of every part but the last. Their parts stay as they are. */
  partSize?: number;
}

/** A file that is being written, or was: with a token it can be gone on with. */
export interface WriteRecord {
  key: BlobKey;
  /** Milliseconds since the epoch. */
  started: number;
  /** Milliseconds since the epoch, to within a few seconds. */
  updated: number;
  /** Says which bytes these are; empty when nobody will go on with them. */
  token: string;
}

/** What a part is can be told from its key, without reading it. Version 1 numbered the parts of a file. */
export type PartKey = [blob: string, offset: number, length: number] | [blob: string, index: number];

export interface Schema extends DBSchema {
  files: { key: BlobKey; value: FileRecord };
  /** `ArrayBuffer` in files of version 1. */
  parts: { key: PartKey; value: Blob | ArrayBuffer };
  writes: { key: string; value: WriteRecord; indexes: { key: BlobKey } };
  documents: { key: string; value: unknown };
}

export type Database = IDBPDatabase<Schema>;
export type StoreName = StoreNames<Schema>;
export type Transaction<Mode extends IDBTransactionMode> = IDBPTransaction<Schema, StoreName[], Mode>;
type UpgradeTransaction = IDBPTransaction<Schema, StoreName[], "versionchange">;

/** Makes the stores, or takes them from version 1. Files of that version are left as they are: they may be gigabytes. */
export async function upgrade(
  database: Database,
  oldVersion: number,
  _newVersion: number | null,
  tx: UpgradeTransaction,
): Promise<void> {
  if (oldVersion < 1) {
    database.createObjectStore("files", { keyPath: "key" });
    database.createObjectStore("parts");
    database.createObjectStore("writes");
    database.createObjectStore("documents");
  }
  const writes = tx.objectStore("writes");
  writes.createIndex("key", "key");
  for (let cursor = await writes.openCursor(); cursor !== null; cursor = await cursor.continue()) {
    await cursor.update({ ...cursor.value, updated: cursor.value.started, token: "" });
  }
}

/** The keys of all parts of a file. */
export function partsOf(blob: string): IDBKeyRange {
  // In IndexedDB's order an array comes after every string and number.
  return IDBKeyRange.bound([blob], [blob, []]);
}
