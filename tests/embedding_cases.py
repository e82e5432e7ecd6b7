"""Texts of every kind, and what PyTorch makes of them with the demo model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pywebml.prepare.demo import fetch_demo_checkpoint

ROOT = Path(__file__).resolve().parents[1]
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
REVISION = "v1.0.0"

_PROSE = (
    "The tide went out past the harbour wall and left the boats leaning on their keels while gulls walked between "
    "them looking for crabs. "
)

CASES: dict[str, list[str]] = {
    "plain": ["A man is eating a piece of bread."],
    "accented": ["Überraschung: l’été déjà, señor – naïve café"],
    "CJK": ["機械学習はブラウザの中で動く。", "浏览器中的机器学习", "브라우저 속 기계 학습"],
    "emoji": ["I 💜 trains 🚂🚃 👩‍👩‍👧‍👦 🏳️‍🌈!"],
    "empty": [""],
    "blank": [" \t\n"],
    "500 tokens": [_PROSE * 18],
    "longer than the model takes": [_PROSE * 40],
    "special tokens inside": ["[CLS] is a token [SEP] and so is [MASK]."],
    "control characters": ["zero\u200bwidth\u0007bell\ufeffmark\u00a0space"],
    "batched": [
        "A plane is taking off.",
        "Ein Flugzeug startet.",
        "",
        _PROSE * 6,
        "Someone is slicing an onion.",
        "🚀",
        "x" * 300,
    ],
}


def weights_folder() -> Path:
    """The checkpoint that the demo model was converted from; fetched when the build's cache does not have it."""
    return fetch_demo_checkpoint(Path(os.environ.get("PYWEBML_CACHE") or ROOT / ".cache")).folder


def reference_embeddings() -> dict[str, NDArray[Any]]:
    """Mean-pooled, normalised float32 embeddings by PyTorch and the Hugging Face tokenizer, by case."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = weights_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, use_safetensors=True).eval()
    results = {}
    with torch.no_grad():
        for name, texts in CASES.items():
            encoded = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
            hidden = model(**encoded).last_hidden_state
            mask = encoded["attention_mask"].unsqueeze(-1).float()
            pooled = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            results[name] = torch.nn.functional.normalize(pooled, dim=-1).numpy().astype(np.float32)
    return results
