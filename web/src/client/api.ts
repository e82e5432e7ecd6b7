/** The JavaScript API: `configure`, `createEngine`, and what manages engines, models and settings. */

import { NamedError } from "../errors.ts";
import { type CallOptions, Host } from "./host.ts";
import { createModels } from "./models.ts";
import type {
  Configuration,
  EngineInfo,
  PipelineOptions,
  ProgressEvent,
  RunMetrics,
  RunRequest,
  SettingsChange,
  SettingsRecord,
  SyncResult,
} from "./types.ts";

declare const __PYWEBML_VERSION__: string;

type OnProgress = (event: ProgressEvent) => void;

/** A loaded task in the host worker. */
export class Engine {
  readonly engineId: string;
  readonly options: PipelineOptions;
  /** Of the latest run. */
  metrics: RunMetrics | undefined;
  #status: EngineInfo["status"];
  readonly #host: Host;

  constructor(host: Host, info: EngineInfo) {
    this.#host = host;
    this.engineId = info.engineId;
    this.options = info.options;
    this.#status = info.status;
  }

  get status(): EngineInfo["status"] {
    return this.#host.failed ? "closed" : this.#status;
  }

  /** Runs the task once; see the task for arguments, options and result. Tensors are `{dims, type, data}`. */
  async run(request: RunRequest, { signal }: { signal?: AbortSignal } = {}): Promise<unknown> {
    const answer = (await this.#host.call("run", this.#params(request), { signal })) as {
      result: unknown;
      metrics: RunMetrics;
    };
    this.metrics = answer.metrics;
    return answer.result;
  }

  /** Runs a task that gives its result in pieces. */
  async *runWithGenerator(
    request: RunRequest,
    { signal }: { signal?: AbortSignal } = {},
  ): AsyncGenerator<unknown, void, undefined> {
    const stop = new AbortController();
    const either = signal === undefined ? stop.signal : AbortSignal.any([signal, stop.signal]);
    const chunks: unknown[] = [];
    let wake = () => {};
    let ended = false;
    const work = this.#host
      .call("runWithGenerator", this.#params(request), {
        signal: either,
        onChunk: (chunk) => {
          chunks.push(chunk);
          wake();
        },
      })
      .finally(() => {
        ended = true;
        wake();
      });
    // The loop below looks at the outcome when it has handed out all chunks.
    work.catch(() => undefined);
    try {
      for (;;) {
        if (chunks.length > 0) {
          yield chunks.shift();
        } else if (ended) {
          await work;
          return;
        } else {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        }
      }
    } finally {
      stop.abort();
    }
  }

  /** Ends the engine and gives its memory back. */
  async terminate(): Promise<void> {
    if (this.status !== "closed") {
      this.#status = "closed";
      await this.#host.call("terminate", { engineId: this.engineId });
    }
  }

  #params(request: RunRequest): Record<string, unknown> {
    if (request === null || typeof request !== "object" || Array.isArray(request)) {
      throw new NamedError("InputError", "run takes one object: {args: [...], options: {...}}.");
    }
    return { engineId: this.engineId, args: request.args ?? [], options: request.options ?? {} };
  }
}

