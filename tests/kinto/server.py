"""Starts Kinto with our plugin on loopback: `python -m tests.kinto.server`.

The first line of its output is JSON: `url`, `root_sha256`, `all_ec_root_sha256`, and `bad_chains`, from the names of
signers to why they are refused. It ends when its input does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "kinto.includes": "kinto.plugins.accounts kinto.plugins.flush kinto_attachment tests.kinto.plugin",
    "kinto.storage_backend": "kinto.core.storage.memory",
    "kinto.cache_backend": "kinto.core.cache.memory",
    "kinto.permission_backend": "kinto.core.permission.memory",
    "kinto.userid_hmac_secret": "not a secret",
    "multiauth.policies": "account",
    "multiauth.policy.account.use": "kinto.plugins.accounts.authentication.AccountsAuthenticationPolicy",
    "kinto.account_create_principals": "system.Everyone",
    "kinto.account_write_principals": "account:admin",
    "kinto.bucket_create_principals": "account:admin",
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
    from waitress.server import create_server

    import kinto

    with tempfile.TemporaryDirectory() as folder, socket.socket() as listener:
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
            },
        )
        server = create_server(application, sockets=[listener], threads=8)
        threading.Thread(target=server.run, daemon=True).start()
        chains = application.registry.rs_state.chains
        told = {
            "url": url,
            "root_sha256": chains.root_sha256,
            "all_ec_root_sha256": chains.all_ec_root_sha256,
            "bad_chains": chains.reasons,
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
        self._process.communicate(input="", timeout=20)


if __name__ == "__main__":
    main()
