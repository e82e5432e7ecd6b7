"""The native platform: the session contract, and what only files, HTTP and processes can show."""

import asyncio
import contextlib
import errno
import hashlib
import itertools
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pywebml.errors import (
    DamagedFileError,
    ModelLoadError,
    OptionsError,
    QuotaExceededError,
    RuntimeStartError,
    SessionClosedError,
    StoreError,
    StoreUnavailableError,
)
from pywebml.platform import BlobKey, NetworkError, Platform, SessionWorker, native, native_locks
from pywebml.platform.native import NativePlatform
from pywebml.platform.native_drafts import Ranges, add_range, cut_range, front, has_range
from pywebml.platform.native_locks import FileLock
from pywebml.platform.native_sessions import NativeSessionWorker
from pywebml.platform.native_store import FileStorage, default_cache_dir
from tests.contract import make_models, session_contract
from tests.contract.store_contract import key, pattern, put, stored, suspend
from tests.contract.store_contract import start as start_writer
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


@pytest.mark.parametrize("damage", ["cut", "grown", "gone"])
@pytest.mark.parametrize("look", ["info", "list", "verify", "read", "open"])
async def test_file_whose_bytes_are_damaged_is_passed_over_and_removed(tmp_path: Path, damage: str, look: str) -> None:
    platform = NativePlatform(tmp_path)
    await put(platform, key("b"), b"other")
    others = store_files(tmp_path)
    await put(platform, key("a"), b"whole file")
    [data] = [path for path in (tmp_path / "blobs").glob("*.bin") if path.read_bytes() == b"whole file"]
    if damage == "gone":
        data.unlink()
    else:
        data.write_bytes(b"whole" if damage == "cut" else b"whole file and more")
    if look == "info":
        assert await platform.blobs.info(key("a")) is None
    elif look == "list":
        assert await stored(platform) == [key("b")]
    elif look == "verify":
        assert not await platform.blobs.verify(key("a"))
    elif look == "read":
        with pytest.raises(DamagedFileError, match="load it again") as caught:
            await platform.blobs.read(key("a"))
        assert caught.value.details["key"] == ["model", key("a").owner, "main", "a"]
    else:
        worker = await start(platform)
        with pytest.raises(DamagedFileError):
            await worker.create_session(key("a"))
        worker.terminate()
    assert store_files(tmp_path) == others
    with pytest.raises(StoreError, match="not in the store"):
        await platform.blobs.read(key("a"))
    assert await platform.blobs.read(key("b")) == b"other"


async def test_bytes_that_changed_do_not_verify(tmp_path: Path) -> None:
    platform = NativePlatform(tmp_path)
    await put(platform, key("a"), b"whole file")
    next((tmp_path / "blobs").glob("*.bin")).write_bytes(b"whole fi1e")
    assert not await platform.blobs.verify(key("a"))
    assert await platform.blobs.info(key("a")) is not None


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"key": 1}', "[" * 100_000])
async def test_broken_metadata_is_no_file(tmp_path: Path, text: str) -> None:
    platform = NativePlatform(tmp_path)
    await put(platform, key("a"), b"whole file")
    metadata = next((tmp_path / "blobs").glob("*.json"))
    metadata.write_text(text)
    assert await platform.blobs.info(key("a")) is None
    assert await platform.blobs.list("model") == []
    assert store_files(tmp_path) == []
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
    with pytest.raises(QuotaExceededError, match="PYWEBML_CACHE_DIR") as caught:
        await writer.finish()
    assert caught.value.details["available"] > 0
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


# Drafts


WRITE_FOR_EVER = """
import asyncio, sys
from pathlib import Path
from pywebml.platform.native import NativePlatform
from tests.contract.store_contract import key, pattern
async def main():
    data = pattern(1 << 20)
    writer = await NativePlatform(Path(sys.argv[1])).blobs.open_writer(key("large.bin"), "etag")
    written = 0
    while True:
        for begin in range(0, len(data), 50_000):
            piece = data[begin:begin + 50_000]
            await writer.write(piece)
            written += len(piece)
            print(written, flush=True)
asyncio.run(main())
"""


