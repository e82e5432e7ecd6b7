"""The static server: types, headers, ranges, revalidation, and nothing outside its folder."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from web.build.serve import StaticServer, open_server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "site"
    (root / "inner").mkdir(parents=True)
    (root / "index.html").write_text("home")
    (root / "inner" / "index.html").write_text("inner")
    (root / "a.mjs").write_bytes(b"0123456789")
    (root / "b.wasm").write_bytes(b"\0asm")
    (root / "c.onnx").write_bytes(b"")
    (tmp_path / "secret.txt").write_text("secret")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    return root


@pytest.fixture
def server(folder: Path) -> Iterator[StaticServer]:
    with open_server(folder, 0, log=False) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(
    server: StaticServer, path: str, headers: dict[str, str] | None = None, method: str = "GET"
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "mime_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/inner/", "text/html; charset=utf-8"),
        ("/a.mjs?x=1", "text/javascript; charset=utf-8"),
        ("/b.wasm", "application/wasm"),
        ("/c.onnx", "application/octet-stream"),
    ],
)
def test_files_have_the_types_that_browsers_insist_on(server: StaticServer, path: str, mime_type: str) -> None:
    response, _ = get(server, path)
    assert (response.status, response.headers["Content-Type"]) == (200, mime_type)


def test_threads_are_allowed_by_default_and_a_policy_is_sent_on_request(server: StaticServer, folder: Path) -> None:
    response, _ = get(server, "/")
    assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
    assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert "Content-Security-Policy" not in response.headers
    with open_server(folder, 0, isolation=False, csp=True) as other:
        assert list(other.extra_headers) == ["Content-Security-Policy"]


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/inner/..%2f..%2fsecret.txt",
        "//etc/passwd",
        "/link.txt",
        "/a%00.mjs",
        "/missing",
    ],
)
def test_nothing_outside_the_folder_is_served(server: StaticServer, path: str) -> None:
    response, body = get(server, path)
    assert response.status == 404
    assert b"secret\n" not in body


def test_a_folder_without_a_slash_redirects_on_this_host(server: StaticServer) -> None:
    assert get(server, "/inner")[0].headers["Location"] == "/inner/"
    assert get(server, "//inner")[0].headers["Location"] == "/inner/"


@pytest.mark.parametrize(
    ("wanted", "status", "body", "content_range"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=8-99", 206, b"89", "bytes 8-9/10"),
        ("bytes=-3", 206, b"789", "bytes 7-9/10"),
        ("bytes=-99", 200, b"0123456789", None),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("bytes=-0", 416, b"", "bytes */10"),
        ("bytes=4-2", 200, b"0123456789", None),
        ("bytes=0-1,3-4", 200, b"0123456789", None),
        ("lines=1-2", 200, b"0123456789", None),
    ],
)
def test_ranges(server: StaticServer, wanted: str, status: int, body: bytes, content_range: str | None) -> None:
    response, received = get(server, "/a.mjs", {"Range": wanted})
    assert (response.status, received, response.headers["Content-Range"]) == (status, body, content_range)


def test_a_range_of_another_version_gives_the_whole_file(server: StaticServer) -> None:
    response, body = get(server, "/a.mjs", {"Range": "bytes=2-4", "If-Range": '"old"'})
    assert (response.status, body) == (200, b"0123456789")


def test_an_unchanged_file_is_not_sent_again(server: StaticServer, folder: Path) -> None:
    tag = get(server, "/a.mjs")[0].headers["ETag"]
    response, body = get(server, "/a.mjs", {"If-None-Match": f'"other", W/{tag}'})
    assert (response.status, body, response.headers["ETag"]) == (304, b"", tag)
    (folder / "a.mjs").write_bytes(b"changed")
    assert get(server, "/a.mjs", {"If-None-Match": tag})[1] == b"changed"


def test_head_tells_the_size_only(server: StaticServer) -> None:
    response, body = get(server, "/a.mjs", method="HEAD")
    assert (response.headers["Content-Length"], body) == ("10", b"")


def test_one_connection_answers_several_requests(server: StaticServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    bodies = []
    for path in ("/", "/missing", "/c.onnx", "/inner/"):
        connection.request("GET", path)
        bodies.append(connection.getresponse().read())
    socket = connection.sock
    connection.close()
    assert socket is not None
    assert bodies == [b"home", b"No such file: /missing\n", b"", b"inner"]


def test_a_taken_port_is_refused(server: StaticServer, folder: Path) -> None:
    with pytest.raises(OSError, match="in use"):
        open_server(folder, server.server_port)
