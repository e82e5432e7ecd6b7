/**
 * `./build.sh demo --check`: one real run of the demo in headless Chromium.
 *
 *     node web/build/check.mjs PYTHON PORT
 *
 * Serves dist/, creates an engine through the script tag's API, embeds sentences, prints their similarities, the time of
 * each phase and the cost of a warm run over the runtime's own, and opens the demo page. Ends with 0, or with 1 and the
 * reason. CHROMIUM_PATH names the browser.
 */
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { chromium } from "@playwright/test";

const ENGINE = {
  taskName: "feature-extraction",
  modelId: "sentence-transformers/all-MiniLM-L6-v2",
  modelRevision: "v1.0.0",
  dtype: "fp32",
};
const SENTENCES = [
  "A man is eating food.",
  "Someone has a meal.",
  "A cheetah chases its prey.",
  "Une femme joue du violon.",
  "A woman is playing the violin.",
];
const DIMENSIONS = 384;
// Pairs by index: the first says nearly the same, the second has nothing in common.
const ALIKE = [0, 1];
const UNLIKE = [0, 4];
const WARM_UP = 10;
const RUNS = 60;
const OVERHEAD_GOAL_MS = 2;
const LIMIT_MS = 180_000;

const CHROMIUM_FLAGS = [
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--no-first-run",
  "--disable-default-apps",
  "--disable-domain-reliability",
  "--disable-client-side-phishing-detection",
  ...(process.getuid?.() === 0 ? ["--no-sandbox"] : []),
];

/** A reason to fail that needs no stack. */
class CheckError extends Error {}

function serve(python, port) {
  const server = spawn(python, ["web/build/serve.py", "dist", "--port", port], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const address = new Promise((resolve, reject) => {
    createInterface({ input: server.stdout }).on("line", (line) => {
      const found = /^Serving .* at (http\S+)$/.exec(line);
      if (found !== null) resolve(found[1]);
    });
    server.once("exit", (code) => reject(new CheckError(`the server ended with status ${code}`)));
    server.once("error", (error) => reject(new CheckError(`the server did not start: ${error.message}`)));
  });
  return { server, address };
}

/** Collects everything that must not happen on a page. */
function watch(page, origin) {
  const problems = [];
  const requests = [];
  // Browsers ask for this one on their own.
  const uninvited = (url) => new URL(url).pathname === "/favicon.ico";
  page.on("console", (message) => {
    if (message.type() === "error" && !uninvited(message.location().url || origin))
      problems.push(`console: ${message.text()} (${message.location().url})`);
  });
  page.on("pageerror", (error) => problems.push(`uncaught: ${error.message}`));
  page.on("request", (request) => {
    const url = new URL(request.url());
    requests.push(url.href);
    if (url.protocol.startsWith("http") && url.origin !== origin)
      problems.push(`request to another origin: ${url}`);
  });
  page.on("requestfailed", (request) =>
    problems.push(`request failed: ${request.url()}: ${request.failure()?.errorText}`),
  );
  page.on("response", (response) => {
    if (response.status() >= 400 && !uninvited(response.url()))
      problems.push(`HTTP ${response.status()}: ${response.url()}`);
  });
  return { problems, requests };
}

/** Whether an address is one of those that come from IndexedDB on the second visit. */
const isStoredFile = (url) => /\/hub\/|\/attachments\//.test(url);

const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];

function within(promise, what) {
  let timer;
  const limit = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new CheckError(`${what}: no end after ${LIMIT_MS / 1000} s`)), LIMIT_MS);
  });
  return Promise.race([promise, limit]).finally(() => clearTimeout(timer));
}

/** Runs in the page. */
async function createEngine({ options, origin }) {
  const { pywebml } = globalThis;
  if (pywebml === undefined) throw new Error("pywebml.js did not define the global pywebml");
  const started = performance.now();
  const events = [];
  pywebml.configure({ settingsServer: `${origin}/v1`, hubRootUrl: `${origin}/hub` });
  globalThis.checkEngine = await pywebml.createEngine(options, (event) => {
    events.push({ at: performance.now() - started, event });
  });
  const phases = {};
  let bytes = 0;
  for (const { at, event } of events) {
    phases[event.type] ??= { first: at, last: at };
    phases[event.type].last = at;
    if (event.type === "downloading") bytes += event.currentLoaded ?? 0;
  }
  return { total: performance.now() - started, phases, bytes, isolated: globalThis.crossOriginIsolated };
}

