/**
 * Runs models in onnxruntime-web: its WASM, one thread. One JSON request per line on stdin, one JSON answer per line.
 *
 * Request: `{model, externalData: [{name, path}], runs: [{feeds: path, inputs: [{name, type, dims, offset, length}],
 * outputs: path}], optimization}`. The files hold the tensors' bytes one after another. Answer: `{runs: [[{name, type,
 * dims, offset, length}]], loadMilliseconds, runMilliseconds: [number]}`, or `{error, stage}`.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import * as ort from "onnxruntime-web";

ort.env.wasm.numThreads = 1;
ort.env.logLevel = "fatal";

const ARRAYS = {
  float32: Float32Array,
  float64: Float64Array,
  float16: globalThis.Float16Array ?? Uint16Array,
  int8: Int8Array,
  uint8: Uint8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
  bool: Uint8Array,
};

function readFeeds({ feeds, inputs }) {
  const bytes = new Uint8Array(readFileSync(feeds));
  return Object.fromEntries(
    inputs.map(({ name, type, dims, offset, length }) => {
      const data = new ARRAYS[type](bytes.slice(offset, offset + length).buffer);
      return [name, new ort.Tensor(type, data, dims)];
    }),
  );
}

function writeOutputs(path, results) {
  const pieces = [];
  const outputs = [];
  let offset = 0;
  for (const [name, { type, dims, data }] of Object.entries(results)) {
    const piece = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    outputs.push({ name, type, dims: [...dims], offset, length: piece.length });
    pieces.push(piece);
    offset += piece.length;
  }
  writeFileSync(path, Buffer.concat(pieces));
  return outputs;
}

async function answer({ model, externalData, runs, optimization }) {
  let stage = "load";
  let session;
  try {
    const started = performance.now();
    session = await ort.InferenceSession.create(new Uint8Array(readFileSync(model)), {
      executionProviders: ["wasm"],
      graphOptimizationLevel: optimization,
      externalData: externalData.map(({ name, path }) => ({ path: name, data: new Uint8Array(readFileSync(path)) })),
    });
    const loadMilliseconds = performance.now() - started;
    stage = "run";
    const results = [];
    const runMilliseconds = [];
    for (const run of runs) {
      const feeds = readFeeds(run);
      const begun = performance.now();
      const outputs = await session.run(feeds);
      runMilliseconds.push(performance.now() - begun);
      results.push(writeOutputs(run.outputs, outputs));
    }
    return { runs: results, loadMilliseconds, runMilliseconds };
  } catch (error) {
    return { error: String(error?.message ?? error), stage };
  } finally {
    await session?.release();
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  process.stdout.write(`${JSON.stringify(await answer(JSON.parse(line)))}\n`);
}
