/** The store behind the bridge, without Python: pieces, drafts, hashes, locks. The contract is in `tests/contract`. */

import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import { patternBytes, sha256 } from "./bytes-server.ts";
import { partHash } from "./part-hash.ts";
import { contents, expect, goto, key, MB, openPage, put, reload, sizeOfPattern, test } from "./store-page.ts";

const MODEL = key("onnx/model.onnx");

test("a file is in blobs of a bounded size, whose keys tell what they hold", async ({ bridgePage: page }) => {
  const size = 20 * MB + 1;
  await put(page, MODEL, size);

  const { files, parts, writes, version } = await contents(page);
  expect(version).toBe(2);
  expect(writes).toEqual([]);
  expect(parts).toEqual({
    [files[0] as string]: [
      { kind: "Blob", begin: 0, size: 8 * MB },
      { kind: "Blob", begin: 8 * MB, size: 8 * MB },
      { kind: "Blob", begin: 16 * MB, size: 4 * MB + 1 },
    ],
  });
  expect(await sizeOfPattern(page, MODEL)).toBe(size);
  expect(await page.evaluate(async (key) => JSON.parse(await bridge.info(key)), MODEL)).toMatchObject({
    size,
    sha256: sha256(patternBytes(0, size)),
  });
});

test("pieces may come in any order and size, and at the same time", async ({ bridgePage: page }) => {
  const result = await page.evaluate(async (key) => {
    const writer = await bridge.openWriter(key, "t");
    const cuts = [0, 1, 70_000, 70_001, 3_000_000, 9_000_000, 9_500_000];
    const ranges = cuts.slice(1).map((end, index) => [cuts[index] as number, end] as const);
    const put = ([begin, end]: readonly [number, number]) =>
      writer.put(begin, new Blob([pattern(begin, end)]));
    await Promise.all(ranges.filter((_, index) => index % 2 === 1).map(put));
    const present = JSON.parse(await writer.present());
    const hole = await errorOf(writer.finish());
    await Promise.all(ranges.filter((_, index) => index % 2 === 0).map(put));
    const finished = JSON.parse(await writer.finish());
    await writer.commit("{}");
    return { present, hole, finished };
  }, MODEL);

  expect(result.present).toEqual([
    [1, 70_000],
    [70_001, 3_000_000],
    [9_000_000, 9_500_000],
  ]);
  expect(result.hole).toMatchObject({ name: "StoreError" });
  expect(result.finished).toEqual({ size: 9_500_000, sha256: sha256(patternBytes(0, 9_500_000)) });
  expect(await sizeOfPattern(page, MODEL)).toBe(9_500_000);
});

test("later bytes replace earlier ones, and pieces never overlap", async ({ bridgePage: page }) => {
  const result = await page.evaluate(async (key) => {
    const writer = await bridge.openWriter(key, "t");
    const bytes = (length: number, value: number) => new Blob([new Uint8Array(length).fill(value)]);
    await writer.put(0, bytes(10, 1));
    await writer.put(10, bytes(10, 2));
    // Both touch the second piece.
    await Promise.all([writer.put(8, bytes(4, 3)), writer.put(14, bytes(2, 4))]);
    await writer.put(19, bytes(3, 5));
    const read = Array.from(await writer.read(0, 22));
    const before = await writer.digest(5, 21);
    await writer.suspend();
    const again = await bridge.openWriter(key, "t");
    const after = await again.digest(5, 21);
    await again.commit("{}");
    return { read, same: before === after, stored: Array.from(await bridge.read(key)) };
  }, MODEL);

  const expected = "1111111133332244222555"; // 8 × 1, 4 × 3, 2 × 2, 2 × 4, 3 × 2, 3 × 5
  expect(result.read.join("")).toBe(expected);
  expect(result.stored.join("")).toBe(expected);
  expect(result.same).toBe(true);
  const { parts, files } = await contents(page);
  let end = 0;
  for (const part of parts[files[0] as string] ?? []) {
    expect(part.begin).toBe(end);
    end += part.size;
  }
});

