"""Engines: a task with its model, loaded and ready to run."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urljoin
from weakref import WeakValueDictionary

from pywebml.abort import AbortSignal, abortable, together
from pywebml.errors import EngineClosedError, InputError, OptionsError, PywebmlError, TaskError
from pywebml.hub import HUBS, ModelHub
from pywebml.models import ModelConfig, ModelModule, model_modules
from pywebml.options import Configuration, PipelineOptions, get_configuration
from pywebml.platform import BlobKey, Platform, Session, SessionWorker, get_platform
from pywebml.progress import ProgressCallback, ignore_progress
from pywebml.settings import RemoteSettings, select_options, select_runtime
from pywebml.tasks import Task, TaskContext, TaskDefinition, get_task
from pywebml.tokenization import Tokenizer

EngineStatus = Literal["loading", "ready", "closed"]

RUNTIME_COLLECTION = "ml-onnx-runtime"
OPTIONS_COLLECTION = "ml-inference-options"
DEFAULT_RUNTIME_FILE = "ort-wasm-simd-threaded.wasm"
DEFAULT_DTYPE = "q8"
DEFAULT_REVISION = "main"
MOST_DEFAULT_THREADS = 4

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
        self._loaded: _Loaded | None = None
        self._loading = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()
        self._orphans: set[asyncio.Task[Any]] = set()
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
        return await abortable(self._run(args, options), signal)

    async def run_with_generator(
        self, *args: Any, signal: AbortSignal | None = None, **options: Any
    ) -> AsyncIterator[Any]:
        """Run the task and give its result in pieces. Only for tasks that stream: those with a method `stream`.

        Raises:
            TaskError: The task gives its result at once.
            EngineClosedError: The engine was terminated.
            AbortError: The signal aborted.
        """
        self._check_open()
        loaded = self._loaded or await self._load(ignore_progress)
        stream = getattr(loaded.task, "stream", None)
        if stream is None:
            raise TaskError(
                f"The task {self.options.task_name} gives its result at once; call run() instead.",
                task=self.options.task_name,
            )
        pieces = stream(*args, **options)
        try:
            while True:
                try:
                    piece = await abortable(pieces.__anext__(), signal)
                except StopAsyncIteration:
                    return
                yield piece
        finally:
            await pieces.aclose()

    async def terminate(self) -> None:
        """End the engine and give its memory back. Runs that are under way raise `EngineClosedError`."""
        if self._status == "closed":
            return
        self._status = "closed"
        self._stop_idle_timer()
        self._unload()
        if _engines.get(self.engine_id) is self:
            del _engines[self.engine_id]
        for task in self._running:
            task.cancel()

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.terminate()

    async def _run(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        self._check_open()
        self._stop_idle_timer()
        started = self._platform.monotonic()
        try:
            if self._settling is not None:
                await asyncio.shield(self._settling)
            loaded = self._loaded or await self._load(ignore_progress)
            before = loaded.run_ms()
            result = await self._guard(loaded, asyncio.ensure_future(_call(loaded.task, args, options)))
            total = (self._platform.monotonic() - started) * 1000
            self.metrics = RunMetrics(total=total, inference=loaded.run_ms() - before)
            return result
        finally:
            self._start_idle_timer()

    async def _guard(self, loaded: _Loaded, work: asyncio.Task[Any]) -> Any:
        self._running.add(work)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if self._status == "closed":
                raise EngineClosedError(
                    f"The engine '{self.engine_id}' was terminated during a run.", engine_id=self.engine_id
                ) from None
            self._orphans.add(work)
            if self._running == {work}:
                self._settling = asyncio.ensure_future(self._settle(loaded))
            raise
        finally:
            self._running.discard(work)

    async def _settle(self, loaded: _Loaded) -> None:
        # Runs that nobody waits for any more must not hold up the next one: they get a moment to finish by
        # themselves, then the worker goes.
        _, unfinished = await asyncio.wait(self._orphans, timeout=STOP_GRACE_SECONDS)
        if unfinished and self._loaded is loaded:
            self._unload()
        await asyncio.gather(*self._orphans, return_exceptions=True)
        self._orphans.clear()

    async def _load(self, on_progress: ProgressCallback) -> _Loaded:
        async with self._loading:
            if self._loaded is None:
                loaded = await _load(self.engine_id, self.options, self._platform, self._configuration, on_progress)
                if self._status == "closed":
                    loaded.worker_terminate()
                    self._check_open()
                self._loaded = loaded
                self._status = "ready"
            return self._loaded

    def _unload(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded.worker_terminate()

    def _check_open(self) -> None:
        if self._status == "closed":
            raise EngineClosedError(
                f"The engine '{self.engine_id}' was terminated; create a new one.", engine_id=self.engine_id
            )

    def _start_idle_timer(self) -> None:
        timeout = self.options.timeout_ms
        if timeout is None or timeout < 0 or self._running or self._status == "closed":
            return
        self._stop_idle_timer()
        loop = asyncio.get_running_loop()
        self._idle_timer = loop.call_later(timeout / 1000, lambda: loop.create_task(self.terminate()))

    def _stop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None


@dataclass(frozen=True, slots=True)
class _Loaded:
    task: Task
    worker: SessionWorker | None
    sessions: Mapping[str, Session]

    def run_ms(self) -> float:
        return sum(session.total_run_ms for session in self.sessions.values())

    def worker_terminate(self) -> None:
        if self.worker is not None:
            self.worker.terminate()


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
        settings = _remote_settings(platform, configuration)
        resolved = await _resolve(chosen, settings)

        existing = _engines.get(engine_id)
        if existing is not None:
            if existing.status == "ready" and existing.options.same_engine(resolved):
                return existing
            await existing.terminate()

        engine = Engine(engine_id, resolved, platform, configuration)
        _engines[engine_id] = engine
        try:
            await engine._load(on_progress)
        except BaseException:
            await engine.terminate()
            raise
        engine._start_idle_timer()

        # What the server has learned since is for the next start, and must not delay this one.
        if settings is not None:
            _revalidate(settings)
        return engine


def _free_engine_id() -> str:
    return next(name for number in _engine_numbers if (name := f"engine-{number}") not in _engines)


async def _resolve(chosen: PipelineOptions, settings: RemoteSettings | None) -> PipelineOptions:
    """Leave nothing open: settings record, then the caller's word over it, then the task's and our defaults."""
    options = chosen
    if settings is not None and (chosen.feature_id or chosen.task_name):
        record = select_options(
            await settings.get(OPTIONS_COLLECTION),
            feature_id=chosen.feature_id,
            task_name=chosen.task_name,
            model_id=chosen.model_id,
        )
        if record is not None:
            options = PipelineOptions.from_record(record).overlaid_by(chosen)
    if options.task_name is None:
        raise OptionsError(
            "No task: give task_name, such as 'feature-extraction', or a feature_id that the settings know.",
            field="task_name",
            value=None,
        )
    definition = get_task(options.task_name)
    model_id = options.model_id or definition.default_model
    if definition.modules and model_id is None:
        raise OptionsError(
            f"The task {definition.name} has no default model: give model_id.", field="model_id", value=None
        )
    defaults = PipelineOptions(
        model_id=model_id,
        model_revision=DEFAULT_REVISION,
        dtype=DEFAULT_DTYPE,
        device="wasm",
        num_threads=0,
        backend="onnx",
        runtime_filename=DEFAULT_RUNTIME_FILE,
        timeout_ms=-1,
    )
    return defaults.overlaid_by(options)


async def _load(
    engine_id: str,
    options: PipelineOptions,
    platform: Platform,
    configuration: Configuration,
    on_progress: ProgressCallback,
) -> _Loaded:
    definition = get_task(options.task_name or "")
    if not definition.modules and not definition.tokenizer:
        return _Loaded(definition.build(TaskContext(options.model_id or "", None, None, {})), None, {})
    files = _EngineFiles(engine_id, options, model_hub(platform, configuration, options), on_progress)

    # The runtime and the model's files do not wait for each other.
    config = asyncio.ensure_future(files.config())
    runtime, _, tokenizer, modules = await together(
        _runtime_file(platform, configuration, options, on_progress),
        config,
        files.tokenizer(definition),
        files.modules(definition, config),
    )
    worker = await platform.start_session_worker(runtime, num_threads=_thread_count(options, platform))
    try:
        sessions = {
            module.name: await worker.create_session(model, external_data=external_data)
            for module, model, external_data in modules
        }
        context = TaskContext(options.model_id or "", config.result(), tokenizer, sessions)
        return _Loaded(definition.build(context), worker, sessions)
    except BaseException:
        worker.terminate()
        raise


class _EngineFiles:
    """Fetches the files of one engine."""

    def __init__(self, engine_id: str, options: PipelineOptions, hub: ModelHub, on_progress: ProgressCallback) -> None:
        self._options = options
        self._hub = hub
        self._model = options.model_id or ""
        self._revision = options.model_revision or DEFAULT_REVISION
        self._common: dict[str, Any] = {
            "task_name": options.task_name,
            "engine_id": engine_id,
            "on_progress": on_progress,
        }

    async def config(self) -> ModelConfig:
        data = await self._hub.read_file(self._model, self._revision, "config.json", **self._common)
        return ModelConfig.from_json(data, self._model)

    async def tokenizer(self, definition: TaskDefinition) -> Tokenizer | None:
        if not definition.tokenizer:
            return None
        model = self._options.tokenizer_id or self._model
        revision = self._options.tokenizer_revision
        if revision is None:
            revision = self._revision if model == self._model else DEFAULT_REVISION
        tokenizer_json, tokenizer_config = await together(
            self._hub.read_file(model, revision, "tokenizer.json", **self._common),
            self._hub.read_file(model, revision, "tokenizer_config.json", **self._common),
        )
        return Tokenizer.from_json(tokenizer_json, tokenizer_config)

    async def modules(
        self, definition: TaskDefinition, config: asyncio.Future[ModelConfig]
    ) -> list[tuple[ModelModule, BlobKey, dict[str, BlobKey]]]:
        plan = model_modules(
            definition.modules,
            self._options.dtype or DEFAULT_DTYPE,
            await asyncio.shield(config),
            self._options.use_external_data_format,
        )
        paths = [path for module in plan for path in (module.path, *(path for _, path in module.external_data))]
        fetched = dict(zip(paths, await together(*map(self._file, paths)), strict=True))
        return [
            (module, fetched[module.path], {name: fetched[path] for name, path in module.external_data})
            for module in plan
        ]

    async def _file(self, path: str) -> BlobKey:
        key: BlobKey = await self._hub.get_file(self._model, self._revision, path, **self._common)
        return key


async def _runtime_file(
    platform: Platform, configuration: Configuration, options: PipelineOptions, on_progress: ProgressCallback
) -> BlobKey | None:
    if not platform.environment.needs_runtime_file:
        return None
    settings = _remote_settings(platform, configuration)
    if settings is None:
        raise OptionsError(
            "No settings server: ONNX Runtime's WASM file is listed there. Call configure(settings_server=…) or "
            "configure(assets_base=…) with the address of a built dist/ folder.",
            field="settings_server",
            value=None,
        )
    record = select_runtime(
        await settings.get(RUNTIME_COLLECTION),
        name=options.runtime_filename or DEFAULT_RUNTIME_FILE,
        version=platform.environment.runtime_version,
    )
    return await settings.attachment(RUNTIME_COLLECTION, record, on_progress)


def _thread_count(options: PipelineOptions, platform: Platform) -> int:
    environment = platform.environment
    if environment.name == "browser" and not environment.cross_origin_isolated:
        return 1
    # Half of the logical processors are the physical ones on most machines, and a page should leave some alone.
    return options.num_threads or max(1, min(MOST_DEFAULT_THREADS, (environment.hardware_concurrency + 1) // 2))


async def remote_settings() -> RemoteSettings | None:
    """The configured settings client; None when no server is configured."""
    return _remote_settings(await get_platform(), get_configuration())


def _remote_settings(platform: Platform, configuration: Configuration) -> RemoteSettings | None:
    server = configuration.settings_server
    if server is None and configuration.assets_base is not None:
        server = urljoin(_folder(configuration.assets_base), "v1/")
    if server is None:
        return None
    key = (id(platform), _absolute(platform, server))
    client = _settings_clients.get(key)
    if client is None:
        client = RemoteSettings(platform, key[1])
        _settings_clients[key] = client
    return client


# Engines that load at the same time share these, so that what several want is fetched once.
_settings_clients: WeakValueDictionary[tuple[int, str], RemoteSettings] = WeakValueDictionary()
_hubs: WeakValueDictionary[tuple[int, str, str, bool], ModelHub] = WeakValueDictionary()


def model_hub(
    platform: Platform, configuration: Configuration | None = None, options: PipelineOptions | None = None
) -> ModelHub:
    """The hub that an engine with these options uses.

    Raises:
        OptionsError: No hub is configured.
    """
    configuration = configuration or get_configuration()
    options = options or PipelineOptions()
    if options.model_hub is not None:
        known = HUBS[options.model_hub]
        return _shared_hub(platform, known.root_url, known.url_template, known.uses_manifest)
    root = options.model_hub_root_url or configuration.hub_root_url
    if root is None and configuration.assets_base is not None:
        root = urljoin(_folder(configuration.assets_base), "hub/")
    if root is None:
        raise OptionsError(
            "No model hub: call configure(hub_root_url=…), or give model_hub='huggingface' or model_hub_root_url.",
            field="hub_root_url",
            value=None,
        )
    template = options.model_hub_url_template or configuration.hub_url_template
    return _shared_hub(platform, _absolute(platform, root), template, True)


def _shared_hub(platform: Platform, root_url: str, url_template: str, uses_manifest: bool) -> ModelHub:
    key = (id(platform), root_url, url_template, uses_manifest)
    hub = _hubs.get(key)
    if hub is None:
        hub = ModelHub(platform, root_url, url_template, uses_manifest=uses_manifest)
        _hubs[key] = hub
    return hub


def _folder(address: str) -> str:
    return address if address.endswith("/") else f"{address}/"


def _absolute(platform: Platform, address: str) -> str:
    return urljoin(platform.environment.base_url, address)


_revalidations: set[asyncio.Task[None]] = set()


def _revalidate(settings: RemoteSettings) -> None:
    async def sync_all() -> None:
        for collection in (RUNTIME_COLLECTION, OPTIONS_COLLECTION):
            try:
                await settings.sync(collection)
            except PywebmlError as error:
                _logger.info("Settings stay as they are: %s", error)

    # The loop itself keeps only a weak reference to a task.
    task = asyncio.ensure_future(sync_all())
    _revalidations.add(task)
    task.add_done_callback(_revalidations.discard)


async def _call(task: Task, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    try:
        work = task.run(*args, **options)
    except TypeError as error:
        # Calling an async function only binds its arguments, so this is about them.
        raise InputError(f"This call does not fit the task: {error}.", options=sorted(options)) from None
    return await work
