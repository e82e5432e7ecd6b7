"""What the page can ask about models: the Python side of `pywebml.models` in JavaScript."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pywebml.errors import OptionsError
from pywebml.hub import ModelInfo, Selection, StoredFile, Verification
from pywebml.library import is_cached, plan, prefetch, stored_models
from pywebml.options import PipelineOptions, get_configuration
from pywebml.planning import Plan
from pywebml.platform import get_platform
from pywebml.platform.rpc import Call
from pywebml.platform.rpc_values import Handed
from pywebml.transfer import export_models, import_models, storage_usage
from pywebml.worker_params import Params, boolean_param, list_param, object_param, optional_text_param, text_param

# In JavaScript's names, which are those of an engine's options too.
_SELECTION = {
    "hub": "hub",
    "model": "model",
    "revision": "revision",
    "taskName": "task_name",
    "engineId": "engine_id",
}


async def _list(params: Params, _call: Call) -> list[dict[str, Any]]:
    return [_model_data(model) for model in await (await stored_models()).models(_selection(params))]


async def _files(params: Params, _call: Call) -> list[dict[str, Any]]:
    return [_file_data(file) for file in await (await stored_models()).files(_selection(params))]


async def _delete(params: Params, _call: Call) -> int:
    return await (await stored_models()).delete(_selection(params))


async def _purge(params: Params, _call: Call) -> int:
    selection = _selection(params)
    if selection.model is None:
        raise OptionsError("Say of which model: give 'model'.", field="model", value=None)
    keep = [str(revision) for revision in list_param(params, "keep")]
    return await (await stored_models()).purge_revisions(selection.model, keep, selection)


async def _pin(params: Params, _call: Call) -> int:
    return await (await stored_models()).pin(_selection(params), boolean_param(params, "pinned", True))


async def _verify(params: Params, caller: Call) -> list[dict[str, Any]]:
    def tell(checked: Verification) -> None:
        caller.chunk(_verification_data(checked))

    return [_verification_data(c) for c in await (await stored_models()).verify(_selection(params), tell)]


async def _usage(_params: Params, _call: Call) -> dict[str, Any]:
    usage = await storage_usage()
    allowed = 0 if usage.available is None else usage.files + usage.drafts + usage.available
    return {
        "used": usage.files,
        "unfinished": usage.drafts,
        "available": usage.available,
        "allowed": allowed,
        "limit": get_configuration().max_cache_bytes,
    }


async def _drop_unfinished(_params: Params, _call: Call) -> None:
    await (await get_platform()).blobs.drop_drafts()


async def _plan(params: Params, _call: Call) -> dict[str, Any]:
    return _plan_data(await plan(_options(params)))


async def _is_cached(params: Params, _call: Call) -> bool:
    return await is_cached(_options(params))


async def _prefetch(params: Params, caller: Call) -> dict[str, Any]:
    return _plan_data(await prefetch(_options(params), on_progress=caller.progress))


async def _export(params: Params, _call: Call) -> Any:
    target = params.get("target")
    archive = text_param(params, "kind") == "archive"
    result = await export_models(_selection(params), target=target, archive=archive)
    return None if result is None else Handed(result)


async def _import(params: Params, caller: Call) -> list[dict[str, Any]]:
    imported = await import_models(params.get("source"), on_progress=caller.progress)
    return [{"model": model, "revision": revision} for model, revision in imported]


MODEL_METHODS: Mapping[str, Callable[[Params, Call], Awaitable[Any]]] = {
    "models.list": _list,
    "models.files": _files,
    "models.delete": _delete,
    "models.purge": _purge,
    "models.pin": _pin,
    "models.verify": _verify,
    "models.usage": _usage,
    "models.dropUnfinished": _drop_unfinished,
    "models.plan": _plan,
    "models.isCached": _is_cached,
    "models.prefetch": _prefetch,
    "models.export": _export,
    "models.import": _import,
}


def _selection(params: Params) -> Selection:
    given = object_param(params, "selection")
    for name in given:
        if name not in _SELECTION:
            near = difflib.get_close_matches(name, _SELECTION, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(_SELECTION)}."
            raise OptionsError(f"Models cannot be selected by '{name}'. {hint}", field=name, value=None)
    return Selection(**{field: optional_text_param(given, name) for name, field in _SELECTION.items()})


def _options(params: Params) -> PipelineOptions:
    return PipelineOptions.from_mapping(object_param(params, "options"))


def _model_data(model: ModelInfo) -> dict[str, Any]:
    return {
        "hub": model.hub,
        "model": model.model,
        "revision": model.revision,
        "files": model.files,
        "size": model.size,
        "tasks": list(model.task_names),
        "engines": list(model.engine_ids),
        "updated": model.updated,
        "lastUsed": model.last_used,
        "verified": model.verified,
        "pinned": model.pinned,
    }


def _file_data(file: StoredFile) -> dict[str, Any]:
    return {
        "hub": file.hub,
        "model": file.model,
        "revision": file.revision,
        "path": file.path,
        "size": file.size,
        "sha256": file.sha256,
        "updated": file.updated,
        "lastUsed": file.last_used,
        "verified": file.verified,
        "pinned": file.pinned,
        "uses": [{"taskName": task, "engineId": engine} for task, engine in file.uses],
    }


def _verification_data(checked: Verification) -> dict[str, Any]:
    return {**_file_data(checked.file), "ok": checked.ok}


def _plan_data(planned: Plan) -> dict[str, Any]:
    return {
        "options": planned.options.to_dict(),
        "total": planned.total,
        "missing": planned.missing,
        "isCached": planned.is_cached,
        "files": [
            {
                **dataclasses.asdict(file.file),
                "size": file.size,
                "stored": file.stored,
                "loaded": file.loaded,
            }
            for file in planned.files
        ],
    }
