"""What the model downloader must do when things go wrong, against two fault servers: a hub and the place that its large
files are on. `tests/faults/server.py` has the table of faults.

Most cases are rows of a table: what goes wrong, when, and what comes of it. One function runs them all. Each case takes
a `Scene`; at its end nothing half-written is visible, another model is as it was, and the next try has succeeded.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from pywebml.abort import AbortController, abortable
from pywebml.errors import AbortError, DownloadError, FileNotFoundOnHubError, HubError, IntegrityError, PywebmlError
from pywebml.hub import PART_SIZE, ModelHub
from pywebml.platform import STALL_SECONDS, BlobKey, Platform
from pywebml.platform.parts import BLOCK_SIZE, part_hash
from pywebml.progress import ProgressCallback, ProgressEvent, ignore_progress

MODEL_FILE = "onnx/model.onnx"
TEXT_FILE = "config.json"
PINNED = "v1.0.0"
LARGE = 20_000_000
"""Three parts, the last one shorter."""
SMALL = 50_000
MIDDLE = PART_SIZE + 2_000_000
"""A byte of the second part."""
END = 2 * PART_SIZE + 1_000_000
"""A byte of the last part."""
BEFORE_LAST = 3 * PART_SIZE // 2
"""Bytes that are here when the last part is asked for: half a part may still be under way on another connection."""
LITTLE = 4096
"""Bytes of answers that bring nothing of the file."""
IN_VAIN = PART_SIZE
"""Bytes of two ranges, asked for by the platform's short way, whose answers turn out not to be what was expected."""
TOKEN = "a-token-of-the-tests"
SHORT_STALL = 0.5

_PATIENCE_SECONDS = 30.0
_LOOK_SECONDS = 0.01

Layout: TypeAlias = Literal["none", "manifest", "parts", "huggingface"]
Place: TypeAlias = Literal["file", "listing", "pointer", "cdn"]
Send: TypeAlias = Callable[[str, str, Mapping[str, str], bytes], Awaitable[tuple[int, bytes]]]
"""Method, URL, headers and body to status and body."""


# Surroundings


class Patient:
    """A platform on which waiting takes no time, and on whose clock every part takes long if `parallel`, else no time.

    Attributes:
        slept: How long each wait would have been.
        held_at: Seconds of the one wait that never ends.
        holding: Set when that wait has begun.
    """

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self.slept: list[float] = []
        self.parallel = False
        self.held_at: float | None = None
        self.holding = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if seconds == self.held_at:
            self.holding.set()
            await asyncio.Event().wait()
        await self._platform.sleep(min(seconds, 0.005))

    def monotonic(self) -> float:
        return self._platform.monotonic() * (1000 if self.parallel else 0.001)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._platform, name)


@dataclass(frozen=True)
class Asked:
    """A request that a server has seen."""

    method: str
    path: str
    authorization: str
    range: str
    status: int | None
    sent: int
    ended: int | None

    def wanted(self, size: int) -> int:
        """How many bytes of a file of this size it was answered with, or would have been."""
        if self.method != "GET" or self.status not in {200, 206}:
            return 0
        begin, _, last = self.range.removeprefix("bytes=").partition("-")
        return min(int(last) + 1, size) - int(begin) if self.range and self.status == 206 else size


class FaultControl:
    """Speaks to one fault server.

    Args:
        url: Of the server.
        send: How.
    """

    def __init__(self, url: str, send: Send) -> None:
        self.url = url
        self._send = send

    async def fault(self, path: str, kind: str, value: Any = None, **options: Any) -> None:
        """Add a rule."""
        await self._post("faults", {"path": path, "kind": kind, "value": value, **options})

    async def mend(self) -> None:
        """Drop all rules."""
        await self._post("mend", {})

    async def reset(self) -> None:
        """Drop all rules and the log, and let go of answers that stall."""
        await self._post("reset", {})

    async def synthetic(self, path: str, size: int, seed: int) -> str:
        """Serve a made-up file; its SHA-256."""
        answer = await self._post("synthetic", {"path": path, "size": size, "seed": seed, "sha256": True})
        return str(answer["sha256"])

    async def hugging_face(self, **values: Any) -> dict[str, Any]:
        """Serve a revision of a model; what it holds."""
        return dict(await self._post("hugging_face", values))

    async def asked(self, pattern: str = "*") -> list[Asked]:
        """The requests so far, without those that ask for permission."""
        answer = await self._call("GET", f"/__log__?path={quote(pattern)}", b"")
        names = Asked.__dataclass_fields__
        requests = [Asked(**{name: request[name] for name in names}) for request in answer["requests"]]
        return [request for request in requests if request.method != "OPTIONS"]

    async def get(self, path: str, begin: int, end: int) -> bytes:
        """Bytes of a file."""
        headers = {"Range": f"bytes={begin}-{end - 1}"}
        status, body = await self._send("GET", self.url + path, headers, b"")
        assert status == 206, f"{path}: {status}"
        return body

    async def _post(self, name: str, value: Any) -> Any:
        return await self._call("POST", f"/__{name}__", json.dumps(value).encode())

    async def _call(self, method: str, path: str, body: bytes) -> Any:
        status, answer = await self._send(method, self.url + path, {}, body)
        assert status == 200, f"{method} {path}: {status} {answer[:500]!r}"
        return json.loads(answer)


@dataclass(frozen=True)
class Rule:
    """Something that goes wrong: a rule of a fault server.

    Attributes:
        kind: Of the fault.
        value: Of the fault.
        at: Which addresses: the file, the hub's list, the pointer in place of a large file, or the other server.
        options: `times`, `skip`, `method`, `from_byte`, `to_byte`.
    """

    kind: str
    value: Any = None
    at: Place = "file"
    options: Mapping[str, Any] = field(default_factory=dict)


def rule(kind: str, value: Any = None, at: Place = "file", **options: Any) -> Rule:
    return Rule(kind, value, at, options)


_part_hashes: dict[tuple[int, int], list[str]] = {}
_numbers = itertools.count(1)


@dataclass
class Target:
    """A file that is to be had."""

    model: str
    path: str
    size: int
    layout: Layout
    revision: str
    sha256: str = ""


