/** Databases of other versions, and stores that the browser or somebody else has damaged. */

import { mkdtemp, readdir, rm, stat, truncate, unlink } from "node:fs/promises";
import { join } from "node:path";
import type { Page } from "@playwright/test";
import { patternBytes, sha256 } from "./bytes-server.ts";
import {
  contents,
  expect,
  goto,
  type Key,
  key,
  MB,
  openPage,
  put,
  reload,
  sizeOfPattern,
  test,
} from "./store-page.ts";

const MODEL = key("onnx/model.onnx");
const OTHER = key("config.json");
const PART = 4 * MB;
const SIZES: [Key, number][] = [
  [MODEL, 2 * PART + 5],
  [OTHER, 17],
  [key("whole.bin"), PART],
  [key("empty.bin"), 0],
  [key("runtime.wasm", "attachment"), PART + 1],
];

/** Makes a database as version 1 did, before the bridge opens it. `held`: keeps its connection open. */
async function makeVersion1(page: Page, held: "closes" | "stays" | false): Promise<void> {
  const files = SIZES.map(([key, size]) => ({ key, size, sha256: sha256(patternBytes(0, size)) }));
  await page.evaluate(
    async ([files, partSize, held]) => {
      const database = await openDatabase(1, (database) => {
        database.createObjectStore("files", { keyPath: "key" });
        for (const name of ["parts", "writes", "documents"]) {
          database.createObjectStore(name);
        }
      });
      const tx = database.transaction(["files", "parts", "writes", "documents"], "readwrite");
      for (const [number, { key, size, sha256 }] of files.entries()) {
        const parts = Math.ceil(size / partSize);
        const blob = `blob-${number}`;
        const metadata = { etag: `"${number}"` };
        tx.objectStore("files").put({ key, size, sha256, updated: 1.5, metadata, blob, partSize, parts });
        for (let index = 0; index < parts; index++) {
          const begin = index * partSize;
          tx.objectStore("parts").put(pattern(begin, Math.min(size, begin + partSize)).buffer, [blob, index]);
        }
      }
      tx.objectStore("writes").put({ key: files[0]?.key, started: Date.now() }, "dead");
      tx.objectStore("parts").put(new ArrayBuffer(partSize), ["dead", 0]);
      tx.objectStore("documents").put('{"a":1}', "settings");
      await new Promise((resolve) => {
        tx.oncomplete = resolve;
      });
      if (held === false) {
        database.close();
      } else {
        globalThis.loose = database;
        database.onversionchange = () => held === "closes" && database.close();
      }
    },
    [files, PART, held] as const,
  );
}

const openError = (page: Page) => page.evaluate(() => errorOf(bridge.list("model")));

test("a database of version 1 keeps all its files and documents, as they are", async ({
  bridgePage: page,
}) => {
  await makeVersion1(page, false);
  const before = await contents(page);
  expect(before.version).toBe(1);

  const infos = await page.evaluate(async () => [
    ...JSON.parse(await bridge.list("model")),
    ...JSON.parse(await bridge.list("attachment")),
  ]);
  expect(infos).toHaveLength(SIZES.length);
  for (const [number, [key, size]] of SIZES.entries()) {
    const info = infos.find((info) => info.key.join() === key.join());
    expect(info).toMatchObject({ size, updated: 1.5, metadata: { etag: `"${number}"` } });
    expect(await sizeOfPattern(page, key)).toBe(size);
    expect(await page.evaluate((key) => bridge.verify(key), key)).toBe(true);
  }
  expect(await page.evaluate(() => bridge.getDocument("settings"))).toBe('{"a":1}');
  const after = await contents(page);
  expect(after.version).toBe(2);
  // Nothing was written anew, and what the dead writer had is gone.
  const { dead, ...kept } = before.parts;
  expect(dead).toHaveLength(1);
  expect(after.parts).toEqual(kept);
  expect(after.writes).toEqual([]);
});

test("files of version 1 can be exported, changed, replaced and deleted", async ({ bridgePage: page }) => {
  await makeVersion1(page, false);
  const exported = await page.evaluate(async (key) => {
    const signal = new AbortController().signal;
    const blob = await bridge.writeOutside(null, [["", [new Uint8Array([1, 2, 3]), key]]], signal);
    const bytes = new Uint8Array(await (blob as Blob).arrayBuffer());
    return [bytes.length, ...bytes.subarray(0, 3), isPattern(bytes.subarray(3))];
  }, MODEL);
  expect(exported).toEqual([3 + 2 * PART + 5, 1, 2, 3, true]);

  await page.evaluate((key) => bridge.update(JSON.stringify([[key, { etag: "new" }]])), MODEL);
  expect(await page.evaluate(async (key) => JSON.parse(await bridge.info(key)).metadata, MODEL)).toEqual({
    etag: "new",
  });
  expect(await sizeOfPattern(page, MODEL)).toBe(2 * PART + 5);
  await put(page, MODEL, 1_000);
  expect(await sizeOfPattern(page, MODEL)).toBe(1_000);
  await page.evaluate(
    (keys) => bridge.delete(keys),
    SIZES.map(([key]) => key),
  );
  expect((await contents(page)).parts).toEqual({});
});

