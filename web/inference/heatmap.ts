/** Similarities of embedded sentences, as a table with colours. */

import { byId, create } from "./dom.ts";
import type { Tensor } from "./runtime.ts";

const LEVELS = 10;
const LONGEST_LABEL = 80;

/** Rows of a float tensor of shape (texts, hidden). Refuses anything else: the model may not be what was expected. */
export function vectors(result: unknown, texts: number): Float32Array[] {
  const { dims, type, data } = (result ?? {}) as Partial<Tensor>;
  const [rows, size] = dims ?? [];
  if (
    type !== "float32" ||
    !(data instanceof Float32Array) ||
    dims?.length !== 2 ||
    rows !== texts ||
    !size
  ) {
    throw new Error(`Expected ${texts} vectors of float32, got ${type ?? "no tensor"} [${dims ?? ""}].`);
  }
  return Array.from({ length: texts }, (_, row) => data.subarray(row * size, (row + 1) * size));
}

/** Cosine similarities of vectors of length 1. */
export function similarities(rows: Float32Array[]): number[][] {
  return rows.map((a) => rows.map((b) => a.reduce((sum, value, index) => sum + value * (b[index] ?? 0), 0)));
}

/** Positions of the most similar pair of different rows. */
export function closestPair(matrix: number[][]): { a: number; b: number; value: number } | undefined {
  let best: { a: number; b: number; value: number } | undefined;
  matrix.forEach((row, a) => {
    row.forEach((value, b) => {
      if (b > a && (best === undefined || value > best.value)) {
        best = { a, b, value };
      }
    });
  });
  return best;
}

/** Puts the table into the result panel, below it `facts`. */
export function showHeatmap(sentences: string[], matrix: number[][], facts: [string, string][]): void {
  const columns = create("tr", {}, create("td", { class: "corner" }));
  sentences.forEach((sentence, index) => {
    const full = create("span", { class: "visually-hidden" }, ` ${short(sentence)}`);
    columns.append(create("th", { scope: "col", title: sentence }, String(index + 1), full));
  });

  const body = create("tbody");
  matrix.forEach((values, index) => {
    const sentence = sentences[index] ?? "";
    const number = create("span", { class: "number" }, String(index + 1));
    const text = create("span", { class: "text", dir: "auto" }, sentence);
    const row = create("tr", {}, create("th", { scope: "row", title: sentence }, number, text));
    for (const value of values) {
      // Opposite directions are as unrelated as meanings get, so what lies below 0 has the colour of 0.
      const level = Math.round(Math.min(1, Math.max(0, value)) * LEVELS);
      row.append(create("td", { "data-level": String(level) }, (Math.round(value * 100) / 100).toFixed(2)));
    }
    body.append(row);
  });

  const caption = create(
    "caption",
    { class: "visually-hidden" },
    "Cosine similarity of each pair of sentences",
  );
  const table = create("table", { class: "heat" }, caption, create("thead", {}, columns), body);
  const region = create("div", {
    class: "scroll",
    role: "region",
    tabindex: "0",
    "aria-label": "Similarity table",
  });
  region.append(table);

  byId("heatmap").replaceChildren(
    create("h2", { id: "heatmap-title" }, "Similarity"),
    region,
    key(sentences),
    legend(),
    factList(facts),
  );
}

/** The numbered sentences, for screens too narrow to have them in the table. */
function key(sentences: string[]): HTMLElement {
  const list = create("ol", { class: "key", "aria-hidden": "true" });
  list.append(...sentences.map((sentence) => create("li", { dir: "auto" }, sentence)));
  return list;
}

function legend(): HTMLElement {
  const scale = create("span", { class: "scale" });
  for (let level = 0; level <= LEVELS; level += 1) {
    scale.append(create("span", { "data-level": String(level) }));
  }
  return create("p", { class: "legend" }, "0.00 unrelated", scale, "1.00 the same");
}

function factList(facts: [string, string][]): HTMLElement {
  const list = create("dl", { class: "facts", id: "result-facts" });
  for (const [term, value] of facts) {
    list.append(create("div", {}, create("dt", {}, term), create("dd", {}, value)));
  }
  return list;
}

function short(text: string): string {
  return text.length > LONGEST_LABEL ? `${text.slice(0, LONGEST_LABEL)}…` : text;
}
