/**
 * What storing a model file costs, beside a plain `fetch` into the Cache API: the same bytes, in turn, in one run.
 *
 * The file has a manifest with the hashes of its parts, as `pywebml convert` writes it, and every byte is checked; the
 * Cache API checks nothing.
 */

import { createHash } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Server as HttpServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Page, test } from "@playwright/test";
import { Server } from "../browser/fixtures.ts";
import { BLOCK_SIZE, partHash } from "../browser/part-hash.ts";

const MIB = 1024 * 1024;
const SIZE = Number(process.env.BENCH_MIB ?? 300) * MIB;
const PART = 8 * MIB;
const ROUNDS = 5;
const MODEL = "bench/model";

const TASK = `
import asyncio
import time
import pywebml
from pywebml import ModelHub, get_platform

@pywebml.task("bench-store")
async def store(context, address, model):
    platform = await get_platform()
    hub = ModelHub(platform, address)
    started = time.perf_counter()
    key = await hub.get_file(model, "v1.0.0", "onnx/model.onnx")
    seconds = time.perf_counter() - started
    return [seconds, key.owner]
`;

/** A file of which no two parts are alike, with its manifest: path to bytes. */
function makeFiles(): Map<string, Buffer> {
  const file = Buffer.alloc(SIZE);
  for (let index = 0; index < MIB; index++) {
    file[index] = Math.imul(index, 0x9e3779b1) >>> 24;
  }
  for (let begin = MIB; begin < SIZE; begin += MIB) {
    file.copyWithin(begin, 0, MIB);
    file.writeUInt32LE(begin / MIB, begin);
  }
  const sha256 = (bytes: Buffer) => createHash("sha256").update(bytes).digest("hex");
  const parts = Array.from({ length: Math.ceil(SIZE / PART) }, (_, index) =>
    partHash(file.subarray(index * PART, (index + 1) * PART)),
  );
  const entry = { size: SIZE, sha256: sha256(file), parts: { size: PART, block: BLOCK_SIZE, sha256: parts } };
  const manifest = JSON.stringify({ files: { "onnx/model.onnx": entry } });
  return new Map([
    [`/${MODEL}/v1.0.0/manifest.json`, Buffer.from(manifest)],
    [`/${MODEL}/v1.0.0/onnx/model.onnx`, file],
  ]);
}

/** A hub on another origin, as they are, that costs little itself. */
async function startHub(files: Map<string, Buffer>): Promise<HttpServer> {
  const hub = createServer((request, response) => {
    const file = files.get(new URL(request.url ?? "", "http://hub").pathname);
    const headers = {
      "access-control-allow-origin": "*",
      "access-control-expose-headers": "content-range, etag",
      "content-type": "application/octet-stream",
    };
    const [, begin, last] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "") ?? [];
    if (file === undefined) {
      response.writeHead(404, headers).end();
    } else if (begin === undefined) {
      response.writeHead(200, { ...headers, etag: '"1"', "content-length": file.length }).end(file);
    } else {
      const body = file.subarray(Number(begin), Number(last) + 1);
      const range = `bytes ${begin}-${Number(begin) + body.length - 1}/${file.length}`;
      const more = { etag: '"1"', "content-length": body.length, "content-range": range };
      response.writeHead(206, { ...headers, ...more }).end(body);
    }
  });
  await new Promise<void>((resolve) => hub.listen(0, "127.0.0.1", resolve));
  return hub;
}

interface Times {
  write: number;
  read: number;
}

async function throughStore(page: Page, hub: string): Promise<Times> {
  return page.evaluate(
    async ([model, hub]) => {
      const { pywebml } = globalThis as unknown as {
        pywebml: typeof import("../../web/src/client/index.ts");
      };
      const engine = await pywebml.createEngine({ taskName: "bench-store" });
      const [seconds, name] = (await engine.run({ args: [hub, model] })) as [number, string];
      await engine.terminate();
      const { createBridge } = (await import(
        "/bridge.mjs" as string
      )) as typeof import("../../web/src/bridge/index.ts");
      const bridge = createBridge({ sessionWorkerUrl: "/session.mjs" });
      const started = performance.now();
      const bytes = await bridge.read(["model", name, "v1.0.0", "onnx/model.onnx"]);
      const read = performance.now() - started;
      if (bytes.byteLength < 1024) {
        throw new Error("nothing was read");
      }
      await pywebml.models.delete({ model });
      return { write: seconds * 1000, read };
    },
    [MODEL, hub] as const,
  );
}

async function throughCacheApi(page: Page, hub: string): Promise<Times> {
  return page.evaluate(async (url) => {
    const cache = await caches.open("bench");
    let started = performance.now();
    await cache.put(url, await fetch(url, { cache: "no-store" }));
    const write = performance.now() - started;
    started = performance.now();
    const bytes = await (await cache.match(url))?.arrayBuffer();
    const read = performance.now() - started;
    if (bytes === undefined) {
      throw new Error("nothing was read");
    }
    await caches.delete("bench");
    return { write, read };
  }, `${hub}${MODEL}/v1.0.0/onnx/model.onnx`);
}

function median(values: number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
}

test(`storing and reading back ${SIZE / MIB} MiB`, async ({ playwright, launchOptions }) => {
  const folder = mkdtempSync(join(tmpdir(), "pywebml-bench-"));
  const server = await Server.start();
  const hub = await startHub(makeFiles());
  // A profile on disk: without one, a browser stores in memory.
  const context = await playwright.chromium.launchPersistentContext(join(folder, "profile"), launchOptions);
  try {
    const page = await context.newPage();
    await page.goto(`${server.url}/pages/script.html`);
    await page.evaluate((source) => pywebml.registerTask({ name: "bench-store", source }), TASK);
    const address = `http://127.0.0.1:${(hub.address() as AddressInfo).port}/`;
    const ours: Times[] = [];
    const theirs: Times[] = [];
    // The first of each pays for what is only made once.
    await throughCacheApi(page, address);
    await throughStore(page, address);
    for (let round = 0; round < ROUNDS; round++) {
      theirs.push(await throughCacheApi(page, address));
      ours.push(await throughStore(page, address));
    }
    const total = (times: Times[]) => median(times.map(({ write, read }) => write + read));
    for (const [name, times] of [
      ["fetch + Cache API", theirs],
      ["pywebml, every byte checked", ours],
    ] as const) {
      const write = median(times.map((time) => time.write));
      const read = median(times.map((time) => time.read));
      console.log(
        `${name}: store ${write.toFixed(0)} ms, read ${read.toFixed(0)} ms, together ${(SIZE / MIB / (total(times) / 1000)).toFixed(0)} MiB/s`,
      );
    }
    const ratios = ours.map((time, index) => total(theirs.slice(index, index + 1)) / total([time]));
    console.log(
      `speed against the Cache API: ${(total(theirs) / total(ours)).toFixed(2)} x (rounds: ${ratios.map((ratio) => ratio.toFixed(2)).join(", ")})`,
    );
  } finally {
    await context.close();
    server.stop();
    hub.close();
    hub.closeAllConnections();
    rmSync(folder, { recursive: true, force: true });
  }
});
