/** The three progress bars: Python, runtime, model. */

import { byId, find } from "./dom.ts";
import { bytes } from "./format.ts";
import type { ProgressEvent } from "./runtime.ts";

type StepState = "waiting" | "busy" | "done" | "failed";

interface Transfer {
  loaded: number;
  total: number;
  cached: boolean;
  finished: boolean;
}

/** One labelled bar. It is drawn at most once per frame, however many events come. */
class Step {
  #state: StepState = "waiting";
  #percent: number | undefined = 0;
  #detail = "";
  #planned = false;
  readonly #root: HTMLElement;

  constructor(id: string, detail: string) {
    this.#root = byId(id);
    this.set("waiting", 0, detail);
  }

  get state(): StepState {
    return this.#state;
  }

  /** `percent` undefined: it goes on, nobody knows how long. */
  set(state: StepState, percent: number | undefined, detail: string): void {
    this.#state = state;
    this.#percent = percent;
    this.#detail = detail;
    if (!this.#planned) {
      this.#planned = true;
      requestAnimationFrame(() => this.#draw());
    }
  }

  interrupt(state: StepState, detail: string): void {
    if (this.#state === "busy") {
      this.set(state, state === "waiting" ? 0 : (this.#percent ?? 0), detail);
    }
  }

  #draw(): void {
    this.#planned = false;
    this.#root.dataset.state = this.#state;
    find(this.#root, ".detail").textContent = this.#detail;
    const bar = find<HTMLProgressElement>(this.#root, "progress");
    if (this.#percent === undefined) {
      bar.removeAttribute("value");
    } else {
      bar.value = this.#percent;
    }
  }
}

/** The files of one step, added up. */
class Files {
  readonly #transfers = new Map<string, Transfer>();
  readonly #step: Step;
  readonly #isMain: (event: ProgressEvent) => boolean;
  #hasMain = false;

  /** `isMain` tells the file that makes up most of the bytes: until it is seen, a share of the sum would mislead. */
  constructor(step: Step, isMain: (event: ProgressEvent) => boolean) {
    this.#step = step;
    this.#isMain = isMain;
  }

  clear(): void {
    this.#transfers.clear();
    this.#hasMain = false;
  }

  add(event: ProgressEvent): void {
    const finished = event.statusText === "done";
    if (finished && !event.ok) {
      this.#step.set("failed", this.#percent() ?? 0, "Failed");
      return;
    }
    this.#hasMain ||= this.#isMain(event);
    this.#transfers.set(event.id, {
      loaded: event.totalLoaded,
      total: event.total,
      cached: event.type === "loading_from_cache",
      finished,
    });
    if (this.#step.state !== "failed") {
      this.#step.set("busy", this.#percent(), this.#describe());
    }
  }

  /** All files that were announced have arrived. */
  get complete(): boolean {
    return this.#hasMain && [...this.#transfers.values()].every(({ finished }) => finished);
  }

  /** All files are there and in use. */
  finish(): void {
    if (this.#transfers.size > 0) {
      this.#step.set("done", 100, this.#describe());
    }
  }

  #percent(): number | undefined {
    const all = [...this.#transfers.values()];
    if (!this.#hasMain || all.some(({ total, finished }) => total === 0 && !finished)) {
      return undefined;
    }
    const total = sum(all, (transfer) => transfer.total);
    return total === 0 ? 100 : (100 * sum(all, ({ loaded }) => loaded)) / total;
  }

  #describe(): string {
    const all = [...this.#transfers.values()];
    const loaded = sum(all, (transfer) => transfer.loaded);
    const total = sum(all, (transfer) => transfer.total);
    const fetched = all.filter((transfer) => !transfer.cached);
    const whole = this.#hasMain && all.every((transfer) => transfer.finished);
    if (fetched.length === 0) {
      return loaded === 0 ? "from this browser's storage" : `${bytes(loaded)} from this browser's storage`;
    }
    if (whole && fetched.length === all.length) {
      return `${bytes(loaded)} downloaded`;
    }
    if (whole) {
      const part = sum(fetched, (transfer) => transfer.loaded);
      return `${bytes(part)} downloaded, ${bytes(loaded - part)} from this browser's storage`;
    }
    if (loaded === 0) {
      return "Connecting";
    }
    return total > loaded ? `${bytes(loaded)} of ${bytes(total)}` : `${bytes(loaded)} so far`;
  }
}

/** Shows what a start and a `createEngine` report. */
export class ProgressPanel {
  readonly #python = new Step("progress-python", "Not started");
  readonly #runtime = new Step("progress-runtime", "Loads with the first model");
  readonly #model = new Step("progress-model", "Loads when you press Embed");
  readonly #runtimeFiles = new Files(this.#runtime, () => true);
  readonly #modelFiles = new Files(this.#model, (event) => event.id.endsWith(".onnx"));

  /** Runtime and model are about to load anew. */
  begin(): void {
    this.#runtimeFiles.clear();
    this.#modelFiles.clear();
    this.#runtime.set("busy", undefined, "Looking for it");
    this.#model.set("busy", undefined, "Looking for its files");
  }

  readonly handle = (event: ProgressEvent): void => {
    if (event.type === "starting") {
      const done = event.statusText === "done";
      const step = String(event.metadata.step ?? "");
      // The first step is the longest, and nothing is known about how far it is.
      this.#python.set(done ? "done" : "busy", event.progress || undefined, done ? "Ready" : step);
    } else if (event.type !== "running_inference") {
      const isRuntime = event.id.endsWith(".wasm");
      (isRuntime ? this.#runtimeFiles : this.#modelFiles).add(event);
      if (isRuntime && this.#runtimeFiles.complete) {
        this.#runtimeFiles.finish();
      }
    }
  };

  pythonReady(): void {
    this.#python.set("done", 100, "Ready");
  }

  /** The engine is there. */
  finish(): void {
    this.#runtimeFiles.finish();
    this.#modelFiles.finish();
    this.#runtime.interrupt("done", "Ready");
    this.#model.interrupt("done", "Ready");
  }

  pythonFailed(): void {
    this.#python.set("failed", 100, "Failed");
  }

  /** Stopped by the person, or by an error. */
  interrupt(failed: boolean): void {
    const [state, detail] = failed
      ? (["failed", "Not finished"] as const)
      : (["waiting", "Stopped"] as const);
    this.#runtime.interrupt(state, detail);
    this.#model.interrupt(state, detail);
  }
}

function sum<T>(items: T[], value: (item: T) => number): number {
  return items.reduce((total, item) => total + value(item), 0);
}
