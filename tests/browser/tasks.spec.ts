/** Tasks that a page registers, what their results look like in JavaScript, and the rest of the JavaScript API. */

import { expect, test } from "./fixtures.ts";

const SOURCE = `
import numpy as np
import pywebml

@pywebml.task("zoo")
async def zoo(context, kind, *, count=3):
    if kind == "plain":
        return {"text": "é🙂", "list": [1, 2.5, None, True], "nested": {"deep": [{"score": np.float32(0.5)}]}}
    if kind == "floats":
        return [float("nan"), float("inf"), -float("inf"), np.float32("nan"), 1.5]
    if kind == "arrays":
        return {
            "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
            "int64": np.array([2**62, -1]),
            "float16": np.array([1.0], dtype=np.float16),
            "bool": np.array([True, False]),
            "strings": np.array(["a", "ß"]),
            "empty": np.zeros((0, 4), dtype=np.int8),
            "bytes": b"\\x01\\x02",
        }
    if kind == "fails":
        raise ValueError("the task's own fault")
    if kind == "odd":
        return object()
    return kind * count

@pywebml.task("counter")
class Counter:
    def __init__(self, context):
        pass
    async def run(self, limit):
        return limit
    async def stream(self, limit):
        for number in range(limit):
            yield {"number": number}
`;

test.beforeEach(async ({ scriptPage: page }) => {
  const names = await page.evaluate((source) => pywebml.registerTask({ name: "zoo", source }), SOURCE);
  expect(names).toEqual(expect.arrayContaining(["counter", "feature-extraction", "zoo"]));
});

test("results come as plain data, with tensors and special floats", async ({ scriptPage: page }) => {
  const [plain, floats, arrays, options] = await page.evaluate(async () => {
    const engine = await pywebml.createEngine({ taskName: "zoo" });
    const run = (kind: string, options = {}) => engine.run({ args: [kind], options });
    type Tensors = Record<string, { dims: number[]; type: string; data: ArrayLike<unknown> & object }>;
    const tensors = (await run("arrays")) as Tensors & { bytes: Uint8Array };
    const { bytes, ...rest } = tensors;
    const described = Object.entries(rest).map(([name, { dims, type, data }]) => [
      name,
      dims,
      type,
      data.constructor.name,
      Array.from(data, String),
    ]);
    return [
      await run("plain"),
      await run("floats"),
      [...described, Array.from(bytes)],
      await run("ab", { count: 2 }),
    ];
  });

  expect(plain).toEqual({ text: "é🙂", list: [1, 2.5, null, true], nested: { deep: [{ score: 0.5 }] } });
  expect(floats).toEqual([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, Number.NaN, 1.5]);
  expect(arrays).toEqual([
    ["float32", [2, 3], "float32", "Float32Array", ["0", "1", "2", "3", "4", "5"]],
    ["int64", [2], "int64", "BigInt64Array", ["4611686018427387904", "-1"]],
    ["float16", [1], "float16", "Uint16Array", ["15360"]],
    ["bool", [2], "bool", "Uint8Array", ["1", "0"]],
    ["strings", [2], "string", "Array", ["a", "ß"]],
    ["empty", [0, 4], "int8", "Int8Array", []],
    [1, 2],
  ]);
  expect(options).toBe("abab");
});

