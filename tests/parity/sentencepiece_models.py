"""Small SentencePiece models, trained here on fixed text: the same bytes of vocabulary every time."""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import sentencepiece

from tests.parity.tokenizer_texts import CORPUS


@cache
def trained(kind: str, normalization: str = "nmt_nfkc", **options: Any) -> bytes:
    """A model file.

    Args:
        kind: `unigram` or `bpe`.
        normalization: A rule of SentencePiece.
        **options: Of its trainer.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*CORPUS] * 40),
        model_writer=model,
        model_type=kind,
        vocab_size=options.pop("vocab_size", 400),
        character_coverage=options.pop("character_coverage", 0.999),
        normalization_rule_name=normalization,
        num_threads=1,
        minloglevel=2,
        hard_vocab_limit=False,
        **options,
    )
    return model.getvalue()
