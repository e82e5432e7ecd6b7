/** What the person typed and chose. */

import { byId } from "./dom.ts";
import type { PipelineOptions } from "./runtime.ts";

const MOST_SENTENCES = 50;
const PARAMETERS = ["model", "revision", "dtype", "threads"];

/** Takes the model from the address: `?model=…&revision=…&dtype=…&threads=…`. */
export function fillFromAddress(): void {
  const parameters = new URLSearchParams(location.search);
  for (const name of PARAMETERS) {
    const value = parameters.get(name);
    const control = byId<HTMLInputElement | HTMLSelectElement>(name);
    if (value === null) {
      continue;
    }
    // An address may ask for what the menu does not offer, such as another dtype.
    if (
      control instanceof HTMLSelectElement &&
      ![...control.options].some((option) => option.value === value)
    ) {
      control.add(new Option(value));
    }
    control.value = value;
  }
  if (!crossOriginIsolated) {
    const threads = byId<HTMLSelectElement>("threads");
    threads.value = "1";
    threads.disabled = true;
  }
}

export function readOptions(): PipelineOptions {
  const value = (id: string) => byId<HTMLInputElement | HTMLSelectElement>(id).value.trim();
  const threads = Number(value("threads"));
  return {
    taskName: "feature-extraction",
    modelId: value("model"),
    modelRevision: value("revision"),
    dtype: value("dtype"),
    ...(Number.isInteger(threads) ? { numThreads: threads } : {}),
  };
}

/** The sentences; undefined, with a word beside the field, when they will not do. */
export function readSentences(): string[] | undefined {
  const field = byId<HTMLTextAreaElement>("sentences");
  const sentences = field.value
    .split("\n")
    .map((line) => line.trim())
    .filter((line) => line !== "");
  const problem =
    sentences.length === 0
      ? "Type at least one sentence."
      : sentences.length > MOST_SENTENCES
        ? `${sentences.length} sentences make a table that nobody can read. Use at most ${MOST_SENTENCES}.`
        : "";
  byId("sentences-error").textContent = problem;
  field.setAttribute("aria-invalid", String(problem !== ""));
  if (problem !== "") {
    field.focus();
    return undefined;
  }
  return sentences;
}
