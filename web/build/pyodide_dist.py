"""`dist/pyodide/`: the interpreter, its standard library and the packages that pywebml uses, as bytecode.

Two steps, because our own wheel changes often and the rest hardly ever: `assemble_runtime` takes the interpreter
and the third-party wheels, `add_package` compiles our wheel, writes the lock and starts the result once.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from pyodide_lock import PyodideLockSpec
from pyodide_lock.spec import PackageSpec

from web.build.compile_archives import Job
from web.build.paths import BUILD, DIST, NODE_MODULES, ROOT
from web.build.steps import BuildError, run_command
from web.build.wheels import WantedWheel, fetch_wheels

SOURCE = NODE_MODULES / "pyodide"
TARGET = DIST / "pyodide"
COPIED = ("pyodide.mjs", "pyodide.mjs.map", "pyodide.asm.mjs", "pyodide.asm.wasm")
STANDARD_LIBRARY = "python_stdlib.zip"
# micropip is for pages that install our wheel themselves; packaging and pyodide-http are for their Python code.
PACKAGES = ("numpy", "pillow", "regex", "jinja2", "micropip", "packaging", "pyodide-http")
# For compiling against the package, or for type checkers; a browser does neither.
DEVELOPMENT_FILES = [".pyi", ".pxd", ".h", ".a", ".c"]
# Exporting models and the command line need torch and a terminal.
NATIVE_ONLY = ["pywebml/prepare/", "pywebml/cli.py"]


def pyodide_version() -> str:
    """Version of the installed npm package."""
    return str(json.loads((SOURCE / "package.json").read_text())["version"])


def package_version() -> str:
    """Version of pywebml."""
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def read_lock() -> PyodideLockSpec:
    """The lock file of the installed Pyodide.

    `PyodideLockSpec` still asks for `info.version`, which Pyodide 314 no longer writes: it is filled in for reading
    and left out again by `write_lock`.

    Raises:
        BuildError: It is not a lock file.
    """
    path = SOURCE / "pyodide-lock.json"
    try:
        content = json.loads(path.read_text())
        content["info"].setdefault("version", pyodide_version())
        return PyodideLockSpec(**content)
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise BuildError(
            f"{path.relative_to(ROOT)} cannot be read as a lock file: {error}",
            "Delete node_modules and run the build again.",
        ) from error


def write_lock(lock: PyodideLockSpec, path: Path) -> None:
    """Write a lock file, after the lock format's own checks."""
    try:
        lock.check_wheel_filenames()
    except ValueError as error:
        raise BuildError(f"The lock does not fit its wheels: {error}") from error
    content = lock.model_dump()
    content["info"].pop("version")
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def _with_dependencies(lock: PyodideLockSpec, names: Sequence[str]) -> list[str]:
    found: list[str] = []
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        if name in found:
            continue
        if name not in lock.packages:
            raise BuildError(f"Pyodide {pyodide_version()} has no package {name!r} in its lock file.")
        found.append(name)
        waiting.extend(lock.packages[name].depends)
    return found


def _pure(file_name: str) -> bool:
    return file_name.endswith("-none-any.whl")


def _python_tag(lock: PyodideLockSpec) -> str:
    major, minor = lock.info.python.split(".")[:2]
    return f"cp{major}{minor}"


def _compiled_name(file_name: str, tag: str) -> str:
    """A pure wheel's bytecode fits one Python version only, and its name says so."""
    return re.sub(r"-py\d[^-]*-none-any\.whl$", f"-{tag}-none-any.whl", file_name)


def _compile(jobs: Sequence[Job]) -> None:
    listing = BUILD / "compile-jobs.json"
    listing.write_text(json.dumps(jobs))
    run_command(
        ["node", "web/build/compile.mjs", SOURCE, listing],
        "compile",
        hint="If Pyodide itself does not start, delete node_modules and run the build again.",
    )
    # Pyodide's file system writes for everybody.
    for job in jobs:
        Path(job["target"]).chmod(0o644)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def assemble_runtime() -> None:
    """Write the interpreter, the standard library and the third-party wheels to `dist/pyodide/`."""
    lock = read_lock()
    tag = _python_tag(lock)
    names = _with_dependencies(lock, PACKAGES)
    entries = [lock.packages[name] for name in names]
    wanted = [WantedWheel(name, e.version, e.file_name, e.sha256) for name, e in zip(names, entries, strict=True)]
    wheels = fetch_wheels(wanted, pyodide_version())

    shutil.rmtree(TARGET, ignore_errors=True)
    TARGET.mkdir(parents=True)
    for name in COPIED:
        shutil.copyfile(SOURCE / name, TARGET / name)
    major, minor = lock.info.python.split(".")[:2]
    jobs = [
        Job(
            source=str(SOURCE / STANDARD_LIBRARY),
            target=str(TARGET / STANDARD_LIBRARY),
            location=f"/lib/python{major}{minor}.zip",
            drop=[],
            wheel_tag="",
        )
    ]
    jobs += [
        Job(
            source=str(wheels[name]),
            target=str(TARGET / _compiled_name(entry.file_name, tag)),
            location=f"/lib/python{major}.{minor}/site-packages",
            drop=DEVELOPMENT_FILES,
            wheel_tag=f"{tag}-none-any" if _pure(entry.file_name) else "",
        )
        for name, entry in zip(names, entries, strict=True)
    ]
    _compile(jobs)


def add_package() -> None:
    """Compile our wheel into `dist/pyodide/`, write the pruned lock and start the distribution once."""
    lock = read_lock()
    tag = _python_tag(lock)
    version = package_version()
    wheel = DIST / "wheels" / f"pywebml-{version}-py3-none-any.whl"
    for old in TARGET.glob("pywebml-*.whl"):
        old.unlink()
    target = TARGET / _compiled_name(wheel.name, tag)
    major, minor = lock.info.python.split(".")[:2]
    job = Job(
        source=str(wheel),
        target=str(target),
        location=f"/lib/python{major}.{minor}/site-packages",
        drop=NATIVE_ONLY,
        wheel_tag=f"{tag}-none-any",
    )
    _compile([job])

    # The lock names exactly what the folder holds, with the hashes of the compiled files.
    packages: dict[str, PackageSpec] = {}
    for name in _with_dependencies(lock, PACKAGES):
        entry = lock.packages[name]
        file_name = _compiled_name(entry.file_name, tag)
        packages[name] = entry.model_copy(update={"file_name": file_name, "sha256": _sha256(TARGET / file_name)})
    packages["pywebml"] = PackageSpec(
        name="pywebml",
        version=version,
        file_name=target.name,
        install_dir="site",
        sha256=_sha256(target),
        imports=["pywebml"],
        depends=["jinja2", "numpy", "regex"],
    )
    write_lock(lock.model_copy(update={"packages": packages}), TARGET / "pyodide-lock.json")
    report = run_command(
        ["node", "web/build/verify_pyodide.mjs", TARGET],
        "verify-pyodide",
        hint="The distribution was built but does not work; the message above says which part.",
        limit_seconds=120,
    )
    print(f"      starts in Node: {report.strip().splitlines()[-1]}", flush=True)
