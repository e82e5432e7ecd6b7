"""One file from a hub into the store: checked whole, or not there at all."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from pywebml.errors import DownloadError, FileNotFoundOnHubError, IntegrityError
from pywebml.hub.manifest import FileEntry
from pywebml.platform import BlobInfo, BlobKey, NetworkError, Platform, Response
from pywebml.progress import TransferProgress

_NOT_FOUND = {401, 403, 404, 410}


async def download(
    platform: Platform,
    url: str,
    key: BlobKey,
    *,
    expected: FileEntry | None,
    metadata: Mapping[str, Any],
    progress: TransferProgress,
) -> BlobInfo:
    """Stream `url` into the store, check it, and make it visible.

    Args:
        platform: Where.
        url: The file.
        key: Its name in the store.
        expected: Size and hash, where a manifest gives them.
        metadata: Is stored with the file, together with `url`, `etag` and `contentType`.
        progress: Counts the bytes.

    Raises:
        FileNotFoundOnHubError: The hub answered 401, 403, 404 or 410.
        DownloadError: No answer, another error status, or the connection broke.
        IntegrityError: Size, hash or kind of the bytes is wrong.
        StoreError: There is no room, or the store cannot be used.
    """
    progress.initiate()
    try:
        info = await _transfer(platform, url, key, expected, metadata, progress)
    except BaseException:
        progress.done(ok=False)
        raise
    progress.done()
    return info


async def _transfer(
    platform: Platform,
    url: str,
    key: BlobKey,
    expected: FileEntry | None,
    metadata: Mapping[str, Any],
    progress: TransferProgress,
) -> BlobInfo:
    response = await _answer(platform, url)
    try:
        # What is wrong at the head of the answer is found before a byte is stored.
        _check_status(response, url)
        _check_kind(response, url, key.path)
        announced = _content_length(response)
        progress.expect(expected.size if expected else announced or 0)
        writer = await platform.blobs.open_writer(key)
        try:
            try:
                await response.save(writer, progress.advance)
            except NetworkError as error:
                raise DownloadError(
                    f"The download of {url} broke off: {error}. Check the connection and try again.", url=url
                ) from error
            size, sha256 = await writer.finish()
            _check_bytes(url, size, sha256, expected, announced if _sees_encoding(platform, response) else None)
            return await writer.commit(
                {
                    **metadata,
                    "url": url,
                    "etag": response.headers.get("etag", ""),
                    "contentType": response.headers.get("content-type", ""),
                }
            )
        except BaseException:
            # Shielded: a second cancellation must not leave half a file.
            await asyncio.shield(writer.abort())
            raise
    finally:
        await response.close()


async def _answer(platform: Platform, url: str) -> Response:
    try:
        return await platform.request(url)
    except NetworkError as error:
        raise DownloadError(
            f"{url} could not be reached: {error}. Check the connection, and that hubRootUrl is right; in a page "
            "the hub must also allow requests from the page's origin (CORS).",
            url=url,
        ) from error


def _check_status(response: Response, url: str) -> None:
    status = response.status
    if status in _NOT_FOUND:
        reason = (
            "Check model id, revision and file name"
            if status in {404, 410}
            else "The model is private or gated, or does not exist (some hubs answer so): check model id and revision"
        )
        raise FileNotFoundOnHubError(f"The hub answered {status} for {url}. {reason}.", url=url, status=status)
    if status != 200:
        raise DownloadError(
            f"The hub answered {status} for {url}. Try again later, or ask the hub's owner.",
            url=url,
            status=status,
        )


def _check_kind(response: Response, url: str, path: str) -> None:
    kind = response.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "text/html" and not path.lower().endswith((".html", ".htm")):
        raise IntegrityError(
            f"{url} answered a web page in place of the file {path!r}: a login page, or a server that answers every "
            "address with its start page because the file is not there. Check hubRootUrl and hubUrlTemplate.",
            url=url,
            expected=path,
            received=kind,
        )


def _content_length(response: Response) -> int | None:
    """The announced size of the body, where nothing was compressed on the way."""
    text = response.headers.get("content-length", "")
    encoding = response.headers.get("content-encoding", "identity")
    return int(text) if encoding == "identity" and text.isascii() and text.isdigit() else None


def _sees_encoding(platform: Platform, response: Response) -> bool:
    """Whether a missing Content-Encoding means that there is none: pages do not see that of other origins."""
    own, other = urlsplit(platform.environment.base_url), urlsplit(response.url)
    return not own.netloc or (own.scheme, own.netloc) == (other.scheme, other.netloc)


def _check_bytes(url: str, size: int, sha256: str, expected: FileEntry | None, announced: int | None) -> None:
    if size == 0:
        raise IntegrityError(
            f"{url} is an empty file, which no model file can be. Check the hub.", url=url, expected="bytes", received=0
        )
    wanted = expected.size if expected else announced
    if wanted is not None and size != wanted:
        raise IntegrityError(
            f"{url} has {size} bytes, but {'the manifest' if expected else 'the hub'} announced {wanted}. Nothing "
            "was stored; try again.",
            url=url,
            expected=wanted,
            received=size,
        )
    if expected and sha256 != expected.sha256:
        raise IntegrityError(
            f"The bytes of {url} are not those of the manifest: their SHA-256 is {sha256}, not {expected.sha256}. "
            "Nothing was stored; try again, and if that does not help, tell the hub's owner.",
            url=url,
            expected=expected.sha256,
            received=sha256,
        )
