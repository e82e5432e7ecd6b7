/** What the tests of the store share: pages with the bridge and no Python, and short cuts into them. */

import type { BrowserContext, Page } from "@playwright/test";
import type { Bridge } from "../../web/src/bridge/index.ts";
import { BytesServer } from "./bytes-server.ts";
import { test as base } from "./fixtures.ts";

export type Key = [kind: string, owner: string, revision: string, path: string];

export const MB = 1024 * 1024;

export function key(path: string, kind = "model"): Key {
  return [kind, "tests.example/org/name", "main", path];
}

export interface PageError {
  name: string;
  message: string;
  details: Record<string, unknown>;
}

type Stores = Record<"files" | "parts" | "writes" | "documents", IDBObjectStore>;

declare global {
  // What `pages/bridge.js` makes.
  var bridge: Bridge;
  var newBridge: (sessionWorkerUrl?: string) => Bridge;
  var pattern: (begin: number, end: number) => Uint8Array<ArrayBuffer>;
  var isPattern: (bytes: Uint8Array, begin?: number) => boolean;
  var errorOf: (promise: Promise<unknown>) => Promise<PageError | undefined>;
  var openDatabase: (version?: number, upgrade?: (database: IDBDatabase) => void) => Promise<IDBDatabase>;
  var inDatabase: <Result>(
    work: (stores: Stores, request: <T>(source: IDBRequest<T>) => Promise<T>) => Promise<Result>,
  ) => Promise<Result>;
  // Left by one call for the next.
  var writer: Awaited<ReturnType<Bridge["openWriter"]>>;
  var lock: Awaited<ReturnType<Bridge["takeLock"]>>;
  var loose: unknown;
}

export async function openPage(context: BrowserContext, url: string): Promise<Page> {
  const page = await context.newPage();
  await goto(page, url);
  return page;
}

export async function goto(page: Page, url: string): Promise<void> {
  await page.goto(`${url}/pages/bridge.html`);
  await page.waitForFunction(() => "bridge" in globalThis);
}

export async function reload(page: Page): Promise<void> {
  await page.reload();
  await page.waitForFunction(() => "bridge" in globalThis);
}

/** Stores the first `size` bytes of the pattern. */
export function put(page: Page, key: Key, size: number): Promise<void> {
  return page.evaluate(
    async ([key, size]) => {
      const writer = await bridge.openWriter(key);
      await writer.write(pattern(0, size));
      await writer.commit("{}");
    },
    [key, size] as const,
  );
}

/** Whether a stored file has the first bytes of the pattern: their number, or undefined when it is not there. */
export function sizeOfPattern(page: Page, key: Key): Promise<number | string | undefined> {
  return page.evaluate(async (key) => {
    if ((await bridge.info(key)) === "") {
      return undefined;
    }
    const bytes = await bridge.read(key);
    return isPattern(bytes) ? bytes.byteLength : "other bytes";
  }, key);
}

export interface Part {
  kind: string;
  begin: number;
  size: number;
}

/** What the database holds: parts of every name, names of files and of unfinished ones. */
export function contents(
  page: Page,
): Promise<{ version: number; parts: Record<string, Part[]>; files: string[]; writes: string[] }> {
  return page.evaluate(async () => {
    const database = await openDatabase();
    const { version } = database;
    database.close();
    return inDatabase(async ({ files, parts, writes }, request) => {
      const found: Record<string, { kind: string; begin: number; size: number }[]> = {};
      const keys = await request(parts.getAllKeys());
      for (const key of keys as [string, number][]) {
        const value = (await request(parts.get(key))) as Blob | ArrayBuffer;
        const [kind, size] = value instanceof Blob ? ["Blob", value.size] : ["ArrayBuffer", value.byteLength];
        found[key[0]] ??= [];
        found[key[0]]?.push({ kind: kind as string, begin: key[1], size: size as number });
      }
      const records = (await request(files.getAll())) as { blob: string }[];
      const unfinished = (await request(writes.getAllKeys())) as string[];
      return { version, parts: found, files: records.map(({ blob }) => blob), writes: unfinished };
    });
  });
}

export const test = base.extend<{ bridgePage: Page }, { bytes: BytesServer }>({
  bytes: [
    async ({}, use) => {
      const server = await BytesServer.start();
      await use(server);
      server.stop();
    },
    { scope: "worker" },
  ],

  /** A page with the bridge, and an empty store. */
  bridgePage: async ({ page, server }, use) => {
    await goto(page, server.url);
    await use(page);
  },
});

export { expect } from "./fixtures.ts";
