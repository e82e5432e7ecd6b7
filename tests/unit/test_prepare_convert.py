"""Conversion of a tiny BERT with random weights, built here: files, hashes, parity, refusals, no traces of failure."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    PreTrainedModel,
)

from pywebml.errors import ConversionError, PrepareError, SourceError
from pywebml.prepare.architectures import export_model
from pywebml.prepare.convert import MAX_OPSET, Choices, convert
from pywebml.prepare.quantizing import quantize
from pywebml.prepare.quiet import quiet
from pywebml.prepare.source import open_checkpoint
from tests.parity.tiny_models import tiny_tokenizer

NAME = "tests/tiny-bert"
REVISION = "v1.0.0"
CARD = "---\nlanguage: en\nlicense: 'mit'\n---\n# Tiny\n"


def no_log(_line: str) -> None:
    """Progress is not what these tests look at."""


def write_checkpoint(folder: Path, model: PreTrainedModel) -> Path:
    with quiet():
        model.save_pretrained(folder)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 64}', encoding="utf-8")
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return folder


def tiny_bert() -> BertModel:
    torch.manual_seed(7)
    return BertModel(
        BertConfig(
            vocab_size=200,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
        )
    )


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tiny_bert())


@pytest.fixture(scope="module")
def converted(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    hub = tmp_path_factory.mktemp("hub")
    checkpoint = open_checkpoint(checkpoint_folder, "a test")
    return convert(checkpoint, hub, NAME, revision=REVISION, log=no_log)


@pytest.fixture
def broken(checkpoint_folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to damage."""
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "broken"))


def left_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def try_to_convert(folder: Path, hub: Path, **choices: Any) -> None:
    convert(open_checkpoint(folder, "a test"), hub, NAME, Choices(**choices), revision=REVISION, log=no_log)


