/** The page that a person opens: what it shows, by mouse, keyboard and touch, on any screen, and when things break. */

import { type ChildProcess, spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import type { Locator, Page } from "@playwright/test";
import { damage, expect, HUB_FILES, MODEL, REVISION, readIndexedDb, Server, test } from "./fixtures.ts";

const WEIGHTS = `${HUB_FILES}onnx/model_quantized.onnx`;
const manifest = JSON.parse(readFileSync(`dist/hub/${MODEL}/${REVISION}/manifest.json`, "utf8")) as {
  files: Record<string, { size: number }>;
};
/** As the page writes sizes: of the weights, and of all that an engine with them needs. */
const WEIGHTS_SIZE = megabytes("onnx/model_quantized.onnx");
const ALL = megabytes("onnx/model_quantized.onnx", "config.json", "tokenizer.json", "tokenizer_config.json");
// The first two mean much the same; the last one would do something if it were taken for markup.
const SENTENCES = [
  "A cat is asleep in the sun.",
  "The kitten naps on a warm windowsill.",
  "The orchestra is rehearsing a symphony.",
  '<img src="x" alt="y"> & interest rates rose again.',
];

function megabytes(...files: string[]): string {
  const size = files.reduce((sum, file) => sum + (manifest.files[file]?.size ?? Number.NaN), 0);
  return `${(size / 1e6).toFixed(1)} MB`;
}

/** Opens the page; Python may still be starting. */
async function open(page: Page, origin: string, query = "?dtype=q8"): Promise<void> {
  await page.goto(`${origin}/inference/${query}`);
  await expect(page.locator("html")).toHaveAttribute("data-pywebml", "ready");
}

async function embed(page: Page, sentences = SENTENCES): Promise<void> {
  await page.getByLabel("Sentences, one per line").fill(sentences.join("\n"));
  await page.getByRole("button", { name: "Embed" }).click();
  await expectEmbedded(page, sentences.length);
}

async function expectEmbedded(page: Page, sentences = SENTENCES.length): Promise<void> {
  await expect(page.getByRole("status")).toHaveText(
    new RegExp(`^${sentences} sentences embedded in [\\d.]+ m?s\\.$`),
  );
}

function heatMap(page: Page): Locator {
  return page.getByRole("table", { name: "Cosine similarity of each pair of sentences" });
}

async function readHeatMap(page: Page): Promise<number[][]> {
  const rows = await heatMap(page).locator("tbody tr").all();
  return Promise.all(
    rows.map(async (row) => (await row.getByRole("cell").allInnerTexts()).map((text) => Number(text))),
  );
}

/** What has the focus, by the name that a person would call it; "nothing" when the focus is lost. */
function focused(page: Page): Promise<string> {
  return page.evaluate(() => {
    const element = document.activeElement;
    if (element === null || element === document.body) {
      return "nothing";
    }
    return element.id || element.getAttribute("aria-label") || (element.textContent ?? "").trim();
  });
}

/** Presses Tab until `name` has the focus; gives what it came past. Each stop must show that it has the focus. */
async function tabTo(page: Page, name: string | RegExp, key: "Tab" | "Shift+Tab" = "Tab"): Promise<string[]> {
  const passed: string[] = [];
  for (let presses = 0; presses < 20; presses += 1) {
    await page.keyboard.press(key);
    const at = await focused(page);
    passed.push(at);
    const shown = await page.evaluate(() => {
      const element = document.activeElement as Element;
      return element.matches(":focus-visible") && getComputedStyle(element).outlineStyle !== "none";
    });
    expect(shown, `${at} shows the focus`).toBe(true);
    if (typeof name === "string" ? at === name : name.test(at)) {
      return passed;
    }
  }
  throw new Error(`Tab does not reach ${name}; it came past ${passed.join(", ")}.`);
}

/** Bytes in a text such as `105 MB used`. */
function readBytes(text: string): number {
  const found = /([\d.]+) (bytes?|kB|MB|GB)/.exec(text);
  const scale: Record<string, number> = { kB: 1e3, MB: 1e6, GB: 1e9 };
  return Number(found?.[1] ?? Number.NaN) * (scale[found?.[2] ?? ""] ?? 1);
}

test("sentences become a table of similarities, and the alike pair stands out", async ({
  page,
  server,
  foreign,
}) => {
  expect(foreign).toEqual([]);
  await server.reset();
  await open(page, server.url);
  for (const bar of ["Python", "Runtime", "Model"]) {
    await expect(page.getByRole("progressbar", { name: bar })).toBeVisible();
  }
  await embed(page);

  for (const role of ["rowheader", "columnheader"] as const) {
    const headers = heatMap(page).getByRole(role);
    await expect(headers).toHaveCount(SENTENCES.length);
    for (const [index, sentence] of SENTENCES.entries()) {
      await expect(headers.nth(index)).toHaveAccessibleName(`${index + 1} ${sentence}`);
    }
  }
  await expect(page.locator("#heatmap img")).toHaveCount(0);

  const matrix = await readHeatMap(page);
  expect(matrix.map((row) => row.length)).toEqual(SENTENCES.map(() => SENTENCES.length));
  await expect(heatMap(page).locator("tbody tr:first-child td").first()).toHaveText("1.00");
  const alike = matrix[0]?.[1] ?? Number.NaN;
  expect(alike).toBeGreaterThan(0.4);
  matrix.forEach((row, a) => {
    row.forEach((value, b) => {
      expect(value).toBe(a === b ? 1 : matrix[b]?.[a]);
      if (a !== b && a + b !== 1) {
        expect(value, `${a + 1} and ${b + 1}`).toBeLessThan(alike);
      }
    });
  });

  const facts = page.locator("#result-facts");
  await expect(facts.getByText("In all").locator("xpath=..")).toHaveText(/In all[\d.]+ m?s/);
  await expect(facts.getByText("In the runtime").locator("xpath=..")).toHaveText(/runtime[\d.]+ m?s/);
  await expect(facts).toContainText("Dimensions384");
  await expect(facts).toContainText(`Closest pair1 and 2 (${alike.toFixed(2)})`);
  await expect(facts).toContainText(`${MODEL} ${REVISION}, q8`);
  await expect(page.locator("#fact-threads")).toHaveText(/^available/);
  await expect(page.locator("#fact-version")).toHaveText(/^\d+\.\d+\.\d+/);
  for (const step of ["python", "runtime", "model"]) {
    await expect(page.locator(`#progress-${step}`)).toHaveAttribute("data-state", "done");
    await expect(page.locator(`#bar-${step}`)).toHaveJSProperty("value", 100);
  }
  await expect(page.locator("#progress-model .detail")).toHaveText(`${ALL} downloaded`);
});

test("the keyboard alone embeds, stops and starts again, and the focus is never lost", async ({
  page,
  server,
  foreign,
}) => {
  expect(foreign).toEqual([]);
  await server.reset();
  await server.fault({ path: WEIGHTS, kind: "stall", value: 3_000_000 });
  await open(page, server.url, "");

  await tabTo(page, "Skip to the content");
  await expect(page.getByRole("link", { name: "Skip to the content" })).toBeInViewport({ ratio: 1 });
  await page.keyboard.press("Enter");
  expect(await focused(page)).toBe("main");
  await page.keyboard.press("Tab");
  expect(await focused(page)).toBe("sentences");

  // Nothing to embed: said beside the field, which has the focus again.
  await page.keyboard.press("ControlOrMeta+A");
  await page.keyboard.press("Delete");
  await tabTo(page, "embed");
  await page.keyboard.press("Enter");
  await expect(page.locator("#sentences-error")).toHaveText("Type at least one sentence.");
  expect(await focused(page)).toBe("sentences");

  await page.keyboard.type(SENTENCES.join("\n"));
  expect(await tabTo(page, "dtype")).toEqual(["model", "revision", "dtype"]);
  await page.keyboard.type("q8");
  expect(await tabTo(page, "embed")).toEqual(["threads", "embed"]);
  await page.keyboard.press("Space");
  await expect(page.locator("#sentences-error")).toBeEmpty();
  await expect(page.locator("#progress-model .detail")).toHaveText(new RegExp(`^3\\.\\d MB of ${ALL}$`));
  expect(await focused(page)).toBe("embed");

  expect(await tabTo(page, "stop")).toEqual(["prefetch", "stop"]);
  await page.keyboard.press("Enter");
  await expect(page.getByRole("status")).toHaveText("Stopped.");
  await expect(page.locator("#progress-model .detail")).toHaveText("Stopped");
  await expect(page.locator("#error")).toBeHidden();
  expect(await focused(page)).toBe("stop");

  await server.reset();
  await tabTo(page, "embed", "Shift+Tab");
  await page.keyboard.press("Enter");
  await expectEmbedded(page);
  expect(await focused(page)).toBe("embed");

  // The result can be scrolled, the list be opened, and what is deleted by keyboard is asked about first.
  await expect(page.getByRole("button", { name: /^Delete/ })).toBeVisible();
  await expect(page.getByRole("button", { name: /^Terminate/ })).toBeVisible();
  const rest = await tabTo(page, /^Terminate/);
  expect(rest).toEqual([
    "prefetch",
    "stop",
    "Similarity table",
    "import-file",
    "import-folder",
    "persist",
    expect.stringMatching(/^Files of/),
    expect.stringMatching(/^Keep/),
    expect.stringMatching(/^Verify/),
    expect.stringMatching(/^Export/),
    expect.stringMatching(/^Delete/),
    expect.stringMatching(/^Terminate/),
  ]);
  await tabTo(page, /^Delete/, "Shift+Tab");
  await page.keyboard.press("Enter");
  expect(await focused(page)).toBe("Keep it");
  await page.keyboard.press("Escape");
  await expect(page.getByRole("dialog")).toBeHidden();
  expect(await focused(page)).toMatch(/^Delete/);
  await page.keyboard.press("Enter");
  await tabTo(page, "Delete");
  await page.keyboard.press("Enter");
  await expect(page.getByRole("status")).toHaveText(/^Deleted .* freed\.$/);
  await expect.poll(() => focused(page)).toBe("stored-title");
  await tabTo(page, /^Terminate/);
  await page.keyboard.press("Space");
  await expect(page.getByRole("status")).toHaveText(/^Terminated/);
  await expect.poll(() => focused(page)).toBe("engines-title");
});

interface Layout {
  /** Width of everything, were it laid out without scrolling. */
  width: number;
  /** Tables that scroll on their own although they should fit. */
  scrolling: string[];
  /** Controls that stick out, or are smaller than a finger needs. */
  bad: string[];
}

function layout(page: Page): Promise<Layout> {
  return page.evaluate(() => {
    const finger = 44;
    const width = screen.width;
    const scrolling = [...document.querySelectorAll<HTMLElement>(".content, .card, .error, dialog[open]")]
      .filter((element) => element.scrollWidth > element.clientWidth)
      .map((element) => element.id || element.className);
    const bad = [...document.querySelectorAll<HTMLElement>("button, input, select, textarea, summary")]
      .filter((element) => element.checkVisibility())
      .map((element) => ({ element, box: element.getBoundingClientRect() }))
      .filter(({ box }) => box.left < 0 || box.right > width || box.height < finger || box.width < finger)
      .map(
        ({ element, box }) =>
          `${element.id || element.textContent}: ${box.left} to ${box.right}, ${box.height} high`,
      );
    return { width: document.documentElement.scrollWidth, scrolling, bad };
  });
}

test.describe("on a phone", () => {
  test.use({
    viewport: { width: 390, height: 800 },
    hasTouch: true,
    isMobile: true,
    reducedMotion: "reduce",
  });

  test("nothing needs sideways scrolling and everything is large enough for a finger", async ({
    page,
    server,
    foreign,
  }) => {
    expect(foreign).toEqual([]);
    const expectFits = async (what: string) => {
      for (const width of [320, 390]) {
        await page.setViewportSize({ width, height: 800 });
        expect(await layout(page), `${what}, ${width} px`).toEqual({ width, scrolling: [], bad: [] });
      }
    };
    await server.reset();
    await open(page, server.url);
    await expectFits("at first");

    const sentences = [...SENTENCES, "Äpfel ".repeat(40).trim(), "W".repeat(200)];
    await page.getByLabel("Sentences, one per line").fill(sentences.join("\n"));
    await page.getByRole("button", { name: "Embed" }).tap();
    await expectEmbedded(page, sentences.length);
    // The result lies below the form, so the page goes there.
    await expect(page.locator("#heatmap-title")).toBeInViewport();
    const header = heatMap(page).getByRole("rowheader").first();
    await expect(header).toHaveAccessibleName(`1 ${SENTENCES[0]}`);
    await expect(page.locator("#heatmap ol").getByText(SENTENCES[0] ?? "")).toBeVisible();

    await page.getByRole("button", { name: /^Files of/ }).tap();
    await expect(page.getByRole("table", { name: /^Files of/ })).toBeVisible();
    await expect(page.getByRole("button", { name: /^Terminate/ })).toBeVisible();
    await expectFits("with a result");

    await page.getByRole("button", { name: /^Delete/ }).tap();
    await expect(page.getByRole("dialog")).toBeVisible();
    await expectFits("with a question");
    await page.getByRole("button", { name: "Keep it" }).tap();

    await page.getByLabel("Revision").fill("v9");
    await page.getByRole("button", { name: "Embed" }).tap();
    await page.getByRole("alert").getByText("Details").tap();
    await expect(page.getByRole("alert").locator("pre")).toBeVisible();
    await expectFits("with an error");
  });
});

/** WCAG contrast of all visible text, and of all heat map colours with what is written on them. */
function contrasts(page: Page): Promise<{ text: string; ratio: number }[]> {
  return page.evaluate(() => {
    type Colour = [red: number, green: number, blue: number, alpha: number];
    const parse = (text: string): Colour => {
      const found = /^rgba?\(([\d.]+), ([\d.]+), ([\d.]+)(?:, ([\d.]+))?\)$/.exec(text);
      if (found === null) {
        throw new Error(`${text} is no colour that this test can read.`);
      }
      return [Number(found[1]), Number(found[2]), Number(found[3]), Number(found[4] ?? 1)];
    };
    const over = (front: Colour, back: Colour): Colour => {
      const mix = (index: 0 | 1 | 2) => front[index] * front[3] + back[index] * (1 - front[3]);
      return [mix(0), mix(1), mix(2), 1];
    };
    const ancestors = (element: Element | null): Element[] =>
      element === null ? [] : [...ancestors(element.parentElement), element];
    const luminance = (colour: Colour) => {
      const [red, green, blue] = colour.map((value) => {
        const share = value / 255;
        return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
      }) as Colour;
      return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
    };
    const ratio = (element: Element) => {
      const line = ancestors(element);
      const back = line
        .map((each) => parse(getComputedStyle(each).backgroundColor))
        .reduce((below, above) => over(above, below), [255, 255, 255, 1] as Colour);
      const opacity = line.reduce((product, each) => product * Number(getComputedStyle(each).opacity), 1);
      const [red, green, blue, alpha] = parse(getComputedStyle(element).color);
      const text = over([red, green, blue, alpha * opacity], back);
      const [dark = 0, light = 0] = [luminance(text), luminance(back)].sort((a, b) => a - b);
      return (light + 0.05) / (dark + 0.05);
    };

    const elements = new Set<Element>(document.querySelectorAll("[data-level], input, select, textarea"));
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
      const element = texts.currentNode.parentElement;
      if (element !== null && texts.currentNode.textContent?.trim() !== "") {
        elements.add(element);
      }
    }
    return (
      [...elements]
        .filter((element) => element.checkVisibility({ visibilityProperty: true }))
        .filter((element) => element.getBoundingClientRect().width > 1)
        // What is off need not be legible.
        .filter((element) => element.closest("[aria-disabled=true], :disabled") === null)
        .map((element) => ({
          text: `${element.tagName} ${element.getAttribute("data-level") ?? ""} ${element.textContent?.trim().slice(0, 40)}`,
          ratio: Math.round(ratio(element) * 100) / 100,
        }))
    );
  });
}