/** Runs in the page. */
async function embed(sentences) {
  const started = performance.now();
  const result = await globalThis.checkEngine.run({
    args: [sentences],
    options: { pooling: "mean", normalize: true },
  });
  const ms = performance.now() - started;
  if (!Array.isArray(result?.dims) || !ArrayBuffer.isView(result.data))
    throw new Error(`run gave no tensor {dims, type, data} but ${JSON.stringify(result)?.slice(0, 200)}`);
  return { ms, dims: result.dims, type: result.type, data: Array.from(result.data) };
}

/** Runs in the page. */
async function measure({ sentence, warmUp, runs }) {
  const engine = globalThis.checkEngine;
  const times = [];
  for (let index = 0; index < warmUp + runs; index += 1) {
    const started = performance.now();
    await engine.run({ args: [sentence], options: { pooling: "mean", normalize: true } });
    const whole = performance.now() - started;
    const inference = engine.metrics?.inference;
    if (typeof inference !== "number")
      throw new Error(`engine.metrics.inference is ${inference}, not a number of ms`);
    if (index >= warmUp) times.push([whole, inference, engine.metrics.total]);
  }
  return times;
}

function checkEmbeddings({ dims, type, data }) {
  const shape = `${type} [${dims}]`;
  if (type !== "float32" || dims.length !== 2 || dims[0] !== SENTENCES.length || dims[1] !== DIMENSIONS)
    throw new CheckError(`the embeddings are ${shape}, expected float32 [${SENTENCES.length},${DIMENSIONS}]`);
  const rows = SENTENCES.map((_, row) => data.slice(row * DIMENSIONS, (row + 1) * DIMENSIONS));
  const similarity = rows.map((a) =>
    rows.map((b) => a.reduce((sum, value, index) => sum + value * b[index], 0)),
  );
  similarity.forEach((row, index) => {
    if (!(Math.abs(row[index] - 1) < 1e-4))
      throw new CheckError(`embedding ${index} is not of length 1: ${row[index]}`);
  });
  const [alike, unlike] = [ALIKE, UNLIKE].map(([a, b]) => similarity[a][b]);
  if (!(alike > 0.5 && unlike < 0.3))
    throw new CheckError(
      `similar sentences score ${alike}, different ones ${unlike}: that is not this model`,
    );
  return similarity;
}

function printSimilarity(similarity) {
  const width = Math.max(...SENTENCES.map((sentence) => sentence.length)) + 5;
  console.log(`\n${"".padEnd(width)}${SENTENCES.map((_, index) => `(${index + 1})`.padStart(8)).join("")}`);
  similarity.forEach((row, index) => {
    const name = `(${index + 1}) ${SENTENCES[index]}`.padEnd(width);
    console.log(name + row.map((value) => value.toFixed(3).padStart(8)).join(""));
  });
}

const seconds = (ms) => `${(ms / 1000).toFixed(2)} s`.padStart(10);

/** An empty page with the server's own headers, so that nothing but the script tag is at work. */
async function openEmpty(page, origin) {
  const body =
    '<!doctype html><title>check</title><link rel="icon" href="data:,"><script src="/pywebml.js"></script>';
  await page.route(`${origin}/index.html`, async (route) => {
    const response = await route.fetch();
    await route.fulfill({
      response,
      body,
      headers: { ...response.headers(), "content-length": `${body.length}` },
    });
  });
  await page.goto(`${origin}/index.html`);
}

