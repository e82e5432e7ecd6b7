"""Tokenizers from whatever files a model has, and files that are damaged."""

from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pywebml.errors import TokenizerError
from pywebml.tokenization import OPTIONAL_FILES, VOCABULARY_FILES, tokenizer_from_files
from pywebml.tokenization.precompiled import precompiled_from_bytes
from pywebml.tokenization.sentencepiece import PieceKind, read_model
from tests.unit.test_tokenization import FILE

VOCAB = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhello\nworld\n"
thorough = settings(max_examples=400, derandomize=True, deadline=None, database=None)


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def field(number: int, value: bytes | int) -> bytes:
    """A field of a protocol buffer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def piece(text: str, score: float, kind: PieceKind = PieceKind.NORMAL) -> bytes:
    number = varint(2 << 3 | 5) + struct.pack("<f", score)
    return field(1, field(1, text.encode()) + number + field(3, int(kind)))


PIECES = piece("<unk>", 0, PieceKind.UNKNOWN) + piece("▁a", -1.5) + piece("b", -2) + piece("▁ab", -1)
MODEL = PIECES + field(2, field(3, 1)) + field(3, field(3, 1) + field(4, 1))


def test_tables_name_every_file() -> None:
    assert VOCABULARY_FILES[0] == ("tokenizer.json",)
    assert ("vocab.json", "merges.txt") in VOCABULARY_FILES
    assert "chat_template.jinja" in OPTIONAL_FILES


def test_tokenizer_json_goes_before_older_files() -> None:
    tokenizer = tokenizer_from_files({"tokenizer.json": as_json(FILE), "vocab.txt": b"nothing\n"})
    assert tokenizer.encode("hello").tokens == ["[CLS]", "hello", "[SEP]"]


def test_vocab_txt_is_enough() -> None:
    tokenizer = tokenizer_from_files({"vocab.txt": VOCAB})
    assert tokenizer.encode("Hello, [MASK]").tokens == ["[CLS]", "hello", "[UNK]", "[MASK]", "[SEP]"]
    assert tokenizer.decode(tokenizer.ids("hello world"), skip_special_tokens=True) == "hello world"


def test_options_of_the_configuration_hold_for_older_files() -> None:
    config = {"do_lower_case": False, "tokenizer_class": "BertTokenizerFast", "model_max_length": 5}
    tokenizer = tokenizer_from_files({"vocab.txt": VOCAB, "tokenizer_config.json": as_json(config)})
    assert tokenizer.encode("Hello hello").tokens == ["[CLS]", "[UNK]", "hello", "[SEP]"]
    assert tokenizer.model_max_length == 5


def test_added_tokens_and_special_tokens_come_from_their_own_files() -> None:
    files = {
        "vocab.txt": VOCAB,
        "added_tokens.json": as_json({"<two>": 8, "<one>": 7}),
        "special_tokens_map.json": as_json({"pad_token": {"content": "[PAD]"}, "bos_token": "[CLS]", "x": 1}),
    }
    tokenizer = tokenizer_from_files(files)
    assert (tokenizer.token_to_id("<one>"), tokenizer.token_to_id("<two>")) == (7, 8)
    assert tokenizer.ids("<two> hello", add_special_tokens=False) == [8, 5]
    assert tokenizer.special_token_id("bos_token") == 2
    assert tokenizer.pad_token_id == 0


def test_flags_of_added_tokens_come_from_the_configuration() -> None:
    decoder = {"7": {"content": "<m>", "lstrip": True, "special": True}, "4": {"content": "[MASK]", "rstrip": True}}
    config = as_json({"added_tokens_decoder": decoder})
    tokenizer = tokenizer_from_files({"vocab.txt": VOCAB, "tokenizer_config.json": config})
    assert tokenizer.encode("hello <m>", add_special_tokens=False).offsets == [(0, 5), (5, 9)]
    assert tokenizer.encode("[MASK] hello", add_special_tokens=False).offsets == [(0, 7), (7, 12)]


def test_sentencepiece_model_is_enough() -> None:
    tokenizer = tokenizer_from_files({"spiece.model": MODEL})
    encoding = tokenizer.encode("ab  a")
    assert (encoding.tokens, encoding.ids) == (["▁ab", "▁a"], [3, 1])
    assert tokenizer.decode([3, 1]) == "ab a"


def test_templates_come_from_their_files_first() -> None:
    files = {
        "tokenizer.json": as_json(FILE),
        "tokenizer_config.json": as_json({"chat_template": "old"}),
        "chat_template.jinja": b"new {{ messages[0].content }}",
        "additional_chat_templates/rag.jinja": b"rag",
    }
    tokenizer = tokenizer_from_files(files)
    chat = [{"role": "user", "content": "é"}]
    assert tokenizer.chat_templates.names == ["default", "rag"]
    assert tokenizer.apply_chat_template(chat) == "new é"
    assert tokenizer.apply_chat_template(chat, chat_template="rag") == "rag"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no vocabulary"),
        ({"merges.txt": b""}, "no vocabulary"),
        ({"vocab.txt": b"\xff\xfe"}, "UTF-8"),
        ({"vocab.txt": b"a\nb\n"}, r"no token '\[CLS\]'"),
        ({"vocab.json": b"[]", "merges.txt": b""}, "an object, found a list"),
        ({"vocab.json": b'{"a": "x"}', "merges.txt": b""}, "token id"),
        ({"vocab.json": b'{"a": 0}', "merges.txt": b"a b\n"}, "'b', which is not in the vocabulary"),
        ({"vocab.json": b'{"a": 0}', "merges.txt": b"a a a\n"}, "no pair"),
        ({"tokenizer.model": b""}, "no pieces"),
        ({"tokenizer.model": b"\x0a\xff"}, "tokenizer.model"),
        ({"vocab.txt": VOCAB, "added_tokens.json": b'{"a": -1}'}, "token id"),
        ({"vocab.txt": VOCAB, "tokenizer_config.json": b'{"added_tokens_decoder": {"x": {}}}'}, "no token id"),
        ({"vocab.txt": VOCAB, "tokenizer_config.json": b'{"tokenizer_class": "GPT2Tokenizer"}'}, "other files"),
        ({"vocab.txt": VOCAB, "tokenizer_config.json": b'{"chat_template": 5}'}, "named templates"),
        ({"vocab.txt": VOCAB, "chat_template.jinja": b"\xff"}, "UTF-8"),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused(files: dict[str, bytes], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        tokenizer_from_files(files)


# ------------------------------------------------------------------------------------------------ SentencePiece


def test_model_file_is_read() -> None:
    model = read_model(MODEL, "x")
    assert [one.text for one in model.pieces] == ["<unk>", "▁a", "b", "▁ab"]
    assert model.pieces[1].score == -1.5
    assert (model.unk_id, model.add_dummy_prefix, model.byte_fallback) == (0, True, False)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (MODEL[:-3], "reaches beyond the end"),
        (b"\x0a", "middle of a number"),
        (b"\x80" * 11, "10 bytes"),
        (b"\x00", "number 0"),
        (b"\x0b", "kind 3"),
        (field(1, 5), "is a number"),
        (field(1, field(1, b"\xff")), "UTF-8"),
        (piece("a", float("nan")), "no number"),
        (field(1, field(3, 99)), "kind 99"),
        (piece("a", 0), "unknown"),
        (PIECES + field(2, field(3, 9)), "model type 9"),
        (PIECES + field(2, field(3, b"x")), "no integer"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_damaged_model_file_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        read_model(data, "spiece.model")


@thorough
@given(
    data=st.binary(max_size=200)
    | st.builds(lambda at, byte: MODEL[:at] + byte + MODEL[at + 1 :], st.integers(0, 90), st.binary(max_size=3))
)
def test_no_bytes_give_any_other_error(data: bytes) -> None:
    with contextlib.suppress(TokenizerError):
        tokenizer_from_files({"spiece.model": data}).encode("ab a\u0301 漢")


@thorough
@given(
    data=st.binary(max_size=120)
    | st.builds(
        lambda size, rest: struct.pack("<I", size * 4) + rest, st.integers(1, 8), st.binary(min_size=32, max_size=90)
    )
)
def test_no_table_of_replacements_gives_any_other_error(data: bytes) -> None:
    with contextlib.suppress(TokenizerError):
        normalizer = precompiled_from_bytes(data, "test")
        text = "abc \u00e9\r\n\u0301漢\x00"
        assert isinstance(normalizer.normalize(text), str)
