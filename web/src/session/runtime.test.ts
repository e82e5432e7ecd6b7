/** The runtime's own WASM under Node, with models that `testing/make_models.py` writes. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { before, describe, test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import type { Glue } from "onnxruntime-web/ort-wasm-simd-threaded.mjs";
import { NamedError } from "../errors.ts";
import { type Feed, isReference, TENSOR_TYPES, type TensorData, type TensorType } from "../protocol.ts";
import { Memory } from "./memory.ts";
import { Runtime } from "./runtime.ts";
import { ModelFile, type ModelSource, type Piece } from "./source.ts";
import { ELEMENT_BYTES } from "./tensors.ts";

const FOLDER = join("build", "session-models");
const PYTHON = process.env.PYWEBML_PYTHON ?? join(".venv", "bin", "python");
const WASM = createRequire(import.meta.url).resolve("onnxruntime-web/ort-wasm-simd-threaded.wasm");

let runtime: Runtime;

before(async () => {
  execFileSync(PYTHON, [join("web", "src", "session", "testing", "make_models.py"), FOLDER]);
  runtime = await Runtime.start(readFileSync(WASM), 1);
});

const MIB = 1024 * 1024;

/** Bytes in pieces of `pieceSize`; `onRead` hears how many are read at a time. */
function source(
  name: string,
  bytes: Uint8Array,
  pieceSize = 1000,
  onRead: (count: number) => void = () => undefined,
): ModelSource {
  const piece = (part: Uint8Array): Piece => ({
    size: part.byteLength,
    read: (begin, end) => {
      onRead(end - begin);
      return new Uint8Array(part.subarray(begin, end)).buffer;
    },
  });
  const count = Math.ceil(bytes.byteLength / pieceSize);
  return {
    key: ["model", "tests", "main", name],
    name,
    size: bytes.byteLength,
    pieces: async () =>
      Array.from({ length: count }, (_, index) =>
        piece(bytes.subarray(index * pieceSize, (index + 1) * pieceSize)),
      ),
  };
}

/** The same file, of which no byte can be read. */
function unreadable(whole: ModelSource, read: Piece["read"]): ModelSource {
  return { ...whole, pieces: async () => (await whole.pieces()).map(({ size }) => ({ size, read })) };
}

function lost(): never {
  throw new DOMException("The requested file could not be read", "NotReadableError");
}

function file(name: string, pieceSize?: number): ModelSource {
  return source(name, readFileSync(join(FOLDER, name)), pieceSize);
}

function load(name: string, options = {}) {
  return runtime.createSession(file(`${name}.onnx`), new Map(), options);
}

function floats(dims: number[], values: number[]): TensorData {
  return { type: "float32", dims, data: new Float32Array(values).buffer };
}

function numbers(feed: Feed | undefined): number[] {
  assert.ok(feed !== undefined && !isReference(feed) && feed.data instanceof ArrayBuffer);
  return [...new Float32Array(feed.data)];
}

/** Six elements whose bytes are all different, where the type allows. */
function sample(type: TensorType): TensorData {
  const dims = [2, 3];
  if (type === "string") {
    return { type, dims, data: ["a", "bb", "", "č", "東京", "👋"] };
  }
  const bytes = Uint8Array.from({ length: 6 * ELEMENT_BYTES[type] }, (_, index) =>
    type === "bool" ? index % 2 : (index * 5 + 1) % 120,
  );
  return { type, dims, data: bytes.buffer };
}

/** A runtime, and a way to make every later call of its WASM trap. */
async function startBreakable(): Promise<[runtime: Runtime, wreck: () => void]> {
  const instantiate = WebAssembly.instantiate;
  let wrecked = false;
  const breakable = (value: WebAssembly.ExportValue) =>
    typeof value !== "function"
      ? value
      : (...args: unknown[]) => {
          if (wrecked) {
            throw new WebAssembly.RuntimeError("unreachable");
          }
          return value(...args);
        };
  WebAssembly.instantiate = (async (module: WebAssembly.Module, imports: WebAssembly.Imports) => {
    const { exports } = await instantiate(module, imports);
    return {
      exports: Object.fromEntries(Object.entries(exports).map(([name, value]) => [name, breakable(value)])),
    };
  }) as typeof WebAssembly.instantiate;
  try {
    const started = await Runtime.start(readFileSync(WASM), 1);
    return [
      started,
      () => {
        wrecked = true;
      },
    ];
  } finally {
    WebAssembly.instantiate = instantiate;
  }
}

