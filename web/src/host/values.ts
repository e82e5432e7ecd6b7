/** Results from Python: JSON with marks where arrays, bytes, special floats and objects of ours stand; see `rpc_values.py`. */

const MARK = "\0";

const FLOATS: Record<string, number> = {
  nan: Number.NaN,
  inf: Number.POSITIVE_INFINITY,
  "-inf": Number.NEGATIVE_INFINITY,
};

type ArrayConstructor = {
  new (buffer: ArrayBuffer, offset: number, length: number): ArrayBufferView;
  BYTES_PER_ELEMENT: number;
};

/** Not every browser has an array for float16, so its bits come in one of the same size. */
const ARRAYS: Record<string, ArrayConstructor> = {
  float32: Float32Array,
  float64: Float64Array,
  float16: Uint16Array,
  int8: Int8Array,
  uint8: Uint8Array,
  bool: Uint8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
};

type Marked =
  | ["float", name: string]
  | ["bytes", offset: number, length: number]
  | ["handed", index: number]
  | ["tensor", type: "string", dims: number[], strings: string[]]
  | ["tensor", type: string, dims: number[], offset: number, length: number];

/** What stands beside the JSON. */
export interface Beside {
  packed: Uint8Array<ArrayBuffer>;
  /** Objects that go to the page as they are. */
  handed: unknown[];
}

/** The value of `text`; its arrays get buffers of their own, which `transfer` collects. */
export function decode(text: string, beside: Beside, transfer: Transferable[]): unknown {
  const value: unknown = JSON.parse(text);
  return text.includes("\\u0000") ? restore(value, beside, transfer) : value;
}

function restore(value: unknown, beside: Beside, transfer: Transferable[]): unknown {
  const { packed } = beside;
  if (Array.isArray(value)) {
    return value.map((item) => restore(item, beside, transfer));
  }
  if (value === null || typeof value !== "object") {
    return value;
  }
  const marked = (value as Record<string, Marked | undefined>)[MARK];
  if (marked === undefined) {
    return Object.fromEntries(
      Object.entries(value).map(([name, item]) => [name, restore(item, beside, transfer)]),
    );
  }
  if (marked[0] === "float") {
    return FLOATS[marked[1]];
  }
  if (marked[0] === "handed") {
    return beside.handed[marked[1]];
  }
  if (marked[0] === "bytes") {
    return own(Uint8Array, packed, marked[1], marked[2], transfer);
  }
  const [, type, dims, at] = marked;
  if (typeof at !== "number") {
    return { dims, type, data: at };
  }
  return { dims, type, data: own(ARRAYS[type] ?? Uint8Array, packed, at, Number(marked[4]), transfer) };
}

/** A part of `packed` as an array with a buffer of its own: `packed`'s itself when it is all of it. */
function own(
  Type: ArrayConstructor,
  packed: Uint8Array<ArrayBuffer>,
  offset: number,
  length: number,
  transfer: Transferable[],
): ArrayBufferView {
  const whole = length === packed.byteLength && length === packed.buffer.byteLength;
  const buffer = whole ? packed.buffer : packed.slice(offset, offset + length).buffer;
  transfer.push(buffer);
  return new Type(buffer, 0, length / Type.BYTES_PER_ELEMENT);
}
