"""Converted files against PyTorch: the same padded batches through both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pywebml.errors import ConversionError, SourceError, ToleranceError
from pywebml.prepare.export import OUTPUT, Encoder
from pywebml.prepare.exporting.texts import MAX_LENGTH
from pywebml.prepare.exporting.texts import SENTENCES as SENTENCES
from pywebml.prepare.source import TOKENIZER, Checkpoint


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a file may be from PyTorch.

    Attributes:
        max_abs_error: Of any number at a position that the mask keeps; None when only the embeddings count.
        min_cosine: Between mean-pooled sentence embeddings.
    """

    max_abs_error: float | None
    min_cosine: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was measured over all batches.

    Attributes:
        max_abs_error: Largest difference at a position that the mask keeps.
        worst_cosine: Smallest cosine between a mean-pooled embedding and PyTorch's.
        shapes: [batch, sequence] of every batch.
    """

    max_abs_error: float
    worst_cosine: float
    shapes: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ReferenceBatch:
    """Inputs, and what PyTorch makes of them.

    Attributes:
        feeds: Input name to int64 array [batch, sequence].
        hidden: float32 [batch, sequence, hidden].
    """

    feeds: Mapping[str, NDArray[np.int64]]
    hidden: NDArray[np.float32]


def reference_batches(encoder: Encoder, checkpoint: Checkpoint) -> list[ReferenceBatch]:
    """PyTorch's answers for one sentence, for all sentences padded to the longest, and for a full-length pair.

    Raises:
        SourceError: `tokenizer.json` is not usable, or knows more tokens than the model.
        ConversionError: The model is in training mode.
    """
    # An exporter may switch modes; with dropout on, the reference would be noise.
    if any(module.training for module in encoder.modules()):
        raise ConversionError("The model is in training mode, so it gives no reference to compare with.")
    tokenizer = _tokenizer(checkpoint, encoder)
    long_text = " ".join(SENTENCES * 20)
    batches = []
    for texts in ([SENTENCES[0]], list(SENTENCES), [long_text, SENTENCES[1]]):
        encodings = tokenizer.encode_batch(texts)
        values = {
            "input_ids": np.array([encoding.ids for encoding in encodings], np.int64),
            "attention_mask": np.array([encoding.attention_mask for encoding in encodings], np.int64),
            "token_type_ids": np.array([encoding.type_ids for encoding in encodings], np.int64),
        }
        if values["input_ids"].max() >= encoder.config.vocab_size:
            raise SourceError(
                f"{TOKENIZER} gives token {values['input_ids'].max()}, but the model has only "
                f"{encoder.config.vocab_size} tokens. They do not belong together.",
                path=TOKENIZER,
            )
        feeds = {name: values[name] for name in encoder.input_names}
        with torch.no_grad():
            hidden = encoder(*(torch.from_numpy(feed) for feed in feeds.values())).numpy()
        batches.append(ReferenceBatch(feeds=feeds, hidden=hidden))
    return batches


def _tokenizer(checkpoint: Checkpoint, encoder: Encoder) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(checkpoint.folder / TOKENIZER))
    # The library raises plain Exception.
    except Exception as error:
        raise SourceError(f"{TOKENIZER} is not usable: {error}.", path=TOKENIZER) from error
    config = encoder.config
    pad = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
    # RoBERTa and its kin count positions from behind the padding index.
    longest = min(MAX_LENGTH, config.max_position_embeddings - pad - 1 if pad else config.max_position_embeddings)
    tokenizer.enable_truncation(longest)
    tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad) or "[PAD]")
    return tokenizer


def compare(path: Path, batches: Sequence[ReferenceBatch]) -> Comparison:
    """Run a file in ONNX Runtime on the reference's batches.

    Raises:
        ConversionError: The runtime refuses the file, or its answers have another shape or are not finite.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    worst_error, worst_cosine = 0.0, 1.0
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        answers = [session.run([OUTPUT], dict(batch.feeds))[0] for batch in batches]
    # The runtime's exceptions have no common base but Exception.
    except Exception as error:
        raise ConversionError(f"ONNX Runtime cannot run the converted {path.name}: {error}") from error
    for batch, hidden in zip(batches, answers, strict=True):
        if hidden.shape != batch.hidden.shape or not np.isfinite(hidden).all():
            raise ConversionError(
                f"The converted {path.name} answers with shape {hidden.shape}, expected finite numbers of shape "
                f"{batch.hidden.shape}."
            )
        mask = batch.feeds["attention_mask"]
        kept = mask.astype(bool)
        worst_error = max(worst_error, float(np.abs(hidden - batch.hidden)[kept].max()))
        worst_cosine = min(worst_cosine, float(_cosines(_mean(hidden, mask), _mean(batch.hidden, mask)).min()))
    shapes = tuple((batch.hidden.shape[0], batch.hidden.shape[1]) for batch in batches)
    return Comparison(max_abs_error=worst_error, worst_cosine=worst_cosine, shapes=shapes)


def require(comparison: Comparison, tolerance: Tolerance, dtype: str) -> None:
    """Check a measurement.

    Raises:
        ToleranceError: The file is too far from PyTorch.
    """
    limit = tolerance.max_abs_error
    if (limit is not None and comparison.max_abs_error > limit) or comparison.worst_cosine < tolerance.min_cosine:
        allowed = f"cosine at least {tolerance.min_cosine}"
        if limit is not None:
            allowed = f"error at most {limit:g} and {allowed}"
        raise ToleranceError(
            f"The {dtype} file is too far from PyTorch: largest error {comparison.max_abs_error:.3g}, worst cosine of "
            f"mean-pooled embeddings {comparison.worst_cosine:.5f}; allowed: {allowed}. Nothing was written. Leave "
            f"{dtype} out of --modes, or try another --opset.",
            dtype=dtype,
            max_abs_error=comparison.max_abs_error,
            worst_cosine=comparison.worst_cosine,
        )


def _mean(hidden: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float64]:
    weights = mask[..., np.newaxis].astype(np.float64)
    pooled: NDArray[np.float64] = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
    return pooled


def _cosines(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines: NDArray[np.float64] = (left * right).sum(axis=1) / lengths
    return cosines
