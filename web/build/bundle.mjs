/**
 * Bundles the TypeScript.
 *
 *     node web/build/bundle.mjs library    dist/*.mjs, dist/pywebml.js and the copies that the wheel carries
 *     node web/build/bundle.mjs page       dist/inference/ and dist/index.html
 *     node web/build/bundle.mjs tests      build/node-tests/: web/src/**\/*.test.ts for `node --test`
 */
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const root = resolve(dirname(fileURLToPath(import.meta.url)), "../..");
process.chdir(root);

const fail = (message) => {
  console.error(message);
  process.exit(1);
};

const ortVersion = JSON.parse(readFileSync("node_modules/onnxruntime-web/package.json", "utf8")).version;
const version = /^version = "([^"]+)"/m.exec(readFileSync("pyproject.toml", "utf8"))?.[1];
if (version === undefined) fail("pyproject.toml has no version.");

const rootFile = "build/settings-root.json";
const settingsRoot = existsSync(rootFile) ? JSON.parse(readFileSync(rootFile, "utf8")).sha256 : "";

const common = {
  bundle: true,
  target: "es2022",
  minify: true,
  sourcemap: true,
  legalComments: "eof",
  logLevel: "warning",
  // A classic script has no import.meta; sources that are built both ways ask for it and then for the script element.
  logOverride: { "empty-import-meta": "silent" },
  define: {
    __ORT_VERSION__: JSON.stringify(ortVersion),
    __PYWEBML_VERSION__: JSON.stringify(version),
    __SETTINGS_ROOT_HASH__: JSON.stringify(settingsRoot),
  },
};

/** The runtime's glue imports these two under Node only. */
const nodeOnly = ["module", "worker_threads"];

const LIBRARY = [
  { from: "web/src/client/script.ts", to: "dist/pywebml.js", format: "iife", globalName: "pywebml" },
  { from: "web/src/client/index.ts", to: "dist/pywebml.mjs", format: "esm" },
  { from: "web/src/host/main.ts", to: "dist/host.mjs", format: "esm" },
  { from: "web/src/session/main.ts", to: "dist/session.mjs", format: "esm", external: nodeOnly },
  { from: "web/src/bridge/index.ts", to: "dist/bridge.mjs", format: "esm" },
];

async function bundleLibrary() {
  const missing = LIBRARY.filter(({ from }) => !existsSync(from));
  if (missing.length > 0) fail(`Missing: ${[...new Set(missing.map(({ from }) => from))].join(", ")}`);
  for (const { from, to, ...options } of LIBRARY)
    await build({ ...common, entryPoints: [from], outfile: to, ...options });
  // The runtime starts its threads from the module that it finds in import.meta.url: the bundle itself.
  if (!readFileSync("dist/session.mjs", "utf8").includes("import.meta.url"))
    fail("dist/session.mjs has lost import.meta.url, so the runtime could not start threads.");
  mkdirSync("pywebml/_web", { recursive: true });
  for (const name of ["bridge.mjs", "session.mjs"]) {
    const code = readFileSync(`dist/${name}`, "utf8").replace(/\n\/\/# sourceMappingURL=.*\n?$/, "\n");
    writeFileSync(`pywebml/_web/${name}`, code);
  }
}

const COPIED = /\.(html|css|svg|png|webp|ico|webmanifest)$/;

async function bundlePage() {
  const [source, target] = ["web/inference", "dist/inference"];
  if (!existsSync(join(source, "index.html"))) fail(`Missing: ${source}/index.html`);
  rmSync(target, { recursive: true, force: true });
  mkdirSync(target, { recursive: true });
  const scripts = new Set();
  for (const name of readdirSync(source)) {
    if (!COPIED.test(name)) continue;
    copyFileSync(join(source, name), join(target, name));
    if (!name.endsWith(".html")) continue;
    const html = readFileSync(join(source, name), "utf8");
    for (const [, script] of html.matchAll(/<script\b[^>]*\bsrc="(?:\.\/)?([\w-]+\.m?js)"/g))
      scripts.add(script);
  }
  for (const script of scripts) {
    const entry = join(source, script.replace(/\.m?js$/, ".ts"));
    if (!existsSync(entry)) fail(`A page of ${source} asks for ${script}, but ${entry} does not exist.`);
    const external = ["../pywebml.mjs", "/pywebml.mjs"];
    await build({ ...common, entryPoints: [entry], outfile: join(target, script), format: "esm", external });
  }
  writeFileSync(
    "dist/index.html",
    `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="refresh" content="0; url=inference/">
<link rel="icon" href="data:,">
<title>pywebml</title>
<p><a href="inference/">pywebml in this browser</a></p>
</html>
`,
  );
}

async function bundleTests() {
  const target = "build/node-tests";
  rmSync(target, { recursive: true, force: true });
  const tests = readdirSync("web/src", { recursive: true }).filter((name) => name.endsWith(".test.ts"));
  for (const name of tests) {
    const outfile = join(target, `${basename(dirname(name))}-${basename(name, ".ts")}.mjs`);
    await build({
      ...common,
      entryPoints: [join("web/src", name)],
      outfile,
      format: "esm",
      platform: "node",
      target: "node20",
      minify: false,
      sourcemap: "inline",
      packages: "external",
    });
    console.log(outfile);
  }
}

const tasks = { library: bundleLibrary, page: bundlePage, tests: bundleTests };
const task = tasks[process.argv[2]];
if (task === undefined) fail(`Usage: node web/build/bundle.mjs ${Object.keys(tasks).join("|")}`);
await task().catch((error) => {
  // esbuild has printed its own errors.
  if (error.errors === undefined) console.error(error);
  process.exit(1);
});
