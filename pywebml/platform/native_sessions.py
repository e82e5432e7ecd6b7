"""Sessions of the native platform: onnxruntime, in one thread per session worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from pywebml.errors import (
    InferenceError,
    ModelLoadError,
    OptionsError,
    RuntimeStartError,
    SessionClosedError,
)
from pywebml.platform import DTYPES, Array, BlobKey, Feed, TensorInfo
from pywebml.platform.native_store import FileStorage

Result = TypeVar("Result")

# The runtime's type names, where they are not ONNX's.
_ONNX_TYPES = {"float": "float32", "double": "float64"}
_OPTIMIZATION_LEVELS = {
    "disabled": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_FATAL_ONLY = 4


def _import_runtime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeStartError(
            f'ONNX Runtime cannot be imported ({error}). Install it with: pip install "pywebml[native]"'
        ) from error
    module: ModuleType = onnxruntime
    return module


def _element_type(runtime_type: str) -> str:
    """`tensor(float)` to `float32`; empty for what is not a tensor."""
    if not (runtime_type.startswith("tensor(") and runtime_type.endswith(")")):
        return ""
    name = runtime_type[len("tensor(") : -1]
    return _ONNX_TYPES.get(name, name)


def _tensor_infos(arguments: Collection[Any]) -> tuple[TensorInfo, ...]:
    """The runtime's descriptions; a dimension without number and name has the empty name."""
    return tuple(
        TensorInfo(
            name=argument.name,
            type=_element_type(argument.type),
            shape=tuple("" if size is None else size for size in argument.shape or ()),
        )
        for argument in arguments
    )


class NativeTensorHandle:
    """A tensor in the runtime's memory.

    The runtime's Python binding cannot make string tensors, so those are kept as numpy arrays.
    """

    def __init__(self, worker: NativeSessionWorker, value: Any, tensor_type: str, shape: tuple[int, ...]) -> None:
        self.type = tensor_type
        self.shape = shape
        self.worker = worker
        self._value: Any = value
        worker.adopt(self)

    def value(self) -> Any:
        """The `OrtValue`, or the array of strings."""
        self.worker.check_open()
        if self._value is None:
            raise InferenceError("This tensor handle was released. Keep the output of another run to get a new one.")
        return self._value

    async def fetch(self) -> Array:
        """Copy it out."""
        value = self.value()
        if isinstance(value, np.ndarray):
            return value.copy()
        return await self.worker.do(lambda: _to_numpy(value))

    def release(self) -> None:
        """Free its memory."""
        self._value = None


def _to_numpy(value: Any) -> Array:
    array: Array = value.numpy()
    return array


