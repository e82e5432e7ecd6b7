"""`dist/LICENSES.md` and `dist/licenses/`: what is shipped, under which licence, with the texts."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath

from web.build.paths import DIST, NODE_MODULES, ROOT
from web.build.pyodide_dist import TARGET, package_version, pyodide_version
from web.build.steps import BuildError

TEXTS = Path(__file__).parent / "licences"


@dataclass(frozen=True, slots=True)
class Component:
    """A row of the table; `texts` are the files with the licence's words."""

    name: str
    version: str
    licence: str
    source: str
    where: str
    texts: tuple[Path, ...]


# Licences of the wheels as their metadata gives them, as SPDX expressions; the texts are inside the wheels.
WHEELS = {
    "numpy": ("BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", "https://github.com/numpy/numpy"),
    "pillow": ("MIT-CMU", "https://github.com/python-pillow/Pillow"),
    "regex": ("Apache-2.0 AND CNRI-Python", "https://github.com/mrabarnett/mrab-regex"),
    "jinja2": ("BSD-3-Clause", "https://github.com/pallets/jinja"),
    "markupsafe": ("BSD-3-Clause", "https://github.com/pallets/markupsafe"),
    "micropip": ("MPL-2.0", "https://github.com/pyodide/micropip"),
    "packaging": ("Apache-2.0 OR BSD-2-Clause", "https://github.com/pypa/packaging"),
    "pyodide-http": ("MIT", "https://github.com/koenvo/pyodide-http"),
}


def _npm(name: str, licence: str, source: str, where: str, texts: tuple[Path, ...] = ()) -> Component:
    folder = NODE_MODULES / name
    version = json.loads((folder / "package.json").read_text())["version"]
    return Component(name, version, licence, source, where, texts or (folder / "LICENSE",))


def _components() -> list[Component]:
    # The npm package of ONNX Runtime has no licence file; the Python package of the same project has both texts.
    runtime = Path(str(distribution("onnxruntime").locate_file("onnxruntime")))
    lock = json.loads((TARGET / "pyodide-lock.json").read_text())
    return [
        Component(
            "pywebml",
            package_version(),
            "MIT",
            "this repository",
            "pywebml.*, host.mjs, session.mjs, bridge.mjs, inference/, wheels/, pyodide/pywebml-*.whl",
            (ROOT / "LICENSE",),
        ),
        Component(
            "Pyodide",
            pyodide_version(),
            "MPL-2.0",
            "https://github.com/pyodide/pyodide",
            "pyodide/pyodide.*",
            (TEXTS / "MPL-2.0.txt",),
        ),
        Component(
            "CPython, with the libraries of its standard modules",
            ".".join(str(lock["info"]["python"]).split(".")[:2]),
            "PSF-2.0",
            "https://github.com/python/cpython",
            "pyodide/pyodide.asm.wasm, pyodide/python_stdlib.zip (as bytecode)",
            (TEXTS / "PSF-2.0.txt",),
        ),
        Component(
            "Emscripten run-time library",
            str(lock["info"]["platform"]).removeprefix("emscripten_").replace("_", "."),
            "MIT (offered as MIT OR NCSA)",
            "https://github.com/emscripten-core/emscripten",
            "pyodide/pyodide.asm.*, session.mjs, the runtime in v1/",
            (TEXTS / "emscripten.txt",),
        ),
        _npm(
            "onnxruntime-web",
            "MIT",
            "https://github.com/microsoft/onnxruntime",
            "session.mjs, the runtime in v1/",
            (runtime / "LICENSE", runtime / "ThirdPartyNotices.txt"),
        ),
        _npm("idb", "ISC", "https://github.com/jakearchibald/idb", "the bundles"),
        _npm("hash-wasm", "MIT", "https://github.com/Daninet/hash-wasm", "the bundles"),
        Component(
            "all-MiniLM-L6-v2 (converted to ONNX)",
            "v1.0.0",
            "Apache-2.0",
            "https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
            "hub/sentence-transformers/all-MiniLM-L6-v2/",
            (TEXTS / "Apache-2.0.txt",),
        ),
    ]


def _slug(name: str) -> str:
    return name.split(" (")[0].split(",")[0].replace("@", "").replace("/", "-").replace(" ", "-")


def write_licences() -> None:
    """Write the table and copy every text."""
    target = DIST / "licenses"
    shutil.rmtree(target, ignore_errors=True)
    rows: list[tuple[str, str, str, str, str, list[str]]] = []
    for component in _components():
        copies = []
        for text in component.texts:
            if not text.is_file():
                raise BuildError(f"The licence text of {component.name} is missing: {text}")
            copy = target / _slug(component.name) / text.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(text, copy)
            copies.append(str(copy.relative_to(DIST)))
        row = (component.name, component.version, component.licence, component.source, component.where, copies)
        rows.append(row)
    lock = json.loads((TARGET / "pyodide-lock.json").read_text())["packages"]
    for name, entry in lock.items():
        if name == "pywebml":
            continue
        if name not in WHEELS:
            raise BuildError(f"{name} is shipped, but web/build/licences.py does not know its licence.")
        licence, source = WHEELS[name]
        copies = _wheel_texts(TARGET / entry["file_name"], target / _slug(name))
        rows.append((entry["name"], entry["version"], licence, source, f"pyodide/{entry['file_name']}", copies))
    lines = [
        "# What this folder holds, and its licences",
        "",
        "| Component | Version | Licence | Source | Files | Licence texts |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, version, licence, source, where, copies in rows:
        links = ", ".join(f"[{PurePosixPath(copy).name}]({copy})" for copy in copies)
        lines.append(f"| {name} | {version} | {licence} | {source} | {where} | {links} |")
    (DIST / "LICENSES.md").write_text("\n".join(lines) + "\n")


def _wheel_texts(wheel: Path, target: Path) -> list[str]:
    copies = []
    with zipfile.ZipFile(wheel) as archive:
        for member in sorted(archive.namelist()):
            path = PurePosixPath(member)
            top = path.parts[0]
            if not top.endswith(".dist-info") or not path.name.upper().startswith(("LICEN", "COPYING")):
                continue
            # Wheels may nest their licences; the flattened name keeps them apart.
            parts = [part for part in path.parts[1:] if part != "licenses"]
            copy = target / "-".join(parts)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(archive.read(member))
            copies.append(str(copy.relative_to(DIST)))
    if not copies:
        raise BuildError(f"{wheel.name} has no licence text.")
    return copies