class Scene:
    """Two servers, a platform with another model in its store, and what may be visible there.

    Args:
        platform: The client's.
        server: The hub.
        cdn: Has the large files of the Hugging Face layout.
    """

    def __init__(self, platform: Platform, server: FaultControl, cdn: FaultControl) -> None:
        self.platform = Patient(platform)
        self.server = server
        self.cdn = cdn
        # Another page may have used the same servers.
        self.name = f"{next(_numbers)}-{int(platform.now() * 1000)}"
        self.others: dict[BlobKey, str] = {}

    async def start(self) -> None:
        """Servers without faults, and the other model."""
        await self.release()
        other = Target(f"org/other-{self.name}", MODEL_FILE, SMALL, "none", PINNED)
        for path, seed in ((MODEL_FILE, 11), (TEXT_FILE, 12)):
            other.path = path
            await self.publish(other, seed)
            self.others[await self.get(self.hub(other), other)] = other.sha256

    def hub(self, target: Target, **options: Any) -> ModelHub:
        """The hub, as at the start of a page."""
        listing = "manifest" if target.layout == "parts" else target.layout
        platform: Any = self.platform
        return ModelHub(platform, self.server.url, "{model}/resolve/{revision}", listing=listing, **options)

    def target(
        self, layout: Layout = "none", size: int = SMALL, path: str = MODEL_FILE, revision: str = PINNED
    ) -> Target:
        return Target(f"org/case-{self.name}", path, size, layout, revision)

    async def publish(self, target: Target, seed: int = 1, **options: Any) -> None:
        """Have the hub serve the file, in place of an earlier one."""
        if target.layout == "huggingface":
            files = {target.path: {"size": target.size, "seed": seed}, "README.md": "# A model of the tests"}
            found = await self.server.hugging_face(
                model=target.model, revision=target.revision, files=files, cdn_url=self.cdn.url, **options
            )
            target.sha256 = found["files"][target.path]["sha256"]
            return
        address = self.address(target)
        target.sha256 = await self.server.synthetic(address, target.size, seed)
        if target.layout == "none":
            return
        entry: dict[str, Any] = {"size": target.size, "sha256": target.sha256}
        if target.layout == "parts":
            entry["parts"] = {
                "size": PART_SIZE,
                "block": BLOCK_SIZE,
                "sha256": await self._hashes(address, target.size, seed),
            }
        files = {"manifest.json": json.dumps({"files": {target.path: entry}})}
        await self.server.hugging_face(model=target.model, revision=target.revision, files=files)

    async def _hashes(self, address: str, size: int, seed: int) -> list[str]:
        if (size, seed) not in _part_hashes:
            begins = range(0, size, PART_SIZE)
            pieces = [await self.server.get(address, begin, min(begin + PART_SIZE, size)) for begin in begins]
            _part_hashes[size, seed] = [part_hash(piece) for piece in pieces]
            await self.server.reset()
        return _part_hashes[size, seed]

    def address(self, target: Target) -> str:
        """The path of its URL."""
        return f"/{target.model}/resolve/{target.revision}/{target.path}"

    def key(self, target: Target) -> BlobKey:
        """Its name in the store."""
        return BlobKey("model", self.hub(target).address.owner(target.model), target.revision, target.path)

    async def break_it(self, target: Target, *rules: Rule) -> None:
        """Add faults."""
        listing = "api/models/*/tree/*" if target.layout == "huggingface" else f"{target.model}/*/manifest.json"
        patterns = {
            "file": self.address(target),
            "listing": f"/{listing}",
            "pointer": f"/{target.model}/raw/*",
            "cdn": "*",
        }
        for one in rules:
            server = self.cdn if one.at == "cdn" else self.server
            value = one.value
            if one.kind == "redirect":
                value = (self.cdn if value == "other origin" else self.server).url + self.address(target)
                await self.cdn.synthetic(self.address(target), target.size, 1)
            await server.fault(patterns[one.at], one.kind, value, **one.options)

    async def mend(self) -> None:
        for server in (self.server, self.cdn):
            await server.mend()

    async def release(self) -> None:
        """Mend, let go of answers that stall, and empty the log."""
        for server in (self.server, self.cdn):
            await server.reset()

    async def get(self, hub: ModelHub, target: Target, on_progress: ProgressCallback = ignore_progress) -> BlobKey:
        return await hub.get_file(target.model, target.revision, target.path, on_progress=on_progress)

    async def asked(self, target: Target) -> list[Asked]:
        """What was asked for the file itself so far, wherever it is."""
        return [*await self.server.asked(self.address(target)), *await self.cdn.asked()]

    async def wanted(self, target: Target) -> int:
        """How many bytes of it were asked for so far."""
        return sum(request.wanted(target.size) for request in await self.asked(target))

    async def sent(self, target: Target) -> int:
        """How many bytes of it were sent so far."""
        return sum(request.sent for request in await self.asked(target))

    async def until(self, holds: Callable[[], Awaitable[bool]], what: str, seconds: float = _PATIENCE_SECONDS) -> None:
        """Wait for a condition."""
        until = asyncio.get_running_loop().time() + seconds
        while not await holds():
            assert asyncio.get_running_loop().time() < until, f"in vain waited for: {what}"
            await asyncio.sleep(_LOOK_SECONDS)

    async def active(self) -> int:
        """How many requests are being answered right now."""
        requests = [*await self.server.asked(), *await self.cdn.asked()]
        return sum(request.ended is None for request in requests)

    async def check_quiet(self) -> None:
        """No request is in flight."""

        async def quiet() -> bool:
            return await self.active() == 0

        await self.until(quiet, "no request in flight")

    async def check_store(self, target: Target, sha256: str | None) -> None:
        """Whatever is visible is whole and right, and so are the other models.

        Args:
            target: The file.
            sha256: Its hash; None: it must not be there.
        """
        expected = dict(self.others)
        if sha256 is not None:
            expected[self.key(target)] = sha256
        visible = [info for kind in ("model", "attachment") for info in await self.platform.blobs.list(kind)]
        found = {info.key: info.sha256 for info in visible if info.key.path != "manifest.json"}
        assert found == expected, f"{found} is visible in place of {expected}"
        for info in visible:
            assert await self.platform.blobs.verify(info.key), f"{info.key} is not what it was"

    async def check_next_try(self, target: Target, kept: int = 0, **options: Any) -> None:
        """With all mended, the file is to be had, and what is here is not asked for again."""
        await self.mend()
        before = await self.wanted(target)
        events: list[ProgressEvent] = []
        await self.get(self.hub(target, **options), target, events.append)
        assert (events[-1].status_text, events[-1].ok, events[-1].progress) == ("done", True, 100.0)
        await self.check_store(target, target.sha256)
        again = await self.wanted(target) - before
        assert again <= target.size - kept, f"{again} bytes were asked for again, with {kept} of {target.size} here"
        await self.check_quiet()

    async def end(self) -> None:
        """An empty store and no traffic."""
        await self.release()
        for kind in ("model", "attachment"):
            await self.platform.blobs.delete([info.key for info in await self.platform.blobs.list(kind)])
        await self.platform.blobs.drop_drafts()


async def failure_of(work: Awaitable[Any]) -> PywebmlError | None:
    """The error of the package that this ends with."""
    try:
        await work
    except PywebmlError as error:
        return error
    return None


# Faults by moment


@dataclass(frozen=True)
class Row:
    """A fault at a moment, and what comes of it.

    Attributes:
        name: What goes wrong when.
        rules: The faults.
        layout: Of the hub.
        error: What the try ends with; None: it succeeds in spite of the faults.
        words: Of the error.
        details: Of the error.
        size: Of the file.
        path: Of the file.
        revision: Of the model.
        earlier: Faults of a try before, which breaks off and leaves something.
        replaced: Size and seed of another file that is in its place after that try.
        received: Size and seed of the content that a success brings, where it is not the first one.
        kept: So many bytes need not be asked for again: after the try before, and after an error.
        again: So many bytes may come twice within the try: what was under way when a connection broke, also on others.
        requests: How many requests for the file the try makes.
        slept: A wait that it makes, seconds.
        parallel: Whether parts come at the same time.
        stall_seconds: How long the connection may be silent.
        only: Where it can be seen.
        publish: How the Hugging Face layout is served.
    """

    name: str
    rules: tuple[Rule, ...]
    layout: Layout = "none"
    error: type[HubError] | None = None
    words: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    size: int = SMALL
    path: str = MODEL_FILE
    revision: str = PINNED
    earlier: tuple[Rule, ...] = ()
    replaced: tuple[int, int] | None = None
    received: tuple[int, int] | None = None
    kept: int = 0
    again: int = 0
    requests: int | None = None
    slept: float | None = None
    parallel: bool = False
    stall_seconds: float = STALL_SECONDS
    only: Literal["native", "browser"] | None = None
    publish: Mapping[str, Any] = field(default_factory=dict)


