/** Giving the memory of buffers back at once. */

let drain: MessagePort | undefined;

/**
 * Frees bytes that nobody needs any more, unless others lie in the same buffer; they are empty afterwards. A model makes
 * gigabytes of them, and browsers collect such garbage late.
 *
 * A port whose other end is closed takes what is transferred to it and drops it. `ArrayBuffer.transfer(0)` only looks
 * as if it did the same: in Chromium the bytes stay until the garbage is collected, and nothing counts them any more.
 */
export function free(bytes: Uint8Array<ArrayBuffer>): void {
  if (bytes.byteLength === 0 || bytes.byteLength < bytes.buffer.byteLength) {
    return;
  }
  if (drain === undefined) {
    const { port1, port2 } = new MessageChannel();
    port2.close();
    drain = port1;
  }
  drain.postMessage(null, [bytes.buffer]);
}
