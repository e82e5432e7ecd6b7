/** Ranges of one file by the shortest way into the store: whole or not at all, and over at the first surprise. */

import type { Page } from "@playwright/test";
import type { RangePlan } from "../../web/src/bridge/ranges.ts";
import { test as base, Server } from "./fixtures.ts";
import { partHash } from "./part-hash.ts";
import { expect, key, openPage } from "./store-page.ts";

const MODEL = key("onnx/model.onnx");
const STEP = 1_000_000;
const COUNT = 6;
const SIZE = STEP * COUNT;

const test = base.extend<{ hub: Server; file: string; page: Page }>({
  hub: async ({}, use) => {
    const hub = await Server.start();
    await use(hub);
    hub.stop();
  },
  file: async ({ hub }, use) => {
    await fetch(`${hub.url}/__synthetic__`, {
      method: "POST",
      body: JSON.stringify({ path: "/model.onnx", size: SIZE, seed: 5 }),
    });
    await use(`${hub.url}/model.onnx`);
  },
  page: async ({ context, server }, use) => {
    await use(await openPage(context, server.url));
  },
});

interface Fetched {
  right?: number[];
  error?: string;
  present: [number, number][];
  reported: number;
}

/** Ranges of `STEP` bytes from the second on, into a fresh writer, with a hash for each two. */
async function fetchRanges(
  page: Page,
  url: string,
  change: Partial<RangePlan> = {},
  abort = false,
): Promise<Fetched> {
  const bytes = new Uint8Array(await (await fetch(url)).arrayBuffer());
  const hashes: [number, number, string][] = [];
  for (let begin = 0; begin < SIZE; begin += 2 * STEP) {
    hashes.push([begin, begin + 2 * STEP, partHash(bytes.subarray(begin, begin + 2 * STEP))]);
  }
  return page.evaluate(
    async ([key, url, step, size, hashes, change, abort]) => {
      const head = await fetch(url, { headers: { range: "bytes=0-0" } });
      const ranges: [number, number][] = [];
      for (let begin = step; begin < size; begin += step) {
        ranges.push([begin, Math.min(begin + step, size)]);
      }
      const same = { "content-type": head.headers.get("content-type") ?? "" };
      const plan = { ranges, hashes, size, same, stallMs: 10_000, slowMs: 10_000, ...change };
      const writer = await bridge.openWriter(key);
      globalThis.writer = writer;
      const controller = new AbortController();
      let reported = 0;
      const fetching = bridge.fetchRanges(
        url,
        "{}",
        JSON.stringify(plan),
        writer,
        (count) => {
          reported += count;
          if (abort) {
            controller.abort();
          }
        },
        controller.signal,
      );
      const outcome = await fetching.then(
        (text) => ({ right: JSON.parse(text) as number[] }),
        (error: Error) => ({ error: error.name }),
      );
      return { ...outcome, present: JSON.parse(await writer.present()), reported };
    },
    [MODEL, url, STEP, SIZE, hashes, change, abort] as const,
  );
}

/** Faults meet the one request of a range, after that by which the test looks at all of the file. */
async function breakRange(hub: Server, begin: number, kind: string, value?: unknown): Promise<void> {
  const skip = kind === "wrong_range" || kind === "lying_total" ? 0 : 1;
  await hub.fault({ path: "/model.onnx", kind, value, from_byte: begin, to_byte: begin + STEP, skip });
}

test("all ranges are stored, and what has a hash is checked", async ({ page, file, hub }) => {
  const { right, present, reported } = await fetchRanges(page, file);
  // Of the first two ranges the first was not fetched here.
  expect(right).toEqual([2 * STEP, 4 * STEP]);
  expect(present).toEqual([[STEP, SIZE]]);
  expect(reported).toBe(SIZE - STEP);
  const asked = (await hub.requests()).map(({ range }) => range).filter((range) => range !== "");
  expect(asked.length).toBe(1 + COUNT - 1);
});

test("bytes with another hash are stored, and not said to be right", async ({ page, file, hub }) => {
  await breakRange(hub, 2 * STEP, "flip", 2 * STEP + 7);
  const { right, present } = await fetchRanges(page, file);
  expect(right).toEqual([4 * STEP]);
  expect(present).toEqual([[STEP, SIZE]]);
});

for (const [surprise, kind, value] of [
  ["another status", "status", 503],
  ["all of the file", "no_range", undefined],
  ["another range", "wrong_range", 10],
  ["another total", "lying_total", 10],
  ["a body that is cut", "truncate", 1_000],
  ["a web page", "html", undefined],
  ["no answer", "drop", undefined],
  ["another kind of content", "header", { "Content-Type": "text/plain" }],
] as const) {
  test(`${surprise} is the end of it, and nothing of that range is stored`, async ({ page, file, hub }) => {
    await breakRange(hub, 3 * STEP, kind, value);
    const { error, present } = await fetchRanges(page, file);
    expect(error).toBeUndefined();
    expect(present[0]?.[0]).toBe(STEP);
    for (const [begin, end] of present) {
      expect(begin < 4 * STEP && 3 * STEP < end).toBe(false);
    }
  });
}

test("another ETag than before is the end of it", async ({ page, file }) => {
  const { right, present } = await fetchRanges(page, file, { same: { etag: '"other"' } });
  expect([right, present]).toEqual([[], []]);
});

test("silence is the end of it", async ({ page, file, hub }) => {
  await breakRange(hub, STEP, "stall", 1_000);
  const { error, present } = await fetchRanges(page, file, { stallMs: 300 });
  expect(error).toBeUndefined();
  expect(present.every(([begin]) => begin >= 2 * STEP)).toBe(true);
});

test("what comes slowly is the last of it", async ({ page, file }) => {
  const { present } = await fetchRanges(page, file, { slowMs: 0 });
  // One on each connection.
  expect(present).toEqual([[STEP, 3 * STEP]]);
});

test("an abort stops the traffic and keeps whole ranges", async ({ page, file, hub }) => {
  await breakRange(hub, 2 * STEP, "stall", 1_000);
  const { error, present } = await fetchRanges(page, file, { slowMs: 0 }, true);
  expect(error).toBeUndefined();
  expect(present).toEqual([[STEP, 2 * STEP]]);
  await expect.poll(() => hub.active()).toBe(0);
});

test("a writer that takes nothing more is an error", async ({ page, file }) => {
  const outcome = await page.evaluate(
    async ([key, url, size]) => {
      const writer = await bridge.openWriter(key);
      await writer.abort();
      const plan = { ranges: [[0, size]], size, same: {}, hashes: [], stallMs: 0, slowMs: 1_000 };
      const signal = new AbortController().signal;
      return errorOf(bridge.fetchRanges(url, "{}", JSON.stringify(plan), writer, () => undefined, signal));
    },
    [MODEL, file, SIZE] as const,
  );
  expect(outcome).toMatchObject({ name: "StoreError" });
});