async def child(script: str, *arguments: Path | str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        script,
        *map(str, arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


async def line_of(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()


async def kill(process: asyncio.subprocess.Process) -> None:
    process.kill()
    await process.wait()


def draft_files(cache_dir: Path) -> list[str]:
    return sorted(path.suffix for path in (cache_dir / "drafts").iterdir())


def journal(cache_dir: Path) -> Path:
    [path] = (cache_dir / "drafts").glob("*.json")
    return path


@pytest.mark.parametrize("least", [100_000, 5_000_000, 9_000_000])
async def test_what_a_killed_process_has_written_is_gone_on_with(tmp_path: Path, least: int) -> None:
    process = await child(WRITE_FOR_EVER, tmp_path)
    written = 0
    while written < least:
        written = int(await line_of(process))
    await kill(process)
    assert process.stdout is not None
    written = int(((await process.stdout.read()).split(b"\n")[:-1] or [str(written).encode()])[-1])
    platform = NativePlatform(tmp_path)
    writer = await platform.blobs.open_writer(key("large.bin"), "etag")
    present = await writer.present()
    [(begin, end)] = present or [(0, 0)]
    assert begin == 0
    assert written - (2 << 20) <= end <= written + 50_000
    data = pattern(1 << 20) * (written // (1 << 20) + 2)
    assert await writer.read(0, end) == data[:end]
    await writer.write(data[end:])
    assert await writer.finish() == (len(data), hashlib.sha256(data).hexdigest())
    await writer.commit({})
    assert await platform.blobs.verify(key("large.bin"))
    assert draft_files(tmp_path) == []


async def test_slow_writing_is_in_the_journal_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = await NativePlatform(tmp_path).blobs.open_writer(key("a"), "t")
    later = time.monotonic() + 60
    monkeypatch.setattr(time, "monotonic", lambda: later)
    await writer.write(b"slow")
    assert json.loads(journal(tmp_path).read_text())["ranges"] == [[0, 4]]


async def test_writer_that_was_killed_while_it_committed_can_be_gone_on_with(tmp_path: Path) -> None:
    await suspend(NativePlatform(tmp_path), key("a"), "t", b"whole")
    part = journal(tmp_path).with_suffix(".part")
    part.rename(tmp_path / "blobs" / f"{part.stem}-0123.bin")
    again = NativePlatform(tmp_path)
    assert await again.blobs.draft(key("a")) == ("t", 5)
    assert store_files(tmp_path) == []
    writer = await again.blobs.open_writer(key("a"), "t")
    assert await writer.read(0, 5) == b"whole"
    await writer.abort()


async def test_draft_is_not_lost_by_a_commit_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    platform = NativePlatform(tmp_path)
    writer = await start_writer(platform, key("a"), "t", b"whole")
    await writer.finish()
    with pytest.raises(StoreError, match="not plain data"):
        await writer.commit({"no": object()})
    await writer.suspend()
    assert await platform.blobs.draft(key("a")) == ("t", 5)
    assert store_files(tmp_path) == []


async def test_draft_is_not_lost_when_the_disk_fills_in_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = NativePlatform(tmp_path)
    await put(platform, key("a"), b"old")
    writer = await start_writer(platform, key("a"), "t", b"whole")
    await writer.finish()
    replace = Path.replace

    def full(path: Path, target: Path) -> Path:
        if target.parent.name == "blobs" and target.suffix == ".json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(QuotaExceededError):
            await writer.commit({})
    await writer.suspend()
    assert await platform.blobs.read(key("a")) == b"old"
    writer = await platform.blobs.open_writer(key("a"), "t")
    assert await writer.read(0, 5) == b"whole"
    await writer.abort()
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"key": 1}', "[" * 100_000, "ranges"])
async def test_broken_journal_is_no_draft(tmp_path: Path, text: str) -> None:
    platform = NativePlatform(tmp_path)
    await suspend(platform, key("a"), "t", b"half")
    path = journal(tmp_path)
    if text == "ranges":
        text = json.dumps({**json.loads(path.read_text()), "ranges": [[3, 2]]})
    path.write_text(text)
    assert await platform.blobs.draft(key("a")) is None
    assert (await platform.blobs.usage()).drafts == 0
    assert await NativePlatform(tmp_path).blobs.draft(key("a")) is None
    assert draft_files(tmp_path) == []


async def test_journal_that_names_more_than_is_there_is_cut(tmp_path: Path) -> None:
    platform = NativePlatform(tmp_path)
    await suspend(platform, key("a"), "t", b"whole")
    os.truncate(journal(tmp_path).with_suffix(".part"), 3)
    assert await platform.blobs.draft(key("a")) == ("t", 3)
    writer = await platform.blobs.open_writer(key("a"), "t")
    assert await writer.present() == [(0, 3)]
    await writer.write(b"ever")
    await writer.finish()
    await writer.commit({})
    assert await platform.blobs.read(key("a")) == b"whoever"


async def test_bytes_that_are_not_in_the_journal_are_not_in_the_file(tmp_path: Path) -> None:
    platform = NativePlatform(tmp_path)
    await suspend(platform, key("a"), "t", b"whole")
    with journal(tmp_path).with_suffix(".part").open("ab") as file:
        file.write(b"written, but killed before the journal")
    writer = await platform.blobs.open_writer(key("a"), "t")
    assert await writer.finish() == (5, hashlib.sha256(b"whole").hexdigest())
    await writer.commit({})
    assert await platform.blobs.read(key("a")) == b"whole"


@pytest.mark.parametrize(("days", "kept"), [(6, True), (8, False)])
async def test_drafts_that_nobody_touches_go_after_a_week(tmp_path: Path, days: int, kept: bool) -> None:
    await suspend(NativePlatform(tmp_path), key("a"), "t", b"half")
    touched = time.time() - days * 86400
    os.utime(journal(tmp_path), (touched, touched))
    assert await NativePlatform(tmp_path).blobs.draft(key("a")) == (("t", 4) if kept else None)
    assert draft_files(tmp_path) == ([".json", ".part"] if kept else [])


async def test_going_on_with_a_draft_touches_it(tmp_path: Path) -> None:
    platform = NativePlatform(tmp_path)
    await suspend(platform, key("a"), "t", b"half")
    os.utime(journal(tmp_path), (0, 0))
    writer = await platform.blobs.open_writer(key("a"), "t")
    assert time.time() - journal(tmp_path).stat().st_mtime < 3600
    await writer.abort()


async def test_discarded_bytes_are_out_of_the_journal_at_once(tmp_path: Path) -> None:
    platform = NativePlatform(tmp_path)
    await suspend(platform, key("a"), "t", b"whole")
    writer = await platform.blobs.open_writer(key("a"), "t")
    await writer.discard(1, 2)
    assert json.loads(journal(tmp_path).read_text())["ranges"] == [[0, 1], [2, 5]]
    await writer.abort()


async def test_draft_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    script = """
import asyncio, sys
from pathlib import Path
from pywebml.platform.native import NativePlatform
from tests.contract.store_contract import key
async def main():
    writer = await NativePlatform(Path(sys.argv[1])).blobs.open_writer(key("a"), "t")
    await writer.write(b"1" * (2 << 20))
    print("written", flush=True)
    sys.stdin.readline()
    await writer.write(b"1")
    print(*await writer.finish(), flush=True)
    await writer.commit({"by": "child"})
    print("done", flush=True)
asyncio.run(main())
"""
    process = await child(script, tmp_path)
    assert await line_of(process) == "written"
    os.utime(journal(tmp_path), (0, 0))
    platform = NativePlatform(tmp_path)
    await platform.blobs.drop_drafts()
    await platform.blobs.drop_drafts([key("a")])
    ours = await platform.blobs.open_writer(key("a"), "t")
    assert await ours.present() == []
    await ours.write(b"2")
    await ours.suspend()
    other = await platform.blobs.open_writer(key("a"), "another token")
    await other.abort()
    assert process.stdin is not None
    process.stdin.write(b"\n")
    size = (2 << 20) + 1
    assert await line_of(process) == f"{size} {hashlib.sha256(b'1' * size).hexdigest()}"
    assert await line_of(process) == "done"
    await process.wait()
    assert await platform.blobs.verify(key("a"))
    assert draft_files(tmp_path) == []


async def test_dropped_writer_with_a_token_leaves_a_draft_that_is_free(tmp_path: Path) -> None:
    platform = NativePlatform(tmp_path)
    writer = await start_writer(platform, key("a"), "t", pattern(3 << 20))
    del writer
    # The thread that wrote may hold on to it for a moment longer.
    async with asyncio.timeout(20):
        while ".lock" in draft_files(tmp_path):  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.001)
    again = await platform.blobs.open_writer(key("a"), "t")
    [(begin, end)] = await again.present()
    assert await again.read(begin, end) == pattern(3 << 20)[begin:end]
    await again.abort()


@pytest.mark.parametrize("turns", [1, 2, 3])
async def test_suspending_that_is_cancelled_frees_the_draft_all_the_same(tmp_path: Path, turns: int) -> None:
    platform = NativePlatform(tmp_path)
    writer = await start_writer(platform, key("a"), "t", b"half")
    suspending = asyncio.ensure_future(writer.suspend())
    for _ in range(turns):
        await asyncio.sleep(0)
    suspending.cancel()
    await asyncio.gather(suspending, return_exceptions=True)
    again = await platform.blobs.open_writer(key("a"), "t")
    assert await again.present() == [(0, 4)]
    await again.abort()


async def test_full_disk_keeps_what_was_written_before(tmp_path: Path) -> None:
    platform = NativePlatform(tmp_path)
    data = pattern(5_000_000)
    writer = await start_writer(platform, key("a"), "t", data[:2_000_000])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, limits[1]))
    try:
        with pytest.raises(QuotaExceededError):
            await writer.write(data[2_000_000:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    await writer.suspend()
    writer = await platform.blobs.open_writer(key("a"), "t")
    [(begin, end)] = await writer.present()
    assert (begin, end) == (0, 3_000_000)
    await writer.write(data[end:])
    assert (await writer.finish())[1] == hashlib.sha256(data).hexdigest()
    await writer.abort()


async def test_suspending_on_a_full_disk_keeps_the_journal_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform = NativePlatform(tmp_path)
    await suspend(platform, key("a"), "t", b"half")
    writer = await platform.blobs.open_writer(key("a"), "t")
    await writer.write(b" and more")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(FileStorage, "replace", full)
        await writer.suspend()
    assert await platform.blobs.draft(key("a")) == ("t", 4)
    assert draft_files(tmp_path) == [".json", ".part"]


@pytest.mark.parametrize("way", ["update", "delete"])
async def test_change_of_several_files_is_through_when_its_process_was_killed(tmp_path: Path, way: str) -> None:
    script = """
import asyncio, os, sys
from pathlib import Path
from pywebml.platform.native import NativePlatform
from pywebml.platform.native_store import FileStorage
from tests.contract.store_contract import key
done = 0
def dying(method):
    def call(storage, target, *arguments, **options):
        global done
        done += target.parent.name == "blobs"
        if done == 2:
            os._exit(9)
        method(storage, target, *arguments, **options)
    return call
FileStorage.replace = dying(FileStorage.replace)
FileStorage._remove = dying(FileStorage._remove)
async def main():
    blobs = NativePlatform(Path(sys.argv[1])).blobs
    keys = [key("a"), key("b"), key("c")]
    await (blobs.delete(keys) if sys.argv[2] == "delete" else blobs.update({name: {"new": 1} for name in keys}))
asyncio.run(main())
"""
    platform = NativePlatform(tmp_path)
    for name in "abcd":
        await put(platform, key(name), name.encode(), old=1)
    process = await child(script, tmp_path, way)
    assert await process.wait() == 9
    again = NativePlatform(tmp_path)
    infos = {info.key.path: dict(info.metadata) for info in await again.blobs.list("model")}
    changed = {name: {"new": 1} for name in "abc" if way == "update"}
    assert infos == {**changed, "d": {"old": 1}}
    assert len(store_files(tmp_path)) == 2 * len(infos)
    assert not (tmp_path / "change.json").exists()


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"../documents/x.json": null}', '{"NAME": 1}'])
async def test_broken_change_changes_nothing(tmp_path: Path, text: str) -> None:
    platform = NativePlatform(tmp_path)
    await put(platform, key("a"), b"a")
    name = next((tmp_path / "blobs").glob("*.json")).name
    (tmp_path / "change.json").write_text(text.replace("NAME", name))
    assert await stored(NativePlatform(tmp_path)) == [key("a")]
    assert not (tmp_path / "change.json").exists()


async def test_metadata_that_are_not_plain_change_nothing(tmp_path: Path) -> None:
    platform = NativePlatform(tmp_path)
    await put(platform, key("a"), b"a", old=1)
    with pytest.raises(StoreError, match="not plain data"):
        await platform.blobs.update({key("a"): {"new": 1}, key("b"): {"no": float("nan")}})
    info = await platform.blobs.info(key("a"))
    assert info is not None
    assert info.metadata == {"old": 1}


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 40))), st.integers(0, 41))
def test_ranges_are_what_sets_of_bytes_are(steps: list[tuple[bool, int, int]], probe: int) -> None:
    ranges: Ranges = []
    there: set[int] = set()
    for adding, begin, end in steps:
        ranges = (add_range if adding else cut_range)(ranges, begin, end)
        there = there | set(range(begin, end)) if adding else there - set(range(begin, end))
        assert {at for b, e in ranges for at in range(b, e)} == there
        numbers = [number for item in ranges for number in item]
        assert numbers == sorted(set(numbers))
        assert front(ranges) == next(at for at in range(42) if at not in there)
        assert has_range(ranges, 3, 3 + probe) == (set(range(3, 3 + probe)) <= there)


