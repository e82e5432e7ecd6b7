/** Ranges of one file from the network into the store by the shortest way: Python hears of them when they are there. */

import { partHash } from "./hashing.ts";
import { Reports, startTimer } from "./http.ts";

/** What is to be fetched, and what every answer has to be. */
export interface RangePlan {
  /** In the order in which they are wanted; each comes with one request and is stored as one piece. */
  ranges: [begin: number, end: number][];
  /** Bytes of the whole file. */
  size: number;
  /** The headers that tell whether bytes are of the same file, as an earlier answer had them. */
  same: Record<string, string>;
  /** Bytes with their hash (see `partHash`), which are checked as soon as they are there. */
  hashes: [begin: number, end: number, hash: string][];
  /** Most milliseconds that one range may take. */
  stallMs: number;
  /** A range that takes longer than this is the last one: what comes slowly is better watched. */
  slowMs: number;
}

/** Where pieces go. */
export interface RangeSink {
  put(offset: number, blob: Blob): Promise<void>;
}

/** Two, so that the network is busy while the database writes. */
const LANES = 2;

/** Stored pieces that may wait for their check; the browser keeps them outside this heap. */
const PIECES_BEHIND = 3;

/**
 * Fetches ranges until all are stored, or until an answer is not exactly what was expected: whoever has called finds
 * out what is the matter, by asking again. What fails in the store is thrown.
 *
 * @returns Beginnings of the `hashes` that were right.
 */
export async function fetchRanges(
  url: string,
  headers: Record<string, string>,
  plan: RangePlan,
  sink: RangeSink,
  onBytes: (count: number) => void,
  signal: AbortSignal,
): Promise<number[]> {
  const controller = new AbortController();
  const stop = () => controller.abort();
  signal.addEventListener("abort", stop, { once: true });
  const waiting = [...plan.ranges];
  const reports = new Reports(onBytes);
  const checks = new Checks(plan.hashes);
  const lane = async (): Promise<void> => {
    for (let range = waiting.shift(); range !== undefined; range = waiting.shift()) {
      const [begin] = range;
      const started = performance.now();
      const blob = await fetchRange(url, headers, range, plan, controller);
      if (blob === undefined) {
        // Nobody begins another one; what is under way is of use.
        waiting.length = 0;
        return;
      }
      await sink.put(begin, blob);
      reports.add(blob.size);
      await checks.add(begin, blob);
      if (performance.now() - started > plan.slowMs) {
        waiting.length = 0;
      }
    }
  };
  try {
    if (signal.aborted) {
      stop();
    }
    const lanes = Array.from({ length: LANES }, lane);
    try {
      await Promise.all(lanes);
    } catch (error) {
      waiting.length = 0;
      stop();
      await Promise.allSettled(lanes);
      throw error;
    }
    return await checks.end();
  } finally {
    reports.end();
    signal.removeEventListener("abort", stop);
  }
}

/** The bytes, which the browser keeps outside this heap; undefined when anything is not as expected. */
async function fetchRange(
  url: string,
  headers: Record<string, string>,
  [begin, end]: [begin: number, end: number],
  plan: RangePlan,
  controller: AbortController,
): Promise<Blob | undefined> {
  const own = new AbortController();
  const stop = () => own.abort();
  controller.signal.addEventListener("abort", stop, { once: true });
  const timer = startTimer(plan.stallMs, stop);
  try {
    if (controller.signal.aborted) {
      return undefined;
    }
    const response = await fetch(url, {
      headers: { ...headers, range: `bytes=${begin}-${end - 1}` },
      signal: own.signal,
      credentials: "same-origin",
      cache: "no-store",
    });
    if (!isExactly(response, begin, end, plan)) {
      own.abort();
      return undefined;
    }
    const blob = await response.blob();
    return blob.size === end - begin ? blob : undefined;
  } catch {
    return undefined;
  } finally {
    clearTimeout(timer);
    controller.signal.removeEventListener("abort", stop);
  }
}

function isExactly(response: Response, begin: number, end: number, plan: RangePlan): boolean {
  const header = (name: string) => response.headers.get(name);
  // Servers of other origins need not show every header to pages.
  const told = (name: string, value: string) => [null, value].includes(header(name));
  return (
    response.status === 206 &&
    header("content-encoding") === null &&
    told("content-length", String(end - begin)) &&
    told("content-range", `bytes ${begin}-${end - 1}/${plan.size}`) &&
    (response.type === "cors" || header("content-range") !== null) &&
    Object.entries(plan.same).every(([name, value]) => (header(name) ?? "") === value)
  );
}

/** Checks bytes, one part after the other, while others come. */
class Checks {
  readonly #right: number[] = [];
  #unchecked: RangePlan["hashes"];
  /** Pieces that have bytes which are still to be checked, in order. */
  #pieces: { begin: number; blob: Blob }[] = [];
  #last: Promise<void> = Promise.resolve();
  readonly #behind: Promise<void>[] = [];

  constructor(hashes: RangePlan["hashes"]) {
    this.#unchecked = hashes;
  }

  /** Bytes are stored. Waits for checks that have fallen far behind. */
  async add(begin: number, blob: Blob): Promise<void> {
    this.#pieces.push({ begin, blob });
    this.#pieces.sort((one, other) => one.begin - other.begin);
    this.#unchecked = this.#unchecked.filter(([from, to, hash]) => {
      const part = this.#part(from, to);
      if (part !== undefined) {
        this.#last = this.#last.then(() => this.#check(from, part, hash));
      }
      return part === undefined;
    });
    this.#pieces = this.#pieces.filter(({ begin, blob }) =>
      this.#unchecked.some(([from, to]) => from < begin + blob.size && begin < to),
    );
    this.#last.catch(() => undefined);
    this.#behind.push(this.#last);
    if (this.#behind.length > PIECES_BEHIND) {
      await this.#behind.shift();
    }
  }

  async end(): Promise<number[]> {
    await this.#last;
    return this.#right;
  }

  /** These bytes; undefined when some are not there. */
  #part(from: number, to: number): Blob | undefined {
    const slices = this.#pieces
      .filter(({ begin, blob }) => begin < to && from < begin + blob.size)
      .map(({ begin, blob }) => blob.slice(Math.max(0, from - begin), to - begin));
    const part = slices.length === 1 ? slices[0] : new Blob(slices);
    return part?.size === to - from ? part : undefined;
  }

  async #check(begin: number, part: Blob, hash: string): Promise<void> {
    const bytes = part.arrayBuffer().then((buffer) => new Uint8Array(buffer));
    if ((await partHash([bytes])) === hash) {
      this.#right.push(begin);
    }
  }
}