test.describe("light and dark", () => {
  // Without transitions a colour is at its end as soon as it changes.
  test.use({ reducedMotion: "reduce" });

  test("both schemes are what they say, and all text is legible in them", async ({
    page,
    server,
    foreign,
  }) => {
    expect(foreign).toEqual([]);
    await server.reset();
    await page.emulateMedia({ colorScheme: "dark" });
    await open(page, server.url);
    const brightness = () =>
      page.evaluate(() => {
        const [red = 0, green = 0, blue = 0] =
          getComputedStyle(document.body).backgroundColor.match(/\d+/g) ?? [];
        return (Number(red) + Number(green) + Number(blue)) / 3;
      });
    const expectLegible = async (what: string) => {
      for (const colorScheme of ["dark", "light"] as const) {
        await page.emulateMedia({ colorScheme });
        const [least, most] = colorScheme === "dark" ? [0, 50] : [200, 255];
        expect(await brightness()).toBeGreaterThanOrEqual(least);
        expect(await brightness()).toBeLessThanOrEqual(most);
        const all = await contrasts(page);
        expect(all.length).toBeGreaterThan(50);
        expect(
          all.filter(({ ratio }) => ratio < 4.5),
          `${what}, ${colorScheme}`,
        ).toEqual([]);
      }
    };
    await embed(page);
    await page.getByRole("button", { name: /^Files of/ }).click();
    await expect(page.getByRole("table", { name: /^Files of/ })).toBeVisible();
    // The legend has every colour.
    await expect(page.locator(".legend [data-level]")).toHaveCount(11);
    await expectLegible("with a result");

    await page.getByLabel("Name").fill("nobody/nothing");
    await page.getByRole("button", { name: "Embed" }).click();
    await page.getByRole("alert").getByText("Details").click();
    await expectLegible("with an error");

    // The choice of the person wins over the system's, and stays.
    await page.emulateMedia({ colorScheme: "light" });
    await page.getByLabel("Theme").selectOption("Dark");
    expect(await brightness()).toBeLessThan(50);
    await page.reload();
    await expect(page.getByLabel("Theme")).toHaveValue("dark");
    expect(await brightness()).toBeLessThan(50);
  });
});

