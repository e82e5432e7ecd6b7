/** The API as a classic script: `<script src="pywebml.js">` makes the global `pywebml`. */

import { createApi } from "./api.ts";

export { NamedError as PywebmlError } from "../errors.ts";
export { Engine } from "./api.ts";

// Only while the script first runs does the page know which one it is.
const script = document.currentScript instanceof HTMLScriptElement ? document.currentScript.src : "";

export const { version, configure, start, shutdown, createEngine, engines, models, settings, registerTask } =
  createApi(script || document.baseURI);
