"""Models before and beside engines: what an engine would need, having it ahead of time, and what is stored."""

from __future__ import annotations

from typing import Any

from pywebml.abort import AbortSignal, abortable
from pywebml.errors import OptionsError
from pywebml.hub import StoredModels
from pywebml.hub.space import in_use
from pywebml.loading import EngineFiles, models_of
from pywebml.options import PipelineOptions, get_configuration
from pywebml.planning import Plan, make_plan, needs_model, resolve_options
from pywebml.planning import is_cached as plan_is_cached
from pywebml.platform import get_platform
from pywebml.progress import ProgressCallback, ignore_progress
from pywebml.sources import model_hub, settings_client
from pywebml.tasks import get_task


async def plan(options: PipelineOptions | None = None, /, **fields: Any) -> Plan:
    """Every file that an engine with these options would need, with sizes, and how much of it is here.

    Downloads `config.json` when it is not here: what else is needed depends on it.

    Args:
        options: What the engine would be made with. Alternatively give its fields by name.
        **fields: Fields of `PipelineOptions`, such as `task_name`, `model_id`, `model_revision`, `dtype`, `device`.

    Raises:
        OptionsError: An option is unknown or not allowed.
        SettingsError: The runtime or the options could not be found or fetched.
        HubError: `config.json`, or the hub's list of files, could not be fetched.
    """
    return await make_plan(_options(options, fields), await get_platform(), get_configuration())


async def is_cached(options: PipelineOptions | None = None, /, **fields: Any) -> bool:
    """Whether an engine with these options can be made without a download. Asks no hub.

    Args:
        options: See `plan`.
        **fields: See `plan`.

    Raises:
        OptionsError: An option is unknown or not allowed.
        SettingsError: The runtime or the options could not be found or fetched.
        ForbiddenURLError: The allow and deny list does not let the model through.
    """
    return await plan_is_cached(_options(options, fields), await get_platform(), get_configuration())


async def prefetch(
    options: PipelineOptions | None = None,
    /,
    *,
    on_progress: ProgressCallback = ignore_progress,
    signal: AbortSignal | None = None,
    **fields: Any,
) -> Plan:
    """Download everything that an engine with these options needs, without making one.

    Args:
        options: See `plan`.
        on_progress: As for `create_engine`.
        signal: Stops the downloads; what has arrived is kept.
        **fields: See `plan`.

    Returns:
        What was needed, and how much of it was here before.

    Raises:
        PywebmlError: As `create_engine` does.
        AbortError: The signal aborted.
    """
    return await abortable(_prefetch(_options(options, fields), on_progress), signal)


async def stored_models() -> StoredModels:
    """What is stored, of all hubs."""
    return StoredModels(await get_platform())


async def _prefetch(chosen: PipelineOptions, on_progress: ProgressCallback) -> Plan:
    platform, configuration = await get_platform(), get_configuration()
    options = await resolve_options(chosen, settings_client(platform, configuration))
    if not needs_model(get_task(options.task_name or "")):
        return Plan(options, ())
    name = options.engine_id or "prefetch"
    files = EngineFiles(name, options, platform, configuration, on_progress)
    with in_use(platform, models_of(model_hub(platform, configuration, options), options)):
        planned = await files.plan()
        try:
            await files.fetch(planned)
        except BaseException:
            files.tell_end(ok=False)
            raise
    return planned


def _options(options: PipelineOptions | None, fields: dict[str, Any]) -> PipelineOptions:
    if options is not None and fields:
        raise OptionsError("Give either a PipelineOptions or single options, not both.", field="options", value=None)
    return options or PipelineOptions.from_mapping(fields)
