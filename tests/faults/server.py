"""An HTTP server of one folder that breaks answers on demand and counts requests.

    python tests/faults/server.py --root dist --port 8123 [--mount /pages/=FOLDER] [--no-isolation]

Over HTTP: `POST /__faults__` with a rule as JSON, `POST /__reset__`, `GET /__log__`. Standard library only.

A rule: `path` (shell pattern), `kind`, `value`, `times` (how many requests; none: all), `method` (`GET`).

    kind      value
    truncate  bytes after which the connection is closed, under a whole Content-Length
    flip      offset of a byte that is sent inverted
    status    status of an answer with a short text
    html      - (200, a page in place of the file)
    stall     bytes after which nothing more comes, until reset
    shorter   how many bytes less Content-Length says; only so many are sent
    drop      - (closed without an answer)
    gzip      - (the file, compressed)
    etag      another ETag
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import mimetypes
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
    "Access-Control-Allow-Headers": "*",
    "Access-Control-Expose-Headers": "Content-Length, ETag, Last-Modified",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "cross-origin",
    # The browser's own cache would hide requests from the count.
    "Cache-Control": "no-store",
}
PAGE = b"<!doctype html><title>Sign in</title><p>Please sign in to go on."
TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".json": "application/json",
    ".wasm": "application/wasm",
}


@dataclass
class Fault:
    path: str
    kind: str
    value: Any = None
    times: int | None = None
    method: str = "GET"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: str
    cookie: str


class State:
    """What the handlers of one server share."""

    def __init__(self, root: Path, mounts: Mapping[str, Path], *, isolated: bool) -> None:
        self.roots = {prefix: folder.resolve() for prefix, folder in {**mounts, "/": root}.items()}
        self.headers = {k: v for k, v in HEADERS.items() if isolated or ("Embedder" not in k and "Opener" not in k)}
        self.lock = threading.Lock()
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.released = threading.Event()

    def locate(self, path: str) -> Path | None:
        """The file of a path; None when there is none, or when it would lie outside."""
        prefix = next(prefix for prefix in self.roots if path.startswith(prefix))
        root = self.roots[prefix]
        file = (root / path.removeprefix(prefix).lstrip("/")).resolve()
        if file.is_dir():
            file = file / "index.html"
        return file if file.is_relative_to(root) and file.is_file() else None

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times == 0 or fault.method != method or not fnmatchcase(path, fault.path):
                    continue
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return None

    def reset(self) -> None:
        with self.lock:
            self.faults.clear()
            self.requests.clear()
            self.released.set()
            self.released = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: State

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/__log__":
            with self.state.lock:
                requests = [asdict(request) for request in self.state.requests]
            counts = Counter(request["path"] for request in requests)
            self.answer(200, json.dumps({"requests": requests, "counts": counts}).encode(), "application/json")
            return
        with self.state.lock:
            cookie = self.headers.get("Cookie") or ""
            self.state.requests.append(Request(self.command, unquote(parts.path), parts.query, cookie))
        self.serve(unquote(parts.path))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_OPTIONS(self) -> None:
        self.answer(204, b"", "")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/__reset__":
            self.state.reset()
            self.answer(200, b"{}", "application/json")
        elif self.path == "/__faults__":
            fault = Fault(**json.loads(body))
            with self.state.lock:
                self.state.faults.append(fault)
            self.answer(200, b"{}", "application/json")
        else:
            self.answer(404, b"no such control", "text/plain")

    def serve(self, path: str) -> None:
        file = self.state.locate(path)
        fault = self.state.take_fault(self.command, path) or Fault("", "")
        if fault.kind == "drop":
            self.close_connection = True
            return
        if fault.kind == "status":
            self.answer(int(fault.value), b"a fault of the tests", "text/plain")
            return
        if fault.kind == "html":
            self.answer(200, PAGE, "text/html; charset=utf-8")
            return
        if file is None:
            self.answer(404, b"no such file", "text/plain")
            return
        self.send_file(file, fault)

    def send_file(self, file: Path, fault: Fault) -> None:
        body = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"'}
        if fault.kind == "etag":
            headers["ETag"] = str(fault.value)
        if fault.kind == "gzip":
            body = gzip.compress(body, mtime=0)
            headers["Content-Encoding"] = "gzip"
        if fault.kind == "flip":
            at = int(fault.value)
            body = body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :]
        if fault.kind == "shorter":
            body = body[: len(body) - int(fault.value)]
        content_type = TYPES.get(file.suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        if fault.kind not in {"truncate", "stall"}:
            self.answer(200, body, content_type, headers)
            return
        # Taken before the client can see a byte, so that no reset is missed.
        released = self.state.released
        self.head(200, len(body), content_type, headers)
        self.wfile.write(body[: int(fault.value)])
        self.wfile.flush()
        self.close_connection = True
        if fault.kind == "stall":
            released.wait()

    def head(self, status: int, length: int, content_type: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (self.state.headers | headers).items():
            self.send_header(name, value)
        if content_type:
            self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def answer(self, status: int, body: bytes, content_type: str, headers: dict[str, str] | None = None) -> None:
        self.head(status, len(body), content_type, headers or {})
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name is the base class's)
        """Quiet."""


class FaultServer:
    """The server in a thread of its own.

    Args:
        root: The folder.
        port: 0: any free one.
        mounts: Further folders, by the beginning of their paths (`/pages/`).
        isolated: Whether pages get the headers that make them cross-origin isolated.
    """

    def __init__(
        self, root: Path, port: int = 0, *, mounts: Mapping[str, Path] | None = None, isolated: bool = True
    ) -> None:
        self.root = root
        self.state = State(root, mounts or {}, isolated=isolated)
        handler = type("BoundHandler", (Handler,), {"state": self.state})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FaultServer:
        # The short interval is how long `shutdown` waits.
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.state.reset()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serve_forever(self) -> None:
        """In this thread."""
        self._server.serve_forever()

    def write(self, path: str, data: bytes | str) -> bytes:
        """Put a file into the folder; returns its bytes."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        encoded = data.encode() if isinstance(data, str) else data
        target.write_bytes(encoded)
        return encoded

    def fault(self, path: str, kind: str, value: Any = None, *, times: int | None = None, method: str = "GET") -> None:
        """Add a rule."""
        with self.state.lock:
            self.state.faults.append(Fault(path, kind, value, times, method))

    def mend(self) -> None:
        """Drop all rules; the log stays."""
        with self.state.lock:
            self.state.faults.clear()

    def requests(self, pattern: str = "*") -> list[str]:
        """`GET /path` of every request so far whose path fits."""
        with self.state.lock:
            return [f"{r.method} {r.path}" for r in self.state.requests if fnmatchcase(r.path, pattern)]

    def queries(self, pattern: str = "*") -> list[str]:
        """The query strings of these requests."""
        with self.state.lock:
            return [r.query for r in self.state.requests if fnmatchcase(r.path, pattern)]

    def cookies(self) -> list[str]:
        """Every Cookie header that came in."""
        with self.state.lock:
            return [r.cookie for r in self.state.requests if r.cookie]

    def forget(self) -> None:
        """Empty the log."""
        with self.state.lock:
            self.state.requests.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--mount", action="append", default=[], metavar="/PREFIX/=FOLDER")
    parser.add_argument("--no-isolation", action="store_true")
    options = parser.parse_args()
    mounts = {prefix: Path(folder) for prefix, folder in (mount.split("=", 1) for mount in options.mount)}
    server = FaultServer(options.root, options.port, mounts=mounts, isolated=not options.no_isolation)
    print(server.url, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
