/** `pywebml.models`: what an engine would need, what is stored, and how it comes, goes and is checked. */

import type { Page } from "@playwright/test";
import type { ProgressEvent } from "../../web/src/client/types.ts";
import {
  createEngine,
  damage,
  expect,
  HUB_FILES,
  MODEL,
  REVISION,
  readIndexedDb,
  run,
  type Server,
  test,
} from "./fixtures.ts";

const WEIGHTS = "onnx/model_quantized.onnx";
/** Bytes of the parts in which large files are downloaded. */
const PART = 8 * 1024 * 1024;
const OPTIONS = {
  taskName: "feature-extraction",
  modelId: MODEL,
  modelRevision: REVISION,
  dtype: "q8",
};
/** Another task that needs a part of the model's files only. */
const WORDS = `
import pywebml

@pywebml.task("words", tokenizer=True)
class Words:
    def __init__(self, context):
        self.tokenizer = context.tokenizer
    async def run(self, text):
        return len(text)
`;

const prefetch = (page: Page, options: Record<string, unknown> = OPTIONS): Promise<ProgressEvent[]> =>
  page.evaluate(async (options) => {
    const events: ProgressEvent[] = [];
    await pywebml.models.prefetch(options, (event) => events.push(event));
    return events;
  }, options);

/** Name and message of what a call throws; `call` is source of the page. */
const errorOf = (page: Page, call: string): Promise<{ name: string; message: string } | undefined> =>
  page.evaluate(async (call) => {
    const AsyncFunction = (async () => {}).constructor as new (source: string) => () => Promise<unknown>;
    try {
      await new AsyncFunction(call)();
      return undefined;
    } catch (error) {
      const { name, message } = error as Error;
      return { name, message };
    }
  }, call);

async function cutOff(server: Server): Promise<void> {
  await server.reset();
  for (const path of ["/hub/*", "/fixtures/*", "/v1/*"]) {
    await server.fault({ path, kind: "drop" });
  }
}

const BLOCK = 512;

/** A tar archive (ustar) as any program would write it. */
function tar(files: Record<string, string>): number[] {
  const blocks: Buffer[] = [];
  for (const [path, text] of Object.entries(files)) {
    const content = Buffer.from(text);
    const header = Buffer.alloc(BLOCK);
    header.write(path, 0);
    header.write("0000644\0", 100);
    header.write(`${content.length.toString(8).padStart(11, "0")}\0`, 124);
    header.write("0ustar\x0000", 156);
    header.fill(" ", 148, 156);
    const checksum = header.reduce((sum, byte) => sum + byte, 0);
    header.write(`${checksum.toString(8).padStart(6, "0")}\0 `, 148);
    blocks.push(header, content, Buffer.alloc((BLOCK - (content.length % BLOCK)) % BLOCK));
  }
  return [...Buffer.concat([...blocks, Buffer.alloc(2 * BLOCK)])];
}

/** Files that no engine could use, but that are stored as any others. */
const importFiles = (page: Page, files: Record<string, string>) =>
  page.evaluate(async (bytes) => {
    const events: ProgressEvent[] = [];
    const file = new File([new Uint8Array(bytes)], "models.tar");
    return [await pywebml.models.import(file, (event) => events.push(event)), events] as const;
  }, tar(files));

