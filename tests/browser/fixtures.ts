/** What the browser tests share: a server with faults, a page that watches, and short cuts into the page. */

import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { test as base, expect, type Page } from "@playwright/test";
import type * as api from "../../web/src/client/index.ts";
import type { ProgressEvent, Tensor } from "../../web/src/client/types.ts";

export const MODEL = "sentence-transformers/all-MiniLM-L6-v2";
export const REVISION = "v1.0.0";
export const HUB_FILES = `/hub/${MODEL}/${REVISION}/`;

declare global {
  // The global of the script tag.
  var pywebml: typeof api;
}

interface Fault {
  path: string;
  /** As the server lists them. */
  kind: string;
  value?: unknown;
  times?: number;
  /** How many requests pass first. */
  skip?: number;
  /** Only requests that want bytes from here on. */
  from_byte?: number;
  /** And only such that want bytes before this one. */
  to_byte?: number;
}

export class Server {
  readonly url: string;
  readonly #process: ChildProcess;

  private constructor(url: string, process: ChildProcess) {
    this.url = url;
    this.#process = process;
  }

  static async start(...options: string[]): Promise<Server> {
    const mounts = ["/pages/=tests/browser/pages", "/fixtures/=build/browser-fixtures", "/tests/=tests"];
    const child = spawn(
      ".venv/bin/python",
      [
        "tests/faults/server.py",
        "--root",
        "dist",
        ...mounts.flatMap((mount) => ["--mount", mount]),
        ...options,
      ],
      { stdio: ["ignore", "pipe", "inherit"] },
    );
    for await (const line of createInterface({ input: child.stdout })) {
      return new Server(line.trim(), child);
    }
    throw new Error("The server did not start.");
  }

  stop(): void {
    this.#process.kill();
  }

  async fault(fault: Fault): Promise<void> {
    await fetch(`${this.url}/__faults__`, { method: "POST", body: JSON.stringify(fault) });
  }

  /** Mends all faults and empties the log. */
  async reset(): Promise<void> {
    await fetch(`${this.url}/__reset__`, { method: "POST" });
  }

  /** What was asked for since the last reset, with the `Range` header. */
  async requests(): Promise<{ path: string; range: string }[]> {
    const log = (await (await fetch(`${this.url}/__log__`)).json()) as {
      requests: { path: string; range: string }[];
    };
    return log.requests.map(({ path, range }) => ({ path, range }));
  }

  /** How many requests are being answered. */
  async active(): Promise<number> {
    return ((await (await fetch(`${this.url}/__log__`)).json()) as { active: number }).active;
  }

  /** Paths asked for since the last reset. */
  async paths(): Promise<string[]> {
    return (await this.requests()).map(({ path }) => path);
  }
}

export const test = base.extend<{ scriptPage: Page; foreign: string[] }, { server: Server }>({
  server: [
    async ({}, use) => {
      const server = await Server.start();
      await use(server);
      server.stop();
    },
    { scope: "worker" },
  ],

  /** Addresses of other origins that anything in the context asked for. */
  foreign: async ({ context, server }, use) => {
    const foreign: string[] = [];
    context.on("request", (request) => {
      const url = new URL(request.url());
      if (["http:", "https:", "ws:", "wss:"].includes(url.protocol) && url.origin !== server.url) {
        foreign.push(request.url());
      }
    });
    await use(foreign);
    expect(foreign, "requests to other origins").toEqual([]);
  },

  /** A page with nothing but the script tag, and an empty store. */
  scriptPage: async ({ page, server, foreign }, use) => {
    expect(foreign).toEqual([]);
    await server.reset();
    await page.goto(`${server.url}/pages/script.html`);
    await use(page);
  },
});

export { expect };

export type CreateOptions = Parameters<typeof api.createEngine>[0];

export interface Outcome {
  error?: { name: string; message: string; details: Record<string, unknown> };
  events: ProgressEvent[];
}

/** Creates an engine in the page under `globalThis[name]`; gives the error instead of throwing it. */
export function createEngine(page: Page, options: CreateOptions, name = "engine"): Promise<Outcome> {
  return page.evaluate(
    async ([options, name]) => {
      const events: ProgressEvent[] = [];
      try {
        const engine = await pywebml.createEngine(options, (event) => events.push(event));
        (globalThis as Record<string, unknown>)[name] = engine;
        return { events };
      } catch (caught) {
        const { name, message, details } = caught as Required<Outcome>["error"];
        return { error: { name, message, details }, events };
      }
    },
    [options, name] as const,
  );
}

