"""From options to a loaded task: fetch what the plan says, start the runtime, load the model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from pywebml.abort import together
from pywebml.errors import (
    DamagedFileError,
    ModelLoadError,
    QuotaExceededError,
    StoreError,
    StoreUnavailableError,
    TokenizerError,
)
from pywebml.hub import ModelHub, StoredModels
from pywebml.hub.space import ModelName, room_for
from pywebml.hub.stored import KIND
from pywebml.models import ModelConfig
from pywebml.options import Configuration, PipelineOptions
from pywebml.planning import (
    FileStatuses,
    ModelFile,
    Plan,
    RuntimeFile,
    config_file,
    find_runtime,
    model_files,
    modules_of,
    needs_model,
    plan_files,
    tokenizer_files,
    tokenizer_source,
)
from pywebml.platform import BlobKey, Platform, Session, SessionWorker
from pywebml.progress import FileName, ProgressCallback, TotalProgress
from pywebml.sources import RUNTIME_COLLECTION, model_hub, settings_client
from pywebml.tasks import Task, TaskContext, get_task
from pywebml.tokenization import OPTIONAL_FILES as TOKENIZER_OPTIONAL_FILES
from pywebml.tokenization import Tokenizer, tokenizer_from_files

MOST_DEFAULT_THREADS = 4
FILES_AT_ONCE = 4

_logger = logging.getLogger("pywebml")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A task that can run.

    Attributes:
        task: With its model.
        worker: Where its sessions live; None for a task without a model.
        sessions: By module name.
    """

    task: Task
    worker: SessionWorker | None
    sessions: Mapping[str, Session]

    def run_ms(self) -> float:
        """Milliseconds that the runtime itself took so far."""
        return sum(session.total_run_ms for session in self.sessions.values())

    def terminate(self) -> None:
        """Give the memory back."""
        if self.worker is not None:
            self.worker.terminate()


