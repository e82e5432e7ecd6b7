"""Calls from the page: JavaScript messages in, plain Python calls, JavaScript messages out."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import js
import numpy as np
from pyodide.ffi import JsProxy, to_js

from pywebml.errors import PywebmlError
from pywebml.platform import DTYPES, Array, NetworkError
from pywebml.platform.rpc import Handler
from pywebml.progress import ProgressEvent

_TYPED_ARRAYS = {
    "float32": "Float32Array",
    "float64": "Float64Array",
    "int8": "Int8Array",
    "uint8": "Uint8Array",
    "int16": "Int16Array",
    "uint16": "Uint16Array",
    "int32": "Int32Array",
    "uint32": "Uint32Array",
    "int64": "BigInt64Array",
    "uint64": "BigUint64Array",
    # Not every browser has an array for these, so their bits cross in one of the same size.
    "float16": "Uint16Array",
    "bool": "Uint8Array",
}
_PLAIN = (str, int, float, bool, list, dict, type(None))
_TYPE_OF_DTYPE = {dtype: name for name, dtype in DTYPES.items()}


def serve(channel: Any, handler: Handler) -> Callable[[int, str | None, Any], None]:
    """Answer calls with `handler`.

    Args:
        channel: Its `post(id, kind, value)` sends to the page.
        handler: Gets method name and parameters; its result, or its error, goes back.

    Returns:
        The function that takes messages from the page: number of the call, method and parameters; without a method
        the page no longer wants the answer.
    """
    calls: dict[int, _Call] = {}

    def receive(number: int, method: str | None, params: Any) -> None:
        if method is None:
            if number in calls:
                calls[number].abort()
            return
        call = _Call(channel, number)
        calls[number] = call
        call.task = _eager_task(_answer(call, handler, method, params.to_py()))
        call.task.add_done_callback(lambda _: calls.pop(number))

    return receive


def _eager_task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    # The first step runs at once instead of in a turn of the event loop of its own. (The type checker looks at the
    # oldest supported Python; Pyodide's has this since 3.12.)
    options: dict[str, Any] = {"eager_start": True}
    return asyncio.Task(work, loop=asyncio.get_running_loop(), **options)


class _Call:
    def __init__(self, channel: Any, number: int) -> None:
        self._channel = channel
        self._number = number
        self.task: asyncio.Task[None] | None = None

    def abort(self) -> None:
        if self.task is not None:
            self.task.cancel()

    def progress(self, event: ProgressEvent) -> None:
        self.post("progress", event.to_dict())

    def chunk(self, value: Any) -> None:
        self.post("chunk", value)

    def post(self, kind: str, value: Any) -> None:
        self._channel.post(self._number, kind, to_js_value(value))


async def _answer(call: _Call, handler: Handler, method: str, params: Mapping[str, Any]) -> None:
    try:
        call.post("result", await handler(method, params, call))
    except PywebmlError as error:
        call.post("error", _error_data(type(error).__name__, error.message, error.details))
    except NetworkError as error:
        call.post("error", _error_data("PywebmlError", f"The network failed: {error}", {}))
    except Exception as error:
        # A fault of ours, or of a registered task: the page gets what a report needs.
        details = {"traceback": traceback.format_exc()}
        call.post("error", _error_data("PywebmlError", f"Unexpected {type(error).__name__}: {error}", details))


def _error_data(name: str, message: str, details: dict[str, Any]) -> dict[str, Any]:
    plain = {key: value if isinstance(value, _PLAIN) else repr(value) for key, value in details.items()}
    return {"name": name, "message": message, "details": plain}


def to_js_value(value: Any) -> Any:
    """Plain data for the page: dicts become objects, arrays become `{dims, type, data}` with a typed array."""
    return to_js(_plain(value), dict_converter=js.Object.fromEntries)


def _plain(value: Any) -> Any:
    # Arrays are taken out first: `to_js` itself would make lists of lists of them.
    if isinstance(value, np.ndarray):
        return _tensor(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, str | int | float | bool | bytes | JsProxy):
        return value
    raise PywebmlError(
        f"A result of type {type(value).__name__} cannot be sent to the page; give plain data or numpy arrays.",
        type=type(value).__name__,
    )


def _tensor(array: Array) -> Any:
    if array.dtype.kind in "OU":
        kind, data = "string", to_js(array.ravel().tolist())
    else:
        kind = _TYPE_OF_DTYPE[array.dtype]
        data = getattr(js, _TYPED_ARRAYS[kind]).new(array.size)
        if array.size:
            data.assign(_bits(np.ascontiguousarray(array)).reshape(-1))
    return js.Object.fromEntries(to_js([["dims", list(array.shape)], ["type", kind], ["data", data]]))


def _bits(array: Array) -> Array:
    same_bits = {"float16": np.uint16, "bool": np.uint8}
    return array.view(same_bits[array.dtype.name]) if array.dtype.name in same_bits else array
