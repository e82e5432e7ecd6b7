/** Embeddings in the browser are those of PyTorch and of the native platform. */

import { readFileSync } from "node:fs";
import { createEngine, expect, largestDifference, MODEL, REVISION, run, test } from "./fixtures.ts";

interface Reference {
  cases: { name: string; texts: string[]; torch: number[][]; native: number[][] }[];
}

const TOLERANCE = 1e-4;

test("fp32 embeddings equal PyTorch's and the native run's, for every kind of text", async ({
  scriptPage: page,
}) => {
  const reference = JSON.parse(readFileSync("build/browser-fixtures/reference.json", "utf8")) as Reference;
  const created = await createEngine(page, {
    taskName: "feature-extraction",
    modelId: MODEL,
    modelRevision: REVISION,
    dtype: "fp32",
  });
  expect(created.error).toBeUndefined();

  for (const { name, texts, torch, native } of reference.cases) {
    const result = await run(page, texts);
    expect(result.dims, name).toEqual([texts.length, 384]);
    expect(result.type).toBe("float32");
    expect(largestDifference(result.data, torch.flat()), `${name} against PyTorch`).toBeLessThan(TOLERANCE);
    expect(largestDifference(result.data, native.flat()), `${name} against native`).toBeLessThan(TOLERANCE);
  }
});

test("poolings, normalize and quantize give the shapes and types of the field", async ({
  scriptPage: page,
}) => {
  const created = await createEngine(page, { taskName: "feature-extraction" });
  expect(created.error).toBeUndefined();

  const texts = ["one two three", "one"];
  const tokens = await run(page, texts, {});
  expect(tokens.dims).toEqual([2, 5, 384]);

  const cls = await run(page, texts, { pooling: "cls" });
  expect(cls.dims).toEqual([2, 384]);
  expect(largestDifference(cls.data.slice(0, 384), tokens.data.slice(0, 384))).toBe(0);

  // The last token of the shorter text stands before its padding.
  const last = await run(page, texts, { pooling: "last_token" });
  const at = (5 + 2) * 384;
  expect(largestDifference(last.data.slice(384), tokens.data.slice(at, at + 384))).toBe(0);

  const unit = await run(page, "one two three", { pooling: "mean", normalize: true });
  expect(unit.dims).toEqual([1, 384]);
  expect(Math.hypot(...unit.data)).toBeCloseTo(1, 5);

  const signed = await run(page, texts, { pooling: "mean", quantize: true });
  const unsigned = await run(page, texts, { pooling: "mean", quantize: true, precision: "ubinary" });
  expect([signed.type, signed.dims]).toEqual(["int8", [2, 48]]);
  expect([unsigned.type, unsigned.dims]).toEqual(["uint8", [2, 48]]);
  expect(signed.data.map((value) => value + 128)).toEqual(unsigned.data);
});

test("two threads give the same embeddings as one", async ({ scriptPage: page }) => {
  expect(await page.evaluate(() => crossOriginIsolated)).toBe(true);
  const options = { taskName: "feature-extraction", dtype: "fp32" };
  const one = await createEngine(page, { ...options, numThreads: 1 }, "one");
  const two = await createEngine(page, { ...options, numThreads: 2 }, "two");
  expect([one.error, two.error]).toEqual([undefined, undefined]);

  const text = "Threads share the work and not the result.";
  const left = await run(page, text, { pooling: "mean" }, "one");
  const right = await run(page, text, { pooling: "mean" }, "two");
  expect(largestDifference(left.data, right.data)).toBeLessThan(1e-5);
});
