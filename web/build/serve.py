"""Static server for `dist/`: the headers that threads need, ranges, revalidation.

    python -m web.build.serve [FOLDER] [--port N] [--no-isolation] [--csp]

Listens on this machine only and prints `Serving FOLDER at http://127.0.0.1:PORT/`.
"""

from __future__ import annotations

import argparse
import email.utils
import errno
import os
import re
import signal
import sys
import urllib.parse
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import NoReturn

DEFAULT_PORT = 8000
PORTS_TRIED = 20
CHUNK = 256 * 1024

MIME_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".webmanifest": "application/manifest+json",
    ".md": "text/markdown; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".zip": "application/zip",
    ".whl": "application/zip",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".webp": "image/webp",
    ".ico": "image/x-icon",
}
OCTETS = "application/octet-stream"
# Answers of the settings mirror are files without an ending.
MIME_TYPES_BY_NAME = {"changeset": "application/json"}

# A page may use threads of the runtime only when it is cross-origin isolated.
ISOLATION = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# The strictest policy that WebAssembly allows; the tests prove that nothing of ours needs more.
CSP = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; "
    "style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; manifest-src 'self'; "
    "base-uri 'none'; form-action 'none'; object-src 'none'"
)


class StaticServer(ThreadingHTTPServer):
    """A server for one folder."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int, *, isolation: bool = True, csp: bool = False, log: bool = True):
        self.folder = folder.resolve()
        self.extra_headers = (ISOLATION if isolation else {}) | ({"Content-Security-Policy": CSP} if csp else {})
        self.log = log
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        """Address of the folder."""
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that leaves in the middle of a download is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StaticServer

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        # Only what went wrong is worth a line.
        if self.server.log and isinstance(code, int) and code >= 400:
            super().log_request(code, size)

    def version_string(self) -> str:
        return "pywebml"

    def end_headers(self) -> None:
        for name, value in self.server.extra_headers.items():
            self.send_header(name, value)
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def _short(self, status: HTTPStatus, headers: dict[str, str] | None = None, text: str = "") -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and status != HTTPStatus.NOT_MODIFIED:
            self.wfile.write(body)

    def _find(self) -> Path | None:
        """The file or folder that the address names, if it lies inside the served folder."""
        decoded = urllib.parse.unquote(self.path.split("?")[0].split("#")[0], errors="replace")
        if "\0" in decoded:
            return None
        try:
            path = (self.server.folder / decoded.lstrip("/")).resolve()
        except OSError:
            return None
        return path if path.is_relative_to(self.server.folder) else None

    def _answer(self, *, with_body: bool) -> None:
        path = self._find()
        if path is not None and path.is_dir():
            address = self.path.split("?")[0]
            if not address.endswith("/"):
                # One leading slash only: `//name/` would be an address on another host.
                location = "/" + address.lstrip("/") + "/"
                self._short(HTTPStatus.MOVED_PERMANENTLY, {"Location": location})
                return
            path = path / "index.html"
        if path is None or not path.is_file():
            self._short(HTTPStatus.NOT_FOUND, text=f"No such file: {self.path}\n")
            return
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                tag = f'"{status.st_size:x}-{status.st_mtime_ns:x}"'
                common = {"ETag": tag, "Cache-Control": "no-cache", "Accept-Ranges": "bytes"}
                asked = [part.strip().removeprefix("W/") for part in self.headers.get("If-None-Match", "").split(",")]
                if tag in asked or "*" in asked:
                    self._short(HTTPStatus.NOT_MODIFIED, common)
                    return
                first, last = self._range(status.st_size, tag)
                if first > last and status.st_size > 0:
                    refused = {**common, "Content-Range": f"bytes */{status.st_size}"}
                    self._short(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, refused)
                    return
                partial = last - first + 1 != status.st_size
                self.send_response(HTTPStatus.PARTIAL_CONTENT if partial else HTTPStatus.OK)
                for name, value in common.items():
                    self.send_header(name, value)
                if partial:
                    self.send_header("Content-Range", f"bytes {first}-{last}/{status.st_size}")
                self.send_header("Last-Modified", email.utils.formatdate(status.st_mtime, usegmt=True))
                mime_type = MIME_TYPES_BY_NAME.get(path.name) or MIME_TYPES.get(path.suffix.lower(), OCTETS)
                self.send_header("Content-Type", mime_type)
                self.send_header("Content-Length", str(last - first + 1))
                self.end_headers()
                if not with_body:
                    return
                file.seek(first)
                left = last - first + 1
                while left > 0 and (chunk := file.read(min(CHUNK, left))):
                    self.wfile.write(chunk)
                    left -= len(chunk)
                # A file that shrank meanwhile cannot be completed; the browser must not wait for the rest.
                self.close_connection = self.close_connection or left > 0
        except PermissionError:
            self._short(HTTPStatus.FORBIDDEN, text=f"Not readable: {self.path}\n")

    def _range(self, size: int, tag: str) -> tuple[int, int]:
        """First and last byte to send; first > last when the wanted range does not exist."""
        whole = (0, size - 1)
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", "").strip())
        if wanted is None or wanted.group() == "bytes=-":
            return whole
        if self.headers.get("If-Range", tag) != tag:
            return whole
        start, end = wanted.groups()
        if not start:
            return (max(0, size - int(end)), size - 1) if int(end) > 0 else (size, size - 1)
        if end and int(end) < int(start):
            return whole
        return int(start), min(int(end), size - 1) if end else size - 1


def open_server(
    folder: Path, port: int | None, *, isolation: bool = True, csp: bool = False, log: bool = True
) -> StaticServer:
    """A listening server; call its `serve_forever`.

    Args:
        folder: What to serve.
        port: 0 for any free one; None for the default one or, when it is taken, one of those after it.
        isolation: Send the headers for cross-origin isolation.
        csp: Send a strict Content-Security-Policy.
        log: Print failed requests.

    Raises:
        OSError: The port is taken.
    """
    ports = range(DEFAULT_PORT, DEFAULT_PORT + PORTS_TRIED) if port is None else [port]
    for candidate in ports:
        try:
            return StaticServer(folder, candidate, isolation=isolation, csp=csp, log=log)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or candidate == ports[-1]:
                raise
    raise AssertionError("the loop above returns or raises")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a number from 0 to 65535")
    return int(text)


def _stop(signal_number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def main() -> int:
    """Serve until Ctrl-C or a termination signal."""
    parser = argparse.ArgumentParser(prog="serve", description="Serves dist/ on this machine.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).resolve().parents[2] / "dist")
    parser.add_argument("--port", type=_port, help=f"0: any free one; default: {DEFAULT_PORT} or the next free one")
    parser.add_argument("--no-isolation", action="store_true", help="no COOP, COEP, CORP headers: one thread only")
    parser.add_argument("--csp", action="store_true", help="send a strict Content-Security-Policy")
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        print(f"There is no folder {arguments.folder}. Run ./build.sh build first.", file=sys.stderr)
        return 1
    try:
        server = open_server(arguments.folder, arguments.port, isolation=not arguments.no_isolation, csp=arguments.csp)
    except OSError as error:
        port = DEFAULT_PORT if arguments.port is None else arguments.port
        print(f"Port {port} cannot be used: {error.strerror}. Choose another one with --port.", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _stop)
    with server:
        print(f"Serving {arguments.folder} at {server.url}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("Stopped.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
