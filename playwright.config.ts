import { defineConfig } from "@playwright/test";

const chromium = process.env.CHROMIUM_PATH;

/** A browser talks to its maker in the background; the tests count requests. */
const QUIET = [
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-default-apps",
  "--disable-domain-reliability",
  "--disable-sync",
  "--disable-client-side-phishing-detection",
  "--no-first-run",
  // Whatever is not on this machine does not exist, so a stray request fails at once.
  // `insecure.test` is this machine under a name that browsers do not take for a secure context.
  "--host-resolver-rules=MAP insecure.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
];

export default defineConfig({
  testDir: "tests/browser",
  testMatch: "*.spec.ts",
  globalSetup: "./tests/browser/global-setup.ts",
  outputDir: "test-results",
  // Each page runs an interpreter and a model; more of them at once than processors only slows all down.
  workers: 2,
  fullyParallel: false,
  timeout: 90_000,
  expect: { timeout: 30_000 },
  forbidOnly: process.env.CI !== undefined,
  reporter: [["list"], ["json", { outputFile: "build/playwright-report.json" }]],
  use: {
    browserName: "chromium",
    trace: "off",
    launchOptions: {
      ...(chromium === undefined ? {} : { executablePath: chromium }),
      args: process.getuid?.() === 0 ? [...QUIET, "--no-sandbox"] : QUIET,
    },
  },
});
