"""Decoder-only models with a key-value cache: tokens in, logits and the longer cache out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from pywebml.errors import ConversionError
from pywebml.prepare.exporting.rows import Loaded, Row, Table
from pywebml.prepare.exporting.shared_cache import SharedCacheDecoder
from pywebml.prepare.exporting.texts import SENTENCES, tokenize
from pywebml.prepare.exporting.torch_export import BATCH, SEQUENCE, export_module, require_evaluation
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
    "llama",
    "mistral",
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

SHARED_CACHE_TYPES = frozenset(MODEL_TYPES) - {"bloom", "codegen", "falcon", "gptj", "gpt_neo"}
"""Those whose attention transformers lets one replace, and where it is no more than products, a mask and a softmax."""

PAST, TOTAL = "past_sequence_length", "past_sequence_length + sequence_length"
LONGEST = "max_sequence_length"
"""The length of a buffer that past and present share."""
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
        return (output.logits, *_tensors(cache))


def decoder_parts(loaded: Loaded) -> tuple[Part, ...]:
    """The part `model`, and where it can be `model_gqa`: the same model over a cache that is one buffer.

    Both take `input_ids`, `attention_mask`, `position_ids` (but for models without positions) and
    `past_key_values.N.key|value`, and give `logits` and `present.N.key|value`. Rows are padded on the left.

    `model`: past and present are as long as the tokens they are of.

    `model_gqa`: past and present have the length of the buffer, at least that of `attention_mask`, which covers past
    and new tokens without the rest of the buffer. A step writes its keys and values behind the past's; when past and
    present are bound to the same memory, it copies nothing. A past that is shorter is copied to a present of the
    right length, so the file also works like `model`. More than one new token after a past is for batches of one:
    the runtime refuses others.

    Raises:
        ConversionError: The model's cache is not one of keys and values alone.
    """
    model = loaded.model
    names = _input_names(model)
    caches = _empty_caches(model, 1)
    layers = len(caches) // 2
    past, present = cache_names("past_key_values", layers), cache_names("present", layers)
    inputs, outputs = (*names, *past), ("logits", *present)
    decoder = Decoder(model, names).eval()

    def part(name: str, module: nn.Module, past_dim: str, present_dim: str, cases: Callable[[], list[Case]]) -> Part:
        dims = {name: {0: BATCH, 1: SEQUENCE} for name in ("input_ids", "position_ids", "logits")}
        dims |= {"attention_mask": {0: BATCH, 1: TOTAL}}
        dims |= {name: {0: BATCH, 2: past_dim} for name in past} | {
            name: {0: BATCH, 2: present_dim} for name in present
        }
        length = _EXAMPLE_PAST if past_dim == PAST else _EXAMPLE_BUFFER

        def write(path: Path, opset: int) -> None:
            export_module(module, _examples(names, caches, length), inputs, outputs, dims, path, opset)

        return Part(name, inputs, outputs, write, cases)

    parts = [part("model", decoder, PAST, TOTAL, lambda: _cases(loaded, decoder, inputs, outputs))]
    if loaded.with_gqa and _can_share(model, caches):
        shared = SharedCacheDecoder(model, names).eval()
        cases = partial(_shared_cases, loaded, decoder, inputs, outputs)
        parts.append(part("model_gqa", shared, LONGEST, LONGEST, cases))
    return tuple(parts)


def _can_share(model: PreTrainedModel, caches: Sequence[Tensor]) -> bool:
    sizes = {tensor.shape[3] for tensor in caches}
    # The operator has one size for keys and values, in steps of 8.
    return model.config.model_type in SHARED_CACHE_TYPES and all(size % 8 == 0 for size in sizes) and len(sizes) == 1


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
        tensors = [tensor[:, :, :0] for tensor in _tensors(cache)]
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


def _tensors(cache: DynamicCache) -> list[Tensor]:
    """Key and value of each layer."""
    layers: list[Any] = list(cache.layers)
    return [tensor for layer in layers for tensor in (layer.keys, layer.values)]


# Sizes of the exporter's examples: all different.
_EXAMPLE_BATCH, _EXAMPLE_SEQUENCE, _EXAMPLE_PAST, _EXAMPLE_BUFFER = 2, 3, 5, 11


def _examples(names: Sequence[str], caches: Sequence[Tensor], length: int) -> list[Tensor]:
    total = _EXAMPLE_PAST + _EXAMPLE_SEQUENCE
    values = {
        "input_ids": torch.ones((_EXAMPLE_BATCH, _EXAMPLE_SEQUENCE), dtype=torch.int64),
        "attention_mask": torch.ones((_EXAMPLE_BATCH, total), dtype=torch.int64),
        "position_ids": torch.arange(_EXAMPLE_PAST, total).repeat(_EXAMPLE_BATCH, 1),
    }
    zeros = [torch.zeros((_EXAMPLE_BATCH, cache.shape[1], length, cache.shape[3])) for cache in caches]
    return [values[name] for name in names] + zeros


def positions(mask: NDArray[np.int64], sequence: int) -> NDArray[np.int64]:
    """Positions of the last tokens of rows that are padded on the left, as Transformers.js and `generate` count them.

    Args:
        mask: [batch, past + sequence].
        sequence: How many tokens are new.
    """
    counted: NDArray[np.int64] = np.where(mask == 1, mask.cumsum(axis=1) - 1, 1)[:, -sequence:]
    return counted


def _cases(loaded: Loaded, decoder: Decoder, inputs: Sequence[str], outputs: Sequence[str]) -> list[Case]:
    require_evaluation(decoder)
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


def _shared_cases(loaded: Loaded, decoder: Decoder, inputs: Sequence[str], outputs: Sequence[str]) -> list[Case]:
    """The plain graph's cases with every cache at the beginning of a longer buffer."""
    plain = _cases(loaded, decoder, inputs, outputs)
    longest = max(case.feeds["attention_mask"].shape[1] for case in plain) + 3
    cases = []
    for case in plain:
        batch, new = case.feeds["input_ids"].shape
        if batch > 1 and new not in (1, case.feeds["attention_mask"].shape[1]):
            continue
        arrays = [
            {name: _buffered(array, longest) if array.ndim == 4 else array for name, array in given.items()}
            for given in (case.feeds, case.expected, case.kept)
        ]
        cases.append(Case(case.title, *arrays))
    return cases


def _buffered(array: NDArray[Any], longest: int) -> NDArray[Any]:
    """A cache, or what counts of one, at the beginning of a buffer of zeros."""
    buffer = np.zeros((*array.shape[:2], longest, array.shape[3]), array.dtype)
    buffer[:, :, : array.shape[2]] = array
    return buffer


def _kept(mask: NDArray[np.int64], sequence: int, outputs: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    kept = mask.astype(bool)
    return {
        name: kept[:, -sequence:, np.newaxis] if name == "logits" else kept[:, np.newaxis, :, np.newaxis]
        for name in outputs
    }


_ROW = Row("AutoModelForCausalLM", decoder_parts)
ROWS: Table = {model_type: {"text-generation": _ROW} for model_type in MODEL_TYPES}
