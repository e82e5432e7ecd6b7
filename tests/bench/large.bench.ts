/** A model of 2.5 GB, beyond what one ONNX file holds: converted with external data, and loaded in Chromium. */

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "@playwright/test";
import { Server } from "../browser/fixtures.ts";

const FOLDER = "build/bench/large";

interface Expected {
  text: string;
  embedding: number[];
}

test("a model of 2.5 GB is converted, stored and run", async ({ playwright, launchOptions }) => {
  test.setTimeout(3_600_000);
  execFileSync(".venv/bin/python", ["-m", "tests.bench.make_large"], { stdio: "inherit" });
  const expected = JSON.parse(readFileSync(`${FOLDER}/expected.json`, "utf8")) as Expected;
  const server = await Server.start("--mount", `/large/=${FOLDER}/hub`);
  const profile = mkdtempSync(join(tmpdir(), "pywebml-large-"));
  // A profile on disk: without one, a browser stores in memory.
  const context = await playwright.chromium.launchPersistentContext(profile, launchOptions);
  try {
    const page = await context.newPage();
    await page.goto(`${server.url}/pages/script.html`);
    const { seconds, total, embedding } = await page.evaluate(async (text) => {
      pywebml.configure({ hubRootUrl: new URL("/large/", location.href).href });
      const options = { taskName: "feature-extraction", modelId: "bench/large", dtype: "fp32" };
      const { total } = await pywebml.models.plan(options);
      const times: number[] = [performance.now()];
      await pywebml.models.prefetch(options);
      times.push(performance.now());
      const engine = await pywebml.createEngine(options);
      times.push(performance.now());
      const result = (await engine.run({ args: [text], options: { pooling: "mean" } })) as {
        data: Float32Array;
      };
      times.push(performance.now());
      await engine.terminate();
      const seconds = times.slice(1).map((time, index) => (time - (times[index] as number)) / 1000);
      return { seconds, total, embedding: Array.from(result.data) };
    }, expected.text);
    const [stored, loaded, ran] = seconds.map((value) => value.toFixed(1));
    console.log(
      `${(total / 1e9).toFixed(2)} GB: stored in ${stored} s, loaded in ${loaded} s, first run ${ran} s`,
    );
    const error = Math.max(
      ...embedding.map((value, index) => Math.abs(value - (expected.embedding[index] as number))),
    );
    console.log(`largest error against PyTorch: ${error.toExponential(1)}`);
    expect(embedding.length).toBe(expected.embedding.length);
    expect(error).toBeLessThan(1e-4);
  } finally {
    await context.close();
    server.stop();
    rmSync(profile, { recursive: true, force: true });
  }
});
