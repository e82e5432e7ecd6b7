"""What a hub's HTTP answer says about the file behind it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from pywebml.errors import DownloadError, FileNotFoundOnHubError, IntegrityError
from pywebml.hub.retries import RETRIED_STATUSES, retry_after_seconds
from pywebml.platform import Environment, Response

SNIFFED_BYTES = 512
"""So many bytes tell a web page from a model."""

_NOT_FOUND = {401: "private", 403: "private", 404: "absent", 410: "absent"}
_ADVICE = {
    "absent": "Check model id, revision and file name",
    "private": "The model is private or gated, or does not exist (some hubs answer so): check model id and revision, "
    "and give an access token with configure(hub_access_tokens=…) if the model needs one",
}
_CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*(<!doctype\s+html|<html[\s>])", re.IGNORECASE)


class RetriedError(Exception):
    """The same request may succeed later.

    Attributes:
        error: What to raise when it does not.
        wait: Seconds that the server asks for; None when it asks for nothing.
    """

    def __init__(self, error: DownloadError, wait: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait


def check_status(response: Response, url: str, now: float) -> None:
    """Let the statuses of success, and 416, through.

    Args:
        response: The answer.
        url: What was asked for.
        now: Seconds since the epoch.

    Raises:
        FileNotFoundOnHubError: 401, 403, 404 or 410.
        RetriedError: The server is in trouble, or wants fewer requests.
        DownloadError: Any other status.
    """
    status = response.status
    if status in {200, 206, 416}:
        return
    if status in _NOT_FOUND:
        advice = _ADVICE[_NOT_FOUND[status]]
        raise FileNotFoundOnHubError(f"The hub answered {status} for {url}. {advice}.", url=url, status=status)
    wait = retry_after_seconds(response.headers.get("retry-after"), now)
    asked = "" if wait is None else f" and asked to be left alone for {wait:.0f} seconds"
    details = {} if wait is None else {"retryAfter": wait}
    error = DownloadError(
        f"The hub answered {status} for {url}{asked}. Try again later, or ask the hub's owner.",
        url=url,
        status=status,
        **details,
    )
    if status in RETRIED_STATUSES:
        raise RetriedError(error, wait)
    raise error


def check_kind(response: Response, url: str, path: str) -> None:
    """Refuse a web page in place of a model. Raises `IntegrityError`."""
    kind = response.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "text/html" and not _may_be_html(path):
        raise _web_page(url, path, kind)


def check_beginning(data: bytes, url: str, path: str) -> None:
    """Refuse a web page that does not call itself one. Raises `IntegrityError`."""
    if _HTML.match(data) and not _may_be_html(path):
        raise _web_page(url, path, "a web page")


def content_range(response: Response) -> tuple[int, int, int] | None:
    """Begin, end and size of the whole file as `Content-Range` says; None when it says nothing that makes sense."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if found is None:
        return None
    begin, end, size = int(found[1]), int(found[2]) + 1, int(found[3])
    return (begin, end, size) if begin < end <= size else None


def content_length(response: Response, environment: Environment, *, identity: bool) -> int | None:
    """The announced size of the body, where nothing was compressed on the way; None when unknown.

    Args:
        response: The answer.
        environment: Where it was received.
        identity: Whether the request forbade compression.
    """
    text = response.headers.get("content-length", "")
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        return None
    if response.headers.get("content-encoding", "identity") != "identity":
        return None
    # A page does not see whether a server of another origin has compressed the body.
    own, other = urlsplit(environment.base_url), urlsplit(response.url)
    seen = not own.netloc or (own.scheme, own.netloc) == (other.scheme, other.netloc)
    return int(text) if seen or identity else None


def validator(headers: Mapping[str, str]) -> str:
    """By what two answers can be told to be of the same bytes: a strong ETag, else a date; empty when there is none."""
    etag, modified = headers.get("etag", ""), headers.get("last-modified", "")
    if etag and not etag.startswith("W/"):
        return f"etag:{etag}"
    return f"modified:{modified}" if modified and not etag else ""


def _may_be_html(path: str) -> bool:
    return path.lower().endswith((".html", ".htm"))


def _web_page(url: str, path: str, received: str) -> IntegrityError:
    return IntegrityError(
        f"{url} answered a web page in place of the file {path!r}: a login page, or a server that answers every "
        "address with its start page because the file is not there. Check hubRootUrl and hubUrlTemplate.",
        url=url,
        expected=path,
        received=received,
    )
