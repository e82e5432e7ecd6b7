/** Types of the JavaScript API. */

/** Where everything comes from. Addresses may be relative to the page. */
export interface Configuration {
  /** Folder of the built files; default: where this script was loaded from. */
  assetsBase?: string;
  /** Remote Settings server or static mirror; default `v1/` below `assetsBase`. */
  settingsServer?: string;
  /**
   * SHA-256 of the root certificate under which the settings server signs. Default: that of the build's own mirror, for
   * a server on the page's own origin; else that of Mozilla's server.
   */
  settingsRootHash?: string;
  /** Believe a settings server without signatures; only for one on the page's own origin. */
  allowUnsignedSettings?: boolean;
  /** Root of the model hub; default `hub/` below `assetsBase`. */
  hubRootUrl?: string;
  /** Path of a model below the root; default `{model}/{revision}`. */
  hubUrlTemplate?: string;
  /** Further Python packages to load at the start, by their name in `pyodide-lock.json`. */
  packages?: string[];
}

/** What one engine is made of; see `PipelineOptions` in Python. */
export interface PipelineOptions {
  engineId?: string;
  featureId?: string;
  taskName?: string;
  timeoutMS?: number;
  modelHub?: "huggingface" | "mozilla";
  modelHubRootUrl?: string;
  modelHubUrlTemplate?: string;
  modelId?: string;
  modelRevision?: string;
  tokenizerId?: string;
  tokenizerRevision?: string;
  dtype?: string;
  device?: "wasm" | "cpu";
  numThreads?: number;
  useExternalDataFormat?: boolean | number;
  backend?: "onnx";
  runtimeFilename?: string;
}

/** Firefox's progress schema; `starting` is ours, for Python's own start. */
export interface ProgressEvent {
  type: "starting" | "downloading" | "loading_from_cache" | "running_inference";
  statusText: "initiate" | "size_estimate" | "in_progress" | "done";
  /** A file's address, or a request's id. */
  id: string;
  /** 0 to 100. */
  progress: number;
  totalLoaded: number;
  currentLoaded: number;
  /** 0 while unknown. */
  total: number;
  units: "bytes";
  ok: boolean;
  metadata: Record<string, unknown>;
}

export type TypedArray =
  | Float32Array
  | Float64Array
  | Int8Array
  | Uint8Array
  | Int16Array
  | Uint16Array
  | Int32Array
  | Uint32Array
  | BigInt64Array
  | BigUint64Array;

/** A tensor, row-major. float16 comes as its bits in a Uint16Array, bool as Uint8Array. */
export interface Tensor {
  dims: number[];
  type: string;
  data: TypedArray | string[];
}

export interface RunRequest {
  args?: unknown[];
  options?: Record<string, unknown>;
}

/** Milliseconds of the latest run: in Python altogether, and in the runtime alone. */
export interface RunMetrics {
  total: number;
  inference: number;
}

export interface EngineInfo {
  engineId: string;
  status: "loading" | "ready" | "closed";
  options: PipelineOptions;
}

/** A stored model. */
export interface StoredModel {
  model: string;
  revision: string;
  /** In bytes. */
  size: number;
  files: number;
  tasks: string[];
  /** Seconds since the epoch. */
  updated: number;
}

/** A stored file. */
export interface StoredFile {
  revision: string;
  path: string;
  size: number;
  sha256: string;
  updated: number;
}

/** What a sync changed. */
export interface SyncResult {
  created: SettingsRecord[];
  updated: { old: SettingsRecord; new: SettingsRecord }[];
  deleted: SettingsRecord[];
}

export interface SettingsChange extends SyncResult {
  collection: string;
}

export type SettingsRecord = Record<string, unknown>;