def padded_batch(batch: int, sequence: int) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(3)
    ids = random.integers(4, 60, (batch, sequence))
    mask = np.ones_like(ids)
    for row in range(1, batch):
        mask[row, sequence - row :] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def run_onnx(path: Path, feeds: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (hidden,) = session.run(["last_hidden_state"], feeds)
    assert isinstance(hidden, np.ndarray)
    return hidden


def run_torch(folder: Path, feeds: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    with quiet(), torch.no_grad():
        # In evaluation mode, as `from_pretrained` leaves it.
        model = BertModel.from_pretrained(folder)
        output = model(**{name: torch.from_numpy(feed) for name, feed in feeds.items()})
    hidden: np.ndarray[Any, Any] = output.last_hidden_state.numpy()
    return hidden


def test_hub_folder_holds_model_files_tokenizer_report_and_card(converted: Path) -> None:
    assert converted.parts[-3:] == ("tests", "tiny-bert", "v1.0.0")
    assert left_in(converted) == [
        "README.md",
        "config.json",
        "manifest.json",
        "onnx",
        "onnx/model.onnx",
        "onnx/model_quantized.onnx",
        "report.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_manifest_lists_every_other_file_with_size_and_hash(converted: Path) -> None:
    files = json.loads((converted / "manifest.json").read_text())["files"]

    present = {path for path in left_in(converted) if (converted / path).is_file()}
    assert set(files) == present - {"manifest.json"}
    for path, entry in files.items():
        data = (converted / path).read_bytes()
        assert entry == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize(("batch", "sequence"), [(1, 1), (1, 9), (3, 12), (2, 64)])
def test_fp32_equals_pytorch_where_the_mask_keeps(
    converted: Path, checkpoint_folder: Path, batch: int, sequence: int
) -> None:
    feeds = padded_batch(batch, sequence)

    difference = run_onnx(converted / "onnx/model.onnx", feeds) - run_torch(checkpoint_folder, feeds)

    assert np.abs(difference)[feeds["attention_mask"] == 1].max() < 1e-5


def test_q8_is_smaller_and_close_to_pytorch(converted: Path, checkpoint_folder: Path) -> None:
    feeds = padded_batch(3, 12)
    quantized = run_onnx(converted / "onnx/model_quantized.onnx", feeds)[0].mean(axis=0)
    exact = run_torch(checkpoint_folder, feeds)[0].mean(axis=0)

    cosine = quantized @ exact / np.linalg.norm(quantized) / np.linalg.norm(exact)
    sizes = [(converted / "onnx" / name).stat().st_size for name in ("model_quantized.onnx", "model.onnx")]
    assert 0.99 < cosine < 1 - 1e-9
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("name", ["model.onnx", "model_quantized.onnx"])
def test_inputs_and_output_have_the_agreed_names_and_free_dimensions(converted: Path, name: str) -> None:
    session = onnxruntime.InferenceSession(converted / "onnx" / name, providers=["CPUExecutionProvider"])

    free = ["batch_size", "sequence_length"]
    assert {value.name: value.shape for value in session.get_inputs()} == {
        "input_ids": free,
        "attention_mask": free,
        "token_type_ids": free,
    }
    assert [(value.name, value.shape) for value in session.get_outputs()] == [("last_hidden_state", [*free, 32])]


def test_files_carry_no_path_of_this_machine(converted: Path, checkpoint_folder: Path) -> None:
    for path in (path for path in converted.rglob("*") if path.is_file()):
        data = path.read_bytes()
        for secret in (str(checkpoint_folder), str(converted.parents[2]), sys.prefix, str(Path.cwd())):
            assert secret.encode() not in data, path.name


def test_report_tells_source_versions_and_measured_errors(converted: Path, checkpoint_folder: Path) -> None:
    report = json.loads((converted / "report.json").read_text())

    assert (report["model"], report["revision"], report["task"]) == (NAME, REVISION, "feature-extraction")
    assert report["source"]["license"] == "mit"
    assert report["versions"]["torch"] == torch.__version__
    assert report["model_type"] == "bert"
    assert report["parts"] == {
        "model": {"inputs": ["input_ids", "attention_mask", "token_type_ids"], "outputs": ["last_hidden_state"]}
    }
    assert report["source"]["weights"] == {
        "model.safetensors": hashlib.sha256((checkpoint_folder / "model.safetensors").read_bytes()).hexdigest()
    }
    assert report["options"]["modes"] == ["fp32", "q8"]
    exact, quantized = report["files"]
    assert exact["max_abs_error"] < 1e-4
    assert exact["max_rel_error"] < 1e-5
    assert exact["worst_cosine"] > 0.99999
    assert exact["quantized_nodes"] == 0
    # Six products with constant matrices per layer, and the tables of words and of positions.
    assert quantized["quantized_nodes"] == 14
    assert quantized["worst_cosine"] >= 0.98
    for row in (exact, quantized):
        assert row["opset"] == 18
        assert row["ir_version"] <= 13
        # One sentence, a padded batch, as long as the model goes, and pairs.
        shapes = [case["shapes"]["input_ids"] for case in row["cases"]]
        assert [batch for batch, _ in shapes] == [1, 8, 2, 2]
        assert shapes[2][1] == 64
        assert all(case["outputs"]["last_hidden_state"]["worst_cosine"] >= 0.97 for case in row["cases"])


def test_card_names_the_licence_and_the_command(converted: Path) -> None:
    card = (converted / "README.md").read_text()

    assert card.startswith("---\nlicense: mit\n")
    assert "--name tests/tiny-bert --revision v1.0.0" in card
    assert "such as hidden states or logits of tokens: of the mean over the positions;" in card


def test_same_checkpoint_gives_same_bytes(converted: Path, checkpoint_folder: Path, tmp_path: Path) -> None:
    try_to_convert(checkpoint_folder, tmp_path)

    again = tmp_path / NAME / REVISION
    assert (again / "manifest.json").read_bytes() == (converted / "manifest.json").read_bytes()


def test_model_without_token_types_gets_two_inputs(tmp_path: Path) -> None:
    torch.manual_seed(7)
    config = DistilBertConfig(vocab_size=200, dim=32, n_layers=1, n_heads=4, hidden_dim=64, max_position_embeddings=64)
    folder = write_checkpoint(tmp_path / "distilbert", DistilBertModel(config))

    lines: list[str] = []
    checkpoint = open_checkpoint(folder, "a test")
    target = convert(checkpoint, tmp_path / "hub", "tiny", Choices(modes=("q8",)), log=lines.append)

    model = onnx.load(target / "onnx/model_quantized.onnx")
    assert [value.name for value in model.graph.input] == ["input_ids", "attention_mask"]
    assert not (target / "onnx/model.onnx").exists()
    assert any("worst cosine" in line for line in lines)


def test_failure_keeps_the_revision_that_was_there(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / NAME / REVISION
    old.mkdir(parents=True)
    (old / "config.json").write_text("old")

    def fail(*_arguments: object, **_options: object) -> None:
        raise ConversionError("the exporter failed")

    monkeypatch.setattr("pywebml.prepare.architectures.export_model", fail)
    with pytest.raises(ConversionError, match="the exporter failed"):
        try_to_convert(checkpoint_folder, tmp_path)

    assert left_in(tmp_path) == ["tests", "tests/tiny-bert", f"{NAME}/{REVISION}", f"{NAME}/{REVISION}/config.json"]


def test_pickled_weights_are_refused_unread(broken: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (broken / "ran",))

    (broken / "model.safetensors").unlink()
    (broken / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))

    with pytest.raises(SourceError, match=r"only as pytorch_model\.bin.*run code"):
        open_checkpoint(broken, "a test")
    assert not (broken / "ran").exists()


def replace_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: replace_text(folder / "config.json", "{"), "not readable as JSON"),
        (lambda folder: replace_text(folder / "config.json", "[]"), "holds list, expected an object"),
        (lambda folder: shutil.rmtree(folder), "There is no folder"),
    ],
    ids=["no config", "no weights", "half a config", "a list as config", "no folder"],
)
def test_unusable_checkpoint_is_refused(broken: Path, damage: Any, message: str) -> None:
    damage(broken)

    with pytest.raises(SourceError, match=message):
        open_checkpoint(broken, "a test")