class NativeSession:
    """One model in onnxruntime."""

    def __init__(self, worker: NativeSessionWorker, runtime: ModuleType, session: Any) -> None:
        self.inputs: Sequence[TensorInfo] = _tensor_infos(session.get_inputs())
        self.outputs: Sequence[TensorInfo] = _tensor_infos(session.get_outputs())
        self.total_run_ms = 0.0
        self._worker = worker
        self._runtime = runtime
        self._session: Any = session

    async def run(
        self,
        feeds: Mapping[str, Feed],
        *,
        outputs: Collection[str] | None = None,
        keep: Collection[str] = (),
    ) -> dict[str, Feed]:
        """Run the model; see `pywebml.platform.Session`."""
        self._worker.check_open()
        session = self._session
        if session is None:
            raise SessionClosedError("This session was released; create a new one.")
        values = self._check_feeds(feeds)
        names = self._check_outputs(outputs, keep)
        run_options = self._runtime.RunOptions()
        run_options.log_severity_level = _FATAL_ONLY

        def work() -> tuple[dict[str, Any], float]:
            start = time.perf_counter()
            try:
                results = self._compute(session, names, values, run_options)
            except Exception as error:
                raise InferenceError(f"The model could not be run. ONNX Runtime says: {error}") from error
            elapsed = (time.perf_counter() - start) * 1000
            return {
                name: self._hand_out(name, value, name in keep) for name, value in zip(names, results, strict=True)
            }, elapsed

        def stop() -> None:
            run_options.terminate = True

        answer, elapsed = await self._worker.do(work, stop)
        self.total_run_ms += elapsed
        return answer

    async def release(self) -> None:
        """Free the session."""
        self.release_now()

    def release_now(self) -> None:
        """Drop the runtime's session; a run that still goes on holds it until it ends."""
        self._session = None

    def _check_feeds(self, feeds: Mapping[str, Feed]) -> dict[str, Any]:
        """The feeds as the runtime wants them: numpy arrays and `OrtValue`s."""
        known = {info.name: info for info in self.inputs}
        missing = [name for name in known if name not in feeds]
        extra = [name for name in feeds if name not in known]
        if missing or extra:
            raise InferenceError(
                f"The model's inputs are {sorted(known)}, but "
                + " and ".join(
                    words
                    for words in (
                        f"{missing} are missing" if missing else "",
                        f"{extra} are not among them" if extra else "",
                    )
                    if words
                )
                + ". Feed exactly the model's inputs.",
                missing=missing,
                extra=extra,
            )
        return {name: self._check_feed(known[name], feed) for name, feed in feeds.items()}

    def _check_feed(self, info: TensorInfo, feed: object) -> Any:
        if isinstance(feed, NativeTensorHandle):
            if feed.worker is not self._worker:
                raise InferenceError(
                    f"Input {info.name!r} is a tensor handle of another session worker. Fetch it, feed the array."
                )
            value, given = feed.value(), feed.type
        elif isinstance(feed, np.ndarray):
            value, given = _native_array(info.name, feed)
        else:
            raise InferenceError(
                f"Input {info.name!r} is a {type(feed).__name__}; feed a numpy array or a tensor handle."
            )
        if info.type and given != info.type:
            raise InferenceError(
                f"Input {info.name!r} has type {given}, but the model expects {info.type}. Convert the array first.",
                input=info.name,
                expected=info.type,
                received=given,
            )
        return value

    def _check_outputs(self, outputs: Collection[str] | None, keep: Collection[str]) -> list[str]:
        known = [info.name for info in self.outputs]
        wanted = known if outputs is None else list(dict.fromkeys(outputs))
        unknown = [name for name in wanted if name not in known]
        if unknown or not wanted:
            raise InferenceError(f"The model's outputs are {known}, not {unknown}. Ask for at least one of these.")
        not_computed = [name for name in keep if name not in wanted]
        if not_computed:
            raise InferenceError(f"Outputs {not_computed} cannot be kept: this run computes {wanted}.")
        return wanted

    def _compute(self, session: Any, names: list[str], values: Mapping[str, Any], run_options: Any) -> list[Any]:
        if any(isinstance(value, np.ndarray) and value.dtype == object for value in values.values()):
            # Only this call takes strings; it answers with arrays.
            arrays: list[Any] = session.run(names, values, run_options)
            return arrays
        ort_values = {
            name: self._runtime.OrtValue.ortvalue_from_numpy(value) if isinstance(value, np.ndarray) else value
            for name, value in values.items()
        }
        results: list[Any] = session.run_with_ort_values(names, ort_values, run_options)
        return results

    def _hand_out(self, name: str, value: Any, keep: bool) -> Feed:
        if isinstance(value, np.ndarray):
            if not keep:
                return value
            if value.dtype == object:
                return NativeTensorHandle(self._worker, value, "string", value.shape)
            value = self._runtime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value))
        elif isinstance(value, list | dict) or not value.is_tensor():
            raise InferenceError(f"Output {name!r} of the model is not a tensor, which is all that can be handed out.")
        element_type = _element_type(value.data_type())
        if not keep:
            return _to_numpy(value)
        if element_type == "string":
            return NativeTensorHandle(self._worker, _to_numpy(value), "string", tuple(value.shape()))
        return NativeTensorHandle(self._worker, value, element_type, tuple(value.shape()))


_TYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def _native_array(name: str, array: Array) -> tuple[Array, str]:
    """An array in the byte order and layout that the runtime reads, and its ONNX type."""
    if array.dtype.kind in "OUT":
        strings = array.astype(object)
        wrong = next((item for item in strings.flat if not isinstance(item, str)), None)
        if wrong is not None or (array.dtype.kind == "O" and any(item is None for item in strings.flat)):
            raise InferenceError(
                f"Input {name!r} is an array of Python objects with a {type(wrong).__name__} in it. String "
                "tensors hold str only, and numbers need a numeric dtype."
            )
        return np.ascontiguousarray(strings).reshape(array.shape), "string"
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    given = _TYPE_NAMES.get(native.dtype)
    if given is None:
        raise InferenceError(
            f"Input {name!r} has dtype {array.dtype}, which is no ONNX type. Use one of {list(DTYPES)}.",
            input=name,
            received=str(array.dtype),
        )
    # ascontiguousarray makes one dimension out of none; reshape takes that back.
    return np.ascontiguousarray(native).reshape(array.shape), given


def _session_options(runtime: ModuleType, options: Mapping[str, Any], num_threads: int) -> Any:
    """The platform's session options in the runtime's own form. Raises `OptionsError`."""
    made = runtime.SessionOptions()
    made.intra_op_num_threads = num_threads
    made.inter_op_num_threads = 1
    made.log_severity_level = _FATAL_ONLY
    for field, value in options.items():
        if field == "graphOptimizationLevel" and isinstance(value, str) and value in _OPTIMIZATION_LEVELS:
            made.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, _OPTIMIZATION_LEVELS[value])
        elif field == "freeDimensionOverrides" and _is_table(value, int):
            for symbol, size in value.items():
                made.add_free_dimension_override_by_name(symbol, size)
        elif field == "extra" and _is_table(value, str):
            for name, entry in value.items():
                made.add_session_config_entry(name, entry)
        else:
            raise OptionsError(
                f"The session option {field!r} cannot be {value!r}. There are graphOptimizationLevel "
                f"({', '.join(_OPTIMIZATION_LEVELS)}), freeDimensionOverrides (symbol to number) and extra "
                "(name to text).",
                field=field,
                value=repr(value),
            )
    return made


def _is_table(value: object, kind: type) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(entry, kind) and not isinstance(entry, bool)
        for name, entry in value.items()
    )


def _external_path(name: str) -> PurePosixPath:
    """The name of an external data file, as a path that stays inside the model's folder."""
    path = PurePosixPath(name)
    if not name or "\\" in name or "\0" in name or ":" in name or path.is_absolute() or ".." in path.parts:
        raise ModelLoadError(
            f"The external data file {name!r} is not a plain relative path, so the model cannot be loaded."
        )
    return path