test("a plan tells sizes before and after, and what was prefetched works with the hub gone", async ({
  scriptPage: page,
  server,
}) => {
  const ask = () =>
    page.evaluate(
      async (options) =>
        [await pywebml.models.isCached(options), await pywebml.models.plan(options)] as const,
      OPTIONS,
    );
  const [cachedBefore, before] = await ask();
  expect(cachedBefore).toBe(false);
  expect(before.options).toMatchObject(OPTIONS);
  expect(before.isCached).toBe(false);
  const purposes = Object.fromEntries(before.files.map(({ path, purpose }) => [path, purpose]));
  expect(purposes).toMatchObject({
    "config.json": "config",
    "tokenizer.json": "tokenizer",
    "tokenizer_config.json": "tokenizer",
    [WEIGHTS]: "weights",
  });
  expect(Object.values(purposes)).toContain("runtime");
  expect(before.total).toBe(before.files.reduce((sum, { size }) => sum + (size ?? Number.NaN), 0));
  const config = before.files.find(({ purpose }) => purpose === "config");
  expect(before.missing).toBe(before.total - (config?.size ?? Number.NaN));
  expect(await server.paths()).not.toContain(HUB_FILES + WEIGHTS);

  const events = await prefetch(page);
  const loading = events.filter(({ type }) => type === "loading");
  expect(loading[0]?.total).toBe(before.total);
  expect(loading.at(-1)).toMatchObject({ statusText: "done", progress: 100, ok: true });
  expect(await page.evaluate(() => pywebml.engines.list())).toEqual([]);

  await cutOff(server);
  await page.reload();
  const [cachedAfter, after] = await ask();
  expect([cachedAfter, after.isCached, after.missing]).toEqual([true, true, 0]);
  expect(after.total).toBe(before.total);
  expect(after.files.every(({ stored }) => stored)).toBe(true);
  expect((await createEngine(page, OPTIONS)).error).toBeUndefined();
  expect((await run(page, "without a network")).dims).toEqual([1, 384]);
});

test("one event stands for all files of an engine: the plan's total at first, never shrinking, 100 at last", async ({
  scriptPage: page,
}) => {
  const plan = await page.evaluate((options) => pywebml.models.plan(options), OPTIONS);
  const { events, error } = await createEngine(page, { ...OPTIONS, engineId: "search" });
  expect(error).toBeUndefined();
  const loading = events.filter(({ type }) => type === "loading");

  expect(loading[0]).toMatchObject({
    statusText: "initiate",
    id: "search",
    total: plan.total,
    units: "bytes",
  });
  expect(loading[0]?.metadata).toMatchObject({
    engineId: "search",
    model: MODEL,
    revision: REVISION,
    taskName: "feature-extraction",
    files: plan.files.length,
  });
  expect(loading.length).toBeGreaterThan(3);
  loading.slice(1).forEach((event, index) => {
    const earlier = loading[index] as ProgressEvent;
    expect(event.total).toBeGreaterThanOrEqual(earlier.total);
    expect(event.totalLoaded).toBeGreaterThanOrEqual(earlier.totalLoaded);
    expect(event.progress).toBeLessThanOrEqual(100);
    expect(event.currentLoaded).toBe(event.totalLoaded - earlier.totalLoaded);
  });
  expect(loading.at(-1)).toMatchObject({
    statusText: "done",
    progress: 100,
    ok: true,
    totalLoaded: plan.total,
    total: plan.total,
  });
  expect(loading.filter(({ statusText }) => statusText === "done")).toHaveLength(1);
  // The single files' events are still there.
  expect(events.some(({ type, id }) => type === "downloading" && id.endsWith(WEIGHTS))).toBe(true);
});

test("models and files are listed with who uses them, and selected by each of their facts", async ({
  scriptPage: page,
  server,
}) => {
  const started = Date.now() / 1000;
  await prefetch(page, { ...OPTIONS, engineId: "search" });
  const hub = `${new URL(server.url).host}/hub/`;

  const models = await page.evaluate(() => pywebml.models.list());
  expect(models).toHaveLength(1);
  expect(models[0]).toMatchObject({
    hub,
    model: MODEL,
    revision: REVISION,
    tasks: ["feature-extraction"],
    engines: ["search"],
    pinned: false,
  });
  const files = await page.evaluate((model) => pywebml.models.files({ model }), MODEL);
  expect(files.length).toBe(models[0]?.files);
  expect(files.reduce((sum, { size }) => sum + size, 0)).toBe(models[0]?.size);
  const weights = files.find(({ path }) => path === WEIGHTS);
  expect(weights).toMatchObject({ hub, uses: [{ taskName: "feature-extraction", engineId: "search" }] });
  expect(weights?.sha256).toMatch(/^[0-9a-f]{64}$/);
  for (const time of [weights?.updated, weights?.lastUsed, weights?.verified, models[0]?.lastUsed]) {
    expect(time).toBeGreaterThan(started - 5);
    expect(time).toBeLessThan(Date.now() / 1000 + 5);
  }

  const numbers = await page.evaluate(
    (selections) =>
      Promise.all(selections.map(async (selection) => (await pywebml.models.list(selection)).length)),
    [
      { hub },
      { hub: "elsewhere.example/" },
      { model: MODEL, revision: REVISION },
      { revision: "v9" },
      { taskName: "feature-extraction" },
      { taskName: "summarization" },
      { engineId: "search" },
      { engineId: "other" },
    ],
  );
  expect(numbers).toEqual([1, 0, 1, 0, 1, 0, 1, 0]);
});

