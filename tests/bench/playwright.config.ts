import { defineConfig } from "@playwright/test";
import base from "../../playwright.config.ts";

/** Figures to read, not to pass or fail: `./build.sh bench [NAME]`. */
export default defineConfig({
  ...base,
  testDir: ".",
  testMatch: "*.bench.ts",
  globalSetup: undefined,
  outputDir: "../../test-results",
  workers: 1,
  reporter: "list",
  timeout: 300_000,
});
