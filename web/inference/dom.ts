/** Short cuts into the document. */

/** The element with this id, which the page is known to have. */
export function byId<T extends HTMLElement = HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (found === null) {
    throw new Error(`The page has no element #${id}.`);
  }
  return found as T;
}

/** The first match below `root`, which is known to be there. */
export function find<T extends HTMLElement = HTMLElement>(root: ParentNode, selector: string): T {
  const found = root.querySelector<T>(selector);
  if (found === null) {
    throw new Error(`The page has no ${selector}.`);
  }
  return found;
}

type Attributes = Record<string, string | boolean | ((event: Event) => void)>;

/** An element with attributes (functions become listeners) and children. Text stays text: no markup is parsed. */
export function create<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  attributes: Attributes = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[K] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") {
      made.addEventListener(name, value);
    } else if (typeof value === "boolean") {
      made.toggleAttribute(name, value);
    } else {
      made.setAttribute(name, value);
    }
  }
  made.append(...children);
  return made;
}

/** A button that stays focusable while it is off. */
export function setEnabled(button: HTMLButtonElement, enabled: boolean): void {
  button.setAttribute("aria-disabled", String(!enabled));
}

export function isEnabled(button: HTMLButtonElement): boolean {
  return button.getAttribute("aria-disabled") !== "true";
}

/**
 * A table that a narrow screen shows as cards. The roles are spelled out because browsers forget them when the display
 * of a table changes; `data-label` repeats the column's name in front of each cell of a card.
 */
export function cardTable(label: string, columns: string[], bodies: HTMLTableSectionElement[]): HTMLElement {
  const head = create("tr", { role: "row" });
  for (const column of columns) {
    head.append(create("th", { role: "columnheader", scope: "col" }, column));
  }
  const table = create("table", { class: "cards", role: "table", "aria-label": label });
  table.append(create("thead", { role: "rowgroup" }, head), ...bodies);
  return table;
}

/** A row of a `cardTable`, named by its first cell. */
export function cardRow(columns: string[], cells: (Node | string)[]): HTMLTableRowElement {
  const row = create("tr", { role: "row" });
  cells.forEach((cell, index) => {
    const label = columns[index] ?? "";
    row.append(
      index === 0
        ? create("th", { role: "rowheader", scope: "row" }, cell)
        : create("td", { role: "cell", "data-label": label }, cell),
    );
  });
  return row;
}