test("a damaged byte is found, the file removed, and only that file downloaded again", async ({
  scriptPage: page,
  server,
}) => {
  await prefetch(page);
  const verify = () =>
    page.evaluate(async () => {
      const heard: string[] = [];
      const results = await pywebml.models.verify({}, { onChecked: ({ path }) => heard.push(path) });
      return [results, heard] as const;
    });
  const [whole, heard] = await verify();
  expect(whole.every(({ ok }) => ok)).toBe(true);
  expect(heard).toEqual(whole.map(({ path }) => path));
  expect(heard).toContain(WEIGHTS);

  await damage(page, WEIGHTS);
  const [results] = await verify();
  expect(results.filter(({ ok }) => !ok).map(({ path }) => path)).toEqual([WEIGHTS]);
  const paths = await page.evaluate(async () => (await pywebml.models.files()).map(({ path }) => path));
  expect(paths).not.toContain(WEIGHTS);
  expect(paths).toContain("tokenizer.json");
  expect(await page.evaluate((options) => pywebml.models.isCached(options), OPTIONS)).toBe(false);

  await server.reset();
  expect((await createEngine(page, OPTIONS)).error).toBeUndefined();
  expect(new Set((await server.paths()).filter((path) => path.startsWith("/hub/")))).toEqual(
    new Set([HUB_FILES + WEIGHTS]),
  );
  const [mended] = await verify();
  expect(mended.every(({ ok }) => ok)).toBe(true);
});

test("verifying can be stopped", async ({ scriptPage: page }) => {
  await prefetch(page);
  const outcome = await page.evaluate(async () => {
    const stop = new AbortController();
    return pywebml.models
      .verify({}, { onChecked: () => stop.abort(), signal: stop.signal })
      .then(String, (error: Error) => error.name);
  });
  expect(outcome).toBe("AbortError");
  expect(await page.evaluate(async () => (await pywebml.models.list()).length)).toBe(1);
});

test("an exported model comes back from its archive with the hub gone, and works", async ({
  scriptPage: page,
  server,
}) => {
  await prefetch(page);
  await cutOff(server);
  const [size, freed, left, imported, events] = await page.evaluate(
    async ([model, revision]) => {
      const { models } = pywebml;
      const archive = await models.export({ model });
      const [stored] = await models.list();
      // A copy: the blob refers to stored bytes, which are about to go.
      const file = new File([await archive.arrayBuffer()], "model.tar");
      const freed = await models.delete({ model, revision });
      const left = await models.list();
      const events: ProgressEvent[] = [];
      const imported = await models.import(file, (event) => events.push(event));
      return [stored?.size, freed, left, imported, events] as const;
    },
    [MODEL, REVISION] as const,
  );
  expect(freed).toBe(size);
  expect(left).toEqual([]);
  expect(imported).toEqual([{ model: MODEL, revision: REVISION }]);
  expect(new Set(events.map(({ type }) => type))).toEqual(new Set(["importing"]));
  const weights = events.filter(({ metadata }) => metadata.file === WEIGHTS);
  expect(weights[0]).toMatchObject({ statusText: "initiate", progress: 0 });
  expect(weights.at(-1)).toMatchObject({ statusText: "done", progress: 100, ok: true });

  expect(await page.evaluate((options) => pywebml.models.isCached(options), OPTIONS)).toBe(true);
  expect((await createEngine(page, OPTIONS)).error).toBeUndefined();
  expect((await run(page, "from an archive")).dims).toEqual([1, 384]);
});

