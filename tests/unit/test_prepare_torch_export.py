"""The one way over PyTorch's exporter: names, dimensions, bytes, refusals, weights outside of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from pywebml.errors import ConversionError
from pywebml.prepare.compare import WEB_IR_VERSION
from pywebml.prepare.convert import MAX_OPSET
from pywebml.prepare.exporting import torch_export
from pywebml.prepare.exporting.torch_export import data_path, export_module

DIMS = {"x": {0: "batch_size"}, "y": {0: "batch_size"}}


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = nn.Linear(4, 80)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x)
        return result


class FixedBatch(nn.Module):
    """Works for batches of two alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 4) + torch.ones(2, 4)


class DataDependent(nn.Module):
    """Has another result when the numbers are others, which no graph of operators can hold."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if bool(x.sum() > 0) else x - 1


def export(module: nn.Module, path: Path, **changes: Any) -> None:
    choices: dict[str, Any] = {
        "example_inputs": [torch.randn(2, 4)],
        "input_names": ["x"],
        "output_names": ["y"],
        "dynamic_dims": DIMS,
        "opset": 18,
    }
    export_module(module.eval(), path=path, **(choices | changes))


def run(path: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    (y,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    assert isinstance(y, np.ndarray)
    return y


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "layer.onnx"
    export(Layer(), path)
    return path


def test_dimensions_have_the_given_names_and_sizes(written: Path) -> None:
    graph = onnx.load(written).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }

    assert shapes == {"x": ["batch_size", 4], "y": ["batch_size", 80]}


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_file_answers_for_every_batch_size(written: Path, batch: int) -> None:
    x = torch.randn(batch, 4)

    np.testing.assert_allclose(run(written, x.numpy()), Layer()(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_the_same_module_gives_the_same_bytes_without_notes_of_this_machine(written: Path, tmp_path: Path) -> None:
    export(Layer(), tmp_path / "again.onnx")

    data = written.read_bytes()
    assert (tmp_path / "again.onnx").read_bytes() == data
    assert b"site-packages" not in data
    assert b".py" not in data


@pytest.mark.parametrize("opset", [18, 21, MAX_OPSET])
def test_the_file_has_the_opset_that_was_asked_for(tmp_path: Path, opset: int) -> None:
    export(Layer(), tmp_path / "layer.onnx", opset=opset)

    model = onnx.load(tmp_path / "layer.onnx")
    assert torch_export.opset_of(model) == opset
    assert model.ir_version <= WEB_IR_VERSION


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_export, "MAX_WEIGHT_BYTES", 1000)
    path = tmp_path / "layer.onnx"
    export(Layer(), path)

    assert sorted(file.name for file in tmp_path.iterdir()) == ["layer.onnx", "layer.onnx_data"]
    assert data_path(path).stat().st_size == 4 * 80 * 4
    assert path.stat().st_size < 4 * 80 * 4
    x = torch.randn(3, 4)
    np.testing.assert_allclose(run(path, x.numpy()), Layer()(x).detach().numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "changes", "message"),
    [
        (FixedBatch(), {}, "PyTorch cannot export this model"),
        (DataDependent(), {}, "PyTorch cannot export this model"),
        (Layer(), {"output_names": ["y", "z"]}, "gives 1 outputs; expected y, z"),
    ],
)
def test_what_cannot_be_exported_leaves_no_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], module: nn.Module, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConversionError, match=message) as caught:
        export(module, tmp_path / "model.onnx", **changes)
    assert len(caught.value.message.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_number_where_a_dimension_should_vary_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As an exporter does that takes the example's size for a constant.
    monkeypatch.setattr(torch.export.Dim, "DYNAMIC", torch.export.Dim.STATIC)

    with pytest.raises(ConversionError, match=r"'x' the shape \[2, 4\]; expected \['batch_size', 4\]"):
        export(Layer(), tmp_path / "layer.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_module_in_training_mode_is_refused(tmp_path: Path) -> None:
    module = Layer().eval()
    module.linear.train()

    with pytest.raises(ConversionError, match="training mode"):
        export_module(module, [torch.randn(2, 4)], ["x"], ["y"], DIMS, tmp_path / "layer.onnx", 18)
