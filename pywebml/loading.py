"""From options to a loaded task: what to load, which files, and the runtime that takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pywebml.abort import together
from pywebml.errors import OptionsError
from pywebml.hub import ModelHub
from pywebml.models import ModelConfig, ModelModule, model_modules
from pywebml.options import Configuration, PipelineOptions
from pywebml.platform import BlobKey, Platform, Session, SessionWorker
from pywebml.progress import ProgressCallback
from pywebml.settings import RemoteSettings, select_options, select_runtime
from pywebml.sources import OPTIONS_COLLECTION, RUNTIME_COLLECTION, model_hub, settings_client
from pywebml.tasks import Task, TaskContext, TaskDefinition, get_task
from pywebml.tokenization import Tokenizer

DEFAULT_RUNTIME_FILE = "ort-wasm-simd-threaded.wasm"
DEFAULT_DTYPE = "q8"
DEFAULT_REVISION = "main"
MOST_DEFAULT_THREADS = 4


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


async def resolve_options(chosen: PipelineOptions, settings: RemoteSettings | None) -> PipelineOptions:
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


async def load(
    engine_id: str,
    options: PipelineOptions,
    platform: Platform,
    configuration: Configuration,
    on_progress: ProgressCallback,
) -> Loaded:
    """Fetch everything that the options name and load it."""
    definition = get_task(options.task_name or "")
    if not definition.modules and not definition.tokenizer:
        return Loaded(definition.build(TaskContext(options.model_id or "", None, None, {})), None, {})
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
        return Loaded(definition.build(context), worker, sessions)
    except BaseException:
        worker.terminate()
        raise


async def load_tokenizer(hub: ModelHub, model: str, revision: str, **options: Any) -> Tokenizer:
    """The tokenizer of a model.

    Args:
        hub: Where it comes from.
        model: `org/name`.
        revision: Branch, tag or commit.
        **options: Of `ModelHub.read_file`.
    """
    tokenizer_json, tokenizer_config = await together(
        hub.read_file(model, revision, "tokenizer.json", **options),
        hub.read_file(model, revision, "tokenizer_config.json", **options),
    )
    return Tokenizer.from_json(tokenizer_json, tokenizer_config)


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
        return await load_tokenizer(self._hub, model, revision, **self._common)

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
    settings = settings_client(platform, configuration)
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
