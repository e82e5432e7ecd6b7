"""The table of architectures: what a checkpoint is for, what is refused and how."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, BertConfig, BertForMaskedLM, PretrainedConfig

from pywebml.errors import ConversionError
from pywebml.prepare.architectures import ARCHITECTURES, export_model, infer_task, row_of
from pywebml.prepare.exporting.rows import load_config
from pywebml.prepare.quiet import quiet
from pywebml.prepare.source import Checkpoint


def config_of(model_type: str, *architectures: str) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.for_model(model_type, architectures=list(architectures))
    return config


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a masked language model."""
    folder = tmp_path_factory.mktemp("bert")
    with quiet():
        torch.manual_seed(5)
        BertForMaskedLM(
            BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("model_type", "architecture", "task"),
    [
        ("bert", "BertModel", "feature-extraction"),
        ("bert", "BertForMaskedLM", "fill-mask"),
        ("bert", "BertForPreTraining", "fill-mask"),
        ("distilbert", "DistilBertForSequenceClassification", "text-classification"),
        ("roberta", "RobertaForTokenClassification", "token-classification"),
        ("deberta-v2", "DebertaV2ForQuestionAnswering", "question-answering"),
        ("gpt2", "GPT2LMHeadModel", "text-generation"),
        ("xlm", "XLMWithLMHeadModel", "fill-mask"),
        ("llama", "LlamaForCausalLM", "text-generation"),
    ],
)
def test_the_task_is_what_the_class_in_the_configuration_is_for(model_type: str, architecture: str, task: str) -> None:
    assert infer_task(config_of(model_type, architecture)) == task


@pytest.mark.parametrize("architectures", [(), ("BertForNextSentencePrediction",)])
def test_a_configuration_that_names_no_task_asks_for_one(architectures: tuple[str, ...]) -> None:
    with pytest.raises(ConversionError, match=r"Choose with --task from feature-extraction, fill-mask"):
        infer_task(config_of("bert", *architectures))


def test_architectures_that_are_no_names_ask_for_a_task() -> None:
    config = config_of("bert")
    damaged: Any = [1]
    config.architectures = damaged

    with pytest.raises(ConversionError, match=r"its architectures are 1\. Choose with --task"):
        infer_task(config)


def test_an_unknown_type_is_refused_with_the_nearest_and_the_list() -> None:
    with pytest.raises(ConversionError, match=r"'lama' cannot be converted \(did you mean 'llama'\?\).*bert.*qwen3"):
        row_of("lama", "text-generation")


def test_a_task_without_a_row_is_refused_with_the_nearest_and_the_list() -> None:
    with pytest.raises(ConversionError, match=r"'fillmask' \(did you mean 'fill-mask'\?\); possible: feature-ext"):
        row_of("bert", "fillmask")


def test_every_row_names_a_class_of_transformers() -> None:
    import transformers

    rows = [row for tasks in ARCHITECTURES.values() for row in tasks.values()]

    assert all(tasks for tasks in ARCHITECTURES.values())
    assert all(hasattr(transformers, row.auto_class) for row in rows)


def test_a_head_that_the_checkpoint_lacks_is_refused(bert: Path) -> None:
    with pytest.raises(ConversionError, match=r"4 are missing.*task that it was trained for") as caught:
        export_model(Checkpoint(bert, "a test", ""), "text-classification")
    assert "classifier.weight" in caught.value.details["missing"]


def test_a_pooler_may_be_missing_for_hidden_states(bert: Path) -> None:
    exported = export_model(Checkpoint(bert, "a test", ""), "feature-extraction")

    assert [part.outputs for part in exported.parts] == [("last_hidden_state",)]


def test_weights_of_another_shape_are_refused(bert: Path, tmp_path: Path) -> None:
    config = json.loads((bert / "config.json").read_text(encoding="utf-8")) | {"intermediate_size": 24}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(load_file(bert / "model.safetensors"), tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ConversionError, match=r"3 have another shape, such as bert\.encoder\.layer\.0\.[a-z.]+\. Give"):
        export_model(Checkpoint(tmp_path, "a test", ""))


def test_an_encoder_set_up_as_a_decoder_is_refused(bert: Path, tmp_path: Path) -> None:
    config = json.loads((bert / "config.json").read_text(encoding="utf-8")) | {"is_decoder": True}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(load_file(bert / "model.safetensors"), tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ConversionError, match="set up as a decoder"):
        export_model(Checkpoint(tmp_path, "a test", ""), "feature-extraction")


def write_remote_code(folder: Path) -> Path:
    """A checkpoint with Python code that leaves a mark when it runs."""
    mark = folder / "ran"
    (folder / "configuration_evil.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        "from transformers import BertConfig\nclass EvilConfig(BertConfig):\n    model_type = 'evil'\n",
        encoding="utf-8",
    )
    config: dict[str, Any] = {"model_type": "evil", "auto_map": {"AutoConfig": "configuration_evil.EvilConfig"}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return mark


def test_code_of_a_checkpoint_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = write_remote_code(tmp_path)
    # Whoever answers a question of transformers on a terminal would say yes.
    monkeypatch.setattr("builtins.input", lambda *_: "y")

    with pytest.raises(ConversionError, match=r"if you trust it, give --trust-remote-code"):
        export_model(Checkpoint(tmp_path, "a test", ""))
    assert not mark.exists()


def test_code_of_a_checkpoint_runs_when_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = write_remote_code(tmp_path)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))

    assert load_config(tmp_path, trust_remote_code=True).model_type == "evil"
    assert mark.exists()
