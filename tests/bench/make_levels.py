"""Converts all-MiniLM-L6-v2 at every level, for `levels.bench.ts`: `python -m tests.bench.make_levels`.

The models of the last time are used again while nothing has changed that decides over their bytes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from pywebml.prepare.compare import Tolerance
from pywebml.prepare.convert import Choices, convert
from pywebml.prepare.demo import MODEL_ID, REVISION, fetch_demo_checkpoint
from pywebml.prepare.quantizing import LEVELS
from web.build.paths import BUILD, CACHE

HUB = BUILD / "bench/levels"


def main() -> None:
    """Write the hub and `build/bench/levels.json`: what is known of every level without a browser."""
    prepare = Path(convert.__code__.co_filename).parent
    digest = hashlib.sha256()
    for path in sorted(prepare.rglob("*.py")):
        digest.update(path.read_bytes())
    stamp = HUB / "made-by"
    folder = HUB / MODEL_ID / REVISION
    if not stamp.is_file() or stamp.read_text() != digest.hexdigest():
        # The table is to have levels that a conversion would refuse too.
        anything = dict.fromkeys(LEVELS, Tolerance())
        choices = Choices(task="feature-extraction", modes=tuple(LEVELS), tolerances=anything)
        convert(fetch_demo_checkpoint(CACHE), HUB, MODEL_ID, choices, revision=REVISION)
        stamp.write_text(digest.hexdigest())
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    rows = [
        {
            "dtype": file["dtype"],
            "summary": LEVELS[file["dtype"]].summary,
            "size": file["size"] + sum(shard["size"] for shard in file["external_data"]),
            "max_abs_error": file["max_abs_error"],
            "max_rel_error": file["max_rel_error"],
            "worst_cosine": file["worst_cosine"],
            "refused": file["max_rel_error"] > LEVELS[file["dtype"]].max_relative_error
            or file["worst_cosine"] < LEVELS[file["dtype"]].min_cosine,
        }
        for file in report["files"]
    ]
    (BUILD / "bench/levels.json").write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
