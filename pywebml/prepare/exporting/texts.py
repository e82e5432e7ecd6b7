"""Texts that models are compared on, as tokens in padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn

from pywebml.errors import SourceError
from pywebml.prepare.exporting.rows import Loaded
from pywebml.prepare.source import TOKENIZER

SENTENCES = (
    "The cat sits outside in the morning sun.",
    "A man is playing the guitar on a small stage.",
    "I love pasta with tomato sauce, basil and a lot of cheese.",
    "Machine learning models can run inside a web browser.",
    "The train to the coast leaves at half past seven.",
    "Quarterly revenue rose by 12 % while costs stayed the same.",
    "Où est la gare ? Elle se trouve près du café.",
    "She explained that the experiment had to be repeated, because the first measurement was taken before the "
    "instrument had reached a stable temperature, and nobody had written down when it was switched on.",
)
MAX_LENGTH = 512

Text = str | tuple[str, str]


@dataclass(frozen=True, slots=True)
class Tokens:
    """A padded batch; each array is int64 of shape [batch, sequence].

    Attributes:
        input_ids: Tokens, and padding where the mask is 0.
        attention_mask: 1 at tokens, 0 at padding.
        token_type_ids: 0 for the first text of a pair and 1 for the second.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a checkpoint.

    Raises:
        SourceError: `tokenizer.json` is not usable.
    """
    try:
        return Tokenizer.from_file(str(folder / TOKENIZER))
    # The library raises plain Exception.
    except Exception as error:
        raise SourceError(f"{TOKENIZER} is not usable: {error}.", path=TOKENIZER) from error


def tokenize(loaded: Loaded, texts: Sequence[Text], *, longest: int = MAX_LENGTH, pad_left: bool = False) -> Tokens:
    """Texts or pairs as the checkpoint's tokenizer gives them.

    Args:
        loaded: The model, which limits tokens and lengths.
        texts: One row each.
        longest: Texts are cut to this many tokens, or to what the model takes if that is less.
        pad_left: Fill up short rows before their tokens instead of behind them, as generating needs it.

    Raises:
        SourceError: `tokenizer.json` is not usable, or knows more tokens than the model.
    """
    tokenizer = load_tokenizer(loaded.checkpoint.folder)
    pad = padding_token(loaded.config)
    tokenizer.enable_truncation(min(longest, longest_sequence(loaded)))
    tokenizer.enable_padding(
        pad_id=pad, pad_token=tokenizer.id_to_token(pad) or "[PAD]", direction="left" if pad_left else "right"
    )
    encodings = tokenizer.encode_batch(list(texts))
    tokens = Tokens(
        input_ids=np.array([encoding.ids for encoding in encodings], np.int64),
        attention_mask=np.array([encoding.attention_mask for encoding in encodings], np.int64),
        token_type_ids=np.array([encoding.type_ids for encoding in encodings], np.int64),
    )
    known = loaded.model.get_input_embeddings().num_embeddings
    if tokens.input_ids.max() >= known:
        raise SourceError(
            f"{TOKENIZER} gives token {tokens.input_ids.max()}, but the model has only {known} tokens. They do not "
            "belong together.",
            path=TOKENIZER,
        )
    return tokens


def padding_token(config: Any) -> int:
    """What fills up short rows; a mask hides it, so any token does where the model names none."""
    pad = getattr(config, "pad_token_id", None)
    return pad if isinstance(pad, int) and pad >= 0 else 0


def longest_sequence(loaded: Loaded) -> int:
    """How many tokens the model has positions for."""
    longest = getattr(loaded.config, "max_position_embeddings", None)
    longest = longest if isinstance(longest, int) and longest > 0 else MAX_LENGTH
    # RoBERTa and its kin count positions from behind the padding's.
    reserved = [
        module.padding_idx + 1
        for name, module in loaded.model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None
    ]
    return longest - max(reserved, default=0)
