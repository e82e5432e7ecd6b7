/** The page's engines: one per choice of options, kept until the person ends it. */

import { byId, cardRow, cardTable, create, find } from "./dom.ts";
import type { Engine, EngineInfo, PipelineOptions, ProgressEvent, Runtime } from "./runtime.ts";
import type { Reports } from "./storage.ts";

const COLUMNS = ["Engine", "Model", "Revision", "Precision", "Threads", "Status", ""];
const STATUS: Record<EngineInfo["status"], string> = { loading: "Loading", ready: "Ready", closed: "Closed" };

const REFRESH_MS = 1000;

export class Engines {
  readonly #runtime: Runtime;
  readonly #reports: Reports;
  readonly #created = new Map<string, Engine>();
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(runtime: Runtime, reports: Reports) {
    this.#runtime = runtime;
    this.#reports = reports;
  }

  /** The engine with these options, if it lives. */
  get(options: PipelineOptions): Engine | undefined {
    const engine = this.#created.get(keyOf(options));
    return engine?.status === "ready" ? engine : undefined;
  }

  async create(
    options: PipelineOptions,
    onProgress: (event: ProgressEvent) => void,
    signal: AbortSignal,
  ): Promise<Engine> {
    let listed = false;
    const watch = (event: ProgressEvent) => {
      // With the first file the engine is on its list, as loading.
      if (!listed && event.type !== "starting") {
        listed = true;
        void this.refresh();
      }
      onProgress(event);
    };
    try {
      const engine = await this.#runtime.createEngine(options, watch, signal);
      this.#created.set(keyOf(options), engine);
      return engine;
    } finally {
      void this.refresh();
    }
  }

  async refresh(): Promise<void> {
    clearTimeout(this.#timer);
    try {
      const engines = await this.#runtime.engines.list();
      // Nobody reports how a loading engine ends: a stopped one takes a moment to go.
      if (engines.some(({ status }) => status === "loading")) {
        clearTimeout(this.#timer);
        this.#timer = setTimeout(() => this.refresh(), REFRESH_MS);
      }
      const rows = engines.map((engine) => this.#row(engine));
      find(byId("engines"), ".content").replaceChildren(
        rows.length === 0
          ? create("p", { class: "empty" }, "None yet. Embed creates one.")
          : cardTable("Engines", COLUMNS, [create("tbody", { role: "rowgroup" }, ...rows)]),
      );
    } catch (error) {
      this.#reports.error(error, () => this.refresh());
    }
  }

  #row({ engineId, status, options }: EngineInfo): HTMLTableRowElement {
    const engine = [...this.#created.values()].find((created) => created.engineId === engineId);
    const end = () => void this.#terminate(engineId);
    const action =
      engine === undefined
        ? ""
        : create(
            "button",
            { type: "button", "aria-label": `Terminate ${engineId}`, click: end },
            "Terminate",
          );
    return cardRow(COLUMNS, [
      create("span", { class: "id" }, engineId),
      create("span", { class: "id" }, options.modelId ?? "–"),
      create("span", { class: "id" }, options.modelRevision ?? "–"),
      typeof options.dtype === "object" ? JSON.stringify(options.dtype) : (options.dtype ?? "–"),
      options.numThreads ? String(options.numThreads) : "auto",
      create("span", { class: "badge", "data-status": status }, STATUS[status]),
      action,
    ]);
  }

  async #terminate(engineId: string): Promise<void> {
    const found = [...this.#created].find(([, engine]) => engine.engineId === engineId);
    if (found === undefined) {
      return;
    }
    const [key, engine] = found;
    try {
      await engine.terminate();
      this.#created.delete(key);
      this.#reports.status(`Terminated ${engineId}.`);
      await this.refresh();
      byId("engines-title").focus();
    } catch (error) {
      this.#reports.error(error);
    }
  }
}

function keyOf({ modelId, modelRevision, dtype, numThreads }: PipelineOptions): string {
  return JSON.stringify([modelId, modelRevision, dtype, numThreads]);
}