def _place(source: Path, target: Path) -> None:
    """Put a stored file under another name without copying it, where the file system can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)


class NativeSessionWorker:
    """A thread with sessions in it."""

    def __init__(self, storage: FileStorage, runtime: ModuleType, num_threads: int) -> None:
        self._storage = storage
        self._runtime = runtime
        self._num_threads = num_threads
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pywebml-session")
        self._pending: dict[asyncio.Future[Any], Callable[[], None]] = {}
        self._sessions: weakref.WeakSet[NativeSession] = weakref.WeakSet()
        self._handles: weakref.WeakSet[NativeTensorHandle] = weakref.WeakSet()
        self._open = True

    @classmethod
    async def start(cls, storage: FileStorage, num_threads: int) -> NativeSessionWorker:
        """Import the runtime and make a worker. Raises `RuntimeStartError`."""
        if num_threads < 1:
            raise RuntimeStartError(f"num_threads is {num_threads}, but at least one thread is needed.")
        runtime = await asyncio.to_thread(_import_runtime)
        return cls(storage, runtime, num_threads)

    async def create_session(
        self,
        model: BlobKey,
        *,
        external_data: Mapping[str, BlobKey] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> NativeSession:
        """Load a stored model; see `pywebml.platform.SessionWorker`."""
        self.check_open()
        session_options = _session_options(self._runtime, options or {}, self._num_threads)
        # The runtime looks for external data beside the model, and the store's names are hashes: so both get
        # their own names in a folder of their own, where nothing else can be found either.
        name = "model.ort" if model.path.endswith(".ort") else "model.onnx"
        places = {PurePosixPath(name): model}
        for location, key in (external_data or {}).items():
            places[_external_path(location)] = key
        if len(places) != 1 + len(external_data or {}):
            raise ModelLoadError(f"Two of the files {[name, *(external_data or {})]} have the same name.")

        def place() -> Path:
            folder = self._storage.scratch_path()
            folder.mkdir()
            try:
                for path, key in places.items():
                    target = folder / path
                    self._storage.use(key, lambda source, target=target: _place(source, target))  # type: ignore[misc]
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            return folder

        def load(folder: Path) -> Any:
            try:
                return self._runtime.InferenceSession(
                    str(folder / name), sess_options=session_options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                raise ModelLoadError(
                    f"The model {model.path!r} of {model.owner!r} ({model.revision!r}) could not be loaded. "
                    f"ONNX Runtime says: {error}",
                    file=model.path,
                ) from error
            finally:
                # The runtime has opened what it needs; where an open file cannot be removed, it goes with the
                # writer's folder.
                shutil.rmtree(folder, ignore_errors=True)

        def stop() -> None:
            session_options.set_load_cancellation_flag(True)

        def work() -> Any:
            return load(self._storage.block(place))

        session = NativeSession(self, self._runtime, await self.do(work, stop))
        self._sessions.add(session)
        return session

    async def do(self, work: Callable[[], Result], stop: Callable[[], None] = lambda: None) -> Result:
        """Do `work` in the worker's thread.

        Args:
            work: Blocking work.
            stop: Asks the runtime to end `work` early: on `terminate` and when the caller is cancelled.
        """
        self.check_open()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Result] = loop.create_future()

        def pass_on(job: Future[Result]) -> None:
            if answer.done():
                return
            error = job.exception()
            if error is None:
                answer.set_result(job.result())
            else:
                answer.set_exception(error)

        def notify(job: Future[Result]) -> None:
            # The loop can be closed before the thread is ready; then nobody waits any more.
            if not job.cancelled():
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(pass_on, job)

        self._pending[answer] = stop
        job = self._thread.submit(work)
        job.add_done_callback(notify)
        try:
            return await answer
        except asyncio.CancelledError:
            job.cancel()
            stop()
            raise
        finally:
            self._pending.pop(answer, None)

    async def settle(self, seconds: float) -> bool:
        """See `SessionWorker.settle`. What waits in the thread's queue is behind everything that computes."""
        try:
            await asyncio.wait_for(self.do(lambda: None), seconds)
        except TimeoutError:
            return False
        except SessionClosedError:
            pass
        return True

    def adopt(self, handle: NativeTensorHandle) -> None:
        """Take a handle into those whose memory goes with the worker."""
        self._handles.add(handle)

    def check_open(self) -> None:
        """Raise `SessionClosedError` after `terminate`."""
        if not self._open:
            raise SessionClosedError("The session worker was terminated; start a new one.")

    def terminate(self) -> None:
        """Stop at once: pending calls raise, and what the thread still works on is dropped when it ends."""
        if not self._open:
            return
        self._open = False
        for answer, stop in list(self._pending.items()):
            stop()
            if not answer.done():
                answer.set_exception(SessionClosedError("The session worker was terminated in this call."))
        self._thread.shutdown(wait=False, cancel_futures=True)
        for session in list(self._sessions):
            session.release_now()
        for handle in list(self._handles):
            handle.release()
