/**
 * Runs a model folder of the disk in Transformers.js. Reads a request as JSON, writes the list of answers as JSON.
 *
 * Request: `{folder, task?, class?, options?, calls}`. `folder` is in hub layout; `options` go to the loader (`dtype`,
 * `model_file_name`, ...). Each call is one of
 *   `{pipeline: [arguments], options?}`  of the pipeline for `task`,
 *   `{forward: inputs}`                  of the model of `class`, such as AutoModelForCausalLM,
 *   `{generate: options}`                of the same; the inputs are among the options.
 * Values that JSON has no form for, in requests: `{tensor: [data], type, dims}`, `{float32: [numbers]}`,
 * `{image: path}`. In answers: tensors and typed arrays as `{dims, type, data}` and arrays of numbers.
 */
import { readFileSync } from "node:fs";
import { basename, dirname } from "node:path";
import * as transformers from "@huggingface/transformers";

const { env, pipeline, RawImage, Tensor } = transformers;

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

async function revived(value) {
  if (Array.isArray(value)) return Promise.all(value.map(revived));
  if (!isObject(value)) return value;
  if ("tensor" in value) {
    const data = value.type === "int64" ? value.tensor.map(BigInt) : value.tensor;
    return new Tensor(value.type, data, value.dims);
  }
  if ("float32" in value) return Float32Array.from(value.float32);
  if ("image" in value) return RawImage.read(value.image);
  const entries = Object.entries(value).map(async ([name, item]) => [name, await revived(item)]);
  return Object.fromEntries(await Promise.all(entries));
}

function plain(value) {
  if (typeof value === "bigint") return Number(value);
  if (typeof value === "function" || value === undefined) return null;
  if (value instanceof Tensor) return { dims: value.dims, type: value.type, data: plain(value.data) };
  if (ArrayBuffer.isView(value)) return Array.from(value, plain);
  if (Array.isArray(value)) return value.map(plain);
  if (isObject(value)) {
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, plain(item)]));
  }
  return value;
}

const { folder, task, class: name, options = {}, calls } = JSON.parse(readFileSync(0, "utf8"));
env.allowRemoteModels = false;
env.useFSCache = false;
env.localModelPath = dirname(folder);
const id = basename(folder);
const loading = { dtype: "fp32", device: "cpu", ...options };
const run = task ? await pipeline(task, id, loading) : undefined;
const model = name ? await transformers[name].from_pretrained(id, loading) : undefined;
const answers = [];
for (const call of calls) {
  if (call.pipeline) answers.push(await run(...(await revived(call.pipeline)), await revived(call.options ?? {})));
  else if (call.forward) answers.push(await model(await revived(call.forward)));
  else answers.push(await model.generate(await revived(call.generate)));
}
process.stdout.write(JSON.stringify(answers.map(plain)));
