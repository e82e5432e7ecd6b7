"""The built demo model against PyTorch with the original weights."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from pywebml.prepare.demo import FILES, MODEL_ID, REVISION, demo_checkpoint_folder
from pywebml.prepare.quiet import quiet
from web.build.paths import CACHE, DIST

MODEL = DIST / "hub" / MODEL_ID / REVISION
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TEXTS = {
    "plain": ["The quick brown fox jumps over the lazy dog."],
    "accented": ["Café déjà vu, naïve façade — Ångström."],
    "cjk": ["機械学習は楽しい。", "东京是日本的首都。"],
    "emoji": ["I am so happy today 😀🎉"],
    "empty": ["", "not empty"],
    "longest": ["The quick brown fox jumps over the lazy dog. " * 60, "A short one beside it."],
    "batched": ["The cat is asleep.", "A man is playing guitar on the stage.", "Stocks fell sharply on Monday."],
    "odd": ["x", "word " * 498],
}
SENTENCES = ("plain", "accented", "longest", "batched")
"""What q8 keeps within its tolerance; texts that are no English sentences are more sensitive."""


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    """Everything here needs the build's result."""
    if not (MODEL / "manifest.json").is_file() or not demo_checkpoint_folder(CACHE).is_dir():
        pytest.fail(f"The demo model is not built: no {MODEL} or its checkpoint. Run ./build.sh build.", pytrace=False)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    with quiet():
        return AutoTokenizer.from_pretrained(demo_checkpoint_folder(CACHE))


@pytest.fixture(scope="module")
def model() -> Any:
    with quiet():
        return AutoModel.from_pretrained(
            demo_checkpoint_folder(CACHE), use_safetensors=True, dtype=torch.float32
        ).eval()


@pytest.fixture(scope="module", params=["model.onnx", "model_quantized.onnx"])
def session(request: pytest.FixtureRequest) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(MODEL / "onnx" / request.param, providers=["CPUExecutionProvider"])


def embed(hidden: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float64]:
    weights = mask[..., np.newaxis].astype(np.float64)
    pooled = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
    embeddings: NDArray[np.float64] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
    return embeddings


@pytest.mark.parametrize("kind", TEXTS)
def test_demo_model_agrees_with_pytorch(
    session: onnxruntime.InferenceSession, tokenizer: Any, model: Any, kind: str, request: pytest.FixtureRequest
) -> None:
    encoded = tokenizer(TEXTS[kind], padding=True, truncation=True, max_length=512, return_tensors="pt")
    with torch.no_grad():
        expected = model(**encoded).last_hidden_state.numpy()
    feeds = {name: encoded[name].numpy() for name in INPUTS}
    mask = feeds["attention_mask"]

    (hidden,) = session.run(["last_hidden_state"], feeds)

    cosine = (embed(np.asarray(hidden), mask) * embed(expected, mask)).sum(axis=1).min()
    if request.node.callspec.params["session"] == "model.onnx":
        assert np.abs(hidden - expected)[mask == 1].max() < 1e-4
        assert cosine > 0.999999
    else:
        assert cosine > (0.98 if kind in SENTENCES else 0.95)


def test_demo_files_are_the_ones_in_the_manifest_and_the_originals() -> None:
    files = json.loads((MODEL / "manifest.json").read_text(encoding="utf-8"))["files"]

    for path, entry in files.items():
        data = (MODEL / path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["size"], entry["sha256"]), path
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert files[name]["sha256"] == FILES[name]


def test_demo_tokenizer_goes_up_to_512_tokens() -> None:
    config = json.loads(Path(MODEL / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["model_max_length"] == 512
