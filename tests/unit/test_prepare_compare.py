"""Comparing a file with the cases of its part: what is measured, what is refused, what the message says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from pywebml.errors import ConversionError, ToleranceError
from pywebml.prepare import compare as module
from pywebml.prepare.compare import Comparison, Tolerance, check_loadable, compare, require
from pywebml.prepare.external_data import split
from pywebml.prepare.levels_job import load_cases, save_cases
from pywebml.prepare.parts import Case
from tests.onnx_models import model_of, numbers, save, value


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """`y = 2 x` of any shape, and `z = x` as integers."""
    two = np.array(2, np.float32)
    nodes = [helper.make_node("Mul", ["x", "two"], ["y"]), helper.make_node("Cast", ["x"], ["z"], to=TensorProto.INT64)]
    outputs = [value("y", None), value("z", None, TensorProto.INT64)]
    return save(model_of(nodes, [value("x", None)], outputs, {"two": two}), tmp_path / "model.onnx")


def case_of(x: NDArray[Any], y: NDArray[Any], kept: NDArray[Any] | None = None, title: str = "a case") -> Case:
    return Case(title, {"x": x}, {"y": y}, {} if kept is None else {"y": kept})


def test_errors_are_absolute_and_in_parts_of_the_largest_number(doubling: Path) -> None:
    x = np.array([[1.0, 4.0]], np.float32)

    found = compare(doubling, [case_of(x, np.array([[2.5, 8.0]], np.float32)), case_of(x, 2 * x)])

    assert (found.max_abs_error, found.max_rel_error) == (0.5, 0.5 / 8)
    expected = (2 * 2.5 + 8 * 8) / np.hypot(2, 8) / np.hypot(2.5, 8)
    assert found.worst_cosine == pytest.approx(expected)
    assert found.cases[1].outputs["y"].max_abs_error == 0
    assert found.cases[0].shapes == {"x": (1, 2)}


def test_padding_does_not_count(doubling: Path) -> None:
    x = np.ones((2, 3, 4), np.float32)
    y = 2 * x
    y[1, 2] = 100
    kept = np.ones((2, 3, 1), bool)
    kept[1, 2] = False

    found = compare(doubling, [case_of(x, y, kept)])

    assert found.max_abs_error == 0
    assert found.worst_cosine == pytest.approx(1)
    assert compare(doubling, [case_of(x, y)]).max_abs_error == 98


def test_cosine_of_three_dimensions_is_that_of_the_mean_over_positions(doubling: Path) -> None:
    x = numbers(1, 3, 4)
    y = (2 * x)[:, ::-1]
    kept = np.array([[[True], [False], [True]]])

    # The same tokens in another order: the mean is the same, and so is the sentence's embedding.
    assert compare(doubling, [case_of(x, y, kept)]).worst_cosine == pytest.approx(1)
    assert compare(doubling, [case_of(x, y)]).worst_cosine == pytest.approx(1)


def test_cosine_of_other_shapes_is_that_of_all_numbers_of_a_row_that_count(doubling: Path) -> None:
    x = numbers(2, 3, 4, 5)
    y = 2 * x
    y[1, 2] = 0
    kept = np.ones((2, 3, 4, 5), bool)

    expected = np.linalg.norm(x[1, :2]) / np.linalg.norm(x[1])
    assert compare(doubling, [case_of(x, y, kept)]).worst_cosine == pytest.approx(float(expected))
    kept[1, 2] = False
    assert compare(doubling, [case_of(x, y, kept)]).worst_cosine == pytest.approx(1)


def test_single_numbers_and_empty_outputs_have_no_direction(doubling: Path) -> None:
    single = np.array([[1.0], [-1.0]], np.float32)
    empty = np.zeros((2, 0, 4), np.float32)

    found = compare(doubling, [case_of(single, -2 * single), case_of(empty, empty)])

    assert found.worst_cosine == 1
    assert found.cases[1].outputs["y"].max_abs_error == 0


@pytest.mark.parametrize(("ours", "theirs", "cosine"), [(0.0, 2.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)])
def test_nothing_in_place_of_something_is_no_small_difference(
    doubling: Path, ours: float, theirs: float, cosine: float
) -> None:
    x, y = np.full((1, 4), ours, np.float32), np.full((1, 4), theirs, np.float32)
    assert compare(doubling, [case_of(x, y)]).worst_cosine == cosine


def test_integers_are_compared_as_numbers(doubling: Path) -> None:
    x = np.array([[1.0, 2.0]], np.float32)
    case = Case("integers", {"x": x}, {"z": np.array([[1, 5]])})
    assert compare(doubling, [case]).max_abs_error == 3


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (case_of(np.ones((1, 2), np.float32), np.ones((1, 3), np.float32)), r"shape \[1, 2\], expected \[1, 3\]"),
        (case_of(np.full((1, 2), np.nan, np.float32), np.ones((1, 2), np.float32)), "^The converted .* not finite"),
        (case_of(np.ones((1, 2), np.float32), np.full((1, 2), np.nan, np.float32)), "^PyTorch itself .* not finite"),
        (case_of(np.ones((1, 2), np.float32), np.full((1, 2), np.inf, np.float32)), "^PyTorch itself .* not finite"),
        (Case("c", {"x": np.ones(1, np.float32)}, {"w": np.ones(1)}), r"no output w; it has \['y', 'z'\]"),
        (Case("c", {"wrong": np.ones(1, np.float32)}, {"y": np.ones(1)}), "cannot run .* on 'c'"),
    ],
)
def test_answers_that_cannot_be_compared_are_refused(doubling: Path, case: Case, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        compare(doubling, [case])


def test_numbers_that_are_not_finite_in_padding_do_not_matter(doubling: Path) -> None:
    x = np.array([[1.0, np.inf]], np.float32)
    kept = np.array([[True, False]])
    assert compare(doubling, [case_of(x, np.array([[2.0, 0.0]], np.float32), kept)]).max_abs_error == 0


def test_file_that_the_runtime_refuses_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ConversionError, match=r"cannot load the converted model\.onnx"):
        compare(tmp_path / "model.onnx", [])


def test_message_names_the_worst_output_of_the_worst_case(doubling: Path) -> None:
    x = np.array([[1.0, 4.0]], np.float32)
    found = compare(
        doubling, [case_of(x, 2 * x, title="good"), case_of(x, x, title="bad"), case_of(x, 1.9 * x, title="less bad")]
    )

    with pytest.raises(
        ToleranceError,
        match=r"The q4 file of decoder is too far from PyTorch: output y of 'bad' has a largest error of 4 \(1 of "
        r"the largest number\) and a worst cosine of 1\.00000; allowed: a relative error of 0\.01\. Leave q4 out of",
    ) as caught:
        require(found, Tolerance(max_rel_error=0.01), part="decoder", dtype="q4")

    assert caught.value.details["case"] == "bad"
    assert caught.value.details["max_abs_error"] == 4


@pytest.mark.parametrize(
    ("tolerance", "passes"),
    [
        (Tolerance(), True),
        (Tolerance(max_abs_error=4), True),
        (Tolerance(max_abs_error=3.99), False),
        (Tolerance(max_rel_error=1.0), True),
        (Tolerance(max_rel_error=0.99), False),
        (Tolerance(min_cosine=0.9), True),
        (Tolerance(max_abs_error=0.0), False),
    ],
)
def test_every_limit_counts(doubling: Path, tolerance: Tolerance, passes: bool) -> None:
    x = np.array([[1.0, 4.0]], np.float32)
    found = compare(doubling, [case_of(x, x)])
    if passes:
        require(found, tolerance, part="model", dtype="q8")
    else:
        with pytest.raises(ToleranceError):
            require(found, tolerance, part="model", dtype="q8")


def test_opposite_directions_are_told_by_the_cosine(doubling: Path) -> None:
    x = np.array([[1.0, 4.0]], np.float32)
    with pytest.raises(ToleranceError, match=r"worst cosine of -1\.00000; allowed: a cosine of 0\.98 and more"):
        require(compare(doubling, [case_of(x, -x)]), Tolerance(min_cosine=0.98), part="model", dtype="q8")


@pytest.mark.parametrize(("opset", "ir_version"), [(27, 10), (18, 14), (0, 10)])
def test_what_the_web_runtime_does_not_load_is_refused(tmp_path: Path, opset: int, ir_version: int) -> None:
    model = model_of([helper.make_node("Identity", ["x"], ["y"])], [value("x", ["n"])], [value("y", ["n"])], {})
    model.ir_version = ir_version
    if opset:
        model.opset_import[0].version = opset
    else:
        del model.opset_import[0]

    with pytest.raises(ConversionError, match=f"opset {opset} and IR version {ir_version}"):
        check_loadable(save(model, tmp_path / "model.onnx"))


def test_sizes_that_a_browser_does_not_take_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["y"])]
    weights = {"b": numbers(100, 100)}
    path = save(model_of(nodes, [value("x", None)], [value("y", None)], weights), tmp_path / "model.onnx")

    monkeypatch.setattr(module, "MAX_FILE_BYTES", 30_000)
    with pytest.raises(ConversionError, match=r"model\.onnx has 40\d\d\d bytes.*--external-data"):
        check_loadable(path)
    split(path, 1_000_000)
    with pytest.raises(ConversionError, match=r"model\.onnx_data has 40000 bytes"):
        check_loadable(path)
    check_loadable(path, sizes=False)
    monkeypatch.undo()
    monkeypatch.setattr(module, "MAX_TOTAL_BYTES", 40_000)
    with pytest.raises(ConversionError, match="memory of the web runtime ends"):
        check_loadable(path)
    (tmp_path / "model.onnx_data").write_bytes(b"short")
    with pytest.raises(ConversionError, match="needs 40000 bytes of external data"):
        check_loadable(path, sizes=False)


def test_measurements_and_cases_survive_a_file(doubling: Path, tmp_path: Path) -> None:
    x = numbers(1, 3, 4)
    cases = [
        case_of(x, 2 * x, np.array([[[True], [False], [True]]])),
        Case("names with dots and a cache", {"past.0.key": np.zeros((1, 2, 0, 4), np.float32)}, {}),
    ]
    save_cases(tmp_path / "cases.npz", cases)

    loaded = load_cases(tmp_path / "cases.npz", [case.title for case in cases])

    assert [case.title for case in loaded] == [case.title for case in cases]
    for ours, theirs in zip(loaded, cases, strict=True):
        for left, right in ((ours.feeds, theirs.feeds), (ours.expected, theirs.expected), (ours.kept, theirs.kept)):
            assert {name: array.dtype for name, array in left.items()} == {n: a.dtype for n, a in right.items()}
            assert all((left[name] == right[name]).all() and left[name].shape == right[name].shape for name in right)
    measured = compare(doubling, loaded[:1])
    assert Comparison.from_json(measured.to_json()) == measured
