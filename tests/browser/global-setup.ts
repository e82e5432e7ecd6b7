/** Makes what the browser tests compare with and load: reference embeddings, contract models, a broken model. */

import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";

export default function globalSetup(): void {
  if (!existsSync("dist/pywebml.mjs") || !existsSync("dist/hub")) {
    throw new Error("dist/ is not built; run ./build.sh build first.");
  }
  execFileSync(".venv/bin/python", ["-m", "tests.browser.make_fixtures"], { stdio: "inherit" });
}