test("models go to a folder and to a file, and come back from both", async ({ scriptPage: page }) => {
  await prefetch(page);
  const sums = await page.evaluate(async (model) => {
    const { models } = pywebml;
    const facts = async () => (await models.files()).map(({ path, sha256 }) => `${path} ${sha256}`);
    const root = await navigator.storage.getDirectory();
    const folder = await root.getDirectoryHandle("hub", { create: true });
    const file = await root.getFileHandle("hub.tar", { create: true });
    await models.exportTo({ model }, folder);
    await models.exportTo({ model }, file);
    const before = await facts();
    const seen = [before];
    for (const source of [folder, file, await file.getFile(), [await file.getFile()]]) {
      await models.delete({ model });
      await models.import(source);
      seen.push(await facts());
    }
    return seen;
  }, MODEL);
  expect(sums[0]?.length).toBeGreaterThan(4);
  for (const again of sums) {
    expect(again).toEqual(sums[0]);
  }
});

test("old revisions are purged, the pinned model stays, and what is deleted is counted", async ({
  scriptPage: page,
}) => {
  const file = (text: string) => ({ "config.json": "{}", "onnx/model.onnx": text });
  const of = (folder: string, files: Record<string, string>) =>
    Object.fromEntries(Object.entries(files).map(([path, text]) => [`${folder}/${path}`, text]));
  const [imported, events] = await importFiles(page, {
    ...of("tests/one/v1.0.0", file("a".repeat(1000))),
    ...of("tests/one/v2.0.0", file("b".repeat(2000))),
    ...of("tests/one/feature%2Fx", file("c".repeat(3000))),
    ...of("tests/two/main", file("d".repeat(4000))),
  });
  expect(imported.map(({ model, revision }) => `${model} ${revision}`).sort()).toEqual([
    "tests/one feature/x",
    "tests/one v1.0.0",
    "tests/one v2.0.0",
    "tests/two main",
  ]);
  const importing = events.filter(({ type }) => type === "importing");
  expect(importing.filter(({ statusText }) => statusText === "done")).toHaveLength(8);

  const [pinned, purged, revisions, unpinned, deleted, left] = await page.evaluate(async () => {
    const { models } = pywebml;
    const pinned = [
      await models.pin({ model: "tests/two" }),
      ...(await models.list()).map(({ model, revision, pinned }) => `${model} ${revision} ${pinned}`),
    ];
    const purged = await models.purge({ model: "tests/one", keep: ["v2.0.0"] });
    const revisions = (await models.list({ model: "tests/one" })).map(({ revision }) => revision);
    await models.pin({ model: "tests/two" }, false);
    const unpinned = (await models.list({ model: "tests/two" }))[0]?.pinned;
    const deleted = [
      await models.delete({ model: "tests/two", revision: "v9" }),
      await models.delete({ model: "tests/two" }),
      await models.delete({ model: "tests/one", revision: "v2.0.0" }),
    ];
    return [pinned, purged, revisions, unpinned, deleted, await models.list()] as const;
  });
  expect(pinned).toEqual([
    2,
    "tests/one feature/x false",
    "tests/one v1.0.0 false",
    "tests/one v2.0.0 false",
    "tests/two main true",
  ]);
  expect(purged).toBe(1000 + 3000 + 2 * 2);
  expect(revisions).toEqual(["v2.0.0"]);
  expect(unpinned).toBe(false);
  expect(deleted).toEqual([0, 4002, 2002]);
  expect(left).toEqual([]);
  expect((await readIndexedDb(page)).files).toEqual([]);
});