async def run_row(row: Row, scene: Scene) -> None:
    target = scene.target(row.layout, row.size, row.path, row.revision)
    await scene.publish(target, **row.publish)
    scene.platform.parallel = row.parallel
    if row.earlier:
        await scene.break_it(target, *row.earlier)
        error = await failure_of(scene.get(scene.hub(target), target))
        assert type(error) is DownloadError, error
        await scene.check_store(target, None)
        await scene.mend()
    if row.replaced is not None:
        target.size, seed = row.replaced
        await scene.publish(target, seed)
    await scene.break_it(target, *row.rules)
    asked, sent = len(await scene.asked(target)), await scene.sent(target)
    events: list[ProgressEvent] = []
    error = await failure_of(scene.get(scene.hub(target, stall_seconds=row.stall_seconds), target, events.append))
    assert (None if error is None else type(error)) is row.error, f"{type(error).__name__}: {error}"
    if row.requests is not None:
        assert len(await scene.asked(target)) - asked == row.requests, await scene.asked(target)
    if row.slept is not None:
        assert row.slept in scene.platform.slept, scene.platform.slept
    if error is None:
        assert (events[-1].status_text, events[-1].ok, events[-1].progress) == ("done", True, 100.0)
        if row.received is not None:
            target.size, seed = row.received
            target.sha256 = await scene.server.synthetic("/truth", target.size, seed)
        came = await scene.sent(target) - sent
        assert came <= target.size - row.kept + row.again + LITTLE, f"{came} bytes came, {row.kept} were here"
    else:
        missing = [word for word in row.words if word not in error.message]
        assert not missing, f"without {missing}: {error.message}"
        assert error.details["url"].startswith(scene.server.url)
        assert error.details["url"] in error.message
        assert {name: error.details.get(name) for name in row.details} == row.details
        assert all(not event.ok for event in events[-1:])
    await scene.check_quiet()
    await scene.check_store(target, None if error else target.sha256)
    await scene.check_next_try(target, row.kept if error else target.size)


SECOND: Mapping[str, Any] = {"from_byte": PART_SIZE, "to_byte": 2 * PART_SIZE}
LAST: Mapping[str, Any] = {"from_byte": 2 * PART_SIZE}
ONCE: Mapping[str, Any] = {"times": 1}
BROKEN = (rule("reset", 0, from_byte=PART_SIZE),)
"""Only the first part can be had."""
UNLISTED = (rule("status", 404, "listing"),)
PAGE = "<!doctype html><title>Sign in</title>"
DISGUISED = {"status": 200, "body": PAGE, "headers": {"Content-Type": "application/octet-stream"}}

HEADS = (
    *(
        Row(
            f"{status} for the file",
            (rule("status", status),),
            error=FileNotFoundOnHubError,
            words=(words,),
            requests=1,
        )
        for status, words in ((401, "private or gated"), (403, "access token"), (404, "Check model id"), (410, "410"))
    ),
    *(
        Row(
            f"{status} for the file, again and again",
            (rule("status", status),),
            error=DownloadError,
            words=(f"answered {status}", "Try again later"),
            details={"status": status},
            # Chromium itself asks once more after a 408.
            requests=None if status == 408 else 5,
            slept=4.0,
        )
        for status in (408, 425, 429, 500, 502, 503, 504)
    ),
    Row("400 for the file", (rule("status", 400),), error=DownloadError, words=("400",), requests=1),
    Row(
        "429 once with Retry-After", (rule("status", {"status": 429, "retry_after": 7}, **ONCE),), slept=7.0, requests=2
    ),
    Row("503 twice, then the file", (rule("status", 503, times=2),), requests=3, slept=1.0),
    Row(
        "503 with Retry-After, again and again",
        (rule("status", {"status": 503, "retry_after": 7}),),
        error=DownloadError,
        words=("left alone for 7 seconds",),
        details={"status": 503, "retryAfter": 7.0},
        requests=5,
        slept=7.0,
    ),
    Row(
        "429 with an over-long Retry-After",
        (rule("status", {"status": 429, "retry_after": 3600}),),
        error=DownloadError,
        words=("429", "left alone for 3600 seconds"),
        details={"status": 429, "retryAfter": 3600.0},
        requests=1,
    ),
    Row(
        "503 with Retry-After at a far date",
        (rule("status", {"status": 503, "retry_after": "Fri, 01 Jan 2100 00:00:00 GMT"}),),
        error=DownloadError,
        words=("503", "left alone for"),
        requests=1,
    ),
    Row(
        "429 with a Retry-After that says nothing",
        (rule("status", {"status": 429, "retry_after": "soon"}, **ONCE),),
        requests=2,
        slept=0.5,
    ),
    Row("no answer", (rule("drop"),), error=DownloadError, words=("could not be reached", "CORS"), slept=4.0),
    Row("no answer once", (rule("drop", **ONCE),)),
    Row("reset before the head", (rule("reset"),), error=DownloadError, words=("could not be reached",)),
    Row("reset before the head once", (rule("reset", **ONCE),)),
    Row(
        "silence before the head",
        (rule("stall"),),
        error=DownloadError,
        words=("could not be reached",),
        stall_seconds=0.2,
        requests=5,
    ),
    Row("silence before the head once", (rule("stall", **ONCE),), stall_seconds=SHORT_STALL, requests=2),
    Row("a web page", (rule("html"),), error=IntegrityError, words=("web page", "login"), requests=1),
    Row(
        "a web page that calls itself a model", (rule("status", DISGUISED),), error=IntegrityError, words=("web page",)
    ),
    Row(
        "a web page that calls itself a listed model",
        (rule("status", DISGUISED),),
        "manifest",
        error=IntegrityError,
    ),
    Row("a web page for a text", (rule("html"),), path=TEXT_FILE, error=IntegrityError, words=("web page", TEXT_FILE)),
    Row("an empty file", (rule("change", {"after_requests": 0, "data": ""}),), error=IntegrityError, words=("empty",)),
    Row(
        "an empty file, which was listed with a size",
        (rule("change", {"after_requests": 0, "data": ""}),),
        "manifest",
        error=IntegrityError,
    ),
)

