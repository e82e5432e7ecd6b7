"""Waiting for JavaScript: its errors come as ours, and a promise is never cancelled, only what it stands for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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


async def owned(promise: Any, give_back: Callable[[Any], Any]) -> Any:
    """Await something that has to be given back; when that is cancelled, it is given back as soon as it is there.

    The promise itself is never cancelled: Python would lose what it resolves to.
    """
    work = asyncio.ensure_future(crossing(promise))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        work.add_done_callback(lambda done: None if done.exception() else give_back(done.result()))
        raise


async def abortable(promise: Any, controller: Any) -> Any:
    """Await something that `controller`, an `AbortController`, stops when this is cancelled."""
    work = asyncio.ensure_future(crossing(promise))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        controller.abort()
        # Only when JavaScript has let go may the caller drop what it passed.
        await asyncio.wait([work])
        work.exception()
        raise