test("what two tasks share stays until both are deleted", async ({ scriptPage: page }) => {
  await page.evaluate((source) => pywebml.registerTask({ name: "words", source }), WORDS);
  await prefetch(page);
  await prefetch(page, { taskName: "words", modelId: MODEL, modelRevision: REVISION });
  const [models, freed, paths, uses, rest, left] = await page.evaluate(async () => {
    const { models } = pywebml;
    const before = await models.list();
    const freed = await models.delete({ taskName: "feature-extraction" });
    const files = await models.files();
    const uses = (await models.list()).map(({ tasks }) => tasks);
    const rest = await models.delete({ taskName: "words" });
    return [before, freed, files.map(({ path }) => path), uses, rest, await models.list()] as const;
  });
  expect(models[0]?.tasks).toEqual(["feature-extraction", "words"]);
  expect(paths).not.toContain(WEIGHTS);
  expect(paths).toEqual(expect.arrayContaining(["config.json", "tokenizer.json", "tokenizer_config.json"]));
  expect(uses).toEqual([["words"]]);
  expect(freed + rest).toBe(models[0]?.size);
  expect(freed).toBeGreaterThan(20e6);
  expect(left).toEqual([]);
});

test("a stopped download is counted as unfinished, goes on, and can be dropped", async ({
  scriptPage: page,
  server,
}) => {
  // The first part comes, the others never do.
  await server.fault({ path: HUB_FILES + WEIGHTS, kind: "stall", from_byte: PART });
  const stopped = await page.evaluate(async (options) => {
    const stop = new AbortController();
    const watch = (event: ProgressEvent) => {
      if (event.type === "downloading" && event.id.endsWith(".onnx") && event.totalLoaded >= 8e6) {
        stop.abort();
      }
    };
    return pywebml.models.prefetch(options, watch, stop.signal).then(String, (error: Error) => error.name);
  }, OPTIONS);
  expect(stopped).toBe("AbortError");
  await server.reset();

  const look = () =>
    page.evaluate(
      async (options) => [await pywebml.models.usage(), await pywebml.models.plan(options)] as const,
      OPTIONS,
    );
  const kept = async () => (await look())[0].unfinished;
  // The page hears of the end before the writer has put its part away.
  await expect.poll(kept).toBeGreaterThan(4e6);
  const [usage, plan] = await look();
  expect(usage.allowed).toBe(usage.used + usage.unfinished + (usage.available ?? Number.NaN));
  expect(usage.limit).toBeNull();
  const missing = plan.files.filter(({ stored }) => !stored);
  expect(missing.find(({ path }) => path === WEIGHTS)?.loaded).toBeGreaterThanOrEqual(PART);
  expect(missing.reduce((sum, { loaded }) => sum + loaded, 0)).toBe(usage.unfinished);
  expect(missing.reduce((sum, { size, loaded }) => sum + (size ?? 0) - loaded, 0)).toBe(plan.missing);

  await page.evaluate(() => pywebml.models.dropUnfinished());
  expect(await kept()).toBe(0);
  expect((await readIndexedDb(page)).orphans).toBe(0);
  await prefetch(page);
  expect((await look())[1].isCached).toBe(true);
});

test("an engine's own hub is found from the page's address in every call", async ({
  scriptPage: page,
  server,
}) => {
  const options = {
    taskName: "feature-extraction",
    modelId: "tests/good",
    modelRevision: "v1.0.0",
    dtype: "q8",
    modelHubRootUrl: "../fixtures/hub/",
  };
  const [before, plan, after, models] = await page.evaluate(async (options) => {
    const { models } = pywebml;
    return [
      await models.isCached(options),
      await models.prefetch(options),
      await models.isCached(options),
      await models.list(),
    ] as const;
  }, options);
  expect([before, after]).toEqual([false, true]);
  expect(plan.options.modelHubRootUrl).toBe(`${server.url}/fixtures/hub/`);
  expect(models).toMatchObject([{ hub: `${new URL(server.url).host}/fixtures/hub/`, model: "tests/good" }]);
});

