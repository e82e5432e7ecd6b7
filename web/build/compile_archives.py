"""Replaces the Python sources in zips and wheels by bytecode. Runs inside Pyodide, whose bytecode it is.

Modules stay where they were, as `module.pyc` without a source, with unchecked hashes: nothing is compared at import
time. Archives are written with fixed times in a fixed order, so the same input gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import json
import py_compile
import tempfile
import zipfile
from pathlib import Path
from typing import TypedDict


class Job(TypedDict):
    """What to do with one archive.

    Attributes:
        source: Archive to read.
        target: Archive to write.
        location: Where the interpreter will have the files; shown in tracebacks.
        drop: Prefixes and endings of members to leave out.
        wheel_tag: New tag for the `WHEEL` file of a pure wheel, empty to keep it.
    """

    source: str
    target: str
    location: str
    drop: list[str]
    wheel_tag: str


FIXED_TIME = (2020, 1, 1, 0, 0, 0)


def compile_module(name: str, source: bytes, location: str) -> bytes:
    """Bytecode file of one module, with docstrings and assertions."""
    with tempfile.TemporaryDirectory() as folder:
        module = Path(folder) / "module.py"
        module.write_bytes(source)
        written = py_compile.compile(
            str(module),
            cfile=str(module) + "c",
            dfile=f"{location}/{name}",
            doraise=True,
            optimize=0,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )
        return Path(str(written)).read_bytes()


def record_line(name: str, data: bytes) -> str:
    """Row of a wheel's RECORD: path, hash, size."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    quoted = f'"{name}"' if "," in name else name
    return f"{quoted},sha256={digest},{len(data)}"


def dropped(name: str, patterns: list[str]) -> bool:
    """Whether a member is left out."""
    return any(name.startswith(pattern) or name.endswith(pattern) for pattern in patterns)


def compile_archive(job: Job) -> None:
    """Write one compiled archive."""
    members: dict[str, bytes] = {}
    record = ""
    with zipfile.ZipFile(io.BytesIO(Path(job["source"]).read_bytes())) as archive:
        for info in archive.infolist():
            name = info.filename
            if dropped(name, job["drop"]):
                continue
            if name.endswith(".dist-info/RECORD"):
                record = name
                continue
            data = archive.read(info)
            if name.endswith(".py"):
                name, data = name + "c", compile_module(name, data, job["location"])
            elif name.endswith(".dist-info/WHEEL") and job["wheel_tag"]:
                lines = [line for line in data.decode().splitlines() if not line.startswith("Tag:")]
                data = "\n".join([*(line for line in lines if line), f"Tag: {job['wheel_tag']}", ""]).encode()
            members[name] = data
    ordered = dict(sorted(members.items()))
    if record:
        rows = [record_line(name, data) for name, data in ordered.items() if not name.endswith("/")]
        ordered[record] = "\n".join([*rows, f"{record},,", ""]).encode()
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in ordered.items():
            entry = zipfile.ZipInfo(name, FIXED_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o755 << 16 | 0x10 if name.endswith("/") else 0o644 << 16
            archive.writestr(entry, data)
    Path(job["target"]).write_bytes(output.getvalue())


def compile_all(jobs_json: str) -> str:
    """Do every job of a JSON list; answers the magic number of the bytecode in hexadecimal."""
    jobs: list[Job] = json.loads(jobs_json)
    for job in jobs:
        compile_archive(job)
        print(f"{job['target']}: {Path(job['source']).stat().st_size} -> {Path(job['target']).stat().st_size} bytes")
    return importlib.util.MAGIC_NUMBER.hex()
