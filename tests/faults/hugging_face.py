"""A Hugging Face style hub: files, LFS pointers, trees, private models, and large files on a CDN.

    GET, HEAD  /{model}/resolve/{revision}/{path}   the file; an LFS file: 302 to /cdn/{sha256}
    GET, HEAD  /{model}/raw/{revision}/{path}       the file; an LFS file: its pointer
    GET, HEAD  /api/models/{model}/tree/{revision}  the listing, in pages; ?recursive=true, ?limit=
    GET, HEAD  /api/models/{model}[/revision/{revision}]  the commit, and the names of the files

A revision with slashes arrives percent-encoded (`refs%2Fpr%2F1`). A commit's SHA names its revision too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from tests.faults.answers import Resource
from tests.faults.content import (
    MODIFIED,
    BytesContent,
    Content,
    Source,
    Synthetic,
    content_of,
    media_type,
    quoted,
    source_sha256,
)

LFS_NAMES = ("*.onnx", "*.onnx_data*", "*.safetensors", "*.bin")
LFS_SIZE = 1024 * 1024


@dataclass(frozen=True)
class RepositoryFile:
    """One file of a revision.

    Attributes:
        size: In bytes.
        sha256: Of its bytes (hex).
        oid: Git's SHA-1 of what git holds: the bytes, or the pointer.
        pointer: Of an LFS file.
        content: The bytes; of an LFS file, the CDN has them.
    """

    size: int
    sha256: str
    oid: str
    pointer: bytes | None
    content: Content


@dataclass(frozen=True)
class Revision:
    """What a model's revision holds."""

    commit: str
    files: Mapping[str, RepositoryFile]
    page_size: int
    cdn_url: str


@dataclass
class _Model:
    private_token: str | None = None
    revisions: dict[str, Revision] = field(default_factory=dict)


