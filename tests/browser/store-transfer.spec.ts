/** Bytes on their way into the store and out of it: answers of servers, and files of the page's user. */

import type { Page } from "@playwright/test";
import { python, startPython } from "./contracts.ts";
import type { PageError } from "./store-page.ts";
import { contents, expect, type Key, key, MB, openPage, put, sizeOfPattern, test } from "./store-page.ts";

const MODEL = key("onnx/model.onnx");

interface Saved {
  error: PageError | undefined;
  present: [number, number][];
  reported: number;
}

interface SaveOptions {
  offset?: number | null;
  limit?: number | null;
  stallMs?: number;
  /** Abort when so many bytes have been reported. */
  abortAt?: number;
}

/** Saves an answer into a fresh writer, which is left to the next call. */
function save(page: Page, url: string, options: SaveOptions = {}): Promise<Saved> {
  return page.evaluate(
    async ([key, url, { offset = null, limit = null, stallMs = 0, abortAt }]) => {
      const controller = new AbortController();
      let reported = 0;
      const onBytes = (count: number) => {
        reported += count;
        if (abortAt !== undefined && reported >= abortAt) {
          controller.abort();
        }
      };
      globalThis.writer = await bridge.openWriter(key, "t");
      const saving = bridge
        .request(url, "GET", {}, 0, controller.signal, stallMs)
        .then((response) => response.save(writer, onBytes, offset, limit));
      const error = await errorOf(saving);
      return { error, present: JSON.parse(await writer.present()), reported };
    },
    [MODEL, url, options] as const,
  );
}

async function commit(page: Page): Promise<void> {
  await page.evaluate(() => writer.commit("{}"));
}

test("a body is stored as it comes, where it belongs", async ({ bridgePage: page, bytes }) => {
  const size = 9 * MB + 1;
  const first = await save(page, bytes.at(0, 3_000_001), { offset: 0 });
  expect(first).toEqual({ error: undefined, present: [[0, 3_000_001]], reported: 3_000_001 });
  const reported = await page.evaluate(
    async (urls) => {
      let reported = 0;
      const saves = urls.map(async ([url, offset]) => {
        const response = await bridge.request(url, "GET", {}, 0, new AbortController().signal);
        const onBytes = (count: number) => {
          reported += count;
        };
        await response.save(writer, onBytes, offset);
      });
      await Promise.all(saves);
      return reported;
    },
    [
      [bytes.at(6_000_000, size), 6_000_000],
      [bytes.at(3_000_001, 6_000_000), 3_000_001],
    ] as [string, number][],
  );
  expect(reported).toBe(size - 3_000_001);
  await commit(page);
  expect(await sizeOfPattern(page, MODEL)).toBe(size);
  const sizes = Object.values((await contents(page)).parts)
    .flat()
    .map(({ size }) => size);
  expect(Math.max(...sizes)).toBe(2 * MB);
});

test("a body that is longer than it may be is cut off and an error", async ({ bridgePage: page, bytes }) => {
  const saved = await save(page, bytes.at(0, 500_000), { offset: 0, limit: 499_999 });
  expect(saved.error).toMatchObject({ name: "NetworkError", message: expect.stringContaining("499999") });
  expect(saved.present).toEqual([[0, 499_999]]);
  expect(saved.reported).toBe(499_999);
  const exact = await save(page, bytes.at(0, 500_000), { offset: 0, limit: 500_000 });
  expect(exact).toMatchObject({ error: undefined, present: [[0, 500_000]] });
});

test("bodies that are appended come one behind the other", async ({ bridgePage: page, bytes }) => {
  await save(page, bytes.at(0, 3_000_000));
  await page.evaluate(
    async (url) => {
      await writer.write(pattern(3_000_000, 3_000_010));
      const response = await bridge.request(url, "GET", {}, 0, new AbortController().signal);
      await response.save(writer, () => undefined);
      await writer.write(pattern(5_000_000, 5_000_010));
      await writer.commit("{}");
    },
    bytes.at(3_000_010, 5_000_000),
  );
  expect(await sizeOfPattern(page, MODEL)).toBe(5_000_010);
});