# Locks


async def test_lock_excludes_other_processes(tmp_path: Path) -> None:
    script = """
import asyncio, sys
from pathlib import Path
from pywebml.platform.native import NativePlatform
async def main():
    platform, counter = NativePlatform(Path(sys.argv[1])), Path(sys.argv[2])
    async def visit():
        async with platform.lock("counter"):
            value = int(counter.read_text())
            await platform.sleep(0.001)
            counter.write_text(str(value + 1))
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(10):
        await asyncio.gather(visit(), visit())
asyncio.run(main())
"""
    counter = tmp_path / "counter"
    counter.write_text("0")
    processes = [await child(script, tmp_path / "cache", counter) for _ in range(3)]
    for process in processes:
        assert await line_of(process) == "ready"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b"\n")
    assert [await process.wait() for process in processes] == [0, 0, 0]
    assert counter.read_text() == "60"
    assert list((tmp_path / "cache" / "locks").iterdir()) == []


def test_lock_of_a_file_that_was_removed_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    held = [FileLock.take(path)]

    def late(descriptor: int, *, wait: bool) -> bool:
        # The holder lets go between our opening of the file and our locking it, and the next one takes the name.
        monkeypatch.undo()
        assert held[0] is not None
        held[0].release()
        held[0] = FileLock.take(path)
        return native_locks.try_lock(descriptor, wait=wait)

    monkeypatch.setattr(native_locks, "try_lock", late)
    assert FileLock.take(path) is None
    assert held[0] is not None
    held[0].release()
    assert list(tmp_path.iterdir()) == []