class EngineFiles:
    """The files of one engine on their way into the store.

    Args:
        engine_id: Goes into the events.
        options: With nothing left open.
        platform: Where they are kept.
        configuration: Where they come from.
        on_progress: Gets the events of every file, and those of all together: one sequence, also when damaged files
            are planned and fetched a second time.
    """

    def __init__(
        self,
        engine_id: str,
        options: PipelineOptions,
        platform: Platform,
        configuration: Configuration,
        on_progress: ProgressCallback,
    ) -> None:
        self._options = options
        self._platform = platform
        self._configuration = configuration
        self._hub = model_hub(platform, configuration, options)
        metadata = {
            "engineId": engine_id,
            "model": options.model_id,
            "revision": options.model_revision,
            "file": None,
            "url": None,
            "taskName": options.task_name,
        }
        self._progress = TotalProgress(on_progress, engine_id, metadata)
        self._announced = self._all_told = False
        self._common: dict[str, Any] = {
            "task_name": options.task_name,
            "engine_id": engine_id,
            "on_progress": self._progress,
        }
        self._slots = asyncio.Semaphore(FILES_AT_ONCE)
        self._keys: dict[FileName, asyncio.Future[BlobKey | None]] = {}
        self._runtime: RuntimeFile | None = None
        self._awaited: dict[BlobKey, int] = {}
        self.config = ModelConfig("", {})

    async def plan(self) -> Plan:
        """Read `config.json` and find out what else is needed."""
        first = config_file(self._options)
        key, self._runtime = await together(
            self._hub.get_file(first.model, first.revision, first.path, **self._common),
            find_runtime(self._platform, self._configuration, self._options),
        )
        data = await self._hub.read_stored(first.model, first.revision, first.path)
        self.config = ModelConfig.from_json(data, first.model)
        statuses = FileStatuses(self._hub)
        files = await plan_files(statuses, await model_files(self._options, self.config, statuses.exists))
        loop = asyncio.get_running_loop()
        self._keys = {planned.file.name: loop.create_future() for planned in files}
        self._keys[first.name].set_result(key)
        return Plan(self._options, (*files, *([self._runtime.planned] if self._runtime else [])))

    async def fetch(self, plan: Plan) -> BlobKey | None:
        """Have every file of the plan in the store; `key` waits for single ones meanwhile. Returns the runtime's file.

        Raises:
            SettingsError: The runtime could not be fetched.
            HubError: A file of the model could not be fetched.
            StoreError: There is no room, or the store cannot be used.
        """
        if not self._announced:
            self._progress.start({planned.file.name: planned.size or 0 for planned in plan.files})
            self._announced = True
        missing = {self._place(planned.file): planned.size or 0 for planned in plan.files if not planned.stored}
        try:
            async with room_for(self._platform, missing, limit=self._configuration.max_cache_bytes) as self._awaited:
                runtime, *_ = await together(
                    self._fetch_runtime(),
                    *(self._fetch(planned.file) for planned in plan.files if planned.file.name in self._keys),
                )
        except BaseException:
            for waited in self._keys.values():
                waited.cancel()
            raise
        self.tell_end()
        await self._note_use()
        return cast("BlobKey | None", runtime)

    def tell_end(self, *, ok: bool = True) -> None:
        """Say that all files are there, or that they are not to be had. What is said first counts."""
        if not self._all_told:
            self._all_told = True
            self._progress.done(ok=ok)

    async def key(self, file: ModelFile) -> BlobKey | None:
        """Name of a planned file in the store, as soon as it is there; None when the hub has no such optional file."""
        return await asyncio.shield(self._keys[file.name])

    async def read(self, model: str, revision: str, path: str) -> bytes:
        """The bytes of a small file of the plan, as soon as it is there."""
        await asyncio.shield(self._keys[model, revision, path])
        return await self._hub.read_stored(model, revision, path)

    async def remove_damaged(self) -> bool:
        """Compare what was fetched with its hashes, and remove what is not the same any more; whether any was, or is
        not there any more."""
        keys = [key.result() for key in self._keys.values() if key.done() and not key.cancelled()]
        stored = StoredModels(self._platform)
        return any([not await stored.is_intact(key) for key in keys if key is not None])

    async def _fetch(self, file: ModelFile) -> None:
        if self._keys[file.name].done():
            return
        async with self._slots:
            key = await self._hub.get_file(file.model, file.revision, file.path, required=file.required, **self._common)
        self._awaited.pop(self._place(file), None)
        self._keys[file.name].set_result(key)

    def _place(self, file: ModelFile) -> BlobKey:
        """Name of a planned file in the store."""
        if self._runtime is not None and file == self._runtime.planned.file:
            return self._runtime.key
        return BlobKey(KIND, self._hub.address.owner(file.model), file.revision, file.path)

    async def _fetch_runtime(self) -> BlobKey | None:
        settings = settings_client(self._platform, self._configuration)
        if self._runtime is None or settings is None:
            return None
        key = await settings.attachment(RUNTIME_COLLECTION, self._runtime.record, self._progress)
        self._awaited.pop(key, None)
        return key

    async def _note_use(self) -> None:
        keys = [key.result() for key in self._keys.values()]
        name = self._options.engine_id or self._options.feature_id
        try:
            await StoredModels(self._platform).note_use(
                [key for key in keys if key is not None], self._options.task_name, name
            )
        except StoreError as error:
            _logger.warning("The use of %s could not be noted: %s", self._options.model_id, error)


def models_of(hub: ModelHub, options: PipelineOptions) -> set[ModelName]:
    """The stored models that an engine with these options needs."""
    prefix = hub.address.owner_prefix
    names = {(options.model_id or "", options.model_revision or ""), tokenizer_source(options)}
    return {(prefix, model, revision) for model, revision in names}


async def load(
    engine_id: str,
    options: PipelineOptions,
    platform: Platform,
    configuration: Configuration,
    on_progress: ProgressCallback,
) -> Loaded:
    """Fetch everything that the options name and load it. The caller sees to it that the model is `in_use`."""
    definition = get_task(options.task_name or "")
    if not needs_model(definition):
        return Loaded(definition.build(TaskContext(options.model_id or "", None, None, {})), None, {})

    files = EngineFiles(engine_id, options, platform, configuration, on_progress)
    try:
        return await _load_undamaged(files, options, platform)
    except BaseException:
        files.tell_end(ok=False)
        raise


