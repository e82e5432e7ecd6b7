"""onnxruntime-web under Node, for tests: what the browser's runtime makes of a model.

    outputs = run_in_web_runtime(path, feeds)              # one run
    with WebRuntime() as runtime:                          # many models, one process
        first, second = runtime.run(path, [feeds, more])   # one session, several runs

External data beside the model is found and given to the runtime.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import onnx
from numpy.typing import NDArray

from web.build.paths import ROOT

SCRIPT = ROOT / "tests" / "parity" / "ort_web.mjs"
Arrays = Mapping[str, NDArray[Any]]

_TYPES = {
    np.dtype(name): name
    for name in (
        *("float16", "float32", "float64", "bool"),
        *("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    )
}


class WebRuntimeError(Exception):
    """The runtime refused a model or a run; `stage` is `load`, `run` or `crash`."""

    def __init__(self, message: str, stage: str) -> None:
        super().__init__(f"{stage}: {message}")
        self.stage = stage


class WebRuntime:
    """A Node process with onnxruntime-web in it, started by the first run and again after a crash.

    Attributes:
        load_milliseconds: Of the last session.
        run_milliseconds: Of the last session's runs.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[bytes] | None = None
        self.load_milliseconds = 0.0
        self.run_milliseconds: list[float] = []

    def __enter__(self) -> WebRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def process_id(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.communicate()
            self._process = None
        if self._errors is not None:
            self._errors.close()
            self._errors = None

    def run(self, path: Path, runs: Sequence[Arrays], *, optimization: str = "all") -> list[dict[str, NDArray[Any]]]:
        """Load a model once and run it on each of the feeds.

        Args:
            path: Of the `.onnx` file; its external data lies where the file says.
            runs: Input name to array.
            optimization: `all`, `extended`, `basic` or `disabled`.

        Raises:
            WebRuntimeError: The runtime refuses the model or a run, or its process ended.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            request = {
                "model": str(path),
                "externalData": [
                    {"name": location, "path": str(path.parent / location)} for location in external_locations(path)
                ],
                "runs": [_write_feeds(folder, index, feeds) for index, feeds in enumerate(runs)],
                "optimization": optimization,
            }
            answer = self._ask(request)
            if "error" in answer:
                raise WebRuntimeError(answer["error"], answer["stage"])
            self.load_milliseconds = answer["loadMilliseconds"]
            self.run_milliseconds = answer["runMilliseconds"]
            return [_read_outputs(folder / f"outputs{index}", outputs) for index, outputs in enumerate(answer["runs"])]

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._process is None:
            # A file and no pipe: what nobody reads must not stop the process.
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115
            self._process = subprocess.Popen(
                ["node", str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        assert self._errors is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            process.wait()
            self._errors.seek(0)
            text = self._errors.read().decode(errors="replace")
            self._process = None
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            self.close()
            raise WebRuntimeError(f"the process ended with {process.returncode}: {text[-2000:]}", "crash")
        answer: dict[str, Any] = json.loads(line)
        # After an abort of the WASM every later call fails, whatever the model.
        if "abort" in answer.get("error", "").lower() or "out of bounds" in answer.get("error", ""):
            self.close()
        return answer


def external_locations(path: Path) -> list[str]:
    """The names of the data files that a model mentions, sorted."""
    locations: set[str] = set()

    def visit(graph: onnx.GraphProto) -> None:
        tensors = list(graph.initializer)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    visit(attribute.g)
                if attribute.HasField("t"):
                    tensors.append(attribute.t)
        for tensor in tensors:
            locations.update(entry.value for entry in tensor.external_data if entry.key == "location")

    visit(onnx.load(path, load_external_data=False).graph)
    return sorted(locations)


@cache
def shared_web_runtime() -> WebRuntime:
    """The one process of a test run, which ends with it."""
    runtime = WebRuntime()
    atexit.register(runtime.close)
    return runtime


def run_in_web_runtime(path: Path, feeds: Arrays) -> dict[str, NDArray[Any]]:
    """Run a model once in the shared process.

    Raises:
        WebRuntimeError: The runtime refuses the model or the run.
    """
    (outputs,) = shared_web_runtime().run(path, [feeds])
    return outputs


def _write_feeds(folder: Path, index: int, feeds: Arrays) -> dict[str, Any]:
    inputs = []
    offset = 0
    with (folder / f"feeds{index}").open("wb") as file:
        for name, array in feeds.items():
            data = np.ascontiguousarray(array).tobytes()
            file.write(data)
            inputs.append(
                {
                    "name": name,
                    "type": _TYPES[array.dtype],
                    "dims": list(array.shape),
                    "offset": offset,
                    "length": len(data),
                }
            )
            offset += len(data)
    return {"feeds": str(folder / f"feeds{index}"), "inputs": inputs, "outputs": str(folder / f"outputs{index}")}


def _read_outputs(path: Path, outputs: list[dict[str, Any]]) -> dict[str, NDArray[Any]]:
    data = path.read_bytes()
    return {
        output["name"]: np.frombuffer(data, output["type"], offset=output["offset"], count=int(np.prod(output["dims"])))
        .reshape(output["dims"])
        .copy()
        for output in outputs
    }
