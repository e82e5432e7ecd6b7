"""The fault server: each fault over a real socket, the log, and the layout of Hugging Face."""

import gzip
import hashlib
import http.client
import itertools
import json
import os
import select
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from tests.faults.server import FaultServer, Synthetic, synthetic_bytes, synthetic_sha256

DATA = bytes(range(256)) * 1000
SIZE = len(DATA)
BIG = 2**40
RANGE = {"Range": "bytes=1000-1999"}
PART = DATA[1000:2000]
MODEL = "org/name"


class Got:
    """An answer as far as it came."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers: Message = response.headers
        self.error: Exception | None = None
        body = bytearray()
        try:
            # Small pieces: what has come is kept whatever follows.
            while piece := response.read1(65536):
                body += piece
        except (http.client.IncompleteRead, ConnectionError, ValueError) as error:
            self.error = error
        self.body = bytes(body)


def get(
    server: FaultServer, path: str = "/a.bin", headers: Mapping[str, str] | None = None, method: str = "GET"
) -> Got:
    connection = http.client.HTTPConnection("127.0.0.1", port(server), timeout=20)
    try:
        connection.request(method, path, headers=dict(headers or {}))
        return Got(connection.getresponse())
    finally:
        connection.close()


def post(server: FaultServer, path: str, value: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port(server), timeout=20)
    try:
        connection.request("POST", path, json.dumps(value))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def port(server: FaultServer) -> int:
    found = urllib.parse.urlsplit(server.url).port
    assert found is not None
    return found


def opened(server: FaultServer, path: str = "/a.bin", headers: str = "", method: str = "GET") -> socket.socket:
    """A bare connection with a request on its way."""
    connection = socket.create_connection(("127.0.0.1", port(server)), timeout=20)
    connection.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode())
    return connection


def received(connection: socket.socket) -> tuple[bytes, str]:
    """All bytes of a connection, and how it ended."""
    data = bytearray()
    while True:
        try:
            piece = connection.recv(65536)
        except ConnectionResetError:
            return bytes(data), "reset"
        if not piece:
            return bytes(data), "closed"
        data += piece


def body_of(data: bytes | bytearray) -> bytes:
    return bytes(data).split(b"\r\n\r\n", 1)[1]


def receive(connection: socket.socket, count: int) -> bytes:
    """Headers and the first `count` bytes of the body."""
    data = bytearray()
    while b"\r\n\r\n" not in data or len(body_of(data)) < count:
        piece = connection.recv(65536)
        assert piece, "closed too early"
        data += piece
    return bytes(data)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        select.select([], [], [], 0.002)


@pytest.fixture(autouse=True)
def file(server: FaultServer) -> None:
    server.write("a.bin", DATA)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[FaultServer]:
    """Another origin."""
    root = tmp_path / "other"
    root.mkdir()
    with FaultServer(root) as running:
        yield running


# Without faults


@pytest.mark.parametrize(
    ("wanted", "begin", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=1000-1999", 1000, 2000),
        (f"bytes={SIZE - 5}-", SIZE - 5, SIZE),
        (f"bytes=5-{SIZE + 100}", 5, SIZE),
        ("bytes=-7", SIZE - 7, SIZE),
        (f"bytes=-{SIZE + 1}", 0, SIZE),
    ],
)
def test_a_range_is_answered_with_these_bytes(server: FaultServer, wanted: str, begin: int, end: int) -> None:
    got = get(server, headers={"Range": wanted})
    assert (got.status, got.body) == (206, DATA[begin:end])
    assert got.headers["Content-Range"] == f"bytes {begin}-{end - 1}/{SIZE}"
    assert got.headers["Content-Length"] == str(end - begin)
    assert got.headers["Accept-Ranges"] == "bytes"
    assert got.headers["ETag"] == f'"{hashlib.sha256(DATA).hexdigest()[:32]}"'


@pytest.mark.parametrize("wanted", [f"bytes={SIZE}-", f"bytes={SIZE + 5}-{SIZE + 9}", "bytes=-0"])
def test_a_range_beyond_the_end_is_refused(server: FaultServer, wanted: str) -> None:
    got = get(server, headers={"Range": wanted})
    assert (got.status, got.headers["Content-Range"]) == (416, f"bytes */{SIZE}")


@pytest.mark.parametrize("wanted", ["bytes=0-1,5-6", "bytes=5-2", "bytes=-", "lines=1-2", "bytes=a-b"])
def test_several_ranges_and_what_is_no_range_give_the_whole(server: FaultServer, wanted: str) -> None:
    got = get(server, headers={"Range": wanted})
    assert (got.status, got.body, got.headers["Accept-Ranges"]) == (200, DATA, "bytes")


def test_a_range_of_another_version_gives_the_whole(server: FaultServer) -> None:
    whole = get(server)
    for condition, status in [
        (whole.headers["ETag"], 206),
        (whole.headers["Last-Modified"], 206),
        ('"other"', 200),
        (f"W/{whole.headers['ETag']}", 200),
    ]:
        assert get(server, headers={**RANGE, "If-Range": condition}).status == status
    server.fault("*", "weak_etag")
    assert get(server, headers={**RANGE, "If-Range": f"W/{whole.headers['ETag']}"}).status == 200


def test_an_unchanged_file_is_not_sent_again(server: FaultServer) -> None:
    etag = get(server).headers["ETag"]
    got = get(server, headers={"If-None-Match": f'"x", W/{etag}'})
    assert (got.status, got.body, got.headers["ETag"]) == (304, b"", etag)
    server.write("a.bin", bytes(SIZE))
    assert get(server, headers={"If-None-Match": etag}).body == bytes(SIZE)


def test_etag_of_a_big_file_follows_its_content(server: FaultServer) -> None:
    for fill in (b"a", b"b"):
        data = server.write("big.bin", fill * 3_000_000)
        # Two versions of one size can have the same time.
        os.utime(server.root / "big.bin", ns=(0, 0))
        got = get(server, "/big.bin")
        assert got.body == data
        assert got.headers["ETag"] == f'"{hashlib.sha256(data).hexdigest()[:32]}"'


def test_head_tells_all_and_sends_nothing(server: FaultServer) -> None:
    got = get(server, method="HEAD", headers=RANGE)
    assert (got.status, got.headers["Content-Length"], got.body) == (200, str(SIZE), b"")
    assert got.headers["ETag"] == get(server).headers["ETag"]
    assert got.headers["Accept-Ranges"] == "bytes"


def test_pages_of_other_origins_may_send_and_read_what_a_downloader_needs(server: FaultServer) -> None:
    got = get(server, method="OPTIONS")
    assert (got.status, got.body) == (204, b"")
    assert got.headers["Access-Control-Allow-Headers"] == "*, Authorization, Range"
    exposed = set(got.headers["Access-Control-Expose-Headers"].split(", "))
    assert exposed >= {"Content-Range", "Accept-Ranges", "Retry-After", "X-Linked-ETag", "X-Linked-Size"}
    assert exposed >= {"Content-Length", "ETag", "Last-Modified", "X-Repo-Commit", "Content-Encoding", "Link"}
    assert server.requests() == []
    assert [(entry.method, entry.status) for entry in server.log()] == [("OPTIONS", 204)]


def test_one_connection_answers_several_requests(server: FaultServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port(server), timeout=20)
    for headers, body in [(RANGE, PART), ({}, DATA), (RANGE, PART)]:
        connection.request("GET", "/a.bin", headers=headers)
        assert connection.getresponse().read() == body
    connection.close()


@pytest.mark.parametrize("path", ["/../secret.txt", "/%2e%2e/secret.txt", "/absent"])
def test_nothing_outside_the_folder_is_served(server: FaultServer, path: str) -> None:
    (server.root.parent / "secret.txt").write_text("secret")
    assert get(server, path).status == 404


# Made-up files


def test_a_made_up_file_of_any_size_is_cheap(server: FaultServer) -> None:
    server.synthetic("/huge.bin", BIG, seed=3)
    begin = BIG - 123_456
    got = get(server, "/huge.bin", {"Range": f"bytes={begin}-"})
    assert got.headers["Content-Range"] == f"bytes {begin}-{BIG - 1}/{BIG}"
    assert got.body == synthetic_bytes(3, begin, BIG)


def test_ranges_of_a_made_up_file_fit_together_and_no_two_pages_are_equal() -> None:
    size = 3 * 1024 * 1024 + 5
    whole = synthetic_bytes(1, 0, size)
    cuts = [0, 1, 4095, 4100, 1024 * 1024 - 3, 1024 * 1024 + 9, size]
    assert b"".join(synthetic_bytes(1, *pair) for pair in itertools.pairwise(cuts)) == whole
    pages = [whole[at : at + 4096] for at in range(0, size, 4096)]
    assert len(set(pages)) == len(pages)
    assert synthetic_sha256(1, size) == hashlib.sha256(whole).hexdigest()
    assert synthetic_bytes(2, 0, 100) != whole[:100]
    assert synthetic_bytes(1, 7, 7) == b""


def test_a_made_up_file_over_http(server: FaultServer) -> None:
    status, told = post(server, "/__synthetic__", {"path": "/m.onnx", "size": 100_000, "seed": 5, "sha256": True})
    got = get(server, "/m.onnx")
    assert (status, told) == (200, {"etag": got.headers["ETag"], "sha256": hashlib.sha256(got.body).hexdigest()})
    assert got.body == synthetic_bytes(5, 0, 100_000)


# Accidents; each with the whole file and with a part


@pytest.fixture(params=[None, RANGE], ids=["whole", "part"])
def wanted(request: pytest.FixtureRequest) -> tuple[Mapping[str, str], bytes]:
    """Headers of a request and the bytes that it should get."""
    headers: Mapping[str, str] | None = request.param
    return (headers, PART) if headers else ({}, DATA)


Wanted = tuple[Mapping[str, str], bytes]


def test_truncate_promises_all_and_closes(server: FaultServer, wanted: Wanted) -> None:
    headers, body = wanted
    server.fault("/a.bin", "truncate", 100)
    got = get(server, headers=headers)
    assert (got.headers["Content-Length"], got.body) == (str(len(body)), body[:100])
    assert server.log()[0].sent == 100
    assert server.active() == 0


def test_stall_ends_at_reset(server: FaultServer, wanted: Wanted) -> None:
    headers, body = wanted
    server.fault("/a.bin", "stall", 100)
    with opened(server, headers="".join(f"{name}: {value}\r\n" for name, value in headers.items())) as connection:
        assert body_of(receive(connection, 100)) == body[:100]
        assert (server.active(), server.sent()) == (1, 100)
        server.state.reset()
        assert received(connection) == (b"", "closed")
    assert get(server).body == DATA


@pytest.mark.parametrize("amount", [None, 0, 100])
def test_stall_notices_that_the_client_has_gone(server: FaultServer, amount: int | None) -> None:
    server.fault("/a.bin", "stall", amount)
    connection = opened(server)
    until(lambda: server.active("/a.bin") == 1 and server.sent() == (amount or 0))
    connection.close()
    until(lambda: server.active("/a.bin") == 0)
    assert server.log()[0].status == (None if amount is None else 200)


def test_stall_without_a_number_answers_nothing(server: FaultServer) -> None:
    server.fault("/a.bin", "stall")
    with opened(server) as connection:
        until(lambda: server.active() == 1)
        server.state.reset()
        assert received(connection) == (b"", "closed")


@pytest.mark.parametrize("amount", [None, 0, 150_000])
def test_reset_comes_after_so_many_bytes(server: FaultServer, amount: int | None) -> None:
    server.fault("/a.bin", "reset", amount)
    with opened(server) as connection:
        data, end = received(connection)
    assert end == "reset"
    if amount is None:
        assert data == b""
    else:
        assert f"Content-Length: {SIZE}\r\n".encode() in data
        assert body_of(data) == DATA[:amount]
    until(lambda: server.active() == 0)
    assert server.sent() == (amount or 0)


def test_drop_closes_without_an_answer(server: FaultServer) -> None:
    server.fault("/a.bin", "drop")
    with opened(server) as connection:
        assert received(connection) == (b"", "closed")
    assert server.log()[0].status is None


@pytest.mark.parametrize("at", [0, 1500, SIZE - 1])
def test_flip_inverts_one_byte_of_the_file(server: FaultServer, at: int) -> None:
    server.fault("/a.bin", "flip", at)
    broken = bytearray(DATA)
    broken[at] ^= 0xFF
    assert get(server).body == broken
    assert get(server, headers=RANGE).body == broken[1000:2000]
    assert get(server, headers={"Range": f"bytes={at}-"}).body == broken[at:]


def test_flip_waits_for_a_request_of_its_byte(server: FaultServer) -> None:
    server.fault("/a.bin", "flip", 1500, times=1)
    assert get(server, headers={"Range": "bytes=0-1499"}).body == DATA[:1500]
    assert get(server, headers={"Range": "bytes=1501-"}).body == DATA[1501:]
    assert get(server, headers=RANGE).body != PART
    assert get(server, headers=RANGE).body == PART


def test_shorter_tells_and_sends_less(server: FaultServer, wanted: Wanted) -> None:
    headers, body = wanted
    server.fault("/a.bin", "shorter", 10)
    got = get(server, headers=headers)
    assert (got.headers["Content-Length"], got.body, got.error) == (str(len(body) - 10), body[:-10], None)
    assert got.headers["Content-Range"] == (f"bytes 1000-1999/{SIZE}" if headers else None)


def test_longer_tells_more_and_closes(server: FaultServer, wanted: Wanted) -> None:
    headers, body = wanted
    server.fault("/a.bin", "longer", 10)
    got = get(server, headers=headers)
    assert (got.headers["Content-Length"], got.body) == (str(len(body) + 10), body)


def test_status_is_a_number_or_a_whole_answer(server: FaultServer, wanted: Wanted) -> None:
    headers, _ = wanted
    server.fault("/a.bin", "status", 503, times=1)
    value = {"status": 429, "retry_after": "1", "body": "slow down", "headers": {"X-Limit": "5"}}
    server.fault("/a.bin", "status", value, times=1)
    first, second = get(server, headers=headers), get(server, headers=headers)
    assert (first.status, first.headers["Retry-After"]) == (503, None)
    assert (second.status, second.headers["Retry-After"], second.body) == (429, "1", b"slow down")
    assert second.headers["X-Limit"] == "5"
    assert get(server).status == 200


def test_html_is_a_page_that_says_200(server: FaultServer, wanted: Wanted) -> None:
    server.fault("/a.bin", "html")
    got = get(server, headers=wanted[0])
    assert (got.status, got.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert got.body.startswith(b"<!doctype html>")


def test_redirect_goes_where_the_rule_says(server: FaultServer, other: FaultServer) -> None:
    target = f"{other.url}/b.bin"
    server.fault("/a.bin", "redirect", target, times=1)
    server.fault("/a.bin", "redirect", {"to": target, "headers": {"X-Linked-ETag": '"x"'}, "status": 307})
    first, second = get(server), get(server, headers=RANGE)
    assert (first.status, first.headers["Location"], first.headers["X-Linked-ETag"]) == (302, target, None)
    assert (second.status, second.headers["Location"], second.headers["X-Linked-ETag"]) == (307, target, '"x"')


def test_wrong_range_sends_another_part_and_says_so(server: FaultServer) -> None:
    server.fault("/a.bin", "wrong_range", 500, times=1)
    assert get(server).body == DATA
    got = get(server, headers=RANGE)
    assert (got.status, got.headers["Content-Range"]) == (206, f"bytes 1500-2499/{SIZE}")
    assert got.body == DATA[1500:2500]
    assert get(server, headers=RANGE).body == PART


# Ways of the server


def test_no_range_sends_the_whole(server: FaultServer) -> None:
    server.fault("/a.bin", "no_range")
    got = get(server, headers=RANGE)
    assert (got.status, got.headers["Accept-Ranges"], got.body) == (200, None, DATA)


def test_no_length_sends_chunks(server: FaultServer, wanted: Wanted) -> None:
    headers, body = wanted
    server.fault("/a.bin", "no_length")
    got = get(server, headers=headers)
    assert (got.headers["Content-Length"], got.headers["Transfer-Encoding"]) == (None, "chunked")
    assert (got.body, got.error) == (body, None)
    assert server.sent() == len(body)
    assert server.active() == 0


def test_close_delimited_ends_with_the_connection(server: FaultServer, wanted: Wanted) -> None:
    headers, body = wanted
    server.fault("/a.bin", "close_delimited")
    with opened(server, headers="".join(f"{name}: {value}\r\n" for name, value in headers.items())) as connection:
        data, end = received(connection)
    assert (body_of(data), end) == (body, "closed")
    assert b"Connection: close\r\n" in data
    assert b"\r\nContent-Length:" not in data
    assert b"\r\nTransfer-Encoding:" not in data


@pytest.mark.parametrize("value", [None, "chunked"])
def test_gzip_compresses_whole_files(server: FaultServer, value: str | None) -> None:
    server.fault("/a.bin", "gzip", value)
    got = get(server)
    assert got.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(got.body) == DATA
    assert got.headers["Content-Length"] == (str(len(got.body)) if value is None else None)
    part = get(server, headers=RANGE)
    assert (part.status, part.headers["Content-Encoding"], part.body) == (206, None, PART)


def test_etag_is_another_or_none_or_weak(server: FaultServer) -> None:
    own = get(server).headers["ETag"]
    server.fault("/a.bin", "etag", '"x"', times=1)
    assert get(server).headers["ETag"] == '"x"'
    server.fault("/a.bin", "etag", None, times=1)
    got = get(server, headers=RANGE)
    assert (got.headers["ETag"], got.headers["Last-Modified"], got.body) == (None, None, PART)
    server.fault("/a.bin", "weak_etag")
    assert get(server, headers=RANGE).headers["ETag"] == f"W/{own}"


def test_lying_total_tells_another_size(server: FaultServer) -> None:
    server.fault("/a.bin", "lying_total", 7)
    assert get(server, headers=RANGE).headers["Content-Range"] == f"bytes 1000-1999/{SIZE + 7}"
    assert get(server).headers["Content-Length"] == str(SIZE)


def test_slow_keeps_the_pace(server: FaultServer) -> None:
    server.fault("/a.bin", "slow", 20_000, times=1)
    begun = time.monotonic()
    assert get(server, headers={"Range": "bytes=0-3999"}).body == DATA[:4000]
    assert time.monotonic() - begun > 0.15
    assert get(server).body == DATA


@pytest.mark.parametrize("leave", ["client", "reset"])
def test_slow_ends_at_once(server: FaultServer, leave: str) -> None:
    server.fault("/a.bin", "slow", 1000)
    with opened(server) as connection:
        receive(connection, 10)
        requests = server.state.log.requests[:]
        if leave == "client":
            connection.close()
        else:
            server.state.reset()
            assert received(connection)[1] == "closed"
        until(lambda: all(request.ended for request in requests))
    assert requests[0].sent < 5000


def test_header_adds_replaces_and_removes(server: FaultServer) -> None:
    server.fault("/a.bin", "header", {"x-new": "1", "etag": '"y"', "accept-ranges": None, "Cache-Control": "max-age=9"})
    got = get(server, headers=RANGE)
    assert (got.headers["X-New"], got.headers.get_all("ETag")) == ("1", ['"y"'])
    assert (got.headers["Accept-Ranges"], got.headers.get_all("Cache-Control")) == (None, ["max-age=9"])


def test_change_brings_another_content_after_so_many_requests(server: FaultServer) -> None:
    server.fault("/a.bin", "change", {"after_requests": 2, "data": "new" * 1000})
    heads = [get(server, method="HEAD").headers["ETag"]]
    bodies = []
    for _ in range(3):
        bodies.append(get(server, headers=RANGE).body)
        heads.append(get(server, method="HEAD").headers["ETag"])
    assert bodies == [PART, PART, (b"new" * 1000)[1000:2000]]
    assert heads[0] == heads[1] != heads[2] == heads[3]


def test_change_of_a_made_up_file(server: FaultServer) -> None:
    server.synthetic("/m.bin", 10_000, seed=1)
    server.fault("/m.bin", "change", {"after_requests": 1, "seed": 2})
    old, new = get(server, "/m.bin"), get(server, "/m.bin")
    assert (old.body, new.body) == (synthetic_bytes(1, 0, 10_000), synthetic_bytes(2, 0, 10_000))
    assert old.headers["ETag"] != new.headers["ETag"]
    assert old.headers["Last-Modified"] != new.headers["Last-Modified"]


def test_auth_needs_the_header_also_for_head(server: FaultServer) -> None:
    server.fault("/a.bin", "auth", "Bearer good")
    server.fault("/a.bin", "truncate", 5, times=1)
    for headers in ({}, {"Authorization": "Bearer bad"}):
        got = get(server, headers=headers)
        assert got.status == 401
        assert got.body
        assert get(server, headers=headers, method="HEAD").status == 401
    good = {"Authorization": "Bearer good"}
    assert get(server, headers=good).body == DATA[:5]
    assert get(server, headers=good).body == DATA
    assert get(server, headers=good, method="HEAD").status == 200
    assert {entry.authorization for entry in server.log()} == {"", "Bearer bad", "Bearer good"}


# Rules


def test_ways_go_together_and_with_one_accident(server: FaultServer) -> None:
    server.fault("/a.bin", "no_range")
    server.fault("/a.bin", "no_length")
    server.fault("/a.bin", "truncate", 5000, times=1)
    server.fault("/a.bin", "status", 500, times=1)
    got = get(server, headers=RANGE)
    assert (got.status, got.headers["Transfer-Encoding"], got.body) == (200, "chunked", DATA[:5000])
    assert isinstance(got.error, http.client.IncompleteRead)
    assert get(server, headers=RANGE).status == 500
    assert get(server, headers=RANGE).body == DATA


def test_flip_is_under_the_compression(server: FaultServer) -> None:
    server.fault("/a.bin", "gzip")
    server.fault("/a.bin", "flip", 3)
    assert gzip.decompress(get(server).body)[:5] == b"\x00\x01\x02\xfc\x04"


def test_rules_apply_in_a_fixed_order(server: FaultServer) -> None:
    server.fault("/a.bin", "lying_total", 7)
    server.fault("/a.bin", "wrong_range", 500)
    assert get(server, headers=RANGE).headers["Content-Range"] == f"bytes 1500-2499/{SIZE + 7}"


def test_rules_skip_and_count(server: FaultServer) -> None:
    server.fault("/a.bin", "status", 500, skip=2, times=1)
    assert [get(server).status for _ in range(4)] == [200, 200, 500, 200]


def test_a_skipping_rule_counts_requests_that_another_rule_meets(server: FaultServer) -> None:
    server.fault("/a.bin", "status", 500, times=1)
    server.fault("/a.bin", "status", 429, skip=1, times=1)
    assert [get(server).status for _ in range(3)] == [500, 429, 200]


def test_rules_meet_only_requests_of_their_bytes(server: FaultServer) -> None:
    server.fault("/a.bin", "status", 500, from_byte=1000, to_byte=2000)
    ranges = {"bytes=0-999": 206, "bytes=0-1000": 500, "bytes=1999-": 500, "bytes=2000-": 206, f"bytes={SIZE}-": 416}
    assert {wanted: get(server, headers={"Range": wanted}).status for wanted in ranges} == ranges
    assert get(server).status == 500


def test_rules_meet_only_their_method(server: FaultServer) -> None:
    server.fault("/a.bin", "status", 500, method="HEAD")
    assert (get(server).status, get(server, method="HEAD").status) == (200, 500)
    server.mend()
    server.fault("/a.bin", "status", 500, method="*")
    assert (get(server).status, get(server, method="HEAD").status) == (500, 500)


def test_what_is_no_rule_is_refused(server: FaultServer) -> None:
    with pytest.raises(ValueError, match="no fault of the kind 'explode'"):
        server.fault("*", "explode")
    assert post(server, "/__faults__", {"path": "*", "kind": "explode"})[0] == 400
    assert post(server, "/__faults__", {"path": "*", "kind": "drop", "often": 1})[0] == 400
    assert post(server, "/__explode__", {})[0] == 404


def test_rules_and_log_over_http(server: FaultServer) -> None:
    assert post(server, "/__faults__", {"path": "/a.bin", "kind": "truncate", "value": 5, "skip": 1}) == (200, {})
    get(server, "/a.bin?x=1", {"Cookie": "c=1", "Origin": "http://o", "Referer": "http://o/p", **RANGE})
    get(server)
    get(server, method="OPTIONS")
    log = json.loads(get(server, "/__log__").body)
    assert log["requests"][0] == {
        "method": "GET",
        "path": "/a.bin",
        "query": "x=1",
        "cookie": "c=1",
        "authorization": "",
        "origin": "http://o",
        "referer": "http://o/p",
        "range": "bytes=1000-1999",
        "status": 206,
        "sent": 1000,
        "started": 1,
        "ended": 2,
    }
    assert (log["counts"], log["active"], log["sent"]) == ({"/a.bin": 2}, 0, 1005)
    assert json.loads(get(server, "/__log__?path=/b*").body)["requests"] == []
    post(server, "/__mend__", {})
    assert get(server).body == DATA
    post(server, "/__reset__", {})
    assert server.log() == []


# The log


def test_a_client_that_goes_away_stops_the_traffic(server: FaultServer) -> None:
    server.synthetic("/huge.bin", BIG)
    connection = opened(server, "/huge.bin")
    assert body_of(receive(connection, 1_000_000))[:100] == synthetic_bytes(0, 0, 100)
    assert server.active("/huge.bin") == 1
    connection.close()
    until(lambda: server.active("/huge.bin") == 0)
    assert 1_000_000 <= server.sent("/huge.bin") < BIG // 1000


def test_a_client_that_reads_no_more_and_goes_away_is_noticed(server: FaultServer) -> None:
    server.synthetic("/huge.bin", BIG)
    connection = opened(server, "/huge.bin")
    amounts = [-1, 0]

    def is_full() -> bool:
        amounts.append(server.sent())
        select.select([], [], [], 0.01)
        return amounts[-1] == amounts[-2] > 0

    until(is_full)
    assert server.active() == 1
    # Bytes that a full buffer took in part are counted once.
    assert server.sent() < 100_000_000
    connection.close()
    until(lambda: server.active() == 0)


def test_every_byte_is_counted_once_however_slowly_it_is_read(server: FaultServer) -> None:
    size = 20_000_000
    server.synthetic("/m.bin", size)
    server.fault("/m.bin", "no_length")
    with opened(server, "/m.bin", "Connection: close\r\n") as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
        received(connection)
    assert (server.sent(), server.active()) == (size, 0)


def test_order_of_starts_and_ends_shows_what_ran_at_once(server: FaultServer) -> None:
    server.fault("/a.bin", "stall", 5, times=1)
    with opened(server) as connection:
        receive(connection, 5)
        get(server)
    until(lambda: server.active() == 0)
    stalled, other = server.log()
    assert stalled.ended is not None
    assert other.ended is not None
    assert stalled.started < other.started < other.ended < stalled.ended


# Hugging Face

WEIGHTS = bytes(range(256)) * 20
CONFIG = b'{"model_type": "bert"}'
FILES: dict[str, bytes | str | Path | Synthetic] = {
    "config.json": CONFIG,
    "README.md": "# A model\n",
    "onnx/model.onnx": WEIGHTS,
    "onnx/model.onnx_data": Synthetic(3_000_000, seed=4),
    "deep/er/vocab.txt": "a\nb\n",
    "big.json": b" " * 1_048_577,
}


def follow(got: Got, headers: Mapping[str, str] | None = None) -> Got:
    place = urllib.parse.urlsplit(got.headers["Location"])
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=20)
    try:
        connection.request("GET", place.path, headers=dict(headers or {}))
        return Got(connection.getresponse())
    finally:
        connection.close()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git_sha1(data: bytes) -> str:
    return (
        subprocess.run(["git", "hash-object", "--stdin"], input=data, stdout=subprocess.PIPE, check=True)
        .stdout.decode()
        .strip()
    )


def test_hub_answers_small_files_itself(server: FaultServer) -> None:
    revision = server.hugging_face(MODEL, "main", FILES)
    got = get(server, f"/{MODEL}/resolve/main/config.json")
    assert (got.status, got.body, got.headers["Content-Type"]) == (200, CONFIG, "application/json")
    assert got.headers["ETag"] == f'"{git_sha1(CONFIG)}"'
    assert got.headers["X-Repo-Commit"] == revision.commit
    assert get(server, f"/{MODEL}/raw/main/config.json").body == CONFIG
    assert get(server, f"/{MODEL}/resolve/{revision.commit}/config.json").body == CONFIG
    assert get(server, f"/{MODEL}/resolve/main/deep/er/vocab.txt").body == b"a\nb\n"


@pytest.mark.parametrize("path", ["onnx/model.onnx", "onnx/model.onnx_data", "big.json"])
def test_hub_sends_lfs_files_to_the_cdn(server: FaultServer, path: str) -> None:
    server.hugging_face(MODEL, "main", FILES, commit="c" * 40)
    source = FILES[path]
    data = synthetic_bytes(4, 0, 3_000_000) if isinstance(source, Synthetic) else source
    assert isinstance(data, bytes)
    for method in ("GET", "HEAD"):
        got = get(server, f"/{MODEL}/resolve/main/{path}", method=method)
        assert (got.status, got.headers["Location"]) == (302, f"{server.url}/cdn/{sha256(data)}")
        assert got.headers["X-Linked-ETag"] == f'"{sha256(data)}"'
        assert got.headers["X-Linked-Size"] == str(len(data))
        assert got.headers["X-Repo-Commit"] == "c" * 40
    whole, part = follow(got), follow(got, RANGE)
    assert (whole.status, whole.body) == (200, data)
    assert (part.status, part.body) == (206, data[1000:2000])
    assert sha256(data) not in whole.headers["ETag"]
    pointer = get(server, f"/{MODEL}/raw/main/{path}")
    lines = ["version https://git-lfs.github.com/spec/v1", f"oid sha256:{sha256(data)}", f"size {len(data)}", ""]
    assert pointer.body.decode() == "\n".join(lines)


def test_hub_lists_the_tree(server: FaultServer) -> None:
    server.hugging_face(MODEL, "main", FILES)
    got = get(server, f"/api/models/{MODEL}/tree/main?recursive=true")
    entries = {entry["path"]: entry for entry in json.loads(got.body)}
    assert list(entries) == ["deep", "deep/er", "onnx", *sorted(FILES)]
    assert {path for path, entry in entries.items() if entry["type"] == "directory"} == {"deep", "deep/er", "onnx"}
    config = {"type": "file", "oid": git_sha1(CONFIG), "size": len(CONFIG), "path": "config.json"}
    assert entries["config.json"] == config
    pointer = get(server, f"/{MODEL}/raw/main/onnx/model.onnx").body
    assert entries["onnx/model.onnx"]["oid"] == git_sha1(pointer)
    assert entries["onnx/model.onnx"]["size"] == len(WEIGHTS)
    lfs = {"oid": sha256(WEIGHTS), "size": len(WEIGHTS), "pointerSize": len(pointer)}
    assert entries["onnx/model.onnx"]["lfs"] == lfs
    top = json.loads(get(server, f"/api/models/{MODEL}/tree/main").body)
    assert [entry["path"] for entry in top] == ["deep", "onnx", "README.md", "big.json", "config.json"]
    inside = json.loads(get(server, f"/api/models/{MODEL}/tree/main/deep?recursive=true").body)
    assert [entry["path"] for entry in inside] == ["deep/er", "deep/er/vocab.txt"]
    assert get(server, f"/api/models/{MODEL}/tree/main/absent").status == 404


def test_hub_lists_the_tree_in_pages(server: FaultServer) -> None:
    server.hugging_face(MODEL, "refs/pr/1", FILES, page_size=4)
    address: str | None = f"/api/models/{MODEL}/tree/refs%2Fpr%2F1?recursive=true"
    pages = []
    while address:
        got = get(server, address)
        pages.append([entry["path"] for entry in json.loads(got.body)])
        link = got.headers["Link"]
        address = link.removeprefix(f"<{server.url}").removesuffix('>; rel="next"') if link else None
    assert [len(page) for page in pages] == [4, 4, 1]
    assert list(itertools.chain(*pages)) == ["deep", "deep/er", "onnx", *sorted(FILES)]


def test_hub_takes_revisions_with_slashes_encoded(server: FaultServer) -> None:
    server.hugging_face(MODEL, "refs/pr/1", FILES)
    assert get(server, f"/{MODEL}/resolve/refs%2Fpr%2F1/config.json").body == CONFIG
    assert server.requests(f"/{MODEL}/resolve/refs/pr/1/config.json")


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/org/absent/resolve/main/config.json", 401, "RepoNotFound"),
        ("/api/models/org/absent/tree/main", 401, "RepoNotFound"),
        (f"/{MODEL}/resolve/v9/config.json", 401, "RevisionNotFound"),
        (f"/api/models/{MODEL}/tree/v9", 401, "RevisionNotFound"),
        (f"/{MODEL}/resolve/main/absent.json", 404, "EntryNotFound"),
        (f"/{MODEL}/raw/main/absent.json", 404, "EntryNotFound"),
    ],
)
def test_hub_says_what_it_lacks(server: FaultServer, path: str, status: int, code: str) -> None:
    server.hugging_face(MODEL, "main", FILES)
    got = get(server, path)
    assert (got.status, got.headers["X-Error-Code"]) == (status, code)


def test_private_model_needs_its_token_but_the_cdn_does_not(server: FaultServer, other: FaultServer) -> None:
    server.hugging_face(MODEL, "main", FILES, private_token="hf_secret", cdn_url=other.url)
    good = {"Authorization": "Bearer hf_secret"}
    for path in (f"/{MODEL}/resolve/main/config.json", f"/{MODEL}/raw/main/x", f"/api/models/{MODEL}/tree/main"):
        assert get(server, path).status == 401
        assert get(server, path, {"Authorization": "Bearer bad"}).status == 401
        assert get(server, path, good).status != 401
    for name in ("onnx/model.onnx", "onnx/model.onnx_data"):
        got = get(server, f"/{MODEL}/resolve/main/{name}", good)
        assert got.headers["Location"].startswith(f"{other.url}/cdn/")
        assert len(follow(got).body) == int(got.headers["X-Linked-Size"])
    assert [entry.authorization for entry in other.log("/cdn/*")] == ["", ""]
    follow(got, good)
    assert other.log("/cdn/*")[-1].authorization == "Bearer hf_secret"


def test_faults_meet_hub_and_cdn(server: FaultServer) -> None:
    server.hugging_face(MODEL, "main", FILES)
    server.fault(f"/{MODEL}/resolve/*", "status", 503, times=1)
    server.fault("/cdn/*", "truncate", 10)
    address = f"/{MODEL}/resolve/main/onnx/model.onnx"
    assert get(server, address).status == 503
    assert follow(get(server, address)).body == WEIGHTS[:10]


def test_hub_over_http(server: FaultServer, other: FaultServer) -> None:
    server.write("disk.bin", DATA)
    value = {
        "model": MODEL,
        "revision": "main",
        "commit": "d" * 40,
        "cdn_url": other.url,
        "files": {
            "config.json": "{}",
            "a.bin": {"base64": "AAEC"},
            "b.bin": {"size": 1000, "seed": 9},
            "c.bin": {"file": "disk.bin"},
        },
    }
    status, told = post(server, "/__hugging_face__", value)
    assert (status, told["commit"]) == (200, "d" * 40)
    bodies = {"a.bin": b"\0\1\2", "b.bin": synthetic_bytes(9, 0, 1000), "c.bin": DATA}
    for path, body in bodies.items():
        assert told["files"][path]["sha256"] == sha256(body)
        assert follow(get(server, f"/{MODEL}/resolve/main/{path}")).body == body
    assert told["files"]["config.json"] == {"size": 2, "sha256": sha256(b"{}"), "oid": git_sha1(b"{}"), "lfs": False}
    assert post(server, "/__hugging_face__", {"model": MODEL, "revision": "v1", "files": {}, "x": 1})[0] == 400


# As a script


def test_script_serves_a_folder(server: FaultServer, tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "faults/server.py"
    command = [sys.executable, str(script), "--root", str(server.root), "--mount", f"/m/={server.root}"]
    # From another folder: nothing depends on where it was started.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=dict(os.environ)) as process:
        try:
            assert process.stdout is not None
            address = urllib.parse.urlsplit(process.stdout.readline().strip())
            connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
            for path in ("/a.bin", "/m/a.bin"):
                connection.request("GET", path)
                assert connection.getresponse().read() == DATA
            connection.close()
        finally:
            process.kill()
