"""The native platform: the session contract, and what only files, HTTP and processes can show."""

import asyncio
import errno
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from pywebml.errors import (
    ModelLoadError,
    OptionsError,
    QuotaExceededError,
    RuntimeStartError,
    SessionClosedError,
    StoreUnavailableError,
)
from pywebml.platform import BlobKey, NetworkError, Platform, SessionWorker
from pywebml.platform.native import NativePlatform
from pywebml.platform.native_sessions import NativeSessionWorker
from pywebml.platform.native_store import default_cache_dir
from tests.contract import make_models, session_contract
from tests.contract.store_contract import key, put, stored
from tests.faults.server import FaultServer

MODELS = make_models.make_models()


async def models_in(platform: Platform) -> session_contract.Models:
    async def read(name: str) -> bytes:
        return MODELS[name]

    return await session_contract.store_models(platform, read)


async def start(platform: NativePlatform) -> NativeSessionWorker:
    return await platform.start_session_worker(None, num_threads=1)


def store_files(platform_dir: Path) -> list[str]:
    return sorted(path.suffix for path in (platform_dir / "blobs").iterdir())


def leftovers(cache_dir: Path) -> list[Path]:
    return [path for path in (cache_dir / "writers").rglob("*") if path.is_file() and path.suffix != ".lock"]


# Sessions


@pytest.mark.parametrize("check", session_contract.CONTRACT, ids=lambda check: str(check.__name__))
async def test_session(check: Callable[..., Awaitable[None]], platform: NativePlatform) -> None:
    async def start_worker() -> SessionWorker:
        return await start(platform)

    await check(platform, start_worker, await models_in(platform))


def test_contract_models_are_the_same_bytes_every_time() -> None:
    assert make_models.make_models() == MODELS
    assert set(session_contract.FILES) == set(MODELS)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a\\b", "", "c:x", "model.onnx"])
async def test_external_data_cannot_leave_the_models_folder(platform: NativePlatform, name: str) -> None:
    models = await models_in(platform)
    worker = await start(platform)
    with pytest.raises(ModelLoadError):
        await worker.create_session(models["external.onnx"], external_data={name: models["external.onnx_data"]})
    worker.terminate()


async def test_loading_leaves_no_links_behind(platform: NativePlatform, tmp_path: Path) -> None:
    models = await models_in(platform)
    worker = await start(platform)
    await worker.create_session(
        models["external.onnx"], external_data={"external.onnx_data": models["external.onnx_data"]}
    )
    with pytest.raises(ModelLoadError):
        await worker.create_session(models["garbage.onnx"])
    assert leftovers(tmp_path / "cache") == []
    worker.terminate()


@pytest.mark.parametrize(
    "options",
    [
        {"graphOptimizationLevel": "most"},
        {"freeDimensionOverrides": {"batch_size": "1"}},
        {"extra": {"a": 1}},
        {"executionProviders": ["cpu"]},
    ],
)
async def test_session_option_that_does_not_exist_is_refused(platform: NativePlatform, options: dict[str, Any]) -> None:
    models = await models_in(platform)
    worker = await start(platform)
    with pytest.raises(OptionsError, match=next(iter(options))):
        await worker.create_session(models["scalar.onnx"], options=options)
    worker.terminate()


async def test_missing_onnxruntime_says_what_to_install(
    platform: NativePlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeStartError, match=r'pip install "pywebml\[native\]"'):
        await start(platform)


async def test_zero_threads_are_refused(platform: NativePlatform) -> None:
    with pytest.raises(RuntimeStartError, match="0"):
        await platform.start_session_worker(None, num_threads=0)


