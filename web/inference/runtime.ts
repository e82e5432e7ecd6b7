/** The library, as any page imports it. */

import type * as Pywebml from "../src/client/index.ts";

export type Runtime = typeof Pywebml;
export type { Engine } from "../src/client/api.ts";
export type * from "../src/client/types.ts";

/** Rejects, with what to do, when the file is not there. */
export async function loadRuntime(): Promise<Runtime> {
  const url = new URL("../pywebml.mjs", import.meta.url).href;
  try {
    return (await import(url)) as Runtime;
  } catch (error) {
    const message = `${url} could not be loaded. Serve the whole folder that the build makes, not this page alone.`;
    const failure = new Error(message, { cause: error });
    failure.name = "LibraryNotLoaded";
    throw failure;
  }
}