test("an error names itself and the file, and trying again works when the server does", async ({
  page,
  server,
  foreign,
}) => {
  expect(foreign).toEqual([]);
  await server.reset();
  await server.fault({ path: WEIGHTS, kind: "status", value: 503 });
  await open(page, server.url);
  await page.getByRole("button", { name: "Embed" }).click();

  const panel = page.locator("#error");
  await expect(panel).toBeVisible();
  await expect(panel).toHaveRole("alert");
  await expect(panel.getByRole("heading")).toHaveText("DownloadError");
  await expect(panel.locator(".message")).toContainText("model_quantized.onnx");
  await expect(panel.locator(".message")).toContainText("503");
  await expect(page.locator("#progress-model")).toHaveAttribute("data-state", "failed");
  await expect(page.locator("#heatmap table")).toHaveCount(0);
  await expect(page.locator("#engines")).toContainText("None yet");

  await server.reset();
  await panel.getByRole("button", { name: "Try again" }).click();
  await expectEmbedded(page, 6);
  await expect(panel).toBeHidden();
  await expect(page.locator("#progress-model")).toHaveAttribute("data-state", "done");
  expect(await focused(page)).toBe("embed");

  // What the same try would meet again is not offered to be tried again.
  await page.getByLabel("Name").fill("nobody/nothing");
  await page.getByRole("button", { name: "Embed" }).click();
  await expect(panel.getByRole("heading")).toHaveText("FileNotFoundOnHubError");
  await expect(panel.locator(".message")).toContainText("nobody/nothing");
  await expect(panel.getByRole("button", { name: "Try again" })).toHaveCount(0);
  await panel.getByRole("button", { name: "Dismiss" }).click();
  await expect(panel).toBeHidden();
  expect(await focused(page)).toBe("embed");
});

