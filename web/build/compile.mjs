/**
 * Compiles archives to bytecode inside Pyodide, since the host need not have Pyodide's Python version.
 *
 *     node web/build/compile.mjs PYODIDE_FOLDER JOBS.json
 */
import { readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const [pyodideFolder, jobsFile] = process.argv.slice(2).map((path) => resolve(path));
const { loadPyodide } = await import(pathToFileURL(join(pyodideFolder, "pyodide.mjs")).href);

const jobs = JSON.parse(readFileSync(jobsFile, "utf8"));
const pyodide = await loadPyodide({ indexURL: `${pyodideFolder}/` });

// The host's folders appear below /host, one mount for each.
const mounts = new Map();
const inside = (path) => {
  const folder = dirname(resolve(path));
  if (!mounts.has(folder)) {
    mounts.set(folder, `/host/${mounts.size}`);
    pyodide.mountNodeFS(mounts.get(folder), folder);
  }
  return `${mounts.get(folder)}/${path.split("/").at(-1)}`;
};
const inner = jobs.map((job) => ({ ...job, source: inside(job.source), target: inside(job.target) }));

const script = fileURLToPath(new URL("compile_archives.py", import.meta.url));
const sitePackages = pyodide.runPython("import site; site.getsitepackages()[0]");
pyodide.FS.writeFile(`${sitePackages}/compile_archives.py`, readFileSync(script));
const compileAll = pyodide.pyimport("compile_archives").compile_all;
console.log(`bytecode ${compileAll(JSON.stringify(inner))}`);
