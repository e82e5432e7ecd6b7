"""What answers of a hub mean: statuses, kinds, ranges, lengths, and when to ask again."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pywebml.errors import DownloadError, FileNotFoundOnHubError, IntegrityError
from pywebml.hub.answers import (
    RetriedError,
    check_beginning,
    check_kind,
    check_status,
    content_length,
    content_range,
    validator,
)
from pywebml.hub.retries import (
    ATTEMPTS,
    LONGEST_WAIT,
    RETRIED_STATUSES,
    backoff_seconds,
    retry_after_seconds,
)
from pywebml.platform import Environment
from pywebml.platform.native import NativePlatform

URL = "https://hub.example/a/b/main/onnx/model.onnx"
NOW = 1_790_000_000.0


@dataclass
class Answer:
    """A head without a body."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    url: str = URL
    redirect_headers: Mapping[str, str] = field(default_factory=dict)

    async def read(self, limit: int) -> bytes:
        raise NotImplementedError

    async def save(self, *args: object, **options: object) -> None:
        raise NotImplementedError

    async def close(self) -> None: ...


# Statuses


@pytest.mark.parametrize("status", [200, 206, 416])
def test_success_and_a_range_beyond_the_end_pass(status: int) -> None:
    check_status(Answer(status), URL, NOW)


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "hub_access_tokens"), (403, "private or gated"), (404, "file name"), (410, "file name")],
)
def test_file_that_is_not_to_be_had_is_named_with_advice(status: int, words: str) -> None:
    with pytest.raises(FileNotFoundOnHubError, match=words) as caught:
        check_status(Answer(status, {"retry-after": "1"}), URL, NOW)
    assert caught.value.details == {"url": URL, "status": status}


@pytest.mark.parametrize("status", sorted(RETRIED_STATUSES))
@pytest.mark.parametrize(("header", "wait"), [({}, None), ({"retry-after": "7"}, 7.0), ({"retry-after": "soon"}, None)])
def test_server_in_trouble_is_asked_again_when_it_says(status: int, header: dict[str, str], wait: float | None) -> None:
    with pytest.raises(RetriedError) as caught:
        check_status(Answer(status, header), URL, NOW)
    assert caught.value.wait == wait
    error = caught.value.error
    assert isinstance(error, DownloadError)
    assert (error.details["status"], error.details.get("retryAfter")) == (status, wait)
    assert ("left alone for 7 seconds" in error.message) == (wait is not None)


@pytest.mark.parametrize("status", [100, 201, 204, 300, 304, 400, 402, 405, 409, 418, 451, 501, 505, 599])
def test_any_other_status_is_an_error_at_once(status: int) -> None:
    with pytest.raises(DownloadError, match=str(status)) as caught:
        check_status(Answer(status), URL, NOW)
    assert caught.value.details == {"url": URL, "status": status}


# Kinds


@pytest.mark.parametrize("kind", ["text/html", "text/html; charset=utf-8", "TEXT/HTML ", " text/html;x"])
def test_web_page_in_place_of_a_model_is_refused_by_its_type(kind: str) -> None:
    with pytest.raises(IntegrityError, match="start page"):
        check_kind(Answer(headers={"content-type": kind}), URL, "onnx/model.onnx")
    check_kind(Answer(headers={"content-type": kind}), URL, "card.HTML")


@pytest.mark.parametrize("kind", ["", "application/octet-stream", "text/plain", "application/xhtml+xml", "text/htmlx"])
def test_other_types_pass(kind: str) -> None:
    check_kind(Answer(headers={"content-type": kind}), URL, "onnx/model.onnx")


@pytest.mark.parametrize(
    "data",
    [
        b"<!doctype html>",
        b"<!DOCTYPE  HTML PUBLIC",
        b"\n \t<html>",
        b"<HTML lang=en>",
        b"\xef\xbb\xbf<!doctype html>",
        b"\xef\xbb\xbf\r\n<html\n>",
    ],
)
def test_web_page_is_refused_by_its_beginning(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="a web page"):
        check_beginning(data, URL, "config.json")
    check_beginning(data, URL, "card.htm")


@pytest.mark.parametrize("data", [b"", b"{}", b"\x08\x07html", b"<htmlx>", b"<!doctype xml>", b"a <html>", b"<svg>"])
def test_other_beginnings_pass(data: bytes) -> None:
    check_beginning(data, URL, "config.json")


