/** Plain Pyodide on a page's main thread, and the contracts of `tests/contract` in it. */

import { readdirSync } from "node:fs";
import type { Page } from "@playwright/test";

interface Python {
  runPythonAsync(code: string): Promise<unknown>;
  unpackArchive(bytes: ArrayBuffer, format: string): void;
}

const wheel = () => readdirSync("dist/wheels").find((name) => name.endsWith(".whl")) ?? "";

export async function startPython(page: Page, url: string): Promise<void> {
  await page.goto(`${url}/pages/pyodide.html`);
  await page.waitForFunction(() => "startPython" in globalThis);
  await page.evaluate(async (name) => {
    const scope = globalThis as unknown as { wheelName: string; startPython(): Promise<void> };
    scope.wheelName = name;
    await scope.startPython();
  }, wheel());
}

export function python(page: Page, code: string): Promise<unknown> {
  return page.evaluate(async (code) => {
    const { pyodide } = globalThis as unknown as { pyodide: Python };
    try {
      return await pyodide.runPythonAsync(code);
    } catch (error) {
      throw new Error((error as Error).message);
    }
  }, code);
}

/** Runs one of `tests/contract/run_in_browser.py` in the page's Python; an empty text means that all of it holds. */
export function runContract(page: Page, call: string): Promise<unknown> {
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
    "contract/download_contract.py",
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
