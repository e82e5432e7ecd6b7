import { defineConfig } from "@playwright/test";
import base from "../../playwright.config.ts";

const { globalSetup: _, ...shared } = base;

/** Figures to read, not to pass or fail: `./build.sh bench [NAME]`. */
export default defineConfig({
  ...shared,
  testDir: ".",
  testMatch: "*.bench.ts",
  outputDir: "../../test-results",
  workers: 1,
  reporter: "list",
  timeout: 300_000,
});
