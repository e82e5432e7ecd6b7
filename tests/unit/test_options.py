from __future__ import annotations

from typing import Any

import pytest

from pywebml.errors import OptionsError
from pywebml.options import Configuration, PipelineOptions


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"task_name": "feature extraction"}, "task_name"),
        ({"task_name": ""}, "task_name"),
        ({"model_id": "../secrets"}, "model_id"),
        ({"model_id": "a/b/c"}, "model_id"),
        ({"model_revision": "a/../b"}, "model_revision"),
        ({"model_revision": "v1 0"}, "model_revision"),
        ({"dtype": "float32"}, "dtype"),
        ({"device": "webgpu"}, "device"),
        ({"device": "tpu"}, "device"),
        ({"num_threads": -1}, "num_threads"),
        ({"num_threads": 101}, "num_threads"),
        ({"num_threads": True}, "num_threads"),
        ({"num_threads": 1.5}, "num_threads"),
        ({"timeout_ms": -2}, "timeout_ms"),
        ({"timeout_ms": 36_000_001}, "timeout_ms"),
        ({"use_external_data_format": "yes"}, "use_external_data_format"),
        ({"backend": "llama.cpp"}, "backend"),
        ({"model_hub": "example"}, "model_hub"),
        ({"runtime_filename": "../x.wasm"}, "runtime_filename"),
        ({"engine_id": 3}, "engine_id"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_field_and_value(given: dict[str, Any], field: str) -> None:
    with pytest.raises(OptionsError, match="is not valid") as caught:
        PipelineOptions.from_mapping(given)

    assert caught.value.details["field"] == field
    assert repr(given[field]) in caught.value.message


@pytest.mark.parametrize(
    "given",
    [
        {"model_id": "sentence-transformers/all-MiniLM-L6-v2", "model_revision": "v1.0.0"},
        {"model_revision": "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"},
        {"model_revision": "refs/pr/12"},
        {"num_threads": 0, "timeout_ms": -1, "use_external_data_format": 3},
    ],
)
def test_ordinary_values_are_taken(given: dict[str, Any]) -> None:
    assert PipelineOptions.from_mapping(given).to_dict()


def test_names_come_in_snake_case_and_in_camel_case() -> None:
    snake = PipelineOptions.from_mapping({"task_name": "feature-extraction", "timeout_ms": 5, "model_id": "a/b"})
    camel = PipelineOptions.from_mapping({"taskName": "feature-extraction", "timeoutMS": 5, "modelId": "a/b"})

    assert snake == camel
    assert camel.to_dict() == {"taskName": "feature-extraction", "timeoutMS": 5, "modelId": "a/b"}


@pytest.mark.parametrize(("typo", "meant"), [("modelID", "modelId"), ("tsak_name", "task_name"), ("dtyp", "dtype")])
def test_an_unknown_name_is_refused_with_the_nearest_one(typo: str, meant: str) -> None:
    with pytest.raises(OptionsError, match=f"'{typo}'.*Did you mean '{meant}'"):
        PipelineOptions.from_mapping({typo: "x"})


def test_an_unknown_name_like_no_other_is_refused_with_the_list() -> None:
    with pytest.raises(OptionsError, match=r"Known: .*task_name"):
        PipelineOptions.from_mapping({"zzz": 1})


def test_none_counts_as_not_given() -> None:
    assert PipelineOptions.from_mapping({"modelId": None}) == PipelineOptions()


def test_a_settings_record_may_hold_what_other_runtimes_need() -> None:
    record = {"id": "1", "last_modified": 5, "taskName": "feature-extraction", "processorId": "x/y", "dtype": "q8"}

    assert PipelineOptions.from_record(record) == PipelineOptions(task_name="feature-extraction", dtype="q8")


def test_a_settings_record_with_a_bad_value_is_refused() -> None:
    with pytest.raises(OptionsError, match="dtype"):
        PipelineOptions.from_record({"dtype": "../../x"})


def test_what_the_caller_chose_lies_on_top() -> None:
    record = PipelineOptions(model_id="a/b", dtype="q8", num_threads=2)

    assert record.overlaid_by(PipelineOptions(dtype="fp32")) == PipelineOptions(
        model_id="a/b", dtype="fp32", num_threads=2
    )


def test_engines_are_compared_without_what_does_not_change_results() -> None:
    options = PipelineOptions(engine_id="one", feature_id="f", timeout_ms=5, model_id="a/b")

    assert options.same_engine(PipelineOptions(engine_id="two", model_id="a/b"))
    assert not options.same_engine(PipelineOptions(engine_id="one", model_id="a/c"))


def test_configuration_refuses_unknown_names_and_empty_texts() -> None:
    with pytest.raises(OptionsError, match="Did you mean 'assetsBase'"):
        Configuration.from_mapping({"assetBase": "/x/"})
    with pytest.raises(OptionsError, match="hub_root_url"):
        Configuration.from_mapping({"hubRootUrl": ""})
