"""What the benchmark of tokenizers reads: 1 MB of prose, 1 MB of source code, and tokenizers, in `build/bench/`.

python -m tests.bench.make_tokenizer_data
"""

from __future__ import annotations

import json
from pathlib import Path

from tests import vocabularies

TARGET = Path("build/bench")


def main() -> None:
    """Write the files."""
    TARGET.mkdir(parents=True, exist_ok=True)
    wordpiece, config = vocabularies.minilm()
    files = {
        "prose.json": json.dumps(vocabularies.documents(vocabularies.prose())).encode(),
        "code.json": json.dumps(vocabularies.documents(vocabularies.code())).encode(),
        "wordpiece.json": wordpiece,
        "wordpiece_config.json": config,
        "bpe.json": vocabularies.anthropic(),
        "bpe_config.json": b"{}",
        "large.json": vocabularies.tekken_tokenizer(),
        "large_config.json": b"{}",
    }
    for name, data in files.items():
        (TARGET / name).write_bytes(data)


if __name__ == "__main__":
    main()