async def test_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    script = """
import asyncio, sys
from pathlib import Path
from pywebml.platform.native import NativePlatform
async def main():
    platform = NativePlatform(Path(sys.argv[1]))
    async with platform.lock("name"):
        print("held", flush=True)
        await platform.sleep(3600)
asyncio.run(main())
"""
    process = await child(script, tmp_path)
    assert await line_of(process) == "held"
    platform = NativePlatform(tmp_path)
    entered = asyncio.Event()

    async def visit() -> None:
        async with platform.lock("name"):
            entered.set()

    visiting = asyncio.ensure_future(visit())
    # The loop goes on while it waits.
    for _ in range(20):
        await asyncio.sleep(0.005)
    assert not entered.is_set()
    await kill(process)
    await visiting
    assert entered.is_set()


async def test_waiting_for_another_process_can_be_cancelled(tmp_path: Path) -> None:
    first, second = NativePlatform(tmp_path), NativePlatform(tmp_path)
    async with first.lock("name"):
        for seconds in (0.0, 0.001, 0.02):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(seconds), second.lock("name"):
                    pytest.fail("two hold the lock")
    async with second.lock("name"):
        pass
    async with first.lock("name"):
        pass


def test_lock_excludes_other_event_loops(tmp_path: Path) -> None:
    platform = NativePlatform(tmp_path)

    async def outer() -> None:
        async with platform.lock("name"):
            with pytest.raises(TimeoutError):
                await asyncio.to_thread(asyncio.run, asyncio.wait_for(enter(), 0.05))
        await asyncio.to_thread(asyncio.run, enter())

    async def enter() -> None:
        async with platform.lock("name"):
            pass

    asyncio.run(outer())