BODIES = (
    # The connection breaks.
    Row("cut in the first part", (rule("truncate", 3_000_000, **ONCE),), size=LARGE, again=PART_SIZE),
    Row("cut in the second part", (rule("truncate", 3_000_000, **SECOND, **ONCE),), size=LARGE, again=PART_SIZE),
    Row(
        "cut in the second of parallel parts",
        (rule("truncate", 3_000_000, **SECOND, **ONCE),),
        "parts",
        size=LARGE,
        again=2 * PART_SIZE,
        parallel=True,
    ),
    Row("cut in the last part", (rule("truncate", 1_000, **LAST, **ONCE),), "manifest", size=LARGE, again=PART_SIZE),
    Row(
        "cut early in the second part, again and again",
        (rule("truncate", 1_000, **SECOND),),
        size=LARGE,
        error=DownloadError,
        words=("broke off", "bytes are kept"),
        kept=PART_SIZE,
        slept=4.0,
    ),
    Row("cut after every 4 MB", (rule("truncate", 4_000_000),), "parts", size=LARGE, again=LARGE),
    Row("reset in the second part", (rule("reset", 2_000_000, **SECOND, **ONCE),), size=LARGE, again=PART_SIZE),
    Row(
        "reset at the beginning of the last part, again and again",
        (rule("reset", 0, **LAST),),
        size=LARGE,
        error=DownloadError,
        words=("broke off",),
        kept=BEFORE_LAST,
    ),
    Row("no answer for the second part once", (rule("drop", **SECOND, **ONCE),), "parts", size=LARGE, again=PART_SIZE),
    Row(
        "silence in the second part",
        (rule("stall", 2_000_000, **SECOND, **ONCE),),
        size=LARGE,
        again=PART_SIZE,
        stall_seconds=SHORT_STALL,
    ),
    Row(
        "silence in the last part, again and again",
        (rule("stall", 1_000, **LAST),),
        "manifest",
        size=LARGE,
        error=DownloadError,
        words=("broke off",),
        kept=BEFORE_LAST,
        stall_seconds=SHORT_STALL,
    ),
    # The server gives up between parts.
    Row("500 for the second part once", (rule("status", 500, **SECOND, **ONCE),), size=LARGE, again=PART_SIZE),
    Row(
        "502 for the last part, again and again",
        (rule("status", 502, **LAST),),
        size=LARGE,
        error=DownloadError,
        words=("502",),
        kept=BEFORE_LAST,
    ),
    Row(
        "429 with an over-long Retry-After for parallel parts",
        (rule("status", {"status": 429, "retry_after": 999}, from_byte=PART_SIZE),),
        "parts",
        size=LARGE,
        error=DownloadError,
        words=("left alone for 999 seconds",),
        kept=PART_SIZE,
        parallel=True,
    ),
    Row(
        "404 for the second part",
        (rule("status", 404, **SECOND),),
        "manifest",
        size=LARGE,
        error=FileNotFoundOnHubError,
        words=("404",),
        kept=PART_SIZE,
    ),
    Row(
        "a web page for the second part",
        (rule("html", **SECOND),),
        size=LARGE,
        error=IntegrityError,
        words=("web page",),
        kept=PART_SIZE,
    ),
    # Other bytes.
    Row("a wrong byte in the second part once", (rule("flip", MIDDLE, **ONCE),), "parts", size=LARGE, again=PART_SIZE),
    Row(
        "a wrong byte in the last of parallel parts once",
        (rule("flip", END, **ONCE),),
        "parts",
        size=LARGE,
        again=PART_SIZE,
        parallel=True,
    ),
    Row(
        "a wrong byte in the second part, again and again",
        (rule("flip", MIDDLE),),
        "parts",
        size=LARGE,
        error=IntegrityError,
        words=(f"Bytes {PART_SIZE} to {2 * PART_SIZE}", "SHA-256"),
    ),
    Row(
        "a wrong byte in the first part, without hashes of parts",
        (rule("flip", 5, **ONCE),),
        "manifest",
        size=LARGE,
        error=IntegrityError,
        words=("SHA-256",),
    ),
    # Lengths.
    Row("the first part is shorter than told", (rule("shorter", 7, **ONCE),), size=LARGE),
    Row(
        "all of it is shorter than listed",
        (rule("no_range"), rule("shorter", 7)),
        "manifest",
        error=IntegrityError,
        words=(f" {SMALL - 7} bytes", str(SMALL)),
    ),
    Row("the second part is shorter than told", (rule("longer", 100, **SECOND, **ONCE),), size=LARGE, again=PART_SIZE),
    Row("no length", (rule("no_length"),), size=LARGE),
    Row("no length and no ranges", (rule("no_length"), rule("no_range")), size=LARGE),
    Row(
        "no length, no ranges, cut once",
        (rule("no_length"), rule("no_range"), rule("truncate", MIDDLE, **ONCE)),
        size=LARGE,
        again=2 * LARGE,
    ),
    Row("ends with the connection", (rule("close_delimited"),), "parts", size=LARGE),
    Row("ends with the connection, no ranges", (rule("close_delimited"), rule("no_range")), size=LARGE),
    Row(
        "ends too early with the connection",
        (rule("close_delimited"), rule("no_range"), rule("truncate", MIDDLE)),
        "manifest",
        size=LARGE,
        error=IntegrityError,
        words=(f"has {MIDDLE} bytes", str(LARGE)),
    ),
    Row("a compressed text", (rule("gzip"),), "manifest", path=TEXT_FILE),
    Row("a compressed text without length", (rule("gzip", "chunked"),), path=TEXT_FILE),
    Row("a compressed text, cut once", (rule("gzip"), rule("truncate", 30_000, **ONCE)), path=TEXT_FILE, again=LARGE),
    # Ranges.
    Row("no ranges", (rule("no_range"),), size=LARGE, requests=1),
    Row(
        "no ranges, cut once",
        (rule("no_range"), rule("truncate", END, **ONCE)),
        "manifest",
        size=LARGE,
        again=2 * LARGE,
    ),
    Row(
        "no ranges, cut again and again",
        (rule("no_range"), rule("truncate", 1_000_000)),
        size=LARGE,
        error=DownloadError,
        words=("broke off",),
    ),
    Row("no ranges from the second part on", (rule("no_range", skip=1),), size=LARGE, again=2 * LARGE),
    Row("another first part than asked for", (rule("wrong_range", 4096, **ONCE),), size=LARGE, again=PART_SIZE),
    Row(
        "another second part than asked for",
        (rule("wrong_range", -4096, **SECOND),),
        size=LARGE,
        again=IN_VAIN + 2 * PART_SIZE,
    ),
    Row(
        "another second part than asked for, of a listed file",
        (rule("wrong_range", 4096, **SECOND, **ONCE),),
        "parts",
        size=LARGE,
        again=IN_VAIN + 2 * PART_SIZE,
    ),
    Row("a total that is too large", (rule("lying_total", 1000),), size=LARGE, again=2 * LARGE),
    Row(
        "a total that is not the listed one",
        (rule("lying_total", 1000),),
        "manifest",
        size=LARGE,
        error=IntegrityError,
        words=(f"announces {LARGE + 1000}",),
    ),
    # Versions.
    Row(
        "another ETag from the second part on",
        (rule("etag", '"other"', skip=1),),
        size=LARGE,
        again=IN_VAIN + 2 * PART_SIZE,
    ),
    Row(
        "another ETag for each part",
        tuple(rule("etag", f'"{number}"', skip=number, **ONCE) for number in range(60)),
        size=LARGE,
        # In the end one answer has to bring all of it.
        again=2 * IN_VAIN + 4 * PART_SIZE,
    ),
    Row("weak ETags", (rule("weak_etag"),), size=LARGE),
    Row("weak ETags, cut", (rule("weak_etag"), rule("truncate", 9, **SECOND, **ONCE)), size=LARGE, again=PART_SIZE),
    Row(
        "weak ETags of a listed file, broken",
        (rule("weak_etag"), rule("reset", 0, **SECOND)),
        "manifest",
        size=LARGE,
        error=DownloadError,
        kept=PART_SIZE,
    ),
    Row("no ETag and no date", (rule("etag"),), size=LARGE),
    Row(
        "no ETag and no date, broken",
        (rule("etag"), rule("reset", 0, **SECOND)),
        size=LARGE,
        error=DownloadError,
        words=("broke off",),
    ),
    Row(
        "a date alone, cut",
        (rule("header", {"ETag": None}), rule("truncate", 9, **SECOND, **ONCE)),
        size=LARGE,
        again=PART_SIZE,
    ),
    Row(
        "another file of the same size from the second part on",
        (rule("change", {"after_requests": 1, "seed": 9}),),
        size=LARGE,
        received=(LARGE, 9),
        again=IN_VAIN + 2 * PART_SIZE,
    ),
    Row(
        "another file of another size from the last of parallel parts on",
        (rule("change", {"after_requests": 2, "seed": 9, "size": LARGE + 5}),),
        size=LARGE,
        received=(LARGE + 5, 9),
        again=3 * PART_SIZE,
        parallel=True,
    ),
    Row(
        "another file than listed",
        (rule("change", {"after_requests": 1, "seed": 9}),),
        "parts",
        size=LARGE,
        error=IntegrityError,
        words=("SHA-256",),
    ),
    Row(
        "416 once the file has shrunk",
        (rule("etag"), rule("change", {"after_requests": 1, "seed": 9, "size": 5_000_000})),
        size=LARGE,
        received=(5_000_000, 9),
        again=PART_SIZE,
    ),
)