function named(name: string, ...patterns: RegExp[]) {
  return (error: unknown) => {
    assert.ok(error instanceof NamedError, String(error));
    assert.equal(error.name, name);
    for (const pattern of patterns) {
      assert.match(error.message, pattern);
    }
    return true;
  };
}

describe("tensors", () => {
  for (const type of TENSOR_TYPES) {
    test(`${type} goes in and comes out unchanged`, async () => {
      const { session, inputs } = await load(`identity_${type}`);
      assert.deepEqual(inputs, [{ name: "x", type, shape: ["rows", "columns"] }]);
      const given = sample(type);
      const { names, tensors } = runtime.run(session, ["x"], [given], null, []);
      assert.deepEqual(names, ["y"]);
      assert.deepEqual(tensors, [given]);
      runtime.releaseSession(session);
    });

    test(`${type} without elements keeps its shape`, async () => {
      const { session } = await load(`identity_${type}`);
      const given: TensorData = { type, dims: [0, 5], data: type === "string" ? [] : new ArrayBuffer(0) };
      assert.deepEqual(runtime.run(session, ["x"], [given], null, []).tensors, [given]);
      runtime.releaseSession(session);
    });
  }

  test("strings of any script, empty ones and long ones survive", async () => {
    const { session } = await load("identity_string");
    const data = ["", "plain", "žluťoučký kůň", "東京", "👩‍👩‍👧", "", "x".repeat(100_000), "ende ß", ""];
    const given: TensorData = { type: "string", dims: [3, 3], data };
    assert.deepEqual(runtime.run(session, ["x"], [given], null, []).tensors, [given]);
    runtime.releaseSession(session);
  });

  test("a string that the C API would cut is refused", async () => {
    const { session } = await load("identity_string");
    const given: TensorData = { type: "string", dims: [1, 1], data: ["a\0b"] };
    assert.throws(() => runtime.run(session, ["x"], [given], null, []), named("InferenceError", /U\+0000/));
    runtime.releaseSession(session);
  });

  test("a scalar has no dimensions", async () => {
    const { session, inputs } = await load("scalar");
    assert.deepEqual(inputs, [{ name: "x", type: "float32", shape: [] }]);
    assert.deepEqual(runtime.run(session, ["x"], [floats([], [1.5])], null, []).tensors, [floats([], [3])]);
    runtime.releaseSession(session);
  });

  test("outputs lie in fresh buffers of their own", async () => {
    const { session } = await load("shapes");
    const feeds = [floats([1, 3], [1, 2, 3]), floats([1, 3], [4, 5, 6])];
    const { tensors } = runtime.run(session, ["a", "b"], feeds, null, []);
    for (const tensor of tensors) {
      assert.ok(!isReference(tensor) && tensor.data instanceof ArrayBuffer);
      assert.equal(tensor.data.byteLength, 12);
    }
    runtime.releaseSession(session);
  });
});

