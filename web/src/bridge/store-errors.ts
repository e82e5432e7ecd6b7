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

/** A file of which the browser lost bytes; it was removed. */
export function damagedError(key: BlobKey, what: string): NamedError {
  return new NamedError(
    "DamagedFileError",
    `The browser lost a piece of its storage: ${what} of the stored file ${label(key)}. The file was removed; ` +
      "download it again.",
    { key },
  );
}

/** What the browser throws when the bytes of a blob are gone or cannot be read. */
export function isUnreadable(error: unknown): boolean {
  return ["NotReadableError", "NotFoundError"].includes(errorName(error));
}

export async function estimate(): Promise<{ used: number; quota: number } | undefined> {
  const answer = await globalThis.navigator?.storage?.estimate?.();
  return answer?.usage === undefined || answer.quota === undefined
    ? undefined
    : { used: answer.usage, quota: answer.quota };
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
    // How much there is, nobody tells: browsers round what they say of the quota, or say the same everywhere.
    const room = await estimate().catch(() => undefined);
    const used = room === undefined ? "" : ` (${room.used} bytes are used)`;
    return new NamedError(
      "QuotaExceededError",
      `The browser has no room left for ${what}${used}. ` +
        "Delete stored models or free disk space, then try again.",
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
