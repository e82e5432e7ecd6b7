/** The error panel. */

import { byId, create } from "./dom.ts";

/** Errors that the same try would meet again: what was typed has to change first. */
const NEED_OTHER_INPUT = new Set([
  "OptionsError",
  "InputError",
  "ArchiveError",
  "ForbiddenURLError",
  "FileNotFoundOnHubError",
  "UnknownTaskError",
  "UnsupportedModelError",
]);

export function isAbort(error: unknown): boolean {
  return error instanceof Error && error.name === "AbortError";
}

/** Shows `error`; with `retry`, offers to try again where that can help. */
export function showError(error: unknown, retry?: () => void): void {
  const panel = byId("error");
  const { name, message } = error instanceof Error ? error : { name: "Error", message: String(error) };
  const details = (error as { details?: Record<string, unknown> } | null)?.details ?? {};

  const heading = create("h2", {}, name);
  const content: Node[] = [heading, create("p", { class: "message" }, message)];
  if (Object.keys(details).length > 0) {
    content.push(
      create(
        "details",
        {},
        create("summary", {}, "Details"),
        create("pre", { tabindex: "0" }, asText(details)),
      ),
    );
  }
  const actions = create("div", { class: "actions" });
  if (retry !== undefined && !NEED_OTHER_INPUT.has(name)) {
    const again = () => {
      hideError();
      retry();
    };
    actions.append(create("button", { type: "button", click: again }, "Try again"));
  }
  actions.append(create("button", { type: "button", click: hideError }, "Dismiss"));
  panel.replaceChildren(...content, actions);
  panel.hidden = false;
  panel.scrollIntoView({ block: "nearest" });
}

export function hideError(): void {
  const panel = byId("error");
  // Whoever pressed a button in the panel goes on from the form.
  if (panel.contains(document.activeElement)) {
    byId("embed").focus({ preventScroll: true });
  }
  panel.hidden = true;
  panel.replaceChildren();
}

function asText(details: Record<string, unknown>): string {
  return Object.entries(details)
    .map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`)
    .join("\n");
}