describe("sessions and runs", () => {
  test("inputs and outputs are described with numbers, symbols and blanks", async () => {
    const { session, inputs, outputs } = await load("shapes");
    assert.deepEqual(inputs, [
      { name: "a", type: "float32", shape: ["batch_size", 3] },
      { name: "b", type: "float32", shape: ["", 3] },
    ]);
    assert.deepEqual(
      outputs.map(({ name }) => name),
      ["sum", "product"],
    );
    runtime.releaseSession(session);
  });

  test("a symbol can be fixed, and then only that size fits", async () => {
    const { session, inputs } = await load("shapes", { freeDimensionOverrides: { batch_size: 2 } });
    assert.deepEqual(inputs[0]?.shape, [2, 3]);
    const one = floats([1, 3], [1, 2, 3]);
    assert.throws(
      () => runtime.run(session, ["a", "b"], [one, one], null, []),
      named("InferenceError", /'a' must be float32\[2,3\], but float32\[1,3\]/),
    );
    runtime.releaseSession(session);
  });

  test("the batch may differ from run to run", async () => {
    const { session } = await load("shapes");
    for (const rows of [1, 4, 2, 0]) {
      const values = Array.from({ length: rows * 3 }, (_, index) => index);
      const feed = floats([rows, 3], values);
      const { tensors } = runtime.run(session, ["b", "a"], [feed, feed], ["sum"], []);
      assert.deepEqual(tensors, [
        floats(
          [rows, 3],
          values.map((value) => value * 2),
        ),
      ]);
    }
    runtime.releaseSession(session);
  });

  test("only the outputs that were asked for come back, in that order", async () => {
    const { session } = await load("shapes");
    const feed = floats([1, 3], [1, 2, 3]);
    const { names, tensors } = runtime.run(session, ["a", "b"], [feed, feed], ["product", "sum"], []);
    assert.deepEqual(names, ["product", "sum"]);
    assert.deepEqual(numbers(tensors[0]), [1, 4, 9]);
    assert.deepEqual(numbers(tensors[1]), [2, 4, 6]);
    runtime.releaseSession(session);
  });

  test("every optimisation level loads, and others are refused", async () => {
    for (const graphOptimizationLevel of ["disabled", "basic", "extended", "all"] as const) {
      const { session } = await load("shapes", { graphOptimizationLevel });
      runtime.releaseSession(session);
    }
    await assert.rejects(
      load("shapes", { graphOptimizationLevel: "most" }),
      named("OptionsError", /disabled, basic/),
    );
    await assert.rejects(
      load("shapes", { freeDimensionOverrides: { batch_size: -1 } }),
      named("OptionsError", /batch_size/),
    );
    await assert.rejects(load("shapes", { extra: { a: 1 } }), named("OptionsError", /extra\['a'\]/));
  });

  test("the runtime's own words come with an error in the middle of a run, and the session goes on", async () => {
    const { session } = await load("gather");
    const x = floats([2], [7, 8]);
    const index = (value: bigint): TensorData => ({
      type: "int64",
      dims: [1],
      data: new BigInt64Array([value]).buffer,
    });
    assert.throws(
      () => runtime.run(session, ["x", "index"], [x, index(5n)], null, []),
      named("InferenceError", /out of data bounds/, /x = float32\[2\]/),
    );
    assert.deepEqual(numbers(runtime.run(session, ["x", "index"], [x, index(1n)], null, []).tensors[0]), [8]);
    runtime.releaseSession(session);
  });

  test("running out of memory is an error that says so, and the session goes on", async () => {
    const { session } = await load("zeros");
    const shape = (value: bigint): TensorData => ({
      type: "int64",
      dims: [1],
      data: new BigInt64Array([value]).buffer,
    });
    assert.throws(
      () => runtime.run(session, ["shape"], [shape(1_073_000_000n)], null, []),
      named("InferenceError", /memory has \d+ bytes/),
    );
    assert.deepEqual(numbers(runtime.run(session, ["shape"], [shape(2n)], null, []).tensors[0]), [0, 0]);
    runtime.releaseSession(session);
  });

  test("a released session is gone, and releasing it again is harmless", async () => {
    const { session } = await load("scalar");
    runtime.releaseSession(session);
    runtime.releaseSession(session);
    runtime.releaseSession(12345);
    assert.throws(
      () => runtime.run(session, ["x"], [floats([], [1])], null, []),
      named("SessionClosedError"),
    );
  });
});

