"""`tokenizer.json` that is made of older files at a conversion, against the slow classes of transformers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pywebml.errors import SourceError
from pywebml.prepare.older_tokenizers import make_older_tokenizer
from pywebml.tokenization import Tokenizer, tokenizer_from_files
from tests.parity.sentencepiece_models import trained
from tests.parity.tokenizer_texts import CORPUS, texts

thorough = settings(
    max_examples=150, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")


def _write(folder: Path, files: dict[str, Any]) -> Path:
    for name, value in files.items():
        data = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()
        (folder / name).write_bytes(data)
    return folder


def _pieces(model: bytes) -> list[str]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return [processor.id_to_piece(index) for index in range(3, processor.get_piece_size())]


def marian_files() -> dict[str, Any]:
    # The target knows other characters and longer pieces than the source.
    source = trained("unigram", vocab_size=220, character_coverage=0.98)
    target = trained("unigram", vocab_size=400)
    languages = [">>fra<<", ">>de<<"]
    pieces = dict.fromkeys(["</s>", "<unk>", *languages, *_pieces(target), *_pieces(source), "<pad>"])
    return {
        "config.json": {"model_type": "marian"},
        "tokenizer_config.json": {"source_lang": "en", "target_lang": "fr"},
        "vocab.json": {piece: index for index, piece in enumerate(pieces)},
        "source.spm": source,
        "target.spm": target,
    }


CHARACTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]


def ctc_files(**options: Any) -> dict[str, Any]:
    return {
        "config.json": {"model_type": "wav2vec2"},
        "tokenizer_config.json": options,
        "special_tokens_map.json": {"unk_token": "<unk>", "pad_token": "<pad>"},
        "vocab.json": {token: index for index, token in enumerate(CHARACTERS)},
    }


Made = tuple[tokenizers.Tokenizer, Tokenizer, Any]


def _made(folder: Path, oracle: Any) -> Made:
    made = make_older_tokenizer(folder)
    assert made is not None
    config = (folder / "tokenizer_config.json").read_bytes()
    ours = tokenizer_from_files({"tokenizer.json": made.encode(), "tokenizer_config.json": config})
    return tokenizers.Tokenizer.from_str(made), ours, oracle.from_pretrained(folder)


@pytest.fixture(scope="module")
def marian(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return _made(_write(tmp_path_factory.mktemp("marian"), marian_files()), transformers.MarianTokenizer)


@pytest.fixture(scope="module", params=[{}, {"do_lower_case": True}, {"replace_word_delimiter_char": "_"}], ids=str)
def ctc(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = _write(tmp_path_factory.mktemp("ctc"), ctc_files(**request.param))
    return _made(folder, transformers.Wav2Vec2CTCTokenizer)


def _same_ids(made: Made, text: str) -> list[int]:
    library, ours, slow = made
    expected: list[int] = slow(text)["input_ids"]
    assert library.encode(text).ids == expected, text
    assert ours.ids(text) == expected, text
    return expected


def _same_text(made: Made, ids: list[int]) -> None:
    library, ours, slow = made
    expected = slow.decode(ids, skip_special_tokens=True)
    assert library.decode(ids, skip_special_tokens=True) == expected
    assert ours.decode(ids, skip_special_tokens=True) == expected


@pytest.mark.parametrize(
    "text",
    [
        *CORPUS[:6],
        "",
        " ",
        "  two   words ",
        ">>fra<< hello world",
        "ß",
        "한 한국어 스어 a텍b",
        "ሀለ unknown",
        "a</s> b",
    ],
)
def test_marian_agrees_with_transformers(marian: Made, text: str) -> None:
    _same_text(marian, _same_ids(marian, text))


def test_marian_knows_unknown_pieces_and_ends_a_text(marian: Made) -> None:
    ids = _same_ids(marian, "the ሀለ world")
    assert marian[2].unk_token_id in ids
    assert ids[-1] == marian[2].eos_token_id


@thorough
@given(
    text=st.one_of(
        st.text(st.characters(min_codepoint=32, max_codepoint=0x24F), max_size=40),
        st.text(st.sampled_from("the 한스어텍ሀßй"), max_size=20),
    )
)
def test_marian_agrees_with_transformers_on_any_text(marian: Made, text: str) -> None:
    _same_ids(marian, text)


def test_marian_decodes_as_transformers_does(marian: Made) -> None:
    chance = random.Random(0)
    for _ in range(200):
        _same_text(marian, [chance.randrange(marian[0].get_vocab_size()) for _ in range(chance.randrange(20))])


@pytest.mark.parametrize("text", ["HELLO WORLD", "hello world", " A  B ", "", "IT'S 3 ß", "A <s> B", "A\nB"])
def test_characters_agree_with_transformers(ctc: Made, text: str) -> None:
    _same_ids(ctc, text)


@thorough
@given(text=texts)
def test_characters_agree_with_transformers_on_any_text(ctc: Made, text: str) -> None:
    _same_ids(ctc, text)


@pytest.mark.parametrize("words", ["HELLO|WORLD", "|A||B|", "", "|"])
def test_greedy_ids_decode_as_transformers_does(ctc: Made, words: str) -> None:
    vocab = {token: index for index, token in enumerate(CHARACTERS)}
    ids = [number for character in words for number in (vocab[character], vocab[character], vocab["<pad>"])]
    library, ours, slow = ctc
    expected = slow.decode(ids)
    assert library.decode(ids, skip_special_tokens=False) == expected
    assert ours.decode(ids, skip_special_tokens=False) == expected


def test_chance_ids_decode_as_transformers_does(ctc: Made) -> None:
    chance = random.Random(0)
    for _ in range(200):
        ids = [chance.choice([0, 4, *range(len(CHARACTERS))]) for _ in range(chance.randrange(30))]
        expected = ctc[2].decode(ids)
        assert ctc[0].decode(ids, skip_special_tokens=False) == expected
        assert ctc[1].decode(ids, skip_special_tokens=False) == expected
        _same_text(ctc, ids)


def test_a_nested_vocabulary_is_that_of_the_language(tmp_path: Path) -> None:
    files = ctc_files(target_lang="eng")
    files["vocab.json"] = {"eng": files["vocab.json"], "fra": {"É": 0}}
    _same_ids(_made(_write(tmp_path, files), transformers.Wav2Vec2CTCTokenizer), "HELLO É")


def test_other_checkpoints_are_left_to_transformers(tmp_path: Path) -> None:
    assert make_older_tokenizer(_write(tmp_path, {"config.json": {"model_type": "gpt2"}, "vocab.json": {}})) is None


@pytest.mark.parametrize(
    ("files", "bad"),
    [
        (marian_files, {"source.spm": b"\x0a"}),
        (marian_files, {"target.spm": b""}),
        (marian_files, {"vocab.json": {"<unk>": 1, "</s>": 2, "<pad>": 3}}),
        (marian_files, {"vocab.json": {"</s>": 0, "<pad>": 1}}),
        (marian_files, {"tokenizer_config.json": {"separate_vocabs": True}}),
        (marian_files, {"tokenizer_config.json": {"eos_token": 3}}),
        (ctc_files, {"vocab.json": {"<pad>": "0"}}),
        (ctc_files, {"vocab.json": {"<pad>": 0, "<unk>": 0}}),
        (ctc_files, {"vocab.json": {"<unk>": 0}}),
        (ctc_files, {"vocab.json": b"["}),
        (ctc_files, {"vocab.json": b'{"<pad>": 0, "<unk>": 1, "\\ud800": 2}'}),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, files: Callable[[], dict[str, Any]], bad: dict[str, Any]) -> None:
    with pytest.raises(SourceError, match="|".join(bad)):
        make_older_tokenizer(_write(tmp_path, {**files(), **bad}))


def test_pieces_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"source\.spm is a SentencePiece model of the kind BPE"):
        make_older_tokenizer(_write(tmp_path, {**marian_files(), "source.spm": trained("bpe")}))


def test_a_language_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"vocab\.json has no language 'deu'"):
        make_older_tokenizer(_write(tmp_path, ctc_files(target_lang="deu")))


@pytest.mark.parametrize("name", ["source.spm", "target.spm"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    files = marian_files()
    del files[name]
    with pytest.raises(SourceError, match=f"has no {name}"):
        make_older_tokenizer(_write(tmp_path, files))