async def _load_undamaged(files: EngineFiles, options: PipelineOptions, platform: Platform) -> Loaded:
    """Load, a second time if stored files turn out to be damaged."""
    try:
        return await _load(files, options, platform)
    except DamagedFileError as error:
        _logger.warning("%s", error)
    except (QuotaExceededError, StoreUnavailableError):
        # They say nothing about what is stored.
        raise
    except (StoreError, ModelLoadError, TokenizerError) as error:
        # Somebody has deleted a file meanwhile, or its bytes were changed, which a store does not notice by itself.
        if not await files.remove_damaged():
            raise
        _logger.warning("Stored files of %s were damaged and are fetched again: %s", options.model_id, error)
    # The file is gone from the store, so that this fetches it again.
    return await _load(files, options, platform)


async def _load(files: EngineFiles, options: PipelineOptions, platform: Platform) -> Loaded:
    definition = get_task(options.task_name or "")
    plan = await files.plan()
    runtime, tokenizer = await together(files.fetch(plan), _tokenizer(files, plan))
    worker = await platform.start_session_worker(runtime, num_threads=_thread_count(options, platform))
    try:
        sessions = {}
        for module in modules_of(options, files.config):
            model, *data = [
                await files.key(ModelFile(options.model_id or "", options.model_revision or "", path, "weights"))
                for path in (module.path, *(path for _, path in module.external_data))
            ]
            names = [name for name, _ in module.external_data]
            sessions[module.name] = await worker.create_session(
                cast("BlobKey", model), external_data=dict(zip(names, cast("list[BlobKey]", data), strict=True))
            )
        present = {planned.file.name: planned.file for planned in plan.files}
        optional = {}
        for path in definition.optional_files:
            file = present.get((options.model_id or "", options.model_revision or "", path))
            if file is not None and await files.key(file) is not None:
                optional[path] = await files.read(*file.name)
        context = TaskContext(options.model_id or "", files.config, tokenizer, sessions, optional)
        return Loaded(definition.build(context), worker, sessions)
    except BaseException:
        worker.terminate()
        raise


async def _tokenizer(files: EngineFiles, plan: Plan) -> Tokenizer | None:
    wanted = [planned.file for planned in plan.files if planned.file.purpose == "tokenizer"]
    if not wanted:
        return None
    keys = await together(*(files.key(file) for file in wanted))
    found = [file for file, key in zip(wanted, keys, strict=True) if key is not None]
    contents = await together(*(files.read(*file.name) for file in found))
    return tokenizer_from_files({file.path: data for file, data in zip(found, contents, strict=True)})


async def load_tokenizer(hub: ModelHub, model: str, revision: str, **options: Any) -> Tokenizer:
    """The tokenizer of a model, with everything that belongs to it.

    Args:
        hub: Where it comes from.
        model: `org/name`.
        revision: Branch, tag or commit.
        **options: Of `ModelHub.get_file`.
    """
    names = {file.path for file in await tokenizer_files(model, revision, FileStatuses(hub).exists) if file.required}
    paths = [*names, *TOKENIZER_OPTIONAL_FILES]
    keys = await together(*(hub.get_file(model, revision, path, required=path in names, **options) for path in paths))
    found = [path for path, key in zip(paths, keys, strict=True) if key is not None]
    contents = await together(*(hub.read_stored(model, revision, path) for path in found))
    return tokenizer_from_files(dict(zip(found, contents, strict=True)))


def _thread_count(options: PipelineOptions, platform: Platform) -> int:
    environment = platform.environment
    if environment.name == "browser" and not environment.cross_origin_isolated:
        return 1
    # Half of the logical processors are the physical ones on most machines, and a page should leave some alone.
    return options.num_threads or max(1, min(MOST_DEFAULT_THREADS, (environment.hardware_concurrency + 1) // 2))
