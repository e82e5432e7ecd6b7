/** The stored models, and what an engine would need: `pywebml.models`. */

import { NamedError } from "../errors.ts";
import type { CallOptions } from "./host.ts";
import type {
  ImportSource,
  PipelineOptions,
  Plan,
  ProgressEvent,
  Selection,
  StorageUsage,
  StoredFile,
  StoredModel,
  Verification,
} from "./types.ts";

type Call = (method: string, params: Record<string, unknown>, options?: CallOptions) => Promise<unknown>;
type OnProgress = (event: ProgressEvent) => void;

/** `call` asks a method of `pywebml/worker_models.py`; `resolve` makes the addresses in an engine's options absolute. */
export function createModels(call: Call, resolve: (options: PipelineOptions) => PipelineOptions) {
  return {
    /** The selected models, each in one revision. */
    list: async (selection: Selection = {}) => (await call("models.list", { selection })) as StoredModel[],

    /** The selected files, ordered by hub, model, revision and path. */
    files: async (selection: Selection = {}) => (await call("models.files", { selection })) as StoredFile[],

    /**
     * Deletes the selected files. With a task or an engine, only those that no other one uses. Resolves to the number of
     * bytes freed.
     */
    delete: async (selection: Selection) => (await call("models.delete", { selection })) as number,

    /** Deletes what is stored of a model in all revisions but those of `keep`. Resolves to the number of bytes freed. */
    purge: async ({ keep, ...selection }: Selection & { model: string; keep: string[] }) =>
      (await call("models.purge", { selection, keep })) as number,

    /** Has the selected models stay when room is made, or no longer. Resolves to the number of files that these are. */
    pin: async (selection: Selection, pinned = true) =>
      (await call("models.pin", { selection, pinned })) as number,

    /**
     * Compares the bytes of the selected files with the hashes that they were stored with. Damaged ones are removed, and
     * downloaded again when they are next wanted.
     */
    verify: async (
      selection: Selection = {},
      {
        onChecked,
        signal,
      }: { onChecked?: ((checked: Verification) => void) | undefined; signal?: AbortSignal | undefined } = {},
    ) =>
      (await call(
        "models.verify",
        { selection },
        { signal, onChunk: (checked) => onChecked?.(checked as Verification) },
      )) as Verification[],

    usage: async () => (await call("models.usage", {})) as StorageUsage,

    /** Gives up what broken downloads left. Downloads that are going on are not touched. */
    dropUnfinished: async (): Promise<void> => {
      await call("models.dropUnfinished", {});
    },

    /** Every file that an engine with these options would need. Fetches what tells it, such as `config.json`. */
    plan: async (options: PipelineOptions) =>
      (await call("models.plan", { options: resolve(options) })) as Plan,

    /** Whether an engine with these options can be made without a download. Asks no hub. */
    isCached: async (options: PipelineOptions) =>
      (await call("models.isCached", { options: resolve(options) })) as boolean,

    /** Downloads everything that an engine with these options needs. Resolves to what was missing before. */
    prefetch: async (options: PipelineOptions, onProgress?: OnProgress, signal?: AbortSignal) =>
      (await call("models.prefetch", { options: resolve(options) }, { onProgress, signal })) as Plan,

    /** The selected models as one tar archive in hub layout. The blob refers to the stored bytes, and holds none. */
    export: async (selection: Selection) =>
      (await call("models.export", { selection, kind: "archive" })) as Blob,

    /** Writes the selected models in hub layout into a folder, or as a tar archive into a file. */
    exportTo: async (
      selection: Selection,
      target: FileSystemDirectoryHandle | FileSystemFileHandle,
    ): Promise<void> => {
      if (target?.kind !== "directory" && target?.kind !== "file") {
        throw new NamedError(
          "InputError",
          "exportTo takes a FileSystemDirectoryHandle or a FileSystemFileHandle, as the pickers of the page give them.",
        );
      }
      const kind = target.kind === "file" ? "archive" : "folder";
      await call("models.export", { selection, kind, target });
    },

    /** Reads models in hub layout into the store, as if the page's hub had them. Resolves to what was imported. */
    import: async (source: ImportSource, onProgress?: OnProgress, signal?: AbortSignal) => {
      const given = source instanceof FileList ? [...source] : source;
      return (await call("models.import", { source: given }, { onProgress, signal })) as {
        model: string;
        revision: string;
      }[];
    },

    /** Only a page can ask the browser never to evict its storage, so this does not go through the worker. */
    persist: async (): Promise<boolean> => (await navigator.storage?.persist?.()) ?? false,
  };
}
