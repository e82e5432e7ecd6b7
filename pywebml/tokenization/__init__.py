"""Text to tokens and back, as `tokenizer.json` of the Hugging Face `tokenizers` format says."""

from __future__ import annotations

from pywebml.tokenization.chat_templates import ChatTemplates
from pywebml.tokenization.encoding import Encoding
from pywebml.tokenization.files import OPTIONAL_FILES, VOCABULARY_FILES, tokenizer_from_files
from pywebml.tokenization.streaming import DecodeStream
from pywebml.tokenization.tokenizer import UNLIMITED_LENGTH, Tokenizer

__all__ = [
    "OPTIONAL_FILES",
    "UNLIMITED_LENGTH",
    "VOCABULARY_FILES",
    "ChatTemplates",
    "DecodeStream",
    "Encoding",
    "Tokenizer",
    "tokenizer_from_files",
]
