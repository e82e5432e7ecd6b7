"""The tokenizer, without the library that it is measured against (see tests/parity for that)."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pywebml.errors import TokenizerError
from pywebml.tokenization import UNLIMITED_LENGTH, Tokenizer
from pywebml.tokenization.byte_level import CHARACTERS

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hello", "world", "un", "##aff", "##able", "!", ",", "e", "a", "##b", "漢"]


def added(content: str, token_id: int, **flags: bool) -> dict[str, Any]:
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": token_id, "content": content, **dict.fromkeys(names, False), **flags}


def sequence(name: str, type_id: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": type_id}}


def special(name: str, type_id: int) -> dict[str, Any]:
    return {"SpecialToken": {"id": name, "type_id": type_id}}


FILE: dict[str, Any] = {
    "version": "1.0",
    "truncation": {"max_length": 16, "strategy": "LongestFirst", "stride": 0},
    "padding": {"strategy": "BatchLongest", "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
    "added_tokens": [added(token, index, special=True) for index, token in enumerate(VOCAB[:4])],
    "normalizer": {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": True,
    },
    "pre_tokenizer": {"type": "BertPreTokenizer"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [special("[CLS]", 0), sequence("A", 0), special("[SEP]", 0)],
        "pair": [special("[CLS]", 0), sequence("A", 0), special("[SEP]", 0), sequence("B", 1), special("[SEP]", 1)],
        "special_tokens": {
            "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
            "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
        },
    },
    "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "model": {
        "type": "WordPiece",
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {token: index for index, token in enumerate(VOCAB)},
    },
}


def build(config: dict[str, Any] | None = None, **changes: Any) -> Tokenizer:
    """The tokenizer of `FILE` with some of its top-level entries replaced."""
    config_bytes = None if config is None else json.dumps(config).encode()
    return Tokenizer.from_json(json.dumps({**FILE, **changes}).encode(), config_bytes)


def changed(path: str, value: Any) -> bytes:
    """`FILE` with the entry at a dotted path replaced; removed when the value is `...`."""
    document = copy.deepcopy(FILE)
    target: Any = document
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    for key in parents:
        target = target[key]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return json.dumps(document).encode()


# ---------------------------------------------------------------------------------------------------------- encode


def test_words_become_pieces_between_special_tokens() -> None:
    encoding = build().encode("Hello, unaffable World!")
    assert encoding.tokens == ["[CLS]", "hello", ",", "un", "##aff", "##able", "world", "!", "[SEP]"]
    assert encoding.ids == [2, 4, 10, 6, 7, 8, 5, 9, 3]
    assert encoding.special_tokens_mask == [1, 0, 0, 0, 0, 0, 0, 0, 1]
    assert encoding.attention_mask == [1] * 9
    assert encoding.type_ids == [0] * 9


def test_pair_has_type_ids_of_the_template() -> None:
    encoding = build().encode("hello", "world!")
    assert encoding.tokens == ["[CLS]", "hello", "[SEP]", "world", "!", "[SEP]"]
    assert encoding.type_ids == [0, 0, 0, 1, 1, 1]


def test_special_tokens_can_be_left_out() -> None:
    encoding = build().encode("hello", "world", add_special_tokens=False)
    assert (encoding.ids, encoding.type_ids) == ([4, 5], [0, 1])


def test_special_token_in_the_text_is_found_but_not_masked() -> None:
    encoding = build().encode("hello[SEP]world [sep]")
    assert encoding.tokens == ["[CLS]", "hello", "[SEP]", "world", "[UNK]", "[UNK]", "[UNK]", "[SEP]"]
    assert encoding.special_tokens_mask == [1, 0, 0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", []),
        (" \t\n", []),
        ("H\u00c9LLO", ["hello"]),
        ("he\u0301llo", ["hello"]),
        ("hel\x00\u200b\ufffdlo\u3000world", ["hello", "world"]),
        ("hello漢world", ["hello", "漢", "world"]),
        ("xyz", ["[UNK]"]),
        ("unxyz", ["[UNK]"]),
        ("ab" + "b" * 98, ["a", *["##b"] * 99]),
        ("ab" + "b" * 99, ["[UNK]"]),
        ("a" * 100_000, ["[UNK]"]),
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_text_is_normalized_and_split_as_bert_does(text: str, tokens: list[str]) -> None:
    assert build().encode(text, add_special_tokens=False).tokens == tokens


def test_accents_stay_when_case_stays() -> None:
    normalizer = {**FILE["normalizer"], "lowercase": False}
    assert build(normalizer=normalizer).encode("h\u00e9llo", add_special_tokens=False).tokens == ["[UNK]"]


def test_long_word_with_a_high_limit_is_split_in_linear_time() -> None:
    model = {**FILE["model"], "max_input_chars_per_word": 10**9}
    assert build(model=model).encode("a" + "b" * 99_999).ids == [2, 12, *[13] * 99_999, 3]


def test_added_token_takes_the_spaces_that_it_strips() -> None:
    tokens = [*FILE["added_tokens"], added("<m>", 99, lstrip=True, rstrip=True)]
    tokenizer = build(added_tokens=tokens)
    assert tokenizer.encode("hello  <m> \u3000world", add_special_tokens=False).tokens == [
        "hello",
        "  <m> \u3000",
        "world",
    ]
    # The id comes from the end of the vocabulary, whatever the file says.
    assert tokenizer.token_to_id("<m>") == len(VOCAB)
    assert tokenizer.id_to_token(len(VOCAB)) == "<m>"


def test_single_word_token_is_not_found_inside_words() -> None:
    tokenizer = build(added_tokens=[added("he", 99, single_word=True)])
    wanted = tokenizer.token_to_id("he")
    assert wanted is not None
    assert tokenizer.encode("he hello (he) he\u0301 _he").ids.count(wanted) == 2


def test_normalized_token_is_found_in_any_case() -> None:
    tokenizer = build(added_tokens=[added("Ça", 99, normalized=True)])
    assert tokenizer.encode("ÇA ca", add_special_tokens=False).ids == [len(VOCAB)] * 2


def test_of_two_added_tokens_at_one_place_the_longer_is_found() -> None:
    tokenizer = build(added_tokens=[added("<m", 98), added("<m>", 99)])
    assert tokenizer.encode("<m><m", add_special_tokens=False).tokens == ["<m>", "<m"]


def test_ids_and_tokens_are_looked_up() -> None:
    tokenizer = build()
    assert tokenizer.token_to_id("hello") == 4
    assert tokenizer.token_to_id("absent") is None
    assert tokenizer.id_to_token(4) == "hello"
    assert tokenizer.id_to_token(10**6) is None


def test_same_text_gives_the_same_ids_after_the_word_cache_was_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pywebml.tokenization.pipeline._CACHED_WORDS", 2)
    tokenizer = build()
    first = tokenizer.encode("hello world unaffable a ab hello").ids
    assert tokenizer.encode("hello world unaffable a ab hello").ids == first


@pytest.mark.parametrize("text", ["\ud800", "hello \udfff world", "\ude00\ud83d"])
def test_half_of_a_surrogate_pair_is_refused(text: str) -> None:
    with pytest.raises(TokenizerError, match="surrogate"):
        build().encode(text)
    with pytest.raises(TokenizerError, match="surrogate"):
        build()([text, "fine"])


# ----------------------------------------------------------------------------------------------------------- batch


def test_batch_is_padded_to_its_longest_row() -> None:
    batch = build()(["hello", "hello world !"])
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids"}
    assert batch["input_ids"].tolist() == [[2, 4, 3, 0, 0], [2, 4, 5, 9, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert all(array.dtype == np.int64 for array in batch.values())


def test_one_text_is_a_batch_of_one() -> None:
    assert build()("hello")["input_ids"].tolist() == [[2, 4, 3]]
    assert build()("")["input_ids"].tolist() == [[2, 3]]


def test_padding_goes_to_the_side_and_has_the_type_id_of_the_config() -> None:
    tokenizer = build({"padding_side": "left", "pad_token_type_id": 7})
    batch = tokenizer(["hello", "hello world"], text_pairs=["a", "a"])
    assert batch["input_ids"].tolist() == [[0, 2, 4, 3, 12, 3], [2, 4, 5, 3, 12, 3]]
    assert batch["token_type_ids"].tolist() == [[7, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1]]


def test_padding_to_max_length() -> None:
    assert build()("hello", padding="max_length", max_length=6)["input_ids"].tolist() == [[2, 4, 3, 0, 0, 0]]
    assert build()("hello", padding="max_length")["input_ids"].shape == (1, 16)


@pytest.mark.parametrize(
    ("side", "max_length", "rows"),
    [
        ("right", 4, [[2, 4, 5, 3]]),
        ("left", 4, [[2, 5, 9, 3]]),
        ("right", 2, [[2, 3]]),
        # Special tokens alone do not fit: nothing is cut.
        ("right", 1, [[2, 4, 5, 9, 3]]),
    ],
)
def test_truncation_keeps_special_tokens(side: str, max_length: int, rows: list[list[int]]) -> None:
    tokenizer = build({"truncation_side": side})
    assert tokenizer("hello world !", max_length=max_length)["input_ids"].tolist() == rows


@pytest.mark.parametrize(
    ("max_length", "row"),
    [
        (9, [2, 4, 3, 12, 12, 12, 12, 12, 3]),
        (6, [2, 4, 3, 12, 12, 3]),
        (5, [2, 4, 3, 12, 3]),
        (4, [2, 3, 12, 3]),
        (3, [2, 3, 3]),
    ],
)
def test_truncation_cuts_the_longer_text_of_a_pair_first(max_length: int, row: list[int]) -> None:
    batch = build()("hello", text_pairs="a a a a a", max_length=max_length)
    assert batch["input_ids"].tolist() == [row]


def test_model_max_length_is_the_limit_unless_truncation_is_off() -> None:
    text = "hello " * 40
    assert build()(text)["input_ids"].shape == (1, 16)
    assert build()(text, truncation=False)["input_ids"].shape == (1, 42)
    assert build(truncation=None)(text)["input_ids"].shape == (1, 42)


@pytest.mark.parametrize(
    ("config", "truncation", "expected"),
    [
        ({"model_max_length": 512}, {"max_length": 16}, 512),
        ({"model_max_length": 1e30}, {"max_length": 16}, int(1e30)),
        ({}, {"max_length": 16}, 16),
        (None, None, UNLIMITED_LENGTH),
    ],
)
def test_model_max_length_comes_from_the_config_first(config: Any, truncation: Any, expected: int) -> None:
    assert build(config, truncation=truncation).model_max_length == expected


def test_padding_token_comes_from_the_config_first() -> None:
    assert build({"pad_token": {"content": "!", "lstrip": False}}).pad_token_id == 9
    assert build({"pad_token": "!"}).pad_token_id == 9
    assert build().pad_token_id == 0
    assert build(padding=None).pad_token_id == 0


def test_model_input_names_come_from_the_config_or_the_class() -> None:
    assert build().model_input_names == ("input_ids", "token_type_ids", "attention_mask")
    assert build({"tokenizer_class": "DistilBertTokenizerFast"}).model_input_names == ("input_ids", "attention_mask")
    assert build({"model_input_names": ["input_ids"]}).model_input_names == ("input_ids",)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": []}, "no texts"),
        ({"texts": 5}, "list of texts"),
        ({"texts": ["a", None]}, "NoneType"),
        ({"texts": [b"a"]}, "bytes"),
        ({"texts": "a", "text_pairs": ["a"]}, "one text"),
        ({"texts": ["a"], "text_pairs": "a"}, "list"),
        ({"texts": ["a", "a"], "text_pairs": ["a"]}, "2 texts but 1"),
        ({"texts": ["a", "a a"], "padding": False}, "rectangle"),
        ({"texts": "a", "padding": "longer"}, "padding='longer'"),
        ({"texts": "a", "max_length": -1}, "max_length=-1"),
        ({"texts": "a", "max_length": True}, "max_length=True"),
    ],
)
def test_unusable_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        build()(**arguments)


def test_padding_without_a_padding_token_is_refused() -> None:
    vocab = {token: index for index, token in enumerate(VOCAB) if token != "[PAD]"}
    tokenizer = build(padding=None, added_tokens=[], model={**FILE["model"], "vocab": vocab})
    assert tokenizer.pad_token_id is None
    assert tokenizer(["hello", "world"])["input_ids"].shape == (2, 3)
    with pytest.raises(TokenizerError, match="no padding token"):
        tokenizer(["hello", "hello world"])


def test_padding_to_an_unknown_max_length_is_refused() -> None:
    with pytest.raises(TokenizerError, match="needs a max_length"):
        build(truncation=None)("hello", padding="max_length")


# ------------------------------------------------------------------------------------------------ untrusted files


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model", ..., "no 'model'"),
        ("model.vocab", ..., "no 'vocab'"),
        ("model.vocab", {}, "empty"),
        ("model.vocab", ["a"], "an object, found a list"),
        ("model.vocab.hello", "4", "token id"),
        ("model.vocab.hello", -1, "token id"),
        ("model.vocab.hello", 2**32, "token id"),
        ("model.vocab.hello", True, "found a boolean"),
        ("model.vocab.\ud800", 77, "surrogate"),
        ("model.unk_token", None, "a string, found null"),
        ("model.max_input_chars_per_word", 1.5, "integer"),
        ("model.type", "Telepathy", "model 'Telepathy' is not supported"),
        ("normalizer", "lower", "an object, found a string"),
        ("normalizer.type", "Rot13", "tokenizer.json.normalizer: the normalizer 'Rot13' is not supported"),
        ("normalizer.lowercase", 1, "a boolean, found a number"),
        ("normalizer.clean_text", ..., "no 'clean_text'"),
        ("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "X"}]}, r"normalizers\[1\]"),
        ("pre_tokenizer.type", "Scissors", "pre-tokenizer 'Scissors'"),
        ("pre_tokenizer", {"type": "Punctuation", "behavior": "isolated"}, "'isolated' is none of"),
        ("post_processor.type", "Polish", "post-processor 'Polish'"),
        ("post_processor.single.1.Sequence.id", "B", "no sequence 'B'"),
        ("post_processor.single.0", {"SpecialToken": {"id": "[X]", "type_id": 0}}, r"no '\[X\]'"),
        ("post_processor.single.0", "[CLS]", "an object, found a string"),
        ("post_processor.special_tokens.[CLS].ids", [2, 3], "2 ids for 1 tokens"),
        ("post_processor.special_tokens.[CLS].ids", ["2"], "token id"),
        ("post_processor", {"type": "BertProcessing", "cls": ["[CLS]"], "sep": ["[SEP]", 3]}, "a token and its id"),
        ("added_tokens", {}, "a list, found an object"),
        ("added_tokens.0.content", 5, "a string"),
        ("added_tokens.0.lstrip", ..., "no 'lstrip'"),
        ("added_tokens.0.content", "\udc00", "surrogate"),
        ("truncation.max_length", "long", "positive number"),
        ("padding.direction", "Up", "neither 'left' nor 'right'"),
    ],
)
def test_malformed_file_is_refused_with_the_place(path: str, value: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.from_json(changed(path, value))
    assert "place" in caught.value.details


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"model": ' * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        Tokenizer.from_json(data)
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json"):
        Tokenizer.from_json(json.dumps(FILE).encode(), data)


def test_deeply_nested_components_are_refused() -> None:
    nested: dict[str, Any] = {"type": "NFD"}
    for _ in range(40):
        nested = {"type": "Sequence", "normalizers": [nested]}
    with pytest.raises(TokenizerError, match="deep"):
        build(normalizer=nested)


@pytest.mark.parametrize("name", ["vocab", "merges"])
def test_what_nests_deeply_in_a_model_is_refused(name: str) -> None:
    nested: list[Any] = []
    for _ in range(100):
        nested = [nested]
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": [], name: nested}
    with pytest.raises(TokenizerError, match=rf"tokenizer\.json\.model\.{name}"):
        Tokenizer.from_json(json.dumps({"model": model}).encode())


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ({"a": "b"}, "a list, found an object"),
        ([1], "a list of pairs"),
        (["a b", ["a", "b"]], "a list of pairs"),
        ([{"a": 1, "b": 2}], "a list of pairs"),
        (["ab"], "no pair"),
        (["a b c"], "no pair"),
        (["ab", "a b c"], "no pair"),
        ([[]], "no pair"),
        ([["a"]], "no pair"),
        ([["a", "b"], ["a", "b", "ab"]], "no pair"),
        ([["a"], ["a", "b", "ab"]], "no pair"),
        ([["a", 1]], "pairs of strings"),
        ([[1, 2]], "pairs of strings"),
        ([["a", None]], "pairs of strings"),
        ([[["a"], ["b"]]], "pairs of strings"),
        ([["a", {"b": 1}]], "pairs of strings"),
    ],
    ids=str,
)
@pytest.mark.parametrize("prefix", [None, "##"])
def test_malformed_merges_are_refused_with_the_place(merges: object, message: str, prefix: str | None) -> None:
    with pytest.raises(TokenizerError, match=message) as caught:
        build_bpe(merges, continuing_subword_prefix=prefix)
    assert caught.value.details["place"] == "tokenizer.json.model.merges"


@pytest.mark.parametrize(
    ("merges", "prefix", "missing"),
    [
        ([["a", "x"]], None, "x"),
        ([["x", "a"]], None, "x"),
        ([["b", "a"]], None, "ba"),
        ([["a b", "c"]], None, "a b"),
        (["a x"], None, "x"),
        (["x a"], None, "x"),
        (["b a"], None, "ba"),
        ([["b", "##a"]], "##", "ba"),
        (["b ##a"], "##", "ba"),
    ],
    ids=str,
)
def test_merges_of_unknown_tokens_are_refused(merges: list[Any], prefix: str | None, missing: str) -> None:
    with pytest.raises(TokenizerError, match=f"needs the token '{missing}'") as caught:
        build_bpe(merges, continuing_subword_prefix=prefix)
    assert caught.value.details == {"place": "tokenizer.json.model.merges", "token": missing}


@pytest.mark.parametrize(
    ("merges", "tokens"),
    [
        ([["a", " "], ["a ", "b"]], ["a b", "b"]),
        # The second is another pair than "a" and " b", though both are "a b" together.
        ([[" ", "b"], ["a ", "b"]], ["a", " b", "b"]),
        # Of equal pairs the last counts.
        ([["a", " "], [" ", "b"], ["a ", "b"], ["a", " "]], ["a", " b", "b"]),
    ],
)
def test_tokens_with_a_space_are_merged(merges: list[list[str]], tokens: list[str]) -> None:
    tokenizer = build_bpe(merges, "a ", " b", "a b")
    assert tokenizer.encode("a bb").tokens == tokens
    assert tokenizer.ids("a bb") == [tokenizer.token_to_id(token) for token in tokens]


def build_bpe(merges: object, *tokens: str, **options: Any) -> Tokenizer:
    """A BPE of the tokens `a`, `b`, `ab`, `c`, a space and others."""
    vocab = {token: index for index, token in enumerate(("a", "b", "ab", "c", "##a", " ", *tokens))}
    return Tokenizer.from_json(
        json.dumps({"model": {"type": "BPE", "vocab": vocab, "merges": merges, **options}}).encode()
    )


@pytest.mark.parametrize(
    "config",
    [
        {"model_max_length": "512"},
        {"model_max_length": True},
        {"model_max_length": 0},
        {"model_max_length": -1.0},
        {"pad_token": 5},
        {"pad_token": {"lstrip": True}},
        {"padding_side": "up"},
        {"truncation_side": 5},
        {"model_input_names": "input_ids"},
        {"tokenizer_class": []},
        {"pad_token_type_id": -1},
    ],
    ids=str,
)
def test_malformed_config_is_refused_with_the_place(config: dict[str, Any]) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json"):
        build(config)


def test_unknown_word_without_an_unknown_token_is_refused_when_it_comes() -> None:
    tokenizer = Tokenizer.from_json(changed("model.unk_token", "[NONE]"))
    assert tokenizer.encode("hello").ids == [2, 4, 3]
    with pytest.raises(TokenizerError, match=r"'\[NONE\]'"):
        tokenizer.encode("xyz")


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2**33) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def paths(value: Any, prefix: str = "") -> list[str]:
    """Dotted paths of everything inside a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, inner in items for path in (f"{prefix}{key}", *paths(inner, f"{prefix}{key}."))]


