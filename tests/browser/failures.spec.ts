/** What goes wrong is named, leaves nothing behind but what can be gone on with, and does not spoil the next try. */

import { createEngine, expect, HUB_FILES, readIndexedDb, run, test } from "./fixtures.ts";

const OPTIONS = { taskName: "feature-extraction" };
const WEIGHTS = `${HUB_FILES}onnx/model_quantized.onnx`;
const RUNTIME = "/v1/attachments/*.wasm";

const FAULTS = [
  {
    title: "a flipped byte in the runtime",
    fault: { path: RUNTIME, kind: "flip", value: 100_000 },
    name: "AttachmentError",
    words: /SHA-256|hash/i,
    file: /\.wasm$/,
  },
  {
    title: "a truncated runtime",
    fault: { path: RUNTIME, kind: "shorter", value: 1000 },
    name: "AttachmentError",
    words: /bytes/,
    file: /\.wasm$/,
  },
  {
    title: "a model that is cut off at once, every time",
    fault: { path: WEIGHTS, kind: "truncate", value: 0 },
    name: "DownloadError",
    words: /model_quantized\.onnx/,
    file: /model_quantized/,
  },
  {
    title: "a model that is shorter than it should be",
    fault: { path: WEIGHTS, kind: "shorter", value: 1000 },
    name: "DownloadError",
    words: /sent less than the \d+ bytes that were asked for/,
    file: /model_quantized/,
  },
  {
    title: "a flipped byte in the model",
    fault: { path: WEIGHTS, kind: "flip", value: 7_000_000 },
    name: "IntegrityError",
    words: /SHA-256|hash/i,
    file: /model_quantized/,
  },
  {
    title: "a page in place of the model",
    fault: { path: WEIGHTS, kind: "html" },
    name: "IntegrityError",
    words: /HTML|page/,
    file: /model_quantized/,
  },
  {
    title: "a missing model",
    fault: { path: WEIGHTS, kind: "status", value: 404 },
    name: "FileNotFoundOnHubError",
    words: /404/,
    file: /model_quantized/,
  },
  {
    title: "a server error",
    fault: { path: WEIGHTS, kind: "status", value: 503 },
    name: "DownloadError",
    words: /503/,
    file: /model_quantized/,
  },
] as const;

for (const { title, fault, name, words, file } of FAULTS) {
  test(`${title}: a clear error, nothing stored of it, and the next try works`, async ({
    scriptPage: page,
    server,
  }) => {
    await server.fault(fault);
    const failed = await createEngine(page, OPTIONS);
    expect(failed.error?.name).toBe(name);
    expect(failed.error?.message).toMatch(words);

    const stored = await readIndexedDb(page);
    expect(stored.files.filter((entry) => file.test(entry.key.at(-1) ?? ""))).toEqual([]);
    expect([stored.writes, stored.orphans]).toEqual([0, 0]);
    expect(await page.evaluate(() => pywebml.engines.list())).toEqual([]);

    await server.reset();
    expect((await createEngine(page, OPTIONS)).error).toBeUndefined();
    expect((await run(page, "works again")).dims).toEqual([1, 384]);
  });
}

test("a model whose answers are all cut off in the middle comes piece by piece", async ({
  scriptPage: page,
  server,
}) => {
  await server.fault({ path: WEIGHTS, kind: "truncate", value: 5_000_000 });
  expect((await createEngine(page, OPTIONS)).error).toBeUndefined();
  expect((await run(page, "whole")).dims).toEqual([1, 384]);
});

test("settings that are no settings are not stored, and the package's own are used", async ({
  scriptPage: page,
  server,
}) => {
  await server.fault({ path: "/v1/buckets/main/collections/*/changeset", kind: "html" });
  expect((await createEngine(page, OPTIONS)).error).toBeUndefined();
  const refusal = await page.evaluate(() =>
    pywebml.settings.sync("ml-onnx-runtime").catch((error: Error) => `${error.name}: ${error.message}`),
  );
  expect(refusal).toMatch(/^SettingsResponseError: .*ml-onnx-runtime.*web page/);
  await server.reset();
  const result = await page.evaluate(() => pywebml.settings.sync("ml-onnx-runtime"));
  expect(result).toMatchObject({ created: [], updated: [], deleted: [] });
});

