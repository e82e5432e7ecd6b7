/** HTTP for Python: an answer's head first, then its body into the store without passing through Python. */

import { NamedError } from "../errors.ts";

/** Where a body goes. */
export interface ByteSink {
  write(bytes: Uint8Array): Promise<void>;
}

/** `onBytes` crosses into Python, so it is called at most this often. */
const REPORT_EVERY_MS = 50;

/**
 * Sends a request. Cookies go to the page's own origin only; the browser's HTTP cache is passed by, since the store
 * keeps what is worth keeping.
 */
export async function request(
  url: string,
  method: string,
  headers: Record<string, string>,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<BridgeResponse> {
  const controller = new AbortController();
  const stop = () => controller.abort(signal.reason);
  signal.addEventListener("abort", stop, { once: true });
  const timer =
    timeoutMs > 0
      ? setTimeout(() => controller.abort(new Error(`no answer in ${timeoutMs} ms`)), timeoutMs)
      : 0;
  try {
    const response = await fetch(url, {
      method,
      headers,
      signal: controller.signal,
      credentials: "same-origin",
      cache: "no-store",
    });
    return new BridgeResponse(response, () => signal.removeEventListener("abort", stop));
  } catch (error) {
    signal.removeEventListener("abort", stop);
    throw controller.signal.aborted ? networkError(url, error) : noAnswer(url, error);
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
  readonly #done: () => void;

  constructor(response: Response, done: () => void) {
    this.url = response.url;
    this.status = response.status;
    this.headers = JSON.stringify(Object.fromEntries(response.headers));
    this.#response = response;
    this.#done = done;
  }

  /** The whole body, up to `limit` bytes. */
  async read(limit: number): Promise<Uint8Array> {
    const pieces: Uint8Array[] = [];
    let size = 0;
    await this.#pieces(async (piece) => {
      size += piece.byteLength;
      if (size > limit) {
        throw new NamedError("NetworkError", `${this.url} sent more than ${limit} bytes`);
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

  /** The body, piece by piece, into `writer`. */
  async save(writer: ByteSink, onBytes: (count: number) => void): Promise<void> {
    let unreported = 0;
    let timer: ReturnType<typeof setTimeout> | undefined;
    const report = () => {
      clearTimeout(timer);
      timer = undefined;
      if (unreported > 0) {
        onBytes(unreported);
        unreported = 0;
      }
    };
    try {
      await this.#pieces(async (piece) => {
        await writer.write(piece);
        unreported += piece.byteLength;
        timer ??= setTimeout(report, REPORT_EVERY_MS);
      });
      report();
    } finally {
      clearTimeout(timer);
    }
  }

  /** Gives up the rest of the body. */
  async close(): Promise<void> {
    this.#done();
    if (this.#response.body !== null && !this.#response.bodyUsed) {
      await this.#response.body.cancel().catch(() => undefined);
    }
  }

  async #pieces(take: (piece: Uint8Array) => Promise<void>): Promise<void> {
    const reader = this.#response.body?.getReader();
    try {
      while (reader !== undefined) {
        let step: ReadableStreamReadResult<Uint8Array>;
        try {
          step = await reader.read();
        } catch (error) {
          throw networkError(this.url, error);
        }
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
  return new NamedError("NetworkError", `${url}: ${reason}`);
}