test("what has arrived when the connection breaks is kept", async ({ bridgePage: page, bytes }) => {
  const { error, present, reported } = await save(page, bytes.at(1_000, 9_000_000, "cut=3145728"), {
    offset: 1_000,
  });
  expect(error).toMatchObject({ name: "NetworkError", message: expect.stringContaining(bytes.url) });
  expect(present).toEqual([[1_000, 1_000 + reported]]);
  // The browser drops what it has received and nobody has read when it breaks off.
  expect(reported).toBeGreaterThan(0);
  expect(reported).toBeLessThanOrEqual(3 * MB);
  await page.evaluate(
    async ([url, end]) => {
      const response = await bridge.request(url, "GET", {}, 0, new AbortController().signal);
      await response.save(writer, () => undefined, end);
      await writer.put(0, new Blob([pattern(0, 1_000)]));
      await writer.commit("{}");
    },
    [bytes.at(1_000 + reported, 9_000_000), 1_000 + reported] as const,
  );
  expect(await sizeOfPattern(page, MODEL)).toBe(9_000_000);
});

test("a connection that falls silent is given up, and says so", async ({ bridgePage: page, bytes }) => {
  const stalled = await save(page, bytes.at(0, 5_000_000, "stall=3000000"), { offset: 0, stallMs: 300 });
  expect(stalled.error).toMatchObject({
    name: "NetworkError",
    message: expect.stringContaining("no byte came in 300 ms"),
  });
  expect(stalled.present).toEqual([[0, 3_000_000]]);
  const head = await page.evaluate(
    (url) => errorOf(bridge.request(url, "GET", {}, 200, new AbortController().signal, 60_000)),
    bytes.at(0, 1, "silent"),
  );
  expect(head).toMatchObject({
    name: "NetworkError",
    message: expect.stringContaining("no answer in 200 ms"),
  });
});

test("an abort stops the traffic and keeps what has arrived", async ({ bridgePage: page, bytes }) => {
  const { error, present, reported } = await save(page, bytes.at(0, 30_000_000, "stall=5000000"), {
    offset: 0,
    abortAt: 5_000_000,
  });
  expect(error).toMatchObject({ name: "NetworkError" });
  expect([present, reported]).toEqual([[[0, 5_000_000]], 5_000_000]);
});

test("a body without a length, or a packed one, is stored unpacked and bounded", async ({
  bridgePage: page,
  bytes,
}) => {
  for (const fault of ["chunked", "gzip"]) {
    const cut = await save(page, bytes.at(0, 5_000_000, fault), {
      offset: 0,
      limit: 4_000_000,
    });
    expect(cut.error).toMatchObject({ name: "NetworkError" });
    const saved = await save(page, bytes.at(0, 5_000_000, fault), { offset: 0 });
    expect(saved).toEqual({ error: undefined, present: [[0, 5_000_000]], reported: 5_000_000 });
    const sizes = Object.values((await contents(page)).parts)
      .flat()
      .map(({ size }) => size);
    expect(Math.max(...sizes)).toBeLessThanOrEqual(2 * MB);
    await commit(page);
    expect(await sizeOfPattern(page, MODEL)).toBe(5_000_000);
    await page.evaluate((key) => bridge.delete([key]), MODEL);
  }
});