describe("feeds that do not fit", () => {
  const good = floats([1, 3], [1, 2, 3]);
  const cases: [what: string, names: string[], feeds: Feed[], message: RegExp][] = [
    ["a missing input", ["a"], [good], /Missing inputs: b\. .*b: float32\[\?,3\]/],
    ["an unknown input", ["a", "b", "c"], [good, good, good], /no input 'c'.*a: float32\[batch_size,3\]/],
    ["an input given twice", ["a", "b", "a"], [good, good, good], /'a' was given twice/],
    ["more names than tensors", ["a", "b"], [good], /2 input names came with 1/],
    ["another element type", ["a", "b"], [{ ...good, type: "int32" }, good], /int32\[1,3\].*element types/],
    ["another rank", ["a", "b"], [{ ...good, dims: [3] }, good], /numbers of dimensions/],
    ["another fixed size", ["a", "b"], [floats([3, 1], [1, 2, 3]), good], /dimension 1 must be 3/],
    ["too few bytes", ["a", "b"], [floats([1, 3], [1, 2]), good], /8 bytes, its dimensions ask for 12/],
    ["a negative dimension", ["a", "b"], [{ ...good, dims: [-1, 3] }, good], /not negative/],
    ["strings for numbers", ["a", "b"], [{ ...good, data: ["1", "2", "3"] }, good], /neither an ArrayBuffer/],
    ["an unknown handle", ["a", "b"], [{ handle: 999, type: "float32", dims: [1, 3] }, good], /999/],
  ];
  for (const [what, names, feeds, message] of cases) {
    test(`${what} is refused`, async () => {
      const { session } = await load("shapes");
      assert.throws(() => runtime.run(session, names, feeds, null, []), named("InferenceError", message));
      runtime.releaseSession(session);
    });
  }

  test("too few strings are refused", async () => {
    const { session } = await load("identity_string");
    const given: TensorData = { type: "string", dims: [2, 2], data: ["a"] };
    assert.throws(
      () => runtime.run(session, ["x"], [given], null, []),
      named("InferenceError", /1 strings.*4/),
    );
    runtime.releaseSession(session);
  });

  test("unknown, repeated and stray outputs are refused", async () => {
    const { session } = await load("shapes");
    const run = (outputs: string[], keep: string[]) => () =>
      runtime.run(session, ["a", "b"], [good, good], outputs, keep);
    assert.throws(run(["nothing"], []), named("InferenceError", /no output 'nothing'.*sum, product/));
    assert.throws(run(["sum", "sum"], []), named("InferenceError", /twice/));
    assert.throws(run(["sum"], ["product"]), named("InferenceError", /'product' should be kept/));
    runtime.releaseSession(session);
  });
});

