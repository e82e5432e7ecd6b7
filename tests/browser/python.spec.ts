/** The second way in: plain Pyodide on a page's main thread, our wheel by micropip; and the platform contracts. */

import { python, runContract, startPython } from "./contracts.ts";
import { expect, test } from "./fixtures.ts";
import { startKinto } from "./kinto.ts";

test("micropip installs the wheel and create_engine works with assets_base", async ({
  page,
  server,
  foreign,
}) => {
  await startPython(page, server.url);
  const shape = await python(
    page,
    `
import pywebml
pywebml.configure(assets_base="/")
engine = await pywebml.create_engine(task_name="feature-extraction")
vectors = await engine.run(["The main thread is free.", "Le fil principal est libre."], pooling="mean", normalize=True)
assert type(vectors).__module__ == "numpy", type(vectors)
await engine.terminate()
str((vectors.shape, str(vectors.dtype)))
`,
  );
  expect(shape).toBe("((2, 384), 'float32')");
  expect(foreign).toEqual([]);
});

test("the JavaScript inside the wheel is enough", async ({ page, server, foreign }) => {
  await startPython(page, server.url);
  const result = await python(
    page,
    `
import pywebml
pywebml.configure(settings_server="/v1/", hub_root_url="/hub/")
async with await pywebml.pipeline("feature-extraction", num_threads=2) as pipe:
    result = await pipe("From the wheel.", pooling="cls")
str(result.shape)
`,
  );
  expect(result).toBe("(1, 384)");
  expect(foreign).toEqual([]);
});

test("without any configuration the error says what to configure", async ({ page, server }) => {
  await startPython(page, server.url);
  const message = await python(
    page,
    `
import pywebml
try:
    await pywebml.create_engine(task_name="feature-extraction")
    message = "created"
except pywebml.errors.PywebmlError as error:
    message = f"{type(error).__name__}: {error}"
message
`,
  );
  expect(message).toMatch(/^OptionsError: .*configure\(/);
});

test("tokenizers make the same of any text as the Rust library, in the browser's Python", async ({
  page,
  server,
}) => {
  await startPython(page, server.url);
  const result = await python(
    page,
    `
import json
from pyodide.http import pyfetch
from pywebml.tokenization import Tokenizer

wrong, count = [], 0
for case in await (await pyfetch("/fixtures/tokenizers.json")).json():
    tokenizer = Tokenizer.from_json(json.dumps(case["file"]).encode())
    for expected in case["encodings"]:
        count += 1
        encoding = tokenizer.encode(expected["text"])
        offsets = [list(pair) for pair in encoding.offsets]
        decoded = tokenizer.decode(encoding.ids, skip_special_tokens=True)
        if (encoding.ids, offsets, decoded) != (expected["ids"], expected["offsets"], expected["decoded"]):
            wrong.append(ascii(expected["text"][:40]))
        if tokenizer.ids(expected["text"]) != expected["ids"]:
            wrong.append("ids " + ascii(expected["text"][:40]))
chat = [{"role": "user", "content": "Hi"}]
prompt = tokenizer.apply_chat_template(chat, chat_template="{{ messages[0].content | upper }}")
f"{count > 400} {len(wrong)} {wrong[:3]} {prompt}"
`,
  );
  expect(result).toBe("True 0 [] HI");
});

for (const contract of ["store", "session"]) {
  test(`the ${contract} contract holds on the browser platform`, async ({ page, server }) => {
    test.setTimeout(180_000);
    await startPython(page, server.url);
    expect(await runContract(page, `run_${contract}_contract()`)).toBe("");
  });
}

test("the settings client holds its contract against a Kinto server on another origin", async ({
  page,
  server,
}) => {
  test.setTimeout(240_000);
  const kinto = await startKinto();
  try {
    await startPython(page, server.url);
    expect(await runContract(page, `run_settings_contract(${JSON.stringify(kinto.line)})`)).toBe("");
  } finally {
    kinto.stop();
  }
});
