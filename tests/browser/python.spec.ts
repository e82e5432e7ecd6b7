/** The second way in: plain Pyodide on a page's main thread, our wheel by micropip; and the platform contracts. */

import { python, runContract, startPython } from "./contracts.ts";
import { expect, test } from "./fixtures.ts";
import { startKinto } from "./kinto.ts";

test("micropip installs the wheel and create_engine works with assets_base", async ({
  page,
  server,
  foreign,
}) => {
  await startPython(page, server.url);
  const shape = await python(
    page,
    `
import pywebml
pywebml.configure(assets_base="/")
engine = await pywebml.create_engine(task_name="feature-extraction")
vectors = await engine.run(["The main thread is free.", "Le fil principal est libre."], pooling="mean", normalize=True)
assert type(vectors).__module__ == "numpy", type(vectors)
await engine.terminate()
str((vectors.shape, str(vectors.dtype)))
`,
  );
  expect(shape).toBe("((2, 384), 'float32')");
  expect(foreign).toEqual([]);
});

test("the JavaScript inside the wheel is enough", async ({ page, server, foreign }) => {
  await startPython(page, server.url);
  const result = await python(
    page,
    `
import pywebml
pywebml.configure(settings_server="/v1/", hub_root_url="/hub/")
async with await pywebml.pipeline("feature-extraction", num_threads=2) as pipe:
    result = await pipe("From the wheel.", pooling="cls")
str(result.shape)
`,
  );
  expect(result).toBe("(1, 384)");
  expect(foreign).toEqual([]);
});

test("without any configuration the error says what to configure", async ({ page, server }) => {
  await startPython(page, server.url);
  const message = await python(
    page,
    `
import pywebml
try:
    await pywebml.create_engine(task_name="feature-extraction")
    message = "created"
except pywebml.errors.PywebmlError as error:
    message = f"{type(error).__name__}: {error}"
message
`,
  );
  expect(message).toMatch(/^OptionsError: .*configure\(/);
});

for (const contract of ["store", "session"]) {
  test(`the ${contract} contract holds on the browser platform`, async ({ page, server }) => {
    test.setTimeout(180_000);
    await startPython(page, server.url);
    expect(await runContract(page, `run_${contract}_contract()`)).toBe("");
  });
}

test("the settings client holds its contract against a Kinto server on another origin", async ({
  page,
  server,
}) => {
  test.setTimeout(240_000);
  const kinto = await startKinto();
  try {
    await startPython(page, server.url);
    expect(await runContract(page, `run_settings_contract(${JSON.stringify(kinto.line)})`)).toBe("");
  } finally {
    kinto.stop();
  }
});
