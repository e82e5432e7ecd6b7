"""The one list of files that an engine needs: for loading, progress, "is it cached?", prefetch and the page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pywebml.abort import together
from pywebml.errors import OptionsError
from pywebml.hub import FileStatus, ModelHub
from pywebml.models import DEFAULT_DTYPE, ModelConfig, ModelModule, model_modules
from pywebml.options import Configuration, PipelineOptions
from pywebml.platform import BlobKey, Platform
from pywebml.progress import FileName
from pywebml.settings import RemoteSettings, select_options, select_runtime
from pywebml.sources import OPTIONS_COLLECTION, RUNTIME_COLLECTION, model_hub, settings_client
from pywebml.tasks import TaskDefinition, get_task
from pywebml.tokenization import OPTIONAL_FILES as TOKENIZER_OPTIONAL_FILES
from pywebml.tokenization import VOCABULARY_FILES

DEFAULT_RUNTIME_FILE = "ort-wasm-simd-threaded.wasm"
DEFAULT_REVISION = "main"
CONFIG_FILE = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

Exists = Callable[[str, str, str], Awaitable[bool]]
"""Whether a model in a revision has a file."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file that an engine needs.

    Attributes:
        model: `organisation/name`; for the runtime where its settings record is.
        revision: Branch, tag or commit; for the runtime its record.
        path: Inside the model.
        required: False: the engine does without it when the hub does not have it.
        purpose: `config`, `tokenizer`, `weights`, `optional` or `runtime`.
    """

    model: str
    revision: str
    path: str
    purpose: str
    required: bool = True

    @property
    def name(self) -> FileName:
        """As in the events about it."""
        return self.model, self.revision, self.path


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file that an engine needs, and what is known of it.

    Attributes:
        file: Which.
        size: In bytes; None when its hub does not tell.
        stored: Whether it is in the store.
        loaded: Bytes of it that are here already.
    """

    file: ModelFile
    size: int | None
    stored: bool
    loaded: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What an engine with some options needs.

    Attributes:
        options: With nothing left open.
        files: All files that there are; optional ones that the hub does not have are left out.
    """

    options: PipelineOptions
    files: tuple[PlannedFile, ...]

    @property
    def total(self) -> int:
        """Bytes of all files whose size is known."""
        return sum(planned.size or 0 for planned in self.files)

    @property
    def missing(self) -> int:
        """Bytes that are still to be downloaded, as far as sizes are known."""
        return sum(max(0, (planned.size or 0) - planned.loaded) for planned in self.files if not planned.stored)

    @property
    def is_cached(self) -> bool:
        """Whether nothing is to be downloaded."""
        return all(planned.stored for planned in self.files)


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


def needs_model(definition: TaskDefinition) -> bool:
    """Whether a task has any files."""
    return bool(definition.modules or definition.tokenizer)


def config_file(options: PipelineOptions) -> ModelFile:
    """The file that has to be read before the others are known."""
    return ModelFile(options.model_id or "", options.model_revision or DEFAULT_REVISION, CONFIG_FILE, "config")


def tokenizer_source(options: PipelineOptions) -> tuple[str, str]:
    """Model and revision that the tokenizer comes from."""
    model = options.tokenizer_id or options.model_id or ""
    if options.tokenizer_revision is not None:
        return model, options.tokenizer_revision
    return model, (options.model_revision or DEFAULT_REVISION) if model == options.model_id else DEFAULT_REVISION


def modules_of(options: PipelineOptions, config: ModelConfig) -> list[ModelModule]:
    """The sessions of an engine with their files."""
    definition = get_task(options.task_name or "")
    return model_modules(definition.modules, options.dtype or DEFAULT_DTYPE, config, options.use_external_data_format)


async def tokenizer_files(model: str, revision: str, exists: Exists) -> list[ModelFile]:
    """The files that a tokenizer is made of: the first kind of vocabulary that is there whole, and what goes with it.

    Without any it is `tokenizer.json` that is missed.
    """
    chosen = VOCABULARY_FILES[0]
    for names in VOCABULARY_FILES:
        if all([await exists(model, revision, name) for name in names]):
            chosen = names
            break
    # With a `tokenizer.json` the other files have nothing that an engine needs.
    besides = (TOKENIZER_CONFIG,) if chosen == VOCABULARY_FILES[0] else TOKENIZER_OPTIONAL_FILES
    return [
        *(ModelFile(model, revision, name, "tokenizer") for name in chosen),
        *(ModelFile(model, revision, name, "tokenizer", required=False) for name in besides),
    ]


async def model_files(options: PipelineOptions, config: ModelConfig, exists: Exists) -> list[ModelFile]:
    """Every file of the model, and of its tokenizer, that an engine needs: each once, also where a task names as
    optional what it needs anyway."""
    definition = get_task(options.task_name or "")
    first = config_file(options)
    files = [first]
    if definition.tokenizer:
        model, revision = tokenizer_source(options)
        files += await tokenizer_files(model, revision, exists)
    for module in modules_of(options, config):
        paths = (module.path, *(path for _, path in module.external_data))
        files += [ModelFile(first.model, first.revision, path, "weights") for path in paths]
    files += [
        ModelFile(first.model, first.revision, path, "optional", required=False) for path in definition.optional_files
    ]
    unique: dict[FileName, ModelFile] = {}
    for file in files:
        unique.setdefault(file.name, file)
    return [*unique.values()]


@dataclass(frozen=True, slots=True)
class RuntimeFile:
    """The runtime's WASM file, as the settings name it.

    Attributes:
        record: Of `ml-onnx-runtime`.
        key: Its name in the store.
        planned: As a part of the plan.
    """

    record: Mapping[str, Any]
    key: BlobKey
    planned: PlannedFile


async def find_runtime(
    platform: Platform, configuration: Configuration, options: PipelineOptions
) -> RuntimeFile | None:
    """The runtime that an engine needs; None where the surroundings bring their own.

    Raises:
        OptionsError: No settings server is configured.
        SettingsError: The settings list none that fits, or could not be fetched.
    """
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
    key, size = settings.attachment_file(RUNTIME_COLLECTION, record)
    stored = await platform.blobs.info(key) is not None
    file = ModelFile(key.owner, key.revision, key.path, "runtime")
    return RuntimeFile(record, key, PlannedFile(file, size, stored, size if stored else 0))


class FileStatuses:
    """What a hub tells of files, asked once for each."""

    def __init__(self, hub: ModelHub) -> None:
        self._hub = hub
        self._known: dict[FileName, FileStatus] = {}

    async def get(self, model: str, revision: str, path: str) -> FileStatus:
        """What is known of a file. Raises as `ModelHub.file_status`."""
        name = (model, revision, path)
        if name not in self._known:
            self._known[name] = await self._hub.file_status(*name)
        return self._known[name]

    async def exists(self, model: str, revision: str, path: str) -> bool:
        """Whether the hub has a file, as far as it tells."""
        return (await self.get(model, revision, path)).exists


async def plan_files(statuses: FileStatuses, files: Iterable[ModelFile]) -> list[PlannedFile]:
    """What is known of files; optional ones that the hub does not have are left out.

    Raises:
        HubError: The hub's list could not be had, or an address may not be used.
    """

    async def planned(file: ModelFile) -> PlannedFile | None:
        status = await statuses.get(file.model, file.revision, file.path)
        if not file.required and not status.exists:
            return None
        return PlannedFile(file, status.size, status.stored, status.loaded)

    found = await together(*(planned(file) for file in files))
    return [plan for plan in found if plan is not None]


async def make_plan(chosen: PipelineOptions, platform: Platform, configuration: Configuration) -> Plan:
    """Every file of an engine with these options, and how much of it is here. Downloads `config.json`, if that is not.

    Args:
        chosen: What the engine would be made with.
        platform: Where.
        configuration: Where things come from.

    Raises:
        OptionsError: An option is unknown or not allowed.
        SettingsError: The runtime or the options could not be found or fetched.
        HubError: The model's `config.json`, or the hub's list of files, could not be fetched.
    """
    options = await resolve_options(chosen, settings_client(platform, configuration))
    if not needs_model(get_task(options.task_name or "")):
        return Plan(options, ())
    hub = model_hub(platform, configuration, options)
    first = config_file(options)
    config = ModelConfig.from_json(await hub.read_file(first.model, first.revision, first.path), first.model)
    runtime = await find_runtime(platform, configuration, options)
    statuses = FileStatuses(hub)
    files = await plan_files(statuses, await model_files(options, config, statuses.exists))
    return Plan(options, (*files, *([runtime.planned] if runtime is not None else [])))


async def is_cached(chosen: PipelineOptions, platform: Platform, configuration: Configuration) -> bool:
    """Whether an engine with these options can be made without a download. Asks the hub nothing.

    Raises:
        OptionsError: An option is unknown or not allowed.
        SettingsError: The options or the runtime could not be found.
        UnsupportedModelError: The stored `config.json` is not usable.
        ForbiddenURLError: The allow and deny list does not let the model through.
    """
    options = await resolve_options(chosen, settings_client(platform, configuration))
    if not needs_model(get_task(options.task_name or "")):
        return True
    hub = model_hub(platform, configuration, options)
    first = config_file(options)
    if not await hub.has_file(first.model, first.revision, first.path):
        return False
    data = await hub.read_stored(first.model, first.revision, first.path)
    config = ModelConfig.from_json(data, first.model)
    files = [file for file in await model_files(options, config, hub.has_file) if file.required]
    runtime = await find_runtime(platform, configuration, options)
    if runtime is not None and not runtime.planned.stored:
        return False
    return all(await together(*(hub.has_file(file.model, file.revision, file.path) for file in files)))