describe("tensors that stay in the runtime", () => {
  test("a kept output can be fed, fetched and released", async () => {
    const { session } = await load("shapes");
    const one = floats([1, 3], [1, 1, 1]);
    let state: Feed = floats([1, 3], [0, 10, 20]);
    for (let step = 0; step < 5; step++) {
      const { tensors } = runtime.run(session, ["a", "b"], [state, one], ["sum"], ["sum"]);
      if (isReference(state)) {
        runtime.releaseTensor(state.handle);
      }
      state = tensors[0] as Feed;
      assert.ok(isReference(state));
      assert.deepEqual([state.type, state.dims], ["float32", [1, 3]]);
    }
    assert.ok(isReference(state));
    assert.deepEqual(runtime.fetchTensor(state.handle), floats([1, 3], [5, 15, 25]));
    runtime.releaseTensor(state.handle);
    runtime.releaseTensor(state.handle);
    const { handle } = state;
    assert.throws(() => runtime.fetchTensor(handle), named("InferenceError", /released/));
    runtime.releaseSession(session);
  });

  test("kept and copied outputs can be mixed", async () => {
    const { session } = await load("shapes");
    const feed = floats([1, 3], [1, 2, 3]);
    const { tensors } = runtime.run(session, ["a", "b"], [feed, feed], null, ["product"]);
    assert.deepEqual(numbers(tensors[0]), [2, 4, 6]);
    const kept = tensors[1];
    assert.ok(kept !== undefined && isReference(kept));
    assert.deepEqual(numbers(runtime.fetchTensor(kept.handle)), [1, 4, 9]);
    runtime.releaseTensor(kept.handle);
    runtime.releaseSession(session);
  });

  test("kept strings can be fetched", async () => {
    const { session } = await load("identity_string");
    const given: TensorData = { type: "string", dims: [1, 2], data: ["ä", "b"] };
    const kept = runtime.run(session, ["x"], [given], null, ["y"]).tensors[0];
    assert.ok(kept !== undefined && isReference(kept));
    assert.deepEqual(runtime.fetchTensor(kept.handle), given);
    runtime.releaseTensor(kept.handle);
    runtime.releaseSession(session);
  });

  test("they outlive their session", async () => {
    const { session } = await load("scalar");
    const kept = runtime.run(session, ["x"], [floats([], [2])], null, ["y"]).tensors[0];
    assert.ok(kept !== undefined && isReference(kept));
    runtime.releaseSession(session);
    assert.deepEqual(runtime.fetchTensor(kept.handle), floats([], [4]));
    runtime.releaseTensor(kept.handle);
  });

  test("a kept output that is an input has its own elements", async () => {
    const { session } = await load("through");
    const first = runtime.run(session, ["x"], [floats([3], [1, 2, 3])], null, ["x"]).tensors[0];
    const second = runtime.run(session, ["x"], [floats([3], [7, 8, 9])], null, ["x"]).tensors[0];
    assert.ok(first !== undefined && isReference(first) && second !== undefined && isReference(second));
    // Through a second time, from a handle that goes before its successor does.
    const third = runtime.run(session, ["x"], [first], null, ["x"]).tensors[0];
    assert.ok(third !== undefined && isReference(third));
    runtime.releaseTensor(first.handle);
    runtime.run(session, ["x"], [floats([3], [4, 5, 6])], null, []);
    assert.deepEqual(numbers(runtime.fetchTensor(second.handle)), [7, 8, 9]);
    assert.deepEqual(numbers(runtime.fetchTensor(third.handle)), [1, 2, 3]);
    runtime.releaseTensor(second.handle);
    runtime.releaseTensor(third.handle);
    runtime.releaseSession(session);
  });

  test("a handle of the wrong type is refused by what it is, not by what is claimed", async () => {
    const integers = await load("identity_int32");
    const { session } = await load("identity_float32");
    const kept = runtime.run(integers.session, ["x"], [sample("int32")], null, ["y"]).tensors[0];
    assert.ok(kept !== undefined && isReference(kept));
    assert.throws(
      () => runtime.run(session, ["x"], [{ ...kept, type: "float32" }], null, []),
      named("InferenceError", /int32\[2,3\] was given/),
    );
    runtime.releaseTensor(kept.handle);
  });
});

describe("a model file", () => {
  const whole = Uint8Array.from({ length: 25 }, (_, index) => index);
  const copy = (opened: ModelFile, begin: number, end: number) => {
    const memory = new Uint8Array(end - begin + 2);
    opened.copy(begin, end, memory, 1);
    assert.deepEqual([memory.at(0), memory.at(-1)], [0, 0]);
    return memory.subarray(1, -1);
  };

  test("gives every range as the whole would, in any order", async () => {
    for (const order of [1, -1]) {
      const opened = await ModelFile.open(source("small", whole, 10));
      for (const begin of [...Array(26).keys()].sort((left, right) => order * (left - right))) {
        for (let end = begin; end <= 25; end++) {
          assert.deepEqual(copy(opened, begin, end), whole.subarray(begin, end), `${begin} ${end}`);
        }
      }
    }
  });

  test("never reads more than 8 MiB at a time, and each byte of a large range once", async () => {
    const bytes = new Uint8Array(40 * MIB).map((_, index) => (index >> 10) % 251);
    for (const pieceSize of [4 * MIB, 13 * MIB, 40 * MIB]) {
      const reads: number[] = [];
      const opened = await ModelFile.open(source("large", bytes, pieceSize, (count) => reads.push(count)));
      assert.ok(Buffer.from(bytes).equals(copy(opened, 0, bytes.byteLength)));
      assert.ok(Math.max(...reads) <= 8 * MIB, String(reads));
      assert.equal(
        reads.reduce((sum, count) => sum + count),
        bytes.byteLength,
      );
    }
  });

  test("a range beyond the end is an error that names the file and the sizes", async () => {
    const opened = await ModelFile.open(source("weights.bin", whole));
    assert.throws(
      () => copy(opened, 20, 26),
      named("ModelLoadError", /20 to 26 of weights\.bin, which has 25/),
    );
  });

  test("bytes that the browser lost are an error with the file's key", async () => {
    const good = source("weights.bin", whole);
    for (const read of [lost, (begin: number, end: number) => new ArrayBuffer(end - begin - 1)]) {
      const opened = await ModelFile.open(unreadable(good, read));
      assert.throws(
        () => copy(opened, 0, 25),
        (error) => {
          named("DamagedFileError", /weights\.bin/, /NotReadableError|24 bytes/)(error);
          assert.deepEqual((error as NamedError).details, { key: good.key });
          return true;
        },
      );
    }
  });

  test("other errors of reading come through", async () => {
    const opened = await ModelFile.open(
      unreadable(source("weights.bin", whole), () => {
        throw new RangeError("Array buffer allocation failed");
      }),
    );
    assert.throws(() => copy(opened, 0, 25), RangeError);
  });
});

