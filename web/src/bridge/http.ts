/** HTTP for Python: an answer's head first, then its body into the store without passing through Python. */

import { NamedError } from "../errors.ts";
import { free } from "../free.ts";

/** Where a body goes. Blobs are taken as they are, without being read. */
export interface BlobSink {
  append(blob: Blob): Promise<void>;
  put(offset: number, blob: Blob): Promise<void>;
}

/** `onBytes` crosses into Python, so it is called at most this often. */
const REPORT_EVERY_MS = 50;

/** What has arrived goes to the store in pieces of this size; so much is lost when this worker or page dies. */
const FLUSH_SIZE = 2 * 1024 * 1024;

/** Pieces on their way to the store while the next one fills. */
const PIECES_LANDING = 2;

/**
 * Sends a request. Cookies go to the page's own origin only; the browser's HTTP cache is passed by, since the store
 * keeps what is worth keeping.
 *
 * @param timeoutMs Most until the answer's head; 0: no limit.
 * @param stallMs How long the connection may stay silent afterwards; 0: for ever.
 */
export async function request(
  url: string,
  method: string,
  headers: Record<string, string>,
  timeoutMs: number,
  signal: AbortSignal,
  stallMs = 0,
): Promise<BridgeResponse> {
  const controller = new AbortController();
  const stop = () => controller.abort(signal.reason);
  signal.addEventListener("abort", stop, { once: true });
  if (signal.aborted) {
    stop();
  }
  const timer = startTimer(timeoutMs, () => controller.abort(new Error(`no answer in ${timeoutMs} ms`)));
  try {
    const response = await fetch(url, {
      method,
      headers,
      signal: controller.signal,
      credentials: "same-origin",
      cache: "no-store",
    });
    return new BridgeResponse(response, controller, stallMs, () => {
      signal.removeEventListener("abort", stop);
    });
  } catch (error) {
    signal.removeEventListener("abort", stop);
    throw controller.signal.aborted ? networkError(url, controller.signal.reason) : noAnswer(url, error);
  } finally {
    clearTimeout(timer);
  }
}

export class BridgeResponse {
  readonly url: string;
  readonly status: number;
  /** As JSON: one crossing instead of one per header. Names are in lower case. */
  readonly headers: string;
  readonly #response: Response;
  readonly #controller: AbortController;
  readonly #stallMs: number;
  readonly #done: () => void;

  constructor(response: Response, controller: AbortController, stallMs: number, done: () => void) {
    this.url = response.url;
    this.status = response.status;
    this.headers = JSON.stringify(Object.fromEntries(response.headers));
    this.#response = response;
    this.#controller = controller;
    this.#stallMs = stallMs;
    this.#done = done;
  }

  /** The whole body, up to `limit` bytes. */
  async read(limit: number): Promise<Uint8Array> {
    const pieces: Uint8Array[] = [];
    let size = 0;
    await this.#pieces(async (piece) => {
      size += piece.byteLength;
      if (size > limit) {
        throw this.#tooLong(limit);
      }
      pieces.push(piece);
    });
    const whole = new Uint8Array(size);
    let offset = 0;
    for (const piece of pieces) {
      whole.set(piece, offset);
      offset += piece.byteLength;
    }
    return whole;
  }

  /**
   * The body into `sink`. What has arrived when the connection breaks, or when it is aborted, is written too.
   *
   * @param offset Where the body's first byte belongs; nothing appends.
   * @param limit Most bytes to take; a longer body is an error.
   */
  async save(
    sink: BlobSink,
    onBytes: (count: number) => void,
    offset: number | null = null,
    limit: number | null = null,
  ): Promise<void> {
    let at = offset;
    const put = (blob: Blob): Promise<void> => {
      if (at === null) {
        return sink.append(blob);
      }
      const begin = at;
      at += blob.size;
      return sink.put(begin, blob);
    };
    const reports = new Reports(onBytes);
    const pieces = new PieceBuffer(put);
    let room = limit ?? Number.POSITIVE_INFINITY;
    try {
      await this.#pieces(async (piece) => {
        const taken = piece.byteLength <= room ? piece : piece.subarray(0, room);
        room -= taken.byteLength;
        const count = taken.byteLength;
        const tooLong = count < piece.byteLength;
        await pieces.add(taken);
        reports.add(count);
        // Copied: a file makes as much of this garbage as it is long.
        free(piece);
        if (tooLong) {
          throw this.#tooLong(limit ?? 0);
        }
      });
    } finally {
      reports.end();
      // When this fails there is no room, for example: more to the point than how the connection ended.
      await pieces.end();
    }
  }

  /** Gives up the rest of the body. */
  async close(): Promise<void> {
    this.#done();
    if (this.#response.body !== null && !this.#response.bodyUsed) {
      await this.#response.body.cancel().catch(() => undefined);
    }
  }

  async #pieces(take: (piece: Uint8Array<ArrayBuffer>) => Promise<void>): Promise<void> {
    const reader = this.#response.body?.getReader();
    try {
      while (reader !== undefined) {
        const step = await this.#next(reader);
        if (step.done) {
          break;
        }
        await take(step.value);
      }
    } catch (error) {
      // Nobody wants the rest: stop the traffic.
      await reader?.cancel().catch(() => undefined);
      throw error;
    } finally {
      this.#done();
    }
  }

  async #next(
    reader: ReadableStreamDefaultReader<Uint8Array<ArrayBuffer>>,
  ): Promise<ReadableStreamReadResult<Uint8Array<ArrayBuffer>>> {
    const timer = startTimer(this.#stallMs, () =>
      this.#controller.abort(new Error(`no byte came in ${this.#stallMs} ms`)),
    );
    try {
      return await reader.read();
    } catch (error) {
      throw this.#broken(error);
    } finally {
      clearTimeout(timer);
    }
  }

  #broken(error: unknown): NamedError {
    const { aborted, reason } = this.#controller.signal;
    return networkError(this.url, aborted ? reason : error);
  }

  #tooLong(limit: number): NamedError {
    return new NamedError("NetworkError", `${this.url} sent more than ${limit} bytes`);
  }
}

