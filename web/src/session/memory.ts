/**
 * The runtime's memory and how its functions are called: allocation, C strings, pointers, errors.
 *
 * The memory may be shared with the runtime's threads and may grow in any call, so views of it are never kept and
 * nothing shared leaves this folder.
 */

import type { Functions, Glue, LazyBytes } from "onnxruntime-web/ort-wasm-simd-threaded.mjs";
import { NamedError } from "../errors.ts";

/** Size of a pointer and of size_t. */
export const WORD = 4;

export type ErrorName = "RuntimeStartError" | "ModelLoadError" | "InferenceError";

/** A call of the glue threw: its stack and memory are in no known state. */
class RuntimeAbort extends Error {}

/** What must be undone, last first. */
export class Cleanup {
  readonly #steps: (() => void)[] = [];

  add(step: () => void): void {
    this.#steps.push(step);
  }

  /** Forgets the steps: what they would free has an owner now. */
  keep(): void {
    this.#steps.length = 0;
  }

  run(): void {
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      step();
    }
  }
}

export class Memory {
  /** The glue's functions; one that throws marks the runtime as broken. */
  readonly ort: Functions;
  readonly #glue: Glue;
  readonly #decoder = new TextDecoder();
  readonly #encoder = new TextEncoder();
  #broken: string | undefined;

  constructor(glue: Glue) {
    this.#glue = glue;
    this.ort = guarded(glue, (error) => {
      this.#broken ??= words(error);
      return new RuntimeAbort(this.#broken);
    });
  }

  /** Whether a call has thrown: then only the worker's end gives the memory back. */
  get broken(): boolean {
    return this.#broken !== undefined;
  }

  get byteLength(): number {
    return this.heap().byteLength;
  }

  allocate(size: number, error: ErrorName, what: string, cleanup: Cleanup): number {
    // Never 0 bytes: for those a null pointer would be a right answer. A size beyond 32 bits would wrap around.
    const pointer = size < 2 ** 32 ? this.ort._malloc(Math.max(size, 1)) : 0;
    if (pointer === 0) {
      throw new NamedError(
        error,
        `${what} needs ${size} bytes, but the runtime's memory (${this.byteLength} bytes, at most 4 GB) cannot grow ` +
          "that far. Use a smaller input, a smaller model or dtype, or terminate other engines.",
        { bytes: size },
      );
    }
    cleanup.add(() => this.ort._free(pointer));
    return pointer;
  }

  /** A C string in the runtime's memory. */
  text(text: string, error: ErrorName, cleanup: Cleanup): number {
    const bytes = this.#encoder.encode(text);
    const pointer = this.allocate(bytes.byteLength + 1, error, "A string", cleanup);
    const heap = this.heap();
    heap.set(bytes, pointer);
    heap[pointer + bytes.byteLength] = 0;
    return pointer;
  }

  readText(pointer: number): string {
    return this.decode(pointer, this.heap().indexOf(0, pointer));
  }

  decode(begin: number, end: number): string {
    // Browsers refuse to decode shared memory: a slice is a copy.
    return this.#decoder.decode(this.heap().slice(begin, end));
  }

  pointers(values: number[]): number {
    const pointer = this.ort.stackAlloc(values.length * WORD);
    values.forEach((value, index) => {
      this.ort.setValue(pointer + index * WORD, value, "*");
    });
    return pointer;
  }

  /** An unsigned 32-bit word. */
  word(pointer: number): number {
    return this.ort.getValue(pointer, "*");
  }

  onStack<Result>(words: number, use: (stack: number) => Result): Result {
    const saved = this.ort.stackSave();
    try {
      return use(this.ort.stackAlloc(words * WORD));
    } finally {
      if (!this.broken) {
        this.ort.stackRestore(saved);
      }
    }
  }

  /** All of the memory as it is now. */
  heap(): Uint8Array<SharedArrayBuffer> {
    // Another thread may have let the memory grow: reading a value makes the glue look and renew its views.
    this.#glue.getValue(0, "i8");
    return this.#glue.HEAPU8;
  }

  /**
   * Stands for bytes that `fill` puts into the memory when the glue gives it to `set`, as the very next thing it does.
   *
   * The glue wants all bytes of a tensor as one array, and a tensor may be larger than what JavaScript should hold. So
   * its view of the memory gets a `set` of its own for one call. Given to a plain `set`, it throws.
   */
  lazyBytes(fill: (memory: Uint8Array, offset: number) => void): LazyBytes {
    const heap = this.heap();
    const lazy: LazyBytes = {
      get length(): number {
        throw new Error("The runtime's memory grew between subarray and set.");
      },
    };
    const setOnce = (bytes: ArrayLike<number>, offset = 0) => {
      Reflect.deleteProperty(heap, "set");
      if (bytes === lazy) {
        fill(heap, offset);
      } else {
        heap.set(bytes, offset);
      }
    };
    Object.defineProperty(heap, "set", { configurable: true, value: setOnce });
    return lazy;
  }

  check(status: number, error: ErrorName, what: string): void {
    if (status !== 0) {
      throw this.lastError(error, what);
    }
  }

  lastError(name: ErrorName, what: string, advice = ""): NamedError {
    const [code, message] = this.onStack(2, (stack) => {
      this.ort._OrtGetLastError(stack, stack + WORD);
      const text = this.word(stack + WORD);
      return [this.word(stack), text === 0 ? "no reason given" : this.readText(text).trim()];
    });
    const memory = /alloc|out of memory|overflow/i.test(message)
      ? ` The runtime's memory has ${this.byteLength} bytes and can have 4 GB at most, if the device has them.`
      : "";
    return new NamedError(name, `${what}: ${message}${memory}${advice === "" ? "" : ` ${advice}`}`, { code });
  }

  expectWorking(): void {
    if (this.broken) {
      throw new NamedError(
        "SessionClosedError",
        `The runtime stopped in an earlier call (${this.#broken}). Create a new engine.`,
      );
    }
  }

  guard<Result>(name: ErrorName, work: () => Result): Result {
    try {
      return work();
    } catch (error) {
      if (error instanceof RuntimeAbort) {
        throw new NamedError(name, `The runtime stopped: ${error.message}. Create a new engine.`);
      }
      throw error;
    }
  }

  /** Frees, unless the runtime is broken: then only its end gives the memory back. */
  finish(cleanup: Cleanup): void {
    if (!this.broken) {
      this.guard("InferenceError", () => cleanup.run());
    }
  }
}

/** The glue with every function wrapped. */
function guarded(glue: Glue, onThrow: (error: unknown) => RuntimeAbort): Functions {
  const functions = Object.entries(glue as unknown as Record<string, unknown>).filter(
    (entry): entry is [string, (...args: unknown[]) => unknown] => typeof entry[1] === "function",
  );
  return Object.fromEntries(
    functions.map(([name, call]) => [
      name,
      (...args: unknown[]) => {
        try {
          return call(...args);
        } catch (error) {
          throw onThrow(error);
        }
      },
    ]),
  ) as unknown as Functions;
}

export function words(error: unknown): string {
  if (error instanceof Error) {
    return `${error.name}: ${error.message}`;
  }
  // C++ exceptions that nobody caught are thrown as their address.
  return typeof error === "number" ? `uncaught C++ exception at ${error}` : String(error);
}
