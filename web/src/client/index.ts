/** The API as an ES module: `import { createEngine } from "./pywebml.mjs"`. */

import { createApi } from "./api.ts";

export { NamedError as PywebmlError } from "../errors.ts";
export { Engine } from "./api.ts";
export type * from "./types.ts";

export const { version, configure, start, shutdown, createEngine, engines, models, settings, registerTask } =
  createApi(import.meta.url);
