// What a Python-in-browser user's page does: its own Pyodide, our wheel by micropip, nothing of our JavaScript.
import { loadPyodide } from "/pyodide/pyodide.mjs";

globalThis.startPython = async () => {
  const pyodide = await loadPyodide({ indexURL: "/pyodide/", packages: ["micropip"] });
  globalThis.pyodide = pyodide;
  const install = pyodide.pyimport("micropip").install;
  await install(`${location.origin}/wheels/${globalThis.wheelName}`);
  install.destroy();
};