describe("the memory's stand-in for bytes", () => {
  const fake = () => {
    const glue = { HEAPU8: new Uint8Array(8), getValue: () => 0 };
    return [glue.HEAPU8, new Memory(glue as unknown as Glue)] as const;
  };

  test("puts bytes where set is told to, and set is what it was", () => {
    const [heap, memory] = fake();
    const lazy = memory.lazyBytes((view, offset) => view.fill(7, offset, offset + 2));
    heap.set(lazy, 3);
    assert.deepEqual([...heap], [0, 0, 0, 7, 7, 0, 0, 0]);
    assert.equal(Object.hasOwn(heap, "set"), false);
  });

  test("does not disturb a set of real bytes, and is never taken for empty", () => {
    const [heap, memory] = fake();
    const lazy = memory.lazyBytes(() => assert.fail("not this one"));
    heap.set([1, 2], 6);
    assert.deepEqual([...heap], [0, 0, 0, 0, 0, 0, 1, 2]);
    assert.throws(() => heap.set(lazy, 0), /grew/);
  });
});

describe("loading", () => {
  for (const pieceSize of [1000, 4096, 1_000_000]) {
    test(`external data in pieces of ${pieceSize} bytes gives the right result`, async () => {
      const { session } = await runtime.createSession(
        file("external.onnx"),
        new Map([["external.onnx_data", file("external.onnx_data", pieceSize)]]),
        {},
      );
      const x = Array.from({ length: 64 }, (_, index) => index / 64);
      const got = numbers(runtime.run(session, ["x"], [floats([1, 64], x)], null, []).tensors[0]);
      const expected = new Float32Array(
        new Uint8Array(readFileSync(join(FOLDER, "external.expected"))).buffer,
      );
      for (const [index, value] of expected.entries()) {
        assert.ok(Math.abs((got[index] ?? Number.NaN) - value) < 1e-3, `${index}: ${got[index]} ${value}`);
      }
      runtime.releaseSession(session);
    });
  }

  for (const numThreads of [1, 2]) {
    test(`a tensor of 20 MiB is read in slices by a runtime with ${numThreads} threads`, async () => {
      const other = await Runtime.start(readFileSync(WASM), numThreads);
      const bytes = readFileSync(join(FOLDER, "table.onnx_data"));
      for (const pieceSize of [4 * MIB, bytes.byteLength]) {
        const reads: number[] = [];
        const table = source("table.onnx_data", bytes, pieceSize, (count) => reads.push(count));
        const { session } = await other.createSession(
          file("table.onnx"),
          new Map([["table.onnx_data", table]]),
          {},
        );
        assert.ok(Math.max(...reads) <= 8 * MIB);
        const rows = Array.from({ length: 5120 }, (_, row) => row);
        const index = new BigInt64Array(rows.map(BigInt)).buffer;
        const { tensors } = other.run(
          session,
          ["index"],
          [{ type: "int64", dims: [5120], data: index }],
          null,
          [],
        );
        const got = numbers(tensors[0]);
        assert.equal(got.length, 5120 * 1024);
        assert.equal(
          got.findIndex((value, place) => value !== place + 1),
          -1,
        );
        other.releaseSession(session);
      }
    });
  }

  test("external data that the browser lost is not the runtime's error, and the next model loads", async () => {
    const good = file("external.onnx_data");
    await assert.rejects(
      runtime.createSession(
        file("external.onnx"),
        new Map([["external.onnx_data", unreadable(good, lost)]]),
        {},
      ),
      (error) => {
        named("DamagedFileError", /external\.onnx_data.*NotReadableError/)(error);
        assert.deepEqual((error as NamedError).details, { key: good.key });
        return true;
      },
    );
    const { session } = await runtime.createSession(
      file("external.onnx"),
      new Map([["external.onnx_data", good]]),
      {},
    );
    runtime.releaseSession(session);
  });

  test("external data that is too short for the model is named with its size", async () => {
    const short = source(
      "external.onnx_data",
      readFileSync(join(FOLDER, "external.onnx_data")).subarray(0, 20_000),
    );
    await assert.rejects(
      runtime.createSession(file("external.onnx"), new Map([["external.onnx_data", short]]), {}),
      named("ModelLoadError", /bytes \d+ to \d+ of external\.onnx_data, which has 20000/),
    );
  });

  test("nothing keeps the files once they are loaded, or could not be", async () => {
    setFlagsFromString("--expose-gc");
    const collect = runInNewContext("gc") as () => void;
    for (const read of [undefined, lost]) {
      const kept: WeakRef<Piece>[] = [];
      const watched = (given: ModelSource): ModelSource => ({
        ...given,
        pieces: async () => {
          const pieces = await given.pieces();
          kept.push(...pieces.map((piece) => new WeakRef(piece)));
          return pieces;
        },
      });
      const data = file("external.onnx_data");
      const external = new Map([
        ["external.onnx_data", watched(read === undefined ? data : unreadable(data, read))],
      ]);
      const loaded = await runtime
        .createSession(watched(file("external.onnx")), external, {})
        .catch(() => undefined);
      assert.equal(loaded === undefined, read !== undefined);
      assert.ok(kept.length > 2);
      await new Promise((resolve) => setImmediate(resolve));
      collect();
      assert.deepEqual(
        kept.filter((reference) => reference.deref() !== undefined),
        [],
      );
      runtime.releaseSession(loaded?.session ?? 0);
    }
  });

  test("missing external data is an error with the runtime's words, and is not left mounted", async () => {
    await assert.rejects(
      runtime.createSession(file("external.onnx"), new Map([["other", file("scalar.onnx")]]), {}),
      named("ModelLoadError", /external/i),
    );
    await assert.rejects(load("external"), named("ModelLoadError"));
  });

  test("a corrupt, a cut and an empty model are refused, and the next one loads", async () => {
    const bytes = new Uint8Array(readFileSync(join(FOLDER, "shapes.onnx")));
    const corrupt = bytes.map((byte, index) => (index > 20 ? byte ^ 0xff : byte));
    for (const damaged of [corrupt, bytes.subarray(0, bytes.length / 2), new Uint8Array(0)]) {
      await assert.rejects(
        runtime.createSession(source("damaged.onnx", damaged), new Map(), {}),
        named("ModelLoadError", /damaged\.onnx \(\d+ bytes\): .+/, /download it again/),
      );
    }
    const { session } = await load("scalar");
    assert.deepEqual(numbers(runtime.run(session, ["x"], [floats([], [1])], null, []).tensors[0]), [2]);
    runtime.releaseSession(session);
  });

  test("a file with more or fewer bytes than its record says is refused", async () => {
    const whole = file("scalar.onnx");
    for (const size of [whole.size - 1, whole.size + 1]) {
      await assert.rejects(
        runtime.createSession({ ...whole, size }, new Map(), {}),
        named("ModelLoadError", /should have/),
      );
    }
  });

  test("errors of the source come through unchanged", async () => {
    const failing: ModelSource = {
      ...file("scalar.onnx"),
      pieces: async () => {
        throw new NamedError("StoreError", "part 1 is missing");
      },
    };
    await assert.rejects(runtime.createSession(failing, new Map(), {}), named("StoreError", /part 1/));
  });

  test("a model beyond the runtime's memory is refused with its size", async () => {
    const size = 5_000_000_000;
    const huge: ModelSource = { ...file("scalar.onnx"), size, pieces: async () => [{ size, read: lost }] };
    await assert.rejects(
      runtime.createSession(huge, new Map(), {}),
      named("ModelLoadError", /5000000000 bytes/),
    );
  });

  test("bytes that are no WASM do not start a runtime", async () => {
    await assert.rejects(Runtime.start(new Uint8Array([1, 2, 3]), 1), named("RuntimeStartError", /compiled/));
    const other = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0]);
    await assert.rejects(Runtime.start(other, 1), named("RuntimeStartError", /another build/));
  });
});

