"""What every platform's sessions must do.

Each function takes a platform, a way to start a session worker on it, and the stored files of
`make_models.py` by name. It terminates every worker that it starts.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pywebml.errors import InferenceError, ModelLoadError, SessionClosedError, StoreError
from pywebml.platform import DTYPES, BlobKey, Feed, Platform, SessionWorker
from tests.contract.expect import raises

Start: TypeAlias = Callable[[], Awaitable[SessionWorker]]
Models: TypeAlias = Mapping[str, BlobKey]

FILES = (
    *(f"identity_{name}.onnx" for name in DTYPES),
    "arithmetic.onnx",
    "cache.onnx",
    "scalar.onnx",
    "gather.onnx",
    "endless.onnx",
    "unknown_operator.onnx",
    "external.onnx",
    "external.onnx_data",
    "truncated.onnx",
    "garbage.onnx",
)
FOR_EVER = np.array(2**60, dtype=np.int64)


async def store_models(platform: Platform, read: Callable[[str], Awaitable[bytes]]) -> Models:
    """Put every file of `make_models.py`, which `read` gets by name, into the store."""
    models = {}
    for name in FILES:
        models[name] = BlobKey("model", "contract.example/sessions/models", "main", name)
        writer = await platform.blobs.open_writer(models[name])
        await writer.write(await read(name))
        await writer.finish()
        await writer.commit({})
    return models


@asynccontextmanager
async def started(start: Start) -> AsyncIterator[SessionWorker]:
    worker = await start()
    try:
        yield worker
    finally:
        worker.terminate()


def floats(*rows: list[float]) -> NDArray[Any]:
    return np.array(rows, dtype=np.float32)


def array(feed: Feed) -> NDArray[Any]:
    assert isinstance(feed, np.ndarray), f"{type(feed)} instead of an array"
    return feed


def samples(element_type: str) -> NDArray[Any]:
    """Two columns with the extremes of a type."""
    if element_type == "string":
        return np.array([["plain", ""], ["é ß 日本語", "🙂 line\nbreak"], ["x" * 1000, " "]], dtype=object)
    dtype = DTYPES[element_type]
    if element_type == "bool":
        return np.array([[True, False], [False, True]])
    if dtype.kind == "f":
        info = np.finfo(dtype)
        return np.array([[0.1, -0.0], [info.max, info.tiny], [math.inf, -math.inf]], dtype=dtype)
    limits = np.iinfo(dtype)
    return np.array([[limits.min, limits.max], [0, 1]], dtype=dtype)


async def every_tensor_type_goes_through_unchanged(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker:
        for element_type, dtype in DTYPES.items():
            session = await worker.create_session(models[f"identity_{element_type}.onnx"])
            given = samples(element_type)
            result = array((await session.run({"x": given}))["y"])
            assert result.dtype == dtype, (element_type, result.dtype)
            assert result.shape == given.shape, element_type
            if element_type == "string":
                assert result.tolist() == given.tolist()
            else:
                assert result.tobytes() == given.tobytes(), element_type
            await session.release()


async def numpy_unicode_array_is_a_string_tensor(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker:
        session = await worker.create_session(models["identity_string.onnx"])
        result = array((await session.run({"x": np.array([["ab", "ü"]])}))["y"])
        assert result.dtype == object
        assert result.tolist() == [["ab", "ü"]]


async def model_describes_its_inputs_and_outputs(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker:
        session = await worker.create_session(models["cache.onnx"])
        described = [(info.name, info.type, tuple(info.shape)) for info in session.inputs]
        assert described == [("past", "float32", ("past_length", 2)), ("x", "float32", ("length", 2))]
        assert [(info.name, info.type) for info in session.outputs] == [
            ("present", "float32"),
            ("total", "float32"),
        ]
        assert tuple(session.outputs[0].shape) == ("total_length", 2)
        assert tuple(session.outputs[1].shape) == ()


async def dynamic_shapes_change_from_run_to_run(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker:
        session = await worker.create_session(models["arithmetic.onnx"])
        before = session.total_run_ms
        assert before == 0
        for shape in ((1, 1), (2, 3), (5, 7), (0, 4), (1, 1)):
            a = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
            result = await session.run({"a": a, "b": a + 1})
            assert list(result) == ["sum", "product"]
            assert array(result["sum"]).shape == shape
            assert np.array_equal(array(result["sum"]), a + a + 1)
            assert np.array_equal(array(result["product"]), a * (a + 1))
            assert session.total_run_ms >= before
            before = session.total_run_ms


async def scalar_has_no_dimensions(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker:
        session = await worker.create_session(models["scalar.onnx"])
        result = array((await session.run({"x": np.array(2.5, dtype=np.float32)}))["y"])
        assert (result.shape, result.item()) == ((), 2.5)


async def array_in_any_layout_is_read_right(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker:
        session = await worker.create_session(models["arithmetic.onnx"])
        base = np.arange(12, dtype=np.float32).reshape(3, 4)
        b = np.zeros((4, 3), dtype=np.float32)
        assert np.array_equal(array((await session.run({"a": base.T, "b": b}))["sum"]), base.T)
        reverse = base[::-1, ::2]
        b = np.zeros((3, 2), dtype=np.float32)
        assert np.array_equal(array((await session.run({"a": reverse, "b": b}))["sum"]), reverse)


async def feeds_are_not_changed_and_results_are_the_callers(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker:
        session = await worker.create_session(models["identity_float32.onnx"])
        given = floats([1, 2])
        first = array((await session.run({"x": given}))["y"])
        first += 10
        assert given.tolist() == [[1, 2]]
        assert array((await session.run({"x": given}))["y"]).tolist() == [[1, 2]]
        assert first.tolist() == [[11, 12]]


async def only_the_outputs_asked_for_come_back(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker:
        session = await worker.create_session(models["arithmetic.onnx"])
        feeds: dict[str, Feed] = {"a": floats([2]), "b": floats([3])}
        assert list(await session.run(feeds, outputs=["product"])) == ["product"]
        with raises(InferenceError, "quotient", "product"):
            await session.run(feeds, outputs=["quotient"])


async def kept_tensor_is_fed_to_the_next_run(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker:
        session = await worker.create_session(models["cache.onnx"])
        past: Feed = np.zeros((0, 2), dtype=np.float32)
        for step in range(1, 5):
            result = await session.run({"past": past, "x": floats([step, step])}, keep=["present"])
            present = result["present"]
            assert not isinstance(present, np.ndarray)
            assert (present.type, tuple(present.shape)) == ("float32", (step, 2))
            assert array(result["total"]).item() == step * (step + 1)
            if not isinstance(past, np.ndarray):
                past.release()
            past = present
        assert not isinstance(past, np.ndarray)
        assert (await past.fetch()).tolist() == [[1, 1], [2, 2], [3, 3], [4, 4]]
        assert (await past.fetch()).tolist() == [[1, 1], [2, 2], [3, 3], [4, 4]], "fetch takes nothing away"


async def kept_tensor_of_every_type_can_be_fetched(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker:
        for element_type in DTYPES:
            session = await worker.create_session(models[f"identity_{element_type}.onnx"])
            given = samples(element_type)
            kept = (await session.run({"x": given}, keep=["y"]))["y"]
            assert not isinstance(kept, np.ndarray)
            assert (kept.type, tuple(kept.shape)) == (element_type, given.shape)
            again = (await session.run({"x": kept}, keep=["y"]))["y"]
            assert not isinstance(again, np.ndarray)
            fetched = await again.fetch()
            assert fetched.dtype == DTYPES[element_type]
            assert fetched.tolist() == given.tolist()
            await session.release()


async def kept_tensor_outlives_its_session_but_not_its_release(
    platform: Platform, start: Start, models: Models
) -> None:
    async with started(start) as worker:
        session = await worker.create_session(models["identity_float32.onnx"])
        other = await worker.create_session(models["identity_float32.onnx"])
        kept = (await session.run({"x": floats([1, 2])}, keep=["y"]))["y"]
        assert not isinstance(kept, np.ndarray)
        await session.release()
        assert array((await other.run({"x": kept}))["y"]).tolist() == [[1, 2]]
        kept.release()
        kept.release()
        with raises(InferenceError, "released"):
            await kept.fetch()
        with raises(InferenceError, "released"):
            await other.run({"x": kept})


async def handle_of_another_worker_is_refused(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker, started(start) as stranger:
        session = await worker.create_session(models["identity_float32.onnx"])
        foreign = await stranger.create_session(models["identity_float32.onnx"])
        kept = (await session.run({"x": floats([1, 2])}, keep=["y"]))["y"]
        with raises(InferenceError, "x"):
            await foreign.run({"x": kept})


async def external_data_is_found_by_its_name(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker:
        session = await worker.create_session(
            models["external.onnx"], external_data={"external.onnx_data": models["external.onnx_data"]}
        )
        x = np.ones((2, 512), dtype=np.float32)
        weights = np.arange(2048, dtype=np.float32).reshape(512, 4)
        assert np.allclose(array((await session.run({"x": x}))["y"]), x @ weights)


async def missing_external_data_is_a_load_error(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker:
        with raises(ModelLoadError, "external.onnx"):
            await worker.create_session(models["external.onnx"])


async def bad_model_fails_alone(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker:
        for name in ("truncated.onnx", "garbage.onnx", "unknown_operator.onnx"):
            with raises(ModelLoadError, name):
                await worker.create_session(models[name])
        with raises(ModelLoadError, "NoSuchOperator"):
            await worker.create_session(models["unknown_operator.onnx"])
        session = await worker.create_session(models["arithmetic.onnx"])
        result = await session.run({"a": floats([1]), "b": floats([2])})
        assert array(result["sum"]).tolist() == [[3]]


async def model_that_is_not_stored_is_named(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker:
        try:
            await worker.create_session(BlobKey("model", "contract.example/a", "main", "absent.onnx"))
        except (StoreError, ModelLoadError) as error:
            assert "absent.onnx" in str(error)  # noqa: PT017 (pytest is not at hand in Pyodide)
        else:
            raise AssertionError("a model that is not stored was loaded")


async def wrong_feeds_are_named(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker:
        session = await worker.create_session(models["arithmetic.onnx"])
        a = floats([1, 2])
        with raises(InferenceError, "b"):
            await session.run({"a": a})
        with raises(InferenceError, "attention_mask"):
            await session.run({"a": a, "b": a, "attention_mask": a})
        with raises(InferenceError, "b", "int64", "float32"):
            await session.run({"a": a, "b": a.astype(np.int64)})
        with raises(InferenceError, "b", "complex128"):
            await session.run({"a": a, "b": a.astype(np.complex128)})
        with raises(InferenceError, "b"):
            await session.run({"a": a, "b": [1.0, 2.0]})  # type: ignore[dict-item]
        with raises(InferenceError):
            await session.run({"a": a, "b": floats([1, 2, 3])})
        assert array((await session.run({"a": a, "b": a}))["sum"]).tolist() == [[2, 4]]
        strings = await worker.create_session(models["identity_string.onnx"])
        with raises(InferenceError, "x"):
            await strings.run({"x": np.array([["a", 1]], dtype=object)})


async def failing_run_carries_the_runtimes_words(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker:
        session = await worker.create_session(models["gather.onnx"])
        with raises(InferenceError, "indices element out of data bounds"):
            await session.run({"index": np.array([9], dtype=np.int64)})
        assert array((await session.run({"index": np.array([3], dtype=np.int64)}))["y"]).tolist() == [3]


async def session_options_are_taken(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker:
        for level in ("disabled", "basic", "extended", "all"):
            session = await worker.create_session(
                models["arithmetic.onnx"],
                options={
                    "graphOptimizationLevel": level,
                    "freeDimensionOverrides": {"batch_size": 1},
                    "extra": {"session.set_denormal_as_zero": "1"},
                },
            )
            assert session.inputs[0].shape[0] == 1
            result = await session.run({"a": floats([1]), "b": floats([2])})
            assert array(result["sum"]).tolist() == [[3]]


async def released_session_is_closed(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker:
        session = await worker.create_session(models["identity_float32.onnx"])
        await session.release()
        await session.release()
        with raises(SessionClosedError):
            await session.run({"x": floats([1, 2])})


async def terminate_ends_a_run_in_the_middle(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker:
        session = await worker.create_session(models["endless.onnx"])
        quick = await session.run({"rounds": np.array(3, dtype=np.int64), "x": np.zeros(2, dtype=np.float32)})
        assert array(quick["y"]).tolist() == [3, 3]
        feeds: dict[str, Feed] = {"rounds": FOR_EVER, "x": np.zeros(2, dtype=np.float32)}
        running = [asyncio.ensure_future(session.run(feeds)) for _ in range(2)]
        await asyncio.sleep(0)
        worker.terminate()
        worker.terminate()
        for task in running:
            with raises(SessionClosedError):
                await task
        with raises(SessionClosedError):
            await session.run(feeds)
        with raises(SessionClosedError):
            await worker.create_session(models["endless.onnx"])


async def terminate_takes_kept_tensors_along(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as worker:
        session = await worker.create_session(models["identity_float32.onnx"])
        kept = (await session.run({"x": floats([1, 2])}, keep=["y"]))["y"]
        assert not isinstance(kept, np.ndarray)
        worker.terminate()
        with raises(SessionClosedError):
            await kept.fetch()
        kept.release()
        await session.release()


async def workers_do_not_disturb_each_other(platform: Platform, start: Start, models: Models) -> None:
    async with started(start) as busy, started(start) as other:
        blocked = await busy.create_session(models["endless.onnx"])
        feeds: dict[str, Feed] = {"rounds": FOR_EVER, "x": np.zeros(2, dtype=np.float32)}
        running = asyncio.ensure_future(blocked.run(feeds))
        session = await other.create_session(models["arithmetic.onnx"])
        result = await session.run({"a": floats([1]), "b": floats([2])})
        assert array(result["sum"]).tolist() == [[3]]
        busy.terminate()
        with raises(SessionClosedError):
            await running
        result = await session.run({"a": floats([1]), "b": floats([2])})
        assert array(result["sum"]).tolist() == [[3]]


CONTRACT: tuple[Callable[[Platform, Start, Models], Awaitable[None]], ...] = (
    every_tensor_type_goes_through_unchanged,
    numpy_unicode_array_is_a_string_tensor,
    model_describes_its_inputs_and_outputs,
    dynamic_shapes_change_from_run_to_run,
    scalar_has_no_dimensions,
    array_in_any_layout_is_read_right,
    feeds_are_not_changed_and_results_are_the_callers,
    only_the_outputs_asked_for_come_back,
    kept_tensor_is_fed_to_the_next_run,
    kept_tensor_of_every_type_can_be_fetched,
    kept_tensor_outlives_its_session_but_not_its_release,
    handle_of_another_worker_is_refused,
    external_data_is_found_by_its_name,
    missing_external_data_is_a_load_error,
    bad_model_fails_alone,
    model_that_is_not_stored_is_named,
    wrong_feeds_are_named,
    failing_run_carries_the_runtimes_words,
    session_options_are_taken,
    released_session_is_closed,
    terminate_ends_a_run_in_the_middle,
    terminate_takes_kept_tensors_along,
    workers_do_not_disturb_each_other,
)
