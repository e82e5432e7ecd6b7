"""Decoder-only models with a key-value cache: tokens in, logits and the longer cache out."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from pywebml.errors import ConversionError
from pywebml.prepare.exporting.rows import Loaded, Row, Table
from pywebml.prepare.exporting.texts import SENTENCES, tokenize
from pywebml.prepare.exporting.torch_export import BATCH, SEQUENCE, export_module
from pywebml.prepare.parts import Case, Part
from pywebml.prepare.quiet import quiet

MODEL_TYPES = (
    "bloom",
    "codegen",
    "cohere",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "granite",
    "helium",
    "llama",
    "mistral",
    "mpt",
    "nemotron",
    "olmo",
    "olmo2",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
    "stablelm",
    "starcoder2",
)
"""Values of `model_type` that the tests have seen agree with PyTorch."""

PAST, TOTAL = "past_sequence_length", "past_sequence_length + sequence_length"
LONGEST_PROMPT = 24
"""Tokens of the cases' prompts."""


class Decoder(nn.Module):
    """A model with its inputs and the tensors of its cache by position.

    Args:
        model: In float32.
        input_names: What the exported file takes before the cache, in order.
    """

    def __init__(self, model: PreTrainedModel, input_names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.input_names = input_names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Inputs, then key and value [batch, heads, past, size] of each layer, to logits and longer keys and values."""
        named = dict(zip(self.input_names, inputs, strict=False))
        past = inputs[len(named) :]
        # Without the configuration: layers with a sliding window then keep all of the past too, and their masks hide
        # what the window does not reach. Transformers.js drops nothing from a cache either.
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        output = self.model(**named, past_key_values=cache, use_cache=True, return_dict=True)
        present = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        return (output.logits, *present)


def decoder_parts(loaded: Loaded) -> tuple[Part, ...]:
    """The part `model`.

    Raises:
        ConversionError: The model's cache is not one of keys and values alone.
    """
    decoder = Decoder(loaded.model, _input_names(loaded.model)).eval()
    caches = _empty_caches(loaded.model, 1)
    past, present = cache_names("past_key_values", len(caches) // 2), cache_names("present", len(caches) // 2)
    inputs, outputs = (*decoder.input_names, *past), ("logits", *present)
    dims = {
        "input_ids": {0: BATCH, 1: SEQUENCE},
        "attention_mask": {0: BATCH, 1: TOTAL},
        "position_ids": {0: BATCH, 1: SEQUENCE},
        "logits": {0: BATCH, 1: SEQUENCE},
    }
    dims |= {name: {0: BATCH, 2: PAST} for name in past} | {name: {0: BATCH, 2: TOTAL} for name in present}

    def write(path: Path, opset: int) -> None:
        export_module(decoder, _examples(decoder, caches), inputs, outputs, dims, path, opset)

    return (Part("model", inputs, outputs, write, lambda: _cases(loaded, decoder, inputs, outputs)),)


def cache_names(prefix: str, layers: int) -> tuple[str, ...]:
    """`{prefix}.0.key`, `{prefix}.0.value`, `{prefix}.1.key`, …"""
    return tuple(f"{prefix}.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value"))


def _input_names(model: PreTrainedModel) -> tuple[str, ...]:
    taken = inspect.signature(model.forward).parameters
    return tuple(name for name in ("input_ids", "attention_mask", "position_ids") if name in taken)


def _empty_caches(model: PreTrainedModel, batch: int) -> list[Tensor]:
    """A cache of no tokens, with the shapes that the model itself gives to keys and values."""
    cache = DynamicCache()
    try:
        with quiet(), torch.no_grad():
            model(input_ids=torch.zeros((batch, 1), dtype=torch.int64), past_key_values=cache, use_cache=True)
        tensors = [tensor[:, :, :0] for layer in cache.layers for tensor in (layer.keys, layer.values)]
    # A model with a cache of another kind fails in its own way when it gets this one.
    except Exception as error:
        raise ConversionError(
            f"'{model.config.model_type}' does not work with a cache of keys and values: {type(error).__name__}: "
            f"{error}",
            model_type=model.config.model_type,
        ) from error
    if not tensors or any(tensor.ndim != 4 for tensor in tensors):
        raise ConversionError(
            f"'{model.config.model_type}' does not keep keys and values of shape [batch, heads, length, size].",
            model_type=model.config.model_type,
        )
    return tensors


def _examples(decoder: Decoder, caches: Sequence[Tensor]) -> list[Tensor]:
    batch, past, sequence = 2, 5, 3
    values = {
        "input_ids": torch.ones((batch, sequence), dtype=torch.int64),
        "attention_mask": torch.ones((batch, past + sequence), dtype=torch.int64),
        "position_ids": torch.arange(past, past + sequence).repeat(batch, 1),
    }
    zeros = [torch.zeros((batch, cache.shape[1], past, cache.shape[3])) for cache in caches]
    return [values[name] for name in decoder.input_names] + zeros


def positions(mask: NDArray[np.int64], sequence: int) -> NDArray[np.int64]:
    """Positions of the last tokens of rows that are padded on the left, as Transformers.js and `generate` count them.

    Args:
        mask: [batch, past + sequence].
        sequence: How many tokens are new.
    """
    counted: NDArray[np.int64] = np.where(mask == 1, mask.cumsum(axis=1) - 1, 1)[:, -sequence:]
    return counted


def _cases(loaded: Loaded, decoder: Decoder, inputs: Sequence[str], outputs: Sequence[str]) -> list[Case]:
    cases = []
    for title, texts in (("one text", SENTENCES[:1]), ("three texts, padded", (SENTENCES[7], *SENTENCES[:2]))):
        tokens = tokenize(loaded, texts, longest=LONGEST_PROMPT, pad_left=True)
        ids, mask = tokens.input_ids, tokens.attention_mask
        caches = [tensor.numpy() for tensor in _empty_caches(loaded.model, len(texts))]
        for step in ("empty cache", "first cached step", "second cached step", "third cached step", "several tokens"):
            values = {"input_ids": ids, "attention_mask": mask, "position_ids": positions(mask, ids.shape[1])}
            feeds = dict(zip(inputs, (*(values[name] for name in decoder.input_names), *caches), strict=True))
            with torch.no_grad():
                answers = decoder(*(torch.from_numpy(feed) for feed in feeds.values()))
            expected = dict(zip(outputs, (answer.numpy() for answer in answers), strict=True))
            cases.append(Case(f"{title}, {step}", feeds, expected, _kept(mask, ids.shape[1], outputs)))
            caches = [expected[name] for name in outputs[1:]]
            ids = expected["logits"][:, -1:].argmax(axis=2)
            if step == "third cached step":
                ids = np.concatenate([ids, values["input_ids"], ids], axis=1)
            mask = np.concatenate([mask, np.ones_like(ids)], axis=1)
    return cases


def _kept(mask: NDArray[np.int64], sequence: int, outputs: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    kept = mask.astype(bool)
    return {
        name: kept[:, -sequence:, np.newaxis] if name == "logits" else kept[:, np.newaxis, :, np.newaxis]
        for name in outputs
    }


_ROW = Row("AutoModelForCausalLM", decoder_parts)
ROWS: Table = {model_type: {"text-generation": _ROW} for model_type in MODEL_TYPES}