test("what was discarded can be written again", async ({ bridgePage: page }) => {
  const present = await page.evaluate(async (key) => {
    const writer = await bridge.openWriter(key, "t");
    for (let begin = 0; begin < 5_000_000; begin += 1_000_000) {
      await writer.put(begin, new Blob([pattern(begin, begin + 1_000_000)]));
    }
    await writer.discard(2_500_000, 3_000_001);
    const present = JSON.parse(await writer.present());
    await writer.put(2_000_000, new Blob([pattern(2_000_000, 4_000_000)]));
    await writer.commit("{}");
    return present;
  }, MODEL);

  expect(present).toEqual([
    [0, 2_000_000],
    [4_000_000, 5_000_000],
  ]);
  expect(await sizeOfPattern(page, MODEL)).toBe(5_000_000);
});

test("a finished file takes no more bytes", async ({ bridgePage: page }) => {
  const errors = await page.evaluate(async (key) => {
    const writer = await bridge.openWriter(key);
    await writer.write(pattern(0, 10));
    await writer.finish();
    const errors = [
      await errorOf(writer.write(pattern(0, 1))),
      await errorOf(writer.put(0, new Blob(["x"]))),
      await errorOf(writer.discard(0, 1)),
    ];
    await writer.commit("{}");
    return errors;
  }, MODEL);

  expect(errors.map((error) => error?.name)).toEqual(["StoreError", "StoreError", "StoreError"]);
  expect(await sizeOfPattern(page, MODEL)).toBe(10);
});

for (const [how, leave] of [
  ["a reload", "reload"],
  ["a closed tab", "close"],
  ["a crash", "crash"],
] as const) {
  test(`a draft survives ${how}; what has no token does not`, async ({ context, server }) => {
    const page = await openPage(context, server.url);
    const other = await openPage(context, server.url);
    await page.evaluate(async (key) => {
      globalThis.writer = await bridge.openWriter(key, "etag-1");
      await writer.put(0, new Blob([pattern(0, 3_000_000)]));
      await writer.put(5_000_000, new Blob([pattern(5_000_000, 6_000_000)]));
      const loose = await bridge.openWriter([key[0], key[1], key[2], "loose.bin"]);
      await loose.put(0, new Blob([pattern(0, 1_000_000)]));
      globalThis.loose = loose;
    }, MODEL);
    expect(await other.evaluate((key) => bridge.draft(key), MODEL), "it is being written").toBe(
      '["etag-1",4000000]',
    );
    expect((await contents(other)).writes).toHaveLength(2);

    let next = other;
    if (leave === "reload") {
      await reload(page);
      next = page;
    } else if (leave === "close") {
      await page.close();
    } else {
      // Playwright never hears of the end of this navigation.
      await Promise.race([page.waitForEvent("crash"), page.goto("chrome://crash").catch(() => undefined)]);
    }
    // The dead tab's locks are free when the browser has noticed.
    await expect
      .poll(() => next.evaluate(async () => (await navigator.locks.query()).held?.map(({ name }) => name)))
      .toEqual([]);
    expect(await next.evaluate(async (key) => JSON.parse(await bridge.draft(key)), MODEL)).toEqual([
      "etag-1",
      4_000_000,
    ]);
    expect(await sizeOfPattern(next, MODEL)).toBeUndefined();

    const fresh = await openPage(context, server.url);
    const present = await fresh.evaluate(async (key) => {
      globalThis.writer = await bridge.openWriter(key, "etag-1");
      return JSON.parse(await writer.present());
    }, MODEL);
    expect(present).toEqual([
      [0, 3_000_000],
      [5_000_000, 6_000_000],
    ]);
    // Opening the store swept what nobody can go on with.
    expect((await contents(fresh)).writes).toHaveLength(1);
    await fresh.evaluate(async () => {
      await writer.put(3_000_000, new Blob([pattern(3_000_000, 5_000_000)]));
      await writer.commit("{}");
    });
    expect(await sizeOfPattern(fresh, MODEL)).toBe(6_000_000);
    expect((await contents(fresh)).writes).toEqual([]);
    expect(Object.keys((await contents(fresh)).parts)).toHaveLength(1);
  });
}

