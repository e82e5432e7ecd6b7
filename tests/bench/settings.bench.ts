/** What the settings client costs in Chromium. */

import { runContract, startPython } from "../browser/contracts.ts";
import { test } from "../browser/fixtures.ts";
import { startKinto } from "../browser/kinto.ts";

test("verifying 200 records", async ({ page, server }) => {
  const kinto = await startKinto();
  try {
    await startPython(page, server.url);
    console.log(await runContract(page, `measure_settings(${JSON.stringify(kinto.line)})`));
  } finally {
    kinto.stop();
  }
});
