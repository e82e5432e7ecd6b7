/** Bringing models from files: by two buttons, or dropped onto the section. */

import { byId } from "./dom.ts";
import { bytes } from "./format.ts";
import type { ImportSource, ProgressEvent, Runtime } from "./runtime.ts";
import type { Report, Work } from "./work.ts";

export class Imports {
  readonly #runtime: Runtime;
  readonly #work: Work;
  readonly #onChange: () => void;

  constructor(runtime: Runtime, work: Work, onChange: () => void) {
    this.#runtime = runtime;
    this.#work = work;
    this.#onChange = onChange;
    this.#watchInput("import-file");
    this.#watchInput("import-folder");
    byId("import-folder").hidden = !("webkitdirectory" in HTMLInputElement.prototype);
    this.#watchDrops();
  }

  #watchInput(id: string): void {
    const input = byId<HTMLInputElement>(`${id}-input`);
    byId(id).addEventListener("click", () => input.click());
    input.addEventListener("change", () => {
      const files = [...(input.files ?? [])];
      // The same choice again shall be a change again.
      input.value = "";
      if (files.length > 0) {
        void this.#import([files]);
      }
    });
  }

  #watchDrops(): void {
    const section = byId("stored-models");
    // Moving from one child to the next is a leave as well.
    let depth = 0;
    const mark = (change: number) => {
      depth = Math.max(0, depth + change);
      section.classList.toggle("dropping", depth > 0);
    };
    const hasFiles = (event: DragEvent) => event.dataTransfer?.types.includes("Files") === true;
    section.addEventListener("dragenter", (event) => mark(hasFiles(event) ? 1 : 0));
    section.addEventListener("dragleave", (event) => mark(hasFiles(event) ? -1 : 0));
    section.addEventListener("dragover", (event) => {
      if (hasFiles(event)) {
        event.preventDefault();
      }
    });
    section.addEventListener("drop", async (event) => {
      mark(-depth);
      if (!hasFiles(event)) {
        return;
      }
      event.preventDefault();
      // What was dropped can only be asked for now, before anything is waited for.
      const dropped = [...(event.dataTransfer?.items ?? [])].map(sourceOf);
      const sources = (await Promise.all(dropped)).filter((source) => source !== undefined);
      if (sources.length < dropped.length) {
        this.#work.say("This browser cannot read folders that are dropped. Use “Import folder”.");
      }
      if (sources.length > 0) {
        void this.#import(sources);
      }
    });
  }

  async #import(sources: ImportSource[]): Promise<void> {
    await this.#work.run("Importing", async (signal, report) => {
      const imported: string[] = [];
      try {
        for (const source of sources) {
          const found = await this.#runtime.models.import(source, follow(source, report), signal);
          imported.push(...found.map(({ model, revision }) => `${model} ${revision}`));
        }
      } finally {
        // Files before the one that failed are there.
        this.#onChange();
      }
      return `Imported ${imported.join(", ")}.`;
    });
  }
}

/** Adds up the events of the files. */
function follow(source: ImportSource, report: Report): (event: ProgressEvent) => void {
  const total = sizeOf(source);
  const loaded = new Map<string, number>();
  report("Looking at the files", undefined);
  return (event) => {
    if (event.type !== "importing") {
      return;
    }
    loaded.set(event.id, event.totalLoaded);
    const sum = [...loaded.values()].reduce((all, size) => all + size, 0);
    const percent = total === undefined ? undefined : Math.min(100, (100 * sum) / total);
    report(`${event.metadata.file}, ${bytes(sum)}${total === undefined ? " so far" : ""}`, percent);
  };
}

/** In bytes; undefined where only reading would tell. */
function sizeOf(source: ImportSource): number | undefined {
  const files = source instanceof File ? [source] : Array.isArray(source) ? source : undefined;
  return files?.reduce((sum, file) => sum + file.size, 0);
}

/** Not every browser gives handles of what is dropped. */
type Item = DataTransferItem & { getAsFileSystemHandle?(): Promise<FileSystemDirectoryHandle | null> };

/** Undefined: a folder that this browser cannot read. */
async function sourceOf(item: Item): Promise<ImportSource | undefined> {
  if (item.webkitGetAsEntry()?.isDirectory !== true) {
    return item.getAsFile() ?? undefined;
  }
  return (await item.getAsFileSystemHandle?.()) ?? undefined;
}
