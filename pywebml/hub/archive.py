"""Models in and out of the store without a network: as a folder in hub layout, or as a tar archive of one.

    org/name/v1.0.0/manifest.json
    org/name/v1.0.0/config.json
    org/name/v1.0.0/onnx/model_quantized.onnx

Tar (POSIX pax), since a tar of stored files is made, and read, without looking at their bytes.

Where a model was stored without a `manifest.json`, one with `"complete": false` is made: what is imported is checked by
it, but it is not stored, since the hub may have more files than were exported.
"""

from __future__ import annotations

import asyncio
import json
import tarfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from pywebml.errors import ArchiveError, IntegrityError, OptionsError
from pywebml.hub.addresses import HubAddress, check_model_id, check_path, check_revision
from pywebml.hub.listing import MANIFEST, FileEntry, parse_manifest
from pywebml.hub.space import in_use, room_for
from pywebml.hub.stored import KIND, Selection, StoredFile, StoredModels, commit_file
from pywebml.platform import BlobKey, OutsideFile, Platform
from pywebml.progress import TransferProgress

_BLOCK = 512
_MOST_ENTRIES = 100_000
_LARGEST_EXTENSION = 1024 * 1024
_LARGEST_MANIFEST = 64 * 1024 * 1024
_LONGEST_PATH = 4096
_FILES = {tarfile.REGTYPE, tarfile.AREGTYPE}
_PASSED_OVER = {tarfile.DIRTYPE, tarfile.XGLTYPE}
_EXTENSIONS = {tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME}

