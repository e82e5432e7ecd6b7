/** Files outside the store, which the page's user chose: reading, copying into the store, writing. */

import { NamedError } from "../errors.ts";
import type { BlobKey } from "../protocol.ts";
import type { BlobSink } from "./http.ts";
import type { Store } from "./store.ts";
import { isUnreadable } from "./store-errors.ts";

/** Copies go to the store in pieces of this size. */
const PIECE_SIZE = 8 * 1024 * 1024;

/** Bytes, or a stored file. */
export type OutsidePiece = Uint8Array<ArrayBuffer> | BlobKey;

export type OutsideTarget = FileSystemDirectoryHandle | FileSystemFileHandle | null | undefined;

export class OutsideFile {
  /** With slashes, below the folder that was chosen; of a file that was chosen itself, its name. */
  readonly path: string;
  readonly size: number;
  readonly #file: Blob;

  constructor(path: string, file: Blob) {
    this.path = path;
    this.size = file.size;
    this.#file = file;
  }

  async read(begin: number, end: number): Promise<Uint8Array> {
    try {
      return new Uint8Array(await this.#file.slice(begin, end).arrayBuffer());
    } catch (error) {
      throw unreadable(this.path, error);
    }
  }

  /** Appends bytes to `sink` without reading them here. */
  async copy(
    begin: number,
    end: number,
    sink: BlobSink,
    onBytes: (count: number) => void,
    signal: AbortSignal,
  ): Promise<void> {
    for (let offset = begin; offset < end; offset += PIECE_SIZE) {
      signal.throwIfAborted();
      const piece = this.#file.slice(offset, Math.min(end, offset + PIECE_SIZE));
      try {
        await sink.append(piece);
      } catch (error) {
        // The database reads the file only now, and does not say that this is what failed.
        await piece
          .slice(0, 1)
          .arrayBuffer()
          .catch((reason) => {
            throw unreadable(this.path, reason);
          });
        throw error;
      }
      onBytes(piece.size);
    }
  }
}

/** The files of a `File`, a list of them, or a handle of a file or folder. Throws `StoreError`. */
export async function outsideFiles(source: unknown): Promise<OutsideFile[]> {
  try {
    if (isHandle(source)) {
      return source.kind === "file"
        ? [new OutsideFile(source.name, await (source as FileSystemFileHandle).getFile())]
        : await folderFiles(source as FileSystemDirectoryHandle, "");
    }
    if (source instanceof Blob) {
      return [new OutsideFile(pathOf(source), source)];
    }
    if (isList(source)) {
      return Array.from(source, (file) => {
        if (!(file instanceof Blob)) {
          throw notFiles(file);
        }
        return new OutsideFile(pathOf(file), file);
      });
    }
  } catch (error) {
    throw error instanceof NamedError ? error : unreadable("the chosen files", error);
  }
  throw notFiles(source);
}

/**
 * Writes files, each made of bytes and stored files one after the other. With no target one file becomes a `Blob`,
 * which refers to the stored bytes and does not hold them. Throws `StoreError`.
 */
export async function writeOutside(
  store: Store,
  target: OutsideTarget,
  files: [path: string, pieces: OutsidePiece[]][],
  signal: AbortSignal,
): Promise<Blob | undefined> {
  const [first, second] = files;
  if (target === null || target === undefined || target.kind === "file") {
    if (first === undefined || second !== undefined || first[0] !== "") {
      throw new NamedError(
        "StoreError",
        `A single file outside takes one file without a path, not ${files.length}: ` +
          `${files.map(([path]) => `'${path}'`).join(", ")}. Give a folder.`,
      );
    }
    if (target === null || target === undefined) {
      const blobs: Blob[] = [];
      for await (const blob of blobsOf(store, first[1])) {
        blobs.push(blob);
      }
      return new Blob(blobs);
    }
    await writeFile(store, target, target.name, first[1], signal);
    return undefined;
  }
  // Before anything is written.
  const paths = files.map(([path]) => segmentsOf(path));
  for (const [index, [path, pieces]] of files.entries()) {
    signal.throwIfAborted();
    const segments = paths[index] as string[];
    let handle: FileSystemFileHandle;
    try {
      let folder = target;
      for (const name of segments.slice(0, -1)) {
        folder = await folder.getDirectoryHandle(name, { create: true });
      }
      handle = await folder.getFileHandle(segments.at(-1) as string, { create: true });
    } catch (error) {
      throw unwritable(path, error);
    }
    await writeFile(store, handle, path, pieces, signal);
  }
  return undefined;
}

async function writeFile(
  store: Store,
  handle: FileSystemFileHandle,
  path: string,
  pieces: OutsidePiece[],
  signal: AbortSignal,
): Promise<void> {
  let stream: FileSystemWritableFileStream | undefined;
  try {
    stream = await handle.createWritable();
    for await (const blob of blobsOf(store, pieces)) {
      signal.throwIfAborted();
      await stream.write(blob);
    }
    await stream.close();
  } catch (error) {
    // The older file, if there was one, is still as it was.
    await stream?.abort().catch(() => undefined);
    throw error instanceof NamedError || signal.aborted ? error : unwritable(path, error);
  }
}

async function* blobsOf(store: Store, pieces: OutsidePiece[]): AsyncGenerator<Blob, void, undefined> {
  for (const piece of pieces) {
    if (piece instanceof Uint8Array) {
      yield new Blob([piece]);
    } else {
      yield* await store.blobs(piece);
    }
  }
}

async function folderFiles(folder: FileSystemDirectoryHandle, prefix: string): Promise<OutsideFile[]> {
  const files: OutsideFile[] = [];
  for await (const handle of folder.values()) {
    const path = `${prefix}${handle.name}`;
    if (handle.kind === "file") {
      files.push(new OutsideFile(path, await (handle as FileSystemFileHandle).getFile()));
    } else {
      files.push(...(await folderFiles(handle as FileSystemDirectoryHandle, `${path}/`)));
    }
  }
  return files;
}

/** Where a file was chosen as part of a folder, browsers put the folder's own name in front. */
function pathOf(file: Blob): string {
  const { name = "", webkitRelativePath = "" } = file as Partial<File>;
  return webkitRelativePath === "" ? name : webkitRelativePath.slice(webkitRelativePath.indexOf("/") + 1);
}

/** No path may leave the folder. */
function segmentsOf(path: string): string[] {
  const segments = path.split("/");
  if (segments.some((name) => name === "" || name === "." || name === ".." || /[\\\0]/.test(name))) {
    throw new NamedError("StoreError", `The path '${path}' does not lie below the chosen folder.`, { path });
  }
  return segments;
}

function isHandle(value: unknown): value is FileSystemHandle {
  return typeof FileSystemHandle === "function" && value instanceof FileSystemHandle;
}

function isList(value: unknown): value is ArrayLike<unknown> {
  return Array.isArray(value) || (typeof FileList === "function" && value instanceof FileList);
}

function notFiles(value: unknown): NamedError {
  return new NamedError(
    "StoreError",
    `Files are given as a File, a list of Files, a FileSystemFileHandle or a FileSystemDirectoryHandle, not as ${Object.prototype.toString
      .call(value)
      .slice(8, -1)}.`,
  );
}

function unreadable(path: string, error: unknown): NamedError {
  const hint = isUnreadable(error)
    ? " It may have been changed or moved since it was chosen: choose it again."
    : "";
  return new NamedError("StoreError", `'${path}' cannot be read: ${words(error)}.${hint}`, { path });
}

function unwritable(path: string, error: unknown): NamedError {
  return new NamedError("StoreError", `'${path}' cannot be written: ${words(error)}.`, { path });
}

function words(error: unknown): string {
  return error instanceof Error ? `${error.name}: ${error.message}` : String(error);
}
