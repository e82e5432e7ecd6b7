"""Wheels of the Pyodide distribution: sources in their order, and no byte that does not match."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import pytest

from web.build import wheels
from web.build.steps import BuildError
from web.build.wheels import WantedWheel, fetch_wheels

GOOD = b"the wheel"
NAME = "thing-1.0-py3-none-any.whl"
WHEEL = WantedWheel("thing", "1.0", NAME, hashlib.sha256(GOOD).hexdigest())
VERSION = "314.0.3"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(wheels, "CACHE", tmp_path)
    monkeypatch.setattr(wheels, "reachable", lambda *_: False)
    return tmp_path / f"pyodide-{VERSION}"


def offer(monkeypatch: pytest.MonkeyPatch, content: dict[str, bytes]) -> list[str]:
    """Stand in for pip: the bundle holds `content`; other requirements give their own bytes."""
    asked: list[str] = []

    def download(requirement: str, folder: Path, *platform: str) -> Path:
        asked.append(requirement)
        target = folder / "got.whl"
        if requirement.startswith(wheels.BUNDLE):
            with zipfile.ZipFile(target, "w") as archive:
                for name, data in content.items():
                    archive.writestr(f"{wheels.BUNDLE_FOLDER}/{name}", data)
        elif requirement in content:
            target.write_bytes(content[requirement])
        else:
            raise BuildError("no network")
        return target

    monkeypatch.setattr(wheels, "_pip_download", download)
    return asked


def test_the_cache_comes_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = offer(monkeypatch, {})
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(GOOD)
    assert fetch_wheels([WHEEL], VERSION) == {"thing": cache / NAME}
    assert asked == []


def test_a_wheel_from_the_bundle_is_kept_in_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = offer(monkeypatch, {NAME: GOOD, "other.whl": b"not wanted"})
    assert fetch_wheels([WHEEL], VERSION)["thing"].read_bytes() == GOOD
    assert asked == ["open-webui==0.12.4"]
    assert [path.name for path in cache.iterdir()] == [NAME]


def test_other_bytes_are_refused_and_the_next_source_is_tried(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(monkeypatch, {NAME: GOOD})
    cache.mkdir(parents=True)
    (cache / NAME).write_bytes(b"the wheeL")
    assert fetch_wheels([WHEEL], VERSION)["thing"].read_bytes() == GOOD
    message = capsys.readouterr().out
    for part in (NAME, str(cache), WHEEL.sha256, hashlib.sha256(b"the wheeL").hexdigest()):
        assert part in message


def test_the_error_says_what_every_source_answered(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, {NAME: b"wrong"})
    with pytest.raises(BuildError) as caught:
        fetch_wheels([WHEEL], VERSION)
    text = str(caught.value)
    for part in (NAME, "the Pyodide CDN: no answer", hashlib.sha256(b"wrong").hexdigest(), "PyPI: not tried"):
        assert part in text
    assert str(cache) in caught.value.hint
    assert list(cache.iterdir()) == []


def test_a_pure_wheel_may_be_the_one_of_pypi_by_its_own_hash(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = offer(monkeypatch, {"thing==1.0": b"from PyPI"})
    monkeypatch.setattr(wheels, "PYPI_PURE_WHEELS", {NAME: hashlib.sha256(b"from PyPI").hexdigest()})
    assert fetch_wheels([WHEEL], VERSION)["thing"].read_bytes() == b"from PyPI"
    # The bundle is not fetched for a wheel that it does not hold.
    assert asked == ["thing==1.0"]


def test_a_pure_wheel_from_pypi_with_other_bytes_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, {"thing==1.0": b"changed on PyPI"})
    monkeypatch.setattr(wheels, "PYPI_PURE_WHEELS", {NAME: hashlib.sha256(b"from PyPI").hexdigest()})
    with pytest.raises(BuildError, match="PyPI has other bytes"):
        fetch_wheels([WHEEL], VERSION)


def packed(names: list[str]) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as content:
        for name in names:
            content.writestr(name, name)
    return archive.getvalue()


def test_of_a_wheel_that_is_out_of_reach_the_python_part_is_taken(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = packed(["b.py", "a/fast.cpython-314.so", "a/c.py"])
    part = wheels.python_part(whole)
    assert zipfile.ZipFile(io.BytesIO(part)).namelist() == ["a/c.py", "b.py"]
    hashes = [hashlib.sha256(data).hexdigest() for data in (whole, part)]
    monkeypatch.setattr(wheels, "PYTHON_PARTS", {NAME: wheels.PythonPart(*hashes)})
    offer(monkeypatch, {"thing==1.0": whole})
    assert fetch_wheels([WHEEL], VERSION)["thing"].read_bytes() == part


def test_a_python_part_of_other_bytes_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "PYTHON_PARTS", {NAME: wheels.PythonPart("0" * 64, "0" * 64)})
    offer(monkeypatch, {"thing==1.0": packed(["b.py"])})
    with pytest.raises(BuildError, match="has other bytes"):
        fetch_wheels([WHEEL], VERSION)
