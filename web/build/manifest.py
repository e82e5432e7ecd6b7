"""`dist/manifest.json`: every file with its size and SHA-256."""

from __future__ import annotations

import hashlib
import json

from web.build.paths import DIST

MANIFEST = DIST / "manifest.json"


def write_manifest() -> None:
    """Write the list of all other files of `dist/`."""
    files = {}
    for path in sorted(path for path in DIST.rglob("*") if path.is_file() and path != MANIFEST):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.relative_to(DIST).as_posix()] = {"size": path.stat().st_size, "sha256": digest}
    MANIFEST.write_text(json.dumps({"files": files}, indent=1) + "\n")
