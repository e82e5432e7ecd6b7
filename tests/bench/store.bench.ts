/**
 * What storing a model file costs, beside a plain `fetch` into the Cache API: the same bytes, in turn, in one run.
 *
 * The file has a manifest with the hashes of its parts, as `pywebml convert` writes it, and every byte is checked; the
 * Cache API checks nothing.
 */

import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Page, test } from "@playwright/test";
import { Server } from "../browser/fixtures.ts";

const MIB = 1024 * 1024;
const SIZE = Number(process.env.BENCH_MIB ?? 300) * MIB;
const PART = 8 * MIB;
const ROUNDS = 3;

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

/** A file that no two rounds can share, with its manifest. */
function makeFile(folder: string): void {
  const block = Buffer.alloc(MIB);
  for (let index = 0; index < MIB; index++) {
    block[index] = Math.imul(index, 0x9e3779b1) >>> 24;
  }
  const whole = createHash("sha256");
  const parts: string[] = [];
  const pieces: Buffer[] = [];
  for (let begin = 0; begin < SIZE; begin += PART) {
    const part = Buffer.concat(
      Array.from({ length: Math.min(PART, SIZE - begin) / MIB }, (_, index) => {
        const piece = Buffer.from(block);
        piece.writeUInt32LE(begin / MIB + index, 0);
        return piece;
      }),
    );
    whole.update(part);
    parts.push(createHash("sha256").update(part).digest("hex"));
    pieces.push(part);
  }
  mkdirSync(join(folder, "onnx"), { recursive: true });
  writeFileSync(join(folder, "onnx/model.onnx"), Buffer.concat(pieces));
  const entry = { size: SIZE, sha256: whole.digest("hex"), parts: { size: PART, sha256: parts } };
  writeFileSync(join(folder, "manifest.json"), JSON.stringify({ files: { "onnx/model.onnx": entry } }));
}

interface Times {
  write: number;
  read: number;
}

async function throughStore(page: Page, owner: string): Promise<Times> {
  return page.evaluate(
    async ([owner, hub]) => {
      const { pywebml } = globalThis as unknown as {
        pywebml: typeof import("../../web/src/client/index.ts");
      };
      const engine = await pywebml.createEngine({ taskName: "bench-store" });
      const [seconds, name] = (await engine.run({ args: [hub, owner] })) as [number, string];
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
      await pywebml.models.delete({ model: owner });
      return { write: seconds * 1000, read };
    },
    [owner, "/bench/"] as const,
  );
}

async function throughCacheApi(page: Page, owner: string): Promise<Times> {
  return page.evaluate(async (owner) => {
    const url = `/bench/${owner}/v1.0.0/onnx/model.onnx`;
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
  }, owner);
}

function median(values: number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
}

test(`storing and reading back ${SIZE / MIB} MiB`, async ({ playwright, launchOptions }) => {
  const folder = mkdtempSync(join(tmpdir(), "pywebml-bench-"));
  const server = await Server.start("--mount", `/bench/=${folder}/hub`);
  // A profile on disk: without one, a browser stores in memory.
  const context = await playwright.chromium.launchPersistentContext(join(folder, "profile"), launchOptions);
  try {
    makeFile(join(folder, "hub/bench/model/v1.0.0"));
    const page = await context.newPage();
    await page.goto(`${server.url}/pages/script.html`);
    await page.evaluate((source) => pywebml.registerTask({ name: "bench-store", source }), TASK);
    const ours: Times[] = [];
    const theirs: Times[] = [];
    await throughCacheApi(page, "bench/model");
    for (let round = 0; round < ROUNDS; round++) {
      theirs.push(await throughCacheApi(page, "bench/model"));
      ours.push(await throughStore(page, "bench/model"));
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
    rmSync(folder, { recursive: true, force: true });
  }
});
