"""Our tokenizer against the Rust `tokenizers` library, and its batching against `transformers`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors

from pywebml.tokenization import Tokenizer
from pywebml.tokenization.normalizers import build_normalizer
from pywebml.tokenization.pre_tokenizers import build_pre_tokenizer

MODEL_FOLDER = Path("dist/hub/sentence-transformers/all-MiniLM-L6-v2")
CODE_POINTS = [point for point in range(0x110000) if not 0xD800 <= point < 0xE000]

thorough = settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
brief = settings(thorough, max_examples=40)

# Characters that tokenizers are known to trip over: context-dependent case, marks that are reordered or not, Hangul,
# ideographs, joiners, direction marks, white space of every kind, what only some Unicode versions know.
TROUBLE = (
    "ΣσςİıẞßǅŐÅĀ\u0301\u0308\u0316\u0334\u0345\u05b0\u05b4\u0655\u1dfb\u302e\u302f\u1bf2\U0001d165\U0001e944"
    "각ᄀ\u1161\u11a8漢字\u2f00\U0002f800かな゛ﾞ\u200b\u200c\u200d\u200f\u202e\u2066\ufeff\ufffd\u00ad\u180e"
    "\t\n\r\x0b\x0c\x1c\x1f\x00\x7f\x85\xa0\u1680\u2003\u2028\u202f\u3000"
    "\u08e2\u0897\u07fd\u32ff\U000105d2\u0307\U00011935\U00011930\U00016d67\ua7cb\U00010d50\U00016ea0\U0001f642\U0001f1e9"
    "_-–—¿«»…$+<=>^`|~'\"#@%&*()[]{}"
)
FRAGMENTS = [
    "hello",
    "world",
    "unaffable",
    "##ing",
    "[SEP]",
    "[CLS]",
    "[MASK]",
    "[UNK]",
    "[sep]",
    "<m>",
    "Tok",
    "ÉÈ",
    " ",
]

# Marks with combining classes of all sizes, side by side, some of which the BERT normalizer keeps.
MARKS = "\u0301\u0316\u0334\u0345\u05b0\u08d4\u08e1\u1b44\u1bf2\u1dfb\u302e\u302f\ua953\U0001d165\U0001d16d\U0001e944"

characters = st.one_of(
    st.text(st.sampled_from(MARKS), min_size=2, max_size=5),
    st.sampled_from(TROUBLE),
    st.characters(exclude_categories=["Cs"]),
    st.characters(min_codepoint=32, max_codepoint=126),
    st.characters(min_codepoint=0x80, max_codepoint=0x24F),
)
texts = st.lists(st.one_of(characters, st.sampled_from(FRAGMENTS)), max_size=40).map("".join)


@pytest.fixture(scope="module")
def model_files(pytestconfig: pytest.Config) -> tuple[bytes, bytes]:
    """`tokenizer.json` and `tokenizer_config.json` of the real all-MiniLM-L6-v2."""
    folder = pytestconfig.rootpath / MODEL_FOLDER
    found = sorted(folder.glob("*/tokenizer.json"))
    if not found:
        pytest.fail(f"There is no {MODEL_FOLDER}/*/tokenizer.json. Run `./build.sh build` first: it fetches the model.")
    return found[-1].read_bytes(), (found[-1].parent / "tokenizer_config.json").read_bytes()


@pytest.fixture(scope="module")
def real(model_files: tuple[bytes, bytes]) -> tuple[Tokenizer, Any]:
    """The real model's tokenizer: ours and Rust's."""
    rust = tokenizers.Tokenizer.from_str(model_files[0].decode())
    rust.no_truncation()
    rust.no_padding()
    return Tokenizer.from_json(*model_files), rust


VOCAB = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##world", "un", "##aff", "##able", "##ing", "e"),
    *(chr(c) for c in range(0x21, 0x7F) if not chr(c).isalpha()),
    *(chr(c) for c in range(ord("a"), ord("z") + 1) if chr(c) != "e"),
    *(f"##{chr(c)}" for c in range(ord("a"), ord("z") + 1)),
    *("É", "é", "##é", "σ", "##σ", "ς", "漢", "字", "각", "##\u11a8", "\u1100", "H", "##\u0301", "##É", "Tok", "T"),
]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def small_pair(
    *,
    normalizer: Any = None,
    pre_tokenizer: Any = None,
    post_processor: Any = None,
    added: list[AddedToken] | None = None,
    max_chars: int = 100,
) -> tuple[Tokenizer, Any]:
    """A small BERT tokenizer that the Rust library built and wrote, and ours read from that."""
    vocab = {token: index for index, token in enumerate(VOCAB)}
    rust = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=max_chars))
    if normalizer is not None:
        rust.normalizer = normalizer
    if pre_tokenizer is not None:
        rust.pre_tokenizer = pre_tokenizer
    if post_processor is not None:
        rust.post_processor = post_processor
    rust.add_special_tokens(list(SPECIAL))
    rust.add_tokens(added or [])
    return Tokenizer.from_json(rust.to_str().encode()), rust


def template() -> Any:
    return processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )


def assert_equal(ours: Tokenizer, rust: Any, text: str, pair: str | None = None, **options: bool) -> None:
    mine, theirs = ours.encode(text, pair, **options), rust.encode(text, pair, **options)
    assert mine.tokens == theirs.tokens
    assert mine.ids == theirs.ids
    assert mine.type_ids == theirs.type_ids
    assert mine.attention_mask == theirs.attention_mask
    assert mine.special_tokens_mask == theirs.special_tokens_mask


# ---------------------------------------------------------------------------------------------- every code point


def difference(pairs: Iterator[tuple[int, object, object]]) -> list[tuple[str, object, object]]:
    """The first code points on which two sides disagree."""
    return list(itertools.islice(((f"U+{p:04X}", mine, rust) for p, mine, rust in pairs if mine != rust), 20))


NORMALIZER_JSONS: list[dict[str, Any]] = [
    {"type": "NFC"},
    {"type": "NFD"},
    {"type": "NFKC"},
    {"type": "NFKD"},
    {"type": "Lowercase"},
    {"type": "StripAccents"},
    *(
        {
            "type": "BertNormalizer",
            "clean_text": clean,
            "handle_chinese_chars": chinese,
            "strip_accents": strip,
            "lowercase": lower,
        }
        for clean, chinese, strip, lower in [
            (True, True, None, True),
            (True, True, None, False),
            (False, False, True, False),
            (False, True, False, True),
        ]
    ),
]
PRE_TOKENIZER_JSONS: list[dict[str, Any]] = [
    {"type": "BertPreTokenizer"},
    {"type": "Whitespace"},
    {"type": "WhitespaceSplit"},
    *(
        {"type": "Punctuation", "behavior": behavior}
        for behavior in ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")
    ),
]


def rust_component(field: str, value: dict[str, Any]) -> Any:
    """The Rust library's own reading of a component's JSON."""
    host = json.loads(tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).to_str())
    return getattr(tokenizers.Tokenizer.from_str(json.dumps({**host, field: value})), field)


@pytest.mark.parametrize("value", NORMALIZER_JSONS, ids=str)
def test_normalizers_agree_on_every_code_point(value: dict[str, Any]) -> None:
    ours, rust = build_normalizer(value, "test"), rust_component("normalizer", value)
    # A carrier after each, so that marks do not run together; ten thousand at once for speed.
    assert not difference(
        found
        for start in range(0, len(CODE_POINTS), 10_000)
        for found in zip(
            CODE_POINTS[start : start + 10_000],
            ours.normalize("\u2402".join(map(chr, CODE_POINTS[start : start + 10_000]))).split("\u2402"),
            rust.normalize_str("\u2402".join(map(chr, CODE_POINTS[start : start + 10_000]))).split("\u2402"),
            strict=False,
        )
    )


@pytest.mark.parametrize("value", PRE_TOKENIZER_JSONS, ids=str)
def test_pre_tokenizers_agree_on_every_code_point(value: dict[str, Any]) -> None:
    ours, rust = build_pre_tokenizer(value, "test"), rust_component("pre_tokenizer", value)
    assert not difference(
        (CODE_POINTS[start], ours.split(text), [word for word, _ in rust.pre_tokenize_str(text)])
        for start in range(0, len(CODE_POINTS), 64)
        for text in ["".join(f"a{chr(point)}b " for point in CODE_POINTS[start : start + 64])]
    )


def test_real_tokenizer_agrees_on_every_code_point(real: tuple[Tokenizer, Any]) -> None:
    ours, rust = real
    batches = [CODE_POINTS[start : start + 64] for start in range(0, len(CODE_POINTS), 64)]
    lines = ["".join(f"a{chr(point)}b " for point in batch) for batch in batches]
    assert not difference(
        (batch[0], ours.encode(line).ids, found.ids)
        for batch, line, found in zip(batches, lines, rust.encode_batch(lines), strict=True)
    )


# ------------------------------------------------------------------------------------------------- any text at all


NORMALIZERS = {
    str(value): (build_normalizer(value, "test"), rust_component("normalizer", value)) for value in NORMALIZER_JSONS
}
PRE_TOKENIZERS = {
    str(value): (build_pre_tokenizer(value, "test"), rust_component("pre_tokenizer", value))
    for value in PRE_TOKENIZER_JSONS
}


@thorough
@given(text=texts)
def test_normalizers_agree_on_any_text(text: str) -> None:
    for name, (ours, rust) in NORMALIZERS.items():
        assert ours.normalize(text) == rust.normalize_str(text), name


@thorough
@given(text=texts)
def test_pre_tokenizers_agree_on_any_text(text: str) -> None:
    for name, (ours, rust) in PRE_TOKENIZERS.items():
        assert ours.split(text) == [word for word, _ in rust.pre_tokenize_str(text)], name


@thorough
@given(text=texts, pair=st.none() | texts, add_special_tokens=st.booleans())
def test_real_tokenizer_agrees_on_any_text(
    real: tuple[Tokenizer, Any], text: str, pair: str | None, add_special_tokens: bool
) -> None:
    assert_equal(*real, text, pair, add_special_tokens=add_special_tokens)


SMALL = {
    "uncased": small_pair(
        normalizer=normalizers.BertNormalizer(),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        post_processor=template(),
    ),
    "cased": small_pair(
        normalizer=normalizers.BertNormalizer(lowercase=False),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        post_processor=processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)),
        max_chars=4,
    ),
    "uncleaned": small_pair(
        normalizer=normalizers.BertNormalizer(clean_text=False, strip_accents=False),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
    ),
    "sequence": small_pair(
        normalizer=normalizers.Sequence(
            [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.NFC()]
        ),
        pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]),
        post_processor=template(),
    ),
    "bare": small_pair(),
}


@pytest.mark.parametrize("name", SMALL)
@thorough
@given(text=texts, pair=st.none() | texts, add_special_tokens=st.booleans())
def test_small_tokenizers_agree_on_any_text(name: str, text: str, pair: str | None, add_special_tokens: bool) -> None:
    assert_equal(*SMALL[name], text, pair, add_special_tokens=add_special_tokens)


# None of which normalization leaves nothing (a lone accent): the library's matcher then finds the empty string, even
# between the bytes of a character, and panics. Ours never finds such a token.
ADDED_CONTENTS = ["<m>", "hello", "ell", "ÉÈ", "[SEP]", " x", "x ", "e\u0301", "Tok", "to", "hello world", "mm", "m"]
added_tokens = st.lists(
    st.builds(
        AddedToken,
        st.sampled_from(ADDED_CONTENTS),
        single_word=st.booleans(),
        lstrip=st.booleans(),
        rstrip=st.booleans(),
        normalized=st.booleans(),
        special=st.booleans(),
    ),
    max_size=5,
    unique_by=lambda token: token.content,
)
added_texts = st.lists(
    st.one_of(
        st.sampled_from(ADDED_CONTENTS),
        st.sampled_from([" ", "  ", "\t", "\u3000", "\u0301", "_", "a", "É", "漢", "²", "Ⓐ", "\u200d", "-", "éè"]),
    ),
    max_size=12,
).map("".join)


@settings(thorough, max_examples=400)
@given(added=added_tokens, found_texts=st.lists(added_texts, min_size=5, max_size=5), lower=st.booleans())
def test_added_tokens_agree(added: list[AddedToken], found_texts: list[str], lower: bool) -> None:
    ours, rust = small_pair(
        normalizer=normalizers.BertNormalizer(lowercase=lower),
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(),
        post_processor=template(),
        added=added,
    )
    assert {token.content: ours.token_to_id(token.content) for token in added} == {
        token.content: rust.token_to_id(token.content) for token in added
    }
    for text in found_texts:
        assert_equal(ours, rust, text)


@pytest.mark.parametrize("text", ["<m> Tok", "<m>  Tok <m>", " <m> <m> ", "Tok<m>\u3000Tok a", "Tok <m>"])
@pytest.mark.parametrize("normalized", [False, True])
def test_added_tokens_that_want_the_same_spaces_agree(text: str, normalized: bool) -> None:
    flags = {"lstrip": True, "rstrip": True, "normalized": normalized}
    pair = small_pair(
        pre_tokenizer=pre_tokenizers.BertPreTokenizer(), added=[AddedToken("<m>", **flags), AddedToken("Tok", **flags)]
    )
    assert_equal(*pair, text)


def test_single_word_tokens_agree_on_every_code_point() -> None:
    ours, rust = small_pair(added=[AddedToken("<m>", single_word=True, normalized=False, lstrip=True, rstrip=True)])
    lines = [
        "".join(f"{chr(point)}<m>{chr(point)}|" for point in CODE_POINTS[start : start + 64])
        for start in range(0, len(CODE_POINTS), 64)
    ]
    added = rust.token_to_id("<m>")
    assert not difference(
        (CODE_POINTS[index * 64], ours.encode(line).ids.count(added), found.ids.count(added))
        for index, (line, found) in enumerate(zip(lines, rust.encode_batch(lines), strict=True))
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a" * 100_000,
        "é" * 100_000,
        "漢" * 10_000,
        "hello " * 20_000,
        "".join(map(chr, range(0x20))),
        "[SEP]" * 1000,
        "[CLS] [SEP][PAD] [MASK]hello",
    ],
    ids=lambda text: f"{text[:8]!r}x{len(text)}",
)
def test_long_and_odd_texts_agree(real: tuple[Tokenizer, Any], text: str) -> None:
    assert_equal(*real, text)
    assert_equal(*real, text, "hello")


# ------------------------------------------------------------------------------------------- batching, transformers


@pytest.fixture(scope="module")
def fast(model_files: tuple[bytes, bytes], real: tuple[Tokenizer, Any]) -> Any:
    """The real model's tokenizer as `transformers` runs it."""
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=real[1],
        pad_token="[PAD]",
        model_max_length=512,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


