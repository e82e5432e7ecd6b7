/**
 * ONNX Runtime's WASM behind its C API: sessions, runs, and tensors that stay in its memory.
 */

import type { Functions, Glue } from "onnxruntime-web/ort-wasm-simd-threaded.mjs";
import { NamedError } from "../errors.ts";
import {
  type Feed,
  isReference,
  type LoadedSession,
  type RunResult,
  type SessionOptions,
  type TensorData,
  type TensorInfo,
  type TensorReference,
  type TensorType,
} from "../protocol.ts";
import { Cleanup, Memory, WORD } from "./memory.ts";
import { ExternalFile, ModelFile, type ModelSource } from "./source.ts";
import { startGlue } from "./start.ts";
import { checkFeeds, codeOfType, ELEMENT_BYTES, elementCount, signature, typeFromCode } from "./tensors.ts";

/** ORT_LOGGING_LEVEL_ERROR. Below it the runtime prints advice for model authors on the console. */
const LOG_SEVERITY = 3;

/** OrtMemoryInfo location of the glue: plain CPU memory. */
const LOCATION_CPU = 1;

/** GraphOptimizationLevel of the C API. */
const OPTIMIZATION_LEVELS: Record<NonNullable<SessionOptions["graphOptimizationLevel"]>, number> = {
  disabled: 0,
  basic: 1,
  extended: 2,
  all: 99,
};

/** With ORT-format models: read them where they are during loading, instead of copying them first. */
const DEFAULT_CONFIG: Record<string, string> = { "session.use_ort_model_bytes_directly": "1" };

interface LoadedModel {
  pointer: number;
  inputs: TensorInfo[];
  outputs: TensorInfo[];
  /** Input or output name to the runtime's own C string. */
  names: Map<string, number>;
}

/** A tensor in the runtime's memory. */
interface Value {
  pointer: number;
  type: TensorType;
  dims: number[];
  /** Where its elements are. */
  data: number;
  /** What to free after it; 0 when the runtime owns the elements. */
  buffer: number;
  byteLength: number;
}

export class Runtime {
  readonly #memory: Memory;
  readonly #ort: Functions;
  readonly #models = new Map<number, LoadedModel>();
  readonly #values = new Map<number, Value>();
  #nextId = 1;

  private constructor(glue: Glue) {
    this.#memory = new Memory(glue);
    this.#ort = this.#memory.ort;
  }

