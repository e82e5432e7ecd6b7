"""Files for the browser tests, under `build/browser-fixtures/`.

reference.json   inputs, and what PyTorch and the native platform make of them
models/          the models of the session contract
hub/             a model whose bytes are no model, and a good one beside it
tokenizers.json  tokenizers, texts, and what the Rust library makes of them
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import pywebml
from pywebml.platform import set_platform
from pywebml.platform.native import NativePlatform
from tests.contract.make_models import write_models
from tests.embedding_cases import CASES, MODEL, REVISION, reference_embeddings
from tests.faults.server import FaultServer
from tests.parity.tokenizer_texts import CORPUS, FRAGMENTS, TROUBLE
from tests.parity.tokenizer_zoo import written, zoo

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "build" / "browser-fixtures"
HUB = ROOT / "dist" / "hub"


def main() -> None:
    """Write what is missing or out of date."""
    FIXTURES.mkdir(parents=True, exist_ok=True)
    write_models(FIXTURES / "models")
    _write_broken_hub()
    _write_reference()
    _write_tokenizers()


def _write_broken_hub() -> None:
    source = HUB / MODEL / REVISION
    for name in ("broken", "good"):
        target = FIXTURES / "hub" / "tests" / name / "v1.0.0"
        shutil.rmtree(target, ignore_errors=True)
        (target / "onnx").mkdir(parents=True)
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(source / file, target / file)
        shutil.copy(source / "onnx" / "model_quantized.onnx", target / "onnx" / "model_quantized.onnx")
    model = FIXTURES / "hub" / "tests" / "broken" / "v1.0.0" / "onnx" / "model_quantized.onnx"
    # Cut in the middle, and no manifest tells: only the runtime can notice.
    model.write_bytes(model.read_bytes()[: model.stat().st_size // 2])


def _write_tokenizers() -> None:
    texts = [*CORPUS, TROUBLE, "".join(FRAGMENTS), ""]
    cases = []
    for _, rust in list(zoo())[::23]:
        encodings = [encoded for text in texts if (encoded := _encoded(rust, text)) is not None]
        cases.append({"file": json.loads(written(rust)), "encodings": encodings})
    (FIXTURES / "tokenizers.json").write_text(json.dumps(cases))


def _encoded(rust: Any, text: str) -> dict[str, Any] | None:
    try:
        found = rust.encode(text)
    except Exception:
        # The vocabulary has no token for what is unknown.
        return None
    return {"text": text, "ids": found.ids, "offsets": found.offsets, "decoded": rust.decode(found.ids)}


def _write_reference() -> None:
    source = HUB / MODEL / REVISION
    digest = hashlib.sha256(json.dumps(CASES).encode())
    digest.update((source / "manifest.json").read_bytes())
    target = FIXTURES / "reference.json"
    if target.exists() and json.loads(target.read_text())["fingerprint"] == digest.hexdigest():
        return
    native = asyncio.run(_native_embeddings())
    torch = reference_embeddings()
    reference = {
        "fingerprint": digest.hexdigest(),
        "model": MODEL,
        "revision": REVISION,
        "cases": [
            {"name": name, "texts": texts, "torch": _plain(torch[name]), "native": _plain(native[name])}
            for name, texts in CASES.items()
        ],
    }
    target.write_text(json.dumps(reference))


async def _native_embeddings() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as cache, FaultServer(ROOT / "dist") as server:
        set_platform(NativePlatform(Path(cache)))
        pywebml.configure(hub_root_url=f"{server.url}/hub/")
        async with await pywebml.create_engine(
            task_name="feature-extraction", model_id=MODEL, model_revision=REVISION, dtype="fp32"
        ) as engine:
            return {name: await engine.run(texts, pooling="mean", normalize=True) for name, texts in CASES.items()}


def _plain(array: np.ndarray[Any, Any]) -> list[list[float]]:
    return [[round(float(number), 7) for number in row] for row in array]


if __name__ == "__main__":
    main()
