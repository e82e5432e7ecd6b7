"""Vocabularies without a `tokenizer.json`, against transformers and the SentencePiece library."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import transformers
from hypothesis import HealthCheck, given, settings

from pywebml.tokenization import Tokenizer, tokenizer_from_files
from tests import vocabularies
from tests.parity.sentencepiece_models import trained
from tests.parity.test_tokenization_parity import differences
from tests.parity.tokenizer_texts import CORPUS, texts

thorough = settings(
    max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


@cache
def bert_files() -> dict[str, bytes]:
    """The real MiniLM vocabulary as `vocab.txt`."""
    vocab = json.loads(vocabularies.minilm()[0])["model"]["vocab"]
    return {"vocab.txt": "\n".join(sorted(vocab, key=lambda token: vocab[token])).encode() + b"\n"}


@cache
def byte_level_files() -> dict[str, bytes]:
    """A real byte-level BPE as `vocab.json` and `merges.txt`, with the tokens of RoBERTa."""
    model = json.loads(vocabularies.anthropic())["model"]
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"]
    vocab = {**model["vocab"], **{name: len(model["vocab"]) + index for index, name in enumerate(names)}}
    merges = "#version: 0.2\n" + "\n".join(model["merges"]) + "\n"
    return {"vocab.json": _json(vocab), "merges.txt": merges.encode()}


CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (transformers.BertTokenizer, bert_files, {}),
    "bert cased": (transformers.BertTokenizer, bert_files, {"do_lower_case": False, "strip_accents": False}),
    "bert of words": (transformers.BertTokenizer, bert_files, {"tokenize_chinese_chars": False}),
    "gpt2": (transformers.GPT2Tokenizer, byte_level_files, {}),
    "gpt2 with a space before": (transformers.GPT2Tokenizer, byte_level_files, {"add_prefix_space": True}),
    "roberta": (transformers.RobertaTokenizer, byte_level_files, {}),
    "clip": (transformers.CLIPTokenizer, vocabularies.clip_files, {}),
    "t5": (
        transformers.T5Tokenizer,
        lambda: {"spiece.model": trained("unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1)},
        {},
    ),
    "xlm-roberta": (
        transformers.XLMRobertaTokenizer,
        lambda: {"sentencepiece.bpe.model": trained("unigram", unk_id=0, bos_id=1, eos_id=2)},
        {},
    ),
    "albert": (
        transformers.AlbertTokenizer,
        lambda: {
            "spiece.model": trained(
                "unigram", pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols="[CLS],[SEP],[MASK]"
            )
        },
        {},
    ),
}


@cache
def pair(name: str, folder: Path) -> tuple[Tokenizer, Any]:
    """Ours, and the library's tokenizer inside transformers' own."""
    kind, make, options = CASES[name]
    files = {**make(), "tokenizer_config.json": _json({"tokenizer_class": kind.__name__, **options})}
    for file, data in files.items():
        (folder / file).write_bytes(data)
    return tokenizer_from_files(files), kind.from_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: tmp_path_factory.mktemp(name.replace(" ", "-")) for name in CASES}


@pytest.mark.parametrize("name", CASES)
@thorough
@given(text=texts)
def test_older_files_agree_with_transformers(name: str, folders: dict[str, Path], text: str) -> None:
    ours, theirs = pair(name, folders[name])
    assert not differences(ours.encode(text), theirs.backend_tokenizer.encode(text))
    assert not differences(ours.encode(text, "two words"), theirs.backend_tokenizer.encode(text, "two words"))


@pytest.mark.parametrize("name", CASES)
def test_older_files_agree_with_transformers_on_real_text(name: str, folders: dict[str, Path]) -> None:
    ours, theirs = pair(name, folders[name])
    for text in vocabularies.documents(vocabularies.prose(120_000), 2000):
        ids = theirs(text)["input_ids"]
        assert ours.ids(text) == ids
        if name != "clip":
            assert ours.decode(ids) == theirs.decode(ids)


SENTENCEPIECE = {
    "unigram": lambda: trained("unigram"),
    "unigram of bytes": lambda: trained("unigram", byte_fallback=True, vocab_size=700),
    "unigram as it stands": lambda: trained("unigram", "identity", remove_extra_whitespaces=False),
    "unigram without a space before": lambda: trained("unigram", "nfkc", add_dummy_prefix=False),
    "unigram folding case": lambda: trained("unigram", "nmt_nfkc_cf"),
    "bpe": lambda: trained("bpe"),
    "bpe of bytes": lambda: trained("bpe", byte_fallback=True, vocab_size=700),
    "mistral": vocabularies.mistral_model,
}


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_any_other_model_agrees_with_sentencepiece(name: str) -> None:
    data = SENTENCEPIECE[name]()
    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    ours = tokenizer_from_files({"tokenizer.model": data})
    real = vocabularies.documents(vocabularies.prose(60_000), 800)
    # Not the line of emoji and marks: what the library makes of graphemes is not what SentencePiece makes of them.
    for text in [*CORPUS[:6], *real, "", " ", "  a  b  ", "one\ntwo\tthree", "  leading", "trailing  "]:
        # What the library takes for control tokens is text to SentencePiece.
        if not any(token in text for token in ("<s>", "</s>", "<unk>", "<0x")):
            expected = reference.encode(text)
            assert ours.ids(text) == expected, text[:60]
            assert ours.decode(expected).replace("<unk>", " ⁇ ") == reference.decode(expected), text[:60]


def test_llama_agrees_with_sentencepiece_on_real_text() -> None:
    # Not with transformers 5, whose order of merges is that of the ids, not of the scores.
    data = vocabularies.mistral_model()
    reference = sentencepiece.SentencePieceProcessor(model_proto=data)
    config = _json({"tokenizer_class": "LlamaTokenizer", "add_bos_token": True})
    ours = tokenizer_from_files({"tokenizer.model": data, "tokenizer_config.json": config})
    for text in [*map(str.strip, vocabularies.documents(vocabularies.prose(60_000), 800)), *CORPUS[:7]]:
        assert ours.ids(text) == [1, *reference.encode(text)], text[:60]
        assert ours.decode(ours.ids(text), skip_special_tokens=True) == text
        assert ours.encode(text, "b").type_ids[-2:] == [1, 1]
