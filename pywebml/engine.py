"""Engines: a task with its model, loaded and ready to run."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, TypeVar
from weakref import WeakValueDictionary

from pywebml.abort import AbortSignal, abortable
from pywebml.errors import (
    AbortError,
    EngineClosedError,
    InputError,
    OptionsError,
    SessionClosedError,
    StoreError,
    TaskError,
)
from pywebml.hub.space import in_use, models_in_use
from pywebml.loading import Loaded, load, models_of
from pywebml.options import Configuration, PipelineOptions, get_configuration
from pywebml.planning import DEFAULT_REVISION, needs_model, resolve_options
from pywebml.platform import Platform, SessionWorker, get_platform
from pywebml.progress import ProgressCallback, ignore_progress
from pywebml.sources import model_hub, revalidate, settings_client
from pywebml.tasks import get_task

EngineStatus = Literal["loading", "ready", "closed"]
Result = TypeVar("Result")

STOP_GRACE_SECONDS = 0.25
"""How long an aborted run may still finish by itself before its worker is stopped and the model loaded anew."""

_logger = logging.getLogger("pywebml")

_engine_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class RunMetrics:
    """Milliseconds that the latest run took.

    Attributes:
        total: From the call to its result, in Python.
        inference: In the runtime's own run calls.
    """

    total: float
    inference: float


class Engine:
    """One loaded task. Made by `create_engine`; ended by `terminate`, or by leaving `async with`.

    Attributes:
        engine_id: Its key; at most one live engine has it.
        options: Everything that was chosen, with nothing left open.
        metrics: Of the latest run; None before the first.
    """

    def __init__(
        self, engine_id: str, options: PipelineOptions, platform: Platform, configuration: Configuration
    ) -> None:
        self.engine_id = engine_id
        self.options = options
        self.metrics: RunMetrics | None = None
        self._platform = platform
        self._configuration = configuration
        self._status: EngineStatus = "loading"
        self._loaded: Loaded | None = None
        self._held = ExitStack()
        self._loading = asyncio.Lock()
        self._runs = 0
        self._settling: asyncio.Future[None] | None = None
        self._idle_timer: asyncio.TimerHandle | None = None

    @property
    def status(self) -> EngineStatus:
        """`loading`, `ready` or `closed`."""
        return self._status

    async def run(self, *args: Any, signal: AbortSignal | None = None, **options: Any) -> Any:
        """Run the task once. Several runs may be under way; the runtime takes them one after the other.

        Args:
            *args: The task's input, as in the Hugging Face pipeline of the same name.
            signal: Stops the run: the call ends at once, and a run that keeps computing is stopped with its worker;
                the next run loads the model again from the store.
            **options: The task's options.

        Raises:
            EngineClosedError: The engine was terminated.
            AbortError: The signal aborted.
            PywebmlError: What the task raises: see the task.
        """
        work = self._run(args, options)
        return await (work if signal is None else abortable(work, signal))

    async def run_with_generator(
        self, *args: Any, signal: AbortSignal | None = None, **options: Any
    ) -> AsyncIterator[Any]:
        """Run the task and give its result in pieces. Only for tasks that stream: those with a method `stream`.

        Raises:
            TaskError: The task gives its result at once.
            EngineClosedError: The engine was terminated.
            AbortError: The signal aborted.
        """
        self._begin()
        loaded = None
        try:
            loaded = await abortable(self._ready(), signal)
            stream = getattr(loaded.task, "stream", None)
            if stream is None:
                raise TaskError(
                    f"The task {self.options.task_name} gives its result at once; call run() instead.",
                    task=self.options.task_name,
                )
            pieces = _bound(stream, args, options)
            try:
                while True:
                    try:
                        piece = await abortable(pieces.__anext__(), signal)
                    except StopAsyncIteration:
                        return
                    self._check_open()
                    yield piece
            finally:
                await pieces.aclose()
        except SessionClosedError:
            self._check_open()
            raise
        except (asyncio.CancelledError, AbortError):
            self._give_up(loaded)
            raise
        finally:
            self._end()

    async def terminate(self) -> None:
        """End the engine and give its memory back. Runs that are under way raise `EngineClosedError`."""
        if self._status == "closed":
            return
        self._status = "closed"
        self._stop_idle_timer()
        self._unload()
        self._held.close()
        if _engines.get(self.engine_id) is self:
            del _engines[self.engine_id]

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.terminate()

    async def _run(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        self._begin()
        started = self._platform.monotonic()
        loaded = None
        try:
            loaded = await self._ready()
            before = loaded.run_ms()
            result = await _bound(loaded.task.run, args, options)
            self._check_open()
            total = (self._platform.monotonic() - started) * 1000
            self.metrics = RunMetrics(total=total, inference=loaded.run_ms() - before)
            return result
        except SessionClosedError:
            self._check_open()
            raise
        except asyncio.CancelledError:
            self._give_up(loaded)
            raise
        finally:
            self._end()

    def _begin(self) -> None:
        self._check_open()
        self._runs += 1
        self._stop_idle_timer()

    def _end(self) -> None:
        self._runs -= 1
        self._start_idle_timer()

    async def _ready(self) -> Loaded:
        # A run that was given up may still be computing; it is finished or stopped before the next one starts.
        if self._settling is not None:
            await asyncio.shield(self._settling)
        return self._loaded or await self._load(ignore_progress)

    def _give_up(self, loaded: Loaded | None) -> None:
        if loaded is not None and loaded.worker is not None and self._runs == 1:
            self._settling = asyncio.ensure_future(self._settle(loaded, loaded.worker))

    async def _settle(self, loaded: Loaded, worker: SessionWorker) -> None:
        if not await worker.settle(STOP_GRACE_SECONDS) and self._loaded is loaded:
            self._unload()
        self._settling = None

    async def _load(self, on_progress: ProgressCallback) -> Loaded:
        async with self._loading:
            if self._loaded is None:
                self._check_open()
                loaded = await load(self.engine_id, self.options, self._platform, self._configuration, on_progress)
                if self._status == "closed":
                    loaded.terminate()
                    self._check_open()
                self._loaded = loaded
                self._status = "ready"
            return self._loaded

    def _hold_models(self) -> None:
        """Keep the stored models from making room: an aborted run may make the engine load them again."""
        if needs_model(get_task(self.options.task_name or "")):
            hub = model_hub(self._platform, self._configuration, self.options)
            self._held.enter_context(in_use(self._platform, models_of(hub, self.options)))

    def _unload(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded.terminate()

    def _check_open(self) -> None:
        if self._status == "closed":
            raise EngineClosedError(
                f"The engine '{self.engine_id}' was terminated; create a new one.", engine_id=self.engine_id
            )

    def _start_idle_timer(self) -> None:
        timeout = self.options.timeout_ms
        if timeout is None or timeout < 0 or self._runs or self._status == "closed":
            return
        self._stop_idle_timer()
        loop = asyncio.get_running_loop()
        self._idle_timer = loop.call_later(timeout / 1000, lambda: loop.create_task(self.terminate()))

    def _stop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None


_engines: dict[str, Engine] = {}
_creating: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()


def list_engines() -> list[Engine]:
    """The engines that were created and not terminated, oldest first."""
    return list(_engines.values())


def get_engine(engine_id: str) -> Engine:
    """The live engine of this id.

    Raises:
        EngineClosedError: There is none.
    """
    if engine_id not in _engines:
        raise EngineClosedError(
            f"There is no engine '{engine_id}': it was terminated, or never created.", engine_id=engine_id
        )
    return _engines[engine_id]


async def create_engine(
    options: PipelineOptions | None = None,
    /,
    *,
    on_progress: ProgressCallback | None = None,
    signal: AbortSignal | None = None,
    **fields: Any,
) -> Engine:
    """Load a task and its model, from the store or, the first time, from the hub.

    Args:
        options: What to load. Alternatively give its fields by name.
        on_progress: Gets a `ProgressEvent` for every step of every file.
        signal: Stops everything; downloads end at once and leave nothing half-written.
        **fields: Fields of `PipelineOptions`.

    Returns:
        A ready engine. With an `engine_id` that a live engine has: that one if it was made with the same options,
        else a new one in its place.

    Raises:
        OptionsError: An option is unknown or not allowed.
        SettingsError: The runtime or the options could not be found or fetched.
        HubError: The model could not be fetched.
        SessionError: The runtime could not be started, or refuses the model.
        AbortError: The signal aborted.
    """
    if options is not None and fields:
        raise OptionsError("Give either a PipelineOptions or single options, not both.", field="options", value=None)
    chosen = options or PipelineOptions.from_mapping(fields)
    return await abortable(_create(chosen, on_progress or ignore_progress), signal)


async def _create(chosen: PipelineOptions, on_progress: ProgressCallback) -> Engine:
    platform, configuration = await get_platform(), get_configuration()
    engine_id = chosen.engine_id or _free_engine_id()

    # One creation per id at a time: two at once could both find the old engine and both replace it.
    lock = _creating.setdefault(engine_id, asyncio.Lock())
    async with lock:
        settings = settings_client(platform, configuration)
        resolved = await resolve_options(chosen, settings)

        existing = _engines.get(engine_id)
        if existing is not None:
            if existing.status == "ready" and existing.options.same_engine(resolved):
                existing._start_idle_timer()
                return existing
            await existing.terminate()

        engine = Engine(engine_id, resolved, platform, configuration)
        _engines[engine_id] = engine
        try:
            engine._hold_models()
            await engine._load(on_progress)
        except BaseException:
            await engine.terminate()
            raise
        engine._start_idle_timer()

        if settings is not None:
            # Whoever names a revision may want to keep others; the settings name the only one that counts.
            if chosen.model_revision is None and resolved.model_revision != DEFAULT_REVISION:
                await _purge_old_revisions(engine)
            revalidate(settings)
        return engine


async def _purge_old_revisions(engine: Engine) -> None:
    """Delete what the engine's task had of its model before the settings moved it to another revision."""
    model = engine.options.model_id or ""
    hub = model_hub(engine._platform, engine._configuration, engine.options)
    prefix = hub.address.owner_prefix
    in_use_now = models_in_use(engine._platform)
    keep = {revision for owner, name, revision in in_use_now if (owner, name) == (prefix, model)}
    try:
        await hub.delete_other_revisions(model, keep, task_name=engine.options.task_name)
    except StoreError as error:
        _logger.warning("Old revisions of %s could not be deleted: %s", model, error)


def _free_engine_id() -> str:
    names = (f"engine-{number}" for number in _engine_numbers)
    return next(name for name in names if name not in _engines and name not in _creating)


def _bound(function: Callable[..., Result], args: tuple[Any, ...], options: dict[str, Any]) -> Result:
    try:
        return function(*args, **options)
    except TypeError as error:
        # Calling an async function only binds its arguments, so this is about them.
        raise InputError(f"This call does not fit the task: {error}.", options=sorted(options)) from None