/** Runs the page's engine; tensors come with plain arrays of numbers. */
export function run(
  page: Page,
  texts: unknown,
  options: Record<string, unknown> = { pooling: "mean", normalize: true },
  name = "engine",
): Promise<{ dims: number[]; type: string; data: number[] }> {
  return page.evaluate(
    async ([texts, options, name]) => {
      const engine = (globalThis as Record<string, unknown>)[name] as api.Engine;
      const tensor = (await engine.run({ args: [texts], options })) as Tensor;
      return { dims: tensor.dims, type: tensor.type, data: Array.from(tensor.data as Float32Array) };
    },
    [texts, options, name] as const,
  );
}

export interface StoredFile {
  key: string[];
  size: number;
  bytes: number;
}

/**
 * What IndexedDB really holds: every visible file with the bytes of its parts, `writes` that nobody can go on with,
 * `unfinished` files by path, and parts that belong to nothing.
 */
export function readIndexedDb(page: Page): Promise<{
  files: StoredFile[];
  writes: number;
  unfinished: string[];
  orphans: number;
  largestPart: number;
}> {
  return page.evaluate(async () => {
    const request = <T>(source: IDBRequest<T>): Promise<T> =>
      new Promise((resolve, reject) => {
        source.onsuccess = () => resolve(source.result);
        source.onerror = () => reject(source.error);
      });
    const database = await request(indexedDB.open("pywebml"));
    try {
      const names = ["files", "parts", "writes"].filter((name) => database.objectStoreNames.contains(name));
      if (names.length < 3) {
        return { files: [], writes: 0, unfinished: [], orphans: 0, largestPart: 0 };
      }
      const transaction = database.transaction(names, "readonly");
      const files = (await request(transaction.objectStore("files").getAll())) as {
        key: string[];
        size: number;
        blob: string;
      }[];
      const keys = (await request(transaction.objectStore("parts").getAllKeys())) as [string, number][];
      const sizes = new Map<string, number>();
      let largestPart = 0;
      for (const key of keys) {
        const part = (await request(transaction.objectStore("parts").get(key))) as Blob;
        sizes.set(key[0], (sizes.get(key[0]) ?? 0) + part.size);
        largestPart = Math.max(largestPart, part.size);
      }
      const unfinished = (await request(transaction.objectStore("writes").getAllKeys())) as string[];
      const writes = (await request(transaction.objectStore("writes").getAll())) as {
        key: string[];
        token: string;
      }[];
      const known = new Set([...files.map((file) => file.blob), ...unfinished]);
      return {
        files: files.map(({ key, size, blob }) => ({ key, size, bytes: sizes.get(blob) ?? 0 })),
        writes: writes.filter(({ token }) => token === "").length,
        unfinished: writes.filter(({ token }) => token !== "").map(({ key }) => key.at(-1) ?? ""),
        orphans: [...sizes.keys()].filter((blob) => !known.has(blob)).length,
        largestPart,
      };
    } finally {
      database.close();
    }
  });
}

/** Changes the first byte of a stored file where it lies in IndexedDB. */
export function damage(page: Page, path: string): Promise<void> {
  return page.evaluate(async (path) => {
    const request = <T>(source: IDBRequest<T>): Promise<T> =>
      new Promise((resolve, reject) => {
        source.onsuccess = () => resolve(source.result);
        source.onerror = () => reject(source.error);
      });
    const database = await request(indexedDB.open("pywebml"));
    try {
      const files = (await request(database.transaction("files").objectStore("files").getAll())) as {
        key: string[];
        blob: string;
      }[];
      const blob = files.find(({ key }) => key.at(-1) === path)?.blob ?? "";
      const range = IDBKeyRange.bound([blob], [blob, []]);
      const [key] = await request(database.transaction("parts").objectStore("parts").getAllKeys(range));
      if (key === undefined) {
        throw new Error(`Nothing is stored under ${path}.`);
      }
      const part = (await request(database.transaction("parts").objectStore("parts").get(key))) as Blob;
      const bytes = new Uint8Array(await part.arrayBuffer());
      bytes[0] = (bytes[0] as number) ^ 1;
      await request(
        database
          .transaction("parts", "readwrite")
          .objectStore("parts")
          .put(new Blob([bytes]), key),
      );
    } finally {
      database.close();
    }
  }, path);
}

/** Largest absolute difference of two lists of the same length. */
export function largestDifference(left: number[], right: number[]): number {
  expect(left.length).toBe(right.length);
  return left.reduce(
    (largest, value, index) => Math.max(largest, Math.abs(value - (right[index] ?? Number.NaN))),
    0,
  );
}
