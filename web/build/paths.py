"""Where the build reads and writes."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIST = ROOT / "dist"
BUILD = ROOT / "build"
STAMPS = BUILD / "stamps"
LOGS = BUILD / "logs"
NODE_MODULES = ROOT / "node_modules"
# Downloads and converted models outlive `./build.sh clean`; the variable lets several checkouts share them.
CACHE = Path(os.environ.get("PYWEBML_CACHE") or ROOT / ".cache").resolve()
