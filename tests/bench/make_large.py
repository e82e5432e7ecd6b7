"""A model of 2.5 GB with random weights, converted with external data: `python -m tests.bench.make_large`.

What is made the first time is used again; `build/bench/large` can be deleted.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertModel

from tests.parity.tiny_models import tiny_tokenizer
from web.build.paths import BUILD

FOLDER = BUILD / "bench/large"
NAME = "bench/large"
TEXT = "The cat sits outside in the morning sun."

# Nearly all of it are two tables, of which each is more than one file of the default size.
CONFIG: dict[str, Any] = {
    "vocab_size": 300_000,
    "max_position_embeddings": 300_000,
    "hidden_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "intermediate_size": 2048,
}


def main() -> None:
    """Write checkpoint, hub, and `expected.json`: what PyTorch makes of a text."""
    checkpoint, hub = FOLDER / "checkpoint", FOLDER / "hub"
    if not (FOLDER / "expected.json").is_file():
        _write(checkpoint)
    if not (hub / NAME / "main/manifest.json").is_file():
        started = time.monotonic()
        command = [sys.executable, "-m", "pywebml.cli", "convert", "--path", str(checkpoint), "--name", NAME]
        subprocess.run([*command, "--modes", "fp32", "--external-data", "1GB", "--output", str(hub)], check=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        print(f"converted in {time.monotonic() - started:.0f} s, at most {peak / 1e9:.1f} GB of memory", flush=True)
    for path in sorted((hub / NAME / "main/onnx").iterdir()):
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB", flush=True)


def _write(checkpoint: Path) -> None:
    torch.manual_seed(7)
    model = BertModel(BertConfig(**CONFIG)).eval()  # type: ignore[no-untyped-call]
    model.save_pretrained(checkpoint)
    tokenizer = tiny_tokenizer()
    tokenizer.save(str(checkpoint / "tokenizer.json"))
    (checkpoint / "tokenizer_config.json").write_text('{"model_max_length": 512}', encoding="utf-8")
    encoding = tokenizer.encode(TEXT)
    with torch.no_grad():
        inputs = (encoding.ids, encoding.attention_mask, encoding.type_ids)
        hidden = model(*(torch.tensor([values]) for values in inputs)).last_hidden_state
    mean = hidden.mean(dim=1)[0].numpy().astype(np.float64)
    (FOLDER / "expected.json").write_text(json.dumps({"text": TEXT, "embedding": mean.tolist()}), encoding="utf-8")


if __name__ == "__main__":
    main()
