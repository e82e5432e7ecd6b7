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
  /**
   * Tokens for private hubs, by origin: `{"https://huggingface.co": "hf_…"}`. A token goes to its origin and nowhere
   * else, and is stored nowhere.
   */
  hubAccessTokens?: Record<string, string>;
  /** Which addresses models may come from, besides what the settings server says. */
  allowDenyList?: AllowDenyEntry[];
  /**
   * When stored models would take more bytes, those that were not used for the longest time make room. Default: nothing
   * that is stored is ever deleted to make room.
   */
  maxCacheBytes?: number;
  /** Milliseconds that a download may stay silent before it is tried again; default 60 000. */
  stallTimeoutMS?: number;
  /** Further Python packages to load at the start, by their name in `pyodide-lock.json`. */
  packages?: string[];
}

/** As a record of `ml-model-allow-deny-list`. With entries that allow, only what they name may be reached; `DENY` wins. */
export interface AllowDenyEntry {
  filter: "ALLOW" | "DENY";
  /** Beginning of addresses. */
  urlPrefix: string;
  [field: string]: unknown;
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
  /** One for all model files, or one for each file name: `{encoder_model: "fp32", decoder_model_merged: "q4"}`. */
  dtype?: string | Record<string, string>;
  device?: "wasm" | "cpu";
  numThreads?: number;
  /** Whether, or in how many files, the weights lie beside the model file; also by file name. */
  useExternalDataFormat?: boolean | number | Record<string, boolean | number>;
  backend?: "onnx";
  runtimeFilename?: string;
}

/**
 * Firefox's progress schema. Ours are `starting` (Python's own start), `importing` (a file of `models.import`) and
 * `loading`: all files that an engine needs together. The first `loading` event has the total of the plan; the total
 * never shrinks, and `done` is at 100 unless `ok` is false.
 */
export interface ProgressEvent {
  type: "starting" | "downloading" | "loading_from_cache" | "running_inference" | "loading" | "importing";
  statusText: "initiate" | "size_estimate" | "in_progress" | "done";
  /** A file's address, a request's id, or (`loading`) the engine's id. */
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

/** Which stored files are meant; what is left out: any. */
export interface Selection {
  /** Host and path of a hub, like `huggingface.co/`: `hub` of a stored model. */
  hub?: string;
  /** `organisation/name`. */
  model?: string;
  /** Branch, tag or commit. */
  revision?: string;
  /** Only files that this task uses. */
  taskName?: string;
  /** Only files that the engine of this id uses. */
  engineId?: string;
}

/** A model, in one revision, as far as it is stored. Times are seconds since the epoch. */
export interface StoredModel {
  /** Host and path of the hub that it came from. */
  hub: string;
  model: string;
  revision: string;
  /** How many files are stored. */
  files: number;
  /** Of all of them, in bytes. */
  size: number;
  /** Tasks that it is kept for. */
  tasks: string[];
  /** Engines that it is kept for, as far as they were given a name (`engineId` or `featureId`). */
  engines: string[];
  /** When the newest file was written. */
  updated: number;
  /** When an engine was last made from it. */
  lastUsed: number;
  /** When all of its bytes had been compared with their hashes. */
  verified: number;
  /** Whether it stays when room is made. */
  pinned: boolean;
}

/** A stored file of a model. Times are seconds since the epoch. */
export interface StoredFile {
  hub: string;
  model: string;
  revision: string;
  /** Inside the model. */
  path: string;
  /** In bytes. */
  size: number;
  /** Lower-case hexadecimal. */
  sha256: string;
  updated: number;
  lastUsed: number;
  verified: number;
  pinned: boolean;
  /** Tasks and engines that it is kept for. */
  uses: { taskName: string | null; engineId: string | null }[];
}

/** How a stored file was found. */
export interface Verification extends StoredFile {
  /** Whether its bytes are those that were stored. If not, it has been removed. */
  ok: boolean;
}

/** Room in bytes. */
export interface StorageUsage {
  /** By stored files, the runtime included. */
  used: number;
  /** By downloads that were not finished. They go on where they stopped when the file is wanted again. */
  unfinished: number;
  /** What the browser would still take; null where it does not say. */
  available: number | null;
  /** `used`, `unfinished` and `available` together; 0 where the browser does not say. */
  allowed: number;
  /** `maxCacheBytes` of the configuration; null without one. */
  limit: number | null;
}

/** What an engine with some options needs. */
export interface Plan {
  /** With nothing left open. */
  options: PipelineOptions;
  /** Bytes of all files whose size is known. */
  total: number;
  /** Bytes that are still to be downloaded, as far as sizes are known. */
  missing: number;
  /** Whether nothing is to be downloaded. */
  isCached: boolean;
  files: PlannedFile[];
}

export interface PlannedFile {
  /** For the runtime: where its settings record is. */
  model: string;
  revision: string;
  path: string;
  purpose: "config" | "tokenizer" | "weights" | "optional" | "runtime";
  /** False: the engine does without it when the hub does not have it. */
  required: boolean;
  /** In bytes; null where the hub does not say. */
  size: number | null;
  /** Whether it is in the store. */
  stored: boolean;
  /** Bytes of it that are here already: a broken download goes on there. */
  loaded: number;
}

/** What can be imported: models in hub layout, as a tar archive or a folder of them. */
export type ImportSource = File | File[] | FileList | FileSystemDirectoryHandle | FileSystemFileHandle;

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
