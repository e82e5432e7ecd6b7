"""From a resource and the rules that meet a request to one answer: status, headers, bytes, and how it ends."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, Literal

from tests.faults.content import BytesContent, Content, FlippedContent, Synthetic, SyntheticContent
from tests.faults.faults import Fault

PAGE = b"<!doctype html><title>Sign in</title><p>Please sign in to go on."


@dataclass(frozen=True)
class Resource:
    """What is found under a path: a file, or (with another status) an answer of the layout."""

    content: Content
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Answer:
    """An answer before it is sent.

    Attributes:
        content: The bytes `begin` to `end` of it are the body.
        framing: What tells the client where the body ends.
        gzipped: Whether the body is compressed.
        surplus: How many bytes Content-Length promises beyond those that come.
        cut: How many bytes of the body are sent before it ends as `ending` says; None: all.
        ending: `keep`: the connection stays as the client wishes.
        silent: Not even the headers are sent.
        rate: Bytes per second.
        overrides: Headers in place of the own ones; None: the header is left out.
    """

    status: int
    content: Content
    begin: int
    end: int
    headers: dict[str, str] = field(default_factory=dict)
    framing: Literal["length", "chunked", "close"] = "length"
    gzipped: bool = False
    surplus: int = 0
    cut: int | None = None
    ending: Literal["keep", "close", "stall", "reset"] = "keep"
    silent: bool = False
    rate: float | None = None
    overrides: dict[str, str | None] = field(default_factory=dict)

    def body(self) -> tuple[int | None, Iterator[bytes]]:
        """Length (None: known at its end only) and blocks of the body, before any cut."""
        blocks = self.content.read(self.begin, self.end)
        if not self.gzipped:
            return self.end - self.begin, blocks
        if self.framing != "length":
            return None, _compress(blocks)
        # Compressed twice rather than kept: a big file would need a place.
        length = sum(len(block) for block in _compress(blocks))
        return length, _compress(self.content.read(self.begin, self.end))

    def head(self, length: int | None) -> dict[str, str]:
        """All headers of the answer itself, for a body of this length."""
        headers = dict(self.headers)
        if self.framing == "chunked":
            headers["Transfer-Encoding"] = "chunked"
        elif self.framing == "close":
            headers["Connection"] = "close"
        elif length is not None and self.status not in {204, 304}:
            headers["Content-Length"] = str(length + self.surplus)
        return replace_headers(headers, self.overrides)


def replace_headers(headers: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """Headers with some added, replaced or (None) left out; the case of names does not matter."""
    names = {name.lower() for name in changes}
    kept = {name: value for name, value in headers.items() if name.lower() not in names}
    return kept | {name: value for name, value in changes.items() if value is not None}


def parse_range(header: str | None, size: int) -> tuple[int, int] | Literal["beyond"] | None:
    """The bytes that a Range header wants, the end excluded; None: no range that is served as such."""
    found = re.fullmatch(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", header or "", re.ASCII | re.IGNORECASE)
    if not found or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if first == "":
        begin, end = max(size - int(last), 0), size
        return (begin, end) if begin < end else "beyond"
    if last and int(last) < int(first):
        return None
    begin, end = int(first), min(int(last) + 1, size) if last else size
    return (begin, end) if begin < size else "beyond"


def text_answer(
    status: int, body: bytes | str, kind: str = "text/plain", headers: Mapping[str, str] | None = None
) -> Answer:
    """A short answer."""
    data = body.encode() if isinstance(body, str) else body
    own = ({"Content-Type": kind} if kind else {}) | dict(headers or {})
    return Answer(status, BytesContent.of(data, kind), 0, len(data), own)


def build(resource: Resource | None, method: str, asked: Mapping[str, str], faults: list[Fault]) -> Answer:
    """The answer to a request.

    Args:
        resource: What its path names, if anything.
        method: GET or HEAD.
        asked: Headers of the request, names in lower case.
        faults: The rules that meet it, in the order in which they are applied.
    """
    answer = _canned(faults) or _whole_or_part(resource, method, asked, faults)
    for fault in faults:
        shape = SHAPES.get(fault.kind)
        if shape:
            shape(answer, fault.value)
    return answer


def _canned(faults: list[Fault]) -> Answer | None:
    """The answer that needs no file."""
    for fault in faults:
        value = fault.value
        if fault.kind == "auth":
            challenge = {"WWW-Authenticate": 'Bearer realm="tests"'}
            return text_answer(401, "Invalid username or password.", headers=challenge)
        if fault.kind == "html":
            return text_answer(200, PAGE, "text/html; charset=utf-8")
        if fault.kind == "status":
            wanted = value if isinstance(value, dict) else {"status": value}
            headers = dict(wanted.get("headers") or {})
            if wanted.get("retry_after") is not None:
                headers["Retry-After"] = str(wanted["retry_after"])
            return text_answer(int(wanted["status"]), wanted.get("body", "a fault of the tests"), headers=headers)
        if fault.kind == "redirect":
            wanted = value if isinstance(value, dict) else {"to": value}
            headers = {**(wanted.get("headers") or {}), "Location": wanted["to"]}
            return text_answer(int(wanted.get("status", 302)), "Found elsewhere.", headers=headers)
    return None


def _whole_or_part(resource: Resource | None, method: str, asked: Mapping[str, str], faults: list[Fault]) -> Answer:
    kinds = {fault.kind: fault.value for fault in faults}
    if resource is None:
        return text_answer(404, "no such file")
    content = _changed(resource.content, kinds["change"]) if "change" in kinds else resource.content
    headers = {"Content-Type": content.media_type}
    if resource.status != 200:
        return Answer(resource.status, content, 0, content.size, headers | dict(resource.headers))
    headers |= {"ETag": content.etag, "Last-Modified": formatdate(content.modified, usegmt=True)}
    headers |= {"Accept-Ranges": "bytes"} | dict(resource.headers)
    if "etag" in kinds and kinds["etag"] is None:
        del headers["ETag"], headers["Last-Modified"]
    elif "etag" in kinds:
        headers["ETag"] = str(kinds["etag"])
    if "weak_etag" in kinds and "ETag" in headers:
        headers["ETag"] = f"W/{headers['ETag'].removeprefix('W/')}"
    if "no_range" in kinds:
        del headers["Accept-Ranges"]
    whole = Answer(200, content, 0, content.size, headers)
    if _is_unchanged(asked.get("if-none-match"), headers.get("ETag")):
        return Answer(304, content, 0, 0, headers)
    if method != "GET" or "no_range" in kinds or not _is_same_version(asked.get("if-range"), headers):
        return whole
    wanted = parse_range(asked.get("range"), content.size)
    if wanted is None:
        return whole
    if wanted == "beyond":
        return text_answer(
            416, "no such bytes", headers={"Content-Range": f"bytes */{content.size}", "Accept-Ranges": "bytes"}
        )
    begin, end = wanted
    headers["Content-Range"] = f"bytes {begin}-{end - 1}/{content.size}"
    return Answer(206, content, begin, end, headers)


def _changed(content: Content, value: Mapping[str, Any]) -> Content:
    """Another version, later by a minute."""
    modified = content.modified + 60
    if "data" in value:
        return BytesContent.of(str(value["data"]).encode(), content.media_type, modified=modified)
    file = Synthetic(int(value.get("size", content.size)), int(value["seed"]))
    return SyntheticContent.of(file, content.media_type, modified=modified)


def _is_unchanged(condition: str | None, etag: str | None) -> bool:
    if condition is None or etag is None:
        return False
    known = {tag.strip().removeprefix("W/") for tag in condition.split(",")}
    return condition.strip() == "*" or etag.removeprefix("W/") in known


def _is_same_version(condition: str | None, headers: Mapping[str, str]) -> bool:
    """If-Range: a weak ETag is never good enough to put parts together."""
    if condition is None:
        return True
    if condition.startswith('"'):
        return condition == headers.get("ETag")
    return condition == headers.get("Last-Modified")


def _compress(blocks: Iterator[bytes]) -> Iterator[bytes]:
    compressor = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    for block in blocks:
        if data := compressor.compress(block):
            yield data
    yield compressor.flush()


# What a kind does to an answer that is otherwise right


def _flip(answer: Answer, value: Any) -> None:
    answer.content = FlippedContent.of(answer.content, int(value))


def _shorter(answer: Answer, value: Any) -> None:
    answer.end = max(answer.begin, answer.end - int(value))


def _wrong_range(answer: Answer, value: Any) -> None:
    if answer.status != 206:
        return
    size, length = answer.content.size, answer.end - answer.begin
    answer.begin = min(max(answer.begin + int(value), 0), size - 1)
    answer.end = min(answer.begin + length, size)
    answer.headers["Content-Range"] = f"bytes {answer.begin}-{answer.end - 1}/{size}"


def _lying_total(answer: Answer, value: Any) -> None:
    told = answer.headers.get("Content-Range")
    if told:
        place, total = told.rsplit("/", 1)
        answer.headers["Content-Range"] = f"{place}/{int(total) + int(value)}"


def _gzip(answer: Answer, value: Any) -> None:
    if answer.status == 200:
        answer.gzipped = True
        answer.headers["Content-Encoding"] = "gzip"
        if value == "chunked":
            answer.framing = "chunked"


def _no_length(answer: Answer, value: Any) -> None:
    answer.framing = "chunked"


def _close_delimited(answer: Answer, value: Any) -> None:
    answer.framing = "close"


def _longer(answer: Answer, value: Any) -> None:
    answer.surplus = int(value)


def _drop(answer: Answer, value: Any) -> None:
    answer.silent, answer.ending = True, "close"


def _truncate(answer: Answer, value: Any) -> None:
    answer.cut, answer.ending = int(value or 0), "close"


def _stall(answer: Answer, value: Any) -> None:
    answer.silent, answer.cut, answer.ending = value is None, int(value or 0), "stall"


def _reset(answer: Answer, value: Any) -> None:
    answer.silent, answer.cut, answer.ending = value is None, int(value or 0), "reset"


def _slow(answer: Answer, value: Any) -> None:
    answer.rate = float(value)


def _header(answer: Answer, value: Any) -> None:
    answer.overrides |= value


SHAPES: dict[str, Callable[[Answer, Any], None]] = {
    "drop": _drop,
    "wrong_range": _wrong_range,
    "flip": _flip,
    "shorter": _shorter,
    "lying_total": _lying_total,
    "gzip": _gzip,
    "no_length": _no_length,
    "close_delimited": _close_delimited,
    "longer": _longer,
    "truncate": _truncate,
    "stall": _stall,
    "reset": _reset,
    "slow": _slow,
    "header": _header,
}