test("a Python that does not start is an error panel too, and starts at the next try", async ({
  page,
  server,
  foreign,
}) => {
  expect(foreign).toEqual([]);
  await server.reset();
  await server.fault({ path: "/pyodide/python_stdlib.zip", kind: "drop" });
  await open(page, server.url);
  const panel = page.getByRole("alert").filter({ has: page.getByRole("heading") });
  await expect(panel.locator(".message")).not.toBeEmpty();
  await expect(page.locator("#progress-python")).toHaveAttribute("data-state", "failed");

  await server.reset();
  await panel.getByRole("button", { name: "Try again" }).click();
  await expect(page.locator("#progress-python")).toHaveAttribute("data-state", "done");
  await expect(page.locator("#error")).toBeHidden();
  await expect(page.locator("#stored-models")).toContainText("None yet");
});

test("stored models are listed with their files, also on the next visit, and deleted only after a yes", async ({
  page,
  server,
  foreign,
}) => {
  expect(foreign).toEqual([]);
  await server.reset();
  await open(page, server.url);
  const section = page.locator("#stored-models");
  await expect(section).toContainText("None yet");
  await embed(page);
  await expect(section.getByRole("rowheader", { name: MODEL, exact: true })).toBeVisible();

  await server.reset();
  await page.reload();
  const row = section.getByRole("row").filter({ hasText: MODEL }).first();
  await expect(row).toContainText(REVISION);
  await expect(row).toContainText("feature-extraction");
  const used = readBytes(await page.locator("#fact-storage").innerText());
  const size = readBytes(await row.getByText(/^\d.* MB$/).innerText());
  expect(size).toBeGreaterThan(20e6);
  expect(used).toBeGreaterThan(size);
  await expect(page.locator("#storage-usage")).toContainText("that the browser allows");

  const toggle = section.getByRole("button", { name: /^Files of/ });
  await expect(toggle).toHaveAttribute("aria-expanded", "false");
  await toggle.click();
  await expect(toggle).toHaveAttribute("aria-expanded", "true");
  const files = section.getByRole("table", { name: `Files of ${MODEL} ${REVISION}` });
  for (const file of ["config.json", "tokenizer.json", "onnx/model_quantized.onnx"]) {
    await expect(files.getByRole("rowheader", { name: file, exact: true })).toBeVisible();
  }
  await toggle.click();
  await expect(files).toBeHidden();

  // From the store: no second download.
  await embed(page);
  await expect(page.locator("#progress-model .detail")).toHaveText(`${ALL} from this browser's storage`);
  expect((await server.paths()).filter((path) => /^\/hub\/|attachments/.test(path))).toEqual([]);

  const remove = section.getByRole("button", { name: `Delete ${MODEL} ${REVISION}` });
  const question = page.getByRole("dialog", { name: "Delete this model?" });
  await remove.click();
  await expect(question).toContainText(`${MODEL} ${REVISION} takes ${ALL}.`);
  await question.getByRole("button", { name: "Keep it" }).click();
  await expect(question).toBeHidden();
  await expect(row).toBeVisible();
  expect((await readIndexedDb(page)).files.map((file) => file.key.at(-1))).toContain(
    "onnx/model_quantized.onnx",
  );

  await remove.click();
  await question.getByRole("button", { name: "Delete" }).click();
  await expect(section).toContainText("None yet");
  const left = readBytes(await page.locator("#fact-storage").innerText());
  expect(Math.abs(used - size - left)).toBeLessThan(0.2e6);
  // The size of the next download is told again, for which the hub's own list is read.
  await expect(page.locator("#download-size")).toHaveText(`${ALL} to download.`);
  const rest = (await readIndexedDb(page)).files.map((file) => file.key.at(-1));
  expect(rest).toContain("ort-wasm-simd-threaded.wasm");
  expect(rest.filter((file) => file?.includes("token") || file?.includes("onnx/"))).toEqual([]);
});