async def test_lock_in_a_folder_that_cannot_be_used_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreUnavailableError):
        async with NativePlatform(tmp_path / "file").lock("name"):
            pytest.fail("there is no lock")


# Files outside


async def test_files_of_a_folder_are_found_and_copied(platform: NativePlatform, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "onnx").mkdir(parents=True)
    data = pattern(2_500_000)
    (folder / "onnx" / "model.onnx").write_bytes(data)
    (folder / "config.json").write_text("{}")
    (tmp_path / "elsewhere").write_bytes(b"linked")
    (folder / "z-link").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (folder / "broken").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe")
    files = await platform.outside_files(folder)
    assert [(file.path, file.size) for file in files] == [
        ("config.json", 2),
        ("onnx/model.onnx", len(data)),
        ("z-link", 6),
    ]
    assert await files[1].read(5, 10) == data[5:10]
    writer = await platform.blobs.open_writer(key("a"))
    counts: list[int] = []
    await files[1].copy(1, len(data), writer, counts.append)
    assert sum(counts) == len(data) - 1
    assert len(counts) > 1
    await writer.finish()
    await writer.commit({})
    assert await platform.blobs.read(key("a")) == data[1:]


async def test_one_file_has_its_name(platform: NativePlatform, tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(b"PK")
    [file] = await platform.outside_files(str(tmp_path / "model.zip"))
    assert (file.path, file.size, await file.read(0, 2)) == ("model.zip", 2, b"PK")


@pytest.mark.parametrize("source", ["missing", "nul\0", 7, None])
async def test_what_cannot_be_read_is_a_store_error(platform: NativePlatform, tmp_path: Path, source: object) -> None:
    with pytest.raises(StoreError):
        await platform.outside_files(tmp_path / source if isinstance(source, str) else source)


async def test_file_that_shrank_is_a_store_error(platform: NativePlatform, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"long enough")
    [file] = await platform.outside_files(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"short")
    with pytest.raises(StoreError, match="ends after 5 bytes"):
        await file.read(0, 11)
    (tmp_path / "a").unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        await file.read(0, 1)


async def test_files_are_written_outside(platform: NativePlatform, tmp_path: Path) -> None:
    data = pattern(3_000_000)
    await put(platform, key("model.onnx"), data)
    target = tmp_path / "new" / "folder"
    files: list[tuple[str, list[bytes | BlobKey]]] = [
        ("onnx/model.onnx", [key("model.onnx")]),
        ("config.json", [b"{", b"}"]),
        ("empty", []),
    ]
    for _ in range(2):
        await platform.write_outside(target, files)
        found = {file.path: await file.read(0, file.size) for file in await platform.outside_files(target)}
        assert found == {"onnx/model.onnx": data, "config.json": b"{}", "empty": b""}
    await platform.write_outside(tmp_path / "a.zip", [("", [b"head", key("model.onnx"), b"tail"])])
    assert (tmp_path / "a.zip").read_bytes() == b"head" + data + b"tail"


@pytest.mark.parametrize(
    "path",
    ["../a", "a/../../b", "/a", "a//b", "a/", "./a", ".", "..", "", "a\\..\\b", "c:a", "C:/a", "nul\0", "link/a"],
)
async def test_no_path_leaves_the_target_folder(platform: NativePlatform, tmp_path: Path, path: str) -> None:
    target, outside = tmp_path / "target", tmp_path / "outside"
    target.mkdir()
    outside.mkdir()
    (target / "link").symlink_to(outside)
    with pytest.raises(StoreError):
        await platform.write_outside(target, [("fine", [b"1"]), (path, [b"2"])])
    assert [entry.name for entry in target.iterdir()] == ["link"]
    assert list(outside.iterdir()) == []


async def test_link_in_the_place_of_a_file_is_replaced(platform: NativePlatform, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "a").symlink_to(tmp_path / "secret")
    await platform.write_outside(tmp_path / "target", [("a", [b"new"])])
    assert (tmp_path / "secret").read_text() == "secret"
    assert (tmp_path / "target" / "a").read_bytes() == b"new"


async def test_file_that_cannot_be_whole_is_not_written_outside(platform: NativePlatform, tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(StoreError, match="not in the store"):
        await platform.write_outside(target, [("a", [b"half", key("missing")])])
    await put(platform, key("a"), b"whole")
    next((tmp_path / "cache" / "blobs").glob("*.bin")).write_bytes(b"half")
    with pytest.raises(DamagedFileError):
        await platform.write_outside(target, [("a", [b"half", key("a")])])
    with pytest.raises(StoreError, match="same path"):
        await platform.write_outside(target, [("a", [b"1"]), ("a", [b"2"])])
    assert list(target.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        await platform.write_outside(tmp_path / "file", [("a", [b"1"]), ("b", [b"2"])])
    with pytest.raises(StoreError, match="no path"):
        await platform.write_outside(None, [("", [b"1"])])


async def test_cancelled_writing_outside_leaves_nothing(platform: NativePlatform, tmp_path: Path) -> None:
    block = bytes(1 << 20)
    writing = asyncio.ensure_future(platform.write_outside(tmp_path / "target", [("a", [block] * 10_000)]))
    while not list((tmp_path / "target").glob(".*.part")):  # noqa: ASYNC110 (what is waited for has no event)
        await asyncio.sleep(0)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert list((tmp_path / "target").iterdir()) == []


# Requests


Answer = Callable[[dict[str, str], str, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(answer: Answer) -> AsyncIterator[str]:
    """A server of one answer per connection: `answer` gets the request's headers, its path, and where to write."""

    connections: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        with contextlib.suppress(ConnectionError):
            await answer(headers, head[0].split(" ")[1], writer)
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.wait_for(asyncio.gather(*connections), 20)


def head_of(status: str, **headers: object) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


async def test_credentials_go_no_further_than_the_first_origin(platform: NativePlatform) -> None:
    seen: list[tuple[str, str | None]] = []
    places: dict[str, str] = {}

    def server(name: str) -> Answer:
        async def answer(headers: dict[str, str], path: str, writer: asyncio.StreamWriter) -> None:
            seen.append((name + path, headers.get("authorization")))
            if target := places.get(name + path):
                body = head_of("302 Found", location=target, content_length=0, x_of=name, **{f"x_{path[1:]}": path})
            else:
                body = head_of("200 OK", content_length=2, x_of="last") + b"ok"
            writer.write(body)
            await writer.drain()

        return answer

    async with serving(server("hub")) as hub, serving(server("other")) as other:
        places |= {
            "hub/same": "/here",
            "hub/here": "relative",
            "hub/away": f"{other}/there",
            "other/there": f"{hub}/back",
        }
        headers = {"Authorization": "Bearer secret"}
        response = await platform.request(f"{hub}/same", headers=headers)
        assert (await response.read(10), response.url) == (b"ok", f"{hub}/relative")
        assert seen == [(f"hub/{path}", "Bearer secret") for path in ("same", "here", "relative")]
        seen.clear()
        response = await platform.request(f"{hub}/away", headers=headers)
        assert (await response.read(10), response.url) == (b"ok", f"{hub}/back")
        assert seen == [("hub/away", "Bearer secret"), ("other/there", None), ("hub/back", None)]
        # What the first says is not overruled on the way.
        assert response.redirect_headers["x-of"] == "hub"
        assert (response.redirect_headers["x-away"], response.redirect_headers["x-there"]) == ("/away", "/there")
        assert response.headers["x-of"] == "last"
        response = await platform.request(f"{hub}/plain")
        assert await response.read(10) == b"ok"
        assert response.redirect_headers == {}
        places["hub/circle"] = "/circle"
        with pytest.raises(NetworkError, match="redirects"):
            await platform.request(f"{hub}/circle")


@pytest.mark.parametrize(
    ("location", "sent"),
    [
        ("https://hub.example/b", None),
        ("http://hub.example:8080/b", None),
        ("http://sub.hub.example/b", None),
        ("http://hub.example:80/b", "secret"),
        ("//hub.example/b", "secret"),
    ],
)
async def test_origin_is_scheme_host_and_port(location: str, sent: str | None) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200) if len(seen) > 1 else httpx.Response(307, headers={"location": location})

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
        request = client.build_request("GET", "http://hub.example/a", headers={"authorization": "secret"})
        await native._follow(client, request)
    assert seen[0].headers["authorization"] == "secret"
    assert seen[1].headers.get("authorization") == sent


@pytest.mark.parametrize(
    ("headers", "encoding"),
    [({"Range": "bytes=0-1"}, "identity"), ({"range": "bytes=0-1", "Accept-Encoding": "br"}, "br"), ({}, "gzip")],
)
async def test_ranges_are_asked_for_as_they_are(
    platform: NativePlatform, headers: dict[str, str], encoding: str
) -> None:
    seen: list[str] = []

    async def answer(received: dict[str, str], path: str, writer: asyncio.StreamWriter) -> None:
        seen.append(received["accept-encoding"])
        writer.write(head_of("200 OK", content_length=0))

    async with serving(answer) as url:
        await (await platform.request(url, headers=headers)).close()
    assert seen[0].split(",")[0] == encoding


@pytest.mark.parametrize("offset", [None, 1000])
@pytest.mark.parametrize("way", ["cut", "reset", "stall", "chunked"])
async def test_what_arrived_before_the_connection_broke_is_written(
    platform: NativePlatform, way: str, offset: int | None
) -> None:
    data = pattern(300_000)
    received = asyncio.Event()

    async def answer(headers: dict[str, str], path: str, writer: asyncio.StreamWriter) -> None:
        if way == "chunked":
            writer.write(head_of("200 OK", transfer_encoding="chunked") + b"%x\r\n" % (2 * len(data)) + data)
        else:
            writer.write(head_of("200 OK", content_length=2 * len(data)) + data)
        await writer.drain()
        await received.wait()
        if way == "stall":
            await stopped.wait()
        if way == "reset":
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    stopped = asyncio.Event()
    counts: list[int] = []

    def count(size: int) -> None:
        counts.append(size)
        if sum(counts) == len(data):
            received.set()

    async with serving(answer) as url:
        writer = await platform.blobs.open_writer(key("a"), "t")
        response = await platform.request(url, stall_seconds=0.2 if way == "stall" else 60)
        with pytest.raises(NetworkError, match="in time" if way == "stall" else None):
            await response.save(writer, count, offset=offset)
        stopped.set()
    begin = offset or 0
    assert sum(counts) == len(data)
    assert await writer.present() == [(begin, begin + len(data))]
    assert await writer.read(begin, begin + len(data)) == data
    await writer.abort()


async def test_silent_server_ends_the_request_after_stall_seconds(platform: NativePlatform) -> None:
    stopped = asyncio.Event()

    async def answer(headers: dict[str, str], path: str, writer: asyncio.StreamWriter) -> None:
        await stopped.wait()

    async with serving(answer) as url:
        for timeout, stall_seconds in ((None, 0.05), (0.05, 60.0), (60.0, 0.05)):
            with pytest.raises(NetworkError, match="in time"):
                await platform.request(url, timeout=timeout, stall_seconds=stall_seconds)
        stopped.set()


async def test_head_that_trickles_in_ends_the_request_too(platform: NativePlatform) -> None:
    async def answer(headers: dict[str, str], path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x: y\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    async with serving(answer) as url:
        with pytest.raises(NetworkError, match="in time"):
            await platform.request(url, stall_seconds=0.1)


async def test_parts_are_saved_at_once_each_at_its_place(platform: NativePlatform) -> None:
    data = pattern(2_000_003)

    async def answer(headers: dict[str, str], path: str, writer: asyncio.StreamWriter) -> None:
        begin, _, end = headers["range"].removeprefix("bytes=").partition("-")
        body = data[int(begin) : int(end) + 1]
        writer.write(head_of("206 Partial Content", content_length=len(body)))
        for at in range(0, len(body), 100_000):
            writer.write(body[at : at + 100_000])
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(answer) as url:
        writer = await platform.blobs.open_writer(key("a"), "t")

        async def part(begin: int, end: int) -> None:
            response = await platform.request(url, headers={"range": f"bytes={begin}-{end - 1}"})
            await response.save(writer, lambda count: None, offset=begin, limit=end - begin)

        bounds = [0, 300_000, 300_001, 1_000_000, 1_500_000, len(data)]
        parts = list(itertools.pairwise(bounds))
        await asyncio.gather(*(part(begin, end) for begin, end in parts[1:]))
        assert await writer.present() == [(300_000, len(data))]
        with pytest.raises(StoreError, match="0 to 300000"):
            await writer.finish()
        await writer.suspend()
        writer = await platform.blobs.open_writer(key("a"), "t")
        await part(*parts[0])
    assert await writer.finish() == (len(data), hashlib.sha256(data).hexdigest())
    await writer.commit({})
    assert await platform.blobs.read(key("a")) == data


@pytest.mark.parametrize(("limit", "fits"), [(99_999, False), (100_000, True), (0, False)])
async def test_longer_body_than_the_limit_is_not_saved(
    platform: NativePlatform, server: FaultServer, limit: int, fits: bool
) -> None:
    data = server.write("a.bin", pattern(100_000))
    writer = await platform.blobs.open_writer(key("a"))
    response = await platform.request(f"{server.url}/a.bin")
    with contextlib.nullcontext() if fits else pytest.raises(NetworkError, match=str(limit)):
        await response.save(writer, lambda count: None, offset=10, limit=limit)
    assert await writer.present() == ([(10, 10 + limit)] if limit else [])
    assert await writer.read(10, 10 + limit) == data[:limit]
    await writer.abort()


async def test_overwritten_bytes_are_in_the_hash(platform: NativePlatform) -> None:
    async with serving(_ok) as url:
        writer = await start_writer(platform, key("a"), "t", b"abcdef")
        await (await platform.request(url)).save(writer, lambda count: None, offset=2)
        assert await writer.finish() == (6, hashlib.sha256(b"abokef").hexdigest())
        await writer.abort()


async def _ok(headers: dict[str, str], path: str, writer: asyncio.StreamWriter) -> None:
    writer.write(head_of("200 OK", content_length=2) + b"ok")


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
