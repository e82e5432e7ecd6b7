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
  #whole: { loaded: number; total: number } | undefined;

  constructor(step: Step) {
    this.#step = step;
  }

  clear(): void {
    this.#transfers.clear();
    this.#whole = undefined;
  }

  /** An event of a single file. */
  add(event: ProgressEvent): void {
    const finished = event.statusText === "done";
    if (finished && !event.ok) {
      this.#step.set("failed", this.#percent() ?? 0, "Failed");
      return;
    }
    this.#transfers.set(event.id, {
      loaded: event.totalLoaded,
      total: event.total,
      cached: event.type === "loading_from_cache",
      finished,
    });
    this.#show();
  }

  /** What the files come to: only with this a share of it can be told. */
  expect(loaded: number, total: number): void {
    this.#whole = { loaded, total };
    this.#show();
  }

  get loaded(): number {
    return sum([...this.#transfers.values()], (transfer) => transfer.loaded);
  }

  /** Of the files that were announced; 0 while a size is unknown. */
  get total(): number {
    const all = [...this.#transfers.values()];
    return all.some(({ total }) => total === 0) ? 0 : sum(all, (transfer) => transfer.total);
  }

  /** All files are there and in use. */
  finish(): void {
    if (this.#transfers.size > 0) {
      this.#step.set("done", 100, this.#describe());
    }
  }

  #show(): void {
    if (this.#step.state !== "failed") {
      this.#step.set("busy", this.#percent(), this.#describe());
    }
  }

  #percent(): number | undefined {
    const { loaded, total } = this.#whole ?? { loaded: 0, total: 0 };
    return total === 0 ? undefined : (100 * Math.min(loaded, total)) / total;
  }

  #describe(): string {
    const all = [...this.#transfers.values()];
    const loaded = this.#whole?.loaded ?? this.loaded;
    const total = this.#whole?.total ?? 0;
    const fetched = all.filter((transfer) => !transfer.cached);
    const whole = all.every((transfer) => transfer.finished) && loaded >= total;
    if (fetched.length === 0) {
      return this.loaded === 0
        ? "from this browser's storage"
        : `${bytes(this.loaded)} from this browser's storage`;
    }
    if (whole) {
      const part = sum(fetched, (transfer) => transfer.loaded);
      const stored = this.loaded - part;
      // Of a model whose size was asked for, its smallest file is here already.
      return stored < this.loaded / 100
        ? `${bytes(this.loaded)} downloaded`
        : `${bytes(part)} downloaded, ${bytes(stored)} from this browser's storage`;
    }
    if (loaded <= 0) {
      return "Connecting";
    }
    return total > loaded ? `${bytes(loaded)} of ${bytes(total)}` : `${bytes(loaded)} so far`;
  }
}

/** Shows what a start, a `createEngine` and a `prefetch` report. */
export class ProgressPanel {
  readonly #python = new Step("progress-python", "Not started");
  readonly #runtime = new Step("progress-runtime", "Loads with the first model");
  readonly #model = new Step("progress-model", "Loads when you press Embed");
  readonly #runtimeFiles = new Files(this.#runtime);
  readonly #modelFiles = new Files(this.#model);

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
    } else if (event.type === "loading") {
      // All files together, of which the runtime has a bar of its own.
      const { loaded, total } = this.#runtimeFiles;
      if (event.ok && total > 0) {
        this.#modelFiles.expect(event.totalLoaded - loaded, event.total - total);
      }
    } else if (event.id.endsWith(".wasm")) {
      this.#runtimeFiles.add(event);
      const { loaded, total } = this.#runtimeFiles;
      this.#runtimeFiles.expect(loaded, total);
      if (event.statusText === "done" && event.ok) {
        this.#runtimeFiles.finish();
      }
    } else if (event.type !== "running_inference") {
      this.#modelFiles.add(event);
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
