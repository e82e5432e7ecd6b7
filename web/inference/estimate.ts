/** How much would be downloaded for what is chosen in the form. */

import { byId } from "./dom.ts";
import { readOptions } from "./form.ts";
import { bytes } from "./format.ts";
import type { Plan, Runtime } from "./runtime.ts";

const CONTROLS = ["model", "revision", "dtype"];
/** After the last key, so that half a name is not asked for. */
const PAUSE_MS = 600;

export class Estimate {
  readonly #runtime: Runtime;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #asked = 0;

  constructor(runtime: Runtime) {
    this.#runtime = runtime;
    for (const id of CONTROLS) {
      byId(id).addEventListener("input", () => {
        this.#show("");
        this.#timer = setTimeout(() => this.refresh(), PAUSE_MS);
      });
    }
  }

  /** Asks anew, and is quiet when there is no answer: whoever presses a button hears why. */
  async refresh(): Promise<void> {
    clearTimeout(this.#timer);
    this.#asked += 1;
    const asked = this.#asked;
    const text = await this.#ask().catch(() => "");
    if (asked === this.#asked) {
      this.#show(text);
    }
  }

  async #ask(): Promise<string> {
    const options = readOptions();
    if (await this.#runtime.models.isCached(options)) {
      return describe(undefined);
    }
    return describe(await this.#runtime.models.plan(options));
  }

  #show(text: string): void {
    clearTimeout(this.#timer);
    this.#asked += 1;
    byId("download-size").textContent = text;
  }
}

function describe(plan: Plan | undefined): string {
  const missing = plan?.files.filter(({ stored }) => !stored) ?? [];
  if (plan === undefined || missing.length === 0) {
    return "Stored, nothing to download.";
  }
  const runtime = missing.some(({ purpose }) => purpose === "runtime") ? ", runtime included" : "";
  const loaded = missing.reduce((sum, file) => sum + file.loaded, 0);
  const here = loaded > 0 ? `; ${bytes(loaded)} are here already` : "";
  if (missing.some(({ size }) => size === null)) {
    return plan.missing > 0 ? `At least ${bytes(plan.missing)} to download${runtime}${here}.` : "";
  }
  return `${bytes(plan.missing)} to download${runtime}${here}.`;
}
