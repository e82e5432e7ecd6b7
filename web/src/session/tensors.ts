/** ONNX element types, and whether feeds fit a model's inputs. */

import { NamedError } from "../errors.ts";
import {
  type Feed,
  isReference,
  TENSOR_TYPES,
  type TensorData,
  type TensorInfo,
  type TensorType,
} from "../protocol.ts";

/** Bytes of one element. Strings have no fixed size: the runtime takes an array of pointers. */
export const ELEMENT_BYTES: Record<Exclude<TensorType, "string">, number> = {
  float32: 4,
  uint8: 1,
  int8: 1,
  uint16: 2,
  int16: 2,
  int32: 4,
  int64: 8,
  bool: 1,
  float16: 2,
  float64: 8,
  uint32: 4,
  uint64: 8,
};

/** `TensorProto.DataType` in onnx.proto begins with these thirteen, counted from 1. */
export function typeFromCode(code: number): TensorType | "" {
  return TENSOR_TYPES[code - 1] ?? "";
}

export function codeOfType(type: TensorType): number {
  return TENSOR_TYPES.indexOf(type) + 1;
}

/** Number of elements; 1 for a scalar. */
export function elementCount(dims: number[]): number {
  return dims.reduce((product, dim) => product * dim, 1);
}

/** `float32[1,batch_size]`, for messages. */
export function signature(type: string, dims: (number | string)[]): string {
  return `${type || "something that is no tensor"}[${dims.map((dim) => (dim === "" ? "?" : dim)).join(",")}]`;
}

/** Throws `InferenceError` unless the feeds are exactly the model's inputs, with types and shapes that fit. */
export function checkFeeds(inputs: TensorInfo[], names: string[], feeds: Feed[]): void {
  if (names.length !== feeds.length) {
    throw new NamedError(
      "InferenceError",
      `${names.length} input names came with ${feeds.length} tensors: give one each.`,
    );
  }
  const expected = () =>
    inputs.map(({ name, type, shape }) => `${name}: ${signature(type, shape)}`).join("; ");
  const missing = inputs.filter(({ name }) => !names.includes(name));
  if (missing.length > 0) {
    throw new NamedError(
      "InferenceError",
      `Missing inputs: ${missing.map(({ name }) => name).join(", ")}. The model expects ${expected()}.`,
      { missing: missing.map(({ name }) => name) },
    );
  }
  for (const [index, name] of names.entries()) {
    const info = inputs.find((input) => input.name === name);
    const feed = feeds[index];
    if (info === undefined || feed === undefined) {
      throw new NamedError(
        "InferenceError",
        `The model has no input '${name}'. It expects ${expected() || "no inputs"}.`,
        { input: name },
      );
    }
    if (names.indexOf(name) !== index) {
      throw new NamedError("InferenceError", `Input '${name}' was given twice. Give it once.`, {
        input: name,
      });
    }
    checkFeed(info, feed);
  }
}

function checkFeed(info: TensorInfo, feed: Feed): void {
  const refuse = (why: string) =>
    new NamedError(
      "InferenceError",
      `Input '${info.name}' must be ${signature(info.type, info.shape)}, but ` +
        `${signature(feed.type, feed.dims)} was given: ${why}.`,
      {
        input: info.name,
        expected: { type: info.type, shape: info.shape },
        given: { type: feed.type, dims: feed.dims },
      },
    );
  if (feed.dims.some((dim) => !Number.isSafeInteger(dim) || dim < 0)) {
    throw refuse("dimensions must be whole numbers that are not negative");
  }
  if (feed.type !== info.type) {
    throw refuse("the element types differ");
  }
  // The runtime reports no dimensions for a scalar and also for a value of any shape: it checks those itself.
  if (info.shape.length > 0) {
    if (feed.dims.length !== info.shape.length) {
      throw refuse("the numbers of dimensions differ");
    }
    const wrong = info.shape.findIndex((dim, axis) => typeof dim === "number" && dim !== feed.dims[axis]);
    if (wrong >= 0) {
      throw refuse(`dimension ${wrong} must be ${info.shape[wrong]}`);
    }
  }
  if (!isReference(feed)) {
    checkData(feed, refuse);
  }
}

function checkData(feed: TensorData, refuse: (why: string) => NamedError): void {
  const count = elementCount(feed.dims);
  if (feed.type === "string") {
    if (!Array.isArray(feed.data) || feed.data.some((text) => typeof text !== "string")) {
      throw refuse("its data is not an array of strings");
    }
    if (feed.data.length !== count) {
      throw refuse(`its data has ${feed.data.length} strings, its dimensions ask for ${count}`);
    }
    // The C API takes C strings: everything after a zero would be lost without a word.
    if (feed.data.some((text) => text.includes("\0"))) {
      throw refuse("the runtime's strings cannot contain U+0000; remove it");
    }
    return;
  }
  if (!(feed.data instanceof ArrayBuffer || feed.data instanceof Uint8Array)) {
    throw refuse("its data is neither an ArrayBuffer nor a Uint8Array");
  }
  const wanted = count * ELEMENT_BYTES[feed.type];
  if (feed.data.byteLength !== wanted) {
    throw refuse(`its data has ${feed.data.byteLength} bytes, its dimensions ask for ${wanted}`);
  }
}