  /** Starts the runtime. Throws `RuntimeStartError`. */
  static async start(wasm: BufferSource, numThreads: number): Promise<Runtime> {
    const runtime = new Runtime(await startGlue(wasm, numThreads));
    runtime.#memory.guard("RuntimeStartError", () => {
      runtime.#memory.check(
        runtime.#memory.ort._OrtInit(numThreads, LOG_SEVERITY),
        "RuntimeStartError",
        "The runtime did not start",
      );
    });
    return runtime;
  }

  /** Bytes of the runtime's memory. It grows and never shrinks. */
  get memoryBytes(): number {
    return this.#memory.byteLength;
  }

  /** Loads a model. Throws `ModelLoadError`; errors of the sources come through as they are. */
  async createSession(
    model: ModelSource,
    externalData: Map<string, ModelSource>,
    options: SessionOptions,
  ): Promise<LoadedSession> {
    this.#memory.expectWorking();
    const file = await ModelFile.open(model);
    const external = new Map<string, ExternalFile>();
    for (const [name, source] of externalData) {
      const opened = await ModelFile.open(source);
      external.set(name, new ExternalFile(opened, (fill) => this.#memory.lazyBytes(fill)));
    }
    const cleanup = new Cleanup();
    try {
      return this.#memory.guard("ModelLoadError", () => {
        const data = this.#memory.allocate(model.size, "ModelLoadError", `The model ${model.name}`, cleanup);
        file.copy(0, model.size, this.#memory.heap(), data);
        return this.#load(model, data, external, options, cleanup);
      });
    } finally {
      this.#memory.finish(cleanup);
    }
  }

  /** Runs a model. Throws `InferenceError`, or `SessionClosedError` for a session that is not there. */
  run(session: number, names: string[], feeds: Feed[], outputs: string[] | null, keep: string[]): RunResult {
    this.#memory.expectWorking();
    const model = this.#models.get(session);
    if (model === undefined) {
      throw new NamedError("SessionClosedError", `Session ${session} was released. Create a new one.`, {
        session,
      });
    }
    const held = feeds.map((feed) => (isReference(feed) ? this.#kept(feed.handle) : undefined));
    // What a handle is, this table knows best; the message could say anything.
    checkFeeds(
      model.inputs,
      names,
      feeds.map((feed, index) => {
        const value = held[index];
        return value === undefined ? feed : { handle: 0, type: value.type, dims: value.dims };
      }),
    );
    const wanted = outputs ?? model.outputs.map(({ name }) => name);
    checkOutputs(model.outputs, wanted, keep);
    const cleanup = new Cleanup();
    try {
      return this.#memory.guard("InferenceError", () =>
        this.#run(model, names, feeds, held, wanted, keep, cleanup),
      );
    } finally {
      this.#memory.finish(cleanup);
    }
  }

  /** Copies a kept tensor out. Throws `InferenceError` when it was released. */
  fetchTensor(handle: number): TensorData {
    this.#memory.expectWorking();
    const value = this.#kept(handle);
    return this.#memory.guard("InferenceError", () => this.#copyOut(value));
  }

  /** Harmless when called again. */
  releaseTensor(handle: number): void {
    const value = this.#values.get(handle);
    if (value !== undefined && !this.#memory.broken) {
      this.#values.delete(handle);
      this.#memory.guard("InferenceError", () => this.#freeValue(value));
    }
  }

  /** Harmless when called again. Tensors that its runs kept stay until they are released. */
  releaseSession(session: number): void {
    const model = this.#models.get(session);
    if (model !== undefined && !this.#memory.broken) {
      this.#models.delete(session);
      this.#memory.guard("InferenceError", () => this.#freeModel(model));
    }
  }

  #load(
    model: ModelSource,
    data: number,
    external: Map<string, ExternalFile>,
    options: SessionOptions,
    cleanup: Cleanup,
  ): LoadedSession {
    const made = this.#createOptions(options, cleanup);
    const pointer = this.#createFrom(data, model.size, external, made);
    if (pointer === 0) {
      const failed = [...external.values()].find(({ failure }) => failure !== undefined);
      if (failed !== undefined) {
        throw failed.failure;
      }
      throw this.#memory.lastError(
        "ModelLoadError",
        `The runtime cannot load the model ${model.name} (${model.size} bytes)`,
        "If the file is damaged, delete the model and download it again; else choose another file or dtype.",
      );
    }
    const loaded: LoadedModel = { pointer, inputs: [], outputs: [], names: new Map() };
    // Only the session that is handed out survives.
    const failed = new Cleanup();
    failed.add(() => this.#freeModel(loaded));
    cleanup.add(() => failed.run());
    const [inputs, outputs] = this.#counts(pointer);
    for (let index = 0; index < inputs + outputs; index++) {
      const info = this.#describe(loaded, index);
      (index < inputs ? loaded.inputs : loaded.outputs).push(info);
    }
    failed.keep();
    const session = this.#nextId++;
    this.#models.set(session, loaded);
    return { session, inputs: loaded.inputs, outputs: loaded.outputs };
  }

  /** The runtime reads external data here, and nothing of it stays mounted: it would keep files alive. */
  #createFrom(data: number, size: number, external: Map<string, ExternalFile>, options: number): number {
    try {
      for (const [name, file] of external) {
        this.#ort.mountExternalData(name, file);
      }
      return this.#ort._OrtCreateSession(data, size, options);
    } finally {
      this.#ort.unmountExternalData();
    }
  }

  #createOptions(options: SessionOptions, cleanup: Cleanup): number {
    const level = options.graphOptimizationLevel ?? "all";
    if (!Object.hasOwn(OPTIMIZATION_LEVELS, level)) {
      throw optionError(
        "graphOptimizationLevel",
        level,
        `one of ${Object.keys(OPTIMIZATION_LEVELS).join(", ")}`,
      );
    }
    // As in the runtime's own JavaScript: no arena and no memory pattern (both pay off when shapes repeat, and never
    // give memory back), sequential execution, no profiling.
    const made = this.#ort._OrtCreateSessionOptions(
      OPTIMIZATION_LEVELS[level],
      0,
      0,
      0,
      0,
      0,
      0,
      LOG_SEVERITY,
      0,
      0,
    );
    if (made === 0) {
      throw this.#memory.lastError("ModelLoadError", "The session options could not be made");
    }
    cleanup.add(() => this.#ort._OrtReleaseSessionOptions(made));
    for (const [name, value] of Object.entries(options.freeDimensionOverrides ?? {})) {
      if (!Number.isInteger(value) || value < 0 || value >= 2 ** 31) {
        throw optionError(`freeDimensionOverrides['${name}']`, value, "a whole number that is not negative");
      }
      const status = this.#ort._OrtAddFreeDimensionOverride(
        made,
        this.#memory.text(name, "ModelLoadError", cleanup),
        value,
      );
      this.#memory.check(status, "ModelLoadError", `The dimension '${name}' could not be set to ${value}`);
    }
    for (const [key, value] of Object.entries({ ...DEFAULT_CONFIG, ...options.extra })) {
      if (typeof value !== "string") {
        throw optionError(`extra['${key}']`, value, "a string");
      }
      const status = this.#ort._OrtAddSessionConfigEntry(
        made,
        this.#memory.text(key, "ModelLoadError", cleanup),
        this.#memory.text(value, "ModelLoadError", cleanup),
      );
      this.#memory.check(
        status,
        "ModelLoadError",
        `The configuration entry '${key}' could not be set to '${value}'`,
      );
    }
    return made;
  }

  #counts(session: number): [inputs: number, outputs: number] {
    return this.#memory.onStack(2, (stack) => {
      this.#memory.check(
        this.#ort._OrtGetInputOutputCount(session, stack, stack + WORD),
        "ModelLoadError",
        "The model's inputs and outputs could not be counted",
      );
      return [this.#memory.word(stack), this.#memory.word(stack + WORD)];
    });
  }

  /** Name, type and shape of an input or output; outputs are counted after the inputs. */
  #describe(model: LoadedModel, index: number): TensorInfo {
    return this.#memory.onStack(2, (stack) => {
      this.#memory.check(
        this.#ort._OrtGetInputOutputMetadata(model.pointer, index, stack, stack + WORD),
        "ModelLoadError",
        `Input or output ${index} of the model could not be described`,
      );
      const name = this.#memory.word(stack);
      const metadata = this.#memory.word(stack + WORD);
      try {
        const text = this.#memory.readText(name);
        // An input that is also an output has its name twice; one is enough.
        const other = model.names.get(text);
        model.names.set(text, name);
        if (other !== undefined) {
          this.#ort._OrtFree(other);
        }
        return { name: text, ...this.#readMetadata(metadata) };
      } finally {
        this.#ort._OrtFree(metadata);
      }
    });
  }

  /** Layout: element type (0: no tensor), rank, then `rank` pointers to symbols (0: none), then `rank` numbers. */
  #readMetadata(metadata: number): Pick<TensorInfo, "type" | "shape"> {
    const type = typeFromCode(this.#memory.word(metadata));
    if (type === "") {
      return { type, shape: [] };
    }
    const rank = this.#memory.word(metadata + WORD);
    const symbols = metadata + 2 * WORD;
    const numbers = symbols + rank * WORD;
    const shape: (number | string)[] = [];
    for (let axis = 0; axis < rank; axis++) {
      const symbol = this.#memory.word(symbols + axis * WORD);
      // A dimension without number and without name is -1, read as a signed word.
      const size = this.#memory.word(numbers + axis * WORD) | 0;
      shape.push(symbol !== 0 ? this.#memory.readText(symbol) : size < 0 ? "" : size);
    }
    return { type, shape };
  }

  #run(
    model: LoadedModel,
    names: string[],
    feeds: Feed[],
    held: (Value | undefined)[],
    wanted: string[],
    keep: string[],
    cleanup: Cleanup,
  ): RunResult {
    const values = feeds.map(
      (feed, index) => held[index] ?? this.#copyIn(feed as TensorData, `Input '${names[index]}'`, cleanup),
    );
    const stack = this.#ort.stackSave();
    cleanup.add(() => this.#ort.stackRestore(stack));
    const inputNames = this.#memory.pointers(names.map((name) => model.names.get(name) ?? 0));
    const inputs = this.#memory.pointers(values.map(({ pointer }) => pointer));
    const outputNames = this.#memory.pointers(wanted.map((name) => model.names.get(name) ?? 0));
    const outputs = this.#memory.pointers(wanted.map(() => 0));

    const began = performance.now();
    const status = this.#ort._OrtRun(
      model.pointer,
      inputNames,
      inputs,
      names.length,
      outputNames,
      wanted.length,
      outputs,
      0,
    );
    const runMs = performance.now() - began;
    this.#memory.check(status, "InferenceError", `The run failed with ${describeFeeds(names, values)}`);

    // Every output has an owner before anything else can fail.
    const pointers = wanted.map((_name, index) => this.#memory.word(outputs + index * WORD));
    const owned = pointers.map((pointer) => {
      const value = { pointer, buffer: 0 };
      const release = new Cleanup();
      release.add(() => this.#freeValue(value));
      cleanup.add(() => release.run());
      return release;
    });
    const tensors: Feed[] = [];
    const references: TensorReference[] = [];
    const undo = new Cleanup();
    cleanup.add(() => undo.run());
    for (const [index, name] of wanted.entries()) {
      const value = this.#inspect(pointers[index] ?? 0, `Output '${name}'`);
      if (keep.includes(name)) {
        const own = this.#independent(value, values, name, cleanup);
        if (own === value) {
          owned[index]?.keep();
        }
        const handle = this.#nextId++;
        this.#values.set(handle, own);
        undo.add(() => this.releaseTensor(handle));
        const reference = { handle, type: own.type, dims: own.dims };
        references.push(reference);
        tensors.push(reference);
      } else {
        tensors.push(this.#copyOut(value));
      }
    }
    undo.keep();
    return { names: wanted, tensors, runMs };
  }

  /**
   * A kept output whose elements are those of an input that was copied in (a model may hand an input through) would
   * lose them with the input: it gets its own.
   */
  #independent(value: Value, inputs: Value[], name: string, cleanup: Cleanup): Value {
    const shares = inputs.some(
      ({ buffer, byteLength }) => buffer !== 0 && value.data >= buffer && value.data < buffer + byteLength,
    );
    if (!shares) {
      return value;
    }
    const own = new Cleanup();
    cleanup.add(() => own.run());
    const copy = this.#copyIn(this.#copyOut(value), `Output '${name}'`, own);
    own.keep();
    return copy;
  }

  /** Makes a tensor in the runtime's memory; `cleanup` frees it. */
  #copyIn(tensor: TensorData, what: string, cleanup: Cleanup): Value {
    const { type, dims, data } = tensor;
    const scratch = new Cleanup();
    let buffer = 0;
    let byteLength = 0;
    try {
      if (!Array.isArray(data)) {
        byteLength = data.byteLength;
        buffer = this.#memory.allocate(byteLength, "InferenceError", what, cleanup);
        this.#memory.heap().set(data instanceof ArrayBuffer ? new Uint8Array(data) : data, buffer);
      } else {
        // The runtime copies strings, so the C strings and the array of pointers to them go at once.
        byteLength = data.length * WORD;
        buffer = this.#memory.allocate(byteLength, "InferenceError", what, scratch);
        for (const [index, text] of data.entries()) {
          this.#ort.setValue(buffer + index * WORD, this.#memory.text(text, "InferenceError", scratch), "*");
        }
      }
      const pointer = this.#memory.onStack(dims.length, (stack) => {
        dims.forEach((dim, axis) => {
          this.#ort.setValue(stack + axis * WORD, dim, "*");
        });
        return this.#ort._OrtCreateTensor(
          codeOfType(type),
          buffer,
          byteLength,
          stack,
          dims.length,
          LOCATION_CPU,
        );
      });
      if (pointer === 0) {
        throw this.#memory.lastError(
          "InferenceError",
          `${what} could not be made as ${signature(type, dims)}`,
        );
      }
      cleanup.add(() => this.#ort._OrtReleaseTensor(pointer));
      const ownsBuffer = type !== "string";
      return { pointer, type, dims, data: buffer, buffer: ownsBuffer ? buffer : 0, byteLength };
    } finally {
      this.#memory.finish(scratch);
    }
  }

  /** Type, shape and place of a tensor that the runtime made. For strings the place is not known. */
  #inspect(pointer: number, what: string): Value {
    return this.#tensorData(pointer, what, (type, data, dims) => ({
      pointer,
      type,
      dims,
      data: type === "string" ? 0 : data,
      buffer: 0,
      byteLength: type === "string" ? 0 : elementCount(dims) * ELEMENT_BYTES[type],
    }));
  }

  #copyOut(value: Value): TensorData {
    const { pointer, type, dims } = value;
    if (type === "string") {
      return this.#tensorData(pointer, "A tensor of strings", (_type, data) => ({
        type,
        dims,
        data: this.#readStrings(data, elementCount(dims)),
      }));
    }
    // A typed array's slice is never shared memory, even when the array is.
    return { type, dims, data: this.#memory.heap().slice(value.data, value.data + value.byteLength).buffer };
  }

  /** Asks the runtime about a tensor. What it makes for the answer (dims, copies of strings) is freed after `use`. */
  #tensorData<Result>(
    pointer: number,
    what: string,
    use: (type: TensorType, data: number, dims: number[]) => Result,
  ): Result {
    return this.#memory.onStack(4, (stack) => {
      this.#memory.check(
        this.#ort._OrtGetTensorData(pointer, stack, stack + WORD, stack + 2 * WORD, stack + 3 * WORD),
        "InferenceError",
        `${what} could not be read`,
      );
      const code = this.#memory.word(stack);
      const data = this.#memory.word(stack + WORD);
      const dimsAt = this.#memory.word(stack + 2 * WORD);
      const dims = Array.from({ length: this.#memory.word(stack + 3 * WORD) }, (_, axis) =>
        this.#memory.word(dimsAt + axis * WORD),
      );
      this.#ort._OrtFree(dimsAt);
      const type = typeFromCode(code);
      try {
        if (type === "") {
          throw new NamedError(
            "InferenceError",
            `${what} has the ONNX element type ${code}, which cannot leave the runtime. Leave this output out.`,
          );
        }
        return use(type, data, dims);
      } finally {
        if (type === "string") {
          this.#ort._free(data);
        }
      }
    });
  }

  /** Layout: `count` pointers, then the UTF-8 of all strings without gaps, then a zero. */
  #readStrings(data: number, count: number): string[] {
    const strings: string[] = [];
    for (let index = 0; index < count; index++) {
      const begin = this.#memory.word(data + index * WORD);
      const isLast = index === count - 1;
      strings.push(
        isLast
          ? this.#memory.readText(begin)
          : this.#memory.decode(begin, this.#memory.word(data + (index + 1) * WORD)),
      );
    }
    return strings;
  }

  #kept(handle: number): Value {
    const value = this.#values.get(handle);
    if (value === undefined) {
      throw new NamedError(
        "InferenceError",
        `Tensor ${handle} is not in this runtime: it was released, or it belongs to another engine.`,
        { handle },
      );
    }
    return value;
  }

  #freeValue({ pointer, buffer }: Pick<Value, "pointer" | "buffer">): void {
    this.#ort._OrtReleaseTensor(pointer);
    this.#ort._free(buffer);
  }

  #freeModel(model: LoadedModel): void {
    for (const name of model.names.values()) {
      this.#ort._OrtFree(name);
    }
    this.#ort._OrtReleaseSession(model.pointer);
  }
}