test("a failing task and an odd result are errors, and the engine goes on", async ({ scriptPage: page }) => {
  const outcomes = await page.evaluate(async () => {
    const engine = await pywebml.createEngine({ taskName: "zoo" });
    const outcomes: string[] = [];
    for (const kind of ["fails", "odd", "fine"]) {
      outcomes.push(
        await engine
          .run({ args: [kind], options: { count: 1 } })
          .then(String, (error: Error) => `${error.name}: ${error.message}`),
      );
    }
    return outcomes;
  });
  expect(outcomes[0]).toMatch(/^PywebmlError: .*ValueError: the task's own fault/);
  expect(outcomes[1]).toMatch(/^PywebmlError: .*object/);
  expect(outcomes[2]).toBe("fine");
});

test("a streaming task gives its pieces one by one and can be left early", async ({ scriptPage: page }) => {
  const [all, early, aborted, wrong] = await page.evaluate(async () => {
    const engine = await pywebml.createEngine({ taskName: "counter" });
    const all: unknown[] = [];
    for await (const chunk of engine.runWithGenerator({ args: [4] })) {
      all.push(chunk);
    }
    let early = 0;
    for await (const _ of engine.runWithGenerator({ args: [1000] })) {
      early += 1;
      if (early === 3) {
        break;
      }
    }
    const controller = new AbortController();
    let aborted = "not aborted";
    try {
      for await (const _ of engine.runWithGenerator({ args: [100_000] }, { signal: controller.signal })) {
        controller.abort();
      }
    } catch (error) {
      aborted = (error as Error).name;
    }
    const zoo = await pywebml.createEngine({ taskName: "zoo" });
    const wrong = await zoo
      .runWithGenerator({ args: ["x"] })
      .next()
      .then(String, (error: Error) => error.name);
    return [all, early, aborted, wrong] as const;
  });
  expect(all).toEqual([0, 1, 2, 3].map((number) => ({ number })));
  expect([early, aborted, wrong]).toEqual([3, "AbortError", "TaskError"]);
});

test("bad registrations and bad calls are named", async ({ scriptPage: page }) => {
  const names = await page.evaluate(async () => {
    const engine = await pywebml.createEngine({ taskName: "zoo" });
    const calls: (() => unknown)[] = [
      () => pywebml.registerTask({ name: "other", source: "x = 1" }),
      () => pywebml.registerTask({ name: "broken", source: "def" }),
      () => pywebml.registerTask({ name: "both", source: "", url: "/x.py" }),
      () => pywebml.registerTask({ name: "missing", url: "/nothing.py" }),
      () => pywebml.models.files({ models: "x" } as object),
      () => pywebml.models.delete({}),
      () => pywebml.settings.get("" as string),
      () => engine.run({ args: "x" as unknown as unknown[] }),
      () => engine.run({ args: ["x"], options: 5 as unknown as Record<string, unknown> }),
      () => pywebml.configure({ hubRootUrl: "/elsewhere/" }),
      () => pywebml.configure({ hubRoot: "/x/" } as object),
    ];
    const names: string[] = [];
    for (const call of calls) {
      try {
        await call();
        names.push("no error");
      } catch (error) {
        names.push((error as Error).name);
      }
    }
    return names;
  });
  expect(names).toEqual([
    "TaskError",
    "TaskError",
    "OptionsError",
    "TaskError",
    "OptionsError",
    "OptionsError",
    "OptionsError",
    "OptionsError",
    "OptionsError",
    "OptionsError",
    "OptionsError",
  ]);
});

test("settings can be read and synchronised, and packages of the lock file loaded", async ({
  page,
  server,
  foreign,
}) => {
  await server.reset();
  await page.goto(`${server.url}/pages/script.html`);
  const [records, changed, regex] = await page.evaluate(async () => {
    pywebml.configure({ packages: ["regex"] });
    const records = await pywebml.settings.get("ml-onnx-runtime");
    const changed = await pywebml.settings.sync();
    const source = `
import pywebml, regex
@pywebml.task("letters")
async def letters(context, text):
    return regex.findall(r"\\p{L}", text)
`;
    await pywebml.registerTask({ name: "letters", source });
    const engine = await pywebml.createEngine({ taskName: "letters" });
    return [records, changed, await engine.run({ args: ["1é2ß"] })] as const;
  });
  expect(records).toMatchObject([{ name: "ort-wasm-simd-threaded.wasm", version: "1.30.0" }]);
  expect(changed.updated).toEqual([]);
  expect(regex).toEqual(["é", "ß"]);
  expect(foreign).toEqual([]);
});

test("a page is told when a sync has changed settings, until it stops listening", async ({
  scriptPage: page,
}) => {
  const [heard, afterwards] = await page.evaluate(async () => {
    // Without the package's records, so that the first sync brings news.
    pywebml.shutdown();
    pywebml.configure({ settingsServer: "/v1/", allowUnsignedSettings: true });
    const changes: { collection: string; created: unknown[] }[] = [];
    const stop = pywebml.settings.onSync((change) => changes.push(change));
    await pywebml.settings.get("ml-inference-options");
    await pywebml.settings.sync("ml-inference-options");
    const heard = changes.map(({ collection, created }) => [collection, created.length]);
    stop();
    await pywebml.settings.sync("ml-onnx-runtime");
    return [heard, changes.length] as const;
  });
  expect(heard).toEqual([["ml-inference-options", 1]]);
  expect(afterwards).toBe(1);
});