test("a tab with an open database of version 1 that makes way is no hindrance", async ({
  context,
  server,
}) => {
  const old = await openPage(context, server.url);
  await makeVersion1(old, "closes");
  const page = await openPage(context, server.url);
  expect(await sizeOfPattern(page, MODEL)).toBe(2 * PART + 5);
});

test("a tab that does not make way is named, until it is closed", async ({ context, server }) => {
  const old = await openPage(context, server.url);
  await makeVersion1(old, "stays");
  const page = await openPage(context, server.url);
  expect(await openError(page)).toMatchObject({
    name: "StoreUnavailableError",
    message: expect.stringContaining("Close the other tabs"),
  });
  await old.close();
  expect(await sizeOfPattern(page, MODEL)).toBe(2 * PART + 5);
});

test("this version makes way for a newer one, and then says that the page is old", async ({
  context,
  server,
}) => {
  const page = await openPage(context, server.url);
  await put(page, MODEL, 1_000);
  const newer = await openPage(context, server.url);
  await newer.evaluate(async () => (await openDatabase(3)).close());
  expect(await openError(page)).toMatchObject({
    name: "StoreUnavailableError",
    message: expect.stringContaining("Reload the page"),
  });
});

test("a database that is deleted in the middle of it all is made again", async ({ context, server }) => {
  const page = await openPage(context, server.url);
  await put(page, OTHER, 100);
  await page.evaluate(async (key) => {
    globalThis.writer = await bridge.openWriter(key, "t");
    await writer.put(0, new Blob([pattern(0, 1_000)]));
  }, MODEL);
  const cleaner = await openPage(context, server.url);
  await cleaner.evaluate(
    () =>
      new Promise((resolve, reject) => {
        const deleting = indexedDB.deleteDatabase("pywebml");
        deleting.onsuccess = resolve;
        deleting.onerror = reject;
      }),
  );
  const errors = await page.evaluate(async () => [
    await errorOf(writer.put(1_000, new Blob([pattern(1_000, 2_000)]))),
    await errorOf(writer.finish("f".repeat(64)).then(() => writer.commit("{}"))),
  ]);
  for (const error of errors) {
    expect(error).toMatchObject({ name: "StoreError", message: expect.stringContaining("was cleared") });
  }
  await page.evaluate(() => writer.abort());
  expect(await sizeOfPattern(page, OTHER)).toBeUndefined();
  await put(page, MODEL, 2_000);
  expect(await sizeOfPattern(page, MODEL)).toBe(2_000);
  expect(Object.keys((await contents(page)).parts)).toHaveLength(1);
});

for (const version of [1, 2]) {
  test(`a file of version ${version} of which a part is missing is not there, and is removed`, async ({
    bridgePage: page,
  }) => {
    if (version === 1) {
      await makeVersion1(page, false);
    }
    await put(page, key("fine.bin"), 20 * MB);
    const damage = () =>
      page.evaluate(
        ([key, version]) =>
          inDatabase(async ({ files, parts }, request) => {
            const { blob } = await request(files.get(key));
            // The middle one of three.
            await request(parts.delete(version === 1 ? [blob, 1] : [blob, 8 << 20, 8 << 20]));
          }),
        [MODEL, version] as const,
      );
    const paths = () =>
      page.evaluate(async () =>
        (JSON.parse(await bridge.list("model")) as { key: string[] }[]).map(({ key }) => key[3]),
      );

    if (version === 2) {
      await put(page, MODEL, 20 * MB);
    }
    expect(await paths()).toContain("onnx/model.onnx");
    await damage();
    expect(await paths()).not.toContain("onnx/model.onnx");
    expect(await paths()).toContain("fine.bin");
    const left = await contents(page);
    expect(Object.keys(left.parts).filter((blob) => !left.files.includes(blob))).toEqual([]);

    await put(page, MODEL, 20 * MB);
    version === 2 && (await damage());
    if (version === 2) {
      expect(await page.evaluate((key) => bridge.info(key), MODEL)).toBe("");
      expect(await page.evaluate((key) => errorOf(bridge.read(key)), MODEL)).toMatchObject({
        name: "StoreError",
        message: expect.stringContaining("Download it"),
      });
      expect(await page.evaluate((key) => bridge.verify(key), MODEL)).toBe(false);
    }
    expect(await sizeOfPattern(page, key("fine.bin"))).toBe(20 * MB);
  });
}

test("a part of version 1 that lost bytes is a damaged file", async ({ bridgePage: page }) => {
  await makeVersion1(page, false);
  await page.evaluate(() => bridge.list("model"));
  await page.evaluate(() =>
    inDatabase(({ parts }, request) => request(parts.put(new ArrayBuffer(7), ["blob-0", 1]))),
  );
  const errors = await page.evaluate(
    async (key) => [await errorOf(bridge.read(key)), await errorOf(bridge.read(key))],
    MODEL,
  );
  expect(errors[0]).toMatchObject({ name: "DamagedFileError", details: { key: MODEL } });
  expect(errors[1]).toMatchObject({ name: "StoreError" });
});

