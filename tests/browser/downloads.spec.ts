/** Downloads that something happens to: the contract of the downloader in Chromium, tabs that die, and full disks. */

import { mkdtemp, readlink, rm } from "node:fs/promises";
import { join } from "node:path";
import type { BrowserContext, Page } from "@playwright/test";
import { python, runContract, startPython } from "./contracts.ts";
import { test as base, expect, Server } from "./fixtures.ts";

const MB = 1024 * 1024;
const PART = 8 * MB;

/** What the kernel holds at most for a socket that nobody reads any more, of as many as there are connections. */
const SOCKETS = 3 * 6 * MB;

/** Bytes per second of one connection: slow enough that parts come at the same time, three of them. */
const SLOW = 7_000_000;

/** And fast enough that nobody watches them: two long ranges at the same time. */
const FAST = 40_000_000;
const LONG_RANGE = 2 * PART;

interface Profile {
  context: BrowserContext;
  /** Ends the browser without a word. */
  kill(): Promise<void>;
  /** Starts it again, on the same profile. */
  restart(): Promise<BrowserContext>;
}

const test = base.extend<{ profile: Profile }, { hub: Server; cdn: Server }>({
  hub: [
    async ({}, use) => {
      const hub = await Server.start();
      await use(hub);
      hub.stop();
    },
    { scope: "worker" },
  ],
  cdn: [
    async ({}, use) => {
      const cdn = await Server.start();
      await use(cdn);
      cdn.stop();
    },
    { scope: "worker" },
  ],

  /** A browser with its store on disk: without a profile the store is in memory, and ends with the browser. */
  profile: async ({ playwright, launchOptions }, use) => {
    const folder = await mkdtemp(join("build", "downloads-profile-"));
    const start = () => playwright.chromium.launchPersistentContext(folder, launchOptions);
    const profile: Profile = {
      context: await start(),
      kill: async () => {
        // The name of the lock's target ends with the browser's process.
        const pid = Number((await readlink(join(folder, "SingletonLock"))).split("-").at(-1));
        const closed = profile.context.waitForEvent("close");
        process.kill(pid, "SIGKILL");
        await closed;
      },
      restart: async () => {
        profile.context = await start();
        return profile.context;
      },
    };
    await use(profile);
    await profile.context.close();
    await rm(folder, { recursive: true, force: true, maxRetries: 5 });
  },
});

// The contract

const PARTS = 4;

for (let part = 0; part < PARTS; part++) {
  test(`faults of hubs on other origins, ${part + 1} of ${PARTS}`, async ({ page, server, hub, cdn }) => {
    test.setTimeout(240_000);
    await startPython(page, server.url);
    const call = `run_download_contract("${hub.url}", "${cdn.url}", ${part}, ${PARTS})`;
    expect(await runContract(page, call)).toBe("");
  });
}

test("faults of a hub on the page's own origin", async ({ page, server, cdn }) => {
  test.setTimeout(240_000);
  await startPython(page, server.url);
  expect(await runContract(page, `run_download_contract("${server.url}", "${cdn.url}", 3, 8)`)).toBe("");
});

// A large file, tabs, and a disk

interface Asked {
  method: string;
  range: string;
  status: number | null;
  sent: number;
}

class LargeFile {
  readonly #hub: Server;
  readonly #path: string;
  readonly size: number;
  /** How many bytes the last page that told so has received. */
  received = 0;
  #sha256 = "";

  private constructor(hub: Server, name: string, size: number) {
    this.#hub = hub;
    this.#path = `/org/${name}/v1.0.0/onnx/model.onnx`;
    this.size = size;
  }

  static async publish(hub: Server, name: string, size: number): Promise<LargeFile> {
    const file = new LargeFile(hub, name, size);
    await file.#control("reset", {});
    const { sha256 } = await file.#control("synthetic", { path: file.#path, size, seed: 7, sha256: true });
    file.#sha256 = sha256 as string;
    return file;
  }

  slow(bytesPerSecond = SLOW): Promise<unknown> {
    return this.#control("faults", { path: this.#path, kind: "slow", value: bytesPerSecond });
  }