@settings(max_examples=500, derandomize=True, deadline=None, database=None)
@given(path=st.sampled_from([path for path in paths(FILE) if "1.0" not in path]), value=JSON_VALUES | st.just(...))
def test_no_damage_to_the_file_gives_any_other_error(path: str, value: Any) -> None:
    with contextlib.suppress(TokenizerError):
        Tokenizer.from_json(changed(path, value))(["hello [SEP] wörld", "a"], padding="longest", max_length=8)


# ---------------------------------------------------------------------------------------- places, overflow, decoding


def test_offsets_and_words_lead_back_to_the_text() -> None:
    text = "HÉLLO, unaffable"
    encoding = build().encode(text)
    assert [text[start:end] for start, end in encoding.offsets] == ["", "HÉLLO", ",", "un", "aff", "able", ""]
    assert encoding.word_ids == [None, 0, 1, 2, 2, 2, None]
    assert encoding.sequence_ids == [None, 0, 0, 0, 0, 0, None]
    assert encoding.word_to_tokens(2) == (3, 6)
    assert encoding.word_to_chars(2) == (7, 16)
    assert encoding.char_to_token(10) == 4
    assert encoding.char_to_word(10) == 2
    assert encoding.token_to_chars(4) == (9, 12)
    assert (encoding.token_to_word(4), encoding.token_to_word(0)) == (2, None)
    assert encoding.word_to_tokens(9) is None
    assert encoding.char_to_token(6) is None


