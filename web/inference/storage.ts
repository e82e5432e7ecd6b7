/** The section of stored models: what is there, the room that it takes, and what can be done with it. */

import { byId, cardTable, create, find, isEnabled, setEnabled } from "./dom.ts";
import { bytes, count } from "./format.ts";
import { Imports } from "./imports.ts";
import { COLUMNS, modelBody, nameOf } from "./model-rows.ts";
import type { Runtime, Selection, StoredModel } from "./runtime.ts";
import { showUsage } from "./usage.ts";
import { Work } from "./work.ts";

/** As long as a browser may need to begin a download from an address that it was given. */
const ADDRESS_MS = 60_000;

/** All that is here of a model of which nothing but a size was asked for. */
const PLANNED_FILES = ["config.json", "manifest.json"];

/** What the section reports to the page. */
export interface Reports {
  error(error: unknown, retry?: () => void): void;
  status(text: string): void;
}

export class StoredModels {
  readonly #runtime: Runtime;
  readonly #reports: Reports;
  readonly #onChange: () => void;
  readonly #work: Work;
  /** Models whose files are shown; kept when the list is drawn anew. */
  readonly #open = new Set<string>();
  #refreshes = 0;

  /** `onChange` is called when something was added or removed here. */
  constructor(runtime: Runtime, reports: Reports, onChange: () => void) {
    this.#runtime = runtime;
    this.#reports = { ...reports, status: (text) => this.#say(text) };
    this.#onChange = onChange;
    this.#work = new Work(this.#reports);
    new Imports(runtime, this.#work, () => this.#changed());
    byId("persist").addEventListener("click", () => this.#persist());
    byId("drop-unfinished").addEventListener("click", () => this.#dropUnfinished());
  }

  async refresh(): Promise<void> {
    this.#refreshes += 1;
    const refresh = this.#refreshes;
    try {
      const [all, usage] = await Promise.all([this.#runtime.models.list(), this.#runtime.models.usage()]);
      const models = await this.#withoutPlanned(all);
      // A later one has the news.
      if (refresh === this.#refreshes) {
        showUsage(usage);
        this.#showModels(models);
        await this.#showPersisted();
      }
    } catch (error) {
      this.#reports.error(error, () => this.refresh());
    }
  }

  /** Without models of which only the size of a download was asked for. */
  async #withoutPlanned(models: StoredModel[]): Promise<StoredModel[]> {
    const isPlanned = async (model: StoredModel) => {
      if (model.tasks.length > 0 || model.engines.length > 0 || model.files > PLANNED_FILES.length) {
        return false;
      }
      const files = await this.#runtime.models.files(selectionOf(model));
      return files.every(({ path }) => PLANNED_FILES.includes(path));
    };
    const planned = await Promise.all(models.map(isPlanned));
    return models.filter((_, index) => !planned[index]);
  }

  #showModels(models: StoredModel[]): void {
    const content = find(byId("stored-models"), ".content");
    // The list is drawn anew; who had come to one of its buttons by keyboard stays there.
    const focused = content.contains(document.activeElement)
      ? document.activeElement?.getAttribute("data-action")
      : undefined;
    const bodies = models.map((model) =>
      modelBody(model, {
        isOpen: this.#open.has(nameOf(model)),
        setOpen: (open) => this.#open[open ? "add" : "delete"](nameOf(model)),
        files: () => this.#runtime.models.files(selectionOf(model)),
        pin: () => this.#pin(model),
        verify: () => this.#verify(model),
        export: () => this.#export(model),
        delete: () => this.#delete(model),
        error: this.#reports.error,
      }),
    );
    content.replaceChildren(
      bodies.length === 0
        ? create(
            "p",
            { class: "empty" },
            "None yet. A model stays here after its first use, also without a network.",
          )
        : cardTable("Stored models", COLUMNS, bodies),
    );
    if (focused) {
      const again = content.querySelector<HTMLElement>(`[data-action="${CSS.escape(focused)}"]`);
      (again ?? byId("stored-title")).focus({ preventScroll: true });
    }
  }

  async #pin(model: StoredModel): Promise<void> {
    try {
      await this.#runtime.models.pin(selectionOf(model), !model.pinned);
      this.#say(
        model.pinned
          ? `${nameOf(model)} may make room for others.`
          : `${nameOf(model)} stays when room is made.`,
      );
      await this.refresh();
    } catch (error) {
      this.#reports.error(error, () => void this.#pin(model));
    }
  }

  async #verify(model: StoredModel): Promise<void> {
    const name = nameOf(model);
    await this.#work.run(`Verifying ${name}`, async (signal, report) => {
      let checked = 0;
      const onChecked = () => {
        checked += 1;
        report(`${checked} of ${count(model.files, "file", "files")}`, (100 * checked) / model.files);
      };
      report(`0 of ${count(model.files, "file", "files")}`, 0);
      const results = await this.#runtime.models.verify(selectionOf(model), { onChecked, signal });
      const damaged = results.filter(({ ok }) => !ok).map(({ path }) => path);
      if (damaged.length === 0) {
        await this.refresh();
        return `${name} is as it was stored: ${count(results.length, "file", "files")} compared.`;
      }
      this.#changed();
      const were = damaged.length === 1 ? "was damaged and is" : "were damaged and are";
      return `${name}: ${damaged.join(", ")} ${were} removed. The next use downloads what is missing.`;
    });
  }

  async #export(model: StoredModel): Promise<void> {
    try {
      const archive = await this.#runtime.models.export(selectionOf(model));
      const address = URL.createObjectURL(archive);
      const file = `${nameOf(model).replace(/[^\w.]+/g, "-")}.tar`;
      create("a", { href: address, download: file }).click();
      setTimeout(() => URL.revokeObjectURL(address), ADDRESS_MS);
      this.#say(`Exported ${nameOf(model)}: ${file}, ${bytes(archive.size)}.`);
    } catch (error) {
      this.#reports.error(error, () => void this.#export(model));
    }
  }

  async #delete(model: StoredModel): Promise<void> {
    const name = nameOf(model);
    const text = `${name} takes ${bytes(model.size)}. Using it again means downloading it again.`;
    if (!(await confirmed("Delete this model?", text))) {
      return;
    }
    try {
      const freed = await this.#runtime.models.delete(selectionOf(model));
      this.#open.delete(name);
      this.#say(`Deleted ${name}: ${bytes(freed)} freed.`);
      this.#onChange();
      await this.refresh();
      // The button that had the focus is gone.
      byId("stored-title").focus();
    } catch (error) {
      this.#reports.error(error, () => void this.#delete(model));
    }
  }

  async #dropUnfinished(): Promise<void> {
    try {
      await this.#runtime.models.dropUnfinished();
      this.#say("Unfinished downloads dropped.");
      this.#onChange();
      await this.refresh();
      byId("stored-title").focus();
    } catch (error) {
      this.#reports.error(error, () => void this.#dropUnfinished());
    }
  }

  #changed(): void {
    this.#onChange();
    void this.refresh();
  }

  /** Where the person looks, and to those who listen. */
  #say(text: string): void {
    byId("models-note").textContent = text;
    byId("status").textContent = text;
  }

  async #persist(): Promise<void> {
    const button = byId<HTMLButtonElement>("persist");
    if (!isEnabled(button)) {
      return;
    }
    try {
      const granted = await this.#runtime.models.persist();
      this.#say(
        granted ? "The browser keeps this storage." : "The browser did not agree to keep this storage.",
      );
      await this.#showPersisted(
        granted ? undefined : "The browser did not agree. It may after you have used this page more often.",
      );
    } catch (error) {
      this.#reports.error(error);
    }
  }

  async #showPersisted(refusal?: string): Promise<void> {
    const persisted = (await navigator.storage?.persisted?.()) ?? false;
    const button = byId<HTMLButtonElement>("persist");
    setEnabled(button, !persisted);
    button.textContent = persisted ? "Storage is kept" : "Keep this storage";
    if (persisted) {
      byId("persist-hint").textContent = "The browser removes no stored models on its own.";
    } else if (refusal !== undefined) {
      byId("persist-hint").textContent = refusal;
    }
  }
}

function selectionOf({ hub, model, revision }: StoredModel): Selection {
  return { hub, model, revision };
}

/** Asks in the page. Escape means no. */
function confirmed(title: string, text: string): Promise<boolean> {
  const dialog = byId<HTMLDialogElement>("confirm");
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