  /** Mends the server and empties its log. */
  reset(): Promise<unknown> {
    return this.#control("reset", {});
  }

  async log(): Promise<{ requests: Asked[]; active: number; sent: number; wanted: number }> {
    const answer = await fetch(`${this.#hub.url}/__log__?path=${encodeURIComponent(this.#path)}`);
    const log = (await answer.json()) as { requests: Asked[]; active: number; sent: number };
    const requests = log.requests.filter(({ method }) => method === "GET");
    const wanted = requests.reduce((sum, request) => {
      const [, begin, last] = /^bytes=(\d+)-(\d+)$/.exec(request.range) ?? [];
      const end = last === undefined ? this.size : Math.min(Number(last) + 1, this.size);
      return sum + end - Number(begin ?? 0);
    }, 0);
    return { ...log, requests, wanted };
  }

  async sent(atLeast: number): Promise<void> {
    await expect.poll(async () => (await this.log()).sent, { intervals: [20] }).toBeGreaterThan(atLeast);
  }

  async quiet(): Promise<void> {
    await expect.poll(async () => (await this.log()).active, { intervals: [10] }).toBe(0);
  }

  /** Python in a new tab, with what the following needs. */
  async open(context: BrowserContext, pageUrl: string): Promise<Page> {
    const page = await context.newPage();
    page.on("console", (message) => {
      this.received = Number(/^received (\d+)$/.exec(message.text())?.[1] ?? this.received);
    });
    await startPython(page, pageUrl);
    await python(
      page,
      `
import asyncio, json, pywebml
from pywebml.hub import ModelHub
from pywebml.hub.space import make_room
from pywebml.platform import BlobKey, get_platform
pywebml.configure(assets_base="/")
platform = await get_platform()
hub = ModelHub(platform, "${this.#hub.url}", listing="none")
model, revision, path = "${this.#path.split("/").slice(1, 3).join("/")}", "v1.0.0", "onnx/model.onnx"
key = BlobKey("model", hub.address.owner(model), revision, path)
task = None

def start():
    global task
    task = asyncio.ensure_future(hub.get_file(model, revision, path, on_progress=lambda e: print("received", e.total_loaded)))

async def outcome():
    try:
        await task
    except BaseException as error:
        return json.dumps({"name": type(error).__name__, "message": str(error), **getattr(error, "details", {})})
    return ""

async def look():
    info = await platform.blobs.info(key)
    draft = await platform.blobs.draft(key)
    visible = [f.key.owner.split("/")[-1] for f in await platform.blobs.list("model")]
    whole = [await platform.blobs.verify(f.key) for f in await platform.blobs.list("model")]
    return json.dumps({"sha256": info and info.sha256, "kept": draft[1] if draft else 0, "visible": visible, "whole": whole})
`,
    );
    return page;
  }

  start(page: Page): Promise<unknown> {
    return python(page, "start()");
  }

  /** How the download ended: an empty text, or the error as JSON. */
  outcome(page: Page): Promise<unknown> {
    return python(page, "await outcome()");
  }

  async look(
    page: Page,
  ): Promise<{ sha256: string | null; kept: number; visible: string[]; whole: boolean[] }> {
    return JSON.parse((await python(page, "await look()")) as string);
  }

  /** The file is there, and right. */
  async expectWhole(page: Page): Promise<void> {
    const { sha256, whole, kept } = await this.look(page);
    expect(sha256).toBe(this.#sha256);
    expect(whole.every(Boolean)).toBe(true);
    expect(kept).toBe(0);
  }

  async #control(name: string, value: unknown): Promise<Record<string, unknown>> {
    const answer = await fetch(`${this.#hub.url}/__${name}__`, {
      method: "POST",
      body: JSON.stringify(value),
    });
    expect(answer.status).toBe(200);
    return (await answer.json()) as Record<string, unknown>;
  }
}