test("a draft that nobody has touched for a week is given up", async ({ bridgePage: page }) => {
  const days = [6.9, 7.1];
  for (const [index, age] of days.entries()) {
    await page.evaluate(
      async ([key, age]) => {
        const writer = await bridge.openWriter(key, "t");
        await writer.put(0, new Blob(["half"]));
        await writer.suspend();
        await inDatabase(async ({ writes }, request) => {
          for (const blob of await request(writes.getAllKeys())) {
            const record = await request(writes.get(blob));
            if (record.key[3] === key[3]) {
              await request(writes.put({ ...record, updated: Date.now() - age * 86_400_000 }, blob));
            }
          }
        });
      },
      [key(`draft-${index}`), age] as const,
    );
  }
  await reload(page);
  const drafts = await page.evaluate(
    (keys) => Promise.all(keys.map((key) => bridge.draft(key))),
    days.map((_, index) => key(`draft-${index}`)),
  );
  expect(drafts).toEqual(['["t",4]', ""]);
});

test("one part at most is lost with the page: pieces are stored as they come", async ({
  context,
  server,
  bytes,
}) => {
  const page = await openPage(context, server.url);
  await page.evaluate(
    async ([key, url]) => {
      const writer = await bridge.openWriter(key, "t");
      const response = await bridge.request(url, "GET", {}, 0, new AbortController().signal);
      globalThis.loose = response.save(writer, () => undefined, 0);
    },
    [MODEL, bytes.at(0, 30 * MB, `stall=${21 * MB}`)] as const,
  );
  const other = await openPage(context, server.url);
  await expect
    .poll(async () =>
      Object.values((await contents(other)).parts)
        .flat()
        .reduce((sum, { size }) => sum + size, 0),
    )
    .toBe(20 * MB);
  await page.close();
  await expect.poll(() => other.evaluate((key) => bridge.draft(key), MODEL)).toBe(`["t",${20 * MB}]`);
});

test("large files are hashed beside the download, in a worker that ends with it", async ({
  bridgePage: page,
}) => {
  const size = 70 * MB + 3;
  const started: string[] = [];
  page.on("worker", (worker) => started.push(worker.url()));
  const write = (from: number, to: number) =>
    page.evaluate(
      async ([from, to]) => {
        for (let begin = from; begin < to; begin += 5_000_000) {
          const end = Math.min(to, begin + 5_000_000);
          await writer.put(begin, new Blob([pattern(begin, end)]));
        }
      },
      [from, to] as const,
    );
  await page.evaluate(async (key) => {
    globalThis.writer = await bridge.openWriter(key, "t");
  }, MODEL);
  await write(0, 30 * MB);
  expect(started).toHaveLength(0);
  await write(30 * MB, 50 * MB);
  await expect.poll(() => started.length).toBe(1);
  await page.evaluate(() => writer.suspend());
  await expect.poll(() => page.workers().length).toBe(0);

  await page.evaluate(async (key) => {
    globalThis.writer = await bridge.openWriter(key, "t");
  }, MODEL);
  // Bytes that were hashed already are replaced by the same ones.
  await write(50 * MB, 60 * MB);
  await write(10 * MB, 20 * MB);
  await write(60 * MB, size);
  const finished = await page.evaluate(async () => JSON.parse(await writer.finish()));
  expect(finished).toEqual({ size, sha256: sha256(patternBytes(0, size)) });
  await page.evaluate(() => writer.commit("{}"));
  await expect.poll(() => page.workers().length).toBe(0);
  expect(await page.evaluate((key) => bridge.verify(key), MODEL)).toBe(true);
  await expect.poll(() => page.workers().length).toBe(0);
});

