/** The hash of a part of a file, made with Node's. */

import { createHash } from "node:crypto";

export const BLOCK_SIZE = 512 * 1024;

export function partHash(bytes: Uint8Array): string {
  const blocks = createHash("sha256");
  for (let begin = 0; begin < bytes.byteLength; begin += BLOCK_SIZE) {
    blocks.update(
      createHash("sha256")
        .update(bytes.subarray(begin, begin + BLOCK_SIZE))
        .digest(),
    );
  }
  return blocks.digest("hex");
}