describe("memory", () => {
  test("a thousand runs, loads and failures leave no memory behind", async () => {
    const external = () => new Map([["external.onnx_data", file("external.onnx_data")]]);
    const { session } = await load("identity_string");
    const shapes = await load("shapes");
    const text: TensorData = { type: "string", dims: [4, 1], data: ["a", "é".repeat(20_000), "", "b"] };
    const feed = floats([10_000, 3], new Array(30_000).fill(1));
    const round = async (index: number) => {
      runtime.run(session, ["x"], [text], null, []);
      const kept = runtime.run(shapes.session, ["a", "b"], [feed, feed], null, ["sum"]).tensors[0];
      assert.ok(kept !== undefined && isReference(kept));
      runtime.releaseTensor(kept.handle);
      if (index % 10 === 0) {
        const loaded = await runtime.createSession(file("external.onnx"), external(), {});
        runtime.releaseSession(loaded.session);
        await assert.rejects(
          runtime.createSession(source("bad", new Uint8Array(100_000)), new Map(), { extra: { a: "b" } }),
        );
      }
    };
    for (let index = 0; index < 50; index++) {
      await round(index);
    }
    const warm = runtime.memoryBytes;
    for (let index = 0; index < 1000; index++) {
      await round(index);
    }
    assert.equal(runtime.memoryBytes, warm);
    runtime.releaseSession(session);
    runtime.releaseSession(shapes.session);
  });
});

