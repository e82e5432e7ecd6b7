"""Errors that cross from JavaScript."""

from __future__ import annotations

from typing import Any

from pyodide.ffi import JsException

from pywebml import errors
from pywebml.errors import PywebmlError
from pywebml.platform import NetworkError


def named_error(error: JsException) -> Exception:
    """The Python error for one that crossed from JavaScript."""
    name, message = str(error.name), str(error.message)
    if name == "NetworkError":
        return NetworkError(message)
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, PywebmlError):
        details = getattr(error, "details", None)
        return kind(message, **(details.to_py() if details is not None else {}))
    return PywebmlError(f"Unexpected {name} in the browser: {message}")


async def crossing(promise: Any) -> Any:
    """Await a JavaScript promise; its errors come as ours."""
    try:
        return await promise
    except JsException as error:
        raise named_error(error) from None