def test_text_model_without_a_tokenizer_is_refused(broken: Path, tmp_path: Path) -> None:
    (broken / "tokenizer.json").unlink()

    with pytest.raises(SourceError, match=r"a test has no tokenizer\.json"):
        try_to_convert(broken, tmp_path / "hub")
    assert left_in(tmp_path / "hub") == []


def without(tensors: dict[str, torch.Tensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
    dropped = set(names)
    return {name: tensor for name, tensor in tensors.items() if name not in dropped}


@pytest.mark.parametrize("content", ["{broken", "{}"])
def test_unusable_tokenizer_is_refused_before_the_export(broken: Path, tmp_path: Path, content: str) -> None:
    (broken / "tokenizer.json").write_text(content)
    lines: list[str] = []

    with pytest.raises(SourceError, match=r"tokenizer\.json is not usable"):
        convert(open_checkpoint(broken, "a test"), tmp_path / "hub", NAME, log=lines.append)
    assert not [line for line in lines if "Exporting" in line]


def test_tokenizer_that_would_know_no_words_is_not_made(broken: Path, tmp_path: Path) -> None:
    (broken / "tokenizer.json").unlink()
    (broken / "tokenizer_config.json").unlink()
    (broken / "vocab.json").write_text("nothing like a vocabulary")

    with pytest.raises(SourceError, match=r"has no tokenizer\.json, and transformers cannot make it of vocab\.json"):
        try_to_convert(broken, tmp_path / "hub")


@pytest.mark.parametrize("place", ["", "weights"])
def test_checkpoint_is_not_replaced_by_what_is_made_of_it(checkpoint_folder: Path, tmp_path: Path, place: str) -> None:
    folder = tmp_path / "hub" / NAME / REVISION / place
    shutil.copytree(checkpoint_folder, folder)
    before = left_in(tmp_path)

    with pytest.raises(PrepareError, match=r"which the result would replace\. Choose another --output"):
        try_to_convert(folder, tmp_path / "hub")
    assert left_in(tmp_path) == before


def test_missing_weights_are_refused_instead_of_invented(broken: Path, tmp_path: Path) -> None:
    weights = broken / "model.safetensors"
    name = "encoder.layer.1.output.dense.weight"
    save_file(without(load_file(weights), [name]), weights, metadata={"format": "pt"})

    with pytest.raises(ConversionError, match=r"1 are missing.*encoder\.layer\.1\.output\.dense\.weight"):
        try_to_convert(broken, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_weights_of_another_shape_are_refused(broken: Path, tmp_path: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    replace_text(broken / "config.json", json.dumps({**config, "intermediate_size": 48}))

    with pytest.raises(ConversionError):
        try_to_convert(broken, tmp_path / "hub")


def test_truncated_weights_are_refused(broken: Path, tmp_path: Path) -> None:
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])

    with pytest.raises(ConversionError, match="cannot load the weights"):
        try_to_convert(broken, tmp_path / "hub")


def test_unknown_type_is_refused(broken: Path, tmp_path: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    replace_text(broken / "config.json", json.dumps({**config, "model_type": "flava"}))

    with pytest.raises(ConversionError, match="type 'flava' cannot be converted"):
        try_to_convert(broken, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"opset": 17}, "Opset 17 is not possible"),
        ({"opset": 26}, "Opset 26 is not possible: choose one from 18 to 25"),
        ({"modes": ("fp32", "q3")}, "Modes q3 cannot be written"),
        ({"modes": ()}, "cannot be written"),
        ({"jobs": 0}, "0 jobs are not possible"),
        ({"external_data": 0}, "Files of 0 bytes"),
        ({"task": "translation"}, "cannot be converted for 'translation'"),
    ],
)
def test_choices_that_are_not_possible_are_refused(
    checkpoint_folder: Path, tmp_path: Path, choices: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConversionError, match=message):
        try_to_convert(checkpoint_folder, tmp_path, **choices)
    assert left_in(tmp_path) == []