class HuggingFace:
    """The models of one server.

    Args:
        url: The server's own address.
        publish: Puts content under a path of this server.
    """

    def __init__(self, url: str, publish: Callable[[str, Content], None]) -> None:
        self._url = url
        self._publish = publish
        self._models: dict[str, _Model] = {}

    def add(
        self,
        model: str,
        revision: str,
        files: Mapping[str, Source],
        *,
        commit: str | None = None,
        private_token: str | None = None,
        page_size: int = 1000,
        cdn_url: str | None = None,
    ) -> Revision:
        """Serve a revision, in place of an earlier one of the same name; see `FaultServer.hugging_face`."""
        held = {path: _file(path, source) for path, source in files.items()}
        listing = json.dumps({path: file.oid for path, file in sorted(held.items())})
        sha = commit or hashlib.sha1(f"{model}\n{listing}".encode()).hexdigest()
        added = Revision(sha, held, page_size, (cdn_url or self._url).rstrip("/"))
        for path, file in held.items():
            if file.pointer is None:
                continue
            if cdn_url is None:
                self.add_to_cdn(file.sha256, files[path])
            else:
                _post(f"{added.cdn_url}/__cdn__", {"sha256": file.sha256, "file": source_to_json(files[path])})
        known = self._models.setdefault(model, _Model())
        known.private_token = private_token
        known.revisions[revision] = known.revisions[sha] = added
        return added

    def add_to_cdn(self, sha256: str, source: Source) -> None:
        """Serve bytes as a CDN does: under their hash, with an ETag of its own."""
        tag = quoted(hashlib.sha256(f"cdn {sha256}".encode()).hexdigest())
        self._publish(f"/cdn/{sha256}", content_of(source, "application/octet-stream", tag))

    def find(self, raw_path: str, query: str, authorization: str) -> Resource | None:
        """What a path (as it came, percent-encoded) names; None: nothing of a hub."""
        parts = [unquote(part) for part in raw_path.strip("/").split("/")]
        is_api = parts[:2] == ["api", "models"]
        parts = parts[2:] if is_api else parts
        if is_api and len(parts) == 2:
            parts += ["revision", "main"]
        routes = {"tree", "revision"} if is_api else {"resolve", "raw"}
        at = next((index for index in (1, 2) if index < len(parts) and parts[index] in routes), None)
        if not self._models or at is None or len(parts) < at + 2:
            return None
        name, route, revision, path = "/".join(parts[:at]), parts[at], parts[at + 1], "/".join(parts[at + 2 :])
        model = self._models.get(name)
        if model is None:
            return _refused(401, "RepoNotFound", "Repository not found", is_api=is_api)
        if model.private_token is not None and authorization != f"Bearer {model.private_token}":
            return _refused(401, "RepoNotFound", "Repository not found", is_api=is_api)
        found = model.revisions.get(revision)
        if found is None:
            return _refused(401, "RevisionNotFound", f"Invalid rev id: {revision}", is_api=is_api)
        if route == "revision":
            return _info(name, found, private=model.private_token is not None)
        if is_api:
            return self._tree(f"{name}/tree/{quote(revision, safe='')}", found, path, query)
        file = found.files.get(path)
        if file is None:
            return _refused(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": found.commit}, is_api=is_api)
        return _raw(path, file, found) if route == "raw" else _resolve(file, found)

    def _tree(self, address: str, revision: Revision, folder: str, query: str) -> Resource:
        asked = {name: values[-1] for name, values in parse_qs(query).items()}
        entries = tree_entries(revision.files, folder, recursive=asked.get("recursive", "").lower() in {"true", "1"})
        if folder and not entries:
            return _refused(404, "EntryNotFound", f"{folder} does not exist", is_api=True)
        begin = int(base64.urlsafe_b64decode(asked["cursor"])) if "cursor" in asked else 0
        end = begin + min(int(asked.get("limit", revision.page_size)), revision.page_size)
        headers = {"X-Repo-Commit": revision.commit}
        if end < len(entries):
            cursor = base64.urlsafe_b64encode(str(end).encode()).decode()
            kept = "".join(f"{name}={quote(asked[name])}&" for name in ("recursive", "limit") if name in asked)
            place = f"{address}/{quote(folder)}" if folder else address
            headers["Link"] = f'<{self._url}/api/models/{place}?{kept}cursor={quote(cursor)}>; rel="next"'
        return Resource(BytesContent.of(json.dumps(entries[begin:end]).encode(), "application/json"), headers=headers)


def _info(name: str, revision: Revision, *, private: bool) -> Resource:
    value = {
        "id": name,
        "sha": revision.commit,
        "private": private,
        "siblings": [{"rfilename": path} for path in sorted(revision.files)],
    }
    headers = {"X-Repo-Commit": revision.commit}
    return Resource(BytesContent.of(json.dumps(value).encode(), "application/json"), headers=headers)


def is_lfs(path: str, size: int) -> bool:
    """Whether the hub keeps a file outside git."""
    return size > LFS_SIZE or any(fnmatchcase(path.rsplit("/", 1)[-1], pattern) for pattern in LFS_NAMES)


def git_blob_sha1(data: bytes) -> str:
    """The name that git gives to a file's bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def tree_entries(files: Mapping[str, RepositoryFile], folder: str = "", *, recursive: bool) -> list[dict[str, Any]]:
    """The listing of a folder: folders, then files, each by path. A folder's oid names it, and is not git's own."""
    begin = f"{folder}/" if folder else ""
    inside = {path: file for path, file in files.items() if path.startswith(begin)}
    folders = {
        str(parent) for path in inside for parent in PurePosixPath(path).parents if str(parent) not in {".", folder}
    }
    folders = {path for path in folders if path.startswith(begin)}
    entries: list[dict[str, Any]] = [
        {"type": "directory", "oid": hashlib.sha1(f"tree {path}".encode()).hexdigest(), "size": 0, "path": path}
        for path in sorted(folders)
    ]
    for path, file in sorted(inside.items()):
        entry: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
        if file.pointer is not None:
            entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
        entries.append(entry)
    return entries if recursive else [entry for entry in entries if "/" not in entry["path"].removeprefix(begin)]


def source_to_json(source: Source) -> Any:
    """A file for the control addresses of another server."""
    if isinstance(source, Synthetic):
        return {"size": source.size, "seed": source.seed}
    if isinstance(source, Path):
        return {"file": str(source.resolve())}
    return source if isinstance(source, str) else {"base64": base64.b64encode(source).decode()}


def source_from_json(value: Any, root: Path) -> Source:
    """A text, or an object with `base64`, `size` and `seed`, or `file` (a path, from `root`)."""
    if isinstance(value, str):
        return value
    if "base64" in value:
        return base64.b64decode(value["base64"])
    return root / value["file"] if "file" in value else Synthetic(int(value["size"]), int(value.get("seed", 0)))


def _file(path: str, source: Source) -> RepositoryFile:
    size = content_of(source, "").size
    sha256 = source_sha256(source)
    kind = media_type(path)
    if is_lfs(path, size):
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return RepositoryFile(size, sha256, git_blob_sha1(pointer), pointer, content_of(source, kind))
    data = b"".join(content_of(source, kind).read(0, size))
    oid = git_blob_sha1(data)
    return RepositoryFile(size, sha256, oid, None, BytesContent.of(data, kind, f'"{oid}"'))


def _resolve(file: RepositoryFile, revision: Revision) -> Resource:
    headers = {"X-Repo-Commit": revision.commit}
    if file.pointer is None:
        return Resource(file.content, headers=headers)
    address = f"{revision.cdn_url}/cdn/{file.sha256}"
    headers |= {
        "Location": address,
        "X-Linked-Size": str(file.size),
        "X-Linked-ETag": f'"{file.sha256}"',
        "Accept-Ranges": "bytes",
    }
    return Resource(BytesContent.of(f"Found. Redirecting to {address}".encode(), "text/plain"), 302, headers)


def _raw(path: str, file: RepositoryFile, revision: Revision) -> Resource:
    headers = {"X-Repo-Commit": revision.commit}
    if file.pointer is None:
        return Resource(file.content, headers=headers)
    return Resource(BytesContent.of(file.pointer, "text/plain; charset=utf-8", f'"{file.oid}"', MODIFIED), 200, headers)


def _refused(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None, *, is_api: bool
) -> Resource:
    text = json.dumps({"error": message}) if is_api else message
    content = BytesContent.of(text.encode(), "application/json" if is_api else "text/plain; charset=utf-8")
    return Resource(content, status, {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})})


def _post(url: str, value: Any) -> None:
    """To the control address of another server, past any proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, json.dumps(value).encode(), method="POST"), timeout=60) as answer:
        answer.read()