async def test_cancelled_run_frees_the_worker_for_the_next(platform: NativePlatform) -> None:
    models = await models_in(platform)
    worker = await start(platform)
    endless = await worker.create_session(models["endless.onnx"])
    x = session_contract.floats([0, 0])[0]
    running = asyncio.ensure_future(endless.run({"rounds": session_contract.FOR_EVER, "x": x}))
    await asyncio.sleep(0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    other = await worker.create_session(models["scalar.onnx"])
    await other.release()
    worker.terminate()
    with pytest.raises(SessionClosedError):
        await worker.create_session(models["scalar.onnx"])


# Store


async def test_files_survive_the_platform_object(tmp_path: Path) -> None:
    await put(NativePlatform(tmp_path), key("a"), b"kept", etag="1")
    again = NativePlatform(tmp_path)
    assert await again.blobs.read(key("a")) == b"kept"
    assert store_files(tmp_path) == [".bin", ".json"]


async def test_replaced_and_deleted_files_leave_the_disk(tmp_path: Path) -> None:
    platform = NativePlatform(tmp_path)
    await put(platform, key("a"), b"old")
    await put(platform, key("a"), b"new")
    assert store_files(tmp_path) == [".bin", ".json"]
    await platform.blobs.delete([key("a")])
    assert store_files(tmp_path) == []


async def test_what_a_killed_process_was_writing_is_removed_on_open(tmp_path: Path) -> None:
    script = """
import asyncio, os, sys
from pathlib import Path
from pywebml.platform import BlobKey
from pywebml.platform.native import NativePlatform
async def main():
    platform = NativePlatform(Path(sys.argv[1]))
    writer = await platform.blobs.open_writer(BlobKey("model", "h/o/n", "main", "half.bin"))
    await writer.write(b"x" * 1000)
    (Path(sys.argv[1]) / "blobs" / ("0" * 64 + "-1.bin")).write_bytes(b"data of a commit that never ended")
    os._exit(9)
asyncio.run(main())
"""
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", script, str(tmp_path)], check=False)
    assert [path.stat().st_size for path in leftovers(tmp_path)] == [1000]
    platform = NativePlatform(tmp_path)
    assert await platform.blobs.list("model") == []
    assert leftovers(tmp_path) == []
    assert store_files(tmp_path) == []


async def test_opening_the_store_leaves_living_writers_alone(tmp_path: Path) -> None:
    first = NativePlatform(tmp_path)
    writer = await first.blobs.open_writer(key("a"))
    await writer.write(b"half ")
    second = NativePlatform(tmp_path)
    assert await second.blobs.list("model") == []
    await writer.write(b"whole")
    await writer.finish()
    await writer.commit({})
    assert await second.blobs.read(key("a")) == b"half whole"


async def test_dropped_writer_leaves_nothing(tmp_path: Path) -> None:
    platform = NativePlatform(tmp_path)
    writer = await platform.blobs.open_writer(key("a"))
    await writer.write(b"half")
    del writer
    # The thread that wrote may hold on to it for a moment longer.
    async with asyncio.timeout(20):
        while leftovers(tmp_path):  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.001)


async def test_data_file_cut_off_from_outside_is_no_file(tmp_path: Path) -> None:
    platform = NativePlatform(tmp_path)
    await put(platform, key("a"), b"whole file")
    data = next((tmp_path / "blobs").glob("*.bin"))
    data.write_bytes(b"whole")
    assert await platform.blobs.info(key("a")) is None
    assert await stored(platform) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"key": 1}', "[" * 100_000])
async def test_broken_metadata_is_no_file(tmp_path: Path, text: str) -> None:
    platform = NativePlatform(tmp_path)
    await put(platform, key("a"), b"whole file")
    metadata = next((tmp_path / "blobs").glob("*.json"))
    metadata.write_text(text)
    assert await platform.blobs.info(key("a")) is None
    assert await platform.blobs.list("model") == []
    await put(platform, key("a"), b"again")
    assert await platform.blobs.read(key("a")) == b"again"


async def test_metadata_of_another_file_is_no_file(tmp_path: Path) -> None:
    platform = NativePlatform(tmp_path)
    await put(platform, key("a"), b"whole file")
    path = next((tmp_path / "blobs").glob("*.json"))
    record = json.loads(path.read_text())
    record["data"] = "../../outside"
    path.write_text(json.dumps(record))
    assert await platform.blobs.info(key("a")) is None