test("whoever checks the parts, or knows the hash, pays for no hash of the whole", async ({
  bridgePage: page,
}) => {
  const size = 70 * MB;
  let workers = 0;
  page.on("worker", () => {
    workers += 1;
  });
  const result = await page.evaluate(
    async ([key, size, part]) => {
      const writer = await bridge.openWriter(key, "t");
      const digests: string[] = [];
      for (let begin = 0; begin < size; begin += part) {
        await writer.put(begin, new Blob([pattern(begin, begin + part)]));
        digests.push(await writer.digest(begin, begin + part));
      }
      const finished = JSON.parse(await writer.finish("f".repeat(64)));
      await writer.commit("{}");
      return { digests, finished };
    },
    [MODEL, size, 10 * MB] as const,
  );
  expect(result.digests).toEqual(
    Array.from({ length: 7 }, (_, index) => partHash(patternBytes(index * 10 * MB, (index + 1) * 10 * MB))),
  );
  expect(result.finished).toEqual({ size, sha256: "f".repeat(64) });
  expect(workers).toBe(0);
  expect(await page.evaluate((key) => bridge.verify(key), MODEL)).toBe(false);
});

test("without its worker a large file is hashed all the same", async ({ bridgePage: page }) => {
  const size = 40 * MB;
  const finished = await page.evaluate(
    async ([key, size]) => {
      globalThis.bridge = newBridge("/no-such-script.mjs");
      const writer = await bridge.openWriter(key);
      await writer.write(pattern(0, size));
      const finished = JSON.parse(await writer.finish());
      await writer.commit("{}");
      return { ...finished, verified: await bridge.verify(key) };
    },
    [MODEL, size] as const,
  );
  expect(finished).toEqual({ size, sha256: sha256(patternBytes(0, size)), verified: true });
});

test("hashes need no more of a content security policy than WebAssembly does", async ({ page, server }) => {
  const policy = "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src data:";
  await page.route("**/*", async (route) => {
    const response = await route.fetch();
    await route.fulfill({
      response,
      headers: { ...response.headers(), "content-security-policy": policy },
    });
  });
  const refused: string[] = [];
  page.on("console", (message) => {
    if (message.type() === "error") {
      refused.push(message.text());
    }
  });
  await goto(page, server.url);
  const size = 40 * MB;
  await put(page, MODEL, size);
  expect(await page.evaluate((key) => bridge.verify(key), MODEL)).toBe(true);
  expect(await page.evaluate(async (key) => JSON.parse(await bridge.info(key)).sha256, MODEL)).toBe(
    sha256(patternBytes(0, size)),
  );
  expect(refused).toEqual([]);
});

test("a page without a secure context has the same store", async ({ page, server }) => {
  await goto(page, server.url.replace("127.0.0.1", "insecure.test"));
  expect(await page.evaluate(() => [isSecureContext, "locks" in navigator])).toEqual([false, false]);
  await put(page, MODEL, 40 * MB);
  expect(await page.evaluate((key) => bridge.verify(key), MODEL)).toBe(true);
  const order = await page.evaluate(async (key) => {
    const writer = await bridge.openWriter(key, "t");
    await writer.put(0, new Blob([pattern(0, 3)]));
    const busy = await bridge.draft(key);
    await bridge.dropDrafts();
    await writer.suspend();
    const order = [busy, await bridge.draft(key)];
    await bridge.dropDrafts([key]);
    order.push(await bridge.draft(key));

    const signal = new AbortController().signal;
    const first = await bridge.takeLock("name", signal);
    const given = new AbortController();
    const never = errorOf(bridge.takeLock("name", given.signal));
    const second = bridge.takeLock("name", signal).then((lock) => {
      order.push("second");
      return lock;
    });
    given.abort();
    order.push((await never)?.name ?? "");
    order.push("release");
    first.release();
    first.release();
    (await second).release();
    (await bridge.takeLock("name", signal)).release();
    return order;
  }, MODEL);
  expect(order).toEqual(['["t",3]', '["t",3]', "", "AbortError", "release", "second"]);
});

