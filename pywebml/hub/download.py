"""One file from a hub into the store: in parts, gone on with after a break, checked whole, or not there at all."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pywebml.abort import together
from pywebml.errors import DownloadError, IntegrityError
from pywebml.hub.answers import (
    SNIFFED_BYTES,
    RetriedError,
    check_beginning,
    check_kind,
    check_status,
    content_length,
    content_range,
    validator,
)
from pywebml.hub.listing import PART_SIZE, FileEntry, git_oid_of, linked_sha256
from pywebml.hub.retries import ATTEMPTS, LONGEST_WAIT, backoff_seconds
from pywebml.hub.stored import commit_file
from pywebml.platform import STALL_SECONDS, BlobInfo, BlobKey, BlobWriter, NetworkError, Platform, RangePlan, Response
from pywebml.progress import TransferProgress

CONNECTIONS = 3
"""Requests for parts of one file that are under way at the same time."""
RANGE_SIZE = PART_SIZE // 2
LONG_RANGE_SIZE = 2 * PART_SIZE
LONG_RANGES_FROM = 16 * PART_SIZE
"""Bytes that are asked for at a time where they come fast, and from how many missing bytes on it is the longer range.
Two are under way at the same time, and are lost when everything ends suddenly."""

LARGE = re.compile(r"\.(onnx|onnx_data(_\d+)?|bin|data|safetensors|npy|npz|gguf|wasm)$", re.IGNORECASE)
"""Names of files that are asked for by parts before their size is known. Text is better fetched in one go: it may come
compressed."""

# What comes faster is not worth watching: a range is there before anybody has read how far it is.
_FAST_BYTES_PER_SECOND = 8 * 1024 * 1024
# Less than this is no progress: a server that breaks off after every few bytes is not asked for ever.
_PROGRESS_BYTES = 1024 * 1024
_MOST_RESTARTS = 2
_MOST_BAD_PARTS = 2
_LARGEST_GIT_BLOB = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FileRequest:
    """A file that is to be downloaded.

    Attributes:
        url: Where it is.
        key: Its name in the store.
        expected: Size and hashes, as far as they are known.
        headers: Of every request, for access to private hubs.
        metadata: Is stored with the file, together with `url`, `etag`, `contentType` and `gitOid`.
        stall_seconds: How long the connection may stay silent.
    """

    url: str
    key: BlobKey
    expected: FileEntry | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    metadata: Mapping[str, Any] = field(default_factory=dict)
    stall_seconds: float = STALL_SECONDS


async def download(platform: Platform, request: FileRequest, progress: TransferProgress) -> BlobInfo:
    """Have a file in the store. Whoever calls holds the lock of the file.

    What a broken or cancelled download has brought stays beside the store, unseen, as long as an ETag, a date or a hash
    tells whether it is still part of the file; the next call goes on from there.

    Args:
        platform: Where.
        request: What.
        progress: Counts the bytes; its beginning and end are the caller's.

    Raises:
        FileNotFoundOnHubError: The hub answered 401, 403, 404 or 410.
        DownloadError: No answer, another error status, or the connection broke, again and again.
        IntegrityError: Size, hash or kind of the bytes is wrong.
        StoreError: There is no room, or the store cannot be used.
    """
    return await _Transfer(platform, request, progress).run()


class _ContradictionError(Exception):
    """An answer does not go with an earlier one: what was fetched so far is of no use."""


class _Transfer:
    """One call of `download`."""

    def __init__(self, platform: Platform, request: FileRequest, progress: TransferProgress) -> None:
        self._platform = platform
        self._request = request
        self._progress = progress
        # What is known of the file: from the caller, from a suspended download, from answers.
        self._expected = request.expected
        self._size = request.expected.size if request.expected else None
        self._validator = ""
        self._headers: Mapping[str, str] | None = None
        # How its server behaves.
        self._ranges = True
        self._fast = False
        self._has_shortcut = True
        self._is_page = False
        # What is there: the writer and the token it was opened with, its ranges, parts that are being fetched, and
        # checks of parts by their hash.
        self._writer: BlobWriter | None = None
        self._token = ""
        self._present: list[tuple[int, int]] = []
        self._received = 0
        self._taken: set[int] = set()
        self._right_parts: set[int] = set()
        self._checks: dict[int, asyncio.Task[bool]] = {}
        self._bad_parts: dict[int, int] = {}

    async def run(self) -> BlobInfo:
        try:
            return await self._try_until_done()
        except IntegrityError:
            # A web page in place of a part, as a hotel's network sends it, says nothing against the other parts.
            await asyncio.shield(self._suspend() if self._is_page else self._drop())
            raise
        except BaseException:
            # Shielded: a second cancellation must not leave a writer behind.
            await asyncio.shield(self._suspend())
            raise

    async def _try_until_done(self) -> BlobInfo:
        failures = restarts = 0
        while True:
            before = self._stored_bytes()
            try:
                await self._fetch_missing()
                return await self._finish()
            except _ContradictionError as reason:
                restarts += 1
                await self._drop()
                if restarts > _MOST_RESTARTS:
                    raise DownloadError(
                        f"The hub contradicts itself about {self._request.url}: {reason}. Try again later, or tell the "
                        "hub's owner.",
                        url=self._request.url,
                    ) from None
                # The last try does without ranges: then one answer has all of it.
                self._ranges = self._ranges and restarts < _MOST_RESTARTS
            except RetriedError as again:
                advanced = self._ranges and self._stored_bytes() >= before + _PROGRESS_BYTES
                failures = 1 if advanced else failures + 1
                wait = backoff_seconds(failures) if again.wait is None else again.wait
                if failures >= ATTEMPTS or wait > LONGEST_WAIT:
                    raise again.error from None
                await self._platform.sleep(wait)

    async def _fetch_missing(self) -> None:
        """Fetch what is not there yet. Afterwards all of it is, and no part is known to be bad."""
        if self._stored_bytes() and not self._ranges:
            # Without ranges nothing can be gone on with.
            await self._drop()
        if self._writer is None:
            await self._resume()
        self._received = self._stored_bytes()
        while True:
            # The first answer tells how large the file is and how fast it comes; the rest follows from that. Where it
            # comes fast, more connections bring no more.
            if self._headers is None or self._fast:
                await self._fetch_parts(most=1)
            if not self._fast:
                await together(*(self._fetch_parts() for _ in range(CONNECTIONS)))
            elif self._has_shortcut:
                self._has_shortcut = await self._fetch_ranges()
            if await self._all_good():
                return

    async def _resume(self) -> None:
        """Open a writer: that of a suspended download, if these can be the same bytes."""
        token = self._expected.content_id if self._expected else ""
        if not token and (draft := await self._platform.blobs.draft(self._request.key)) is not None:
            token = draft[0]
            size = token.rpartition("/")[2]
            self._size = int(size) if size.isdigit() else None
        await self._open(token)
        if not self._request.expected and self._size and not self._gaps(self._size):
            # Only an answer can tell whether the file is still the same, so that one part is asked for again.
            assert self._writer is not None
            await self._writer.discard(self._size - 1, self._size)
            await self._look()
        self._progress.expect(self._size or 0)
        self._progress.reach(self._received)

    # Fetching

    async def _fetch_parts(self, most: int | None = None) -> None:
        """Fetch parts that nobody else is fetching: until there are none, or `most` of them."""
        fetched = 0
        while (most is None or fetched < most) and (part := self._take_part()) is not None:
            begin, end = part
            try:
                await self._fetch(begin, end)
            finally:
                self._taken.discard(begin // PART_SIZE)
            self._start_checks()
            fetched += 1

    def _take_part(self) -> tuple[int, int | None] | None:
        """The first missing range within one part; None as its end: up to the end of the file, wherever that is."""
        if self._size is None:
            if self._taken:
                return None
            self._taken.add(0)
            return 0, None
        for begin, end in self._gaps(self._size):
            while begin < end:
                number = begin // PART_SIZE
                stop = min(end, (number + 1) * PART_SIZE)
                if number not in self._taken:
                    self._taken.add(number)
                    return begin, stop
                begin = stop
        return None

    async def _fetch_ranges(self) -> bool:
        """Fetch what is missing by the platform's shortest way, which looks at nothing but whether every answer is as
        the last one was; whether that brought anything."""
        assert self._writer is not None
        assert self._size is not None
        gaps = self._gaps(self._size)
        missing = sum(end - begin for begin, end in gaps)
        step = LONG_RANGE_SIZE if missing >= LONG_RANGES_FROM else RANGE_SIZE
        plan = RangePlan(
            ranges=tuple(piece for begin, end in gaps for piece in _pieces(begin, end, step)),
            size=self._size,
            same=self._same_headers(),
            hashes=tuple(
                (*self._part(number), sha256)
                for number, sha256 in enumerate(self._expected.parts if self._expected else ())
                if number not in self._right_parts
            ),
            stall_seconds=self._request.stall_seconds,
            slow_seconds=step / _FAST_BYTES_PER_SECOND,
        )

        def count(received: int) -> None:
            self._received += received
            self._progress.reach(self._received)

        try:
            right = await self._platform.fetch_ranges(
                self._request.url, plan, self._writer, count, headers=self._request.headers
            )
        finally:
            await self._look()
            self._received = self._stored_bytes()
        self._right_parts.update(begin // PART_SIZE for begin in right)
        return self._stored_bytes() > self._size - missing

    def _same_headers(self) -> dict[str, str]:
        """What every answer has to repeat."""
        headers = self._headers or {}
        names = ["content-type"]
        # Where the hash is known, it decides.
        if self._expected is None or not self._expected.content_id:
            kind = self._validator.partition(":")[0]
            names += {"etag": ["etag"], "modified": ["last-modified"]}.get(kind, [])
        return {name: headers.get(name, "") for name in names}

    async def _fetch(self, begin: int, end: int | None) -> None:
        arrived = 0

        def count(received: int) -> None:
            nonlocal arrived
            arrived += received
            self._received += received
            self._progress.reach(self._received)

        started = self._platform.monotonic()
        by_range = self._ranges and bool(
            LARGE.search(self._request.key.path) if end is None else (begin, end) != (0, self._size)
        )
        asked = begin + PART_SIZE if end is None else end
        response = await self._ask(begin, asked) if by_range else await self._ask()
        try:
            begin, end = await self._take_head(response, begin, end, identity=by_range)
            assert self._writer is not None
            await response.save(
                self._writer,
                count,
                offset=begin,
                limit=(None if self._size is None else self._size - begin) if end is None else end - begin,
            )
        except BaseException as error:
            await response.close()
            await self._look()
            if not isinstance(error, NetworkError):
                raise
            self._fast = False
            raise RetriedError(
                self._broken(
                    f"The download of {self._request.url} broke off: {error}. Check the connection and try again"
                )
            ) from error
        # Asking the writer would wait for the parts of others, which are on their way to it.
        self._present = _merged([*self._present, (begin, begin + arrived)])
        if end is None:
            # A body without a length was whole when it ended well.
            self._size = self._stored_bytes()
        elif end < min(asked, self._size or asked) or begin + arrived < end:
            raise RetriedError(
                self._broken(
                    f"{self._request.url} sent less than the {asked - begin} bytes that were asked for. Try again, or "
                    "tell the hub's owner"
                )
            )
        elif end - begin >= PART_SIZE // 2:
            self._fast = end - begin > (self._platform.monotonic() - started) * _FAST_BYTES_PER_SECOND

    async def _ask(self, begin: int = 0, end: int | None = None) -> Response:
        """Send a request, for a range when it has an end, and see that its answer can be part of the file."""
        url = self._request.url
        headers = dict(self._request.headers) | ({} if end is None else {"range": f"bytes={begin}-{end - 1}"})
        try:
            response = await self._platform.request(url, headers=headers, stall_seconds=self._request.stall_seconds)
        except NetworkError as error:
            raise RetriedError(
                self._broken(
                    f"{url} could not be reached: {error}. Check the connection, and that hubRootUrl is right; in a "
                    "page the hub must also allow requests from the page's origin (CORS)"
                )
            ) from error
        try:
            check_status(response, url, self._platform.now())
            self._is_page = True
            check_kind(response, url, self._request.key.path)
            self._is_page = False
        except BaseException:
            await response.close()
            raise
        return response

    def _broken(self, words: str) -> DownloadError:
        kept = self._stored_bytes()
        return DownloadError(f"{words}{f'; {kept} bytes are kept' if kept else ''}.", url=self._request.url)

    # What answers say

    async def _take_head(
        self, response: Response, begin: int, end: int | None, *, identity: bool
    ) -> tuple[int, int | None]:
        """Which bytes of the file the body of an answer is; None as end: up to the end of the body.

        Args:
            response: The answer.
            begin: Of the range that was asked for.
            end: Of that range.
            identity: Whether the request forbade compression.
        """
        if response.status == 416:
            self._ranges = False
            raise _ContradictionError("it is shorter than it was said to be")
        if response.status == 206:
            first, last, size = self._range_of(response, begin, end)
            if first != begin or (end is not None and last > end):
                self._ranges = False
                raise _ContradictionError(f"bytes {first} to {last} came where {begin} to {end} were asked for")
            await self._identify(response, size, partial=begin > 0)
            self._size = size
            self._progress.expect(size)
            return begin, last
        # All of the file, whatever was asked for.
        size_or_none = content_length(response, self._platform.environment, identity=identity)
        if begin > 0 or self._present or len(self._taken) > 1:
            # Its server does without ranges: from now on so do we, from the start.
            self._ranges = False
            raise _ContradictionError("a request for a part of it was answered with all of it")
        await self._identify(response, size_or_none, partial=False)
        if self._expected is None:
            self._size = size_or_none
        self._progress.expect(self._size or 0)
        return 0, size_or_none

    def _range_of(self, response: Response, begin: int, end: int | None) -> tuple[int, int, int]:
        found = content_range(response)
        if found is not None:
            return found
        # Other origins need not show this header to pages. Where the size is known, the range is what was asked for.
        if "content-range" not in response.headers and end is not None and self._size is not None:
            return begin, end, self._size
        self._ranges = False
        raise _ContradictionError("a part of it came without a word on which part that is")

    async def _identify(self, response: Response, size: int | None, *, partial: bool) -> None:
        """See that all answers are of the same bytes, and open a writer under their name."""
        name = validator(response.headers)
        # Where the hash is known, it decides: mirrors of one hub name the same bytes differently.
        known = self._expected is not None and self._expected.content_id != ""
        if not known and self._validator and name and name != self._validator:
            raise _ContradictionError("it changed in the middle of the download")
        self._validator, self._headers = self._validator or name, response.headers
        linked = linked_sha256({**response.headers, **response.redirect_headers})
        if self._expected is None and linked and size is not None:
            self._expected = FileEntry(size, linked)
        if self._expected is not None and size is not None and size != self._expected.size:
            raise self._wrong_size(size, "announces")
        token = self._expected.content_id if self._expected else ""
        if not token and self._validator and size is not None:
            token = f"{self._validator}/{size}"
        if token != self._token:
            # What was suspended was part of other bytes, or could not be given a name.
            if partial:
                raise _ContradictionError("it is not the file any more of which a part was fetched before")
            await self._close()
            await self._open(token)

    # What is there

    async def _open(self, token: str) -> None:
        self._writer = await self._platform.blobs.open_writer(self._request.key, token)
        self._token = token
        await self._look()
        self._received = self._stored_bytes()

    async def _look(self) -> None:
        self._present = await self._writer.present() if self._writer is not None else []

    def _stored_bytes(self) -> int:
        return sum(end - begin for begin, end in self._present)

    def _gaps(self, size: int) -> list[tuple[int, int]]:
        gaps, position = [], 0
        for begin, end in [*self._present, (size, size)]:
            if position < min(begin, size):
                gaps.append((position, min(begin, size)))
            position = max(position, end)
        return gaps

    async def _close(self) -> None:
        """Let go of everything that was written."""
        await self._stop_checks()
        self._right_parts.clear()
        writer, self._writer, self._present, self._token = self._writer, None, [], ""
        if writer is not None:
            await writer.abort()

    async def _drop(self) -> None:
        """Let go of everything that was written, and of what answers have said."""
        await self._close()
        self._expected, self._headers, self._validator = self._request.expected, None, ""
        self._size = self._expected.size if self._expected else None

    async def _suspend(self) -> None:
        await self._stop_checks()
        if self._writer is not None:
            await self._writer.suspend()

    # Checks

    def _start_checks(self) -> None:
        """Check the parts that have become whole, where there are hashes of parts."""
        if self._expected is None or not self._expected.parts:
            return
        gaps = self._gaps(self._expected.size)
        for number, sha256 in enumerate(self._expected.parts):
            begin, end = self._part(number)
            known = number in self._right_parts or number in self._checks
            if not known and not any(gap[0] < end and begin < gap[1] for gap in gaps):
                self._checks[number] = asyncio.ensure_future(self._has_hash(begin, end, sha256))

    async def _has_hash(self, begin: int, end: int, sha256: str) -> bool:
        assert self._writer is not None
        return await self._writer.digest(begin, end) == sha256

    def _part(self, number: int) -> tuple[int, int]:
        assert self._size is not None
        return number * PART_SIZE, min((number + 1) * PART_SIZE, self._size)

    async def _all_good(self) -> bool:
        """Whether everything is there and every part is what it should be; bad parts are dropped."""
        if self._size is None or self._gaps(self._size):
            return False
        self._start_checks()
        bad = [number for number, check in list(self._checks.items()) if not await check]
        for number in bad:
            begin, end = self._part(number)
            self._bad_parts[number] = self._bad_parts.get(number, 0) + 1
            if self._bad_parts[number] >= _MOST_BAD_PARTS:
                assert self._expected is not None
                raise IntegrityError(
                    f"Bytes {begin} to {end} of {self._request.url} are not those of the hub's list: their SHA-256 is "
                    "wrong, also when they are fetched again. Nothing was stored; try again later, and if that does "
                    "not help, tell the hub's owner.",
                    url=self._request.url,
                    expected=self._expected.parts[number],
                    received="other bytes",
                )
            assert self._writer is not None
            await self._writer.discard(begin, end)
        if bad:
            # Whole pieces went, so that neighbours may have lost bytes too.
            await self._stop_checks()
            self._right_parts.clear()
            await self._look()
            self._received = self._stored_bytes()
        return not bad

    async def _stop_checks(self) -> None:
        checks, self._checks = list(self._checks.values()), {}
        for check in checks:
            check.cancel()
        await asyncio.gather(*checks, return_exceptions=True)

    async def _finish(self) -> BlobInfo:
        """Check all of it and make it visible."""
        writer, expected, url = self._writer, self._expected, self._request.url
        assert writer is not None
        assert self._size is not None
        if self._size == 0:
            raise IntegrityError(
                f"{url} is an empty file, which no model file can be. Check the hub.",
                url=url,
                expected="bytes",
                received=0,
            )
        check_beginning(await writer.read(0, min(self._size, SNIFFED_BYTES)), url, self._request.key.path)
        # What was checked part by part has the hash of the whole.
        size, sha256 = await writer.finish(expected.sha256 if expected and expected.parts else None)
        if expected is not None:
            if size != expected.size:
                raise self._wrong_size(size, "has")
            if expected.sha256 and sha256 != expected.sha256:
                raise self._wrong_hash(expected.sha256, sha256)
            if expected.git_oid and size <= _LARGEST_GIT_BLOB:
                git_oid = git_oid_of(await writer.read(0, size))
                if git_oid != expected.git_oid:
                    raise self._wrong_hash(expected.git_oid, git_oid)
        headers = self._headers or {}
        metadata = {
            **self._request.metadata,
            "url": url,
            "etag": headers.get("etag", ""),
            "contentType": headers.get("content-type", ""),
            "gitOid": expected.git_oid if expected else "",
        }
        return await commit_file(self._platform, self._request.key, writer, metadata)

    def _wrong_size(self, received: int, verb: str) -> IntegrityError:
        assert self._expected is not None
        return IntegrityError(
            f"{self._request.url} {verb} {received} bytes, but the hub's list announced {self._expected.size}. Nothing "
            "was stored; try again, and if that does not help, tell the hub's owner.",
            url=self._request.url,
            expected=self._expected.size,
            received=received,
        )

    def _wrong_hash(self, expected: str, received: str) -> IntegrityError:
        kind = "SHA-256" if len(expected) == 64 else "git hash"
        return IntegrityError(
            f"The bytes of {self._request.url} are not those of the hub's list: their {kind} is {received}, not "
            f"{expected}. Nothing was stored; try again, and if that does not help, tell the hub's owner.",
            url=self._request.url,
            expected=expected,
            received=received,
        )


def _pieces(begin: int, end: int, step: int) -> Iterator[tuple[int, int]]:
    """A range, cut at multiples of `step`."""
    while begin < end:
        stop = min(end, (begin // step + 1) * step)
        yield begin, stop
        begin = stop


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in order, as few as possible."""
    merged: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged
