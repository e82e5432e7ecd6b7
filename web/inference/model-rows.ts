/** One stored model in the list, and its files below it. */

import { cardRow, cardTable, create } from "./dom.ts";
import { bytes, count, date } from "./format.ts";
import type { StoredFile, StoredModel } from "./runtime.ts";

export const COLUMNS = ["Model", "Revision", "Files", "Size", "Used by", "Last used", ""];
const FILE_COLUMNS = ["File", "Size", "SHA-256", "Verified", "Used by"];

const SHOWN_OF_HASH = 12;

/** The page's own hub: its models need not say where they are from. */
const hub = new URL("../hub/", location.href);
const OWN_HUB = `${hub.host}${hub.pathname}`;

/** What a row does, and what it is told. */
interface Actions {
  isOpen: boolean;
  setOpen(open: boolean): void;
  files(): Promise<StoredFile[]>;
  pin(): Promise<void>;
  verify(): Promise<void>;
  export(): Promise<void>;
  delete(): Promise<void>;
  error(error: unknown): void;
}

export function nameOf({ model, revision }: { model: string; revision: string }): string {
  return `${model} ${revision}`;
}

/** The model's row, and a row for its files that opens and closes. */
export function modelBody(model: StoredModel, actions: Actions): HTMLTableSectionElement {
  const name = nameOf(model);
  const files = create("td", { role: "cell", colspan: String(COLUMNS.length), class: "files" });
  const row = create("tr", { role: "row" }, files);
  const toggle = create(
    "button",
    {
      type: "button",
      class: "disclosure",
      "aria-label": `Files of ${name}: ${model.files}`,
      "data-action": actionOf("files", model),
    },
    count(model.files, "file", "files"),
  );
  const show = async (open: boolean) => {
    toggle.setAttribute("aria-expanded", String(open));
    row.hidden = !open;
    actions.setOpen(open);
    if (open) {
      try {
        files.replaceChildren(fileTable(name, await actions.files()));
      } catch (error) {
        actions.error(error);
      }
    }
  };
  toggle.addEventListener("click", () => show(row.hidden !== false));
  void show(actions.isOpen);

  const cells = [
    modelCell(model),
    create("span", { class: "id" }, model.revision),
    toggle,
    create("span", { class: "size" }, bytes(model.size)),
    usedBy(model.tasks, model.engines),
    date(model.lastUsed),
    buttons(model, actions),
  ];
  return create("tbody", { role: "rowgroup" }, cardRow(COLUMNS, cells), row);
}

function modelCell({ model, hub }: StoredModel): HTMLElement {
  if (hub === OWN_HUB) {
    return breakable(model);
  }
  const origin = create("span", { class: "origin" }, `from ${hub.replace(/\/$/, "")}`);
  return create("span", { class: "stacked" }, breakable(model), origin);
}

function buttons(model: StoredModel, actions: Actions): HTMLElement {
  const button = (label: string, act: () => Promise<void>, attributes = {}) =>
    create(
      "button",
      {
        type: "button",
        "aria-label": `${label} ${nameOf(model)}`,
        "data-action": actionOf(label, model),
        click: () => void act(),
        ...attributes,
      },
      label,
    );
  return create(
    "span",
    { class: "row-actions" },
    button("Keep", actions.pin, {
      class: "toggle",
      "aria-pressed": String(model.pinned),
      "aria-describedby": "keep-hint",
    }),
    button("Verify", actions.verify),
    button("Export", actions.export),
    button("Delete", actions.delete),
  );
}

function fileTable(name: string, files: StoredFile[]): HTMLElement {
  const body = create("tbody", { role: "rowgroup" });
  for (const file of files) {
    const hash = create("code", { title: file.sha256 }, `${file.sha256.slice(0, SHOWN_OF_HASH)}…`);
    const cells = [
      breakable(file.path),
      bytes(file.size),
      hash,
      date(file.verified),
      usedBy(
        names(file.uses.map(({ taskName }) => taskName)),
        names(file.uses.map(({ engineId }) => engineId)),
      ),
    ];
    body.append(cardRow(FILE_COLUMNS, cells));
  }
  return cardTable(`Files of ${name}`, FILE_COLUMNS, [body]);
}

function names(all: (string | null)[]): string[] {
  return [...new Set(all.filter((name) => name !== null))].sort();
}

function usedBy(tasks: string[], engines: string[]): Node | string {
  const task = tasks.join(", ");
  if (engines.length === 0) {
    return task || "–";
  }
  const engine = `${engines.length === 1 ? "engine" : "engines"} ${engines.join(", ")}`;
  return create("span", { class: "stacked" }, task, create("span", { class: "origin" }, engine));
}

/** A name that may be broken after its slashes. */
function breakable(name: string): HTMLElement {
  const parts = name.split(/(?<=\/)/).flatMap((part) => [document.createElement("wbr"), part]);
  return create("span", { class: "id" }, ...parts.slice(1));
}

function actionOf(action: string, { hub, model, revision }: StoredModel): string {
  return [action, hub, model, revision].join(" ");
}