async def test_broken_document_is_none(tmp_path: Path) -> None:
    platform = NativePlatform(tmp_path)
    await platform.documents.put("a", {"b": 1})
    next((tmp_path / "documents").glob("*.json")).write_text('{"key": "a", "val')
    assert await platform.documents.get("a") is None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_full_disk_is_a_quota_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    platform = NativePlatform(tmp_path)
    writer = await platform.blobs.open_writer(key("a"))

    def full(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    await writer.write(b"data")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(QuotaExceededError, match="PYWEBML_CACHE_DIR"):
        await writer.finish()
    await writer.abort()
    assert leftovers(tmp_path) == []


async def test_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    platform = NativePlatform(occupied)
    with pytest.raises(StoreUnavailableError, match=str(occupied)):
        await platform.blobs.list("model")
    with pytest.raises(StoreUnavailableError, match="PYWEBML_CACHE_DIR"):
        await platform.documents.put("a", 1)


def test_nothing_is_made_before_first_use(tmp_path: Path) -> None:
    NativePlatform(tmp_path / "cache")
    assert list(tmp_path.iterdir()) == []


def test_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYWEBML_CACHE_DIR", str(tmp_path / "mine"))
    assert default_cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("PYWEBML_CACHE_DIR")
    assert default_cache_dir().name == "pywebml"


# Requests


async def test_answer_is_read_with_status_headers_and_final_url(platform: NativePlatform, server: FaultServer) -> None:
    server.write("a.json", '{"a": 1}')
    response = await platform.request(f"{server.url}/a.json?x=1")
    assert (response.status, response.url) == (200, f"{server.url}/a.json?x=1")
    assert response.headers["content-type"] == "application/json"
    assert await response.read(100) == b'{"a": 1}'
    missing = await platform.request(f"{server.url}/none")
    assert missing.status == 404
    await missing.close()


async def test_head_has_no_body(platform: NativePlatform, server: FaultServer) -> None:
    server.write("a.txt", "body")
    response = await platform.request(f"{server.url}/a.txt", method="HEAD", timeout=30)
    assert response.headers["content-length"] == "4"
    assert await response.read(10) == b""


async def test_body_longer_than_the_limit_is_refused(platform: NativePlatform, server: FaultServer) -> None:
    server.write("a.bin", bytes(1001))
    response = await platform.request(f"{server.url}/a.bin")
    with pytest.raises(NetworkError, match="1000"):
        await response.read(1000)


async def test_save_streams_into_the_store_and_counts(platform: NativePlatform, server: FaultServer) -> None:
    data = server.write("a.bin", bytes(range(256)) * 4096)
    writer = await platform.blobs.open_writer(key("a.bin"))
    counts: list[int] = []
    await (await platform.request(f"{server.url}/a.bin")).save(writer, counts.append)
    assert len(counts) > 1
    assert sum(counts) == len(data)
    assert (await writer.finish())[0] == len(data)
    await writer.commit({})
    assert await platform.blobs.read(key("a.bin")) == data


async def test_connection_cut_in_the_middle_is_a_network_error(platform: NativePlatform, server: FaultServer) -> None:
    server.write("a.bin", bytes(100_000))
    server.fault("/a.bin", "truncate", 50_000)
    writer = await platform.blobs.open_writer(key("a.bin"))
    with pytest.raises(NetworkError):
        await (await platform.request(f"{server.url}/a.bin")).save(writer, lambda count: None)
    await writer.abort()


@pytest.mark.parametrize(
    "url", ["relative/path", "http://", "ftp://127.0.0.1/x", "http://127.0.0.1:1/", "http://[", "http://a b/"]
)
async def test_address_that_cannot_be_reached_is_a_network_error(platform: NativePlatform, url: str) -> None:
    with pytest.raises(NetworkError):
        await platform.request(url, timeout=5)


async def test_silent_server_is_a_network_error(tmp_path: Path, server: FaultServer) -> None:
    platform = NativePlatform(tmp_path / "cache", stall_seconds=0.05)
    server.write("a.bin", bytes(100_000))
    server.fault("/a.bin", "stall", 50_000)
    with pytest.raises(NetworkError, match="in time"):
        await (await platform.request(f"{server.url}/a.bin")).read(1_000_000)


async def test_cancelled_save_leaves_nothing(platform: NativePlatform, server: FaultServer) -> None:
    server.write("a.bin", bytes(1_000_000))
    server.fault("/a.bin", "stall", 500_000)
    writer = await platform.blobs.open_writer(key("a.bin"))
    response = await platform.request(f"{server.url}/a.bin")
    started = asyncio.Event()
    saving = asyncio.ensure_future(response.save(writer, lambda count: started.set()))
    await started.wait()
    saving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saving
    await writer.abort()
    assert await platform.blobs.info(key("a.bin")) is None


def test_one_platform_serves_several_event_loops(platform: NativePlatform, server: FaultServer) -> None:
    server.write("a.txt", "body")

    async def visit() -> bytes:
        await platform.documents.put("a", 1)
        return await (await platform.request(f"{server.url}/a.txt")).read(10)

    assert asyncio.run(visit()) == b"body"
    assert asyncio.run(visit()) == b"body"


def test_environment_says_what_is_there(platform: NativePlatform) -> None:
    environment = platform.environment
    assert (environment.name, environment.base_url) == ("native", "")
    assert environment.needs_runtime_file is False
    assert environment.hardware_concurrency >= 1
    assert environment.runtime_version.count(".") >= 1
    assert platform.monotonic() <= platform.monotonic()
    assert isinstance(BlobKey("model", "a", "b", "c"), BlobKey)
