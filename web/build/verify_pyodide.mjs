/**
 * Starts the built distribution from its own folder and proves that it is complete and closed.
 *
 *     node web/build/verify_pyodide.mjs dist/pyodide
 *
 * The files match the lock; numpy, micropip and pywebml load and import; an unknown package is refused instead of being
 * looked for elsewhere.
 */
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const folder = resolve(process.argv[2]);
const fail = (message) => {
  console.error(`FAILED: ${message}`);
  process.exit(1);
};

// Pyodide under Node does not check the hashes of local files; browsers do.
const lockFileContents = readFileSync(join(folder, "pyodide-lock.json"), "utf8");
const { packages } = JSON.parse(lockFileContents);
for (const entry of Object.values(packages)) {
  const received = createHash("sha256")
    .update(readFileSync(join(folder, entry.file_name)))
    .digest("hex");
  if (received !== entry.sha256)
    fail(`${entry.file_name} has SHA-256 ${received}, the lock says ${entry.sha256}`);
}

const { loadPyodide } = await import(pathToFileURL(join(folder, "pyodide.mjs")).href);
const times = [];
let last = performance.now();
const lap = (name) => {
  const now = performance.now();
  times.push(`${name} ${Math.round(now - last)} ms`);
  last = now;
};

const pyodide = await loadPyodide({ indexURL: `${folder}/`, lockFileContents, packageBaseUrl: `${folder}/` });
lap("loadPyodide");
const quiet = { messageCallback: () => {}, errorCallback: (message) => fail(message) };
await pyodide.loadPackage(["numpy"], quiet);
lap("load numpy");
pyodide.runPython("import numpy; assert numpy.ones((2, 3)).sum() == 6");
lap("import numpy");
await pyodide.loadPackage(Object.keys(packages), quiet);
lap("load the rest");
const modules = Object.values(packages).flatMap((entry) => entry.imports);
for (const name of modules) {
  try {
    pyodide.runPython(`import ${name}`);
  } catch (error) {
    fail(`import ${name}: ${error.message}`);
  }
}
const { version } = packages.pywebml;
const installed = pyodide.runPython("import importlib.metadata as m; m.version('pywebml')");
if (installed !== version) fail(`pywebml ${installed} is installed, the lock says ${version}`);
lap(`import ${modules.join(", ")}`);

let refusal = "";
try {
  await pyodide.loadPackage("no-such-package", {
    messageCallback: () => {},
    errorCallback: (message) => {
      refusal += message;
    },
  });
} catch (error) {
  refusal += error.message;
}
if (!/No known package/.test(refusal)) fail(`an unknown package was not refused: ${refusal || "no error"}`);

console.log(times.join(", "));
