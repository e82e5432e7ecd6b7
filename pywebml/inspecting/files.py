"""What lies in a folder, in a file or at an address, and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, TypeAlias
from urllib.parse import quote, urljoin, urlsplit

from pywebml.errors import HubError, InspectionError, PywebmlError, StoreError
from pywebml.hub.answers import content_range
from pywebml.hub.listing import parse_lfs_pointer, parse_manifest
from pywebml.inspecting.onnx import OnnxFile, parse_onnx
from pywebml.inspecting.safetensors import SafetensorsFile, looks_like_safetensors, parse_safetensors
from pywebml.inspecting.window import FIRST_BLOCK, drive_async
from pywebml.platform import NetworkError, OutsideFile, Platform, Response

MANIFEST = "manifest.json"
MAX_JSON_BYTES = 32 * 1024 * 1024
MAX_WHOLE_BYTES = 64 * 1024 * 1024
"""What is taken from a server that knows no ranges."""
MAX_REMOTE_BYTES = 256 * 1024 * 1024
"""What is taken from a server in all."""
MAX_SHARDS = 200
_BEGINNING = 512

_KINDS = (
    (b"GGUF", "a GGUF file"),
    (b"ggjt", "a GGML file"),
    (b"PK\x03\x04", "a zip archive, such as PyTorch's own files are"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x80\x02", "a pickled file"),
    (b"\x80\x03", "a pickled file"),
    (b"\x80\x04", "a pickled file"),
    (b"\x80\x05", "a pickled file"),
    (b"TFL3", "a TensorFlow Lite file"),
)

Read: TypeAlias = Callable[[int, int], Awaitable[bytes]]


@dataclass(slots=True)
class InspectedFile:
    """One file.

    Attributes:
        path: Below the folder; of a single file its name.
        size: In bytes.
        kind: `onnx`, `safetensors`, `external data`, `json` or `other`.
        content: What it says.
        data_files: Of an ONNX file, the sizes of the files of its external data; None for one that is missing.
        problems: What is wrong with it.
    """

    path: str
    size: int
    kind: str
    content: OnnxFile | SafetensorsFile | None = None
    data_files: dict[str, int | None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


async def inspect_what_is_here(platform: Platform, source: Any) -> list[InspectedFile]:
    """Look into a file or into every file of a folder.

    Args:
        platform: Reads it.
        source: In CPython its path; in the browser what `Platform.outside_files` takes.

    Returns:
        One entry per file; what is wrong with the files of a folder is in `problems`.

    Raises:
        StoreError: It cannot be read.
        InspectionError: A single file is no model, or is damaged.
    """
    files = await platform.outside_files(source)
    if len(files) == 1 and "/" not in files[0].path and PurePosixPath(str(source)).name == files[0].path:
        single = files[0]
        inspected = await _look_into_one(single.path, single.size, single.read)
        for name, least in _external_data(inspected).items():
            try:
                (found,) = await platform.outside_files(PurePosixPath(str(source)).parent / name)
            except StoreError:
                _note_data(inspected, name, None, least)
            else:
                _note_data(inspected, name, found.size, least)
        return [inspected]
    return await _inspect_folder(files)


async def inspect_url(platform: Platform, url: str, *, headers: Mapping[str, str] | None = None) -> list[InspectedFile]:
    """Look into a file on a server, by ranges: of the weights nothing is transferred.

    Args:
        platform: Sends the requests.
        url: Of the file.
        headers: Of every request, such as `authorization`.

    Raises:
        HubError: The server does not answer, has no such file, or the file changed in between.
        InspectionError: The file is no model, or is damaged.
    """
    remote = _RemoteFile(platform, url, dict(headers or {}))
    await remote.open()
    name = PurePosixPath(urlsplit(url).path).name or url
    inspected = await _look_into_one(name, remote.size, remote.read)
    for data_name, least in _external_data(inspected).items():
        size = await remote.size_of(urljoin(remote.url, quote(data_name)))
        _note_data(inspected, data_name, size, least)
    return [inspected]


async def _look_into_one(path: str, size: int, read: Read) -> InspectedFile:
    """The same, with errors that name the file."""
    try:
        return await _look_into(path, size, read)
    except InspectionError as error:
        raise InspectionError(f"{path}: {error.message}", **{**error.details, "path": path}) from error


async def _look_into(path: str, size: int, read: Read) -> InspectedFile:
    begin = await read(0, min(_BEGINNING, size))
    _refuse_other_kinds(begin, size)
    if path.endswith(".safetensors") or looks_like_safetensors(begin, size):
        return InspectedFile(path, size, "safetensors", await drive_async(parse_safetensors(size), read))
    return InspectedFile(path, size, "onnx", await drive_async(parse_onnx(size), read))


def _refuse_other_kinds(begin: bytes, size: int) -> None:
    if parse_lfs_pointer(begin) is not None:
        raise InspectionError("This is a Git LFS pointer, not the file itself. Fetch it with `git lfs pull`.")
    if begin.lstrip()[:15].lower().startswith((b"<!doctype", b"<html")):
        raise InspectionError("This is a web page, not a model file.")
    for magic, kind in _KINDS:
        if begin.startswith(magic):
            raise InspectionError(f"This is {kind}; ONNX and safetensors files can be looked into.")
    if size == 0:
        raise InspectionError("The file is empty.", size=0)


def _external_data(file: InspectedFile) -> dict[str, int]:
    """External data of an ONNX file, as far as it lies beside it; other names become problems."""
    if not isinstance(file.content, OnnxFile):
        return {}
    wanted = file.content.external_data()
    fits = {name: least for name, least in wanted.items() if _is_plain(name)}
    if len(fits) < len(wanted):
        wrong = next(name for name in wanted if name not in fits)
        file.problems.append(f"External data at '{wrong[:100]}', which is no file beside it.")
    if len(fits) > MAX_SHARDS:
        file.problems.append(f"External data in {len(fits)} files; {MAX_SHARDS} are looked at.")
    return dict(list(fits.items())[:MAX_SHARDS])


def _is_plain(name: str) -> bool:
    return name not in {"", ".", ".."} and name.isprintable() and not set(name) & set("/\\:\0") and len(name) <= 255


def _note_data(file: InspectedFile, name: str, size: int | None, least: int) -> None:
    file.data_files[name] = size
    if size is None:
        file.problems.append(f"The file of external data {name} is missing; it must have at least {least} bytes.")
    elif size < least:
        file.problems.append(f"The file of external data {name} has {size} bytes, but {least} are needed.")


# Folders


async def _inspect_folder(files: Sequence[OutsideFile]) -> list[InspectedFile]:
    inspected = {file.path: await _inspect_one(file) for file in files}
    for entry in list(inspected.values()):
        folder = PurePosixPath(entry.path).parent
        for name, least in _external_data(entry).items():
            data = inspected.get((folder / name).as_posix())
            _note_data(entry, name, None if data is None else data.size, least)
            if data is not None:
                data.kind = "external data"
    for file in files:
        if file.path.endswith(".safetensors.index.json"):
            await _check_index(file, inspected)
        elif file.path.rpartition("/")[2] == MANIFEST:
            await _check_manifest(file, inspected)
    return list(inspected.values())


async def _inspect_one(file: OutsideFile) -> InspectedFile:
    suffix = PurePosixPath(file.path).suffix
    if suffix not in (".onnx", ".safetensors"):
        return InspectedFile(file.path, file.size, "json" if suffix == ".json" else "other")
    try:
        return await _look_into(file.path, file.size, file.read)
    except (InspectionError, StoreError) as error:
        return InspectedFile(file.path, file.size, suffix.removeprefix("."), problems=[error.message])


async def _check_index(file: OutsideFile, inspected: Mapping[str, InspectedFile]) -> None:
    """Every tensor of an index must be in the shard that it names."""
    entry = inspected[file.path]
    try:
        value = json.loads(await _whole(file))
        weights = dict(value["weight_map"])
    except (InspectionError, StoreError, ValueError, RecursionError, KeyError, TypeError) as error:
        entry.problems.append(f"It is no index of shards: {type(error).__name__}.")
        return
    folder = PurePosixPath(file.path).parent
    missing: dict[str, int] = {}
    for name, shard in weights.items():
        found = inspected.get((folder / str(shard)).as_posix())
        if found is None or not isinstance(found.content, SafetensorsFile):
            missing[str(shard)] = missing.get(str(shard), 0) + 1
        elif name not in {tensor.name for tensor in found.content.tensors}:
            entry.problems.append(f"{shard} has no tensor '{str(name)[:100]}'.")
    entry.problems += [f"{shard[:100]} is missing, with {count} tensors." for shard, count in missing.items()]


async def _check_manifest(file: OutsideFile, inspected: Mapping[str, InspectedFile]) -> None:
    """Sizes must be those of the manifest; hashes are not looked at."""
    entry = inspected[file.path]
    try:
        listed = parse_manifest(await _whole(file), file.path)
    except PywebmlError as error:
        entry.problems.append(error.message)
        return
    folder = PurePosixPath(file.path).parent
    for path, expected in listed.items():
        found = inspected.get((folder / path).as_posix())
        if found is None:
            entry.problems.append(f"{path} is listed, but missing.")
        elif expected.size is not None and found.size != expected.size:
            found.problems.append(f"The manifest says {expected.size} bytes.")


async def _whole(file: OutsideFile) -> bytes:
    if file.size > MAX_JSON_BYTES:
        raise InspectionError(f"It has {file.size} bytes; {MAX_JSON_BYTES} are read.", size=file.size)
    return await file.read(0, file.size)


# Servers


class _RemoteFile:
    """A file that a server gives in ranges."""

    def __init__(self, platform: Platform, url: str, headers: dict[str, str]) -> None:
        self.url = url
        self.size = 0
        self._platform = platform
        # A range of a compressed body would be one of other bytes.
        self._headers = {"accept-encoding": "identity", **headers}
        self._begin = b""
        self._received = 0
        self._etag = ""

    async def open(self) -> None:
        """Ask for the beginning, which also tells the size."""
        response = await self._request(0, FIRST_BLOCK)
        if response.status == 200:
            # The server knows no ranges.
            self._begin = await self._body(response, MAX_WHOLE_BYTES)
            self.size = len(self._begin)
            return
        found = content_range(response)
        if response.status == 416:
            await response.close()
            raise InspectionError("The file is empty.", size=0)
        if found is None or found[0] != 0:
            await response.close()
            raise HubError(f"{self.url} was answered with another range than asked for.", url=self.url)
        self.size, self._etag = found[2], response.headers.get("etag", "")
        self._begin = await self._body(response, FIRST_BLOCK)

    async def read(self, begin: int, end: int) -> bytes:
        """Some of its bytes."""
        if end <= len(self._begin):
            return self._begin[begin:end]
        response = await self._request(begin, end)
        if content_range(response) != (begin, end, self.size) or response.headers.get("etag", "") != self._etag:
            await response.close()
            raise HubError(
                f"{self.url} was answered with another range than asked for, or changed meanwhile. Try again.",
                url=self.url,
            )
        return await self._body(response, end - begin)

    async def size_of(self, url: str) -> int | None:
        """How large another file of this server is; None when it is not there or does not say."""
        try:
            response = await self._platform.request(url, method="HEAD", headers=self._headers)
            await response.close()
        except NetworkError:
            return None
        text = response.headers.get("content-length", "")
        return int(text) if response.status == 200 and text.isascii() and text.isdigit() and len(text) < 19 else None

    async def _request(self, begin: int, end: int) -> Response:
        headers = {**self._headers, "range": f"bytes={begin}-{end - 1}"}
        try:
            response = await self._platform.request(self.url, headers=headers)
        except NetworkError as error:
            raise HubError(f"{self.url} does not answer: {error}.", url=self.url) from error
        if response.status not in (200, 206, 416):
            await response.close()
            hint = " Give an access token if it is private." if response.status in (401, 403) else ""
            raise HubError(
                f"{self.url} answered with status {response.status}.{hint}", url=self.url, status=response.status
            )
        return response

    async def _body(self, response: Response, limit: int) -> bytes:
        try:
            data = await response.read(limit)
        except NetworkError as error:
            raise HubError(f"{self.url} could not be read: {error}.", url=self.url) from error
        self._received += len(data)
        if self._received > MAX_REMOTE_BYTES:
            raise InspectionError(f"More than {MAX_REMOTE_BYTES} bytes would be read. Download the file first.")
        return data
