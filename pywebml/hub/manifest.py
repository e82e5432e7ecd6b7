"""`manifest.json`: the complete list of a model's files on a hub, with sizes and hashes.

{"files": {"onnx/model.onnx": {"size": 90387606, "sha256": "6fd5d7…"}}}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pywebml.errors import IntegrityError, OptionsError
from pywebml.hub.addresses import check_path

MANIFEST = "manifest.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """What a manifest says about a file.

    Attributes:
        size: In bytes.
        sha256: Lower-case hexadecimal.
    """

    size: int
    sha256: str


def parse_manifest(data: bytes, url: str) -> Mapping[str, FileEntry]:
    """The files of a manifest. Raises `IntegrityError` for anything that is not one."""

    def wrong(what: str) -> IntegrityError:
        return IntegrityError(
            f"{url} is not a manifest of a model: {what}. Build it again, or tell the hub's owner.",
            url=url,
            expected='{"files": {path: {"size", "sha256"}}}',
            received=what,
        )

    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise wrong(f"it is no JSON ({error})") from error
    files = document.get("files") if isinstance(document, dict) else None
    if not isinstance(files, dict):
        raise wrong("it has no object 'files'")
    entries = {}
    for path, entry in files.items():
        size = entry.get("size") if isinstance(entry, dict) else None
        sha256 = entry.get("sha256") if isinstance(entry, dict) else None
        try:
            check_path(path)
        except OptionsError as error:
            raise wrong(error.message) from error
        if type(size) is not int or size < 0 or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise wrong(f"size and sha256 of {path!r} are {size!r} and {sha256!r}")
        entries[path] = FileEntry(size, sha256)
    return entries