const megabytes = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`;

const DEATHS: Record<string, (profile: Profile, page: Page) => Promise<BrowserContext>> = {
  "its tab is closed": async ({ context }, page) => {
    await page.close({ runBeforeUnload: false });
    return context;
  },
  "its tab crashes": async ({ context }, page) => {
    const devtools = await context.newCDPSession(page);
    const crashed = page.waitForEvent("crash");
    // Nobody is left to answer.
    devtools.send("Page.crash").catch(() => undefined);
    await crashed;
    return context;
  },
  "its browser is killed": async (profile) => {
    await profile.kill();
    return profile.restart();
  },
};

test.describe("a download that dies", () => {
  // Once in four runs of all tests and of these alone, a page crashed here while Python started, before any download; why
  // is not known. The report calls a test that needed its second run flaky.
  test.describe.configure({ retries: 1 });

  for (const [death, die] of Object.entries(DEATHS)) {
    test(`a download of 300 MB goes on where it was when ${death}`, async ({ profile, server, hub }) => {
      test.setTimeout(180_000);
      const size = 300_000_000;
      const file = await LargeFile.publish(hub, "big", size);
      const first = await file.open(profile.context, server.url);
      await file.slow();
      await file.start(first);
      await file.sent(size / 2);
      const context = await die(profile, first);
      await file.quiet();
      const { sent } = await file.log();
      const { received } = file;
      await file.reset();

      const second = await file.open(context, server.url);
      const { kept, sha256 } = await file.look(second);
      expect(sha256).toBeNull();
      await file.start(second);
      expect(await file.outcome(second)).toBe("");
      const { wanted } = await file.log();
      await file.expectWhole(second);
      console.log(
        `300 MB, ${death}: ${megabytes(received)} received of ${megabytes(sent)} sent, ${megabytes(kept)} kept, ` +
          `${megabytes(wanted)} asked for afterwards: ${megabytes(received + wanted - size)} received twice, ` +
          `${megabytes(sent + wanted - size)} sent twice`,
      );
      // Without what the server has sent, but nobody has read from the sockets of a tab that dies.
      expect(sent + wanted - size).toBeLessThanOrEqual(PART + SOCKETS);
      expect(kept).toBeGreaterThanOrEqual(received - PART);
      expect(received).toBeGreaterThan(size / 3);
      // Without a hash from the hub, an answer tells whether it is still the same file.
      expect(wanted).toBe(size - kept);
    });
  }
});

test("of a fast download two ranges at most are fetched again", async ({ profile, server, hub }) => {
  test.setTimeout(180_000);
  const size = 300_000_000;
  const file = await LargeFile.publish(hub, "fast", size);
  const first = await file.open(profile.context, server.url);
  await file.slow(FAST);
  await file.start(first);
  await file.sent(size / 2);
  await first.close({ runBeforeUnload: false });
  await file.quiet();
  const { sent } = await file.log();
  await file.reset();

  const second = await file.open(profile.context, server.url);
  const { kept } = await file.look(second);
  await file.start(second);
  expect(await file.outcome(second)).toBe("");
  const { wanted } = await file.log();
  await file.expectWhole(second);
  console.log(
    `300 MB, fast, its tab is closed: ${megabytes(sent)} sent, ${megabytes(kept)} kept, ` +
      `${megabytes(sent + wanted - size)} sent twice`,
  );
  expect(sent + wanted - size).toBeLessThanOrEqual(2 * LONG_RANGE + SOCKETS);
  expect(kept).toBeGreaterThan(size / 4);
  expect(wanted).toBe(size - kept);
});

test("two tabs at once fetch each byte once", async ({ context, server, hub }) => {
  test.setTimeout(180_000);
  const size = 100_000_000;
  const file = await LargeFile.publish(hub, "shared", size);
  const [one, two] = [await file.open(context, server.url), await file.open(context, server.url)];
  await file.slow();
  await file.start(one);
  await file.sent(size / 4);
  await file.start(two);
  expect(await Promise.all([file.outcome(one), file.outcome(two)])).toEqual(["", ""]);
  const { wanted, sent } = await file.log();
  console.log(`two tabs, ${megabytes(size)}: ${megabytes(wanted)} asked for, ${megabytes(sent)} sent`);
  expect([wanted, sent]).toEqual([size, size]);
  await file.expectWhole(one);
  await file.expectWhole(two);
});

test("a tab goes on when the one that downloads is closed", async ({ context, server, hub }) => {
  test.setTimeout(180_000);
  const size = 100_000_000;
  const file = await LargeFile.publish(hub, "left", size);
  const [one, two] = [await file.open(context, server.url), await file.open(context, server.url)];
  await file.slow();
  await file.start(one);
  await file.sent(size / 4);
  await file.start(two);
  await file.sent(size / 2);
  await one.close();
  expect(await file.outcome(two)).toBe("");
  const { sent, wanted } = await file.log();
  console.log(
    `two tabs, one closed, ${megabytes(size)}: ${megabytes(sent)} sent, ${megabytes(wanted)} asked for`,
  );
  expect(sent).toBeLessThanOrEqual(size + PART + SOCKETS);
  await file.expectWhole(two);
});

test("an abort stops the traffic at once", async ({ context, server, hub }) => {
  test.setTimeout(180_000);
  const size = 100_000_000;
  const file = await LargeFile.publish(hub, "aborted", size);
  const page = await file.open(context, server.url);
  await file.slow();
  await file.start(page);
  await file.sent(size / 2);
  const aborted = performance.now();
  await python(page, "task.cancel()");
  const before = (await file.log()).sent;
  expect(JSON.parse((await file.outcome(page)) as string).name).toBe("CancelledError");
  await file.quiet();
  const { sent } = await file.log();
  const stopped = performance.now() - aborted;
  const { kept, visible } = await file.look(page);
  console.log(
    `abort: quiet after ${stopped.toFixed(0)} ms, ${megabytes(sent - before)} sent after it, ${megabytes(kept)} of ` +
      `${megabytes(sent)} kept`,
  );
  expect(sent - before).toBeLessThan(PART);
  expect(kept).toBeGreaterThanOrEqual(sent - PART);
  expect(visible).toEqual([]);
  await file.reset();
  await file.start(page);
  expect(await file.outcome(page)).toBe("");
  expect((await file.log()).wanted).toBe(size - kept);
  await file.expectWhole(page);
});

test("a full quota in the middle of a write harms nothing, and is named with its sizes", async ({
  profile,
  server,
  hub,
}) => {
  test.setTimeout(180_000);
  const size = 100_000_000;
  const other = await LargeFile.publish(hub, "other", 5_000_000);
  const file = await LargeFile.publish(hub, "toobig", size);
  const page = await file.open(profile.context, server.url);
  const devtools = await profile.context.newCDPSession(page);
  const quota = (quotaSize?: number) =>
    devtools.send("Storage.overrideQuotaForOrigin", {
      origin: server.url,
      ...(quotaSize === undefined ? {} : { quotaSize }),
    });
  await quota(40 * MB);
  const first = await other.open(profile.context, server.url);
  await other.start(first);
  expect(await other.outcome(first)).toBe("");
  await first.close();

  await file.start(page);
  const error = JSON.parse((await file.outcome(page)) as string);
  expect(error).toMatchObject({ name: "QuotaExceededError", needed: expect.any(Number) });
  expect(error.message).toMatch(/no room left for \d+ bytes .*\d+ bytes are used/);
  await file.quiet();
  expect(await file.look(page)).toMatchObject({ sha256: null, visible: ["other"], whole: [true] });

  // Known beforehand, it is told before the first byte. Chromium tells 10 GiB, whatever there really is.
  await file.reset();
  const needed = 2 ** 40;
  const message = await python(
    page,
    `
try:
    await make_room(platform, ${needed}, limit=None)
    message = "there is room"
except pywebml.errors.QuotaExceededError as error:
    message = str(error)
message
`,
  );
  expect(message).toMatch(
    new RegExp(`no room for ${needed} more bytes.*org/other v1.0.0 \\(5000000 bytes\\)`),
  );
  expect((await file.log()).requests).toEqual([]);

  await quota();
  const { kept } = await file.look(page);
  await file.start(page);
  expect(await file.outcome(page)).toBe("");
  const { wanted } = await file.log();
  console.log(`full quota: ${megabytes(kept)} kept, ${megabytes(wanted)} asked for afterwards`);
  expect(wanted).toBe(size - kept);
  await file.expectWhole(page);
  expect((await file.look(page)).visible).toEqual(["other", "toobig"]);
});
