"""Text encoders and their heads: tokens in, hidden states or logits out."""

from __future__ import annotations

import inspect
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto

from pywebml.errors import ConversionError
from pywebml.prepare.exporting.rows import Loaded, Row, Table
from pywebml.prepare.exporting.texts import MAX_LENGTH, SENTENCES, Text, tokenize
from pywebml.prepare.exporting.torch_export import BATCH, SEQUENCE, export_module, require_evaluation
from pywebml.prepare.parts import Case, Part

MODEL_TYPES = (
    "albert",
    "bert",
    "camembert",
    "convbert",
    "deberta",
    "deberta-v2",
    "distilbert",
    "electra",
    "mobilebert",
    "modernbert",
    "mpnet",
    "roberta",
    "roformer",
    "squeezebert",
    "xlm",
    "xlm-roberta",
)
"""Values of `model_type` that the tests have seen agree with PyTorch."""

QUESTIONS = (
    "Where does the cat sit?",
    "What is the man playing?",
)


@dataclass(frozen=True, slots=True)
class Head:
    """What a task makes of an encoder.

    Attributes:
        auto_class: Of transformers.
        types: Its models, by `model_type`.
        outputs: Of the model and of the file.
        per_token: Whether outputs have an axis for the tokens behind the one for the batch.
        longest: How long the texts of the cases are, in tokens.
        optional_weights: See `Row`.
    """

    auto_class: str
    types: Container[str]
    outputs: tuple[str, ...]
    per_token: bool = True
    longest: int = MAX_LENGTH
    optional_weights: tuple[str, ...] = ()


_SEQUENCE_HEAD = Head(
    "AutoModelForSequenceClassification",
    modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    ("logits",),
    per_token=False,
)
HEADS: Mapping[str, Head] = {
    "feature-extraction": Head(
        "AutoModel", modeling_auto.MODEL_MAPPING_NAMES, ("last_hidden_state",), optional_weights=("pooler",)
    ),
    # A number for every token of the vocabulary at every position: long texts would take gigabytes.
    "fill-mask": Head("AutoModelForMaskedLM", modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, ("logits",), longest=48),
    "text-classification": _SEQUENCE_HEAD,
    "zero-shot-classification": _SEQUENCE_HEAD,
    "token-classification": Head(
        "AutoModelForTokenClassification", modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, ("logits",)
    ),
    "question-answering": Head(
        "AutoModelForQuestionAnswering",
        modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
        ("start_logits", "end_logits"),
    ),
}
"""Task to head."""


class Encoder(nn.Module):
    """A model with its inputs by position and the outputs that a task needs.

    Args:
        model: In float32.
        input_names: What the exported file takes, in order.
        output_names: What it gives, in order.
    """

    def __init__(self, model: PreTrainedModel, input_names: tuple[str, ...], output_names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.input_names = input_names
        self.output_names = output_names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Int64 tensors of shape [batch, sequence] to the outputs in float32."""
        output = self.model(**dict(zip(self.input_names, inputs, strict=True)), return_dict=True)
        return tuple(output[name] for name in self.output_names)


def encoder_parts(loaded: Loaded) -> tuple[Part, ...]:
    """The one part of an encoder, named `model`.

    Raises:
        ConversionError: The checkpoint is set up as a decoder.
    """
    config, head = loaded.config, HEADS[loaded.task]
    if config.is_encoder_decoder or getattr(config, "is_decoder", False):
        raise ConversionError(
            f"This '{config.model_type}' is set up as a decoder (is_decoder in config.json), so it is no text encoder.",
            model_type=config.model_type,
        )
    inputs = token_inputs(loaded.model)
    encoder = Encoder(loaded.model, inputs, head.outputs).eval()
    dims = {name: {0: BATCH, 1: SEQUENCE} for name in inputs}
    dims |= {name: {0: BATCH, 1: SEQUENCE} if head.per_token else {0: BATCH} for name in head.outputs}

    def write(path: Path, opset: int) -> None:
        # A tensor of its own for each input: the exporter takes one tensor in two places for one input.
        examples = [torch.ones((2, 7), dtype=torch.int64) for _ in inputs]
        export_module(encoder, examples, inputs, head.outputs, dims, path, opset)

    return (Part("model", inputs, head.outputs, write, lambda: _cases(loaded, encoder, head)),)


def token_inputs(model: PreTrainedModel) -> tuple[str, ...]:
    """Which of a tokenizer's arrays a text model takes."""
    names = ["input_ids", "attention_mask"]
    # With a single token type (RoBERTa) tokenizers give none, and transformers fills in zeros.
    if (
        "token_type_ids" in inspect.signature(model.forward).parameters
        and getattr(model.config, "type_vocab_size", 0) > 1
    ):
        names.append("token_type_ids")
    return tuple(names)


def _cases(loaded: Loaded, encoder: Encoder, head: Head) -> list[Case]:
    require_evaluation(encoder)
    long_text = " ".join(SENTENCES * 20)
    pairs: list[Text] = [(QUESTIONS[0], SENTENCES[0]), (QUESTIONS[1], f"{SENTENCES[1]} {SENTENCES[3]}")]
    batches: dict[str, list[Text]] = {
        "one text": [SENTENCES[0]],
        "eight texts, padded": list(SENTENCES),
        "a text of full length and a short one": [long_text, SENTENCES[1]],
        "two pairs, padded": pairs,
    }
    cases = []
    for title, texts in batches.items():
        tokens = tokenize(loaded, texts, longest=head.longest)
        feeds = {name: getattr(tokens, name) for name in encoder.input_names}
        with torch.no_grad():
            answers = encoder(*(torch.from_numpy(feed) for feed in feeds.values()))
        expected = {name: answer.numpy() for name, answer in zip(head.outputs, answers, strict=True)}
        mask = tokens.attention_mask.astype(bool)
        kept = {name: _broadcast(mask, array.ndim) for name, array in expected.items()} if head.per_token else {}
        cases.append(Case(title, feeds, expected, kept))
    return cases


def _broadcast(mask: NDArray[np.bool_], axes: int) -> NDArray[np.bool_]:
    return mask.reshape(mask.shape + (1,) * (axes - mask.ndim))


def _rows() -> Table:
    rows = {
        task: Row(head.auto_class, encoder_parts, optional_weights=head.optional_weights)
        for task, head in HEADS.items()
    }
    return {
        model_type: {task: row for task, row in rows.items() if model_type in HEADS[task].types}
        for model_type in MODEL_TYPES
    }


ROWS: Table = _rows()