describe("a runtime that stopped", () => {
  test("fails the call, then says that a new engine is needed", async () => {
    const [doomed, wreck] = await startBreakable();
    const { session } = await doomed.createSession(file("shapes.onnx"), new Map(), {});
    const feed = floats([1, 3], [1, 2, 3]);
    wreck();
    assert.throws(
      () => doomed.run(session, ["a", "b"], [feed, feed], null, []),
      named("InferenceError", /stopped/, /new engine/),
    );
    assert.throws(
      () => doomed.run(session, ["a", "b"], [feed, feed], null, []),
      named("SessionClosedError", /new engine/),
    );
    await assert.rejects(
      doomed.createSession(file("shapes.onnx"), new Map(), {}),
      named("SessionClosedError", /new engine/),
    );
    doomed.releaseSession(session);
    const { session: other } = await load("scalar");
    runtime.releaseSession(other);
  });
});

describe("threads", () => {
  test("two threads compute what one does", async () => {
    const threaded = await Runtime.start(readFileSync(WASM), 2);
    const { session } = await threaded.createSession(file("shapes.onnx"), new Map(), {});
    const rows = 50_000;
    const feed = floats([rows, 3], new Array(rows * 3).fill(2));
    const { tensors } = threaded.run(session, ["a", "b"], [feed, feed], ["sum"], []);
    assert.ok(numbers(tensors[0]).every((value) => value === 4));
    threaded.releaseSession(session);
  });
});