test("a model can be downloaded ahead: its size is told first, and then it works with the hub gone", async ({
  page,
  server,
  foreign,
}) => {
  expect(foreign).toEqual([]);
  await server.reset();
  await open(page, server.url);
  const size = page.locator("#download-size");
  await expect(size).toHaveText(/^37\.\d MB to download, runtime included\.$/);
  await page.getByLabel("Precision").selectOption("fp32");
  await expect(size).toHaveText("105 MB to download, runtime included.");
  await page.getByLabel("Name").fill("nobody/nothing");
  await expect(size).toBeEmpty();
  await page.getByLabel("Name").fill(MODEL);
  await page.getByLabel("Precision").selectOption("q8");
  await expect(size).toHaveText(/^37\.\d MB/);
  // Looking alone has stored no model, and is no error.
  await expect(page.locator("#stored-models")).toContainText("None yet");
  await expect(page.locator("#error")).toBeHidden();

  // What the Model bar shows on its way, from the first frame on.
  await page.evaluate(() => {
    const bar = document.getElementById("bar-model") as HTMLProgressElement;
    const detail = document.querySelector("#progress-model .detail") as Element;
    const shown: [number, string][] = [];
    (globalThis as Record<string, unknown>).shown = shown;
    new MutationObserver(() => shown.push([bar.position, detail.textContent ?? ""])).observe(detail, {
      childList: true,
    });
  });
  await page.getByRole("button", { name: "Download only" }).click();
  await expect(page.getByRole("status")).toHaveText(/^Stored: 37\.\d MB\.$/);
  await expect(size).toHaveText("Stored, nothing to download.");
  await expect(page.locator("#progress-model .detail")).toHaveText(`${ALL} downloaded`);
  await expect(page.locator("#engines")).toContainText("None yet");
  await expect(page.getByRole("rowheader", { name: MODEL, exact: true })).toBeVisible();
  const shown = (await page.evaluate(() => (globalThis as Record<string, unknown>).shown)) as [
    number,
    string,
  ][];
  const totals = shown.map(([, text]) => / of (.*)$/.exec(text)?.[1]).filter((total) => total !== undefined);
  expect(new Set(totals)).toEqual(new Set([ALL]));
  const positions = shown.map(([position]) => position).filter((position) => position >= 0);
  expect(positions).toEqual([...positions].sort((a, b) => a - b));

  await server.reset();
  await server.fault({ path: "/hub/*", kind: "drop" });
  await server.fault({ path: "/v1/*", kind: "drop" });
  await page.reload();
  await expect(size).toHaveText("Stored, nothing to download.");
  await embed(page);
});

