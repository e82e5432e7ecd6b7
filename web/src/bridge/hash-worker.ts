/** The hash worker: SHA-256 of blobs that it is given by reference and reads itself, a slice at a time. */

import type { HashReply, HashRequest } from "./hash-protocol.ts";
import { threadHasher } from "./hashing.ts";

export function serveHash(scope: DedicatedWorkerGlobalScope): void {
  const hasher = threadHasher();
  const answer = async (request: HashRequest): Promise<HashReply> => {
    try {
      if (request.blob !== undefined) {
        await (await hasher).update(request.blob);
      }
      return { sha256: request.digest ? await (await hasher).digest() : "" };
    } catch (error) {
      const { name, message } = error instanceof Error ? error : new Error(String(error));
      return { error: { name, message } };
    }
  };
  let last: Promise<void> = Promise.resolve();
  scope.addEventListener("message", (event: MessageEvent<HashRequest>) => {
    last = last.then(async () => scope.postMessage(await answer(event.data)));
  });
}