/** Collects bytes into pieces, one of which fills while others are on their way. Its memory serves again and again. */
class PieceBuffer {
  readonly #put: (blob: Blob) => Promise<void>;
  readonly #landing: Promise<void>[] = [];
  #buffer: Uint8Array<ArrayBuffer> | undefined;
  #filled = 0;

  constructor(put: (blob: Blob) => Promise<void>) {
    this.#put = put;
  }

  async add(bytes: Uint8Array): Promise<void> {
    let offset = 0;
    while (offset < bytes.byteLength) {
      this.#buffer ??= new Uint8Array(FLUSH_SIZE);
      const count = Math.min(FLUSH_SIZE - this.#filled, bytes.byteLength - offset);
      this.#buffer.set(bytes.subarray(offset, offset + count), this.#filled);
      this.#filled += count;
      offset += count;
      if (this.#filled === FLUSH_SIZE) {
        await this.#flush();
      }
    }
  }

  /** Writes what is left and waits for all of it. */
  async end(): Promise<void> {
    await this.#flush();
    await Promise.all(this.#landing);
  }

  async #flush(): Promise<void> {
    if (this.#buffer !== undefined && this.#filled > 0) {
      const count = this.#filled;
      this.#filled = 0;
      // The blob takes a copy.
      const landing = this.#put(new Blob([this.#buffer.subarray(0, count)]));
      landing.catch(() => undefined);
      this.#landing.push(landing);
    }
    while (this.#landing.length > PIECES_LANDING) {
      await this.#landing.shift();
    }
  }
}

/** Tells how much has arrived, not too often. */
export class Reports {
  readonly #onBytes: (count: number) => void;
  #unreported = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(onBytes: (count: number) => void) {
    this.#onBytes = onBytes;
  }

  add(count: number): void {
    this.#unreported += count;
    this.#timer ??= setTimeout(() => this.end(), REPORT_EVERY_MS);
  }

  /** Reports what has not been yet. */
  end(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    if (this.#unreported > 0) {
      const count = this.#unreported;
      this.#unreported = 0;
      this.#onBytes(count);
    }
  }
}

/** Nothing for 0. */
export function startTimer(
  milliseconds: number,
  ring: () => void,
): ReturnType<typeof setTimeout> | undefined {
  return milliseconds > 0 ? setTimeout(ring, milliseconds) : undefined;
}

/** Browsers do not tell scripts whether a server of another origin was silent or only gave no permission. */
function noAnswer(url: string, error: unknown): NamedError {
  const { message } = networkError(url, error);
  const own = !URL.canParse(url, location.href) || new URL(url, location.href).origin === location.origin;
  return own
    ? new NamedError("NetworkError", message)
    : new NamedError(
        "NetworkError",
        `${message}; either the server cannot be reached, or it does not allow requests from ${location.origin} ` +
          "(CORS: it must send Access-Control-Allow-Origin)",
      );
}

function networkError(url: string, error: unknown): NamedError {
  const reason = error instanceof Error ? error.message : String(error);
  // Some browsers end with a full stop; whoever takes this goes on with the sentence.
  return new NamedError("NetworkError", `${url}: ${reason.replace(/\.$/, "")}`);
}
