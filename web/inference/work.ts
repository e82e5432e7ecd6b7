/** Something in the section of stored models that takes time: one thing at once, with a bar, and a way to stop it. */

import { byId, find } from "./dom.ts";
import { isAbort } from "./errors.ts";
import type { Reports } from "./storage.ts";

/** `percent` undefined: nobody knows how far it is. */
export type Report = (detail: string, percent: number | undefined) => void;

export class Work {
  readonly #reports: Reports;
  readonly #root = byId("work");
  #going: { label: string; stop: AbortController } | undefined;

  constructor(reports: Reports) {
    this.#reports = reports;
    byId("work-stop").addEventListener("click", () => this.#going?.stop.abort());
  }

  say(text: string): void {
    this.#reports.status(text);
  }

  /** `work` resolves to what there is to say at the end. */
  async run(label: string, work: (signal: AbortSignal, report: Report) => Promise<string>): Promise<void> {
    if (this.#going !== undefined) {
      this.say(`${this.#going.label} is still going on. Wait for its end, or stop it.`);
      return;
    }
    const stop = new AbortController();
    this.#going = { label, stop };
    find(this.#root, "label").textContent = label;
    this.#show("", undefined);
    this.#root.hidden = false;
    this.say(`${label}…`);
    try {
      this.say(await work(stop.signal, (detail, percent) => this.#show(detail, percent)));
    } catch (error) {
      this.say(isAbort(error) ? "Stopped." : "");
      if (!isAbort(error)) {
        this.#reports.error(error, () => void this.run(label, work));
      }
    } finally {
      this.#going = undefined;
      if (this.#root.contains(document.activeElement)) {
        byId("stored-title").focus({ preventScroll: true });
      }
      this.#root.hidden = true;
    }
  }

  #show(detail: string, percent: number | undefined): void {
    find(this.#root, ".detail").textContent = detail;
    const bar = find<HTMLProgressElement>(this.#root, "progress");
    if (percent === undefined) {
      bar.removeAttribute("value");
    } else {
      bar.value = percent;
    }
  }
}
