"""Which records are meant for this user: `filter_expression`, after the whole collection has been verified."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from pywebml.platform import Environment
from pywebml.settings.jexl import JexlError, evaluate, truthy
from pywebml.version import __version__

_logger = logging.getLogger("pywebml")


def filter_context(environment: Environment, values: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What expressions can see, as `env`.

    | name | value |
    |---|---|
    | `version` | of pywebml |
    | `channel` | `release` |
    | `locale` | BCP 47 tag, such as `en-US` |
    | `country` | empty, unless given in `values`: nobody is asked where the user is |
    | `formFactor` | `desktop`, or `phone` on Android and iOS |
    | `os.name` | as Firefox calls it: `Linux`, `Darwin`, `WINNT`, `Android`, `iOS`; empty when unknown |
    | `appinfo.ID`, `appinfo.OS` | `pywebml`, and `os.name` again |
    | `platform` | `browser` or `native` |
    | `deviceMemory` | GiB; missing when unknown |
    | `hardwareConcurrency` | logical processors |
    | `crossOriginIsolated` | whether the runtime may use threads |
    | `webgpu` | whether the browser has WebGPU |
    | `runtimeVersion` | of the ONNX Runtime that this build drives |

    Args:
        environment: Of the platform.
        values: Laid over these.
    """
    os_name = environment.os_name
    context = {
        "version": __version__,
        "channel": "release",
        "locale": environment.locale,
        "country": "",
        "formFactor": "phone" if os_name in {"Android", "iOS"} else "desktop",
        "os": {"name": os_name},
        "appinfo": {"ID": "pywebml", "OS": os_name},
        "platform": environment.name,
        "deviceMemory": environment.device_memory,
        "hardwareConcurrency": environment.hardware_concurrency,
        "crossOriginIsolated": environment.cross_origin_isolated,
        "webgpu": environment.webgpu,
        "runtimeVersion": environment.runtime_version,
        **(values or {}),
    }
    return {name: value for name, value in context.items() if value is not None}


def record_matches(record: Mapping[str, Any], context: Mapping[str, Any]) -> bool:
    """Whether a record's `filter_expression` lets it pass.

    No expression, or an empty one, does; one that cannot be evaluated does not. Any value that JavaScript takes for
    true counts, as in Firefox.
    """
    expression = record.get("filter_expression")
    if expression is None or expression == "":
        return True
    if not isinstance(expression, str):
        return False
    try:
        return truthy(evaluate(expression, {"env": context}))
    except JexlError as error:
        _logger.debug("The filter of record %s is not usable: %s", record.get("id"), error)
        return False


def filter_records(records: Iterable[dict[str, Any]], context: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those that match, in their order."""
    return [record for record in records if record_matches(record, context)]