test("a lock keeps other tabs out and is free when its holder's tab is closed", async ({
  context,
  server,
}) => {
  const [one, two] = [await openPage(context, server.url), await openPage(context, server.url)];
  const take = async () => {
    globalThis.lock = await bridge.takeLock("download", new AbortController().signal);
    return "held";
  };
  expect(await one.evaluate(take)).toBe("held");
  const waiting = two.evaluate(take);
  // At once: Chromium would never answer this request, and still give it the lock.
  const given = await two.evaluate(async () => {
    const controller = new AbortController();
    const waiting = errorOf(bridge.takeLock("download", controller.signal));
    controller.abort();
    return (await waiting)?.name;
  });
  expect(given).toBe("AbortError");
  await one.close();
  expect(await waiting).toBe("held");
  await two.evaluate(() => lock.release());
  expect(await two.evaluate(take)).toBe("held");
});

test("usage tells files, drafts and what the browser still has", async ({ bridgePage: page }) => {
  await put(page, MODEL, 3_000_000);
  const usage = await page.evaluate(async () => {
    const writer = await bridge.openWriter(["model", "o", "r", "p"], "t");
    await writer.put(0, new Blob([pattern(0, 2_000_000)]));
    await writer.suspend();
    const usage = JSON.parse(await bridge.usage());
    navigator.storage.estimate = async () => ({});
    return [usage, JSON.parse(await bridge.usage())];
  });
  expect(usage[0]).toEqual({ files: 3_000_000, drafts: 2_000_000, available: expect.any(Number) });
  expect(usage[0].available).toBeGreaterThan(1_000_000);
  expect(usage[1]).toEqual({ files: 3_000_000, drafts: 2_000_000, available: null });
});

test("a full quota ends a write with an error that has sizes, and harms nothing else", async ({
  playwright,
  launchOptions,
  server,
}) => {
  // A store on disk: in memory the quota is not what it says.
  const profile = await mkdtemp(join("build", "store-profile-"));
  const context = await playwright.chromium.launchPersistentContext(profile, launchOptions);
  try {
    const page = await openPage(context, server.url);
    const devtools = await context.newCDPSession(page);
    const quota = (quotaSize?: number) =>
      devtools.send("Storage.overrideQuotaForOrigin", {
        origin: server.url,
        ...(quotaSize === undefined ? {} : { quotaSize }),
      });
    // Before the first write: the browser looks at its quota every now and then only.
    await quota(30 * MB);
    await put(page, MODEL, 10 * MB);
    const name = key("large.bin");
    const error = await page.evaluate(async (key) => {
      globalThis.writer = await bridge.openWriter(key, "t");
      for (let begin = 0; begin < 60_000_000; begin += 4_000_000) {
        const error = await errorOf(writer.put(begin, new Blob([pattern(begin, begin + 4_000_000)])));
        if (error !== undefined) {
          await writer.suspend();
          return error;
        }
      }
      return undefined;
    }, name);
    expect(error).toMatchObject({ name: "QuotaExceededError", details: { needed: 4_000_000 } });
    expect(error?.message).toMatch(/no room left for 4000000 bytes of 'large.bin' .*\d+ bytes are used/);
    expect(await sizeOfPattern(page, MODEL)).toBe(10 * MB);
    expect(await sizeOfPattern(page, name)).toBeUndefined();

    await quota();
    const begin = await page.evaluate(async (key) => {
      const writer = await bridge.openWriter(key, "t");
      const [[, begin]] = JSON.parse(await writer.present());
      await writer.put(begin, new Blob([pattern(begin, 60_000_000)]));
      await writer.commit("{}");
      return begin;
    }, name);
    expect(begin).toBeGreaterThanOrEqual(4_000_000);
    expect(await sizeOfPattern(page, name)).toBe(60_000_000);
  } finally {
    await context.close();
    await rm(profile, { recursive: true });
  }
});