test("stored models are kept, verified, exported and imported from their rows", async ({
  page,
  server,
  foreign,
}) => {
  expect(foreign).toEqual([]);
  await server.reset();
  await open(page, server.url);
  await page.getByRole("button", { name: "Download only" }).click();
  const section = page.locator("#stored-models");
  const note = page.locator("#models-note");
  const name = `${MODEL} ${REVISION}`;
  const button = (label: string) => section.getByRole("button", { name: `${label} ${name}`, exact: true });

  // The list is drawn anew, and the focus stays.
  const keep = button("Keep");
  await expect(keep).toHaveAttribute("aria-pressed", "false");
  await keep.focus();
  await page.keyboard.press("Space");
  await expect(keep).toHaveAttribute("aria-pressed", "true");
  await expect(note).toHaveText(`${name} stays when room is made.`);
  await expect(keep).toBeFocused();
  await page.reload();
  await expect(keep).toHaveAttribute("aria-pressed", "true");
  await keep.click();
  await expect(keep).toHaveAttribute("aria-pressed", "false");

  await button("Verify").click();
  await expect(note).toHaveText(/is as it was stored: \d files compared\.$/);
  await expect(page.getByRole("status")).toHaveText(await note.innerText());
  await expect(page.locator("#work")).toBeHidden();

  const saved = page.waitForEvent("download");
  await button("Export").click();
  const download = await saved;
  expect(download.suggestedFilename()).toBe("sentence-transformers-all-MiniLM-L6-v2-v1.0.0.tar");
  const archive = test.info().outputPath("model.tar");
  await download.saveAs(archive);

  await damage(page, "onnx/model_quantized.onnx");
  await button("Verify").click();
  await expect(note).toContainText("onnx/model_quantized.onnx was damaged and is removed.");
  await expect(page.locator("#download-size")).toHaveText(`${WEIGHTS_SIZE} to download.`);
  await button("Delete").click();
  await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
  await expect(section).toContainText("None yet");
  await expect(page.locator("#download-size")).toHaveText(`${ALL} to download.`);

  await server.fault({ path: "/hub/*", kind: "drop" });
  await page.locator("#import-file-input").setInputFiles(archive);
  await expect(note).toHaveText(`Imported ${name}.`);
  await expect(button("Delete")).toBeVisible();
  await expect(page.locator("#download-size")).toHaveText("Stored, nothing to download.");
  await embed(page);

  // Something else is refused, and dropping works as the button does.
  const drop = (bytes: number[], file: string) =>
    section.evaluate(
      (element, [bytes, file]) => {
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([new Uint8Array(bytes)], file));
        for (const type of ["dragenter", "dragover", "drop"]) {
          element.dispatchEvent(new DragEvent(type, { dataTransfer, bubbles: true, cancelable: true }));
        }
      },
      [bytes, file] as const,
    );
  await drop([1, 2, 3], "notes.txt");
  const panel = page.locator("#error");
  await expect(panel.getByRole("heading")).toHaveText("ArchiveError");
  await expect(panel.locator(".message")).toContainText("notes.txt");
  await expect(panel.getByRole("button", { name: "Try again" })).toHaveCount(0);
  await panel.getByRole("button", { name: "Dismiss" }).click();
  const folder = test.info().outputPath("folder");
  for (const [file, text] of [
    ["config.json", "{}"],
    ["onnx/model.onnx", "no model"],
  ] as const) {
    const path = join(folder, "tests/tiny/v1.0.0", file);
    await mkdir(dirname(path), { recursive: true });
    await writeFile(path, text);
  }
  await page.locator("#import-folder-input").setInputFiles(folder);
  await expect(note).toHaveText("Imported tests/tiny v1.0.0.");
  await expect(section.getByRole("rowheader", { name: "tests/tiny", exact: true })).toBeVisible();
  await drop([...(await readFile(archive)).subarray(0, 600)], "half.tar");
  await expect(panel.locator(".message")).toContainText("half.tar cannot be imported");
});