def test_what_is_cut_off_overflows_with_a_stride() -> None:
    encoding = build().encode("hello world ! , a", truncation=True, max_length=5, stride=1)
    rows = [encoding, *encoding.overflowing]
    assert [row.tokens for row in rows] == [
        ["[CLS]", "hello", "world", "!", "[SEP]"],
        ["[CLS]", "!", ",", "a", "[SEP]"],
    ]


def test_overflowing_rows_of_a_batch_name_their_texts() -> None:
    batch = build()(
        ["hello world ! , a", "e"],
        max_length=5,
        stride=1,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    assert batch["input_ids"].tolist() == [[2, 4, 5, 9, 3], [2, 9, 10, 12, 3], [2, 11, 3, 0, 0]]
    assert batch["overflow_to_sample_mapping"].tolist() == [0, 0, 1]
    assert batch["offset_mapping"][1].tolist() == [[0, 0], [12, 13], [14, 15], [16, 17], [0, 0]]
    assert batch["special_tokens_mask"][2].tolist() == [1, 0, 1, 1, 1]
    assert all(array.dtype == np.int64 for array in batch.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truncation": "only_second", "max_length": 3}, "second text"),
        ({"pair": "hello world !", "truncation": "only_first", "max_length": 5}, "cannot cut"),
        ({"truncation": "shortest"}, "'shortest' is none of"),
        ({"truncation": True, "max_length": 4, "stride": 2}, "stride=2 must be smaller"),
        ({"stride": -1}, "stride=-1"),
    ],
)
def test_truncation_that_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        build().encode("hello world !", **options)