for (const [what, size] of [
  ["small", 1000],
  ["large", 40 * MB],
] as const) {
  test(`a ${what} file that is replaced while it is verified is no damaged one`, async ({
    bridgePage: page,
  }) => {
    await put(page, MODEL, size);
    const answers = await page.evaluate(
      async ([key, size]) => {
        const writer = await bridge.openWriter(key);
        await writer.write(pattern(5, size + 5));
        await writer.finish();
        // In the database one comes right after the other: the bytes are looked for in the file that is new.
        const verified = bridge.verify(key);
        await writer.commit("{}");
        const never = bridge.verify(["model", "tests.example/org/name", "main", "never"]);
        return [await verified, await never];
      },
      [MODEL, size] as const,
    );
    expect(answers).toEqual([true, false]);
  });
}

test("parts that belong to nobody are removed at opening", async ({ bridgePage: page }) => {
  await put(page, MODEL, 1_000);
  await page.evaluate(() =>
    inDatabase(async ({ parts }, request) => {
      await request(parts.put(new Blob(["lost"]), ["nobody", 0, 4]));
      await request(parts.put(new ArrayBuffer(4), ["nobody-1", 0]));
    }),
  );
  await reload(page);
  expect(await sizeOfPattern(page, MODEL)).toBe(1_000);
  expect(Object.keys((await contents(page)).parts)).toHaveLength(1);
});

test("bytes that vanished from the disk show when they are read, and only that file goes", async ({
  playwright,
  launchOptions,
  server,
}) => {
  const profile = await mkdtemp(join("build", "store-profile-"));
  const large = key("large.bin");
  const launch = () => playwright.chromium.launchPersistentContext(profile, launchOptions);
  let context = await launch();
  try {
    let page = await context.newPage();
    await goto(page, server.url);
    await put(page, OTHER, 500);
    const before = await blobFiles(profile);
    await put(page, MODEL, 20 * MB);
    await put(page, large, 40 * MB);
    await page.evaluate(async (key) => {
      const writer = await bridge.openWriter(key, "t");
      await writer.put(0, new Blob([pattern(0, 5_000_000)]));
      await writer.put(5_000_000, new Blob([pattern(5_000_000, 9_000_000)]));
      await writer.suspend();
    }, key("draft.bin"));
    await context.close();

    // The last parts of the model and of the draft are gone, and the last one of the large file is cut off.
    const parts: { file: string; size: number }[] = [];
    for (const file of (await blobFiles(profile)).filter((file) => !before.includes(file))) {
      parts.push({ file, size: (await stat(file)).size });
    }
    for (const { file } of parts.filter(({ size }) => size === 4 * MB || size === 4_000_000)) {
      await unlink(file);
    }
    await truncate(parts.findLast(({ size }) => size === 8 * MB)?.file as string, 10);

    context = await launch();
    page = await context.newPage();
    await goto(page, server.url);
    const first = await page.evaluate(
      async (key) => [(await bridge.info(key)) !== "", await errorOf(bridge.read(key))],
      MODEL,
    );
    expect(first).toEqual([
      true,
      expect.objectContaining({ name: "DamagedFileError", details: { key: MODEL } }),
    ]);
    expect(await page.evaluate((key) => bridge.info(key), MODEL)).toBe("");
    expect(await page.evaluate((key) => bridge.verify(key), large)).toBe(false);
    expect(await page.evaluate((key) => bridge.info(key), large)).toBe("");
    expect(await sizeOfPattern(page, OTHER)).toBe(500);

    const draft = await page.evaluate(async (key) => {
      globalThis.writer = await bridge.openWriter(key, "t");
      const before = await writer.present();
      const error = await errorOf(writer.digest(0, 9_000_000));
      return [before, error?.name, await writer.present()];
    }, key("draft.bin"));
    expect(draft).toEqual(["[[0,9000000]]", "StoreError", "[[0,5000000]]"]);
    await page.evaluate(async () => {
      await writer.put(5_000_000, new Blob([pattern(5_000_000, 9_000_000)]));
      await writer.commit("{}");
    });
    expect(await sizeOfPattern(page, key("draft.bin"))).toBe(9_000_000);
    await put(page, MODEL, 20 * MB);
    expect(await sizeOfPattern(page, MODEL)).toBe(20 * MB);
  } finally {
    await context.close();
    await rm(profile, { recursive: true });
  }
});

/** Where Chromium keeps the bytes of blobs in IndexedDB, in the order in which they came: the names are numbers. */
async function blobFiles(profile: string): Promise<string[]> {
  const entries = await readdir(profile, { recursive: true, withFileTypes: true });
  return entries
    .filter((entry) => entry.isFile() && entry.parentPath.includes(".indexeddb.blob"))
    .sort((one, two) => Number.parseInt(one.name, 16) - Number.parseInt(two.name, 16))
    .map((entry) => join(entry.parentPath, entry.name));
}