test("a settings mirror that somebody changed is refused, and the package's own records are used", async ({
  scriptPage: page,
}) => {
  await page.route("**/v1/buckets/main/collections/ml-inference-options/changeset*", async (route) => {
    const answer = await route.fetch();
    await route.fulfill({ response: answer, body: (await answer.text()).replace("v1.0.0", "v6.6.6") });
  });
  const refusal = await page.evaluate(() =>
    pywebml.settings.sync("ml-inference-options").catch((error: Error) => `${error.name}: ${error.message}`),
  );
  expect(refusal).toMatch(/^SignatureError: The records of ml-inference-options cannot be trusted/);
  const records = (await page.evaluate(() => pywebml.settings.get("ml-inference-options"))) as {
    modelRevision: string;
  }[];
  expect(records.map((record) => record.modelRevision)).toEqual(["v1.0.0"]);
});

test("where browsers cannot check signatures, nothing of the server is believed and the error says why", async ({
  page,
  server,
}) => {
  await page.goto(`${server.url.replace("127.0.0.1", "insecure.test")}/pages/script.html`);
  expect(await page.evaluate(() => isSecureContext)).toBe(false);
  const refusal = await page.evaluate(() =>
    pywebml.settings.sync("ml-onnx-runtime").catch((error: Error) => `${error.name}: ${error.message}`),
  );
  expect(refusal).toMatch(/^SignatureError: .*ml-onnx-runtime.*no secure context/);
});

test("a corrupt model fails its own engine; a good one after it works in the same page", async ({
  scriptPage: page,
}) => {
  const hub = { ...OPTIONS, modelHubRootUrl: "/fixtures/hub/", modelRevision: "v1.0.0", dtype: "q8" };
  const broken = await createEngine(page, { ...hub, modelId: "tests/broken" }, "broken");
  expect(broken.error?.name).toBe("ModelLoadError");
  expect(broken.error?.message).toMatch(/onnx|protobuf|model/i);

  const good = await createEngine(page, { ...hub, modelId: "tests/good" }, "good");
  expect(good.error).toBeUndefined();
  expect((await run(page, "fine", { pooling: "mean" }, "good")).dims).toEqual([1, 384]);
  expect(await page.evaluate(async () => (await pywebml.engines.list()).length)).toBe(1);
});

test("an aborted download ends at once, keeps only what can be gone on with, and the next try works", async ({
  scriptPage: page,
  server,
}) => {
  await server.fault({ path: WEIGHTS, kind: "stall", value: 3_000_000 });
  const aborted = await page.evaluate(async (options) => {
    const controller = new AbortController();
    try {
      await pywebml.createEngine(
        options,
        (event) => {
          if (event.id.endsWith("model_quantized.onnx") && event.totalLoaded > 0) {
            controller.abort();
          }
        },
        controller.signal,
      );
      return "created";
    } catch (error) {
      return (error as Error).name;
    }
  }, OPTIONS);
  expect(aborted).toBe("AbortError");
  await expect.poll(async () => (await readIndexedDb(page)).writes).toBe(0);
  const stored = await readIndexedDb(page);
  expect(stored.orphans).toBe(0);
  expect(stored.files.filter((file) => file.key.at(-1)?.includes("quantized"))).toEqual([]);

  await server.reset();
  expect((await createEngine(page, OPTIONS)).error).toBeUndefined();
});

test("an aborted run ends at once and the engine goes on", async ({ scriptPage: page }) => {
  expect((await createEngine(page, { ...OPTIONS, dtype: "fp32" })).error).toBeUndefined();
  const [name, milliseconds] = await page.evaluate(async () => {
    const engine = (globalThis as unknown as { engine: InstanceType<typeof pywebml.Engine> }).engine;
    const texts = Array.from({ length: 64 }, (_, index) => `${"many words ".repeat(250)}${index}`);
    const controller = new AbortController();
    const work = engine.run({ args: [texts], options: { pooling: "mean" } }, { signal: controller.signal });
    await new Promise((resolve) => setTimeout(resolve, 200));
    const started = performance.now();
    controller.abort();
    const outcome = await work.then(
      () => "finished",
      (error: Error) => error.name,
    );
    return [outcome, performance.now() - started] as const;
  });
  expect(name).toBe("AbortError");
  expect(milliseconds).toBeLessThan(1000);
  expect((await run(page, "next")).dims).toEqual([1, 384]);
});

