"""Calls from the page: JavaScript messages in, plain Python calls, JavaScript messages out."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from pyodide.ffi import to_js

from pywebml.errors import PywebmlError
from pywebml.platform import NetworkError
from pywebml.platform.rpc import Handler
from pywebml.platform.rpc_values import encode
from pywebml.progress import ProgressEvent

_PLAIN = (str, int, float, bool, list, dict, type(None))


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

    async def answer(call: _Call, method: str, params: Mapping[str, Any]) -> None:
        calls[call.number] = call
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
        finally:
            del calls[call.number]

    def receive(number: int, method: str | None, params: Any) -> None:
        if method is None:
            if number in calls:
                calls[number].abort()
            return
        call = _Call(channel, number)
        call.task = _eager_task(answer(call, method, params.to_py()))

    return receive


def _eager_task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    # The first step runs at once instead of in a turn of the event loop of its own. (The type checker looks at the
    # oldest supported Python; Pyodide's has this since 3.12.)
    options: dict[str, Any] = {"eager_start": True}
    return asyncio.Task(work, loop=asyncio.get_running_loop(), **options)


class _Call:
    def __init__(self, channel: Any, number: int) -> None:
        self._channel = channel
        self.number = number
        self.task: asyncio.Task[None] | None = None

    def abort(self) -> None:
        if self.task is not None:
            self.task.cancel()

    def progress(self, event: ProgressEvent) -> None:
        self.post("progress", event.to_dict())

    def chunk(self, value: Any) -> None:
        self.post("chunk", value)

    def post(self, kind: str, value: Any) -> None:
        text, packed, handed = encode(value)
        self._channel.post(self.number, kind, text, to_js(packed), to_js(handed))


def _error_data(name: str, message: str, details: dict[str, Any]) -> dict[str, Any]:
    plain = {key: value if isinstance(value, _PLAIN) else repr(value) for key, value in details.items()}
    return {"name": name, "message": message, "details": plain}