test("files of the page's user go into the store without being read here", async ({ bridgePage: page }) => {
  const size = 19 * MB + 7;
  const result = await page.evaluate(
    async ([key, size]) => {
      const file = new File([pattern(0, size)], "model.onnx");
      const nested = new File(["x"], "a.txt");
      Object.defineProperty(nested, "webkitRelativePath", { value: "chosen/deep/a.txt" });
      const [single] = await bridge.outsideFiles(file);
      const list = await bridge.outsideFiles([file, nested]);
      const input = new DataTransfer();
      input.items.add(file);
      const fileList = await bridge.outsideFiles(input.files);
      const writer = await bridge.openWriter(key);
      const reports: number[] = [];
      const signal = new AbortController().signal;
      await writer.write(pattern(0, 10));
      await single?.copy(10, size, writer, (count) => reports.push(count), signal);
      await writer.commit("{}");
      const aborted = await errorOf(
        single?.copy(0, 1, writer, () => undefined, AbortSignal.abort()) ?? Promise.resolve(),
      );
      return {
        paths: [single, ...list, ...fileList].map((file) => file?.path),
        sizes: [single?.size, list[1]?.size],
        read: Array.from((await single?.read(5, 8)) ?? []).join() === pattern(5, 8).join(),
        reports,
        aborted: aborted?.name,
        refused: [await errorOf(bridge.outsideFiles("x")), await errorOf(bridge.outsideFiles([file, 1]))],
      };
    },
    [MODEL, size] as const,
  );
  expect(result).toMatchObject({
    paths: ["model.onnx", "model.onnx", "deep/a.txt", "model.onnx"],
    sizes: [size, 1],
    read: true,
    reports: [8 * MB, 8 * MB, 3 * MB + 7 - 10],
    aborted: "AbortError",
    refused: [{ name: "StoreError" }, { name: "StoreError" }],
  });
  expect(await sizeOfPattern(page, MODEL)).toBe(size);
});

test("a folder is read with all below it, and written with nothing beside it", async ({
  bridgePage: page,
}) => {
  const stored: Key = key("stored.bin");
  await put(page, stored, 9 * MB);
  const result = await page.evaluate(async (stored) => {
    const signal = new AbortController().signal;
    const root = await navigator.storage.getDirectory();
    const folder = await root.getDirectoryHandle("out", { create: true });
    const text = (value: string) => new TextEncoder().encode(value);
    await bridge.writeOutside(
      folder,
      [
        ["a/b/model.bin", [text("head"), stored, text("tail")]],
        ["config.json", [text("{}")]],
        ["empty", []],
      ],
      signal,
    );
    const files = await bridge.outsideFiles(folder);
    const model = files.find(({ path }) => path === "a/b/model.bin");
    const bytes = (await model?.read(0, model.size)) ?? new Uint8Array();

    const bad = ["../x", "/x", "a//b", "a/./b", "..", "", "a\\b", "a\0"];
    const refused: unknown[] = [];
    for (const path of bad) {
      const files: [string, Uint8Array<ArrayBuffer>[]][] = [
        ["fine", []],
        [path, []],
      ];
      refused.push((await errorOf(bridge.writeOutside(folder, files, signal)))?.name);
    }
    const missing: typeof stored = ["model", "no", "such", "file"];
    const failed = await errorOf(
      bridge.writeOutside(folder, [["config.json", [text("new"), missing]]], signal),
    );

    const single = await folder.getFileHandle("single", { create: true });
    await bridge.writeOutside(single, [["", [stored]]], signal);
    const [one] = await bridge.outsideFiles(single);
    const many = await errorOf(
      bridge.writeOutside(
        null,
        [
          ["", []],
          ["", []],
        ],
        signal,
      ),
    );
    const left: string[] = [];
    for await (const name of root.keys()) {
      left.push(name);
    }
    return {
      paths: files.map(({ path, size }) => [path, size]).sort(),
      whole: [
        new TextDecoder().decode(bytes.subarray(0, 4)),
        isPattern(bytes.subarray(4, -4)),
        new TextDecoder().decode(bytes.subarray(-4)),
      ],
      refused,
      failed: failed?.name,
      config: await (await (await folder.getFileHandle("config.json")).getFile()).text(),
      single: [one?.path, one?.size],
      many: many?.name,
      left,
    };
  }, stored);
  expect(result).toEqual({
    paths: [
      ["a/b/model.bin", 9 * MB + 8],
      ["config.json", 2],
      ["empty", 0],
    ],
    whole: ["head", true, "tail"],
    refused: Array(8).fill("StoreError"),
    failed: "StoreError",
    config: "{}",
    single: ["single", 9 * MB],
    many: "StoreError",
    left: ["out"],
  });
});