RESUMED = (
    *(
        Row(f"gone on with: {layout}", (), layout, size=LARGE, earlier=BROKEN, kept=PART_SIZE)
        for layout in ("none", "manifest", "parts")
    ),
    Row("gone on with, no answer once", (rule("drop", **ONCE),), size=LARGE, earlier=BROKEN, kept=PART_SIZE),
    Row(
        "gone on with, 503 again and again",
        (rule("status", 503),),
        size=LARGE,
        earlier=BROKEN,
        error=DownloadError,
        words=("503",),
        kept=PART_SIZE,
    ),
    Row(
        "gone on with, 403",
        (rule("status", 403),),
        "parts",
        size=LARGE,
        earlier=BROKEN,
        error=FileNotFoundOnHubError,
        words=("403",),
        kept=PART_SIZE,
    ),
    Row(
        "gone on with, a web page",
        (rule("html"),),
        size=LARGE,
        earlier=BROKEN,
        error=IntegrityError,
        words=("web page",),
        kept=PART_SIZE,
    ),
    Row(
        "gone on with, cut", (rule("truncate", 9, **ONCE),), size=LARGE, earlier=BROKEN, kept=PART_SIZE, again=PART_SIZE
    ),
    Row("gone on with, no ranges any more", (rule("no_range"),), size=LARGE, earlier=BROKEN, again=LARGE),
    Row("gone on with, another part", (rule("wrong_range", 64),), size=LARGE, earlier=BROKEN, again=PART_SIZE),
    Row("gone on with, another ETag", (rule("etag", '"other"'),), size=LARGE, earlier=BROKEN, again=PART_SIZE),
    Row("gone on with, another file", (), size=LARGE, earlier=BROKEN, replaced=(LARGE, 9), again=PART_SIZE),
    Row("gone on with, a larger file", (), size=LARGE, earlier=BROKEN, replaced=(LARGE + 9, 9), again=PART_SIZE),
    Row("gone on with, a shorter file", (), size=LARGE, earlier=BROKEN, replaced=(5_000_000, 9)),
    Row(
        "gone on with, another listed file",
        (),
        "parts",
        size=LARGE,
        revision="main",
        earlier=BROKEN,
        replaced=(LARGE, 9),
    ),
    Row(
        "gone on with, a wrong byte in what is here",
        (),
        "parts",
        size=LARGE,
        earlier=(rule("flip", 77), *BROKEN),
        again=PART_SIZE,
    ),
)

LISTINGS = (
    Row("no list", (rule("status", 404, "listing"),), "manifest"),
    *(
        Row(f"{kind} in place of the list", (rule(kind, value, "listing"),), "manifest", error=error, words=words)
        for kind, value, error, words in (
            ("status", 401, FileNotFoundOnHubError, ("401", "manifest.json")),
            ("status", 500, DownloadError, ("500", "manifest.json")),
            ("status", {"status": 429, "retry_after": 600}, DownloadError, ("600 seconds", "manifest.json")),
            ("drop", None, DownloadError, ("could not be reached", "manifest.json")),
            ("reset", 10, DownloadError, ("broke off", "manifest.json")),
            ("truncate", 10, DownloadError, ("broke off", "manifest.json")),
            ("html", None, IntegrityError, ("web page", "manifest.json")),
            ("flip", 0, IntegrityError, ("no JSON", "manifest.json")),
            ("shorter", 3, IntegrityError, ("no JSON", "manifest.json")),
        )
    ),
    Row("503 once in place of the list", (rule("status", 503, "listing", **ONCE),), "manifest"),
    Row("the list is cut once", (rule("truncate", 10, "listing", **ONCE),), "parts"),
    Row(
        "silence in place of the list",
        (rule("stall", None, "listing"),),
        "manifest",
        error=DownloadError,
        words=("could not be reached", "manifest.json"),
        stall_seconds=0.2,
    ),
    # Without the API of Hugging Face, a pointer has size and hash; without that, headers have them.
    *(
        Row(f"{kind} ({value}) in place of the tree", (rule(kind, value, "listing"),), "huggingface", requests=2)
        for kind, value in (
            ("status", 404),
            ("status", 500),
            ("html", None),
            ("drop", None),
            ("truncate", 9),
            ("flip", 0),
        )
    ),
    Row(
        "500 for the second page of the tree",
        (rule("status", 500, "listing", skip=1),),
        "huggingface",
        publish={"page_size": 1},
    ),
    Row("silence in place of the tree", (rule("stall", None, "listing"),), "huggingface", stall_seconds=SHORT_STALL),
    Row(
        "no tree, silence in place of the pointer",
        (*UNLISTED, rule("stall", None, "pointer")),
        "huggingface",
        stall_seconds=SHORT_STALL,
    ),
    Row("no tree, no pointer", (*UNLISTED, rule("status", 404, "pointer")), "huggingface"),
    Row(
        "no tree, a wrong byte",
        (*UNLISTED, rule("flip", 7, "cdn", **ONCE)),
        "huggingface",
        error=IntegrityError,
        words=("SHA-256",),
    ),
    Row(
        "no tree, no pointer, a wrong byte",
        (*UNLISTED, rule("status", 404, "pointer"), rule("flip", 7, "cdn", **ONCE)),
        "huggingface",
        error=IntegrityError,
        words=("SHA-256",),
        # Browsers do not show the headers of redirects.
        only="native",
    ),
    Row(
        "a wrong byte in a text",
        (rule("flip", 7),),
        "huggingface",
        path=TEXT_FILE,
        error=IntegrityError,
        words=("git",),
    ),
)