Piece = bytes | BlobKey


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive or folder.

    Attributes:
        path: With slashes.
        source: Where its bytes are.
        begin: Where they begin there.
        size: How many they are.
    """

    path: str
    source: OutsideFile
    begin: int
    size: int

    async def read(self, limit: int) -> bytes:
        """All of its bytes. Raises `ArchiveError` when they are more than `limit`."""
        if self.size > limit:
            raise _wrong(self.path, f"it has {self.size} bytes, more than the {limit} that such a file can have")
        return await self.source.read(self.begin, self.begin + self.size)


@dataclass(frozen=True, slots=True)
class _Incoming:
    """A model in one revision that is to be imported."""

    model: str
    revision: str
    members: Mapping[str, Member]
    entries: Mapping[str, FileEntry] | None


async def export_models(platform: Platform, selection: Selection, target: Any, *, archive: bool) -> Any:
    """Write stored models to a folder or an archive.

    Args:
        platform: Where they are kept.
        selection: Which.
        target: See `Platform.write_outside`.
        archive: Whether it is one tar archive, not a folder.

    Returns:
        In the browser, without a target, the archive as a `Blob`; else None.

    Raises:
        OptionsError: Nothing is selected, or the same model of two hubs.
        StoreError: It cannot be written.
    """
    files = await StoredModels(platform).files(selection)
    if not files:
        raise OptionsError(
            "There is nothing to export: no stored model fits the selection. `list` shows what is stored.",
            field="selection",
            value=None,
        )
    contents: dict[str, tuple[Sequence[Piece], int]] = {}
    for folder, members in _by_folder(files).items():
        contents |= {f"{folder}/{file.path}": ((file.key,), file.size) for file in members}
        if f"{folder}/{MANIFEST}" not in contents:
            data = _manifest(members)
            contents[f"{folder}/{MANIFEST}"] = ((data,), len(data))
    if not archive:
        return await platform.write_outside(target, [(path, pieces) for path, (pieces, _) in contents.items()])
    pieces: list[Piece] = []
    for path, (content, size) in contents.items():
        header = tarfile.TarInfo(path)
        header.size = size
        pieces += [header.tobuf(tarfile.PAX_FORMAT), *content, bytes(-size % _BLOCK)]
    pieces.append(bytes(2 * _BLOCK))
    return await platform.write_outside(target, [("", pieces)])


async def import_models(
    platform: Platform,
    address: HubAddress,
    source: Any,
    *,
    limit: int | None = None,
    check_allowed: Callable[[str], Awaitable[None]] | None = None,
    start_progress: Callable[[str, str, str, str], TransferProgress],
) -> list[tuple[str, str]]:
    """Read models from a folder or an archive into the store, as if they came from a hub.

    Everything is looked at before anything is written. Files that a `manifest.json` lists are checked by size and hash;
    what it does not list is left out.

    Args:
        platform: Where they will be kept.
        address: Of the hub that they are of from now on.
        source: See `Platform.outside_files`.
        limit: See `make_room`; models that are pinned or in use stay.
        check_allowed: Raises `ForbiddenURLError` for an address that may not be used.
        start_progress: Makes the counter for a file from model, revision, path and URL.

    Returns:
        Model and revision of what was imported.

    Raises:
        ForbiddenURLError: A model may not be used. Nothing was imported.
        ArchiveError: It is no folder or archive of models, or not whole.
        IntegrityError: A file is not what its manifest says. Files before it are imported, this one is not.
        StoreError: There is no room, or the store cannot be used.
    """
    models = await _find_models(await _members(await platform.outside_files(source)))
    files = {
        BlobKey(KIND, address.owner(model.model), model.revision, path): (model, member)
        for model in models
        for path, member in model.members.items()
    }
    if check_allowed is not None:
        for key, (model, _) in files.items():
            await check_allowed(address.file_url(model.model, model.revision, key.path))
    names = {(address.owner_prefix, model.model, model.revision) for model in models}
    sizes = {key: member.size for key, (_, member) in files.items()}
    with in_use(platform, names):
        async with room_for(platform, sizes, limit=limit) as awaited:
            for key, (model, member) in files.items():
                url = address.file_url(model.model, model.revision, key.path)
                progress = start_progress(model.model, model.revision, key.path, url)
                entry = model.entries.get(key.path) if model.entries is not None else None
                await _import(platform, key, member, entry, {"model": model.model, "url": url}, progress)
                del awaited[key]
    return [(model.model, model.revision) for model in models]


async def _import(
    platform: Platform,
    key: BlobKey,
    member: Member,
    entry: FileEntry | None,
    metadata: Mapping[str, Any],
    progress: TransferProgress,
) -> None:
    progress.initiate()
    progress.expect(member.size)
    try:
        writer = await platform.blobs.open_writer(key)
        try:
            await member.source.copy(member.begin, member.begin + member.size, writer, progress.advance)
            size, sha256 = await writer.finish()
            if size != member.size or (entry is not None and (size, sha256) != (entry.size, entry.sha256)):
                raise IntegrityError(
                    f"{member.path} is not what its {MANIFEST} says: {size} bytes with SHA-256 {sha256}. It was not "
                    "imported; get the archive or folder anew.",
                    url=member.path,
                    expected=entry.sha256 if entry is not None else member.size,
                    received=sha256,
                )
            await commit_file(platform, key, writer, {**metadata, "lastUsed": platform.now()})
        except BaseException:
            await asyncio.shield(writer.abort())
            raise
    except BaseException:
        progress.done(ok=False)
        raise
    progress.done()


def _by_folder(files: Sequence[StoredFile]) -> dict[str, list[StoredFile]]:
    folders: dict[str, list[StoredFile]] = {}
    for file in files:
        # As in addresses: a slash in a branch's name would be a folder.
        members = folders.setdefault(f"{file.model}/{quote(file.revision, safe='')}", [])
        if members and members[0].hub != file.hub:
            raise OptionsError(
                f"{file.model} ({file.revision}) is stored from {members[0].hub} and from {file.hub}, which have one "
                "place in an archive. Select a hub.",
                field="hub",
                value=None,
            )
        members.append(file)
    return folders


def _manifest(files: Sequence[StoredFile]) -> bytes:
    entries = {file.path: {"size": file.size, "sha256": file.sha256} for file in files}
    return json.dumps({"complete": False, "files": entries}, indent=2, ensure_ascii=False).encode()


async def _members(files: Sequence[OutsideFile]) -> list[Member]:
    """The files of a folder, or of the archive that is the only file."""
    if len(files) == 1 and files[0].path.lower().endswith(".tar"):
        return await read_tar(files[0])
    return [Member(file.path, file, 0, file.size) for file in files]


async def read_tar(source: OutsideFile) -> list[Member]:
    """The regular files of a tar archive.

    Raises:
        ArchiveError: It is not one, not whole, or has links or devices in it.
    """
    members: list[Member] = []
    position, extended = 0, dict[str, str]()
    # The end mark is one more.
    for _ in range(_MOST_ENTRIES + 1):
        block = await source.read(position, min(position + _BLOCK, source.size))
        if len(block) < _BLOCK:
            raise _wrong(source.path, f"it ends at byte {source.size}, before its end mark")
        if not any(block):
            return members
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
            size = info.size if info.type in _EXTENSIONS else int(extended.get("size", info.size))
        except (tarfile.HeaderError, ValueError) as error:
            raise _wrong(source.path, f"there is no header of a tar archive at byte {position} ({error})") from error
        begin = position + _BLOCK
        if size < 0 or begin + size > source.size:
            raise _wrong(source.path, f"an entry of {size} bytes at byte {position} goes beyond its end")
        position = begin + size + -size % _BLOCK
        if info.type in _EXTENSIONS:
            if size > _LARGEST_EXTENSION:
                raise _wrong(source.path, f"the header of an entry has {size} bytes")
            data = await source.read(begin, begin + size)
            extended |= _extension(source.path, info.type, data)
            continue
        path = extended.get("path", info.name)
        extended = {}
        if info.type in _FILES:
            members.append(Member(_checked(source.path, path), source, begin, size))
        elif info.type not in _PASSED_OVER:
            raise _wrong(source.path, f"{path!r} in it is neither a file nor a folder")
    raise _wrong(source.path, f"it has more than {_MOST_ENTRIES} entries")


def _checked(archive: str, path: str) -> str:
    """A path in an archive, without the `./` that tar programs put before it."""
    plain = path.removeprefix("./")
    parts = plain.split("/")
    if len(plain) > _LONGEST_PATH or any(part in {"", ".", ".."} or "\\" in part or "\0" in part for part in parts):
        raise _wrong(archive, f"{path[:_LONGEST_PATH]!r} in it is no path of a file below its folder")
    return plain


def _extension(archive: str, kind: bytes, data: bytes) -> dict[str, str]:
    """What an extended header says of the entry after it (POSIX.1-2001, pax; or GNU's long names)."""
    try:
        if kind == tarfile.GNUTYPE_LONGNAME:
            return {"path": data.rstrip(b"\0").decode()}
        fields: dict[str, str] = {}
        while data:
            digits, _, _ = data.partition(b" ")
            if not digits.isdigit() or len(digits) > 7 or not 0 < int(digits) <= len(data):
                raise ValueError(digits)
            record, data = data[: int(digits)], data[int(digits) :]
            name, separator, value = record[len(digits) + 1 : -1].partition(b"=")
            if not separator or record[-1:] != b"\n" or name.startswith(b"GNU.sparse."):
                raise ValueError(record)
            if name in {b"path", b"size"}:
                fields[name.decode()] = value.decode()
    except ValueError as error:
        raise _wrong(archive, f"a header in it makes no sense ({error})") from error
    return fields


async def _find_models(members: Sequence[Member]) -> list[_Incoming]:
    folders: dict[str, dict[str, Member]] = {}
    places = (member.path.rpartition("/") for member in members)
    roots = {folder for folder, _, name in places if name in {MANIFEST, "config.json"}}
    for member in members:
        parts = member.path.split("/")
        outer = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
        # A model's own folder is the outermost that looks like one.
        root = next((folder for folder in outer if folder in roots), None)
        if root is None:
            continue
        path = member.path.removeprefix(f"{root}/")
        if path in folders.setdefault(root, {}):
            raise _wrong(member.path, "it is there twice")
        folders[root][path] = member
    if not folders:
        names = ", ".join(sorted(member.path for member in members)[:3]) or "nothing"
        raise ArchiveError(
            f"There is no model in what you chose: it has {names}. Choose a hub's folder, or a tar archive of one, "
            f"with organisation/name/revision/{MANIFEST} in it.",
            path=names,
        )
    return [await _incoming(root, files) for root, files in sorted(folders.items())]


async def _incoming(root: str, members: Mapping[str, Member]) -> _Incoming:
    *names, folder = root.split("/")
    try:
        model, revision = check_model_id("/".join(names[-2:])), check_revision(unquote(folder))
        entries, complete = None, True
        if MANIFEST in members:
            data = await members[MANIFEST].read(_LARGEST_MANIFEST)
            entries, complete = (
                parse_manifest(data, f"{root}/{MANIFEST}"),
                json.loads(data).get("complete") is not False,
            )
        wanted = {path: member for path, member in members.items() if entries is None or path in entries}
        if MANIFEST in members and complete:
            wanted[MANIFEST] = members[MANIFEST]
        for path in wanted:
            check_path(path)
    except (OptionsError, IntegrityError) as error:
        raise _wrong(root, error.message) from error
    for path, member in wanted.items():
        if entries is not None and path != MANIFEST and member.size != entries[path].size:
            raise _wrong(member.path, f"it has {member.size} bytes, but its {MANIFEST} says {entries[path].size}")
    return _Incoming(model, revision, wanted, entries)


def _wrong(path: str, what: str) -> ArchiveError:
    return ArchiveError(f"{path} cannot be imported: {what}. Nothing was imported.", path=path)
