from __future__ import annotations

from typing import Any

import pytest

from pywebml.errors import OptionsError
from pywebml.options import Configuration, PipelineOptions, configure, get_configuration


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
        ({"dtype": ["q8"]}, "dtype"),
        ({"tokenizer_id": "../secrets"}, "tokenizer_id"),
        ({"tokenizer_revision": "a/../b"}, "tokenizer_revision"),
        ({"model_hub_root_url": ""}, "model_hub_root_url"),
        ({"model_hub_url_template": 5}, "model_hub_url_template"),
        ({"use_external_data_format": 101}, "use_external_data_format"),
        ({"use_external_data_format": -1}, "use_external_data_format"),
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


# One value for each file


@pytest.mark.parametrize(
    "given",
    [
        {"dtype": {"encoder_model": "fp32", "decoder_model_merged": "q4"}},
        {"dtype": {}},
        {"use_external_data_format": {"encoder_model.onnx": 2, "decoder_model": True}},
        {"useExternalDataFormat": {"model_q4.onnx": False}},
    ],
)
def test_dtype_and_external_data_can_be_chosen_by_file(given: dict[str, Any]) -> None:
    [value] = given.values()
    assert list(PipelineOptions.from_mapping(given).to_dict().values()) == [value]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dtype": {"encoder_model": "float32"}}, r"dtype\['encoder_model'\]='float32'"),
        ({"dtype": {"../x": "q8"}}, "one for each file name"),
        ({"dtype": {5: "q8"}}, "one for each file name"),
        ({"dtype": {"a": {"b": "q8"}}}, "one for each file name"),
        ({"dtype": {"a": None}}, "give one of"),
        ({"use_external_data_format": {"a": 101}}, "from 0 to 100"),
        ({"use_external_data_format": {"a": "yes"}}, "from 0 to 100"),
        ({"use_external_data_format": {"a": {"b": 1}}}, "one for each file name"),
    ],
)
def test_value_for_a_file_that_is_not_allowed_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionsError, match=words):
        PipelineOptions.from_mapping(given)


# Configuration


@pytest.fixture(autouse=True)
def kept_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pywebml.options._configuration", Configuration())


def test_configuration_of_hubs_and_stores_comes_under_both_names() -> None:
    values = {
        "hub_access_tokens": {"https://huggingface.co": "hf_x", "http://localhost:8080": "a.b-c_d~e+f/g="},
        "allow_deny_list": [{"filter": "DENY", "urlPrefix": "https://x.example/"}],
        "max_cache_bytes": 10**9,
        "stall_timeout_ms": 5,
    }
    camel = dict(
        zip(("hubAccessTokens", "allowDenyList", "maxCacheBytes", "stallTimeoutMS"), values.values(), strict=True)
    )
    assert Configuration.from_mapping(camel) == Configuration.from_mapping(values)
    assert (Configuration().stall_timeout_ms, Configuration().max_cache_bytes) == (60_000, None)


def test_configure_keeps_what_is_not_named() -> None:
    configure(max_cache_bytes=5)
    configure(stall_timeout_ms=7)
    assert (get_configuration().max_cache_bytes, get_configuration().stall_timeout_ms) == (5, 7)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"max_cache_bytes": -1}, "max_cache_bytes"),
        ({"max_cache_bytes": True}, "max_cache_bytes"),
        ({"max_cache_bytes": 1.5}, "max_cache_bytes"),
        ({"max_cache_bytes": 2**60}, "max_cache_bytes"),
        ({"stall_timeout_ms": 0}, "stall_timeout_ms"),
        ({"stall_timeout_ms": "5"}, "stall_timeout_ms"),
        ({"allow_deny_list": {}}, "allow_deny_list"),
        ({"allow_deny_list": "x"}, "allow_deny_list"),
        ({"allow_deny_list": ["https://x.example/"]}, "allow_deny_list"),
        ({"allow_unsigned_settings": "yes"}, "allow_unsigned_settings"),
    ],
)
def test_configuration_with_a_value_that_is_not_allowed_is_refused(given: dict[str, Any], field: str) -> None:
    before = get_configuration()
    with pytest.raises(OptionsError, match="is not valid") as caught:
        configure(**given)
    assert caught.value.details["field"] == field
    assert get_configuration() is before


SECRET = "hf_s3cr3t"


@pytest.mark.parametrize(
    "tokens",
    [
        SECRET,
        [SECRET],
        {SECRET: "https://huggingface.co"},
        {"https://huggingface.co/": SECRET},
        {f"https://user:{SECRET}@huggingface.co": "x"},
        {"huggingface.co": SECRET},
        {"https://huggingface.co:abc": SECRET},
        {"https://huggingface.co:99999": SECRET},
        {"https://huggingface.co:0": SECRET},
        {"https://[huggingface.co": SECRET},
        {"https://huggingface.co": f"{SECRET} x"},
        {"https://huggingface.co": f"{SECRET}\n"},
        {"https://huggingface.co": [SECRET]},
        {"https://huggingface.co": ""},
        {5: SECRET},
    ],
)
def test_tokens_that_are_not_usable_are_refused_without_being_repeated(tokens: Any) -> None:
    for name in ("hub_access_tokens", "hubAccessTokens"):
        with pytest.raises(OptionsError, match="hub_access_tokens") as caught:
            configure(**{name: tokens})
        assert SECRET not in repr((caught.value, str(caught.value), caught.value.details))


def test_token_under_a_wrong_name_is_not_repeated() -> None:
    for name in ("hub_access_token", "hubAccessToken", "token"):
        with pytest.raises(OptionsError, match=name) as caught:
            configure(**{name: SECRET})
        assert SECRET not in repr((caught.value, str(caught.value), caught.value.details))


def test_token_is_not_in_what_is_printed_of_a_configuration() -> None:
    configuration = configure(hub_access_tokens={"https://huggingface.co": SECRET})
    assert configuration.hub_access_tokens == {"https://huggingface.co": SECRET}
    assert SECRET not in repr(configuration) + str(configuration) + f"{configuration}"
