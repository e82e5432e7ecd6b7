"""Parameters of the calls from a page, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from pywebml.errors import OptionsError

Params: TypeAlias = "Mapping[str, Any]"


def text_param(params: Params, name: str) -> str:
    """A text that is not empty. Raises `OptionsError`."""
    value = params.get(name)
    if not isinstance(value, str) or not value:
        raise OptionsError(
            f"'{name}' is missing or no text: give a text that is not empty.", field=name, value=repr(value)
        )
    return value


def optional_text_param(params: Params, name: str) -> str | None:
    """A text that is not empty, or None. Raises `OptionsError`."""
    return None if params.get(name) is None else text_param(params, name)


def boolean_param(params: Params, name: str, default: bool) -> bool:
    """True or False. Raises `OptionsError`."""
    value = params.get(name)
    if value is not None and not isinstance(value, bool):
        raise OptionsError(f"'{name}' must be true or false.", field=name, value=repr(value))
    return default if value is None else value


def list_param(params: Params, name: str) -> list[Any]:
    """A list. Raises `OptionsError`."""
    value = params.get(name)
    if not isinstance(value, list):
        raise OptionsError(f"'{name}' must be a list.", field=name, value=repr(value))
    return value


def object_param(params: Params, name: str) -> dict[str, Any]:
    """An object. Raises `OptionsError`."""
    value = params.get(name)
    if not isinstance(value, dict):
        raise OptionsError(f"'{name}' must be an object.", field=name, value=repr(value))
    return value