test("what a stopped download left goes on later, or is dropped", async ({ page, server, foreign }) => {
  expect(foreign).toEqual([]);
  await server.reset();
  await server.fault({ path: WEIGHTS, kind: "stall", from_byte: 8 * 1024 * 1024 });
  await open(page, server.url);
  const section = page.locator("#stored-models");
  const size = page.locator("#download-size");
  await page.getByRole("button", { name: "Download only" }).click();
  await expect(page.locator("#progress-model .detail")).toHaveText(new RegExp(`^8\\.\\d MB of ${ALL}$`));
  await expect(page.locator("#progress-runtime")).toHaveAttribute("data-state", "done");
  await page.getByRole("button", { name: "Stop", exact: true }).click();
  await expect(page.getByRole("status")).toHaveText("Stopped.");
  const unfinished = page.locator("#unfinished");
  await expect(unfinished).toContainText("8.4 MB of unfinished downloads");
  await expect(size).toHaveText(/^14\.\d MB to download; 8\.4 MB are here already\.$/);
  await expect(page.getByRole("meter", { name: "Storage used" })).toBeVisible();

  await unfinished.getByRole("button", { name: "Drop them" }).click();
  await expect(unfinished).toBeHidden();
  await expect(section.locator("#models-note")).toHaveText("Unfinished downloads dropped.");
  await expect(size).toHaveText(`${WEIGHTS_SIZE} to download.`);
  expect(await focused(page)).toBe("stored-title");
});

test("no room is an error with sizes, and the same try works when there is some", async ({
  playwright,
  launchOptions,
  server,
}) => {
  // A store on disk: in memory the quota is not what it says.
  const profile = await mkdtemp(join("build", "page-profile-"));
  const context = await playwright.chromium.launchPersistentContext(profile, launchOptions);
  try {
    const page = await context.newPage();
    await server.reset();
    await open(page, server.url);
    const devtools = await context.newCDPSession(page);
    await devtools.send("Storage.overrideQuotaForOrigin", { origin: server.url, quotaSize: 20_000_000 });
    await page.getByRole("button", { name: "Download only" }).click();
    const panel = page.locator("#error");
    await expect(panel.getByRole("heading")).toHaveText("QuotaExceededError");
    await expect(panel.locator(".message")).toContainText("no room");

    await devtools.send("Storage.overrideQuotaForOrigin", { origin: server.url });
    await panel.getByRole("button", { name: "Try again" }).click();
    await expect(page.getByRole("status")).toHaveText(/^Stored: /);
    await expect(panel).toBeHidden();
  } finally {
    await context.close();
    await rm(profile, { recursive: true });
  }
});

test("engines are listed, used again, and end when asked to", async ({ page, server, foreign }) => {
  expect(foreign).toEqual([]);
  await server.reset();
  await open(page, server.url);
  const section = page.locator("#engines");
  await expect(section).toContainText("None yet");
  await embed(page);
  const row = section.getByRole("row").filter({ hasText: MODEL });
  await expect(row).toHaveCount(1);
  await expect(row).toContainText("Ready");
  await expect(row).toContainText("q8");
  const name = (await row.getByRole("rowheader").innerText()).trim();

  await embed(page, SENTENCES.slice(0, 2));
  await expect(row).toHaveCount(1);
  await expect(row.getByRole("rowheader")).toHaveText(name);

  const workers = page.workers().length;
  await section.getByRole("button", { name: `Terminate ${name}` }).click();
  await expect(section).toContainText("None yet");
  await expect(page.getByRole("status")).toHaveText(`Terminated ${name}.`);
  await expect.poll(() => page.workers().length).toBeLessThan(workers);

  await embed(page);
  await expect(row.getByRole("rowheader")).not.toHaveText(name);
});

