"""Servers with ways of their own, which the fault server does not have: tiny ones made here."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pywebml.errors import DownloadError
from pywebml.hub import PART_SIZE, FileEntry
from pywebml.hub.download import FileRequest, download
from pywebml.platform import BlobKey, Platform
from pywebml.progress import TransferProgress, ignore_progress

DATA = bytes(range(251)) * 120_000
KEY = BlobKey("model", "download.example/org/name", "v1.0.0", "onnx/model.onnx")

Answer = Callable[[int, int, int], tuple[bytes, dict[str, str]]]
"""Number of the request, begin and end of its range, to the bytes from `begin` on that are sent, and headers."""


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            wanted = self.headers.get("Range") or ""
            with lock:
                number = len(asked)
                asked.append(wanted)
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
            begin, end = (int(found[1]), min(int(found[2]) + 1, len(DATA))) if found else (0, len(DATA))
            body, headers = answer(number, begin, end)
            self.send_response(206 if found else 200)
            if found:
                self.send_header("Content-Range", f"bytes {begin}-{begin + len(body) - 1}/{len(DATA)}")
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name is the base class's)
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/model.onnx", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def fetch(platform: Platform, url: str, expected: FileEntry | None = None) -> bytes:
    progress = TransferProgress(ignore_progress, "downloading", url, {})
    await download(platform, FileRequest(url=url, key=KEY, expected=expected), progress)
    return await platform.blobs.read(KEY)


async def test_server_that_sends_a_byte_at_a_time_is_given_up(platform: Platform) -> None:
    with serving(lambda number, begin, end: (DATA[begin : begin + 1], {"ETag": '"a"'})) as (url, asked):
        with pytest.raises(DownloadError, match="sent less than"):
            await fetch(platform, url)
        assert len(asked) < 40
    assert await platform.blobs.info(KEY) is None


async def test_server_that_sends_less_than_asked_for_is_gone_on_with(platform: Platform) -> None:
    def answer(_number: int, begin: int, end: int) -> tuple[bytes, dict[str, str]]:
        return DATA[begin : min(end, begin + 2 * 1024 * 1024)], {"ETag": '"a"'}

    with serving(answer) as (url, _):
        assert await fetch(platform, url) == DATA


async def test_etag_that_only_the_first_answer_has_is_enough(platform: Platform) -> None:
    def answer(number: int, begin: int, end: int) -> tuple[bytes, dict[str, str]]:
        return DATA[begin:end], {"ETag": '"a"'} if number == 0 else {}

    with serving(answer) as (url, _):
        assert await fetch(platform, url) == DATA


async def test_mirrors_with_etags_of_their_own_are_one_file_where_the_hash_is_known(platform: Platform) -> None:
    def answer(number: int, begin: int, end: int) -> tuple[bytes, dict[str, str]]:
        return DATA[begin:end], {"ETag": f'"{number % 2}"'}

    with serving(answer) as (url, asked):
        assert await fetch(platform, url, FileEntry(len(DATA), hashlib.sha256(DATA).hexdigest())) == DATA
        assert len(asked) >= len(DATA) // PART_SIZE


async def test_mirrors_with_etags_of_their_own_are_fetched_in_one_go_where_no_hash_is_known(platform: Platform) -> None:
    def answer(number: int, begin: int, end: int) -> tuple[bytes, dict[str, str]]:
        return DATA[begin:end], {"ETag": f'"{number % 2}"'}

    with serving(answer) as (url, asked):
        assert await fetch(platform, url) == DATA
        assert asked[-1] == ""
