/** A server of another origin that sends as many bytes of one pattern as asked for, and fails as asked for. */

import { createHash } from "node:crypto";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { gzipSync } from "node:zlib";

const CHUNK = 64 * 1024;

/** The same as in `pages/bridge.js`. */
export function patternBytes(begin: number, end: number): Buffer {
  const bytes = Buffer.alloc(end - begin);
  for (let index = 0; index < bytes.length; index++) {
    bytes[index] = Math.imul(begin + index, 0x9e3779b1) >>> 24;
  }
  return bytes;
}

export function sha256(bytes: Buffer): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/**
 * `GET /?begin=&end=` sends these bytes of the pattern. `cut=N`: the connection is closed after N of them. `stall=N`:
 * nothing more comes after N. `chunked`: without a length. `gzip`: packed. `silent`: not even a head comes.
 */
export class BytesServer {
  readonly url: string;
  readonly #server: Server;

  private constructor(server: Server) {
    this.#server = server;
    this.url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  }

  static async start(): Promise<BytesServer> {
    const server = createServer(async (request, response) => {
      const query = new URL(request.url ?? "/", "http://bytes.test").searchParams;
      const number = (name: string) => Number(query.get(name) ?? Number.NaN);
      const [begin, end] = [number("begin"), number("end")];
      if (query.has("silent")) {
        return;
      }
      response.setHeader("Access-Control-Allow-Origin", "*");
      response.setHeader("Cross-Origin-Resource-Policy", "cross-origin");
      let body = patternBytes(begin, end);
      if (query.has("gzip")) {
        body = gzipSync(body);
        response.setHeader("Content-Encoding", "gzip");
        response.setHeader("Access-Control-Expose-Headers", "Content-Encoding");
      }
      if (!query.has("chunked")) {
        response.setHeader("Content-Length", body.length);
      }
      const until = Math.min(body.length, number("cut") || body.length, number("stall") || body.length);
      for (let at = 0; at < until; at += CHUNK) {
        if (response.destroyed) {
          return;
        }
        if (!response.write(body.subarray(at, Math.min(until, at + CHUNK)))) {
          await new Promise<void>((resolve) => {
            const done = () => {
              response.off("drain", done).off("close", done);
              resolve();
            };
            response.on("drain", done).on("close", done);
          });
        }
      }
      if (query.has("cut")) {
        // What was written goes out first.
        response.socket?.end();
      } else if (!query.has("stall")) {
        response.end();
      }
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    return new BytesServer(server);
  }

  /** The address of bytes of the pattern, with faults. */
  at(begin: number, end: number, faults = ""): string {
    return `${this.url}/?begin=${begin}&end=${end}&${faults}`;
  }

  stop(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }
}
