/** What goes wrong in the database, in words for its user. */

import { NamedError } from "../errors.ts";
import type { BlobKey } from "../protocol.ts";

export function checkKey(key: BlobKey): void {
  if (!Array.isArray(key) || key.length !== 4 || !key.every((part) => typeof part === "string")) {
    throw new NamedError(
      "StoreError",
      `A file is named by four strings (kind, owner, revision, path), not by ${JSON.stringify(key)}.`,
    );
  }
}

export function label(key: BlobKey): string {
  const [, owner, revision, path] = key;
  return `'${path}' of ${owner} (${revision})`;
}

export function replacedError(key: BlobKey): NamedError {
  return new NamedError(
    "StoreError",
    `The stored file ${label(key)} was replaced or deleted while it was read. Read it again.`,
    { key },
  );
}

export async function estimate(): Promise<[used: number, quota: number]> {
  const answer = await globalThis.navigator?.storage?.estimate?.();
  return [answer?.usage ?? 0, answer?.quota ?? 0];
}

export function errorName(error: unknown): string {
  return error instanceof Error ? error.name : "";
}

/** What a DOMException of the database means for the user. */
export async function storeError(error: unknown, what: string): Promise<NamedError> {
  if (error instanceof NamedError) {
    return error;
  }
  const name = errorName(error);
  const words = error instanceof Error ? error.message : String(error);
  if (name === "QuotaExceededError") {
    const [used, quota] = await estimate().catch(() => [0, 0]);
    return new NamedError(
      "QuotaExceededError",
      `The browser has no room left for ${what} (${used} of ${quota} bytes are used). ` +
        "Delete stored models or free disk space, then try again.",
      { used, quota },
    );
  }
  if (name === "DataError" || name === "DataCloneError") {
    return new NamedError(
      "StoreError",
      `The database cannot store ${what}: ${words} Give plain data (text, numbers, lists, dictionaries).`,
    );
  }
  if (name === "VersionError") {
    return new NamedError(
      "StoreUnavailableError",
      `The stored data was written by a newer version of this page (${words}). Reload the page.`,
    );
  }
  return new NamedError(
    "StoreUnavailableError",
    `The browser's database failed at ${what}: ${name || "Error"}: ${words} ` +
      "Storage may be switched off (private window, site settings), full or damaged. " +
      "Allow this site to store data or clear its data, then try again.",
  );
}