test("a file that is exported stays readable when it is deleted from the store", async ({
  context,
  server,
}) => {
  const page = await openPage(context, server.url);
  await put(page, MODEL, 20 * MB);
  const whole = await page.evaluate(async (key) => {
    const blob = await bridge.writeOutside(null, [["", [key]]], new AbortController().signal);
    await bridge.delete([key]);
    return isPattern(new Uint8Array(await (blob as Blob).arrayBuffer()));
  }, MODEL);
  expect(whole).toBe(true);
});

test("Python has all of it, and a call that is cancelled leaves nothing behind", async ({
  page,
  server,
  bytes,
}) => {
  test.setTimeout(120_000);
  await startPython(page, server.url);
  const result = await python(
    page,
    `
import asyncio, hashlib
import js
import pywebml
from pyodide.ffi import to_js
from pyodide.code import run_js
from pywebml.errors import StoreError
from pywebml.platform import BlobKey, NetworkError, get_platform

pywebml.configure(assets_base="/")
platform = await get_platform()
name = BlobKey("model", "tests.example/org/name", "main", "onnx/model.onnx")
reported = []

async def save(url, writer, **options):
    response = await platform.request(url, stall_seconds=options.pop("stall_seconds", 60))
    assert response.redirect_headers == {}
    await response.save(writer, reported.append, **options)

# A stall, then what is missing; too long; cancelled.
writer = await platform.blobs.open_writer(name, "t")
try:
    await save("${bytes.at(0, 9_000_000, "stall=3000000")}", writer, offset=0, stall_seconds=0.3)
    raise AssertionError("no stall")
except NetworkError as error:
    assert "no byte came in 300 ms" in str(error), error
assert await writer.present() == [(0, 3_000_000)]
assert sum(reported) == 3_000_000
saving = asyncio.ensure_future(save("${bytes.at(3_000_000, 9_000_000, "stall=2000000")}", writer, offset=3_000_000))
while sum(reported) < 5_000_000:
    await asyncio.sleep(0.01)
saving.cancel()
try:
    await saving
    raise AssertionError("not cancelled")
except asyncio.CancelledError:
    pass
assert await writer.present() == [(0, 5_000_000)]
await save("${bytes.at(5_000_000, 9_000_000)}", writer, offset=5_000_000, limit=4_000_000)
await writer.discard(4_000_000, 2**60)
(_, begin), = await writer.present()
try:
    await save("${bytes.at(0, 9_000_000)}".replace("begin=0", f"begin={begin}"), writer, offset=begin, limit=2**60)
    size, digest = await writer.finish()
finally:
    info = await writer.commit({})
assert (size, digest) == (9_000_000, info.sha256)
data = await platform.blobs.read(name)
assert hashlib.sha256(data).hexdigest() == digest

# Out, as a Blob and into a folder, and in again.
blob = await platform.write_outside(None, [("", [b"head", name, b""])])
assert blob.size == 4 + size
root = await js.navigator.storage.getDirectory()
assert await platform.write_outside(root, [("b/two", [name]), ("b.txt", [b"2"]), ("a", [])]) is None
files = await platform.outside_files(root)
assert [(file.path, file.size) for file in files] == [("a", 0), ("b.txt", 1), ("b/two", size)]
assert await files[2].read(10, 20) == data[10:20]
copy = BlobKey(*["model", "tests.example/org/name", "main", "copy"])
writer = await platform.blobs.open_writer(copy)
copied = []
await files[2].copy(0, size, writer, copied.append)
await writer.commit({})
assert sum(copied) == size and await platform.blobs.read(copy) == data
both = await platform.outside_files([js.File.new(to_js([b"x"]), "x.txt"), js.File.new(to_js([b"yy"]), "a.txt")])
assert [(file.path, file.size) for file in both] == [("a.txt", 2), ("x.txt", 1)]
for wrong in (lambda: platform.outside_files("text"), lambda: platform.write_outside(root, [("../x", [b""])])):
    try:
        await wrong()
        raise AssertionError("not refused")
    except StoreError:
        pass
"held"
`,
  );
  expect(result).toBe("held");
});