function optionError(field: string, value: unknown, allowed: string): NamedError {
  return new NamedError(
    "OptionsError",
    `Session option ${field} must be ${allowed}, not ${JSON.stringify(value)}.`,
    {
      field,
      value,
    },
  );
}

function checkOutputs(outputs: TensorInfo[], wanted: string[], keep: string[]): void {
  const known = outputs.map(({ name }) => name);
  for (const [index, name] of wanted.entries()) {
    if (!known.includes(name)) {
      throw new NamedError(
        "InferenceError",
        `The model has no output '${name}'. It has ${known.join(", ")}.`,
        {
          output: name,
        },
      );
    }
    if (wanted.indexOf(name) !== index) {
      throw new NamedError("InferenceError", `Output '${name}' was asked for twice. Ask once.`, {
        output: name,
      });
    }
  }
  const stray = keep.find((name) => !wanted.includes(name));
  if (stray !== undefined) {
    throw new NamedError(
      "InferenceError",
      `Output '${stray}' should be kept but is not computed. Computed are ${wanted.join(", ") || "none"}.`,
      { output: stray },
    );
  }
}

function describeFeeds(names: string[], values: Value[]): string {
  return (
    values.map(({ type, dims }, index) => `${names[index]} = ${signature(type, dims)}`).join(", ") ||
    "no inputs"
  );
}
