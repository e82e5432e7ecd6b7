/** The second way in: plain Pyodide on a page's main thread, our wheel by micropip; and the platform contracts. */

import { spawn } from "node:child_process";
import { readdirSync } from "node:fs";
import { createInterface } from "node:readline";
import type { Page } from "@playwright/test";
import { expect, test } from "./fixtures.ts";

interface Python {
  runPythonAsync(code: string): Promise<unknown>;
  unpackArchive(bytes: ArrayBuffer, format: string): void;
}

const wheel = () => readdirSync("dist/wheels").find((name) => name.endsWith(".whl")) ?? "";

async function startPython(page: Page, url: string): Promise<void> {
  await page.goto(`${url}/pages/pyodide.html`);
  await page.waitForFunction(() => "startPython" in globalThis);
  await page.evaluate(async (name) => {
    const scope = globalThis as unknown as { wheelName: string; startPython(): Promise<void> };
    scope.wheelName = name;
    await scope.startPython();
  }, wheel());
}

function python(page: Page, code: string): Promise<unknown> {
  return page.evaluate(async (code) => {
    const { pyodide } = globalThis as unknown as { pyodide: Python };
    try {
      return await pyodide.runPythonAsync(code);
    } catch (error) {
      throw new Error((error as Error).message);
    }
  }, code);
}

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

/** Runs one of `tests/contract/run_in_browser.py` in the page's Python; an empty text means that all of it holds. */
function runContract(page: Page, call: string): Promise<unknown> {
  return python(
    page,
    `
import sys
from pathlib import Path
from pyodide.http import pyfetch

root = Path("/home/contract")
for name in (
    "contract/expect.py",
    "contract/store_contract.py",
    "contract/session_contract.py",
    "contract/settings_contract.py",
    "contract/run_in_browser.py",
    "kinto/admin.py",
):
    file = root / "tests" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(await (await pyfetch(f"/tests/{name}")).string())
sys.path.insert(0, str(root))
from tests.contract import run_in_browser
"\\n".join(await run_in_browser.${call})
`,
  );
}

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
  const kinto = spawn(".venv/bin/python", ["-m", "tests.kinto.server"], {
    stdio: ["pipe", "pipe", "inherit"],
  });
  try {
    const line: string = await new Promise((resolve, reject) => {
      createInterface({ input: kinto.stdout }).once("line", resolve).once("close", reject);
    });
    await startPython(page, server.url);
    expect(await runContract(page, `run_settings_contract(${JSON.stringify(line)})`)).toBe("");
  } finally {
    kinto.kill();
  }
});
