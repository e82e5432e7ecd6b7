"""Models to and from folders and tar archives; archives are untrusted."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pywebml import create_engine, stored_models
from pywebml.errors import ArchiveError, IntegrityError, OptionsError, QuotaExceededError, StoreError
from pywebml.hub import ModelHub, Selection, StoredModels
from pywebml.hub.addresses import HubAddress
from pywebml.hub.archive import _find_models, export_models, import_models, read_tar
from pywebml.hub.listing import parse_manifest
from pywebml.options import PipelineOptions, get_configuration
from pywebml.platform import Platform
from pywebml.platform.native import NativePlatform
from pywebml.progress import ProgressEvent, TransferProgress
from pywebml.sources import hub_address
from tests.conftest import PatientPlatform
from tests.faults.server import FaultServer
from tests.tiny_model import TinyModel

ADDRESS = HubAddress.of("https://hub.example/models/", "{model}/{revision}")
CONFIG, WEIGHTS = b'{"model_type": "bert"}', bytes(range(256)) * 10
FOLDER = "org/name/v1.0.0"
MODEL = {"config.json": CONFIG, "onnx/model.onnx": WEIGHTS}


def with_manifest(files: Mapping[str, bytes]) -> dict[str, bytes]:
    entries = {path: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for path, data in files.items()}
    return {**files, "manifest.json": json.dumps({"files": entries}).encode()}


def below(folder: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{path}": data for path, data in files.items()}


GOOD = below(FOLDER, with_manifest(MODEL))


def make_tar(
    target: Path,
    files: Mapping[str, bytes],
    *,
    layout: int = tarfile.PAX_FORMAT,
    extra: tuple[tuple[tarfile.TarInfo, bytes], ...] = (),
) -> Path:
    with tarfile.open(target, "w", format=layout) as archive:
        for path, data in files.items():
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info, data in extra:
            archive.addfile(info, io.BytesIO(data))
    return target


def make_folder(root: Path, files: Mapping[str, bytes]) -> Path:
    for path, data in files.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return root


def run_tar(*words: str | Path) -> None:
    subprocess.run(["tar", *words], check=True, capture_output=True)


async def read_in(
    platform: Platform,
    source: Any,
    *,
    address: HubAddress = ADDRESS,
    limit: int | None = None,
    events: list[ProgressEvent] | None = None,
) -> list[tuple[str, str]]:
    seen = [] if events is None else events

    def start(model: str, revision: str, path: str, url: str) -> TransferProgress:
        metadata = {"model": model, "revision": revision, "file": path, "url": url}
        return TransferProgress(seen.append, "importing", url, metadata)

    return await import_models(platform, address, source, limit=limit, start_progress=start)


async def contents(platform: Platform) -> dict[str, bytes]:
    files = await StoredModels(platform).files()
    return {f"{file.model}@{file.revision}/{file.path}": await platform.blobs.read(file.key) for file in files}


async def refused(
    platform: Platform, source: Path, words: str | None = None, error: type[StoreError] = ArchiveError
) -> None:
    with pytest.raises(error, match=words):
        await read_in(platform, source)
    assert await platform.blobs.list("model") == []
    usage = await platform.blobs.usage()
    assert (usage.files, usage.drafts) == (0, 0)


@pytest.fixture
def fresh(tmp_path: Path) -> PatientPlatform:
    """Another machine."""
    return PatientPlatform(tmp_path / "other-cache")


async def stored_two(platform: Platform, tmp_path: Path) -> dict[str, bytes]:
    """A store with two models: one with its manifest in two revisions, one without."""
    files = {
        **GOOD,
        **below("org/name/refs%2Fpr%2F1", {"config.json": CONFIG}),
        **below("plain/v2.0.0", {"config.json": b"{}", "é b/data.bin": b"x" * 700}),
    }
    await read_in(platform, make_folder(tmp_path / "source", files))
    return await contents(platform)


# There and back


@pytest.mark.parametrize("archive", [False, True])
async def test_round_trip_of_several_models(
    platform: PatientPlatform, fresh: PatientPlatform, tmp_path: Path, archive: bool
) -> None:
    before = await stored_two(platform, tmp_path)
    target = tmp_path / ("out.tar" if archive else "out")
    await export_models(platform, Selection(), target, archive=archive)
    events: list[ProgressEvent] = []
    imported = await read_in(fresh, target, events=events)
    assert imported == [("org/name", "refs/pr/1"), ("org/name", "v1.0.0"), ("plain", "v2.0.0")]
    after = await contents(fresh)
    assert after == before
    # Every file is told from its beginning to its end.
    for path in {event.id for event in events}:
        own = [event for event in events if event.id == path]
        assert (own[0].status_text, own[-1].status_text) == ("initiate", "done")
        assert (own[-1].ok, own[-1].progress) == (True, 100)
    assert {event.type for event in events} == {"importing"}
    assert sum(event.current_loaded for event in events) == sum(map(len, after.values()))


async def test_exported_folder_is_a_hub(
    platform: PatientPlatform, fresh: PatientPlatform, server: FaultServer, tmp_path: Path
) -> None:
    await stored_two(platform, tmp_path)
    await export_models(platform, Selection(), server.root, archive=False)
    for model, revision in (("org/name", "v1.0.0"), ("plain", "v2.0.0")):
        hub = ModelHub(fresh, server.url)
        entries = await hub.entries(model, revision)
        assert entries
        for path in entries:
            await hub.get_file(model, revision, path)
    assert (await contents(fresh))["plain@v2.0.0/é b/data.bin"] == b"x" * 700


async def test_archive_is_read_by_other_tar_programs(platform: PatientPlatform, tmp_path: Path) -> None:
    await stored_two(platform, tmp_path)
    target = tmp_path / "out.tar"
    await export_models(platform, Selection(model="org/name"), target, archive=True)
    with tarfile.open(target) as archive:
        archive.extractall(tmp_path / "by-tarfile", filter="data")
    folders = [tmp_path / "by-tarfile"]
    if shutil.which("tar"):
        (tmp_path / "by-tar").mkdir()
        run_tar("-xf", target, "-C", tmp_path / "by-tar")
        folders.append(tmp_path / "by-tar")
    for folder in folders:
        assert (folder / FOLDER / "onnx/model.onnx").read_bytes() == WEIGHTS
        manifest = parse_manifest((folder / FOLDER / "manifest.json").read_bytes(), "x")
        assert set(manifest) == set(MODEL)
        assert (folder / "org/name/refs%2Fpr%2F1/config.json").read_bytes() == CONFIG


@pytest.mark.skipif(not shutil.which("tar"), reason="there is no program tar")
@pytest.mark.parametrize("words", [["--format=posix"], ["--format=gnu"], ["--format=ustar"], ["."]])
async def test_archive_of_other_tar_programs_is_read(fresh: PatientPlatform, tmp_path: Path, words: list[str]) -> None:
    make_folder(tmp_path / "hub", GOOD)
    chosen = [*(word for word in words if word != "."), "." if "." in words else "org"]
    run_tar("-C", tmp_path / "hub", "-cf", tmp_path / "a.tar", *chosen)
    assert await read_in(fresh, tmp_path / "a.tar") == [("org/name", "v1.0.0")]


async def test_manifest_is_kept_where_there_is_one_and_made_where_there_is_none(
    platform: PatientPlatform, tmp_path: Path
) -> None:
    await stored_two(platform, tmp_path)
    await export_models(platform, Selection(), tmp_path / "out", archive=False)
    assert (tmp_path / "out" / FOLDER / "manifest.json").read_bytes() == GOOD[f"{FOLDER}/manifest.json"]
    made = parse_manifest((tmp_path / "out/plain/v2.0.0/manifest.json").read_bytes(), "x")
    assert {path: entry.size for path, entry in made.items()} == {"config.json": 2, "é b/data.bin": 700}
    assert made["config.json"].sha256 == hashlib.sha256(b"{}").hexdigest()


async def test_part_of_a_model_is_checked_and_leaves_the_rest_to_its_hub(
    platform: PatientPlatform, fresh: PatientPlatform, server: FaultServer, tmp_path: Path
) -> None:
    files = {**MODEL, "onnx/model_quantized.onnx": WEIGHTS[::-1]}
    make_folder(server.root / FOLDER, files)
    hub = ModelHub(platform, server.url)
    for path in MODEL:
        await hub.get_file("org/name", "v1.0.0", path)
    await export_models(platform, Selection(), tmp_path / "out", archive=False)
    assert json.loads((tmp_path / "out" / FOLDER / "manifest.json").read_bytes())["complete"] is False
    (tmp_path / "out" / FOLDER / "onnx/model.onnx").write_bytes(WEIGHTS[::-1])
    with pytest.raises(IntegrityError):
        await read_in(fresh, tmp_path / "out", address=hub.address)

    (tmp_path / "out" / FOLDER / "onnx/model.onnx").write_bytes(WEIGHTS)
    await read_in(fresh, tmp_path / "out", address=hub.address)
    assert set(await contents(fresh)) == {f"org/name@v1.0.0/{path}" for path in MODEL}
    server.forget()
    later = ModelHub(fresh, server.url)
    for path, data in files.items():
        assert await later.read_file("org/name", "v1.0.0", path) == data
    assert server.requests(f"/{FOLDER}/config.json") == server.requests(f"/{FOLDER}/onnx/model.onnx") == []


async def test_only_what_is_selected_is_exported(platform: PatientPlatform, tmp_path: Path) -> None:
    await stored_two(platform, tmp_path)
    await export_models(platform, Selection(model="plain"), tmp_path / "out", archive=False)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["plain"]
    with pytest.raises(OptionsError, match="nothing to export"):
        await export_models(platform, Selection(model="unknown"), tmp_path / "none", archive=False)
    assert not (tmp_path / "none").exists()


async def test_same_model_of_two_hubs_has_no_place_in_one_archive(platform: PatientPlatform, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", GOOD)
    other = HubAddress.of("https://other.example/", "{model}/{revision}")
    for address in (ADDRESS, other):
        await read_in(platform, source, address=address)
    with pytest.raises(OptionsError, match="Select a hub"):
        await export_models(platform, Selection(), tmp_path / "out", archive=False)
    await export_models(platform, Selection(hub=other.owner_prefix), tmp_path / "out", archive=False)
    assert (tmp_path / "out" / FOLDER / "config.json").read_bytes() == CONFIG


@pytest.mark.usefixtures("surroundings")
async def test_engine_is_made_offline_from_an_imported_model(
    platform: NativePlatform, server: FaultServer, tmp_path: Path
) -> None:
    make_tar(tmp_path / "a.tar", below("tests/tiny/v1.0.0", TinyModel().files()))
    server.fault("*", "drop", method="*")
    address = hub_address(platform, get_configuration(), PipelineOptions())
    await read_in(platform, tmp_path / "a.tar", address=address)
    async with await create_engine(
        task_name="feature-extraction", model_id="tests/tiny", model_revision="v1.0.0", dtype="fp32"
    ) as engine:
        assert (await engine.run("cat")).shape == (1, 3, 8)
    assert server.requests() == []
    assert [model.model for model in await (await stored_models()).models()] == ["tests/tiny"]


async def test_import_keeps_pins_and_uses_of_what_it_replaces(platform: PatientPlatform, tmp_path: Path) -> None:
    source = make_folder(tmp_path / "source", GOOD)
    await read_in(platform, source)
    stored = StoredModels(platform)
    await stored.pin(Selection())
    await stored.note_use([file.key for file in await stored.files()], "fill-mask", "one")
    await read_in(platform, source)
    [model] = await stored.models()
    assert (model.pinned, model.task_names, model.engine_ids) == (True, ("fill-mask",), ("one",))


async def test_import_makes_room_up_to_the_limit_or_imports_nothing(platform: PatientPlatform, tmp_path: Path) -> None:
    await read_in(platform, make_folder(tmp_path / "old", below("org/old/v1.0.0", MODEL)))
    size = sum(map(len, GOOD.values()))
    source = make_folder(tmp_path / "source", GOOD)
    with pytest.raises(QuotaExceededError, match=f"{size} more bytes"):
        await read_in(platform, source, limit=size - 1)
    assert [model.model for model in await StoredModels(platform).models()] == ["org/old"]
    await read_in(platform, source, limit=size)
    assert [model.model for model in await StoredModels(platform).models()] == ["org/name"]


# Where models are in it


@pytest.mark.parametrize("prefix", ["", "backup/", "a/b/c/"])
async def test_models_are_found_wherever_the_hub_begins(fresh: PatientPlatform, tmp_path: Path, prefix: str) -> None:
    source = make_folder(tmp_path / "source", {f"{prefix}{path}": data for path, data in GOOD.items()})
    assert await read_in(fresh, source) == [("org/name", "v1.0.0")]


async def test_folder_with_nothing_but_an_archive_is_that_archive(fresh: PatientPlatform, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    make_tar(tmp_path / "source" / "models.TAR", GOOD)
    assert await read_in(fresh, tmp_path / "source") == [("org/name", "v1.0.0")]


async def test_what_a_manifest_does_not_list_is_left_out(fresh: PatientPlatform, tmp_path: Path) -> None:
    more = {f"{FOLDER}/.git/config": b"x", f"{FOLDER}/onnx/config.json": b"{}", "README.md": b"#", "org/notes": b"y"}
    await read_in(fresh, make_folder(tmp_path / "source", {**GOOD, **more}))
    assert set(await contents(fresh)) == {f"org/name@v1.0.0/{path}" for path in (*MODEL, "manifest.json")}


async def test_file_that_a_manifest_lists_may_be_missing(fresh: PatientPlatform, tmp_path: Path) -> None:
    files = {path: data for path, data in GOOD.items() if not path.endswith("model.onnx")}
    await read_in(fresh, make_folder(tmp_path / "source", files))
    assert set(await contents(fresh)) == {"org/name@v1.0.0/config.json", "org/name@v1.0.0/manifest.json"}


async def test_model_without_a_manifest_is_known_by_its_config(fresh: PatientPlatform, tmp_path: Path) -> None:
    await read_in(fresh, make_folder(tmp_path / "source", below(FOLDER, MODEL)))
    assert set(await contents(fresh)) == {f"org/name@v1.0.0/{path}" for path in MODEL}


async def test_many_models_take_no_long_time(fresh: PatientPlatform, tmp_path: Path) -> None:
    files = {f"a/n{number}/v1/x{number}/config.json": b"" for number in range(3000)}
    make_tar(tmp_path / "a.tar", {**files, "b/n/v1/other.json": b""})
    [source] = await fresh.outside_files(tmp_path / "a.tar")
    members = await read_tar(source)
    started = time.process_time()
    assert len(await _find_models(members)) == 3000
    assert time.process_time() - started < 2


# Names and sizes of every length


LONG = "/".join(["folder" * 12] * 5) + "/é" + "x" * 90 + ".bin"


@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("name", [LONG, "x" * 99 + ".bin", "x" * 255, "é" * 60])
async def test_long_names_are_read(fresh: PatientPlatform, tmp_path: Path, layout: int, name: str) -> None:
    files = below(FOLDER, with_manifest({**MODEL, name: b"data"}))
    await read_in(fresh, make_tar(tmp_path / "a.tar", files, layout=layout))
    assert (await contents(fresh))[f"org/name@v1.0.0/{name}"] == b"data"


async def test_long_names_are_written(platform: PatientPlatform, fresh: PatientPlatform, tmp_path: Path) -> None:
    await read_in(platform, make_folder(tmp_path / "source", below(FOLDER, with_manifest({**MODEL, LONG: b"data"}))))
    await export_models(platform, Selection(), tmp_path / "out.tar", archive=True)
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert f"{FOLDER}/{LONG}" in archive.getnames()
    await read_in(fresh, tmp_path / "out.tar")
    assert await contents(fresh) == await contents(platform)


class SparseFile:
    """An outside file of which only some bytes are not zero."""

    def __init__(self, path: str, size: int, pieces: Mapping[int, bytes]) -> None:
        self.path, self.size, self._pieces = path, size, pieces
        self.read_bytes = 0

    async def read(self, begin: int, end: int) -> bytes:
        self.read_bytes += end - begin
        data = bytearray(end - begin)
        for offset, piece in self._pieces.items():
            for index, byte in enumerate(piece):
                if begin <= offset + index < end:
                    data[offset + index - begin] = byte
        return bytes(data)

    async def copy(self, *args: Any) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
async def test_size_beyond_what_a_plain_header_can_tell_is_read_from_its_extension(layout: Literal[1, 2]) -> None:
    size = 9 * 1024**3
    info = tarfile.TarInfo(f"{FOLDER}/onnx/model.onnx_data")
    info.size = size
    head = info.tobuf(layout)
    source = SparseFile("a.tar", len(head) + size + 1024, {0: head})
    [member] = await read_tar(source)
    assert (member.path, member.begin, member.size) == (info.name, len(head), size)
    assert source.read_bytes < 10_000


# What is refused


def entry(path: str, kind: bytes = tarfile.REGTYPE, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(path)
    info.type = kind
    for name, value in fields.items():
        setattr(info, name, value)
    return info, b""


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (entry(f"{FOLDER}/link", tarfile.SYMTYPE, linkname="/etc/passwd"), "neither a file nor a folder"),
        (entry(f"{FOLDER}/link", tarfile.LNKTYPE, linkname="config.json"), "neither"),
        (entry(f"{FOLDER}/link", tarfile.SYMTYPE, linkname="l" * 200), "neither"),
        (entry(f"{FOLDER}/device", tarfile.CHRTYPE), "neither"),
        (entry(f"{FOLDER}/device", tarfile.BLKTYPE), "neither"),
        (entry(f"{FOLDER}/pipe", tarfile.FIFOTYPE), "neither"),
        (entry(f"{FOLDER}/sparse", tarfile.GNUTYPE_SPARSE), "neither"),
        (entry(f"{FOLDER}/unknown", b"Z"), "neither"),
        (entry("/etc/passwd"), "no path of a file"),
        (entry(f"/{FOLDER}/tokenizer.json"), "no path of a file"),
        (entry("../outside"), "no path of a file"),
        (entry(f"{FOLDER}/../../x"), "no path of a file"),
        (entry("org\\name\\x"), "no path of a file"),
        (entry(f"{FOLDER}//x"), "no path of a file"),
        (entry("a/" * 3000 + "x"), "no path of a file"),
        (entry(f"{FOLDER}/config.json"), "there twice"),
        (entry(f"./{FOLDER}/config.json"), "there twice"),
        (entry("config.json", pax_headers={"path": f"{FOLDER}/config.json"}), "there twice"),
        (entry("a", pax_headers={"path": "../../etc/passwd"}), "no path of a file"),
        (entry("a", pax_headers={"path": f"{FOLDER}/x\0y"}), "no path of a file"),
        (entry("a", pax_headers={"size": "-1"}), "goes beyond its end"),
        (entry("a", pax_headers={"size": "3221225472"}), "entry of 3221225472 bytes .* goes beyond its end"),
        (entry("a", pax_headers={"size": "much"}), "no header"),
        (entry("a", pax_headers={"GNU.sparse.realsize": "3221225472", "GNU.sparse.major": "1"}), "makes no sense"),
    ],
)
@pytest.mark.parametrize("layout", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
async def test_archive_with_an_entry_that_no_model_has_is_refused(
    fresh: PatientPlatform, tmp_path: Path, extra: tuple[tarfile.TarInfo, bytes], words: str, layout: int
) -> None:
    if extra[0].pax_headers:
        layout = tarfile.PAX_FORMAT
    target = make_tar(tmp_path / "a.tar", GOOD, layout=layout, extra=(extra,))
    await refused(fresh, target, words)


@pytest.mark.parametrize("size", [2**31, 3 * 1024**3, 10 * 1024**3, -5])
async def test_header_that_lies_about_its_size_is_refused(fresh: PatientPlatform, tmp_path: Path, size: int) -> None:
    info = tarfile.TarInfo(f"{FOLDER}/onnx/model.onnx")
    info.size = size
    good = make_tar(tmp_path / "a.tar", GOOD).read_bytes()
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + good)
    await refused(fresh, tmp_path / "a.tar", "goes beyond its end")


async def test_large_hole_that_is_no_entry_is_refused_at_once(fresh: PatientPlatform, tmp_path: Path) -> None:
    target = make_tar(tmp_path / "a.tar", GOOD)
    info = tarfile.TarInfo(f"{FOLDER}/onnx/other.onnx")
    info.size = 3 * 1024**3
    # In place of the end mark; the disk has nothing of the three gigabytes.
    with target.open("r+b") as file:
        with tarfile.open(target) as archive:
            end = max(member.offset_data + member.size + -member.size % 512 for member in archive.getmembers())
        file.seek(end)
        file.write(info.tobuf(tarfile.GNU_FORMAT))
        file.truncate(end + 512 + 3 * 1024**3)
    await refused(fresh, target, "before its end mark")


@pytest.mark.parametrize("cut", [0, 1, 511, 512, 513, 1024, 1500, 4000, -1500, -1025, -1024])
async def test_archive_that_was_cut_off_is_refused(fresh: PatientPlatform, tmp_path: Path, cut: int) -> None:
    whole = b"".join(_member(path, data) for path, data in GOOD.items()) + bytes(1024)
    (tmp_path / "a.tar").write_bytes(whole[:cut])
    await refused(fresh, tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(whole)
    assert await read_in(fresh, tmp_path / "a.tar") == [("org/name", "v1.0.0")]


def _member(path: str, data: bytes) -> bytes:
    info = tarfile.TarInfo(path)
    info.size = len(data)
    return info.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "before its end mark"),
        (b"PK\x03\x04" + bytes(2000), "no header"),
        (b"\x1f\x8b" + bytes(range(256)) * 10, "no header"),
        (b"x" * 5000, "no header"),
        (bytes(1024), "no model in what you chose"),
    ],
)
async def test_file_that_is_no_archive_is_refused(
    fresh: PatientPlatform, tmp_path: Path, data: bytes, words: str
) -> None:
    (tmp_path / "a.tar").write_bytes(data)
    await refused(fresh, tmp_path / "a.tar", words)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"x",
        b"5 a=b",
        b"99 path=a\n",
        b"0 path=a\n",
        b"9 pathaa\n",
        b"-1 path=a\n",
        b"11 path=\xff\xfe\n",
        b"99999999 path=a\n",
        b"\xd9\xa3 path=a\n",
    ],
)
async def test_extended_header_that_makes_no_sense_is_refused(
    fresh: PatientPlatform, tmp_path: Path, record: bytes
) -> None:
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, len(record)
    data = head.tobuf(tarfile.USTAR_FORMAT) + record + bytes(-len(record) % 512) + _member("a", b"")
    (tmp_path / "a.tar").write_bytes(data + bytes(1024))
    await refused(fresh, tmp_path / "a.tar")


async def test_extended_header_of_many_megabytes_is_refused(fresh: PatientPlatform, tmp_path: Path) -> None:
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, 2 * 1024 * 1024
    (tmp_path / "a.tar").write_bytes(head.tobuf(tarfile.USTAR_FORMAT) + bytes(head.size) + bytes(1024))
    await refused(fresh, tmp_path / "a.tar", "header of an entry has 2097152 bytes")


async def test_archive_of_too_many_entries_is_refused(
    fresh: PatientPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pywebml.hub.archive._MOST_ENTRIES", 2)
    await refused(fresh, make_tar(tmp_path / "a.tar", GOOD), "more than 2 entries")
    folders = []
    for name in ("a", "a/b", "a/b/c"):
        folder = tarfile.TarInfo(name)
        folder.type = tarfile.DIRTYPE
        folders.append((folder, b""))
    await refused(fresh, make_tar(tmp_path / "b.tar", {}, extra=tuple(folders)), "more than 2 entries")


MANIFESTS: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", "no JSON"),
    "no files": (b"{}", "no object 'files'"),
    "a path that climbs": (b'{"files": {"../a": {"size": 1, "sha256": "' + b"0" * 64 + b'"}}}', "cannot be the name"),
}


@pytest.mark.parametrize("kind", MANIFESTS)
async def test_manifest_that_is_none_is_refused(fresh: PatientPlatform, tmp_path: Path, kind: str) -> None:
    data, words = MANIFESTS[kind]
    await refused(fresh, make_folder(tmp_path / "source", {**GOOD, f"{FOLDER}/manifest.json": data}), words)


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("org/na..me/v1.0.0", "no model id"),
        ("org/na me/v1.0.0", "no model id"),
        ("v1.0.0", "no model id"),
        ("org/name/..%2F..%2Fx", "cannot be the name of a revision"),
        ("org/name/a%5Cb", "cannot be the name of a revision"),
        ("org/name/%00", "cannot be the name of a revision"),
    ],
)
async def test_folder_that_cannot_be_a_model_is_refused(
    fresh: PatientPlatform, tmp_path: Path, folder: str, words: str
) -> None:
    await refused(fresh, make_tar(tmp_path / "a.tar", {**GOOD, **below(folder, MODEL)}), words)


async def test_folder_without_a_model_says_what_it_has(fresh: PatientPlatform, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    await refused(fresh, tmp_path / "empty", "it has nothing")
    await refused(fresh, make_folder(tmp_path / "other", {"a.txt": b"", "b/c.txt": b""}), r"it has a\.txt, b/c\.txt")
    # A model's own folder has no name of the model above it.
    await refused(fresh, make_folder(tmp_path / "bare", with_manifest(MODEL)), "organisation/name/revision")
    await refused(fresh, tmp_path / "absent", "cannot be read", StoreError)


async def test_file_of_another_size_than_its_manifest_says_is_refused_before_anything_is_written(
    fresh: PatientPlatform, tmp_path: Path
) -> None:
    files = {**GOOD, f"{FOLDER}/onnx/model.onnx": WEIGHTS[:-1]}
    await refused(fresh, make_folder(tmp_path / "source", files), f"its manifest.json says {len(WEIGHTS)}")


async def test_file_with_another_hash_than_its_manifest_says_is_not_imported(
    fresh: PatientPlatform, tmp_path: Path
) -> None:
    files = {**GOOD, f"{FOLDER}/onnx/model.onnx": WEIGHTS[::-1]}
    events: list[ProgressEvent] = []
    with pytest.raises(IntegrityError, match="It was not imported") as caught:
        await read_in(fresh, make_tar(tmp_path / "a.tar", files), events=events)
    assert caught.value.details["expected"] == hashlib.sha256(WEIGHTS).hexdigest()
    assert (events[-1].status_text, events[-1].ok) == ("done", False)
    assert "org/name@v1.0.0/onnx/model.onnx" not in await contents(fresh)
    assert (await fresh.blobs.usage()).drafts == 0


CHANGES = st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 255)), min_size=1, max_size=8)


@given(st.binary(max_size=2000) | CHANGES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_bytes_are_an_archive_or_a_named_error(
    fresh: PatientPlatform, tmp_path: Path, change: bytes | list[tuple[int, int]]
) -> None:
    target = tmp_path / "a.tar"
    if isinstance(change, bytes):
        target.write_bytes(change)
    else:
        data = bytearray(make_tar(target, GOOD).read_bytes())
        for offset, byte in change:
            data[offset] = byte
        target.write_bytes(data)
    [source] = await fresh.outside_files(target)
    try:
        members = await read_tar(source)
    except ArchiveError as error:
        assert "a.tar" in error.message  # noqa: PT017 (which error is the point)
    else:
        for member in members:
            assert 0 <= member.begin <= member.begin + member.size <= source.size
            assert ".." not in member.path.split("/")
    with contextlib.suppress(ArchiveError, IntegrityError):
        await read_in(fresh, target)
    # What became visible is what its manifest says, where it has one.
    visible = await contents(fresh)
    for path, read in visible.items():
        folder, _, name = path.partition("/manifest.json")
        for listed, entry in (parse_manifest(read, path) if path == f"{folder}/manifest.json" else {}).items():
            stored = visible.get(f"{folder}/{listed}")
            assert stored is None or hashlib.sha256(stored).hexdigest() == entry.sha256, name
    await fresh.blobs.delete([info.key for info in await fresh.blobs.list("model")])