REDIRECTS = (
    Row(
        "the CDN cuts once", (rule("truncate", 9, "cdn", **SECOND, **ONCE),), "huggingface", size=LARGE, again=PART_SIZE
    ),
    Row("the CDN answers 503 once", (rule("status", 503, "cdn", **ONCE),), "huggingface"),
    Row(
        "the CDN answers 403",
        (rule("status", 403, "cdn"),),
        "huggingface",
        error=FileNotFoundOnHubError,
        words=("403",),
    ),
    Row(
        "the CDN answers 403 for the last part",
        (rule("status", 403, "cdn", **LAST),),
        "huggingface",
        size=LARGE,
        error=FileNotFoundOnHubError,
        kept=BEFORE_LAST,
    ),
    Row(
        "the CDN gives no answer for the second part",
        (rule("drop", None, "cdn", **SECOND),),
        "huggingface",
        size=LARGE,
        error=DownloadError,
        words=("could not be reached", "are kept"),
        kept=PART_SIZE,
    ),
    Row(
        "the CDN sends a wrong byte",
        (rule("flip", 7, "cdn", **ONCE),),
        "huggingface",
        error=IntegrityError,
        words=("SHA-256",),
    ),
    Row(
        "the CDN lies about the total",
        (rule("lying_total", 9, "cdn"),),
        "huggingface",
        size=LARGE,
        error=IntegrityError,
        words=("announces",),
    ),
    Row("the CDN has no ranges", (rule("no_range", None, "cdn"),), "huggingface", size=LARGE),
    Row(
        "the CDN sends a web page",
        (rule("html", None, "cdn"),),
        "huggingface",
        error=IntegrityError,
        words=("web page",),
    ),
    Row("redirected to another origin", (rule("redirect", "other origin"),), size=LARGE),
    Row(
        "redirected to another origin, which cuts",
        (rule("redirect", "other origin"), rule("truncate", 9, "cdn", **SECOND, **ONCE)),
        "parts",
        size=LARGE,
        again=PART_SIZE,
    ),
    Row(
        "redirected to another origin, which sends a wrong byte once",
        (rule("redirect", "other origin"), rule("flip", MIDDLE, "cdn", **ONCE)),
        "parts",
        size=LARGE,
        again=PART_SIZE,
    ),
    Row(
        "redirected to another origin from the second part on",
        (rule("redirect", "other origin", from_byte=PART_SIZE),),
        size=LARGE,
    ),
    Row(
        "redirected in a circle",
        (rule("redirect", "itself"),),
        error=DownloadError,
        words=("could not be reached",),
    ),
    Row(
        "redirected to an origin that forbids it",
        (
            rule("redirect", "other origin"),
            rule("header", {"Access-Control-Allow-Origin": "https://elsewhere.example"}, "cdn"),
        ),
        error=DownloadError,
        words=("CORS",),
        only="browser",
    ),
)


# Newer versions of a branch


@dataclass(frozen=True)
class Update:
    """A file of a branch that is here in an older version, a fault while it is asked for again, and what is had then.

    Attributes:
        name: What goes wrong when.
        rules: The faults.
        layout: Of the hub.
        error: What the try ends with; the older version stays.
        is_new: Whether the newer version is had.
    """

    name: str
    rules: tuple[Rule, ...]
    layout: Layout = "none"
    error: type[HubError] | None = None
    is_new: bool = False


async def run_update(update: Update, scene: Scene) -> None:
    target = scene.target(update.layout, revision="main")
    await scene.publish(target, 1)
    await scene.get(scene.hub(target), target)
    old = target.sha256
    await scene.check_store(target, old)
    await scene.publish(target, 2)
    await scene.break_it(target, *update.rules)
    error = await failure_of(scene.get(scene.hub(target, stall_seconds=SHORT_STALL), target))
    assert (None if error is None else type(error)) is update.error, f"{type(error).__name__}: {error}"
    await scene.check_quiet()
    await scene.check_store(target, target.sha256 if update.is_new else old)
    await scene.check_next_try(target)


UPDATES = (
    Update("a newer file", (), is_new=True),
    Update("no answer to HEAD", (rule("drop", method="HEAD"),)),
    Update("503 to HEAD", (rule("status", 503, method="HEAD"),)),
    Update("404 to HEAD", (rule("status", 404, method="HEAD"),)),
    Update("silence to HEAD", (rule("stall", method="HEAD"),)),
    Update("HEAD without an ETag", (rule("header", {"ETag": None}, method="HEAD"),)),
    Update("the newer file is cut once", (rule("truncate", 9_000, **ONCE),), is_new=True),
    Update("the newer file is cut again and again", (rule("truncate", 9),), error=DownloadError),
    Update("the newer file is gone", (rule("status", 404),), error=FileNotFoundOnHubError),
    Update("a web page in place of the newer file", (rule("html"),), error=IntegrityError),
    Update("a newer listed file", (), "manifest", is_new=True),
    Update("no answer to HEAD of the list", (rule("drop", None, "listing", method="HEAD"),), "manifest"),
    Update("the newer list is cut", (rule("truncate", 9, "listing"),), "manifest", error=DownloadError),
    Update("a wrong byte in the newer listed file", (rule("flip", 9),), "manifest", error=IntegrityError),
    Update("a newer file of the tree", (), "huggingface", is_new=True),
    Update("500 in place of the newer tree", (rule("status", 500, "listing"),), "huggingface"),
    Update("silence in place of the newer tree", (rule("stall", None, "listing"),), "huggingface"),
    Update(
        "a wrong byte in the newer file of the tree", (rule("flip", 9, "cdn"),), "huggingface", error=IntegrityError
    ),
)


# Cancellation


@dataclass(frozen=True)
class Cancel:
    """A moment at which nobody wants the file any more.

    Attributes:
        name: The moment.
        rules: What makes the moment last.
        layout: Of the hub.
        sent: So many bytes of the file have been sent at that moment.
        received: So many bytes are in the events at that moment.
        size: Of the file.
        earlier: Faults of a try before, which breaks off and leaves something.
        stored: An older version is here.
        held_at: The moment is a wait of so many seconds.
        kept: So many bytes need not be asked for again.
        parallel: Whether parts come at the same time.
        by_signal: An `AbortSignal` stops it, else the cancellation of the task.
    """

    name: str
    rules: tuple[Rule, ...]
    layout: Layout = "none"
    sent: int = 0
    received: int | None = None
    size: int = LARGE
    earlier: tuple[Rule, ...] = ()
    stored: bool = False
    held_at: float | None = None
    kept: int = 0
    parallel: bool = False
    by_signal: bool = False