def test_the_newest_opset_that_is_offered_can_be_written(checkpoint_folder: Path, tmp_path: Path) -> None:
    try_to_convert(checkpoint_folder, tmp_path, opset=MAX_OPSET, modes=("fp32", "q4f16"))

    report = json.loads((tmp_path / NAME / REVISION / "report.json").read_text())
    assert [row["opset"] for row in report["files"]] == [MAX_OPSET, MAX_OPSET]


@pytest.mark.parametrize("name", ["../tiny", "tests/..", "/tiny", "a/b/c", "", ".hidden", "a\\b"])
def test_names_that_leave_the_hub_are_refused(checkpoint_folder: Path, tmp_path: Path, name: str) -> None:
    checkpoint = open_checkpoint(checkpoint_folder, "a test")
    with pytest.raises(PrepareError, match="cannot be a model's name"):
        convert(checkpoint, tmp_path, name, log=no_log)
    with pytest.raises(PrepareError, match="cannot be a revision"):
        convert(checkpoint, tmp_path, NAME, revision=f"{name}/..", log=no_log)


def test_quantising_without_a_constant_matrix_is_refused(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "sum", values[:1], values[1:])
    source = tmp_path / "sum.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), source)

    with pytest.raises(ConversionError, match="changed nothing"):
        quantize(source, tmp_path / "sum_quantized.onnx", "q8")


def test_tokenizer_of_a_larger_model_is_refused(broken: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"extra{index}" for index in range(200)] + ["guitar"])
    description = json.loads(tokenizer.to_str())
    vocabulary = description["model"]["vocab"]
    vocabulary["cat"] = 250
    replace_text(broken / "tokenizer.json", json.dumps(description))
    (part,) = export_model(open_checkpoint(broken, "a test")).parts

    with pytest.raises(SourceError, match=r"gives token 250.*only 200 tokens"):
        part.cases()