async function checkApi(browser, base) {
  const { origin } = new URL(base);
  const context = await browser.newContext();
  const page = await context.newPage();
  const { problems, requests } = watch(page, origin);
  try {
    await openEmpty(page, origin);
    const engine = await within(
      page.evaluate(createEngine, { options: ENGINE, origin }),
      "creating the engine",
    );
    const result = await within(page.evaluate(embed, SENTENCES), "embedding");
    printSimilarity(checkEmbeddings(result));

    console.log("\nphase                                    time");
    console.log(`create the engine, first visit     ${seconds(engine.total)}`);
    for (const [type, { first, last }] of Object.entries(engine.phases)) {
      const size = type === "downloading" ? ` (${(engine.bytes / 1e6).toFixed(1)} MB)` : "";
      console.log(
        `  ${type.padEnd(33)}${seconds(last - first)}, from ${(first / 1000).toFixed(2)} s on${size}`,
      );
    }
    console.log(`first run, ${SENTENCES.length} sentences             ${seconds(result.ms)}`);
    console.log(`cross-origin isolated (threads): ${engine.isolated ? "yes" : "no"}`);

    const argument = { sentence: SENTENCES[0], warmUp: WARM_UP, runs: RUNS };
    const times = await within(page.evaluate(measure, argument), "the warm runs");
    const whole = median(times.map(([run]) => run));
    const bare = median(times.map(([, inference]) => inference));
    const python = median(times.map(([, , total]) => total));
    const overhead = median(times.map(([run, inference]) => run - inference));
    console.log(`\nwarm run of one sentence, median of ${RUNS}:`);
    console.log(`  in the page                 ${whole.toFixed(2).padStart(7)} ms`);
    console.log(`  in Python, runtime included ${python.toFixed(2).padStart(7)} ms`);
    console.log(`  the runtime's own           ${bare.toFixed(2).padStart(7)} ms (same feeds, same worker)`);
    console.log(
      `  overhead                    ${overhead.toFixed(2).padStart(7)} ms` +
        ` (goal: under ${OVERHEAD_GOAL_MS} ms${overhead < OVERHEAD_GOAL_MS ? "" : "; MISSED"})`,
    );

    await within(
      page.evaluate(() => globalThis.checkEngine.terminate()),
      "terminating the engine",
    );
    if (problems.length > 0) throw new CheckError(`the page had problems:\n  ${problems.join("\n  ")}`);

    // The same browser again: runtime and model come from IndexedDB.
    const again = await context.newPage();
    const second = watch(again, origin);
    await openEmpty(again, origin);
    const cached = await within(
      again.evaluate(createEngine, { options: ENGINE, origin }),
      "creating the engine again",
    );
    console.log(`create the engine, second visit    ${seconds(cached.total)}`);
    if (!requests.some(isStoredFile))
      throw new CheckError("the first visit asked for no model file: nothing is proved");
    const files = second.requests.filter(isStoredFile);
    if (files.length > 0)
      throw new CheckError(`the second visit asked for stored files again:\n  ${files.join("\n  ")}`);
    if (second.problems.length > 0)
      throw new CheckError(`the second visit had problems:\n  ${second.problems.join("\n  ")}`);
  } catch (error) {
    if (problems.length > 0 && !`${error.message}`.includes(problems[0]))
      console.error(`Seen on the page before the failure:\n  ${problems.slice(0, 20).join("\n  ")}`);
    throw error;
  } finally {
    await context.close();
  }
}

async function checkPage(browser, base) {
  const context = await browser.newContext();
  try {
    const page = await context.newPage();
    const { problems } = watch(page, new URL(base).origin);
    await page.goto(`${base}inference/`, { waitUntil: "load" });
    await page.locator("h1").first().waitFor({ timeout: 10_000 });
    if (problems.length > 0) throw new CheckError(`the demo page had problems:\n  ${problems.join("\n  ")}`);
    console.log(`demo page: "${await page.title()}" opens`);
  } finally {
    await context.close();
  }
}

async function main() {
  const [python, port] = process.argv.slice(2);
  const { server, address } = serve(python, port);
  let browser;
  try {
    const base = await address;
    const executablePath = process.env.CHROMIUM_PATH;
    browser = await chromium.launch({ ...(executablePath && { executablePath }), args: CHROMIUM_FLAGS });
    console.log(`Checking ${base} in Chromium ${browser.version()}`);
    await checkApi(browser, base);
    await checkPage(browser, base);
    console.log("\nThe demo works.");
  } catch (error) {
    const reason = error instanceof CheckError ? error.message : (error.stack ?? String(error));
    console.error(`\nThe check failed: ${reason}`);
    process.exitCode = 1;
  } finally {
    server.removeAllListeners("exit");
    await browser?.close();
    server.kill();
  }
}

await main();