def test_words_that_are_split_already_keep_their_numbers() -> None:
    encoding = build().encode(["unaffable", "hello"])
    assert encoding.word_ids == [None, 0, 0, 0, 1, None]
    assert encoding.offsets == [(0, 0), (0, 2), (2, 5), (5, 9), (0, 5), (0, 0)]


def test_padding_is_rounded_up() -> None:
    assert build()(["hello", "hello world"], pad_to_multiple_of=8)["input_ids"].shape == (2, 8)
    encodings = build().encode_batch(["hello", "hello world"], padding=True)
    assert [encoding.tokens for encoding in encodings] == [
        ["[CLS]", "hello", "[SEP]", "[PAD]"],
        ["[CLS]", "hello", "world", "[SEP]"],
    ]
    with pytest.raises(TokenizerError, match="pad_to_multiple_of=0"):
        build()("hello", pad_to_multiple_of=0)


def test_ids_become_text_again() -> None:
    tokenizer = build({"clean_up_tokenization_spaces": False})
    ids = tokenizer.ids("hello , unaffable world !")
    assert tokenizer.decode(ids) == "[CLS] hello, unaffable world! [SEP]"
    assert tokenizer.decode(np.array(ids), skip_special_tokens=True) == "hello, unaffable world!"
    assert tokenizer.batch_decode([ids, [4]], skip_special_tokens=True) == ["hello, unaffable world!", "hello"]
    assert tokenizer.decode([10**9, 4]) == "hello"
    assert build(decoder=None).decode([4, 9], clean_up_tokenization_spaces=True) == "hello!"
    with pytest.raises(TokenizerError, match="token ids"):
        tokenizer.decode(["a"])  # type: ignore[list-item]