test("a terminated engine says so, and others live on", async ({ scriptPage: page }) => {
  await createEngine(page, OPTIONS, "one");
  await createEngine(page, OPTIONS, "two");
  const message = await page.evaluate(async () => {
    const { one } = globalThis as unknown as { one: InstanceType<typeof pywebml.Engine> };
    await one.terminate();
    await one.terminate();
    return one.run({ args: ["x"] }).catch((error: Error) => `${error.name}: ${error.message}`);
  });
  expect(message).toMatch(/^EngineClosedError: .*create/i);
  expect((await run(page, "x", {}, "two")).dims).toEqual([1, 3, 384]);
});

const BAD_CALLS: [title: string, options: Record<string, unknown>, name: string, words: RegExp][] = [
  [
    "an unknown option",
    { taskName: "feature-extraction", modelID: "a/b" },
    "OptionsError",
    /Did you mean 'modelId'/,
  ],
  [
    "an unknown task",
    { taskName: "feature-extracton" },
    "UnknownTaskError",
    /Did you mean 'feature-extraction'/,
  ],
  ["a path as model", { ...OPTIONS, modelId: "../../etc/passwd" }, "OptionsError", /organisation\/name/],
  ["no task", {}, "OptionsError", /task/],
  [
    "a model that is not there",
    { ...OPTIONS, modelId: "nobody/nothing" },
    "FileNotFoundOnHubError",
    /nobody\/nothing/,
  ],
  ["a device that is not there", { ...OPTIONS, device: "webgpu" }, "OptionsError", /wasm/],
];

test("bad options get a named error that says what to do", async ({ scriptPage: page }) => {
  for (const [title, options, name, words] of BAD_CALLS) {
    const { error } = await createEngine(page, options as Parameters<typeof createEngine>[1]);
    expect(error?.name, title).toBe(name);
    expect(error?.message, title).toMatch(words);
  }
  expect((await readIndexedDb(page)).writes).toBe(0);
});

test("bad input to a run gets a named error and the engine goes on", async ({ scriptPage: page }) => {
  await createEngine(page, OPTIONS);
  const outcomes = await page.evaluate(async () => {
    const engine = (globalThis as unknown as { engine: InstanceType<typeof pywebml.Engine> }).engine;
    const calls: unknown[] = [
      { args: [5] },
      { args: [[]] },
      { args: [["a", null]] },
      { args: ["a"], options: { pooling: "max" } },
      { args: ["a"], options: { colour: "red" } },
      { args: ["\ud800"] },
      { args: [] },
      "text",
      { args: [() => 1] },
    ];
    const names: string[] = [];
    for (const call of calls) {
      try {
        await engine.run(call as Parameters<typeof engine.run>[0]);
        names.push("no error");
      } catch (error) {
        names.push((error as Error).name);
      }
    }
    return names;
  });
  expect(outcomes).toEqual([
    "InputError",
    "InputError",
    "InputError",
    "InputError",
    "InputError",
    expect.stringMatching(/^(InputError|TokenizerError)$/),
    "InputError",
    "InputError",
    "InputError",
  ]);
  expect((await run(page, "fine")).dims).toEqual([1, 384]);
});

test("when Python itself breaks down every call ends, and the next engine starts anew", async ({
  scriptPage: page,
}) => {
  await page.evaluate(() =>
    pywebml.registerTask({
      name: "breaks",
      source: `
import asyncio
import pywebml

@pywebml.task("breaks")
async def breaks(context, kind):
    if kind == "wait":
        await asyncio.sleep(3600)
    from pyodide.code import run_js
    run_js("(api) => setTimeout(() => { try { api.fatal_error(new Error('by the test')); } catch {} })")(
        __import__("pyodide_js")._api
    )
    await asyncio.sleep(3600)
`,
    }),
  );
  const ends = await page.evaluate(async () => {
    const engine = await pywebml.createEngine({ taskName: "breaks" });
    const runs = ["wait", "break"].map((kind) =>
      engine.run({ args: [kind] }).catch((error: Error) => `${error.name}: ${error.message}`),
    );
    return { ends: await Promise.all(runs), status: engine.status };
  });
  for (const end of ends.ends) {
    expect(end).toMatch(/^EngineClosedError: Python broke down: .*by the test/);
  }
  expect(ends.status).toBe("closed");
  expect((await createEngine(page, OPTIONS)).error).toBeUndefined();
});
