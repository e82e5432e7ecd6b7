"""Compiled archives: importable bytecode, a true RECORD, the same bytes every time. Here with the host's Python."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib
import sys
import zipfile
from pathlib import Path

import pytest

from web.build.compile_archives import Job, compile_archive

MODULE = '"""Docs."""\n\nVALUE = 42\nassert VALUE\n'


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    source = tmp_path / "compiled_sample-1.0-py3-none-any.whl"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("compiled_sample/__init__.py", MODULE)
        archive.writestr("compiled_sample/native/secret.py", "import missing")
        archive.writestr("compiled_sample/types.pyi", "")
        archive.writestr("compiled_sample/a,b.txt", "data")
        archive.writestr("compiled_sample-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("compiled_sample-1.0.dist-info/RECORD", "compiled_sample/__init__.py,,\n")
    for name in ("one.whl", "two.whl"):
        compile_archive(
            Job(
                source=str(source),
                target=str(tmp_path / name),
                location="/lib/site-packages",
                drop=[".pyi", "compiled_sample/native/"],
                wheel_tag="cp314-none-any",
            )
        )
    return tmp_path / "one.whl"


def test_sources_are_replaced_by_bytecode_and_dropped_files_are_gone(compiled: Path) -> None:
    with zipfile.ZipFile(compiled) as archive:
        assert archive.namelist() == [
            "compiled_sample-1.0.dist-info/WHEEL",
            "compiled_sample/__init__.pyc",
            "compiled_sample/a,b.txt",
            "compiled_sample-1.0.dist-info/RECORD",
        ]
        assert archive.read("compiled_sample-1.0.dist-info/WHEEL") == b"Wheel-Version: 1.0\nTag: cp314-none-any\n"


def test_the_bytecode_imports_with_its_docstring(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(compiled))
    module = importlib.import_module("compiled_sample")
    monkeypatch.delitem(sys.modules, "compiled_sample")
    assert (module.VALUE, module.__doc__) == (42, "Docs.")


def test_the_record_matches_every_file(compiled: Path) -> None:
    with zipfile.ZipFile(compiled) as archive:
        rows = list(csv.reader(archive.read("compiled_sample-1.0.dist-info/RECORD").decode().splitlines()))
        assert [row[0] for row in rows] == archive.namelist()
        assert rows[-1][1:] == ["", ""]
        for name, digest, size in rows[:-1]:
            data = archive.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (digest, int(size)) == (f"sha256={expected}", len(data))


def test_the_same_input_gives_the_same_bytes(compiled: Path) -> None:
    assert compiled.read_bytes() == compiled.with_name("two.whl").read_bytes()