/** The server that a person runs, with a policy that forbids all that is not needed. */
async function startStrictServer(): Promise<{ url: string; process: ChildProcess }> {
  const child = spawn(".venv/bin/python", ["web/build/serve.py", "dist", "--port", "0", "--csp"], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  for await (const line of createInterface({ input: child.stdout })) {
    const found = /(http:\/\/\S+)\/$/.exec(line);
    if (found?.[1] !== undefined) {
      return { url: found[1], process: child };
    }
  }
  throw new Error("The server did not start.");
}

test("a strict content security policy is enough, with threads and without a word in the console", async ({
  page,
}) => {
  const strict = await startStrictServer();
  try {
    const problems: string[] = [];
    page.on("console", (message) => {
      if (["error", "warning"].includes(message.type())) {
        problems.push(message.text());
      }
    });
    page.on("pageerror", (error) => problems.push(error.message));
    page.context().on("request", (request) => {
      const url = new URL(request.url());
      if (!["blob:", "data:"].includes(url.protocol) && url.origin !== strict.url) {
        problems.push(`request to ${url}`);
      }
    });
    await page.addInitScript(() => {
      document.addEventListener("securitypolicyviolation", (event) => {
        console.error(`${event.violatedDirective}: ${event.blockedURI}`);
      });
    });
    const response = await page.goto(`${strict.url}/inference/?dtype=q8&threads=2`);
    expect(response?.headers()["content-security-policy"]).toContain("default-src 'none'");
    await embed(page);
    await expect(page.locator("#fact-threads")).toHaveText(/^available/);
    await expect(page.locator("#engines")).toContainText("Ready");
    const saved = page.waitForEvent("download");
    await page.getByRole("button", { name: /^Export/ }).click();
    expect((await saved).suggestedFilename()).toMatch(/\.tar$/);
    expect(problems).toEqual([]);

    // The policy holds, and a breach would have been noticed.
    await page.evaluate(() =>
      document.body.append(Object.assign(document.createElement("script"), { textContent: "1" })),
    );
    await expect.poll(() => problems.join()).toContain("script-src-elem: inline");
  } finally {
    strict.process.kill();
  }
});

test("without cross-origin isolation the page says so and computes on one thread", async ({ page }) => {
  const server = await Server.start("--no-isolation");
  try {
    await open(page, server.url);
    await expect(page.locator("#fact-threads")).toHaveText(/^one only/);
    await expect(page.getByLabel("Threads")).toBeDisabled();
    await expect(page.getByLabel("Threads")).toHaveValue("1");
    await embed(page);
    const row = page.locator("#engines").getByRole("row").filter({ hasText: MODEL });
    await expect(row.locator("[data-label=Threads]")).toHaveText("1");
    const matrix = await readHeatMap(page);
    expect(matrix[0]?.[0]).toBe(1);
    expect(matrix[0]?.[1]).toBeGreaterThan(0.4);
  } finally {
    server.stop();
  }
});

test("everything has a name, every reference a target, and headings an order", async ({
  page,
  server,
  foreign,
}) => {
  expect(foreign).toEqual([]);
  await server.reset();
  await open(page, server.url);
  const said = page.evaluate(
    () =>
      new Promise<string[]>((resolve) => {
        const region = document.querySelector("[role=status]") as Element;
        const heard: string[] = [];
        new MutationObserver(() => {
          heard.push(region.textContent ?? "");
          if (region.textContent?.includes("embedded in")) {
            resolve(heard);
          }
        }).observe(region, { childList: true, characterData: true, subtree: true });
      }),
  );
  await embed(page);
  // Milestones only: a person who listens is not told every percent.
  expect(await said).toEqual(["Getting ready…", "Embedding…", expect.stringMatching(/embedded in/)]);
  await page.getByRole("button", { name: /^Files of/ }).click();
  await expect(page.getByRole("table", { name: /^Files of/ })).toBeVisible();

  await expect(page.locator("html")).toHaveAttribute("lang", "en");
  await expect(page).toHaveTitle(/pywebml/);
  await expect(page.getByRole("heading", { level: 1 })).toHaveText("pywebml");
  for (const landmark of ["banner", "main", "contentinfo", "status"] as const) {
    await expect(page.getByRole(landmark)).toHaveCount(1);
  }
  const named = "button, input, select, textarea, progress, table, section, fieldset, [role=region]";
  for (const element of await page.locator(named).filter({ visible: true }).all()) {
    await expect(element).toHaveAccessibleName(/\S/);
  }

  const problems = await page.evaluate(() => {
    const ids = [...document.querySelectorAll("[id]")].map(({ id }) => id);
    const found = ids.filter((id, index) => ids.indexOf(id) !== index).map((id) => `#${id} twice`);
    for (const attribute of ["for", "aria-labelledby", "aria-describedby", "aria-controls"]) {
      for (const element of document.querySelectorAll(`[${attribute}]`)) {
        const missing = (element.getAttribute(attribute) ?? "").split(" ").filter((id) => !ids.includes(id));
        found.push(...missing.map((id) => `${attribute} names #${id}, which is not there`));
      }
    }
    const levels = [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].map(({ tagName }) =>
      Number(tagName.slice(1)),
    );
    levels.forEach((level, index) => {
      if (level > (levels[index - 1] ?? 0) + 1 || (index > 0 && level === 1)) {
        found.push(`heading ${index + 1} has level ${level}`);
      }
    });
    return found;
  });
  expect(problems).toEqual([]);

  await page.getByRole("button", { name: /^Delete/ }).click();
  for (const button of await page.getByRole("dialog").getByRole("button").all()) {
    await expect(button).toHaveAccessibleName(/\S/);
  }
});