words = st.lists(st.sampled_from(["hello", "world", "unaffable", "tokenization", "[SEP]", "é", "漢字"]), max_size=12)
lines = words.map(" ".join)
batches = st.lists(st.tuples(lines, lines), min_size=1, max_size=5)


def assert_same_batch(ours: dict[str, Any], theirs: Any) -> None:
    assert set(ours) == {"input_ids", "attention_mask", "token_type_ids"}
    for name, array in ours.items():
        assert array.dtype.name == "int64", name
        assert array.tolist() == theirs[name].tolist(), name


@pytest.mark.parametrize("padding", [True, "longest", "max_length"])
@settings(thorough, max_examples=80)
@given(batch=batches, with_pairs=st.booleans(), max_length=st.none() | st.integers(3, 30), special=st.booleans())
def test_batches_agree_with_transformers(
    real: tuple[Tokenizer, Any],
    fast: Any,
    padding: Any,
    batch: list[tuple[str, str]],
    with_pairs: bool,
    max_length: int | None,
    special: bool,
) -> None:
    first = [text for text, _ in batch]
    second = [text for _, text in batch] if with_pairs else None
    options = {"padding": padding, "truncation": True, "max_length": max_length, "add_special_tokens": special}
    assert_same_batch(real[0](first, text_pairs=second, **options), fast(first, second, return_tensors="np", **options))


