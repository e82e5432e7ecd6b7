/** Errors that keep their class name from `pywebml/errors.py` on the way between workers and languages. */

import type { ErrorData } from "./protocol.ts";

/** An error whose `name` is a class in `pywebml/errors.py`. */
export class NamedError extends Error {
  readonly details: Record<string, unknown>;

  constructor(name: string, message: string, details: Record<string, unknown> = {}) {
    super(message);
    this.name = name;
    this.details = details;
  }
}

/** Plain data for `postMessage`. Errors that nobody named become `PywebmlError` and keep their stack. */
export function toErrorData(error: unknown): ErrorData {
  if (error instanceof NamedError) {
    return { name: error.name, message: error.message, details: error.details };
  }
  // A DOMException is an Error in browsers and in Node; an aborted signal throws one.
  if (error instanceof Error && error.name === "AbortError") {
    return { name: "AbortError", message: error.message };
  }
  if (error instanceof Error) {
    const details = error.stack === undefined ? {} : { stack: error.stack };
    return { name: "PywebmlError", message: `Unexpected ${error.name}: ${error.message}`, details };
  }
  return { name: "PywebmlError", message: `Unexpected error: ${describe(error)}` };
}

/** Some libraries throw plain objects, such as Emscripten for a file that it could not load. */
function describe(error: unknown): string {
  if (typeof error !== "object" || error === null) {
    return String(error);
  }
  const { name, message } = error as { name?: unknown; message?: unknown };
  const words = [name, message].filter((word) => typeof word === "string" && word !== "");
  return words.join(": ") || JSON.stringify(error);
}

/** The way back. */
export function fromErrorData(data: ErrorData): NamedError {
  return new NamedError(data.name, data.message, data.details);
}
