"""What every platform's stores must do. Each function takes a platform and leaves its store as it was."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

from pywebml.errors import StoreError
from pywebml.platform import BlobKey, Platform
from tests.contract.expect import raises

OWNER = "contract.example/org/name"


def key(path: str, *, kind: str = "model", owner: str = OWNER, revision: str = "main") -> BlobKey:
    return BlobKey(kind, owner, revision, path)


async def put(platform: Platform, name: BlobKey, *pieces: bytes, **metadata: Any) -> None:
    writer = await platform.blobs.open_writer(name)
    for piece in pieces:
        await writer.write(piece)
    await writer.finish()
    await writer.commit(metadata)


async def stored(platform: Platform) -> list[BlobKey]:
    return [info.key for info in await platform.blobs.list("model") if info.key.owner.startswith(OWNER)]


async def committed_file_can_be_read_back(platform: Platform) -> None:
    name = key("onnx/model.onnx")
    pieces = [b"first ", b"", b"second", bytes(range(256))]
    data = b"".join(pieces)
    writer = await platform.blobs.open_writer(name)
    for piece in pieces:
        await writer.write(piece)
    assert await writer.finish() == (len(data), hashlib.sha256(data).hexdigest())
    before = platform.now()
    info = await writer.commit({"url": "https://contract.example/x", "etag": '"1"', "tags": ["a", "b"]})
    assert (info.key, info.size, info.sha256) == (name, len(data), hashlib.sha256(data).hexdigest())
    assert info.metadata == {"url": "https://contract.example/x", "etag": '"1"', "tags": ["a", "b"]}
    assert before - 5 <= info.updated <= platform.now() + 5
    assert await platform.blobs.info(name) == info
    assert await platform.blobs.read(name) == data
    await platform.blobs.delete([name])


async def large_file_survives_in_pieces_that_fit_no_part_size(platform: Platform) -> None:
    name = key("large.bin")
    piece = bytes(range(251)) * 4001
    await put(platform, name, *([piece] * 9))
    info = await platform.blobs.info(name)
    assert info is not None
    assert info.size == len(piece) * 9
    assert info.sha256 == hashlib.sha256(piece * 9).hexdigest()
    assert await platform.blobs.read(name) == piece * 9
    await platform.blobs.delete([name])


async def empty_file_is_a_file(platform: Platform) -> None:
    name = key("empty.txt")
    await put(platform, name)
    info = await platform.blobs.info(name)
    assert info is not None
    assert (info.size, info.sha256) == (0, hashlib.sha256(b"").hexdigest())
    assert await platform.blobs.read(name) == b""
    await platform.blobs.delete([name])


async def nothing_is_visible_before_commit(platform: Platform) -> None:
    name = key("config.json")
    writer = await platform.blobs.open_writer(name)
    await writer.write(b"half")
    assert await platform.blobs.info(name) is None
    assert await stored(platform) == []
    await writer.finish()
    assert await platform.blobs.info(name) is None
    with raises(StoreError, "config.json"):
        await platform.blobs.read(name)
    await writer.abort()


async def nothing_is_visible_after_abort(platform: Platform) -> None:
    name = key("config.json")
    writer = await platform.blobs.open_writer(name)
    await writer.write(b"half")
    await writer.abort()
    await writer.abort()
    assert await platform.blobs.info(name) is None
    with raises(StoreError):
        await writer.commit({})
    assert await platform.blobs.info(name) is None


async def abort_after_commit_keeps_the_file(platform: Platform) -> None:
    name = key("config.json")
    writer = await platform.blobs.open_writer(name)
    await writer.write(b"whole")
    await writer.finish()
    await writer.commit({})
    await writer.abort()
    assert await platform.blobs.read(name) == b"whole"
    await platform.blobs.delete([name])


async def commit_replaces_the_older_file(platform: Platform) -> None:
    name = key("config.json")
    await put(platform, name, b"old and longer", etag="1")
    writer = await platform.blobs.open_writer(name)
    await writer.write(b"new")
    assert await platform.blobs.read(name) == b"old and longer"
    await writer.finish()
    await writer.commit({"etag": "2"})
    assert await platform.blobs.read(name) == b"new"
    info = await platform.blobs.info(name)
    assert info is not None
    assert (info.size, info.metadata) == (3, {"etag": "2"})
    assert await stored(platform) == [name]
    await platform.blobs.delete([name])


async def aborted_replacement_keeps_the_older_file(platform: Platform) -> None:
    name = key("config.json")
    await put(platform, name, b"old")
    writer = await platform.blobs.open_writer(name)
    await writer.write(b"new")
    await writer.abort()
    assert await platform.blobs.read(name) == b"old"
    await platform.blobs.delete([name])


async def two_writers_of_one_file_do_not_mix(platform: Platform) -> None:
    name = key("config.json")
    first = await platform.blobs.open_writer(name)
    second = await platform.blobs.open_writer(name)
    await first.write(b"1" * 10)
    await second.write(b"2" * 20)
    await first.write(b"1" * 10)
    await second.finish()
    await second.commit({})
    await first.finish()
    await first.commit({})
    assert await platform.blobs.read(name) == b"1" * 20
    assert await stored(platform) == [name]
    await platform.blobs.delete([name])


async def list_is_ordered_and_keeps_kinds_apart(platform: Platform) -> None:
    names = [
        key("a", revision="v2"),
        key("a", revision="v1"),
        key("b", revision="v1"),
        key("a", owner=f"{OWNER}2", revision="v0"),
    ]
    other = key("a", kind="attachment")
    for name in [*names, other]:
        await put(platform, name, name.revision.encode())
    assert await stored(platform) == sorted(names)
    assert other in [info.key for info in await platform.blobs.list("attachment")]
    assert all(info.key.kind == "attachment" for info in await platform.blobs.list("attachment"))
    await platform.blobs.delete([*names, other])
    assert await stored(platform) == []


async def names_never_collide_or_escape(platform: Platform) -> None:
    paths = [
        "model.onnx",
        "Model.onnx",
        "MODEL.ONNX",
        "../../escape",
        "/absolute",
        "a/b",
        "a\\b",
        "a%2Fb",
        "con",
        "nul.txt",
        "x" * 3000,
        "ß",
        "SS",
        "é",
        "e\u0301",
        "日本語 🙂",
        "with\nnewline",
        "with\0nul",
        ".",
        "..",
        "",
    ]
    for path in paths:
        await put(platform, key(path), path.encode())
    assert await stored(platform) == sorted(key(path) for path in paths)
    for path in paths:
        assert await platform.blobs.read(key(path)) == path.encode(), path
    # The same letters, cut into parts at another place.
    assert await platform.blobs.info(key("b", revision="main/a")) is None
    await platform.blobs.delete([key(path) for path in paths])
    assert await stored(platform) == []


async def delete_passes_over_what_is_not_there(platform: Platform) -> None:
    await put(platform, key("a"), b"a")
    await platform.blobs.delete([key("never"), key("a"), key("a")])
    await platform.blobs.delete([])
    assert await stored(platform) == []


async def usage_grows_and_shrinks_with_the_files(platform: Platform) -> None:
    before, _ = await platform.blobs.usage()
    await put(platform, key("a"), bytes(3_000_000))
    during, allowed = await platform.blobs.usage()
    assert during >= before + 2_900_000, "3 MB are stored, but are not counted"
    assert allowed == 0 or allowed >= during
    await platform.blobs.delete([key("a")])


async def persist_answers_yes_or_no(platform: Platform) -> None:
    assert await platform.blobs.persist() in (True, False)


async def cancelled_writer_leaves_nothing_after_abort(platform: Platform) -> None:
    name = key("cancelled.bin")
    writer = await platform.blobs.open_writer(name)

    async def write_for_ever() -> None:
        while True:
            await writer.write(bytes(100_000))

    task = asyncio.ensure_future(write_for_ever())
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with raises(asyncio.CancelledError):
        await task
    await writer.abort()
    assert await platform.blobs.info(name) is None
    await put(platform, name, b"next try")
    assert await platform.blobs.read(name) == b"next try"
    await platform.blobs.delete([name])


async def document_comes_back_as_it_was(platform: Platform) -> None:
    documents = platform.documents
    value = {
        "text": "é 日本 🙂 \0 \u2028",
        "numbers": [0, -1, 2**53, 1.5, 1e300],
        "flags": [True, False, None],
        "nested": {"": {"a/b": []}},
    }
    assert await documents.get("contract/a") is None
    await documents.put("contract/a", value)
    await documents.put("contract/A", ["other case"])
    assert await documents.get("contract/a") == value
    assert await documents.get("contract/A") == ["other case"]
    await documents.put("contract/a", {"new": 1})
    assert await documents.get("contract/a") == {"new": 1}
    await documents.delete("contract/a")
    await documents.delete("contract/a")
    await documents.delete("contract/A")
    assert await documents.get("contract/a") is None


async def whole_file_verifies_and_a_missing_one_does_not(platform: Platform) -> None:
    name = key("verified.bin")
    assert not await platform.blobs.verify(name)
    await put(platform, name, bytes(range(256)) * 20_000)
    assert await platform.blobs.verify(name)
    await platform.blobs.delete([name])


async def opening_that_is_cancelled_gives_its_writer_back(platform: Platform) -> None:
    # At every point of the way to the database and back.
    for turns in range(8):
        opening = asyncio.ensure_future(platform.blobs.open_writer(key("never-opened.bin")))
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        try:
            writer = await opening
        except asyncio.CancelledError:
            continue
        await writer.abort()
    name = key("after.bin")
    await put(platform, name, b"still works")
    assert await stored(platform) == [name]
    await platform.blobs.delete([name])


CONTRACT: tuple[Callable[[Platform], Awaitable[None]], ...] = (
    committed_file_can_be_read_back,
    large_file_survives_in_pieces_that_fit_no_part_size,
    empty_file_is_a_file,
    nothing_is_visible_before_commit,
    nothing_is_visible_after_abort,
    abort_after_commit_keeps_the_file,
    commit_replaces_the_older_file,
    aborted_replacement_keeps_the_older_file,
    two_writers_of_one_file_do_not_mix,
    list_is_ordered_and_keeps_kinds_apart,
    names_never_collide_or_escape,
    delete_passes_over_what_is_not_there,
    usage_grows_and_shrinks_with_the_files,
    persist_answers_yes_or_no,
    cancelled_writer_leaves_nothing_after_abort,
    whole_file_verifies_and_a_missing_one_does_not,
    opening_that_is_cancelled_gives_its_writer_back,
    document_comes_back_as_it_was,
)
