"""What every platform's stores must do. Each function takes a platform and leaves its store as it was."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

from pywebml.errors import StoreError
from pywebml.platform import BlobKey, BlobWriter, Platform
from pywebml.platform.parts import part_hash
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


def pattern(size: int) -> bytes:
    """Bytes in which each place tells where it is: no piece equals its neighbour."""
    block = bytes(range(256)) * 16
    return b"".join(block[number % 251 :] + block[: number % 251] for number in range(-(-size // 4096)))[:size]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def start(platform: Platform, name: BlobKey, token: str, data: bytes) -> BlobWriter:
    """A writer with `data` written, in pieces."""
    writer = await platform.blobs.open_writer(name, token)
    for begin in range(0, len(data), 700_001):
        await writer.write(data[begin : begin + 700_001])
    return writer


async def suspend(platform: Platform, name: BlobKey, token: str, data: bytes) -> None:
    await (await start(platform, name, token, data)).suspend()


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
    before = await platform.blobs.usage()
    await put(platform, key("a"), bytes(3_000_000))
    during = await platform.blobs.usage()
    assert during.files == before.files + 3_000_000
    assert during.drafts == before.drafts
    assert during.available is None or during.available > 0
    await put(platform, key("a"), bytes(1_000_000))
    assert (await platform.blobs.usage()).files == before.files + 1_000_000
    await platform.blobs.delete([key("a")])
    assert (await platform.blobs.usage()).files == before.files


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


async def suspended_writer_is_gone_on_with(platform: Platform) -> None:
    name, data = key("large.bin"), pattern(9_000_001)
    await suspend(platform, name, "etag-1", data[:5_000_003])
    assert await platform.blobs.draft(name) == ("etag-1", 5_000_003)
    assert await platform.blobs.info(name) is None
    assert await stored(platform) == []
    writer = await platform.blobs.open_writer(name, "etag-1")
    assert await writer.present() == [(0, 5_000_003)]
    assert await writer.read(4_999_000, 5_000_003) == data[4_999_000:5_000_003]
    await writer.write(data[5_000_003:7_000_000])
    await writer.suspend()
    writer = await platform.blobs.open_writer(name, "etag-1")
    assert await writer.present() == [(0, 7_000_000)]
    await writer.write(data[7_000_000:])
    assert await writer.finish() == (len(data), sha256(data))
    info = await writer.commit({"etag": "etag-1"})
    assert (info.size, info.sha256) == (len(data), sha256(data))
    assert await platform.blobs.read(name) == data
    assert await platform.blobs.verify(name)
    assert await platform.blobs.draft(name) is None
    await platform.blobs.delete([name])


async def small_beginning_is_kept_too(platform: Platform) -> None:
    name = key("small.bin")
    await suspend(platform, name, "t", b"be")
    writer = await platform.blobs.open_writer(name, "t")
    assert await writer.present() == [(0, 2)]
    await writer.write(b"ginning")
    assert await writer.finish() == (9, sha256(b"beginning"))
    await writer.suspend()
    assert await platform.blobs.draft(name) == ("t", 9)
    writer = await platform.blobs.open_writer(name, "t")
    assert await writer.finish() == (9, sha256(b"beginning"))
    await writer.commit({})
    assert await platform.blobs.read(name) == b"beginning"
    await platform.blobs.delete([name])


async def another_token_drops_what_was_suspended(platform: Platform) -> None:
    name = key("model.onnx")
    await suspend(platform, name, "old", pattern(3_000_000))
    writer = await platform.blobs.open_writer(name, "new")
    assert await writer.present() == []
    await writer.write(b"new bytes")
    await writer.suspend()
    assert await platform.blobs.draft(name) == ("new", 9)
    writer = await platform.blobs.open_writer(name, "old")
    assert await writer.present() == []
    await writer.abort()
    assert await platform.blobs.draft(name) is None


async def nothing_is_kept_without_a_token(platform: Platform) -> None:
    name = key("model.onnx")
    before = (await platform.blobs.usage()).drafts
    await suspend(platform, name, "", pattern(3_000_000))
    assert await platform.blobs.draft(name) is None
    assert (await platform.blobs.usage()).drafts == before
    writer = await platform.blobs.open_writer(name)
    assert await writer.present() == []
    await writer.abort()


async def suspended_writers_of_other_names_stay_apart(platform: Platform) -> None:
    names = [key("a"), key("b"), key("a", revision="v2"), key("a", kind="attachment")]
    for number, name in enumerate(names):
        await suspend(platform, name, "t", bytes([number]) * (number + 1))
    for number, name in enumerate(names):
        assert await platform.blobs.draft(name) == ("t", number + 1)
        writer = await platform.blobs.open_writer(name, "t")
        assert await writer.read(0, number + 1) == bytes([number]) * (number + 1)
        await writer.abort()
    assert [await platform.blobs.draft(name) for name in names] == [None] * 4


async def writer_ends_once(platform: Platform) -> None:
    name = key("config.json")
    writer = await start(platform, name, "t", b"whole")
    await writer.suspend()
    await writer.suspend()
    await writer.abort()
    assert await platform.blobs.draft(name) == ("t", 5)
    with raises(StoreError):
        await writer.commit({})
    with raises(StoreError):
        await writer.write(b"more")
    assert await platform.blobs.info(name) is None

    writer = await platform.blobs.open_writer(name, "t")
    await writer.abort()
    await writer.suspend()
    assert await platform.blobs.draft(name) is None

    writer = await start(platform, name, "t", b"whole")
    await writer.finish()
    await writer.commit({})
    await writer.suspend()
    await writer.abort()
    assert await platform.blobs.draft(name) is None
    assert await platform.blobs.read(name) == b"whole"
    await platform.blobs.delete([name])


async def suspended_replacement_keeps_the_older_file(platform: Platform) -> None:
    name = key("config.json")
    await put(platform, name, b"old")
    await suspend(platform, name, "t", b"new")
    assert await platform.blobs.read(name) == b"old"
    writer = await platform.blobs.open_writer(name, "t")
    await writer.finish()
    await writer.commit({})
    assert await platform.blobs.read(name) == b"new"
    await platform.blobs.delete([name])


async def deleting_a_file_leaves_its_draft(platform: Platform) -> None:
    name = key("config.json")
    await put(platform, name, b"old")
    await suspend(platform, name, "t", b"new")
    await platform.blobs.delete([name])
    assert await platform.blobs.draft(name) == ("t", 3)
    await platform.blobs.drop_drafts([name])


async def written_bytes_can_be_read_and_hashed(platform: Platform) -> None:
    name, data = key("large.bin"), pattern(9_000_001)
    writer = await start(platform, name, "t", data)
    assert await writer.present() == [(0, len(data))]
    ranges = [(0, 0), (0, 1), (0, len(data)), (1, 4_194_305), (3_000_000, 8_999_999), (len(data) - 1, len(data))]
    for _ in range(2):
        for begin, end in ranges:
            assert await writer.read(begin, end) == data[begin:end], (begin, end)
            assert await writer.digest(begin, end) == part_hash(data[begin:end]), (begin, end)
        for begin, end in [(0, len(data) + 1), (len(data), len(data) + 1)]:
            with raises(StoreError):
                await writer.read(begin, end)
            with raises(StoreError):
                await writer.digest(begin, end)
        await writer.suspend()
        writer = await platform.blobs.open_writer(name, "t")
    await writer.abort()


async def new_writer_has_nothing(platform: Platform) -> None:
    for token in ("", "t"):
        writer = await platform.blobs.open_writer(key("a"), token)
        assert await writer.present() == []
        assert await writer.read(0, 0) == b""
        with raises(StoreError):
            await writer.read(0, 1)
        await writer.abort()


async def discarded_bytes_leave_a_hole_that_can_be_filled(platform: Platform) -> None:
    name, data = key("large.bin"), pattern(9_000_001)
    writer = await start(platform, name, "t", data)
    await writer.discard(5_000_000, 5_000_001)
    present = await writer.present()
    assert not any(begin <= 5_000_000 < end for begin, end in present)
    for begin, end in present:
        assert await writer.read(begin, end) == data[begin:end]
    with raises(StoreError):
        await writer.read(4_999_999, 5_000_002)
    with raises(StoreError):
        await writer.digest(0, len(data))
    with raises(StoreError):
        await writer.finish()
    with raises(StoreError):
        await writer.finish(sha256(data))
    with raises(StoreError):
        await writer.commit({})
    await writer.suspend()
    assert await platform.blobs.draft(name) == ("t", sum(end - begin for begin, end in present))
    writer = await platform.blobs.open_writer(name, "t")
    assert await writer.present() == present
    # What is written goes behind what is there from the beginning.
    begin = present[0][1] if present[0][0] == 0 else 0
    end = next(first for first, _ in [*present, (len(data), 0)] if first > begin)
    await writer.write(data[begin:end])
    assert await writer.present() == [(0, len(data))]
    assert await writer.finish() == (len(data), sha256(data))
    await writer.commit({})
    assert await platform.blobs.read(name) == data
    await platform.blobs.delete([name])


async def discarded_end_is_not_part_of_the_file(platform: Platform) -> None:
    name, data = key("large.bin"), pattern(3_000_000)
    writer = await start(platform, name, "t", data)
    await writer.discard(2_999_999, 3_000_000)
    [*_, (_, end)] = await writer.present() or [(0, 0)]
    assert end < len(data)
    assert await writer.finish() == (end, sha256(data[:end]))
    await writer.suspend()
    writer = await platform.blobs.open_writer(name, "t")
    assert await writer.finish() == (end, sha256(data[:end]))
    await writer.commit({})
    assert await platform.blobs.read(name) == data[:end]
    await platform.blobs.delete([name])


async def everything_can_be_discarded(platform: Platform) -> None:
    name = key("large.bin")
    await suspend(platform, name, "t", pattern(3_000_000))
    writer = await platform.blobs.open_writer(name, "t")
    await writer.discard(0, 3_000_000)
    assert await writer.present() == []
    await writer.suspend()
    writer = await platform.blobs.open_writer(name, "t")
    assert await writer.present() == []
    await writer.write(b"anew")
    assert await writer.finish() == (4, sha256(b"anew"))
    await writer.commit({})
    assert await platform.blobs.read(name) == b"anew"
    await platform.blobs.delete([name])


async def hash_that_the_caller_knows_is_taken(platform: Platform) -> None:
    name, data = key("model.onnx"), pattern(2_000_000)
    writer = await start(platform, name, "t", data)
    assert await writer.finish(sha256(data)) == (len(data), sha256(data))
    await writer.commit({})
    assert await platform.blobs.verify(name)
    writer = await platform.blobs.open_writer(name)
    await writer.write(b"other bytes")
    assert await writer.finish(sha256(data)) == (11, sha256(data))
    info = await writer.commit({})
    assert (info.size, info.sha256) == (11, sha256(data))
    assert await platform.blobs.info(name) == info
    assert not await platform.blobs.verify(name)
    await platform.blobs.delete([name])


async def cancelled_write_leaves_only_whole_bytes(platform: Platform) -> None:
    name, data = key("cancelled.bin"), pattern(30_000_000)
    writer = await platform.blobs.open_writer(name, "t")

    async def write() -> None:
        for begin in range(0, len(data), 1_000_000):
            await writer.write(data[begin : begin + 1_000_000])

    writing = asyncio.ensure_future(write())
    while not await writer.present():  # noqa: ASYNC110 (what is waited for has no event)
        await asyncio.sleep(0)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    await writer.suspend()
    writer = await platform.blobs.open_writer(name, "t")
    [(begin, end)] = await writer.present()
    assert begin == 0
    assert await writer.read(begin, end) == data[begin:end]
    await writer.write(data[end:])
    assert await writer.finish() == (len(data), sha256(data))
    await writer.abort()


async def drafts_are_dropped_by_name_or_all(platform: Platform) -> None:
    names = [key("a"), key("b"), key("c")]
    for name in names:
        await suspend(platform, name, "t", b"half")
    await platform.blobs.drop_drafts([names[0], key("never")])
    await platform.blobs.drop_drafts([])
    assert [await platform.blobs.draft(name) for name in names] == [None, ("t", 4), ("t", 4)]
    await put(platform, names[0], b"whole")
    await platform.blobs.drop_drafts()
    assert [await platform.blobs.draft(name) for name in names] == [None, None, None]
    assert await platform.blobs.read(names[0]) == b"whole"
    writer = await platform.blobs.open_writer(names[1], "t")
    assert await writer.present() == []
    await writer.abort()
    await platform.blobs.delete([names[0]])


async def drafts_are_listed_those_first_that_nobody_has_touched_for_longest(platform: Platform) -> None:
    for name in ("b", "a", "c"):
        await suspend(platform, key(name), "t", name.encode() * 3)
        # Longer than any file system takes for one moment.
        await asyncio.sleep(0.02)
    writer = await platform.blobs.open_writer(key("b"), "t")
    await writer.write(b"more")
    await writer.suspend()
    await put(platform, key("whole"), b"whole")
    nameless = await platform.blobs.open_writer(key("nameless"))
    await nameless.write(b"nameless")
    empty = await platform.blobs.open_writer(key("empty"), "t")
    assert list(await platform.blobs.drafts()) == [(key("a"), 3), (key("c"), 3), (key("b"), 7)]
    await nameless.abort()
    await empty.abort()
    await platform.blobs.drop_drafts()
    assert list(await platform.blobs.drafts()) == []
    await platform.blobs.delete([key("whole")])


async def drafts_at_work_are_listed(platform: Platform) -> None:
    writer = await start(platform, key("a"), "t", pattern(9_000_000))
    [(name, size)] = await platform.blobs.drafts()
    assert name == key("a")
    assert 0 < size <= 9_000_000
    await writer.abort()
    assert list(await platform.blobs.drafts()) == []


async def dropping_all_drafts_leaves_writers_alone(platform: Platform) -> None:
    data = pattern(5_000_000)
    writers = [await start(platform, key(f"writing{token}"), token, data[:3_000_000]) for token in ("", "t")]
    await platform.blobs.drop_drafts()
    for writer in writers:
        await writer.write(data[3_000_000:])
        assert await writer.finish() == (len(data), sha256(data))
        info = await writer.commit({})
        assert await platform.blobs.read(info.key) == data
        await platform.blobs.delete([info.key])


async def usage_counts_drafts_apart(platform: Platform) -> None:
    before = await platform.blobs.usage()
    await suspend(platform, key("a"), "t", pattern(3_000_000))
    during = await platform.blobs.usage()
    assert (during.files, during.drafts) == (before.files, before.drafts + 3_000_000)
    writer = await platform.blobs.open_writer(key("a"), "t")
    await writer.finish()
    await writer.commit({})
    after = await platform.blobs.usage()
    assert (after.files, after.drafts) == (before.files + 3_000_000, before.drafts)
    await platform.blobs.delete([key("a")])
    assert (await platform.blobs.usage()).files == before.files


async def metadata_are_replaced_in_place(platform: Platform) -> None:
    names = [key("a"), key("b"), key("c")]
    for name in names:
        await put(platform, name, name.path.encode(), etag="1", url="https://contract.example")
    before = {info.key: info for info in await platform.blobs.list("model")}
    await platform.blobs.update({names[0]: {"used": 1.5, "tags": ["x"]}, key("never"): {"used": 2}, names[2]: {}})
    await platform.blobs.update({})
    after = {info.key: info for info in await platform.blobs.list("model")}
    assert set(after) == set(before)
    assert [dict(after[name].metadata) for name in names] == [
        {"used": 1.5, "tags": ["x"]},
        {"etag": "1", "url": "https://contract.example"},
        {},
    ]
    for name in names:
        assert (after[name].size, after[name].sha256, after[name].updated) == (
            before[name].size,
            before[name].sha256,
            before[name].updated,
        )
        assert await platform.blobs.info(name) == after[name]
        assert await platform.blobs.read(name) == name.path.encode()
        assert await platform.blobs.verify(name)
    assert await platform.blobs.info(key("never")) is None
    await platform.blobs.delete(names)


async def opening_that_is_cancelled_keeps_the_draft(platform: Platform) -> None:
    name = key("never-opened.bin")
    await suspend(platform, name, "t", b"half")
    for turns in range(8):
        opening = asyncio.ensure_future(platform.blobs.open_writer(name, "t"))
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        try:
            writer = await opening
        except asyncio.CancelledError:
            writer = await platform.blobs.open_writer(name, "t")
        assert await writer.present() == [(0, 4)], turns
        await writer.suspend()
    await platform.blobs.drop_drafts([name])


async def lock_has_one_holder_at_a_time(platform: Platform) -> None:
    inside, entered = 0, []

    async def visit(number: int) -> None:
        nonlocal inside
        async with platform.lock("contract/one"):
            inside += 1
            assert inside == 1, "two hold the lock"
            entered.append(number)
            await platform.sleep(0.002)
            inside -= 1

    await asyncio.gather(*(visit(number) for number in range(12)))
    assert entered == list(range(12))


async def locks_of_other_names_are_free(platform: Platform) -> None:
    names = ["contract/a", "contract/A", "contract/../a", "", "é" * 300]
    held = asyncio.Event()
    holders = 0

    async def hold(name: str) -> None:
        nonlocal holders
        async with platform.lock(name):
            holders += 1
            if holders == len(names):
                held.set()
            await held.wait()

    await asyncio.gather(*(hold(name) for name in names))


async def lock_is_free_after_an_error(platform: Platform) -> None:
    async def fail() -> None:
        async with platform.lock("contract/error"):
            raise KeyError

    with raises(KeyError):
        await fail()
    async with platform.lock("contract/error"):
        pass


async def lock_is_free_when_its_holder_is_cancelled(platform: Platform) -> None:
    held = asyncio.Event()

    async def hold() -> None:
        async with platform.lock("contract/holder"):
            held.set()
            await platform.sleep(3600)

    holder = asyncio.ensure_future(hold())
    await held.wait()
    holder.cancel()
    with raises(asyncio.CancelledError):
        await holder
    async with platform.lock("contract/holder"):
        pass


async def cancelled_waiter_does_not_get_the_lock(platform: Platform) -> None:
    async def wait() -> None:
        async with platform.lock("contract/waiter"):
            raise AssertionError("a cancelled waiter got the lock")

    async with platform.lock("contract/waiter"):
        waiters = [asyncio.ensure_future(wait()) for _ in range(3)]
        await platform.sleep(0.02)
        for waiter in waiters:
            waiter.cancel()
        for result in await asyncio.gather(*waiters, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError), result
    async with platform.lock("contract/waiter"):
        pass


async def lock_is_free_wherever_the_waiting_was_cancelled(platform: Platform) -> None:
    for turns in range(12):

        async def visit() -> None:
            async with platform.lock("contract/turns"):
                await platform.sleep(3600)

        visitor = asyncio.ensure_future(visit())
        for _ in range(turns):
            await asyncio.sleep(0)
        visitor.cancel()
        with raises(asyncio.CancelledError):
            await visitor
        async with platform.lock("contract/turns"):
            pass


async def sleepers_wake_in_the_order_of_their_times(platform: Platform) -> None:
    started, woken = platform.monotonic(), []

    async def nap(seconds: float) -> None:
        await platform.sleep(seconds)
        woken.append(seconds)

    await asyncio.gather(*(nap(seconds) for seconds in (0.4, 0.0, 0.1)))
    assert woken == [0.0, 0.1, 0.4]
    # Browsers round their clocks.
    assert platform.monotonic() - started >= 0.39


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
    suspended_writer_is_gone_on_with,
    small_beginning_is_kept_too,
    another_token_drops_what_was_suspended,
    nothing_is_kept_without_a_token,
    suspended_writers_of_other_names_stay_apart,
    writer_ends_once,
    suspended_replacement_keeps_the_older_file,
    deleting_a_file_leaves_its_draft,
    written_bytes_can_be_read_and_hashed,
    new_writer_has_nothing,
    discarded_bytes_leave_a_hole_that_can_be_filled,
    discarded_end_is_not_part_of_the_file,
    everything_can_be_discarded,
    hash_that_the_caller_knows_is_taken,
    cancelled_write_leaves_only_whole_bytes,
    drafts_are_dropped_by_name_or_all,
    drafts_are_listed_those_first_that_nobody_has_touched_for_longest,
    drafts_at_work_are_listed,
    dropping_all_drafts_leaves_writers_alone,
    usage_counts_drafts_apart,
    metadata_are_replaced_in_place,
    opening_that_is_cancelled_keeps_the_draft,
    lock_has_one_holder_at_a_time,
    locks_of_other_names_are_free,
    lock_is_free_after_an_error,
    lock_is_free_when_its_holder_is_cancelled,
    cancelled_waiter_does_not_get_the_lock,
    lock_is_free_wherever_the_waiting_was_cancelled,
    sleepers_wake_in_the_order_of_their_times,
)
