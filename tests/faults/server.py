"""An HTTP/1.1 server of one folder that breaks answers on demand and counts requests. Standard library only.

    python tests/faults/server.py --root dist --port 8123 [--mount /pages/=FOLDER] [--no-isolation]

Over HTTP, with JSON bodies: `POST /__faults__` adds a rule, `POST /__mend__` drops all rules, `POST /__reset__` does so
too, empties the log and lets go of answers that stall or are slow; `GET /__log__[?path=PATTERN]` gives `requests`,
`counts`, `active` and `sent`; `POST /__synthetic__` {path, size, seed, sha256} makes up a file (with `sha256: true` it
tells the hash); `POST /__hugging_face__` takes what `FaultServer.hugging_face` takes.

A rule: `path` (shell pattern), `kind`, `value`, `times` (how many requests; none: all), `method` (`GET`; `*`: any),
`skip` (how many fitting requests pass first), `from_byte` and `to_byte` (only requests that want bytes from the one and
before the other; without a Range, all bytes are wanted). Every rule works on answers with a Range (206) too.

Accidents. The first rule that is due meets a request; bytes are counted in the body of that answer:

    kind             value
    truncate         bytes after which the connection is closed, though the headers promise all
    stall            bytes after which nothing more comes, until reset or until the client goes; none: no answer at all
    reset            bytes after which the connection is reset (RST); none: without an answer
    drop             - (closed without an answer)
    flip             offset in the file of a byte that is sent inverted; meets only requests that want this byte
    shorter          how many bytes less Content-Length says; only so many are sent
    longer           how many bytes more Content-Length says than are sent; then closed
    status           status of an answer with a short text, or {"status", "retry_after", "body", "headers"}
    html             - (200, a page in place of the file)
    redirect         the URL to go to (302), or {"to", "headers", "status"}
    wrong_range      by how many bytes the range that is sent, and told, is beside the wanted one; only with Range

Ways of the server. All that fit go together, and with one accident:

    auth             the Authorization header that is needed, also for HEAD; without it 401, and no other rule counts
    change           {"after_requests", "seed"} or {"after_requests", "data"}: after so many GETs another content, ETag
    no_range         - (200 and the whole file whatever Range says; no Accept-Ranges)
    no_length        - (chunks in place of Content-Length)
    close_delimited  - (neither chunks nor Content-Length; the end is the end of the connection)
    gzip             - (the file, compressed, with its compressed length), or "chunked"; only without Range
    etag             another ETag; none: neither ETag nor Last-Modified
    weak_etag        - (the ETag as a weak one)
    lying_total      how many bytes Content-Range makes the file longer; only with Range
    slow             bytes per second, until reset
    header           {name: value or none}: headers added, replaced, or left out
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

if not __package__:
    # Run as a script: the siblings are found from the folder of the repository.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.faults.answers import Answer, Resource, build, parse_range, text_answer
from tests.faults.content import (
    Content,
    FileContent,
    Source,
    Synthetic,
    content_of,
    forget_hash,
    media_type,
    synthetic_bytes,
    synthetic_sha256,
)
from tests.faults.faults import Asked, Fault, Rules
from tests.faults.hugging_face import HuggingFace, Revision, source_from_json
from tests.faults.wire import Log, Request, Wire

__all__ = ["Fault", "FaultServer", "Request", "Synthetic", "synthetic_bytes", "synthetic_sha256"]

EXPOSED = [
    *("Accept-Ranges", "Content-Encoding", "Content-Length", "Content-Range", "ETag", "Last-Modified", "Link"),
    *("Retry-After", "X-Error-Code", "X-Error-Message", "X-Linked-ETag", "X-Linked-Size", "X-Repo-Commit"),
]
HEADERS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, HEAD, OPTIONS",
    # The star does not stand for Authorization.
    "Access-Control-Allow-Headers": "*, Authorization, Range",
    "Access-Control-Expose-Headers": ", ".join(EXPOSED),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "cross-origin",
    # The browser's own cache would hide requests from the count.
    "Cache-Control": "no-store",
}


class State:
    """What the handlers of one server share; `lock` is the log's."""

    def __init__(self, root: Path, mounts: Mapping[str, Path], *, isolated: bool) -> None:
        self.root = root
        self.roots = {prefix: folder.resolve() for prefix, folder in {**mounts, "/": root}.items()}
        self.headers = {k: v for k, v in HEADERS.items() if isolated or ("Embedder" not in k and "Opener" not in k)}
        self.log = Log()
        self.lock = self.log.lock
        self.rules = Rules()
        self.published: dict[str, Content] = {}
        self.hub = HuggingFace("", self.publish)
        self.released = threading.Event()

    def locate(self, path: str) -> Path | None:
        """The file of a path; None when there is none, or when it would lie outside."""
        prefix = next(prefix for prefix in self.roots if path.startswith(prefix))
        root = self.roots[prefix]
        file = (root / path.removeprefix(prefix).lstrip("/")).resolve()
        if file.is_dir():
            file = file / "index.html"
        return file if file.is_relative_to(root) and file.is_file() else None

    def find(self, raw_path: str, query: str, authorization: str) -> Resource | None:
        """What a path names: something published, a file, or something of the hub."""
        path = unquote(raw_path)
        with self.lock:
            published = self.published.get(path)
        if published is not None:
            return Resource(published)
        file = self.locate(path)
        return Resource(FileContent.of(file)) if file else self.hub.find(raw_path, query, authorization)

    def publish(self, path: str, content: Content) -> None:
        with self.lock:
            self.published[path] = content

    def chosen(self, pattern: str) -> list[Request]:
        """Copies of the log's requests whose path fits."""
        with self.lock:
            return [replace(request) for request in self.log.requests if fnmatchcase(request.path, pattern)]

    def release(self) -> None:
        with self.lock:
            self.released.set()
            self.released = threading.Event()

    def reset(self) -> None:
        with self.lock:
            self.rules.clear()
            self.log.requests.clear()
        self.release()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Each write is whole: waiting for more would only hold it back.
    disable_nagle_algorithm = True
    state: State

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path == "/__log__":
            self.control(200, describe_log(self.state.chosen(parse_qs(parts.query).get("path", ["*"])[-1])))
            return
        self.serve(parts.path, parts.query)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_OPTIONS(self) -> None:
        parts = urlsplit(self.path)
        request = self.describe(unquote(parts.path), parts.query)
        with self.state.lock:
            self.state.log.start(request)
            released = self.state.released
        self.deliver(request, text_answer(204, b"", ""), released)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        control = CONTROLS.get(self.path)
        if control is None:
            self.control(404, {"error": f"no such control: {self.path}"})
            return
        try:
            answer = control(self.state, json.loads(body or b"{}"))
        except (ValueError, TypeError, KeyError, OSError) as error:
            self.control(400, {"error": f"{type(error).__name__}: {error}"})
            return
        self.control(200, answer)

    def serve(self, raw_path: str, query: str) -> None:
        request = self.describe(unquote(raw_path), query)
        resource = self.state.find(raw_path, query, request.authorization)
        size = resource.content.size if resource else sys.maxsize
        wanted = parse_range(request.range, size) if self.command == "GET" and resource else None
        # A range beyond the end meets no rule that looks at bytes.
        begin, end = (0, size) if wanted is None else (size, size) if wanted == "beyond" else wanted
        asked = Asked(self.command, request.path, request.authorization, begin, end, ranged=wanted is not None)
        with self.state.lock:
            # In one step: rules that are dropped once a request is in the log have met it.
            self.state.log.start(request)
            faults = self.state.rules.take(asked)
            released = self.state.released
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            self.deliver(request, build(resource, self.command, headers, faults), released)
        finally:
            with self.state.lock:
                self.state.log.end(request)

    def describe(self, path: str, query: str) -> Request:
        """The request for the log."""

        def header(name: str) -> str:
            return self.headers.get(name) or ""

        return Request(
            self.command,
            path,
            query,
            cookie=header("Cookie"),
            authorization=header("Authorization"),
            origin=header("Origin"),
            referer=header("Referer"),
            range=header("Range"),
        )

    def deliver(self, request: Request, answer: Answer, released: threading.Event) -> None:
        wire = Wire(self.connection, request, self.state.log, released)
        if not wire.deliver(answer, self.state.headers, head_only=self.command == "HEAD"):
            self.close_connection = True

    def control(self, status: int, value: Any) -> None:
        """Answers that are neither logged nor broken."""
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in self.state.headers.items():
            self.send_header(name, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name is the base class's)
        """Quiet."""


# The control addresses


def describe_log(requests: list[Request]) -> dict[str, Any]:
    """The log for `/__log__`."""
    return {
        "requests": [asdict(request) for request in requests],
        "counts": Counter(request.path for request in requests if request.method != "OPTIONS"),
        "active": sum(request.ended is None for request in requests),
        "sent": sum(request.sent for request in requests),
    }


def add_fault(state: State, value: dict[str, Any]) -> dict[str, Any]:
    fault = Fault(**value)
    with state.lock:
        state.rules.add(fault)
    return {}


def mend(state: State, value: dict[str, Any]) -> dict[str, Any]:
    with state.lock:
        state.rules.clear()
    return {}


def reset(state: State, value: dict[str, Any]) -> dict[str, Any]:
    state.reset()
    return {}


def add_synthetic(state: State, value: dict[str, Any]) -> dict[str, Any]:
    path, file = f"/{value['path'].lstrip('/')}", Synthetic(int(value["size"]), int(value.get("seed", 0)))
    content = content_of(file, media_type(path))
    state.publish(path, content)
    digest = {"sha256": synthetic_sha256(file.seed, file.size)} if value.get("sha256") else {}
    return {"etag": content.etag, **digest}


def add_to_cdn(state: State, value: dict[str, Any]) -> dict[str, Any]:
    state.hub.add_to_cdn(value["sha256"], source_from_json(value["file"], state.root))
    return {}


def add_revision(state: State, value: dict[str, Any]) -> dict[str, Any]:
    files = {path: source_from_json(file, state.root) for path, file in value["files"].items()}
    added = state.hub.add(**{**value, "files": files})
    return {
        "commit": added.commit,
        "files": {
            path: {"size": file.size, "sha256": file.sha256, "oid": file.oid, "lfs": file.pointer is not None}
            for path, file in added.files.items()
        },
    }


CONTROLS = {
    "/__faults__": add_fault,
    "/__mend__": mend,
    "/__reset__": reset,
    "/__synthetic__": add_synthetic,
    "/__cdn__": add_to_cdn,
    "/__hugging_face__": add_revision,
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Tests open many connections at once.
    request_queue_size = 128


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
        self._server = _Server(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.state.hub = HuggingFace(self.url, self.state.publish)

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

    # What is served

    def write(self, path: str, data: bytes | str) -> bytes:
        """Put a file into the folder; returns its bytes."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        encoded = data.encode() if isinstance(data, str) else data
        target.write_bytes(encoded)
        forget_hash(target)
        return encoded

    def synthetic(self, path: str, size: int, seed: int = 0) -> None:
        """Serve a made-up file of any size, which takes no disk; its bytes: `synthetic_bytes(seed, begin, end)`."""
        add_synthetic(self.state, {"path": path, "size": size, "seed": seed})

    def hugging_face(
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
        """Serve a revision of a model as Hugging Face does; see `hugging_face.py`.

        Args:
            model: `owner/name`.
            revision: Branch or tag, with slashes as they are.
            files: By path: bytes, a text, a `Path`, or `Synthetic(size, seed)`.
            commit: SHA-1 of the commit, which names the revision too; one is made up otherwise.
            private_token: Everything of the model but the CDN needs this token from now on.
            page_size: How many entries of the tree are in one answer.
            cdn_url: Another `FaultServer` that keeps the LFS files.
        """
        return self.state.hub.add(
            model,
            revision,
            files,
            commit=commit,
            private_token=private_token,
            page_size=page_size,
            cdn_url=cdn_url,
        )

    # What goes wrong

    def fault(
        self,
        path: str,
        kind: str,
        value: Any = None,
        *,
        times: int | None = None,
        method: str = "GET",
        skip: int = 0,
        from_byte: int | None = None,
        to_byte: int | None = None,
    ) -> None:
        """Add a rule."""
        fault = Fault(path, kind, value, times, method, skip, from_byte, to_byte)
        with self.state.lock:
            self.state.rules.add(fault)

    def mend(self) -> None:
        """Drop all rules; the log stays."""
        mend(self.state, {})

    # What was asked

    def log(self, pattern: str = "*") -> list[Request]:
        """Every request so far whose path fits, OPTIONS included: a copy of how it stands now."""
        return self.state.chosen(pattern)

    def sent(self, pattern: str = "*") -> int:
        """How many bytes of bodies have been sent to these requests."""
        return sum(request.sent for request in self.state.chosen(pattern))

    def active(self, pattern: str = "*") -> int:
        """How many of these requests are being answered right now, stalled ones included."""
        return sum(request.ended is None for request in self.state.chosen(pattern))

    def requests(self, pattern: str = "*") -> list[str]:
        """`GET /path` of every request so far whose path fits; without OPTIONS."""
        return [f"{r.method} {r.path}" for r in self.state.chosen(pattern) if r.method != "OPTIONS"]

    def queries(self, pattern: str = "*") -> list[str]:
        """The query strings of these requests."""
        return [r.query for r in self.state.chosen(pattern) if r.method != "OPTIONS"]

    def cookies(self) -> list[str]:
        """Every Cookie header that came in."""
        return [r.cookie for r in self.state.chosen("*") if r.cookie]

    def forget(self) -> None:
        """Empty the log."""
        with self.state.lock:
            self.state.log.requests.clear()


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
