/**
 * A model of 1 GiB goes through the bridge into the store and from there into the runtime, and the JavaScript heaps of
 * the page and of all workers stay within 64 MB of what they have when idle. What the figures include: `heaps.ts`.
 */

import { execFileSync } from "node:child_process";
import { mkdtemp, readdir, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import type { Page } from "@playwright/test";
import type { Bridge, createBridge } from "../../web/src/bridge/index.ts";
import { test as base, expect, Server } from "./fixtures.ts";
import { Heaps, type Peak } from "./heaps.ts";

const MB = 1_000_000;
const LIMIT = 64 * MB;

const MODEL = "build/memory-model";
const DATA = "model.onnx_data";
const THREADS = 2;

type Key = [string, string, string, string];
const RUNTIME: Key = ["runtime", "tests", "main", "ort-wasm-simd-threaded.wasm"];
const key = (path: string): Key => ["model", "tests/large", "main", path];

type SessionWorker = Awaited<ReturnType<Bridge["startSessionWorker"]>>;

declare global {
  var bridge: Bridge;
  var sessionWorker: SessionWorker;
  var inWorker: (expression: string) => Promise<void>;
}

const test = base.extend<{ profile: string; stored: Page; large: Server }>({
  large: async ({}, use) => {
    const server = await Server.start(
      "--mount",
      `/large/=${MODEL}`,
      "--mount",
      "/runtime/=node_modules/onnxruntime-web/dist",
    );
    await use(server);
    server.stop();
  },

  /** Where the browser stores. Without a folder of its own, it would store in memory. */
  profile: async ({}, use) => {
    const folder = await mkdtemp(join("build", "memory-profile-"));
    await use(folder);
    await rm(folder, { recursive: true });
  },

  stored: async ({ playwright, launchOptions, profile, large }, use) => {
    const context = await playwright.chromium.launchPersistentContext(profile, launchOptions);
    try {
      const page = await context.newPage();
      await page.goto(`${large.url}/pages/script.html`);
      await page.evaluate(async () => {
        const module: { createBridge: typeof createBridge } = await import("/bridge.mjs" as string);
        globalThis.bridge = module.createBridge({ sessionWorkerUrl: "/session.mjs" });
      });
      await use(page);
    } finally {
      await context.close();
    }
  },
});

test("a heap's figure has buffers, and neither WebAssembly's memory nor blobs", async ({ stored: page }) => {
  const heaps = await Heaps.watch(page);
  await page.evaluate(async () => {
    const code = "const held = {}; onmessage = async ({ data }) => postMessage(await eval(data));";
    const worker = new Worker(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
    globalThis.inWorker = (expression) =>
      new Promise((resolve) => {
        worker.onmessage = () => resolve();
        worker.postMessage(`${expression}, 0`);
      });
    await globalThis.inWorker("0");
  });
  await expect.poll(() => heaps.count).toBe(2);
  const grownBy = async (expression: string) => {
    const before = await heaps.settled();
    await page.evaluate((expression) => globalThis.inWorker(expression), expression);
    const after = await heaps.settled();
    await page.evaluate(() => globalThis.inWorker("held.it = undefined"));
    return (after - before) / MB;
  };

  const pages = "{ initial: 800, maximum: 1600";
  expect(await grownBy("held.it = new Uint8Array(50_000_000).fill(1)")).toBeCloseTo(50, 0);
  expect(await grownBy("held.it = 'x'.repeat(25_000_000).split('').join('y')")).toBeGreaterThan(50);
  expect(await grownBy(`held.it = new WebAssembly.Memory(${pages}, shared: true })`)).toBeCloseTo(0, 0);
  expect(await grownBy(`held.it = new WebAssembly.Memory(${pages} })`)).toBeCloseTo(0, 0);
  expect(await grownBy("held.it = new Blob([new Uint8Array(50_000_000).fill(1)])")).toBeCloseTo(0, 0);
});

test("storing and loading 1 GiB of external data keeps the heaps within 64 MB of idle", async ({
  stored: page,
  large,
}) => {
  test.setTimeout(240_000);
  execFileSync(".venv/bin/python", ["-m", "tests.browser.make_large_model", MODEL], { stdio: "inherit" });
  const heaps = await Heaps.watch(page);
  await startRuntime(page, large);
  // The page, the session worker, and a thread of the runtime.
  await expect.poll(() => heaps.count).toBeGreaterThanOrEqual(1 + THREADS);

  const idle = await heaps.settled();
  const idleProcesses = await heaps.processes();
  let size = 0;
  const began = performance.now();
  const storing = await heaps.peak(async () => {
    await store(page, `${large.url}/large/model.onnx`, key("model.onnx"));
    size = await store(page, `${large.url}/large/${DATA}`, key(DATA));
  });
  const storedAt = performance.now();
  await heaps.settled();
  const between = performance.now();
  const loading = await heaps.peak(() =>
    page.evaluate(([model, name, data]) => sessionWorker.createSession(model, [[name, data]], "{}"), [
      key("model.onnx"),
      DATA,
      key(DATA),
    ] as const),
  );
  const loaded = performance.now();
  const after = await heaps.settled();
  const afterProcesses = await heaps.processes();

  const mb = (bytes: number) => (bytes / MB).toFixed(1);
  const row = (what: string, bytes: number, processes: number, note = "") =>
    `  ${what.padEnd(14)}${[bytes, bytes - idle, processes].map((count) => mb(count).padStart(10)).join("")}  ${note}`;
  const sampled = ({ parts, answers, gap }: Peak, ms: number) =>
    `${parts.map(([name, bytes]) => `${name} ${mb(bytes)}`).join(", ")}; ` +
    `${(ms / 1000).toFixed(1)} s, ${answers} samples, at most ${gap.toFixed(0)} ms apart`;
  console.log(
    [
      `${mb(size)} MB of external data. In MB: JavaScript heaps, more than idle, and memory of the processes`,
      row("idle", idle, idleProcesses),
      row("peak storing", storing.peak, storing.processes, sampled(storing, storedAt - began)),
      row("peak loading", loading.peak, loading.processes, sampled(loading, loaded - between)),
      row("after", after, afterProcesses),
    ].join("\n"),
  );
  expect(size).toBeGreaterThanOrEqual(2 ** 30);
  expect(await wrongResults(page)).toEqual([]);
  expect(storing.peak - idle, "storing").toBeLessThanOrEqual(LIMIT);
  expect(loading.peak - idle, "loading").toBeLessThanOrEqual(LIMIT);
  expect(after - idle, "after").toBeLessThanOrEqual(LIMIT / 4);
  // What stays is the runtime's memory. More for a while would be buffers that no heap counts (see `free.ts`).
  expect(loading.processes - afterProcesses, "processes while loading").toBeLessThanOrEqual(LIMIT);
});

test("external data that has gone from the disk is an error of its own, and is removed", async ({
  stored: page,
  large,
  profile,
}) => {
  await startRuntime(page, large);
  const [model, data] = [key("external.onnx"), key("external.onnx_data")];
  for (const file of [model, data]) {
    await store(page, `${large.url}/fixtures/models/${file[3]}`, file);
  }
  const load = () =>
    page.evaluate(
      async ([model, name, data]) => {
        try {
          await sessionWorker.createSession(model, [[name, data]], "{}");
          return undefined;
        } catch (caught) {
          const { name, details } = caught as Error & { details: unknown };
          return { name, details };
        }
      },
      [model, data[3], data] as const,
    );
  expect(await load()).toBeUndefined();

  const files = await readdir(join(profile, "Default", "IndexedDB"), {
    recursive: true,
    withFileTypes: true,
  });
  const blobs = files.filter((file) => file.isFile() && file.parentPath.includes(".indexeddb.blob"));
  const sizes = await Promise.all(blobs.map(({ parentPath, name }) => stat(join(parentPath, name))));
  const gone = blobs.filter((_blob, index) => sizes[index]?.size === 8192);
  expect(gone).toHaveLength(1);
  await Promise.all(gone.map(({ parentPath, name }) => rm(join(parentPath, name))));

  expect(await load()).toEqual({ name: "DamagedFileError", details: { key: data } });
  expect(await page.evaluate((data) => bridge.info(data), data)).toBe("");
  await store(page, `${large.url}/fixtures/models/${data[3]}`, data);
  expect(await load()).toBeUndefined();
});

async function startRuntime(page: Page, server: Server): Promise<void> {
  await store(page, `${server.url}/runtime/${RUNTIME[3]}`, RUNTIME);
  await page.evaluate(
    async ([runtime, threads]) => {
      globalThis.sessionWorker = await bridge.startSessionWorker(runtime, threads);
    },
    [RUNTIME, THREADS] as const,
  );
}

/** As pywebml stores a file: the bridge's answer into the bridge's writer. Gives the size. */
function store(page: Page, url: string, key: Key): Promise<number> {
  return page.evaluate(
    async ([url, key]) => {
      const response = await bridge.request(url, "GET", {}, 0, new AbortController().signal);
      const writer = await bridge.openWriter(key);
      await response.save(writer, () => undefined);
      await writer.finish();
      const record = JSON.parse(await writer.commit("{}"));
      await response.close();
      return record.size;
    },
    [url, key] as const,
  );
}

/** Runs the loaded model of `make_large_model.py`; every byte of its weights is in the results. */
function wrongResults(page: Page): Promise<string[]> {
  return page.evaluate(async () => {
    const index = [0, 1, 2047, 2048, 40_000, 65_535];
    const packed = new BigInt64Array([...index, 1].map(BigInt));
    const session = 1;
    const feeds = [
      ["index", "int64", [index.length], index.length * 8],
      ["axes", "int64", [1], 8],
    ];
    const call = JSON.stringify({ session, feeds, outputs: null, keep: [] });
    const [, ...payloads] = await sessionWorker.run(call, new Uint8Array(packed.buffer), []);
    const [rows, tableSums, weightSums] = payloads.map(
      (payload) => new Float32Array((payload as Uint8Array<ArrayBuffer>).buffer),
    );

    const columns = 1024;
    /** Of the row whose elements are (first + c) % period. */
    const sum = (first: number, period: number) => {
      let total = 0;
      for (let column = 0; column < columns; column++) {
        total += (first + column) % period;
      }
      return total;
    };
    const sums = (period: number) => Array.from({ length: period }, (_, first) => sum(first, period));
    const [ofTable, ofWeight] = [sums(251), sums(31)];
    const wrong: string[] = [];
    const check = (
      what: string,
      found: Float32Array | undefined,
      count: number,
      expected: (at: number) => number,
    ) => {
      const at = Array.from({ length: count }, (_, at) => at).find((at) => found?.[at] !== expected(at));
      if (found?.length !== count || at !== undefined) {
        wrong.push(`${what}: ${found?.length} values, number ${at} is ${found?.[at ?? 0]}`);
      }
    };
    const row = (at: number) => index[Math.floor(at / columns)] ?? 0;
    check("rows", rows, index.length * columns, (at) => (row(at) + (at % columns)) % 251);
    check("table_sums", tableSums, 65_536, (at) => ofTable[at % 251] ?? 0);
    check(
      "weight_sums",
      weightSums,
      384 * 513,
      (at) => ofWeight[(7 * Math.floor(at / 513) + (at % 513)) % 31] ?? 0,
    );
    return wrong;
  });
}