test("tokens, the allow and deny list and the limit reach what they are for", async ({
  page,
  server,
  foreign,
}) => {
  expect(foreign).toEqual([]);
  await server.reset();
  await server.fault({ path: "/hub/*", kind: "auth", value: "Bearer secret" });
  await page.goto(`${server.url}/pages/script.html`);
  const outcome = (configuration: object) =>
    page.evaluate(
      async ([configuration, options]) => {
        pywebml.shutdown();
        pywebml.configure(configuration);
        const { limit } = await pywebml.models.usage();
        return pywebml.models.prefetch(options).then(
          () => ({ limit, name: "", message: "" }),
          ({ name, message }: Error) => ({ limit, name, message }),
        );
      },
      [configuration, OPTIONS] as const,
    );

  expect((await outcome({ stallTimeoutMS: 5000 })).name).toMatch(/Error$/);
  const small = await outcome({ hubAccessTokens: { [server.url]: "secret" }, maxCacheBytes: 1_000_000 });
  expect(small).toMatchObject({ limit: 1_000_000, name: "QuotaExceededError" });
  expect(small.message).toContain("There is no room");
  const denied = await outcome({
    maxCacheBytes: 1_000_000_000,
    allowDenyList: [{ filter: "DENY", urlPrefix: `${server.url}/hub/sentence-transformers/` }],
  });
  expect(denied).toMatchObject({ limit: 1_000_000_000, name: "ForbiddenURLError" });
  expect(await outcome({ allowDenyList: [] })).toMatchObject({ name: "" });

  // What the browser keeps never has the token in it.
  const kept = await page.evaluate(async () => {
    const database = await new Promise<IDBDatabase>((resolve, reject) => {
      const opening = indexedDB.open("pywebml");
      opening.onsuccess = () => resolve(opening.result);
      opening.onerror = () => reject(opening.error);
    });
    const all = ["files", "writes", "documents"].map(
      (name) =>
        new Promise((resolve) => {
          const reading = database.transaction(name).objectStore(name).getAll();
          reading.onsuccess = () => resolve(reading.result);
        }),
    );
    return JSON.stringify(await Promise.all(all));
  });
  expect(kept).toContain(MODEL);
  expect(kept).not.toContain("secret");
});

test("calls that make no sense say so, with the nearest name", async ({ scriptPage: page }) => {
  const errors: [call: string, name: string, message: RegExp][] = [
    ["await pywebml.models.list({ revison: 'v1' })", "OptionsError", /'revison'.*Did you mean 'revision'\?/],
    ["await pywebml.models.files({ colour: 'red' })", "OptionsError", /'colour'.*Known: hub, model/],
    ["await pywebml.models.files({ model: 5 })", "OptionsError", /'model'/],
    ["await pywebml.models.delete({})", "OptionsError", /Say what to delete/],
    ["await pywebml.models.delete('org/name')", "OptionsError", /'selection' must be an object/],
    ["await pywebml.models.purge({ keep: ['main'] })", "OptionsError", /'model'/],
    ["await pywebml.models.purge({ model: 'a/b' })", "OptionsError", /'keep' must be a list/],
    ["await pywebml.models.pin({ model: 'a/b' }, 'yes')", "OptionsError", /'pinned' must be true or false/],
    ["await pywebml.models.plan({ taskname: 'x' })", "OptionsError", /Did you mean 'task_name|taskName'\?/],
    ["await pywebml.models.isCached({})", "OptionsError", /No task/],
    ["await pywebml.models.prefetch({ modelHubRootUrl: 'http://' })", "OptionsError", /is not an address/],
    ["await pywebml.models.export({ model: 'not/there' })", "OptionsError", /nothing to export/],
    ["await pywebml.models.exportTo({}, 'folder')", "InputError", /FileSystemDirectoryHandle/],
    ["await pywebml.models.import(new File(['x'.repeat(600)], 'x.tar'))", "ArchiveError", /x\.tar/],
    ["await pywebml.models.import(new File(['x'], 'x.txt'))", "ArchiveError", /no model/],
    ["await pywebml.models.import('hub')", "StoreError", /Files are given as/],
  ];
  for (const [call, name, message] of errors) {
    const error = await errorOf(page, call);
    expect(error, call).toMatchObject({ name });
    expect(error?.message, call).toMatch(message);
  }
});
