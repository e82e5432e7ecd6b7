/** Starting the runtime: its WASM, its glue and its threads. */

import createGlue, { type Glue } from "onnxruntime-web/ort-wasm-simd-threaded.mjs";
import { NamedError } from "../errors.ts";
import { words } from "./memory.ts";

/** A pthread that cannot start (its script is blocked, for example) reports nothing at all. */
const START_TIMEOUT_MS = 30_000;

/** Runs the glue. It never answers when instantiation fails or a thread does not start, so it is raced. */
async function instantiate(module: WebAssembly.Module, numThreads: number): Promise<Glue> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  try {
    return await new Promise<Glue>((resolve, reject) => {
      timer = setTimeout(() => {
        const threads =
          numThreads > 1 ? ` Its ${numThreads} threads did not start; try again with numThreads 1.` : "";
        reject(new Error(`no answer after ${START_TIMEOUT_MS / 1000} seconds.${threads}`));
      }, START_TIMEOUT_MS);
      createGlue({
        numThreads,
        instantiateWasm: (imports, done) => {
          // With a WASM of another build the glue would stop without a word, or go on with the wrong functions.
          const offered = Object.values(imports).flatMap((group) => Object.keys(group));
          const asked = WebAssembly.Module.imports(module).map(({ name }) => name);
          if (offered.length !== asked.length || asked.some((name) => !offered.includes(name))) {
            reject(new Error("the WASM belongs to another build of the runtime."));
            return {};
          }
          WebAssembly.instantiate(module, imports).then((instance) => done(instance, module), reject);
          return {};
        },
      }).then(resolve, reject);
    });
  } catch (error) {
    throw new NamedError(
      "RuntimeStartError",
      `The runtime could not be started: ${words(error)} Its WASM must be the version that this page was built for, ` +
        "and the device must have memory left.",
    );
  } finally {
    clearTimeout(timer);
  }
}

/** Compiles the WASM and starts the glue with it. Throws `RuntimeStartError`. */
export async function startGlue(wasm: BufferSource, numThreads: number): Promise<Glue> {
  let module: WebAssembly.Module;
  try {
    module = await WebAssembly.compile(wasm);
  } catch (error) {
    throw new NamedError(
      "RuntimeStartError",
      `The runtime's WASM could not be compiled: ${words(error)}. A current browser with WebAssembly threads and ` +
        "SIMD is needed, and a Content-Security-Policy must have 'wasm-unsafe-eval'.",
    );
  }
  return instantiate(module, numThreads);
}
