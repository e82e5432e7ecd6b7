/** The page: starts Python, embeds sentences, shows how close they are. */

import { byId, isEnabled, setEnabled } from "./dom.ts";
import { Engines } from "./engines.ts";
import { hideError, isAbort, showError } from "./errors.ts";
import { Estimate } from "./estimate.ts";
import { fillFromAddress, readOptions, readSentences } from "./form.ts";
import { bytes, count, duration } from "./format.ts";
import { closestPair, showHeatmap, similarities, vectors } from "./heatmap.ts";
import { ProgressPanel } from "./progress.ts";
import { loadRuntime, type PipelineOptions, type Runtime } from "./runtime.ts";
import { StoredModels } from "./storage.ts";

const embedButton = byId<HTMLButtonElement>("embed");
const prefetchButton = byId<HTMLButtonElement>("prefetch");
const stopButton = byId<HTMLButtonElement>("stop");

/** A live region: what is said here is read out, so only milestones are. */
function status(text: string): void {
  byId("status").textContent = text;
}

/** On a phone the result lies below the form; on a wide screen it is in view already. */
function bringIntoView(element: HTMLElement): void {
  const { top } = element.getBoundingClientRect();
  if (top > innerHeight - 100) {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    element.scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
  }
}

class Page {
  readonly #runtime: Runtime;
  readonly #progress = new ProgressPanel();
  readonly #engines: Engines;
  readonly #models: StoredModels;
  readonly #estimate: Estimate;
  #work: AbortController | undefined;

  constructor(runtime: Runtime) {
    this.#runtime = runtime;
    const reports = { error: showError, status };
    this.#engines = new Engines(runtime, reports);
    this.#estimate = new Estimate(runtime);
    this.#models = new StoredModels(runtime, reports, () => void this.#estimate.refresh());
    byId("fact-version").textContent = runtime.version;

    byId("embed-form").addEventListener("submit", (event) => {
      event.preventDefault();
      void this.embed();
    });
    prefetchButton.addEventListener("click", () => void this.prefetch());
    stopButton.addEventListener("click", () => this.#work?.abort());
    byId("sentences").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        void this.embed();
      }
    });
  }

  /** Starts Python ahead of the first click, and lists what is stored. */
  async start(): Promise<void> {
    try {
      await this.#startPython();
      await Promise.all([this.#models.refresh(), this.#estimate.refresh()]);
    } catch (error) {
      showError(error, () => void this.start());
    }
  }

  async embed(): Promise<void> {
    if (!isEnabled(embedButton)) {
      return;
    }
    const sentences = readSentences();
    if (sentences === undefined) {
      return;
    }
    const options = readOptions();
    await this.#try(
      (signal) => this.#run(options, sentences, signal),
      () => void this.embed(),
    );
  }

  /** Stores everything that Embed would need. */
  async prefetch(): Promise<void> {
    if (!isEnabled(prefetchButton)) {
      return;
    }
    const options = readOptions();
    await this.#try(
      async (signal) => {
        this.#begin("Downloading…");
        const plan = await this.#runtime.models.prefetch(options, this.#progress.handle, signal);
        this.#progress.finish();
        status(plan.isCached ? "All of it was stored already." : `Stored: ${bytes(plan.total)}.`);
      },
      () => void this.prefetch(),
    );
  }

  /** Lets the person stop `work`, and shows how it failed. */
  async #try(work: (signal: AbortSignal) => Promise<void>, again: () => void): Promise<void> {
    hideError();
    this.#work = new AbortController();
    this.#setWorking(true);
    let isPythonThere = true;
    try {
      await work(this.#work.signal);
    } catch (error) {
      isPythonThere = !(error instanceof Error && error.name === "RuntimeStartError");
      this.#progress.interrupt(!isAbort(error));
      if (isAbort(error)) {
        status("Stopped.");
      } else {
        status("");
        showError(error, again);
      }
    } finally {
      this.#work = undefined;
      this.#setWorking(false);
      // Also what was stopped has left something. Without Python asking would only fail once more.
      if (isPythonThere) {
        void this.#models.refresh();
        void this.#estimate.refresh();
      }
    }
  }

  #setWorking(working: boolean): void {
    setEnabled(embedButton, !working);
    setEnabled(prefetchButton, !working);
    setEnabled(stopButton, working);
  }

  async #run(options: PipelineOptions, sentences: string[], signal: AbortSignal): Promise<void> {
    const engine = this.#engines.get(options) ?? (await this.#load(options, signal));
    status("Embedding…");
    const started = performance.now();
    const result = await engine.run(
      { args: [sentences], options: { pooling: "mean", normalize: true } },
      { signal },
    );
    const total = performance.now() - started;

    const rows = vectors(result, sentences.length);
    const matrix = similarities(rows);
    const facts: [string, string][] = [
      ["In all", duration(total)],
      ["In the runtime", engine.metrics === undefined ? "–" : duration(engine.metrics.inference)],
      ["Dimensions", String(rows[0]?.length ?? 0)],
    ];
    const closest = closestPair(matrix);
    if (closest !== undefined) {
      facts.push(["Closest pair", `${closest.a + 1} and ${closest.b + 1} (${closest.value.toFixed(2)})`]);
    }
    const { modelId, modelRevision, dtype } = engine.options;
    facts.push(["Model", `${modelId} ${modelRevision}, ${dtype}`]);
    showHeatmap(sentences, matrix, facts);
    bringIntoView(byId("heatmap"));
    status(`${count(sentences.length, "sentence", "sentences")} embedded in ${duration(total)}.`);
  }

  /** Does nothing when Python runs; starts it again when it has failed. */
  async #startPython(): Promise<void> {
    try {
      await this.#runtime.start(this.#progress.handle);
      this.#progress.pythonReady();
    } catch (error) {
      this.#progress.pythonFailed();
      throw error;
    }
  }

  async #load(options: PipelineOptions, signal: AbortSignal) {
    this.#begin("Getting ready…");
    const engine = await this.#engines.create(options, this.#progress.handle, signal);
    this.#progress.finish();
    return engine;
  }

  #begin(text: string): void {
    status(text);
    this.#progress.begin();
    // What needs Python fails with the same error, and that one is shown.
    this.#startPython().catch(() => undefined);
  }
}

async function main(): Promise<void> {
  fillFromAddress();
  byId("fact-threads").textContent = crossOriginIsolated
    ? `available (${count(navigator.hardwareConcurrency, "processor", "processors")})`
    : "one only: the server did not isolate this page";
  try {
    const page = new Page(await loadRuntime());
    document.documentElement.dataset.pywebml = "ready";
    await page.start();
  } catch (error) {
    showError(error, () => location.reload());
  }
}

void main();
