"""Starts Kinto with our plugin on loopback: `python -m tests.kinto.server`.

The first line of its output is JSON: `url`, `root_sha256`, `all_ec_root_sha256`, and `bad_chains`, from the names of
signers to why they are refused. It ends when its input does, or at SIGTERM, and takes its files with it.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.chains import make_chains

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "kinto.includes": "kinto.plugins.flush kinto_attachment tests.kinto.plugin",
    "kinto.storage_backend": "kinto.core.storage.memory",
    "kinto.cache_backend": "kinto.core.cache.memory",
    "kinto.permission_backend": "kinto.core.permission.memory",
    "kinto.userid_hmac_secret": "not a secret",
    # Any name and password: accounts would cost every test half a second of bcrypt.
    "multiauth.policies": "basicauth",
    "kinto.bucket_create_principals": "system.Authenticated",
    "kinto.cors_origins": "*",
    "kinto.attachment.base_url": "",
    "kinto.attachment.folder": "{bucket_id}-workspace/{collection_id}",
    # Otherwise a .wasm file is refused.
    "kinto.attachment.extensions": "any",
}


def main() -> None:
    """Serve until the input ends."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with ThreadPoolExecutor() as pool, tempfile.TemporaryDirectory() as folder, socket.socket() as listener:
        # Around the real clock, which the clients have. Keys are made while Kinto is imported.
        chains = pool.submit(make_chains, datetime.datetime.now(datetime.UTC))
        import kinto
        from waitress.server import create_server

        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        application: Any = kinto.main(
            {},
            config=None,
            **SETTINGS,
            **{
                "kinto.attachment.base_path": folder,
                "kinto.attachment.extra.base_url": f"{url}/attachments/",
                "test.base_url": url,
                "test.attachments": folder,
                "test.chains": chains,
            },
        )
        server = create_server(application, sockets=[listener], threads=8)
        threading.Thread(target=server.run, daemon=True).start()
        told = {
            "url": url,
            "root_sha256": chains.result().root_sha256,
            "all_ec_root_sha256": chains.result().all_ec_root_sha256,
            "bad_chains": chains.result().reasons,
        }
        print(json.dumps(told), flush=True)
        sys.stdin.read()
        with contextlib.suppress(OSError):
            server.close()


class KintoServer:
    """The same, in a process of its own.

    Attributes:
        url: With the version.
        root_sha256: Of the root above every good signer but `all_ec`.
        all_ec_root_sha256: Of the root above that one.
        bad_chains: Names of signers that nobody may believe, to words of the reason.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kinto.server"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("Kinto did not start; its error is above.")
        values = json.loads(line)
        self.url: str = values["url"]
        self.root_sha256: str = values["root_sha256"]
        self.all_ec_root_sha256: str = values["all_ec_root_sha256"]
        self.bad_chains: dict[str, str] = values["bad_chains"]

    def __enter__(self) -> KintoServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._process.communicate(timeout=20)
        finally:
            self._process.kill()


if __name__ == "__main__":
    main()