async def run_cancel(cancel: Cancel, scene: Scene) -> None:
    target = scene.target(cancel.layout, cancel.size, revision="main" if cancel.stored else PINNED)
    await scene.publish(target)
    visible = None
    if cancel.stored:
        await scene.get(scene.hub(target), target)
        visible = target.sha256
        await scene.publish(target, 2)
    if cancel.earlier:
        await scene.break_it(target, *cancel.earlier)
        assert type(await failure_of(scene.get(scene.hub(target), target))) is DownloadError
        await scene.mend()
    scene.platform.parallel, scene.platform.held_at = cancel.parallel, cancel.held_at
    await scene.break_it(target, *cancel.rules)
    before = await scene.sent(target)
    controller = AbortController()
    reached = asyncio.Event()

    def listen(event: ProgressEvent) -> None:
        if cancel.received is not None and event.total_loaded >= cancel.received:
            reached.set()

    getting = asyncio.ensure_future(abortable(scene.get(scene.hub(target), target, listen), controller.signal))

    async def is_moment() -> bool:
        assert not getting.done(), getting
        if cancel.held_at is not None:
            return scene.platform.holding.is_set()
        if cancel.received is not None:
            return reached.is_set()
        # In this order: once all bytes before have been sent, what is active is the answer that lasts.
        return await scene.sent(target) - before >= cancel.sent and await scene.active() > 0

    await scene.until(is_moment, cancel.name)
    controller.abort("enough") if cancel.by_signal else getting.cancel()
    await asyncio.wait([getting])
    if cancel.by_signal:
        assert isinstance(getting.exception(), AbortError), getting
    else:
        assert getting.cancelled(), getting
    scene.platform.held_at = None
    # Nothing is released on the server, so that it is the client who has ended this.
    await scene.check_quiet()
    stopped = await scene.sent(target)
    await scene.check_store(target, visible)
    assert await scene.sent(target) == stopped
    await scene.check_next_try(target, cancel.kept)


CANCELS = (
    Cancel("before the head", (rule("stall"),)),
    Cancel("before the head, by a signal", (rule("stall"),), size=SMALL, by_signal=True),
    Cancel("at the first byte", (rule("stall", 0),), "parts"),
    Cancel("in the first part", (rule("stall", 3_000_000),), received=2_900_000, kept=2_000_000),
    Cancel("in the first part, slowly", (rule("slow", 2_000_000),), received=500_000, by_signal=True),
    Cancel("between two parts", (rule("stall", None, **SECOND),), "parts", sent=PART_SIZE, kept=PART_SIZE),
    Cancel("in the second part", (rule("stall", 2_000_000, **SECOND),), sent=PART_SIZE + 2_000_000, kept=PART_SIZE),
    Cancel(
        "in parallel parts",
        (rule("stall", 3_000_000, from_byte=PART_SIZE),),
        "manifest",
        received=PART_SIZE + 5_900_000,
        kept=PART_SIZE + 4_000_000,
        parallel=True,
        by_signal=True,
    ),
    Cancel("in the last part", (rule("stall", 1_000, **LAST),), sent=2 * PART_SIZE + 1_000, kept=BEFORE_LAST),
    Cancel(
        "while it goes on with an earlier try",
        (rule("stall", 2_000_000),),
        earlier=BROKEN,
        sent=2_000_000,
        kept=PART_SIZE,
    ),
    Cancel(
        "while it waits before it asks again",
        (rule("status", {"status": 503, "retry_after": 7}, from_byte=PART_SIZE),),
        held_at=7.0,
        kept=PART_SIZE,
    ),
    Cancel("in a body without ranges", (rule("no_range"), rule("stall", MIDDLE)), received=MIDDLE - 100_000),
    Cancel("in the list", (rule("stall", 5, "listing"),), "manifest", size=SMALL),
    Cancel("before the head of the tree", (rule("stall", None, "listing"),), "huggingface", size=SMALL),
    Cancel("in the pointer", (*UNLISTED, rule("stall", 5, "pointer")), "huggingface", size=SMALL),
    Cancel("on the CDN", (rule("stall", 1_000, "cdn", **SECOND),), "huggingface", sent=PART_SIZE, kept=PART_SIZE),
    Cancel("while a branch is asked for its ETag", (rule("stall", method="HEAD"),), size=SMALL, stored=True),
    Cancel("in the newer version of a branch", (rule("stall", 9_000),), size=SMALL, stored=True),
)


# Several at once


async def twice_at_once(scene: Scene, *, layout: Layout) -> None:
    """Two pages want the same file: each byte comes once."""
    target = scene.target(layout, LARGE)
    await scene.publish(target)
    place: Place = "cdn" if layout == "huggingface" else "file"
    await scene.break_it(target, rule("stall", 1_000, place, from_byte=PART_SIZE, **ONCE))
    first, second, waiting = await _two(scene, target)
    await scene.release()
    keys = await asyncio.gather(first, second)
    assert keys[0] == keys[1]
    assert (waiting[-1].status_text, waiting[-1].ok, waiting[-1].progress) == ("done", True, 100.0)
    await scene.check_store(target, target.sha256)
    # The log begins with the release of the stalled answer.
    assert await scene.wanted(target) <= LARGE - PART_SIZE
    await scene.check_next_try(target, LARGE)


async def _two(
    scene: Scene, target: Target
) -> tuple[asyncio.Task[BlobKey], asyncio.Task[BlobKey], list[ProgressEvent]]:
    """One who downloads, as far as a stalled answer lets it, and one who waits for it, with the latter's events."""
    first = asyncio.ensure_future(scene.get(scene.hub(target), target))

    async def stalled() -> bool:
        assert not first.done(), first
        return await scene.sent(target) >= PART_SIZE + 1_000 and await scene.active() > 0

    await scene.until(stalled, "the first one's stalled answer")
    events: list[ProgressEvent] = []
    second = asyncio.ensure_future(scene.get(scene.hub(target), target, events.append))

    async def waits() -> bool:
        return bool(events)

    await scene.until(waits, "the second one's first event")
    assert not second.done()
    return first, second, events


async def second_sees_how_far_the_first_is(scene: Scene) -> None:
    target = scene.target("none", LARGE)
    await scene.publish(target)
    await scene.break_it(target, rule("stall", 1_000, from_byte=PART_SIZE, **ONCE))
    first, second, events = await _two(scene, target)

    async def told() -> bool:
        return events[-1].total_loaded > 0

    try:
        await scene.until(told, "what the first one has stored, in the events of the second", seconds=5)
    finally:
        await scene.release()
        await asyncio.gather(first, second)
    await scene.check_next_try(target, LARGE)


async def first_is_cancelled_while_the_second_waits(scene: Scene) -> None:
    target = scene.target("manifest", LARGE)
    await scene.publish(target)
    await scene.break_it(target, rule("stall", 1_000, from_byte=PART_SIZE, **ONCE))
    first, second, _ = await _two(scene, target)
    before = await scene.wanted(target)
    first.cancel()
    await asyncio.wait([first])
    await second
    assert await scene.wanted(target) - before <= LARGE - PART_SIZE
    await scene.check_store(target, target.sha256)
    await scene.check_next_try(target, LARGE)