# Ranges and lengths


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes 0-99/100", (0, 100, 100)),
        ("bytes 5-5/6", (5, 6, 6)),
        ("bytes 0-99/*", None),
        ("bytes */100", None),
        ("bytes 0-100/100", None),
        ("bytes 9-5/100", None),
        ("bytes -5/100", None),
        ("bytes 0-99", None),
        ("bytes=0-99/100", None),
        ("items 0-99/100", None),
        ("bytes 0-99/100 ", None),
        ("bytes 0-99/9999999999999999", None),
        ("", None),
    ],
)
def test_content_range_that_makes_no_sense_says_nothing(header: str, expected: object) -> None:
    assert content_range(Answer(206, {"content-range": header})) == expected
    assert content_range(Answer(206)) is None


@given(st.text() | st.builds("bytes {}-{}/{}".format, *[st.integers(-3, 20) | st.text()] * 3))
def test_any_content_range_is_a_range_within_the_file_or_none(header: str) -> None:
    found = content_range(Answer(206, {"content-range": header}))
    if found is not None:
        begin, end, size = found
        assert 0 <= begin < end <= size


@pytest.fixture
def native(platform: NativePlatform) -> Environment:
    return platform.environment


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"content-length": "123"}, 123),
        ({"content-length": "0"}, 0),
        ({"content-length": "123", "content-encoding": "identity"}, 123),
        ({"content-length": "123", "content-encoding": "gzip"}, None),
        ({"content-length": "-1"}, None),
        ({"content-length": "1e3"}, None),
        ({"content-length": "٣"}, None),
        ({"content-length": "²"}, None),
        ({"content-length": "9" * 16}, None),
        ({"content-length": ""}, None),
        ({}, None),
    ],
)
def test_length_counts_where_nothing_was_compressed(
    native: Environment, headers: dict[str, str], expected: int | None
) -> None:
    assert content_length(Answer(headers=headers), native, identity=False) == expected


@pytest.mark.parametrize(
    ("base_url", "identity", "expected"),
    [
        ("https://hub.example/page.html", False, 9),
        ("https://page.example/", False, None),
        ("http://hub.example/", False, None),
        ("https://hub.example:444/", False, None),
        ("https://page.example/", True, 9),
        ("", False, 9),
    ],
)
def test_page_believes_the_length_of_another_origin_only_where_it_forbade_compression(
    native: Environment, base_url: str, identity: bool, expected: int | None
) -> None:
    page = dataclasses.replace(native, base_url=base_url)
    assert content_length(Answer(headers={"content-length": "9"}), page, identity=identity) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"etag": '"a"'}, 'etag:"a"'),
        ({"etag": '"a"', "last-modified": "Mon"}, 'etag:"a"'),
        ({"etag": 'W/"a"'}, ""),
        ({"etag": 'W/"a"', "last-modified": "Mon"}, ""),
        ({"last-modified": "Mon"}, "modified:Mon"),
        ({}, ""),
        ({"etag": ""}, ""),
    ],
)
def test_validator_is_a_strong_etag_or_a_date(headers: dict[str, str], expected: str) -> None:
    assert validator(headers) == expected


# Again


def test_waits_double_up_to_the_longest() -> None:
    assert [backoff_seconds(failures) for failures in range(1, ATTEMPTS + 1)] == [0.5, 1, 2, 4, 8]
    assert backoff_seconds(8) == LONGEST_WAIT
    assert backoff_seconds(100) == LONGEST_WAIT


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("0", 0),
        ("120", 120),
        (" 7 ", 7),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("٣", None),
        ("99999999999999999999", 999_999_999),
        ("Mon, 21 Sep 2026 14:13:30 GMT", 10),
        ("Mon, 21 Sep 2026 14:13:30 -0000", 10),
        ("Mon, 21 Sep 2026 16:13:30 +0200", 10),
        ("Monday, 21-Sep-26 14:13:30 GMT", 10),
        ("Mon, 21 Sep 2026 13:00:00 GMT", 0),
        ("Mon, 99 Sep 2026 13:00:00 GMT", None),
        ("Mon, 21 Sep 99999 13:00:00 GMT", None),
        ("Mon,", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(
    header: str | None, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A date without a zone is in UTC, wherever this machine is.
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert retry_after_seconds(header, NOW) == expected
    finally:
        monkeypatch.undo()
        time.tzset()


DATES = st.builds(
    "Mon, {} {} {} {}:{}:{} {}".format,
    st.integers(-1, 40),
    st.sampled_from(["Sep", "Feb", "Xyz"]),
    st.integers(-5, 100_000),
    st.integers(-1, 30),
    st.integers(-1, 99),
    st.integers(-1, 99),
    st.sampled_from(["GMT", "-0000", "+9999", "-2400", "EST", "+99999999999", ""]),
)


@given(st.text() | DATES)
def test_any_retry_after_is_a_time_or_nothing(header: str) -> None:
    wait = retry_after_seconds(header, NOW)
    assert wait is None or (wait >= 0 and math.isfinite(wait))
