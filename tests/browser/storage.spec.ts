/** What is loaded once stays: real IndexedDB, no second download, nobody else asked. */

import { createEngine, expect, HUB_FILES, MODEL, REVISION, readIndexedDb, run, test } from "./fixtures.ts";

const OPTIONS = { taskName: "feature-extraction" };
const PART = 8 * 1024 * 1024;

test("IndexedDB holds runtime and model, whole, in bounded parts", async ({ scriptPage: page, server }) => {
  expect((await createEngine(page, OPTIONS)).error).toBeUndefined();

  const stored = await readIndexedDb(page);
  const paths = stored.files.map((file) => file.key.at(-1));
  expect(paths).toEqual(
    expect.arrayContaining([
      "ort-wasm-simd-threaded.wasm",
      "config.json",
      "tokenizer.json",
      "tokenizer_config.json",
      "onnx/model_quantized.onnx",
    ]),
  );
  for (const file of stored.files) {
    expect(file.bytes, file.key.join(" ")).toBe(file.size);
  }
  expect([stored.writes, stored.orphans]).toEqual([0, 0]);
  expect(stored.largestPart).toBeLessThanOrEqual(PART);
  const model = stored.files.find((file) => file.key.at(-1) === "onnx/model_quantized.onnx");
  expect(model?.key).toEqual([
    "model",
    `${new URL(server.url).host}/hub/${MODEL}`,
    REVISION,
    "onnx/model_quantized.onnx",
  ]);
});

test("after a reload everything works with hub and settings gone", async ({ scriptPage: page, server }) => {
  expect((await createEngine(page, OPTIONS)).error).toBeUndefined();
  const before = await run(page, "The same before and after.");

  await server.reset();
  await server.fault({ path: "/hub/*", kind: "drop" });
  await server.fault({ path: "/v1/*", kind: "drop" });
  await page.reload();
  const created = await createEngine(page, OPTIONS);
  expect(created.error).toBeUndefined();
  expect((await run(page, "The same before and after.")).data).toEqual(before.data);

  const paths = await server.paths();
  expect(paths.filter((path) => path.startsWith("/hub/"))).toEqual([]);
  expect(paths.filter((path) => path.includes("attachments"))).toEqual([]);
  const loading = created.events.filter((event) => event.type === "loading_from_cache");
  expect(loading.length).toBeGreaterThan(3);
  expect(created.events.filter((event) => event.type === "downloading")).toEqual([]);
});

test("downloads report Firefox's events, ending at 100 %", async ({ scriptPage: page }) => {
  const created = await createEngine(page, OPTIONS);
  const model = created.events.filter((event) => event.id.endsWith("model_quantized.onnx"));

  expect(model[0]).toMatchObject({
    type: "downloading",
    statusText: "initiate",
    progress: 0,
    units: "bytes",
  });
  expect(model[0]?.metadata).toMatchObject({
    model: MODEL,
    revision: REVISION,
    file: "onnx/model_quantized.onnx",
    taskName: "feature-extraction",
  });
  expect(model[1]).toMatchObject({ statusText: "size_estimate", type: "downloading" });
  expect(model.at(-1)).toMatchObject({ statusText: "done", progress: 100, ok: true });
  const loaded = model.map((event) => event.totalLoaded);
  expect(loaded).toEqual([...loaded].sort((a, b) => a - b));
  const start = created.events.filter((event) => event.type === "starting").map((event) => event.progress);
  expect(start[0]).toBe(0);
  expect(start.at(-1)).toBe(100);
});

test("stored models are listed with their files and can be deleted", async ({ scriptPage: page, server }) => {
  expect((await createEngine(page, OPTIONS)).error).toBeUndefined();

  const models = await page.evaluate(() => pywebml.models.list());
  expect(models).toMatchObject([{ model: MODEL, revision: REVISION, tasks: ["feature-extraction"] }]);
  const files = await page.evaluate((model) => pywebml.models.files({ model }), MODEL);
  expect(files.map((file) => file.path)).toContain("tokenizer.json");
  expect(files.reduce((sum, file) => sum + file.size, 0)).toBe(models[0]?.size);
  expect((await page.evaluate(() => pywebml.models.usage())).used).toBeGreaterThan(models[0]?.size ?? 0);

  const deleted = await page.evaluate((model) => pywebml.models.delete({ model }), MODEL);
  expect(deleted).toBe(models[0]?.size);
  expect(await page.evaluate(() => pywebml.models.list())).toEqual([]);
  const left = await readIndexedDb(page);
  expect(left.files.map((file) => file.key.at(-1))).toEqual(["ort-wasm-simd-threaded.wasm"]);
  expect(left.orphans).toBe(0);

  // An engine that is loaded goes on; a new one downloads again.
  await run(page, "still here");
  await server.reset();
  expect((await createEngine(page, OPTIONS, "again")).error).toBeUndefined();
  expect(await server.paths()).toContain(`${HUB_FILES}onnx/model_quantized.onnx`);
});

test("two engines at once download a model once", async ({ scriptPage: page, server }) => {
  const outcomes = await Promise.all([
    createEngine(page, OPTIONS, "one"),
    createEngine(page, OPTIONS, "two"),
  ]);

  expect(outcomes.map((outcome) => outcome.error)).toEqual([undefined, undefined]);
  const paths = await server.paths();
  for (const file of ["config.json", "tokenizer.json"]) {
    expect(paths.filter((path) => path === HUB_FILES + file)).toHaveLength(1);
  }
  // In parts, each of them once.
  const model = "onnx/model_quantized.onnx";
  const parts = (await server.requests()).filter(({ path }) => path === HUB_FILES + model);
  const ranges = parts.map(({ range }) => /^bytes=(\d+)-(\d+)$/.exec(range)?.slice(1).map(Number));
  const sizes = ranges.map(([begin = Number.NaN, end = Number.NaN] = []) => end - begin + 1);
  const stored = (await readIndexedDb(page)).files.find(({ key }) => key.at(-1) === model);
  expect(new Set(ranges.map(String)).size).toBe(ranges.length);
  expect(sizes.reduce((sum, size) => sum + size, 0)).toBe(stored?.size);
  expect(paths.filter((path) => path.endsWith(".wasm") && path.startsWith("/v1/"))).toHaveLength(1);
  const [one, two] = await Promise.all([run(page, "x", {}, "one"), run(page, "x", {}, "two")]);
  expect(one.data).toEqual(two.data);
});
