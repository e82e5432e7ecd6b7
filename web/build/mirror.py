"""The settings mirror of the build, its keys and its dumps: `python -m web.build.mirror keys|mirror|dumps`.

The keys belong to one machine: they are made once, kept in the cache, and never leave it. What is built trusts their
root and no other one.
"""

from __future__ import annotations

import datetime
import json
import sys

from pywebml.prepare.mirror import demo_collections, write_demo_mirror, write_dump
from pywebml.prepare.signing_keys import (
    RENEW_BEFORE_DAYS,
    days_left,
    make_signing_keys,
    open_signing_keys,
    renew_leaf,
)
from web.build.paths import BUILD, CACHE, DIST, NODE_MODULES, ROOT

RUNTIME_PACKAGE = NODE_MODULES / "onnxruntime-web"
RUNTIME_WASM = RUNTIME_PACKAGE / "dist" / "ort-wasm-simd-threaded.wasm"
ROOT_FILE = BUILD / "settings-root.json"
KEYS = CACHE / "settings-keys"
DUMPS = ROOT / "pywebml" / "settings" / "dumps"


def runtime_version() -> str:
    """Of the ONNX Runtime that the bundle drives."""
    return str(json.loads((RUNTIME_PACKAGE / "package.json").read_text())["version"])


def write_keys() -> None:
    """Make the keys, or renew the leaf where it is about to expire, and tell the bundle their root."""
    now = datetime.datetime.now(datetime.UTC)
    if not (KEYS / "chain.pem").exists():
        signer = make_signing_keys(KEYS, now, root_key="ec-p384")
    else:
        signer = open_signing_keys(KEYS)
        if days_left(signer, now) < RENEW_BEFORE_DAYS:
            signer = renew_leaf(KEYS, now)
    ROOT_FILE.parent.mkdir(exist_ok=True)
    ROOT_FILE.write_text(json.dumps({"sha256": signer.root_sha256}) + "\n")


def write_signed_mirror() -> None:
    """Write `dist/v1`."""
    write_demo_mirror(DIST / "v1", RUNTIME_WASM, runtime_version(), open_signing_keys(KEYS))


def write_dumps() -> None:
    """Renew the dumps in the package after a change of the records."""
    for collection in demo_collections(RUNTIME_WASM, runtime_version()):
        write_dump(DUMPS, collection)


if __name__ == "__main__":
    {"keys": write_keys, "mirror": write_signed_mirror, "dumps": write_dumps}[sys.argv[1]]()