def test_a_stream_never_gives_half_a_character() -> None:
    text = "aé漢👍🏽b"
    alphabet = [CHARACTERS[byte] for byte in range(256)]
    model = {"type": "BPE", "vocab": {token: index for index, token in enumerate(alphabet)}, "merges": []}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    document = {"model": model, "pre_tokenizer": level, "decoder": level}
    tokenizer = Tokenizer.from_json(json.dumps(document).encode())
    stream = tokenizer.decode_stream()
    pieces = [stream.step(token_id) for token_id in tokenizer.ids(text)]
    assert [piece for piece in pieces if piece] == list(text)
    assert stream.finish() == ""
    for token_id in tokenizer.ids(text)[:2]:
        assert "\ufffd" not in stream.step(token_id)
    assert stream.finish() == "\ufffd"


def test_vocabulary_is_listed() -> None:
    tokenizer = build({"eos_token": "[SEP]"}, added_tokens=[*FILE["added_tokens"], added("<m>", 99)])
    assert tokenizer.vocab_size == len(VOCAB) + 1
    assert tokenizer.get_vocab()["<m>"] == len(VOCAB)
    assert tokenizer.special_token_id("eos_token") == 3
    assert tokenizer.all_special_ids == {0, 1, 2, 3}
    assert tokenizer.tokenize("hello<m>") == ["hello", "<m>"]


def test_thousands_of_added_tokens_cost_no_more_than_few() -> None:
    tokens = [added(f"<t{index}>", index) for index in range(5000)]
    tokenizer = build(added_tokens=tokens)
    text = "<t4999> hello <t49 <t49>" * 200
    assert tokenizer.encode(text, add_special_tokens=False).tokens.count("<t49>") == 200
