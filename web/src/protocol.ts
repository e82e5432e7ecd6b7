/**
 * Messages between the page, the host worker and the session workers.
 *
 * Tensors travel as raw little-endian bytes in transferred buffers, never as JSON.
 */

/** ONNX element types that models use. */
export const TENSOR_TYPES = [
  "float32",
  "uint8",
  "int8",
  "uint16",
  "int16",
  "int32",
  "int64",
  "string",
  "bool",
  "float16",
  "float64",
  "uint32",
  "uint64",
] as const;
export type TensorType = (typeof TENSOR_TYPES)[number];

/** A tensor on its way: raw bytes (row-major; possibly a part of a buffer that several share), or its strings. */
export interface TensorData {
  type: TensorType;
  dims: number[];
  data: ArrayBuffer | Uint8Array<ArrayBuffer> | string[];
}

/** A tensor that stays in the runtime's memory. */
export interface TensorReference {
  handle: number;
  type: TensorType;
  dims: number[];
}

export type Feed = TensorData | TensorReference;

export function isReference(feed: Feed): feed is TensorReference {
  return "handle" in feed;
}

export interface TensorInfo {
  name: string;
  /** Empty when the value is not a tensor. */
  type: TensorType | "";
  shape: (number | string)[];
}

/** kind, owner, revision, path: the same four parts as Python's `BlobKey`. */
export type BlobKey = [kind: string, owner: string, revision: string, path: string];

/** An error on its way: `name` is the class name in `pywebml/errors.py`. */
export interface ErrorData {
  name: string;
  message: string;
  details?: Record<string, unknown>;
}

export interface SessionOptions {
  graphOptimizationLevel?: "disabled" | "basic" | "extended" | "all";
  freeDimensionOverrides?: Record<string, number>;
  /** The runtime's own configuration entries, as they are. */
  extra?: Record<string, string>;
}

export interface LoadedSession {
  session: number;
  inputs: TensorInfo[];
  outputs: TensorInfo[];
}

export interface RunResult {
  names: string[];
  tensors: Feed[];
  /** Milliseconds of the runtime's own run call, without copies. */
  runMs: number;
}

/** What a session worker can be asked. */
export interface SessionMethods {
  /** First call: start the runtime from a stored WASM file. */
  start(params: { runtime: BlobKey; numThreads: number }): { numThreads: number };
  createSession(params: {
    model: BlobKey;
    externalData: [name: string, key: BlobKey][];
    options: SessionOptions;
  }): LoadedSession;
  /** `outputs` null: all of them. Outputs named in `keep` stay in the runtime and come back as references. */
  run(params: {
    session: number;
    names: string[];
    feeds: Feed[];
    outputs: string[] | null;
    keep: string[];
  }): RunResult;
  fetchTensor(params: { handle: number }): TensorData;
  releaseTensor(params: { handle: number }): null;
  releaseSession(params: { session: number }): null;
}

export interface SessionRequest<Method extends keyof SessionMethods = keyof SessionMethods> {
  id: number;
  method: Method;
  params: Parameters<SessionMethods[Method]>[0];
}

export type Reply = { id: number; ok: true; result: unknown } | { id: number; ok: false; error: ErrorData };
