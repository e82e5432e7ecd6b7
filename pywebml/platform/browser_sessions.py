"""Sessions in a Web Worker, driven from Python."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
from pyodide.ffi import to_js

from pywebml.errors import InferenceError
from pywebml.platform import DTYPES, Array, BlobKey, Feed, TensorHandle, TensorInfo
from pywebml.platform.browser_errors import crossing

TYPE_OF_DTYPE = {dtype: name for name, dtype in DTYPES.items()}


class BrowserSessionWorker:
    """One Web Worker with its own runtime."""

    def __init__(self, proxy: Any) -> None:
        self._proxy = proxy

    async def create_session(
        self,
        model: BlobKey,
        *,
        external_data: Mapping[str, BlobKey] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> BrowserSession:
        """See `SessionWorker.create_session`."""
        files = [[name, list(astuple(key))] for name, key in (external_data or {}).items()]
        text = await crossing(
            self._proxy.createSession(to_js(list(astuple(model))), to_js(files), json.dumps(dict(options or {})))
        )
        return BrowserSession(self._proxy, json.loads(text))

    async def settle(self, seconds: float) -> bool:
        """See `SessionWorker.settle`."""
        return bool(await crossing(self._proxy.settle(int(seconds * 1000))))

    def terminate(self) -> None:
        """See `SessionWorker.terminate`."""
        self._proxy.terminate()


class BrowserSession:
    """A model in a session worker."""

    def __init__(self, worker: Any, loaded: dict[str, Any]) -> None:
        self._worker = worker
        self._session: int = loaded["session"]
        self.inputs: Sequence[TensorInfo] = [_tensor_info(values) for values in loaded["inputs"]]
        self.outputs: Sequence[TensorInfo] = [_tensor_info(values) for values in loaded["outputs"]]
        self.total_run_ms = 0.0
        self._released = False

    async def run(
        self,
        feeds: Mapping[str, Feed],
        *,
        outputs: Collection[str] | None = None,
        keep: Collection[str] = (),
    ) -> dict[str, Feed]:
        """See `Session.run`."""
        described: list[tuple[Any, ...]] = []
        pieces: list[Any] = []
        strings: list[list[str]] = []
        for name, feed in feeds.items():
            if isinstance(feed, BrowserTensorHandle):
                if not feed.belongs_to(self._worker):
                    raise InferenceError(
                        f"Input '{name}' is a tensor in the memory of another engine; fetch() it and feed the array.",
                        input=name,
                    )
                described.append((name, feed.number()))
                continue
            array = _checked_array(name, feed)
            if array.dtype == object:
                strings.append(array.ravel().tolist())
                described.append((name, "string", array.shape, 0))
            else:
                pieces.append(array)
                described.append((name, TYPE_OF_DTYPE[array.dtype], array.shape, array.nbytes))
        # Everything crosses in three pieces, whatever the number of tensors.
        text = json.dumps(
            {
                "session": self._session,
                "feeds": described,
                "outputs": None if outputs is None else list(outputs),
                "keep": list(keep),
            }
        )
        results = await crossing(self._worker.run(text, to_js(b"".join(pieces)), to_js(strings)))
        run_ms, tensors = json.loads(results[0])
        self.total_run_ms += run_ms
        return {
            name: _from_payload(kind, shape, results[index])
            if handle is None
            else BrowserTensorHandle(self._worker, handle, kind, tuple(shape))
            for index, (name, kind, shape, handle) in enumerate(tensors, start=1)
        }

    async def release(self) -> None:
        """See `Session.release`."""
        if not self._released:
            self._released = True
            await crossing(self._worker.releaseSession(self._session))


class BrowserTensorHandle:
    """A tensor that stayed in a session worker."""

    def __init__(self, worker: Any, handle: int, kind: str, shape: tuple[int, ...]) -> None:
        self._worker = worker
        self._handle = handle
        self._released = False
        self.type = kind
        self.shape = shape

    def belongs_to(self, worker: Any) -> bool:
        """Whether it lies in this worker's memory."""
        return self._worker is worker

    def number(self) -> int:
        """What the worker calls it.

        Raises:
            InferenceError: It was released.
        """
        if self._released:
            raise InferenceError("This tensor was released; its values are gone.", shape=list(self.shape))
        return self._handle

    async def fetch(self) -> Array:
        """See `TensorHandle.fetch`."""
        results = await crossing(self._worker.fetchTensor(self.number()))
        _, ((_, kind, shape, _),) = json.loads(results[0])
        return _from_payload(kind, shape, results[1])

    def release(self) -> None:
        """See `TensorHandle.release`."""
        if not self._released:
            self._released = True
            self._worker.releaseTensor(self._handle)


def _checked_array(name: str, feed: Array | TensorHandle) -> Array:
    """The array, contiguous and in the machine's byte order; texts as Python strings."""
    if not isinstance(feed, np.ndarray):
        raise InferenceError(
            f"Input '{name}' is a {type(feed).__name__}; give a numpy array, or a tensor of the same session worker.",
            input=name,
        )
    if feed.dtype in TYPE_OF_DTYPE and feed.flags.c_contiguous and feed.dtype != object:
        return feed
    if feed.dtype.kind in "OUT":
        texts: Array = feed.astype(object)
        if not all(isinstance(item, str) for item in texts.flat):
            raise InferenceError(f"Input '{name}' has elements that are not texts.", input=name)
        return texts
    native = feed.astype(feed.dtype.newbyteorder("="), copy=False)
    if native.dtype not in TYPE_OF_DTYPE:
        raise InferenceError(
            f"Input '{name}' has the dtype {feed.dtype}, which no model takes; use one of {', '.join(DTYPES)}.",
            input=name,
        )
    return np.ascontiguousarray(native).reshape(feed.shape)


def _from_payload(kind: str, shape: list[int], payload: Any) -> Array:
    if kind == "string":
        return np.array(payload.to_py(), dtype=object).reshape(shape)
    array: Array = np.empty(shape, dtype=DTYPES[kind])
    if array.nbytes:
        payload.assign_to(array.reshape(-1).view(np.uint8))
    return array


def _tensor_info(values: dict[str, Any]) -> TensorInfo:
    return TensorInfo(values["name"], values["type"], tuple(values["shape"]))
