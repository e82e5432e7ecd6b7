"""What the page can call in the host worker: the Python side of the JavaScript API, one function per method."""

from __future__ import annotations

import asyncio
import json
import sys
import types
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urljoin

from pywebml.engine import Engine, create_engine, get_engine, list_engines
from pywebml.errors import OptionsError, SettingsError, TaskError, UnknownCollectionError
from pywebml.options import PipelineOptions, configure
from pywebml.platform import NetworkError, get_platform
from pywebml.platform.rpc import Call
from pywebml.settings import RemoteSettings, SyncResult
from pywebml.sources import ALLOW_DENY_COLLECTION, COLLECTIONS, settings_client
from pywebml.tasks import get_task, task_names
from pywebml.worker_models import MODEL_METHODS
from pywebml.worker_params import Params, list_param, object_param, text_param

MAX_TASK_SOURCE = 4 * 1024 * 1024


def serve(channel: Any, configuration: str) -> Callable[[int, str | None, Any], None]:
    """Start answering a page.

    Args:
        channel: JavaScript object whose `post` sends to the page.
        configuration: Fields of `Configuration`, as JSON.

    Returns:
        The function that takes the page's messages.
    """
    from pywebml.platform.browser_rpc import serve as serve_messages

    configure(**json.loads(configuration))
    return serve_messages(channel, call)


async def call(method: str, params: Params, caller: Call) -> Any:
    """Run one method of `METHODS`.

    Raises:
        OptionsError: There is no such method, or a parameter is missing.
        PywebmlError: What the method raises.
    """
    if method not in METHODS:
        raise OptionsError(f"There is no method '{method}'.", field="method", value=method)
    return await METHODS[method](params, caller)


async def _create_engine(params: Params, caller: Call) -> dict[str, Any]:
    options = PipelineOptions.from_mapping(object_param(params, "options"))
    return _engine_data(await create_engine(options, on_progress=caller.progress))


async def _run(params: Params, caller: Call) -> dict[str, Any]:
    engine = get_engine(text_param(params, "engineId"))
    result = await engine.run(*list_param(params, "args"), **object_param(params, "options"))
    metrics = engine.metrics
    return {
        "result": result,
        "metrics": {"total": metrics.total, "inference": metrics.inference} if metrics is not None else None,
    }


async def _run_with_generator(params: Params, caller: Call) -> None:
    engine = get_engine(text_param(params, "engineId"))
    async for chunk in engine.run_with_generator(*list_param(params, "args"), **object_param(params, "options")):
        caller.chunk(chunk)


async def _terminate(params: Params, _call: Call) -> None:
    for engine in list_engines():
        if engine.engine_id == text_param(params, "engineId"):
            await engine.terminate()


async def _list_engines(_params: Params, _call: Call) -> list[dict[str, Any]]:
    return [_engine_data(engine) for engine in list_engines()]


async def _sync_settings(params: Params, _call: Call) -> dict[str, Any]:
    settings = await _settings()
    collection = params.get("collection")
    results = []
    for name in COLLECTIONS if collection is None else (collection,):
        try:
            results.append(await settings.sync(name))
        except UnknownCollectionError:
            # A server need not have this one.
            if collection is not None or name != ALLOW_DENY_COLLECTION:
                raise
    return {
        "created": [record for result in results for record in result.created],
        "updated": [change for result in results for change in result.updated],
        "deleted": [record for result in results for record in result.deleted],
    }


async def _get_settings(params: Params, _call: Call) -> list[dict[str, Any]]:
    return await (await _settings()).get(text_param(params, "collection"))


async def _watch_settings(_params: Params, caller: Call) -> None:
    """Tell of every sync that changed something, until the caller stops."""

    def tell(collection: str, result: SyncResult) -> None:
        caller.chunk(
            {
                "collection": collection,
                "created": result.created,
                "updated": result.updated,
                "deleted": result.deleted,
            }
        )

    stop = (await _settings()).on_sync(tell)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        stop()


async def _settings() -> RemoteSettings:
    settings = settings_client(await get_platform())
    if settings is None:
        raise SettingsError("No settings server is configured: call configure({settingsServer}) first.")
    return settings


async def _register_task(params: Params, _call: Call) -> list[str]:
    name, source, url = text_param(params, "name"), params.get("source"), params.get("url")
    if isinstance(url, str) and source is None:
        source = await _fetch_text(url)
    elif not isinstance(source, str) or url is not None:
        raise OptionsError("registerTask takes either source or url, each a text.", field="source", value=None)
    before = {known: get_task(known) for known in task_names()}
    module = types.ModuleType(f"pywebml_task_{len(sys.modules)}")
    try:
        # The page's own code, in the page's own origin: the same trust as a script tag.
        exec(compile(source, url or f"<task {name}>", "exec"), module.__dict__)  # noqa: S102
    except Exception as error:
        raise TaskError(f"The source of task '{name}' failed: {type(error).__name__}: {error}", task=name) from error
    added = [known for known in task_names() if get_task(known) is not before.get(known)]
    if name not in added:
        raise TaskError(
            f"The source did not register the task '{name}' (it registered: {', '.join(added) or 'none'}). "
            f"Decorate a class or an async function with @pywebml.task({name!r}).",
            task=name,
        )
    return task_names()


async def _fetch_text(url: str) -> str:
    platform = await get_platform()
    address = urljoin(platform.environment.base_url, url)
    try:
        response = await platform.request(address)
        body = await response.read(MAX_TASK_SOURCE)
    except NetworkError as error:
        raise TaskError(f"The source of a task could not be fetched from {address}: {error}", url=address) from None
    if response.status != 200:
        raise TaskError(
            f"The source of a task could not be fetched: {address} answered {response.status}.", url=address
        )
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TaskError(f"The source of a task at {address} is no UTF-8 text ({error}).", url=address) from None


METHODS: Mapping[str, Callable[[Params, Call], Awaitable[Any]]] = {
    "createEngine": _create_engine,
    "run": _run,
    "runWithGenerator": _run_with_generator,
    "terminate": _terminate,
    "engines.list": _list_engines,
    **MODEL_METHODS,
    "settings.sync": _sync_settings,
    "settings.get": _get_settings,
    "settings.watch": _watch_settings,
    "registerTask": _register_task,
}


def _engine_data(engine: Engine) -> dict[str, Any]:
    return {"engineId": engine.engine_id, "status": engine.status, "options": engine.options.to_dict()}
