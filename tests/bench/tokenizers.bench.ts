/** Tokens per second and start-up, beside the JavaScript library that peers use, in the same page and run. */

import { execFileSync } from "node:child_process";
import { python, startPython } from "../browser/contracts.ts";
import { Server, test } from "../browser/fixtures.ts";

const KINDS = ["wordpiece", "bpe", "large"] as const;
const TEXTS = ["prose", "code"] as const;
const ROUNDS = 5;
const STARTS = 9;

interface Measured {
  /** Tokens per second with warm caches, by text. */
  rates: Record<string, number>;
  /** The same for further ways to encode. */
  others: Record<string, Record<string, number>>;
  tokens: Record<string, number>;
  cold: Record<string, number>;
  /** Milliseconds of the first start-up in the page. */
  first: number;
}

const PYTHON = `
import json, time
from pyodide.http import pyfetch
from pywebml.tokenization import Tokenizer

async def read(name):
    return await (await pyfetch(f"/bench/{name}")).bytes()

def median(values):
    return sorted(values)[len(values) // 2]

def timed(work):
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result

begins = {}

async def measure(kind, rounds):
    data, config = await read(f"{kind}.json"), await read(f"{kind}_config.json")
    def begin():
        tokenizer = Tokenizer.from_json(data, config)
        tokenizer.ids("Hello world, the tokenizer starts.")
        return tokenizer
    begins[kind] = begin
    first, tokenizer = timed(begin)
    found = {"first": 1000 * first, "rates": {}, "others": {"encode": {}, "batch": {}}, "tokens": {}, "cold": {}}
    for name in ("prose", "code"):
        texts = json.loads(await read(f"{name}.json"))
        def all_ids():
            return sum(len(tokenizer.ids(text)) for text in texts)
        def all_encodings():
            return sum(len(tokenizer.encode(text)) for text in part)
        def all_batches():
            return sum(int(tokenizer(texts[start : start + 1], truncation=False)["attention_mask"].sum()) for start in range(len(texts)))
        cold, count = timed(all_ids)
        found["cold"][name] = count / cold
        found["tokens"][name] = count
        found["rates"][name] = count / median([timed(all_ids)[0] for _ in range(rounds)])
        part = texts[::8]
        some = all_encodings()
        found["others"]["encode"][name] = some / median([timed(all_encodings)[0] for _ in range(3)])
        found["others"]["batch"][name] = count / median([timed(all_batches)[0] for _ in range(3)])
    return json.dumps(found)
`;

test("tokenizers beside @huggingface/tokenizers", async ({ page }) => {
  test.setTimeout(900_000);
  execFileSync(".venv/bin/python", ["-m", "tests.bench.make_tokenizer_data"], { stdio: "inherit" });
  const mounts = ["/bench/=build/bench", "/peer/=node_modules/@huggingface/tokenizers/dist"];
  const server = await Server.start(...mounts.flatMap((mount) => ["--mount", mount]));
  try {
    await startPython(page, server.url);
    await python(page, PYTHON);
    const rows: string[] = [];
    for (const kind of KINDS) {
      const peer = await page.evaluate(measurePeer, { kind, rounds: ROUNDS });
      const ours = JSON.parse(
        String(await python(page, `await measure(${JSON.stringify(kind)}, ${ROUNDS})`)),
      ) as Measured;
      // Turn by turn: whatever else the machine does then slows both.
      const starts: { ours: number[]; peer: number[] } = { ours: [], peer: [] };
      for (let round = 0; round < STARTS; round++) {
        starts.peer.push(await page.evaluate(startPeer, kind));
        starts.ours.push(Number(await python(page, `1000 * timed(begins["${kind}"])[0]`)));
      }
      rows.push(
        ...report(kind, ours, peer),
        startRow(`${kind}: first start-up`, [ours.first], [peer.first]),
        startRow(`${kind}: start-up`, starts.ours, starts.peer),
      );
    }
    console.log(rows.join("\n"));
  } finally {
    server.stop();
  }
});

async function measurePeer({ kind, rounds }: { kind: string; rounds: number }): Promise<Measured> {
  type Peer = { encode(text: string): { ids: number[] } };
  const module = "/peer/tokenizers.min.mjs";
  const { Tokenizer } = (await import(module)) as { Tokenizer: new (file: object, config: object) => Peer };
  const read = async (name: string) => (await fetch(`/bench/${name}`)).text();
  const median = (values: number[]) => values.sort((a, b) => a - b)[values.length >> 1] ?? 0;
  const [file, config] = await Promise.all([read(`${kind}.json`), read(`${kind}_config.json`)]);
  const began = performance.now();
  const tokenizer = new Tokenizer(JSON.parse(file), JSON.parse(config));
  tokenizer.encode("Hello world, the tokenizer starts.");
  const result: Measured = { rates: {}, others: {}, tokens: {}, cold: {}, first: performance.now() - began };
  for (const name of ["prose", "code"]) {
    const texts = JSON.parse(await read(`${name}.json`)) as string[];
    const once = () => {
      const started = performance.now();
      let count = 0;
      for (const text of texts) count += tokenizer.encode(text).ids.length;
      return [count, (performance.now() - started) / 1000] as const;
    };
    const [count, cold] = once();
    result.tokens[name] = count;
    result.cold[name] = count / cold;
    result.rates[name] = count / median(Array.from({ length: rounds }, () => once()[1]));
  }
  return result;
}

function report(kind: string, ours: Measured, peer: Measured): string[] {
  const rate = (value: number | undefined) => `${Math.round((value ?? 0) / 1000)} k`.padStart(8);
  const ratio = (mine: number | undefined, theirs: number | undefined) =>
    `${((mine ?? 0) / (theirs ?? 1)).toFixed(2)} x`.padStart(8);
  const rows = TEXTS.flatMap((text) => [
    `${kind}, ${text}: tokens ${ours.tokens[text]} (peer ${peer.tokens[text]})`,
    `  warm   ${rate(ours.rates[text])}/s   peer ${rate(peer.rates[text])}/s   ${ratio(ours.rates[text], peer.rates[text])}`,
    `  cold   ${rate(ours.cold[text])}/s   peer ${rate(peer.cold[text])}/s   ${ratio(ours.cold[text], peer.cold[text])}`,
    `  arrays ${rate(ours.others.batch?.[text])}/s   with offsets, words, tokens: ${rate(ours.others.encode?.[text])}/s`,
  ]);
  return rows;
}

/** Milliseconds from the text of the file to a tokenizer that has encoded a sentence. */
async function startPeer(kind: string): Promise<number> {
  type Peer = { encode(text: string): unknown };
  const module = "/peer/tokenizers.min.mjs";
  const { Tokenizer } = (await import(module)) as { Tokenizer: new (file: object, config: object) => Peer };
  const read = async (name: string) => (await fetch(`/bench/${name}`)).text();
  const [file, config] = await Promise.all([read(`${kind}.json`), read(`${kind}_config.json`)]);
  const started = performance.now();
  new Tokenizer(JSON.parse(file), JSON.parse(config)).encode("Hello world, the tokenizer starts.");
  return performance.now() - started;
}

function startRow(title: string, ours: number[], peer: number[]): string {
  const median = (values: number[]) => values.toSorted((a, b) => a - b)[values.length >> 1] ?? 0;
  const ratio = median(ours.map((value, index) => value / (peer[index] ?? 1)));
  return `${title} ${median(ours).toFixed(0)} ms   peer ${median(peer).toFixed(0)} ms   ${ratio.toFixed(2)} x`;
}
