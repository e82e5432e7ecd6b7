"""Text to tokens, as `tokenizer.json` of the Hugging Face `tokenizers` format says."""

from __future__ import annotations

from pywebml.tokenization.tokenizer import UNLIMITED_LENGTH, Encoding, Tokenizer

__all__ = ["UNLIMITED_LENGTH", "Encoding", "Tokenizer"]
