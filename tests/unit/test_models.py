"""Which files a model consists of, and what its `config.json` says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pywebml.errors import UnsupportedModelError
from pywebml.models import DTYPE_SUFFIXES, ModelConfig, ModelModule, model_modules
from pywebml.options import DTYPES


def config(use_external_data_format: Any = None, **section: Any) -> ModelConfig:
    values: dict[str, Any] = {"model_type": "bert"}
    if use_external_data_format is not None:
        section["use_external_data_format"] = use_external_data_format
    return ModelConfig("bert", values | ({"transformers.js_config": section} if section else {}))


def data_names(modules: list[ModelModule]) -> list[list[str]]:
    return [[name for name, _ in module.external_data] for module in modules]


def test_every_dtype_that_can_be_chosen_has_a_file_name() -> None:
    assert set(DTYPE_SUFFIXES) == set(DTYPES)
    assert len(set(DTYPE_SUFFIXES.values())) == len(DTYPES)


@pytest.mark.parametrize(
    ("dtype", "path"),
    [
        ("fp32", "onnx/model.onnx"),
        ("fp16", "onnx/model_fp16.onnx"),
        ("q8", "onnx/model_quantized.onnx"),
        ("int8", "onnx/model_int8.onnx"),
        ("uint8", "onnx/model_uint8.onnx"),
        ("q4", "onnx/model_q4.onnx"),
        ("q4f16", "onnx/model_q4f16.onnx"),
        ("bnb4", "onnx/model_bnb4.onnx"),
    ],
)
def test_file_names_are_those_of_transformers_js(dtype: str, path: str) -> None:
    assert model_modules(["model"], dtype, config()) == [ModelModule("model", path)]


def test_modules_keep_their_order_and_no_module_has_no_files() -> None:
    names = ["encoder_model", "decoder_model_merged"]
    assert [module.path for module in model_modules(names, "q4", config())] == [
        "onnx/encoder_model_q4.onnx",
        "onnx/decoder_model_merged_q4.onnx",
    ]
    assert model_modules([], "fp32", config(True)) == []


@pytest.mark.parametrize(
    ("spelled", "names"),
    [
        (False, []),
        (0, []),
        (True, ["model_q4.onnx_data"]),
        (1, ["model_q4.onnx_data"]),
        (3, ["model_q4.onnx_data", "model_q4.onnx_data_1", "model_q4.onnx_data_2"]),
        ({"model_q4.onnx": 2}, ["model_q4.onnx_data", "model_q4.onnx_data_1"]),
        ({"model": True}, ["model_q4.onnx_data"]),
        ({"model_q4.onnx": False, "model": True}, []),
        ({"model.onnx": True}, []),
        ({}, []),
    ],
)
def test_external_data_is_told_by_number_yes_or_no_or_file_name(spelled: Any, names: list[str]) -> None:
    [module] = model_modules(["model"], "q4", config(spelled))
    assert list(module.external_data) == [(name, f"onnx/{name}") for name in names]


def test_each_module_has_its_own_external_data() -> None:
    modules = model_modules(
        ["encoder_model", "decoder_model_merged"], "fp16", config({"encoder_model_fp16.onnx": 1, "decoder_model": 4})
    )
    assert data_names(modules) == [["encoder_model_fp16.onnx_data"], []]


@pytest.mark.parametrize(("said", "count"), [(False, 0), (True, 1), (2, 2)])
def test_the_callers_word_on_external_data_counts_more(said: bool | int, count: int) -> None:
    [module] = model_modules(["model"], "fp32", config({"model.onnx": 7}), said)
    assert len(module.external_data) == count


GARBAGE = ["yes", -1, 101, 1e3, 0.5, [1], {"model.onnx": "yes"}, {"model.onnx": {"model.onnx": 1}}, {"model": -3}]


@pytest.mark.parametrize("spelled", GARBAGE)
def test_external_data_that_makes_no_sense_is_refused(spelled: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="use_external_data_format=") as caught:
        model_modules(["model"], "fp32", config(spelled))
    assert caught.value.details["file"] == "model.onnx"
    assert model_modules(["model"], "fp32", config(spelled), False) == [ModelModule("model", "onnx/model.onnx")]


@pytest.mark.parametrize("section", [None, [], "text", 3])
def test_section_for_transformers_js_that_is_no_object_says_nothing(section: Any) -> None:
    assert ModelConfig("bert", {"transformers.js_config": section}).use_external_data_format is False


# config.json


def test_config_keeps_everything_and_its_model_type() -> None:
    values = {"model_type": "bert", "hidden_size": 384, "nested": {"a": [1]}}
    read = ModelConfig.from_json(json.dumps(values).encode(), "a/b")
    assert (read.model_type, read.values) == ("bert", values)
    assert ModelConfig.from_json(b"{}", "a/b").model_type == ""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"bert"',
        b"5",
        b'{"model_type": 5}',
        b'{"model_type": null}',
        b'{"model_type": ["bert"]}',
        b"\xff\xfe\xff",
        b"<!doctype html>",
        b"[" * 100_000,
        b"9" * 5_000,
    ],
)
def test_config_that_is_none_is_refused_by_the_models_name(data: bytes) -> None:
    with pytest.raises(UnsupportedModelError, match="a/b") as caught:
        ModelConfig.from_json(data, "a/b")
    assert caught.value.details == {"model": "a/b"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["model_type"]), inner),
    max_leaves=10,
)


def check_config(data: bytes) -> None:
    try:
        read = ModelConfig.from_json(data, "a/b")
    except UnsupportedModelError:
        return
    assert isinstance(read.model_type, str)
    assert isinstance(read.values, dict)


@given(st.binary())
def test_any_bytes_are_a_config_or_a_named_error(data: bytes) -> None:
    check_config(data)


@given(JSON)
def test_any_json_is_a_config_or_a_named_error(document: Any) -> None:
    check_config(json.dumps(document).encode())


@given(JSON)
def test_any_word_on_external_data_is_files_or_a_named_error(word: Any) -> None:
    try:
        [module] = model_modules(["model"], "fp32", config(word, other=1))
    except UnsupportedModelError:
        return
    assert len(module.external_data) <= 100


@pytest.mark.parametrize(
    ("value", "expected"),
    [(512, 512), (1, 1), (0, None), (-5, None), (True, None), (5.0, None), ("5", None), (None, None), ([5], None)],
)
def test_positive_int_takes_whole_numbers_above_0_only(value: Any, expected: int | None) -> None:
    assert ModelConfig("", {"size": value}).positive_int("size") == expected
    assert ModelConfig("", {}).positive_int("size") is None
