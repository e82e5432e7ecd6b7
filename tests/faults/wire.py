"""Sends an answer over a socket: counted, at the wished pace, and watching whether the client is still there."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate
from http import HTTPStatus

from tests.faults.answers import Answer
from tests.faults.content import BLOCK

# How long a pause may miss that the client has gone or that the tests have been reset.
WATCH_SECONDS = 0.02
# What is counted as sent shall be nearly what was received.
SMALL_BUFFER = 64 * 1024


@dataclass
class Request:
    """One request of the log.

    Attributes:
        range: The Range header.
        status: None: nothing has been answered yet.
        sent: Bytes of the body handed to the socket so far.
        started: Place among all starts and ends of requests.
        ended: The same of its end; None: still being answered.
    """

    method: str
    path: str
    query: str = ""
    cookie: str = ""
    authorization: str = ""
    origin: str = ""
    referer: str = ""
    range: str = ""
    status: int | None = None
    sent: int = 0
    started: int = 0
    ended: int | None = None


class Log:
    """The requests of one server and the order of their starts and ends. `lock` guards all of it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.requests: list[Request] = []
        self._order = 0

    def _next(self) -> int:
        self._order += 1
        return self._order

    def start(self, request: Request) -> None:
        """The caller holds the lock."""
        request.started = self._next()
        self.requests.append(request)

    def end(self, request: Request) -> None:
        """The caller holds the lock."""
        if request.ended is None:
            request.ended = self._next()


class ClientGoneError(ConnectionError):
    """The client has closed the connection, or the tests are over."""


class Wire:
    """The way back to one client for one request."""

    def __init__(self, connection: socket.socket, request: Request, log: Log, released: threading.Event) -> None:
        self._connection = connection
        self._request = request
        self._log = log
        # Taken before the client can see a byte, so that no reset is missed.
        self._released = released

    def deliver(self, answer: Answer, common: dict[str, str], *, head_only: bool) -> bool:
        """Send it; whether the connection can be used for another request."""
        try:
            if answer.rate or answer.ending in {"stall", "reset"}:
                self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
            complete = answer.silent or self._send_all(answer, common, head_only=head_only)
            if answer.ending == "stall":
                while True:
                    self._pause(WATCH_SECONDS)
            if answer.ending == "reset":
                self._reset()
            return complete and answer.ending == "keep"
        finally:
            with self._log.lock:
                self._log.end(self._request)

    def _send_all(self, answer: Answer, common: dict[str, str], *, head_only: bool) -> bool:
        """Headers and body up to the cut; whether all that was promised has come."""
        length, blocks = answer.body()
        has_body = not head_only and answer.status not in {204, 304}
        chunked = answer.framing == "chunked"
        closes_chunks = has_body and chunked and answer.ending == "keep"
        # With the last byte the request is over, in one step: who has got all of it finds nothing active.
        over = answer.ending in {"keep", "close"} and not closes_chunks
        pieces = _with_last(_split(blocks, answer.cut, answer.rate)) if has_body else iter(())
        piece, last = next(pieces, (b"", True))
        with self._log.lock:
            self._request.status = answer.status
        self._send(_head(answer.status, common | answer.head(length)), last=over and not piece)
        begun, sent = time.monotonic(), 0
        while piece:
            sent += len(piece)
            before, after = (b"%x\r\n" % len(piece), b"\r\n") if chunked else (b"", b"")
            self._send(before + piece + after, len(before), len(piece), last=over and last)
            if answer.rate and not last:
                self._pause(begun + sent / answer.rate - time.monotonic())
            piece, last = next(pieces, (b"", True))
        if closes_chunks:
            self._send(b"0\r\n\r\n", last=True)
        is_short = has_body and length is not None and sent < length
        return not is_short and not answer.surplus and answer.framing != "close"

    def _send(self, data: bytes, skipped: int = 0, counted: int = 0, *, last: bool = False) -> None:
        """Send; `counted` bytes after the first `skipped` are of the body."""
        done = 0
        self._check()
        while done < len(data):
            with self._log.lock:
                # Under the lock, so that no one who has received a byte can find it uncounted.
                try:
                    count = self._connection.send(memoryview(data)[done:], socket.MSG_DONTWAIT)
                except BlockingIOError:
                    count = 0
                self._request.sent -= min(max(done - skipped, 0), counted)
                done += count
                self._request.sent += min(max(done - skipped, 0), counted)
                if last and done == len(data):
                    self._log.end(self._request)
            if done < len(data):
                select.select([], [self._connection], [], WATCH_SECONDS)
                self._check()

    def _pause(self, seconds: float) -> None:
        """Wait, while the client is there and the tests have not been reset."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._released.wait(min(left, WATCH_SECONDS)):
                raise ClientGoneError
            self._check()

    def _check(self) -> None:
        try:
            if self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"":
                raise ClientGoneError
        except BlockingIOError:
            return

    def _reset(self) -> None:
        """RST in place of an orderly end, once everything before it has arrived."""
        while struct.unpack("i", fcntl.ioctl(self._connection, termios.TIOCOUTQ, bytes(4)))[0]:
            self._pause(0.001)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Closed here and now: the server's own way would shut it down in an orderly way first.
        os.close(self._connection.detach())


def _head(status: int, headers: dict[str, str]) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Unknown"
    lines = [f"HTTP/1.1 {status} {phrase}", f"Date: {formatdate(usegmt=True)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _split(blocks: Iterator[bytes], limit: int | None, rate: float | None) -> Iterator[bytes]:
    """The first `limit` bytes, in pieces small enough for the pace."""
    size = BLOCK if rate is None else min(max(int(rate * WATCH_SECONDS), 1), BLOCK)
    for block in blocks:
        kept = block if limit is None else block[:limit]
        for at in range(0, len(kept), size):
            yield kept[at : at + size]
        if limit is not None:
            limit -= len(kept)
            if limit == 0:
                return


def _with_last(pieces: Iterator[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Each with whether it is the last."""
    known = next(pieces, None)
    while known is not None:
        following = next(pieces, None)
        yield known, following is None
        known = following
