"""The one list of files: what an engine needs, with sizes, before anything is downloaded."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from pywebml import TaskContext, configure, create_engine, is_cached, plan, task
from pywebml.errors import (
    DownloadError,
    FileNotFoundOnHubError,
    OptionsError,
    SettingsError,
    UnsupportedModelError,
)
from pywebml.hub import ModelHub
from pywebml.models import ModelConfig
from pywebml.options import PipelineOptions
from pywebml.planning import Plan, model_files, tokenizer_files, tokenizer_source
from pywebml.prepare.mirror import MirrorAttachment, MirrorCollection, write_mirror
from pywebml.sources import model_hub
from pywebml.tokenization import OPTIONAL_FILES as TOKENIZER_OPTIONAL_FILES
from tests.conftest import PatientPlatform
from tests.faults.server import FaultServer
from tests.tiny_model import FILES, TinyModel

pytestmark = pytest.mark.usefixtures("surroundings")

MODEL, REVISION = "tests/tiny", "v1.0.0"
FOLDER = f"hub/{MODEL}/{REVISION}"
TINY: dict[str, Any] = {
    "task_name": "feature-extraction",
    "model_id": MODEL,
    "model_revision": REVISION,
    "dtype": "fp32",
}
NEEDED = ["config.json", "tokenizer.json", "tokenizer_config.json", FILES["fp32"]]
PAIR: dict[str, Any] = {**TINY, "task_name": "pair"}


def publish(server: FaultServer, model: TinyModel | None = None) -> dict[str, bytes]:
    chosen = model or TinyModel()
    chosen.write(server.root / FOLDER)
    return chosen.files()


def paths(made: Plan) -> list[str]:
    return [planned.file.path for planned in made.files]


def register_pair() -> None:
    """A task with two modules and two optional files, one of which it needs anyway."""

    @task(
        "pair",
        modules=("encoder_model", "decoder_model_merged"),
        tokenizer=True,
        optional_files=("generation_config.json", "tokenizer_config.json"),
    )
    class Pair:
        def __init__(self, context: TaskContext) -> None:
            self.context = context

        async def run(self) -> Any:
            return sorted(self.context.sessions), dict(self.context.files)


def pair_files(shards: int = 0) -> dict[str, bytes]:
    """What `pair` can be made from: the encoder in fp32, perhaps with its weights in files beside it, the decoder in
    q8."""
    tiny = TinyModel(external_data=shards > 0)
    files = {path: data for path, data in tiny.files().items() if path.endswith(".json") and path != "manifest.json"}
    graph, data = tiny._graph(1.0, "encoder_model.onnx")
    files["onnx/encoder_model.onnx"] = graph
    if data is not None:
        files["onnx/encoder_model.onnx_data"] = data
    for shard in range(1, shards):
        files[f"onnx/encoder_model.onnx_data_{shard}"] = bytes([shard]) * 100
    files["onnx/decoder_model_merged_quantized.onnx"] = TinyModel()._graph(2.0, "decoder")[0]
    config = json.loads(files["config.json"])
    config["transformers.js_config"] = {"use_external_data_format": {"encoder_model.onnx": shards}}
    files["config.json"] = json.dumps(config).encode()
    return files


def write(server: FaultServer, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        server.write(f"{FOLDER}/{path}", data)


# What is needed


async def everything(_model: str, _revision: str, _path: str) -> bool:
    return True


async def names(fields: dict[str, Any], config: dict[str, Any] | None = None) -> list[str]:
    options = PipelineOptions(**fields)
    return [file.path for file in await model_files(options, ModelConfig("bert", config or {}), everything)]


async def test_every_dtype_of_every_module_has_its_own_file() -> None:
    register_pair()
    assert (await names({**PAIR, "dtype": "q4"}))[3:5] == [
        "onnx/encoder_model_q4.onnx",
        "onnx/decoder_model_merged_q4.onnx",
    ]
    chosen = {"encoder_model": "fp16", "decoder_model_merged": "q4f16"}
    assert (await names({**PAIR, "dtype": chosen}))[3:5] == [
        "onnx/encoder_model_fp16.onnx",
        "onnx/decoder_model_merged_q4f16.onnx",
    ]
    assert (await names({**PAIR, "dtype": {"encoder_model": "fp32"}}))[3:5] == [
        "onnx/encoder_model.onnx",
        "onnx/decoder_model_merged_quantized.onnx",
    ]


async def test_external_data_belongs_to_its_module_and_the_callers_word_counts_more() -> None:
    register_pair()
    config = {"transformers.js_config": {"use_external_data_format": {"encoder_model.onnx": 2}}}
    fields = {**PAIR, "dtype": "fp32"}
    shards = ["onnx/encoder_model.onnx_data", "onnx/encoder_model.onnx_data_1"]
    assert (await names(fields, config))[3:] == [
        "onnx/encoder_model.onnx",
        *shards,
        "onnx/decoder_model_merged.onnx",
        "generation_config.json",
    ]
    assert not set(shards) & set(await names({**fields, "use_external_data_format": False}, config))
    of_decoder = await names({**fields, "use_external_data_format": {"decoder_model_merged": True}}, config)
    assert of_decoder[3:6] == [
        "onnx/encoder_model.onnx",
        "onnx/decoder_model_merged.onnx",
        "onnx/decoder_model_merged.onnx_data",
    ]


async def test_file_that_is_needed_anyway_is_planned_once_and_is_not_optional() -> None:
    register_pair()
    files = await model_files(PipelineOptions(**PAIR), ModelConfig("bert", {}), everything)
    assert len({file.name for file in files}) == len(files)
    purposes = {file.path: (file.purpose, file.required) for file in files}
    assert purposes["tokenizer.json"] == ("tokenizer", True)
    assert purposes["tokenizer_config.json"] == ("tokenizer", False)
    assert purposes["generation_config.json"] == ("optional", False)
    assert purposes["config.json"] == ("config", True)
    assert purposes["onnx/encoder_model.onnx"] == ("weights", True)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (MODEL, REVISION)),
        ({"tokenizer_id": MODEL}, (MODEL, REVISION)),
        ({"tokenizer_id": "tests/words"}, ("tests/words", "main")),
        ({"tokenizer_id": "tests/words", "tokenizer_revision": "v2.0.0"}, ("tests/words", "v2.0.0")),
        ({"tokenizer_revision": "v2.0.0"}, (MODEL, "v2.0.0")),
    ],
)
def test_tokenizer_is_the_models_own_unless_another_is_named(fields: dict[str, Any], expected: tuple[str, str]) -> None:
    assert tokenizer_source(PipelineOptions(**TINY, **fields)) == expected


async def test_dtype_for_a_module_that_the_task_does_not_have_is_refused(server: FaultServer) -> None:
    publish(server)
    with pytest.raises(OptionsError, match="encoder_model"):
        await plan(**{**TINY, "dtype": {"encoder_model": "fp32"}})


# Sizes, known before


async def test_plan_before_half_way_and_after(server: FaultServer, platform: PatientPlatform) -> None:
    files = publish(server)
    total = sum(len(files[path]) for path in NEEDED)
    before = await plan(**TINY)
    assert paths(before) == NEEDED
    assert [planned.size for planned in before.files] == [len(files[path]) for path in NEEDED]
    # Only what else depends on it has been fetched.
    assert [planned.stored for planned in before.files] == [True, False, False, False]
    assert (before.total, before.missing, before.is_cached) == (total, total - len(files["config.json"]), False)
    assert (before.options.device, before.options.num_threads) == ("wasm", 0)

    await model_hub(platform).get_file(MODEL, REVISION, "tokenizer.json")
    server.fault(f"*/{FILES['fp32']}", "truncate", 1000, times=1)
    server.fault(f"*/{FILES['fp32']}", "drop")
    with pytest.raises(DownloadError):
        await create_engine(**TINY)
    server.mend()
    half = await plan(**TINY)
    assert [planned.stored for planned in half.files] == [True, True, True, False]
    assert [planned.loaded for planned in half.files][-1] == 1000
    assert (half.total, half.missing, half.is_cached) == (total, len(files[FILES["fp32"]]) - 1000, False)

    async with await create_engine(**TINY):
        pass
    after = await plan(**TINY)
    assert (after.total, after.missing, after.is_cached) == (total, 0, True)
    assert all(planned.stored and planned.loaded == planned.size for planned in after.files)


async def test_sizes_come_from_the_manifest_with_no_further_request(server: FaultServer) -> None:
    files = publish(server)
    made = await plan(**TINY)
    assert made.total == sum(len(files[path]) for path in NEEDED)
    assert server.requests() == [f"GET /{FOLDER}/manifest.json", f"GET /{FOLDER}/config.json"]


async def test_sizes_come_from_heads_where_there_is_no_list(server: FaultServer) -> None:
    files = publish(server, TinyModel(manifest=False))
    made = await plan(**TINY)
    assert [planned.size for planned in made.files] == [len(files[path]) for path in NEEDED]
    assert sorted(server.requests()[2:]) == sorted(f"HEAD /{FOLDER}/{path}" for path in NEEDED[1:])


async def test_sizes_come_from_the_tree_of_hugging_face(server: FaultServer) -> None:
    files = TinyModel(manifest=False).files()
    server.hugging_face(MODEL, REVISION, files)
    options = {**TINY, "model_hub_root_url": server.url, "model_hub_url_template": "{model}/resolve/{revision}"}
    made = await plan(**options)
    assert [planned.size for planned in made.files] == [len(files[path]) for path in NEEDED]
    assert server.requests() == [
        f"GET /api/models/{MODEL}/tree/{REVISION}",
        f"GET /{MODEL}/resolve/{REVISION}/config.json",
    ]


async def test_size_that_nobody_tells_is_unknown(server: FaultServer) -> None:
    files = publish(server, TinyModel(manifest=False))
    server.fault(f"*/{FILES['fp32']}", "no_length", method="*")
    made = await plan(**TINY)
    assert made.files[-1].size is None
    assert made.total == sum(len(files[path]) for path in NEEDED[:-1])
    async with await create_engine(**TINY) as engine:
        assert (await engine.run("cat")).shape == (1, 3, 8)
    assert (await plan(**TINY)).is_cached


async def test_model_that_is_not_there_cannot_be_planned(server: FaultServer) -> None:
    with pytest.raises(FileNotFoundOnHubError, match=r"config\.json"):
        await plan(**TINY)
    assert not await is_cached(**TINY)


async def test_config_that_is_none_cannot_be_planned(server: FaultServer) -> None:
    server.write(f"{FOLDER}/config.json", "[]")
    for use in (plan, plan, is_cached):
        with pytest.raises(UnsupportedModelError):
            await use(**TINY)


async def test_task_without_a_model_needs_no_files(server: FaultServer) -> None:
    @task("nothing")
    async def nothing(context: TaskContext) -> None: ...

    made = await plan(task_name="nothing")
    assert (made.files, made.total, made.missing, made.is_cached) == ((), 0, 0, True)
    assert await is_cached(task_name="nothing")
    assert server.requests() == []


# Modules and optional files


@pytest.mark.parametrize("shards", [0, 1, 2])
async def test_engine_of_two_modules_loads_what_its_plan_says(server: FaultServer, shards: int) -> None:
    register_pair()
    files = pair_files(shards)
    write(server, files)
    options = {**PAIR, "dtype": {"encoder_model": "fp32"}}
    made = await plan(**options)
    assert sorted(paths(made)) == sorted(files)
    assert made.total == sum(map(len, files.values()))
    async with await create_engine(**options) as engine:
        sessions, optional = await engine.run()
    assert sessions == ["decoder_model_merged", "encoder_model"]
    assert optional == {"tokenizer_config.json": files["tokenizer_config.json"]}
    assert {path for path in files if f"GET /{FOLDER}/{path}" in server.requests()} == set(files)
    assert (await plan(**options)).is_cached


async def test_optional_file_is_planned_where_the_hub_has_it(server: FaultServer) -> None:
    register_pair()
    write(server, {**pair_files(), "generation_config.json": b'{"a": 1}'})
    options = {**PAIR, "dtype": {"encoder_model": "fp32"}}
    made = await plan(**options)
    [optional] = [planned for planned in made.files if planned.file.purpose == "optional"]
    assert (optional.file.path, optional.size, optional.stored) == ("generation_config.json", 8, False)
    async with await create_engine(**options) as engine:
        _, given = await engine.run()
    assert given["generation_config.json"] == b'{"a": 1}'


async def test_absent_optional_file_is_left_out_and_does_not_hinder_a_start_offline(
    server: FaultServer,
) -> None:
    register_pair()
    write(server, pair_files())
    options = {**PAIR, "dtype": {"encoder_model": "fp32"}}
    assert "generation_config.json" not in paths(await plan(**options))
    async with await create_engine(**options):
        pass
    server.fault("*", "drop", method="*")
    async with await create_engine(**options) as engine:
        _, given = await engine.run()
    assert set(given) == {"tokenizer_config.json"}


# Is it cached?


async def test_question_whether_all_is_stored_makes_no_request(server: FaultServer, platform: PatientPlatform) -> None:
    publish(server)
    assert not await is_cached(**TINY)
    assert server.requests() == []
    hub: ModelHub = model_hub(platform)
    for path in NEEDED:
        assert not await is_cached(**TINY)
        await hub.get_file(MODEL, REVISION, path)
    server.forget()
    assert await is_cached(**TINY)
    assert not await is_cached(**{**TINY, "dtype": "q8"})
    assert not await is_cached(**{**TINY, "model_revision": "main"})
    assert await is_cached(PipelineOptions(**TINY))
    with pytest.raises(OptionsError, match="not both"):
        await is_cached(PipelineOptions(**TINY), dtype="fp32")
    assert server.requests() == []


# The runtime


def publish_runtime(server: FaultServer) -> None:
    runtime = server.root.parent / "ort-wasm-simd-threaded.wasm"
    runtime.write_bytes(b"\0asm" + bytes(996))
    record = {"name": runtime.name, "version": "1.0.0"}
    write_mirror(
        server.root / "v1",
        [
            MirrorCollection(
                "main",
                "ml-onnx-runtime",
                1_760_000_000_000,
                {"runtime": {**record}},
                {"runtime": MirrorAttachment(runtime, "application/wasm")},
            ),
            MirrorCollection("main", "ml-inference-options", 1_760_000_000_000, {}),
        ],
    )
    configure(settings_server=f"{server.url}/v1")


async def test_runtime_is_planned_where_the_surroundings_bring_none(
    server: FaultServer, platform: PatientPlatform
) -> None:
    platform.environment = dataclasses.replace(platform.environment, needs_runtime_file=True, runtime_version="1.0.0")
    files = publish(server)
    with pytest.raises(OptionsError, match="settings_server"):
        await plan(**TINY)
    publish_runtime(server)
    made = await plan(**TINY)
    assert paths(made) == [*NEEDED, "ort-wasm-simd-threaded.wasm"]
    runtime = made.files[-1]
    assert (runtime.file.purpose, runtime.size, runtime.stored) == ("runtime", 1000, False)
    assert made.total == 1000 + sum(len(files[path]) for path in NEEDED)
    for path in NEEDED:
        await model_hub(platform).get_file(MODEL, REVISION, path)
    assert not await is_cached(**TINY)
    async with await create_engine(**TINY):
        pass
    assert await is_cached(**TINY)
    assert (await plan(**TINY)).is_cached


async def test_settings_that_do_not_know_the_runtime_are_an_error(
    server: FaultServer, platform: PatientPlatform
) -> None:
    platform.environment = dataclasses.replace(platform.environment, needs_runtime_file=True, runtime_version="2.0.0")
    publish(server)
    publish_runtime(server)
    with pytest.raises(SettingsError, match=r"2\.0\.0"):
        await plan(**TINY)


@pytest.mark.parametrize(
    ("there", "needed", "besides"),
    [
        ({"tokenizer.json", "vocab.txt"}, ["tokenizer.json"], ["tokenizer_config.json"]),
        ({"vocab.txt"}, ["vocab.txt"], [*TOKENIZER_OPTIONAL_FILES]),
        ({"vocab.json", "merges.txt"}, ["vocab.json", "merges.txt"], [*TOKENIZER_OPTIONAL_FILES]),
        ({"vocab.json"}, ["tokenizer.json"], ["tokenizer_config.json"]),
        (set(), ["tokenizer.json"], ["tokenizer_config.json"]),
    ],
)
async def test_tokenizer_is_made_of_the_first_kind_of_files_that_is_whole(
    there: set[str], needed: list[str], besides: list[str]
) -> None:
    async def exists(_model: str, _revision: str, path: str) -> bool:
        return path in there

    files = await tokenizer_files("org/name", "v1.0.0", exists)
    assert [file.path for file in files if file.required] == needed
    assert [file.path for file in files if not file.required] == besides
