/**
 * all-MiniLM-L6-v2 at every level: size, error and cosine against PyTorch, latency in Chromium on one thread.
 *
 * Writes the table to README.md between its marks, or with BENCH_DRY=1 only prints it.
 */

import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import type { Page } from "@playwright/test";
import { MODEL, REVISION, Server, test } from "../browser/fixtures.ts";

const RUNS = Number(process.env.BENCH_RUNS ?? 20);
const WARM_UP = 3;
const TEXTS = [
  "The cat sits outside in the morning sun.",
  "A man is playing the guitar on a small stage.",
  "Machine learning models can run inside a web browser.",
  "The train to the coast leaves at half past seven.",
];
const BEGIN = "<!-- levels: written by ./build.sh bench levels -->";
const END = "<!-- levels end -->";

interface Level {
  dtype: string;
  summary: string;
  size: number;
  max_abs_error: number;
  max_rel_error: number;
  worst_cosine: number;
  /** Beyond the level's tolerance: `pywebml convert` would not write it. */
  refused: boolean;
}

interface Times {
  one: number[];
  four: number[];
}

function median(values: number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] ?? Number.NaN;
}

/** Milliseconds of runs, a batch of one text and of four in turn, in an engine that is gone afterwards. */
async function measure(page: Page, dtype: string): Promise<Times> {
  return page.evaluate(
    async ({ dtype, model, revision, texts, runs, warmUp }) => {
      const engine = await pywebml.createEngine({
        taskName: "feature-extraction",
        modelId: model,
        modelRevision: revision,
        dtype,
        numThreads: 1,
      });
      const once = async (args: string[]) => {
        const started = performance.now();
        await engine.run({ args: [args], options: { pooling: "mean", normalize: true } });
        return performance.now() - started;
      };
      const times: { one: number[]; four: number[] } = { one: [], four: [] };
      for (let run = -warmUp; run < runs; run++) {
        const [one, four] = [await once(texts.slice(0, 1)), await once(texts)];
        if (run >= 0) {
          times.one.push(one);
          times.four.push(four);
        }
      }
      await engine.terminate();
      await pywebml.models.delete({ model });
      return times;
    },
    { dtype, model: MODEL, revision: REVISION, texts: TEXTS, runs: RUNS, warmUp: WARM_UP },
  );
}

function tableOf(levels: Level[], times: Map<string, Times>): string {
  const rows = levels.map(({ dtype, summary, size, max_abs_error, worst_cosine, refused }) => {
    const { one, four } = times.get(dtype) ?? { one: [], four: [] };
    const cells = [
      `\`${dtype}\`${refused ? " (beyond its tolerance)" : ""}`,
      summary,
      `${(size / 1e6).toFixed(1)} MB`,
      max_abs_error.toPrecision(2),
      worst_cosine.toFixed(4),
      `${median(one).toFixed(1)} ms`,
      `${median(four).toFixed(1)} ms`,
    ];
    return `| ${cells.join(" | ")} |`;
  });
  return [
    "| Level | Weights | Size | Largest error | Worst cosine | One text | Four texts |",
    "| --- | --- | --- | --- | --- | --- | --- |",
    ...rows,
  ].join("\n");
}

function intoReadme(table: string, version: string): void {
  const text = readFileSync("README.md", "utf8");
  const [begin, end] = [text.indexOf(BEGIN), text.indexOf(END)];
  if (begin < 0 || end < begin) {
    throw new Error("README.md has lost the marks of the table.");
  }
  const date = new Date().toISOString().slice(0, 10);
  const caption =
    `Measured on ${date}, Chromium ${version}, one thread, median of ${RUNS} runs, tokenizing and pooling ` +
    "included; errors are those of the conversion's cases, against PyTorch.";
  writeFileSync(
    "README.md",
    `${text.slice(0, begin + BEGIN.length)}\n${table}\n\n${caption}\n${text.slice(end)}`,
  );
}

test("all-MiniLM-L6-v2 at every level", async ({ page, browser }) => {
  test.setTimeout(1_800_000);
  execFileSync(".venv/bin/python", ["-m", "tests.bench.make_levels"], { stdio: "inherit" });
  const levels = JSON.parse(readFileSync("build/bench/levels.json", "utf8")) as Level[];
  const server = await Server.start("--mount", "/levels/=build/bench/levels");
  try {
    await page.goto(`${server.url}/pages/script.html`);
    await page.evaluate(() => pywebml.configure({ hubRootUrl: new URL("/levels/", location.href).href }));
    const times = new Map<string, Times>();
    for (const { dtype } of levels) {
      times.set(dtype, await measure(page, dtype));
      console.log(`${dtype}: ${JSON.stringify(median(times.get(dtype)?.one ?? []))} ms for one text`);
    }
    const table = tableOf(levels, times);
    console.log(table);
    if (process.env.BENCH_DRY === undefined) {
      intoReadme(table, browser.version());
    }
  } finally {
    server.stop();
  }
});