/** Everything that the page can call, for a script that lies at `scriptUrl`. */
export function createApi(scriptUrl: string) {
  let configuration: Configuration = {};
  let host: Host | undefined;

  const getHost = (): Host => {
    if (host === undefined || host.failed) {
      host = new Host(hostOptions(configuration, scriptUrl));
    }
    return host;
  };
  const call = (method: string, params: Record<string, unknown> = {}, options: CallOptions = {}) =>
    getHost().call(method, params, options);

  return {
    version: __PYWEBML_VERSION__,

    /** Says where everything comes from. To be called before anything else. */
    configure(values: Configuration): void {
      const unknown = Object.keys(values).filter((name) => !(name in CONFIGURATION_NAMES));
      if (unknown.length > 0) {
        throw new NamedError(
          "OptionsError",
          `There is no configuration entry '${unknown.join("', '")}'. Known: ${Object.keys(CONFIGURATION_NAMES).join(", ")}.`,
        );
      }
      if (host !== undefined && !host.failed) {
        throw new NamedError(
          "OptionsError",
          "configure() comes too late: Python has started already. Call it before start() and createEngine(), or call shutdown() first.",
        );
      }
      configuration = { ...configuration, ...values };
    },

    /** Starts Python ahead of the first engine. */
    async start(onProgress?: OnProgress): Promise<void> {
      const started = getHost();
      started.watchStart(onProgress);
      await started.ready;
    },

    /** Ends the host worker with all its engines. The next call starts anew. */
    shutdown(): void {
      host?.terminate();
      host = undefined;
    },

    /** Loads a task and its model. */
    async createEngine(
      options: PipelineOptions,
      onProgress?: OnProgress,
      signal?: AbortSignal,
    ): Promise<Engine> {
      const owner = getHost();
      const params = { options: resolved(options) };
      const info = await owner.call("createEngine", params, { onProgress, signal });
      return new Engine(owner, info as EngineInfo);
    },

    engines: {
      list: async (): Promise<EngineInfo[]> =>
        host === undefined || host.failed ? [] : ((await call("engines.list")) as EngineInfo[]),
    },

    models: createModels(call, resolved),

    settings: {
      /** Asks the server what has changed; without `collection` in every collection that is used. */
      sync: async (collection?: string) => (await call("settings.sync", { collection })) as SyncResult,
      /** Calls `listener` after every sync that changed something. Returns how to stop listening. */
      onSync(listener: (change: SettingsChange) => void, onError: (error: unknown) => void = () => {}) {
        const stop = new AbortController();
        call(
          "settings.watch",
          {},
          { signal: stop.signal, onChunk: (chunk) => listener(chunk as SettingsChange) },
        ).catch((error: unknown) => {
          if (!stop.signal.aborted) {
            onError(error);
          }
        });
        return () => stop.abort();
      },
      get: async (collection: string) => (await call("settings.get", { collection })) as SettingsRecord[],
    },

    /** Adds a task written in Python: `source`, or the `url` of it. Resolves to the names of all tasks. */
    async registerTask(definition: { name: string; source?: string; url?: string }): Promise<string[]> {
      const url = definition.url === undefined ? {} : { url: absolute(definition.url) };
      return (await call("registerTask", { ...definition, ...url })) as string[];
    },
  };
}

const CONFIGURATION_NAMES: Record<keyof Configuration, true> = {
  assetsBase: true,
  settingsServer: true,
  settingsRootHash: true,
  allowUnsignedSettings: true,
  hubRootUrl: true,
  hubUrlTemplate: true,
  hubAccessTokens: true,
  allowDenyList: true,
  maxCacheBytes: true,
  stallTimeoutMS: true,
  packages: true,
};

function hostOptions({ packages, ...configuration }: Configuration, scriptUrl: string) {
  const assetsBase = folder(configuration.assetsBase ?? new URL(".", scriptUrl).href);
  const { settingsServer, hubRootUrl } = configuration;
  return {
    assetsBase,
    baseUrl: document.baseURI,
    packages: packages ?? [],
    configuration: {
      ...configuration,
      assetsBase,
      settingsServer: settingsServer === undefined ? undefined : folder(settingsServer),
      hubRootUrl: hubRootUrl === undefined ? undefined : folder(hubRootUrl),
    },
  };
}

/** Options whose addresses do not depend on where they are read. */
function resolved(options: PipelineOptions): PipelineOptions {
  return typeof options?.modelHubRootUrl === "string"
    ? { ...options, modelHubRootUrl: absolute(options.modelHubRootUrl) }
    : options;
}

function folder(address: string): string {
  const url = absolute(address);
  return url.endsWith("/") ? url : `${url}/`;
}

function absolute(address: string): string {
  try {
    return new URL(address, document.baseURI).href;
  } catch {
    throw new NamedError("OptionsError", `'${address}' is not an address.`);
  }
}
