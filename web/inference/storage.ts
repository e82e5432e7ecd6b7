/** The stored models, and the room that they take. */

import { byId, cardRow, cardTable, create, find, isEnabled, setEnabled } from "./dom.ts";
import { bytes, count, date } from "./format.ts";
import type { Runtime, StoredFile, StoredModel } from "./runtime.ts";

const COLUMNS = ["Model", "Revision", "Files", "Size", "Tasks", "Updated", ""];

/** What the section reports to the page. */
export interface Reports {
  error(error: unknown, retry?: () => void): void;
  status(text: string): void;
}

export class StoredModels {
  readonly #runtime: Runtime;
  readonly #reports: Reports;
  /** Models whose files are shown; kept when the list is drawn anew. */
  readonly #open = new Set<string>();

  constructor(runtime: Runtime, reports: Reports) {
    this.#runtime = runtime;
    this.#reports = reports;
    byId("persist").addEventListener("click", () => this.#persist());
  }

  async refresh(): Promise<void> {
    try {
      const [models, usage] = await Promise.all([this.#runtime.models.list(), this.#runtime.models.usage()]);
      this.#showUsage(usage);
      const content = find(byId("stored-models"), ".content");
      content.replaceChildren(
        models.length === 0
          ? create(
              "p",
              { class: "empty" },
              "None yet. A model stays here after its first use, also without a network.",
            )
          : cardTable(
              "Stored models",
              COLUMNS,
              models.map((model) => this.#body(model)),
            ),
      );
      await this.#showPersisted();
    } catch (error) {
      this.#reports.error(error, () => this.refresh());
    }
  }

  #body(model: StoredModel): HTMLTableSectionElement {
    const name = `${model.model} ${model.revision}`;
    const body = create("tbody", { role: "rowgroup" });
    const files = create("td", { role: "cell", colspan: String(COLUMNS.length), class: "files" });
    const row = create("tr", { role: "row" }, files);
    const toggle = create(
      "button",
      { type: "button", class: "disclosure", "aria-label": `Files of ${name}: ${model.files}` },
      count(model.files, "file", "files"),
    );
    const show = async (open: boolean) => {
      toggle.setAttribute("aria-expanded", String(open));
      row.hidden = !open;
      if (!open) {
        this.#open.delete(name);
        return;
      }
      this.#open.add(name);
      try {
        const { model: id, revision } = model;
        files.replaceChildren(fileTable(name, await this.#runtime.models.files({ model: id, revision })));
      } catch (error) {
        this.#reports.error(error);
      }
    };
    toggle.addEventListener("click", () => show(row.hidden !== false));
    void show(this.#open.has(name));

    const remove = create(
      "button",
      { type: "button", "aria-label": `Delete ${name}`, click: () => void this.#delete(model) },
      "Delete",
    );
    const cells = [
      create("span", { class: "id" }, model.model),
      create("span", { class: "id" }, model.revision),
      toggle,
      bytes(model.size),
      model.tasks.join(", ") || "–",
      date(model.updated),
      remove,
    ];
    body.append(cardRow(COLUMNS, cells), row);
    return body;
  }

  async #delete(model: StoredModel): Promise<void> {
    const name = `${model.model} ${model.revision}`;
    const text = `${name} takes ${bytes(model.size)}. Using it again means downloading it again.`;
    if (!(await confirmed("Delete this model?", text))) {
      return;
    }
    try {
      const freed = await this.#runtime.models.delete({ model: model.model, revision: model.revision });
      this.#open.delete(name);
      this.#reports.status(`Deleted ${name}: ${bytes(freed)} freed.`);
      await this.refresh();
      // The button that had the focus is gone.
      byId("stored-title").focus();
    } catch (error) {
      this.#reports.error(error, () => void this.#delete(model));
    }
  }

  #showUsage({ used, allowed }: { used: number; allowed: number }): void {
    byId("fact-storage").textContent = bytes(used);
    byId("storage-usage").textContent =
      allowed > 0
        ? `${bytes(used)} used, runtime included, of ${bytes(allowed)} that the browser allows`
        : `${bytes(used)} used, runtime included`;
  }

  async #persist(): Promise<void> {
    const button = byId<HTMLButtonElement>("persist");
    if (!isEnabled(button)) {
      return;
    }
    try {
      const granted = await this.#runtime.models.persist();
      this.#reports.status(
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
      byId("persist-hint").textContent = "The browser removes nothing of it on its own.";
    } else if (refusal !== undefined) {
      byId("persist-hint").textContent = refusal;
    }
  }
}

function fileTable(name: string, files: StoredFile[]): HTMLElement {
  const body = create("tbody", { role: "rowgroup" });
  const columns = ["File", "Size", "SHA-256", "Updated"];
  for (const file of files) {
    const hash = create("code", { title: file.sha256 }, `${file.sha256.slice(0, 12)}…`);
    const cells = [create("span", { class: "id" }, file.path), bytes(file.size), hash, date(file.updated)];
    body.append(cardRow(columns, cells));
  }
  return cardTable(`Files of ${name}`, columns, [body]);
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
