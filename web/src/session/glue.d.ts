/**
 * The C API of ONNX Runtime as the Emscripten glue of onnxruntime-web 1.30.0 exports it. It is private to that
 * package, so its version is pinned. Pointers and counts are unsigned 32-bit numbers; functions that return a status
 * give 0 for success, those that make something give 0 for failure; `_OrtGetLastError` has the words.
 */
declare module "onnxruntime-web/ort-wasm-simd-threaded.mjs" {
  /** What `HEAPU8.set` takes. */
  export type LazyBytes = ArrayLike<number>;

  /** What `mountExternalData` reads: part of a `Uint8Array`. For every tensor, `HEAPU8.set(subarray(…), pointer)`. */
  export interface ExternalData {
    readonly byteLength: number;
    subarray(begin: number, end: number): LazyBytes;
  }

  export interface Functions {
    _OrtInit(numThreads: number, logLevel: number): number;
    _OrtGetLastError(code: number, message: number): number;
    _OrtCreateSessionOptions(
      graphOptimizationLevel: number,
      enableCpuMemArena: number,
      enableMemPattern: number,
      executionMode: number,
      enableProfiling: number,
      profileFilePrefix: number,
      logId: number,
      logSeverityLevel: number,
      logVerbosityLevel: number,
      optimizedModelFilePath: number,
    ): number;
    _OrtAddFreeDimensionOverride(options: number, name: number, value: number): number;
    _OrtAddSessionConfigEntry(options: number, key: number, value: number): number;
    _OrtReleaseSessionOptions(options: number): number;
    _OrtCreateSession(data: number, length: number, options: number): number;
    _OrtReleaseSession(session: number): number;
    _OrtGetInputOutputCount(session: number, inputs: number, outputs: number): number;
    _OrtGetInputOutputMetadata(session: number, index: number, name: number, metadata: number): number;
    _OrtFree(pointer: number): number;
    _OrtCreateTensor(
      type: number,
      data: number,
      byteLength: number,
      dims: number,
      rank: number,
      location: number,
    ): number;
    _OrtGetTensorData(tensor: number, type: number, data: number, dims: number, rank: number): number;
    _OrtReleaseTensor(tensor: number): number;
    _OrtRun(
      session: number,
      inputNames: number,
      inputs: number,
      inputCount: number,
      outputNames: number,
      outputCount: number,
      outputs: number,
      runOptions: number,
    ): number;
    _malloc(size: number): number;
    _free(pointer: number): void;
    stackSave(): number;
    stackRestore(pointer: number): void;
    stackAlloc(size: number): number;
    getValue(pointer: number, type: "i8" | "*"): number;
    setValue(pointer: number, value: number, type: "*"): void;
    mountExternalData(path: string, data: ExternalData): void;
    unmountExternalData(): void;
  }

  export interface Glue extends Functions {
    /** Replaced when the memory grows. */
    HEAPU8: Uint8Array<SharedArrayBuffer>;
  }

  export interface GlueOptions {
    numThreads: number;
    instantiateWasm(
      imports: WebAssembly.Imports,
      done: (instance: WebAssembly.Instance, module: WebAssembly.Module) => void,
    ): object;
  }

  export default function createGlue(options: GlueOptions): Promise<Glue>;
}
