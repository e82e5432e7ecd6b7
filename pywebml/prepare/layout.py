"""Folders that appear complete or not at all, and the manifest of a model in hub layout.

A model lies at `{hub}/{organisation}/{name}/{revision}/`, and its `manifest.json` lists every other file there with
size and SHA-256; of large ones also with the SHA-256 of every part, so that a download can check parts as they come.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pywebml.errors import PrepareError
from pywebml.hub import PART_SIZE
from pywebml.platform.parts import BLOCK_SIZE, PartHash

MANIFEST = "manifest.json"

_MODEL_NAME = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*/)?[A-Za-z0-9_][A-Za-z0-9_.-]*")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_BLOCK = 1 << 20


def model_folder(hub: Path, name: str, revision: str) -> Path:
    """Where a revision of a model lies.

    Args:
        hub: Root of the hub.
        name: `organisation/name`, or `name`.
        revision: Such as `main` or `v1.0.0`.

    Raises:
        PrepareError: The name or the revision would not be usable as a path or in an address.
    """
    if not _MODEL_NAME.fullmatch(name) or ".." in name:
        raise PrepareError(
            f"'{name}' cannot be a model's name: give 'organisation/name' of letters, digits, '_', '-' and '.'.",
            name=name,
        )
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise PrepareError(
            f"'{revision}' cannot be a revision: give 'main' or a version such as v1.0.0.", revision=revision
        )
    return hub.joinpath(*name.split("/"), revision)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write plain data as JSON that a person can read; the same data gives the same bytes."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_manifest(folder: Path) -> None:
    """Write `manifest.json` over all other files below `folder`, in place of an older one."""
    target = folder / MANIFEST
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != target)
    write_json(target, {"files": {path.relative_to(folder).as_posix(): _entry(path) for path in paths}})


def _entry(path: Path) -> dict[str, Any]:
    """What a manifest says of a file, from one pass over its bytes."""
    size, whole, part, parts = 0, hashlib.sha256(), PartHash(), list[str]()
    with path.open("rb") as file:
        # No block reaches over the end of a part: a part is a whole number of blocks.
        while block := file.read(_BLOCK):
            whole.update(block)
            part.update(block)
            size += len(block)
            if size % PART_SIZE == 0:
                parts.append(part.hexdigest())
                part = PartHash()
    if size % PART_SIZE:
        parts.append(part.hexdigest())
    entry: dict[str, Any] = {"size": size, "sha256": whole.hexdigest()}
    return entry | {"parts": {"size": PART_SIZE, "block": BLOCK_SIZE, "sha256": parts}} if size > PART_SIZE else entry


@contextmanager
def folder_in_one_step(target: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `target` when the block ends well, replacing what was there.

    When the block raises, the folder is removed and `target` is what it was before.

    Raises:
        PrepareError: A file is in the place of the folder, or the disk does not allow it.
    """
    require_no_file(target)
    with disk_errors(target):
        # Beside the parents that exist already, so that nothing is left of a failure and a rename is enough at the end.
        parent = next(folder for folder in target.parents if folder.is_dir())
        work = Path(tempfile.mkdtemp(prefix=".pywebml-", dir=parent))
    try:
        filled, replaced = work / "new", work / "old"
        with disk_errors(target):
            filled.mkdir()
        yield filled
        with disk_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                target.rename(replaced)
            try:
                filled.rename(target)
            except OSError:
                if replaced.exists():
                    replaced.rename(target)
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def require_no_file(target: Path) -> None:
    """Refuse to replace what is there when it is no folder, and so was not made by us.

    Raises:
        PrepareError: It is a file.
    """
    if target.exists() and not target.is_dir():
        raise PrepareError(
            f"{target} is a file, in the place of a folder to write. Move it away, or choose another place.",
            path=str(target),
        )


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """What the disk refuses while a file or folder is written becomes an error with its path.

    Raises:
        PrepareError: In place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise PrepareError(
            f"Cannot write {target}: {error.strerror or error}. Check the path, its permissions and the free space.",
            path=str(target),
        ) from error
