/** Messages between the store and its hash worker. Every question has one answer, in the same order. */

/** Name of the worker, by which the script of the session workers knows what it is. */
export const HASH_WORKER = "pywebml-hash";

/** Bytes to go on with, or the end; neither: are you there? */
export interface HashRequest {
  blob?: Blob;
  digest?: boolean;
}

export type HashReply =
  | { /** Empty but for the answer to `digest`. */ sha256: string }
  | { error: { name: string; message: string } };
