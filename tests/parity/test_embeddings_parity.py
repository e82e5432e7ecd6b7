"""The demo model out of `dist/hub`, run natively through the whole package, against PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pywebml import Engine, configure, create_engine
from tests.embedding_cases import CASES, MODEL, REVISION, ROOT, reference_embeddings, weights_folder
from tests.faults.server import FaultServer

pytestmark = pytest.mark.usefixtures("surroundings")

TOLERANCE = 1e-4
LOWEST_Q8_COSINE = 0.95
POOLINGS = ("none", "mean", "cls", "last_token")
TEXTS = CASES["batched"]

Floats = NDArray[Any]


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    """Address of the built hub."""
    model = ROOT / "dist" / "hub" / MODEL / REVISION
    assert model.is_dir(), f"there is no {model.relative_to(ROOT)}: run ./build.sh build"
    with FaultServer(ROOT / "dist") as server:
        yield f"{server.url}/hub/"


@pytest.fixture(scope="module")
def reference() -> dict[str, Floats]:
    """PyTorch's embeddings by case."""
    return reference_embeddings()


@pytest.fixture(scope="module")
def hidden_states() -> tuple[Floats, NDArray[np.int64]]:
    """PyTorch's token vectors of `TEXTS`, and the mask."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = weights_folder()
    encoded = AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding=True, truncation=True, max_length=512, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(folder, use_safetensors=True).eval()(**encoded).last_hidden_state
    return hidden.numpy(), encoded["attention_mask"].numpy()


async def engine_of(hub: str, dtype: str) -> Engine:
    configure(hub_root_url=hub)
    return await create_engine(task_name="feature-extraction", model_id=MODEL, model_revision=REVISION, dtype=dtype)


async def test_fp32_equals_pytorch_for_every_case(hub: str, reference: dict[str, Floats]) -> None:
    engine = await engine_of(hub, "fp32")
    errors = {}
    for name, texts in CASES.items():
        vectors = await engine.run(texts, pooling="mean", normalize=True)
        assert (vectors.dtype, vectors.shape) == (np.float32, (len(texts), 384))
        errors[name] = float(np.abs(vectors - reference[name]).max())
    assert {name: error for name, error in errors.items() if not error <= TOLERANCE} == {}


async def test_texts_one_by_one_equal_the_batch(hub: str) -> None:
    engine = await engine_of(hub, "fp32")
    batch = await engine.run(TEXTS, pooling="mean", normalize=True)
    single = await engine.run(TEXTS, pooling="mean", normalize=True, batch_size=1)
    np.testing.assert_allclose(single, batch, atol=TOLERANCE)


@pytest.mark.parametrize("pooling", POOLINGS)
async def test_every_pooling_equals_pytorch(
    hub: str, hidden_states: tuple[Floats, NDArray[np.int64]], pooling: str
) -> None:
    hidden, mask = hidden_states
    engine = await engine_of(hub, "fp32")
    vectors = await engine.run(TEXTS, pooling=pooling)
    if pooling == "none":
        assert vectors.shape == hidden.shape
        # What a model makes of padding means nothing.
        vectors, expected = vectors[mask == 1], hidden[mask == 1]
    else:
        rows = [row[flags == 1] for row, flags in zip(hidden, mask, strict=True)]
        expected = np.stack(
            [row.mean(axis=0) if pooling == "mean" else row[0 if pooling == "cls" else -1] for row in rows]
        )
    np.testing.assert_allclose(vectors, expected, atol=TOLERANCE)


async def test_q8_points_the_same_way(hub: str, reference: dict[str, Floats]) -> None:
    engine = await engine_of(hub, "q8")
    cosines = {}
    for name, texts in CASES.items():
        vectors = await engine.run(texts, pooling="mean", normalize=True)
        cosines[name] = float(np.vecdot(vectors, reference[name]).min())
    assert {name: cosine for name, cosine in cosines.items() if not cosine >= LOWEST_Q8_COSINE} == {}
    # It is the other file indeed.
    assert max(cosines.values()) < 1 - 1e-6