async def second_is_cancelled_while_it_waits(scene: Scene) -> None:
    target = scene.target("none", LARGE)
    await scene.publish(target)
    await scene.break_it(target, rule("stall", 1_000, from_byte=PART_SIZE, **ONCE))
    first, second, _ = await _two(scene, target)
    second.cancel()
    await asyncio.wait([second])
    assert not first.done()
    await scene.release()
    await first
    assert await scene.wanted(target) <= LARGE - PART_SIZE
    await scene.check_store(target, target.sha256)
    await scene.check_next_try(target, LARGE)


async def both_are_cancelled(scene: Scene) -> None:
    target = scene.target("parts", LARGE)
    await scene.publish(target)
    await scene.break_it(target, rule("stall", 1_000, from_byte=PART_SIZE))
    first, second, _ = await _two(scene, target)
    for task in (second, first):
        task.cancel()
    await asyncio.wait([first, second])
    await scene.check_quiet()
    await scene.check_store(target, None)
    await scene.check_next_try(target, PART_SIZE)


async def first_fails_and_the_second_goes_on(scene: Scene) -> None:
    target = scene.target("none", LARGE)
    await scene.publish(target)
    await scene.break_it(target, rule("stall", from_byte=PART_SIZE))
    first = asyncio.ensure_future(failure_of(scene.get(scene.hub(target, stall_seconds=0.2), target)))

    async def stalled() -> bool:
        return await scene.sent(target) >= PART_SIZE and await scene.active() > 0

    await scene.until(stalled, "the first one's stalled answer")
    second = asyncio.ensure_future(scene.get(scene.hub(target), target))
    error = await first
    assert isinstance(error, DownloadError), error
    await scene.release()
    await second
    assert await scene.wanted(target) <= LARGE - PART_SIZE
    await scene.check_store(target, target.sha256)
    await scene.check_next_try(target, LARGE)


async def another_file_is_not_held_up(scene: Scene) -> None:
    target = scene.target("none", LARGE)
    text = scene.target("none", SMALL, TEXT_FILE)
    await scene.publish(target)
    await scene.publish(text, 5)
    await scene.break_it(target, rule("stall", 1_000, from_byte=PART_SIZE))
    hub = scene.hub(target)
    getting = asyncio.ensure_future(scene.get(hub, target))
    name = await scene.get(hub, text)
    assert not getting.done()
    scene.others[name] = text.sha256
    getting.cancel()
    await asyncio.wait([getting])
    await scene.check_quiet()
    await scene.check_store(target, None)
    await scene.check_next_try(target)


# Secrets


async def _tokens(server: FaultControl, pattern: str) -> set[str]:
    return {request.authorization for request in await server.asked(pattern)}


async def token_stays_with_its_hub(scene: Scene, *, rules: tuple[Rule, ...]) -> None:
    target = scene.target("huggingface", LARGE)
    await scene.publish(target, private_token=TOKEN)
    await scene.break_it(target, *rules)
    await scene.get(scene.hub(target, access_token=TOKEN), target)
    await scene.check_store(target, target.sha256)
    assert await _tokens(scene.cdn, "*") == {""}
    assert await _tokens(scene.server, f"*{target.model}/*") == {f"Bearer {TOKEN}"}
    [info] = [info for info in await scene.platform.blobs.list("model") if info.key == scene.key(target)]
    assert TOKEN not in repr(info)
    await scene.check_quiet()
    await scene.check_next_try(target, LARGE, access_token=TOKEN)


async def token_does_not_follow_a_redirect(scene: Scene) -> None:
    target = scene.target()
    await scene.publish(target)
    await scene.break_it(target, rule("auth", f"Bearer {TOKEN}"), rule("redirect", "other origin"))
    await scene.get(scene.hub(target, access_token=TOKEN), target)
    await scene.check_store(target, target.sha256)
    assert await _tokens(scene.cdn, "*") == {""}
    await scene.check_next_try(target, SMALL, access_token=TOKEN)


async def missing_token_is_named(scene: Scene, *, token: str | None) -> None:
    target = scene.target("huggingface")
    await scene.publish(target, private_token=TOKEN)
    error = await failure_of(scene.get(scene.hub(target, access_token=token), target))
    assert isinstance(error, FileNotFoundOnHubError), error
    assert error.details["status"] == 401
    assert "access token" in error.message
    assert str(token) not in repr((error.message, error.details))
    await scene.check_quiet()
    await scene.check_store(target, None)
    await scene.check_next_try(target, access_token=TOKEN)


async def hub_gets_no_token_of_another(scene: Scene) -> None:
    """One hub has a token, the other serves a model of the same name."""
    target = scene.target()
    await scene.publish(target)
    await scene.cdn.synthetic(scene.address(target), SMALL, 1)
    await scene.get(scene.hub(target, access_token=TOKEN), target)
    platform: Any = scene.platform
    other = ModelHub(platform, scene.cdn.url, "{model}/resolve/{revision}", listing="none")
    name = await scene.get(other, target)
    assert await _tokens(scene.cdn, "*") == {""}
    scene.others[name] = target.sha256
    await scene.check_store(target, target.sha256)
    await scene.check_next_try(target, SMALL, access_token=TOKEN)


Case: TypeAlias = Callable[[Scene], Awaitable[None]]


def _named(prefix: str, rows: Any, run: Any) -> dict[str, Case]:
    return {f"{prefix}: {row.name}": partial(run, row) for row in rows}


ROWS = {
    "head": HEADS,
    "body": BODIES,
    "resumed": RESUMED,
    "list": LISTINGS,
    "redirect": REDIRECTS,
}

_FUNCTIONS: Mapping[str, Case] = {
    "twice at once": partial(twice_at_once, layout="none"),
    "twice at once, with hashes of parts": partial(twice_at_once, layout="parts"),
    "twice at once, from a CDN": partial(twice_at_once, layout="huggingface"),
    "the first of two is cancelled": first_is_cancelled_while_the_second_waits,
    "the second of two is cancelled": second_is_cancelled_while_it_waits,
    "both are cancelled": both_are_cancelled,
    "the first of two fails": first_fails_and_the_second_goes_on,
    "the second of two sees how far the first is": second_sees_how_far_the_first_is,
    "another file is not held up": another_file_is_not_held_up,
    "token: private model on a CDN": partial(token_stays_with_its_hub, rules=()),
    "token: private model without a tree": partial(token_stays_with_its_hub, rules=UNLISTED),
    "token: redirected": token_does_not_follow_a_redirect,
    "token: none": partial(missing_token_is_named, token=None),
    "token: another one": partial(missing_token_is_named, token="wrong-token"),
    "token: of another hub": hub_gets_no_token_of_another,
}


def contract(surroundings: str) -> dict[str, Case]:
    """The cases that hold natively (`native`) or in Chromium (`browser`), by name."""
    cases: dict[str, Case] = {}
    for prefix, rows in ROWS.items():
        cases |= _named(prefix, [row for row in rows if row.only in {None, surroundings}], run_row)
    return cases | _named("update", UPDATES, run_update) | _named("cancel", CANCELS, run_cancel) | dict(_FUNCTIONS)