@brief
@given(text=lines, pair=st.none() | lines, max_length=st.integers(0, 20), truncation=st.booleans())
def test_single_texts_agree_with_transformers(
    real: tuple[Tokenizer, Any], fast: Any, text: str, pair: str | None, max_length: int, truncation: bool
) -> None:
    options: dict[str, Any] = {"padding": False, "truncation": truncation, "max_length": max_length}
    assert_same_batch(real[0](text, text_pairs=pair, **options), fast(text, pair, return_tensors="np", **options))


@brief
@given(batch=batches, max_length=st.integers(3, 20))
def test_left_sides_agree_with_transformers(
    model_files: tuple[bytes, bytes], real: tuple[Tokenizer, Any], batch: list[tuple[str, str]], max_length: int
) -> None:
    transformers = pytest.importorskip("transformers")
    sides = {"padding_side": "left", "truncation_side": "left"}
    names = ["input_ids", "token_type_ids", "attention_mask"]
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=real[1], pad_token="[PAD]", model_input_names=names, **sides
    )
    ours = Tokenizer.from_json(model_files[0], json.dumps({"pad_token": "[PAD]", **sides}).encode())
    first, second = [text for text, _ in batch], [text for _, text in batch]
    options: dict[str, Any] = {"padding": True, "truncation": True, "max_length": max_length}
    assert_same_batch(ours(first, text_pairs=second, **options), fast(first, second, return_tensors="np", **options))


def test_long_text_is_cut_to_the_models_length_as_in_transformers(real: tuple[Tokenizer, Any], fast: Any) -> None:
    batch = ["hello " * 700, "world"]
    ours = real[0](batch)
    assert ours["input_ids"].shape == (2, 512)
    assert_same_batch(ours, fast(batch, padding=True, truncation=True, return_tensors="np"))
