"""Every component and many combinations of them against the Rust `tokenizers` library: nothing may differ."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors

from pywebml.errors import TokenizerError
from pywebml.tokenization import Encoding, Tokenizer
from pywebml.tokenization.normalizers import build_normalizer
from pywebml.tokenization.pre_tokenizers import build_pre_tokenizer
from tests import vocabularies
from tests.parity.tokenizer_texts import texts
from tests.parity.tokenizer_zoo import built, normalizer_zoo, pre_tokenizer_zoo, written, zoo
from tests.unit.test_tokenization import JSON_VALUES, paths

CHUNKS = 24
EXAMPLES = 45
"""Texts for each tokenizer of the zoo."""
LEAST_COMPARED = 50_000

thorough = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

FIELDS = (
    *("ids", "tokens", "offsets", "word_ids", "type_ids", "sequence_ids"),
    *("attention_mask", "special_tokens_mask"),
)


def differences(mine: Encoding, theirs: Any) -> list[str]:
    """Where two encodings, and all that overflowed of them, differ."""
    found = [
        f"{name}: {getattr(mine, name)} instead of {getattr(theirs, name)}"
        for name in FIELDS
        if getattr(mine, name) != getattr(theirs, name)
    ]
    if len(mine.overflowing) != len(theirs.overflowing):
        found.append(f"{len(mine.overflowing)} pieces overflow instead of {len(theirs.overflowing)}")
    pairs = zip(mine.overflowing, theirs.overflowing, strict=False)
    return found + [f"overflow: {line}" for pair in pairs for line in differences(*pair)]


def outcome(work: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """What comes out, or None for an error: ours are of one kind, the library panics too."""
    try:
        return work(*args, **options)
    except TokenizerError:
        return None
    except BaseException as error:
        if type(error).__module__ in ("builtins", "pyo3_runtime") and not isinstance(error, KeyboardInterrupt):
            return None
        raise


@dataclass(frozen=True)
class Cut:
    """How to truncate."""

    max_length: int
    stride: int
    strategy: Any
    side: str


cuts = st.builds(
    Cut,
    st.integers(0, 14),
    st.sampled_from([0, 0, 1, 2, 3]),
    st.sampled_from(["longest_first", "only_first", "only_second"]),
    st.sampled_from(["left", "right"]),
)


@cache
def pairs() -> list[tuple[str, Tokenizer, Tokenizer, Any]]:
    """Name, ours, the same cutting on the left, and the library's."""
    found: list[tuple[str, Tokenizer, Tokenizer, Any]] = []
    for name, rust in zoo():
        ours = Tokenizer.from_json(written(rust))
        left = copy.copy(ours)
        left.truncation_side = "left"
        found.append((name, ours, left, rust))
    return found


def test_enough_is_compared() -> None:
    assert len(pairs()) * EXAMPLES >= LEAST_COMPARED


@pytest.mark.parametrize("chunk", range(CHUNKS))
@thorough
@given(text=texts, pair=st.none() | texts, special=st.booleans(), cut=cuts)
def test_zoo_agrees_on_any_text(chunk: int, text: str, pair: str | None, special: bool, cut: Cut) -> None:
    for index, (name, ours, ours_left, rust) in enumerate(pairs()[chunk::CHUNKS]):
        theirs = outcome(rust.encode, text, pair, add_special_tokens=special)
        mine = outcome(ours.encode, text, pair, add_special_tokens=special)
        assert (mine is None) == (theirs is None), name
        if mine is None:
            continue
        assert not differences(mine, theirs), name
        assert ours.ids(text, pair, add_special_tokens=special) == theirs.ids, name
        skip = (index + len(text)) % 2 == 0
        decoded = ours.decode(theirs.ids, skip_special_tokens=skip)
        assert decoded == rust.decode(theirs.ids, skip_special_tokens=skip), name
        if (index + len(text)) % 3 == 0:
            compare_cut(name, ours_left if cut.side == "left" else ours, rust, (text, pair, special, cut))


def compare_cut(name: str, ours: Tokenizer, rust: Any, case: tuple[str, str | None, bool, Cut]) -> None:
    text, pair, special, cut = case
    added = rust.num_special_tokens_to_add(pair is not None) if special else 0
    if cut.max_length < max(added, rust.num_special_tokens_to_add(False)):
        # The library counts below zero there; ours cuts nothing, as transformers does.
        return
    # It panics where the stride leaves no room; that is compared below, once.
    room = cut.max_length - max(added, rust.num_special_tokens_to_add(False))
    stride = min(cut.stride, max(room // 2 - 1, 0))
    if stride and cut.strategy != "longest_first":
        stride = 0
    rust.enable_truncation(cut.max_length, stride=stride, strategy=cut.strategy, direction=cut.side)
    theirs = outcome(rust.encode, text, pair, add_special_tokens=special)
    rust.no_truncation()
    options: dict[str, Any] = {"truncation": cut.strategy, "max_length": cut.max_length, "stride": stride}
    mine = outcome(ours.encode, text, pair, add_special_tokens=special, **options)
    assert (mine is None) == (theirs is None), (name, cut)
    if mine is not None:
        assert not differences(mine, theirs), (name, cut)


# ---------------------------------------------------------------------------------------------- every code point


CODE_POINTS = [
    *(*range(0xD800), *range(0xE000, 0x32400)),
    *(0x7FFFF, 0xDFFFF, *range(0xE0000, 0xE0400), 0xEFFFF, 0xF0000, 0xFFFFD, 0xFFFFE, 0x100000, 0x10FFFD, 0x10FFFF),
]
"""All that is assigned, and a few of each stretch of what is not."""


@pytest.mark.parametrize("name", ["nmt", "byte level", "strip", "replace spaces", "precompiled"])
def test_normalizers_agree_on_every_code_point(name: str) -> None:
    rust = normalizer_zoo()[name]
    ours = build_normalizer(json.loads(written(_host(normalizer=rust)))["normalizer"], "test")
    for start in range(0, len(CODE_POINTS), 20_000):
        text = "a".join(map(chr, CODE_POINTS[start : start + 20_000]))
        assert ours.normalize(text) == rust.normalize_str(text), hex(CODE_POINTS[start])


@pytest.mark.parametrize("name", ["single digits", "scripts"])
def test_pre_tokenizers_agree_on_every_code_point(name: str) -> None:
    rust = pre_tokenizer_zoo()[name]
    ours = build_pre_tokenizer(json.loads(written(_host(pre_tokenizer=rust)))["pre_tokenizer"], "test")
    # Every place of a line costs the library a walk through all before it, so lines are short.
    for start in range(0, len(CODE_POINTS), 128):
        text = "".join(f"a{chr(point)}b " for point in CODE_POINTS[start : start + 128])
        assert ours.split(text) == [word for word, _ in rust.pre_tokenize_str(text)], hex(CODE_POINTS[start])


def _host(**components: Any) -> Any:
    host = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    for kind, component in components.items():
        setattr(host, kind, component)
    return host


CLASSES = (
    *(r"\w", r"[\w]", r"\W", r"[^\w]", r"\d", r"\s", r"\h", r"\S", r"\D", r"\R", r"\O", r"\N", r"(?m:.)"),
    *(rf"\p{{{name}}}" for name in ("L", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "Mn", "Mc", "Me", "N", "Nd", "Nl", "No")),
    *(rf"\p{{{name}}}" for name in ("P", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "S", "Sm", "Sc", "Sk", "So", "Z")),
    *(rf"\p{{{name}}}" for name in ("Zs", "Zl", "Zp", "C", "Cc", "Cf", "Co", "Any", "Letter", "punctuation")),
    *(f"[[:{name}:]]" for name in ("alpha", "alnum", "upper", "lower", "punct", "digit", "space", "blank", "cntrl")),
    *(f"[[:{name}:]]" for name in ("graph", "print", "xdigit", "word", "ascii", "^alpha")),
)


@pytest.mark.parametrize("pattern", CLASSES)
def test_classes_of_patterns_have_the_same_members(pattern: str) -> None:
    every = "".join(map(chr, CODE_POINTS))
    rust = pre_tokenizers.Split(Regex(f"(?:{pattern})+"), "removed", invert=True)
    ours = build_pre_tokenizer(json.loads(written(_host(pre_tokenizer=rust)))["pre_tokenizer"], "test")
    assert ours.split(every) == [word for word, _ in rust.pre_tokenize_str(every)]


def test_ignoring_case_joins_the_same_characters() -> None:
    letters = "abikszÉéſßẞKÅΣςσµμİıǅΐﬁ"
    every = "a".join(map(chr, range(0x80, 0x2FFF)))
    for letter in letters.replace("ß", "").replace("ẞ", "").replace("ΐ", "").replace("ﬁ", ""):
        rust = pre_tokenizers.Split(Regex(f"(?i:{letter})"), "isolated")
        ours = build_pre_tokenizer(json.loads(written(_host(pre_tokenizer=rust)))["pre_tokenizer"], "test")
        assert ours.split(every) == [word for word, _ in rust.pre_tokenize_str(every)], letter


# ----------------------------------------------------------------------------------------------- known differences


@dataclass(frozen=True)
class Difference:
    """Where ours differs, why, and what both do.

    Attributes:
        reason: Why it is so.
        components: Of the tokenizer.
        text: That shows it.
        ours: Tokens; an error's beginning in parentheses.
        rust: The same; None: it panics.
    """

    reason: str
    components: dict[str, Any]
    text: str
    ours: list[str] | str
    rust: list[str] | None


def pattern(source: str) -> dict[str, Any]:
    return {"pre_tokenizer": pre_tokenizers.Split(Regex(source), "isolated")}


KNOWN_DIFFERENCES = (
    Difference(
        "The library loses its place when something is put before the first character and text is rewritten again.",
        {"normalizer": normalizers.Sequence([normalizers.Replace(Regex("^"), "_"), normalizers.Lowercase()])},
        "ab",
        ["_", "a", "b"],
        None,
    ),
    Difference(
        "Ignoring case, Oniguruma also takes several characters for one; no published tokenizer has such a letter.",
        pattern("(?i:ss)"),
        "aßb",
        ["a", "ß", "b"],
        ["a", "ß", "b"],
    ),
    Difference("Back-references are not supported.", pattern(r"(a)\1"), "aa", "(The pattern", ["a", "a"]),
    Difference(r"\K is not supported.", pattern(r"a\Kb"), "ab", "(The pattern", ["a", "b"]),
    Difference(r"\X is not supported.", pattern(r"\X"), "ab", "(The pattern", ["a", "b"]),
    Difference(r"\G is not supported.", pattern(r"\Ga"), "ab", "(The pattern", ["a", "b"]),
    Difference("Absent operators are not supported.", pattern("(?~ab)"), "ab", "(The pattern", ["a", "b"]),
    Difference("Extended patterns are not supported.", pattern("(?x: a )"), "ab", "(The pattern", ["a", "b"]),
)


@pytest.mark.parametrize("difference", KNOWN_DIFFERENCES, ids=lambda difference: difference.reason[:40])
def test_known_differences_are_what_they_are_said_to_be(difference: Difference) -> None:
    vocab = {token: index for index, token in enumerate(["[UNK]", "a", "b", "_", "ß", "[S]"])}
    rust = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="[UNK]"))
    for kind, component in difference.components.items():
        setattr(rust, kind, component)
    theirs = outcome(rust.encode, difference.text)
    assert (theirs and theirs.tokens) == difference.rust
    try:
        mine: list[str] | str = Tokenizer.from_json(written(rust)).encode(difference.text).tokens
    except TokenizerError as error:
        mine = f"({error}"
    if isinstance(difference.ours, str):
        assert isinstance(mine, str)
        assert mine.startswith(difference.ours)
    else:
        assert mine == difference.ours


def test_a_template_of_more_than_two_parts_is_refused_where_the_library_panics() -> None:
    tokens = [("[S]", 1)]
    template = processors.TemplateProcessing("$A [S]", "$A [S] $B [S]", special_tokens=tokens)
    rust = _host(post_processor=processors.Sequence([template, template]))
    ours = Tokenizer.from_json(written(rust))
    assert not differences(ours.encode("a"), rust.encode("a"))
    assert outcome(rust.encode, "a", "b") is None
    with pytest.raises(TokenizerError, match="TemplateProcessing"):
        ours.encode("a", "b")


def test_a_stride_without_room_is_refused_where_the_library_panics() -> None:
    rust = _host(pre_tokenizer=pre_tokenizers.WhitespaceSplit())
    ours = Tokenizer.from_json(written(rust))
    rust.enable_truncation(2, stride=2)
    assert outcome(rust.encode, "a b c d") is None
    with pytest.raises(TokenizerError, match="stride=2"):
        ours.encode("a b c d", truncation=True, max_length=2, stride=2)


# --------------------------------------------------------------------------------------------------- more of it


@thorough
@given(words=st.lists(texts, max_size=6), pair=st.none() | st.lists(texts, max_size=3), special=st.booleans())
def test_words_that_are_split_already_agree(words: list[str], pair: list[str] | None, special: bool) -> None:
    for name, ours, _, rust in pairs()[::61]:
        theirs = outcome(rust.encode, words, pair, is_pretokenized=True, add_special_tokens=special)
        mine = outcome(ours.encode, words, pair, add_special_tokens=special)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            assert not differences(mine, theirs), name


@thorough
@given(batch=st.lists(texts, min_size=1, max_size=4), multiple=st.sampled_from([None, 1, 4, 7]), left=st.booleans())
def test_padding_agrees(batch: list[str], multiple: int | None, left: bool) -> None:
    vocab = {token: index for index, token in enumerate(["[PAD]", "[UNK]", *map(chr, range(97, 123))])}
    rust = built(None, pre_tokenizers.Whitespace(), models.WordPiece(vocab, unk_token="[UNK]"), None, None, [])
    side = "left" if left else "right"
    ours = Tokenizer.from_json(written(rust), json.dumps({"padding_side": side, "pad_token_type_id": 3}).encode())
    rust.enable_padding(direction=side, pad_id=0, pad_type_id=3, pad_token="[PAD]", pad_to_multiple_of=multiple)
    mine = ours.encode_batch(batch, padding=True, pad_to_multiple_of=multiple)
    for one, other in zip(mine, rust.encode_batch(batch), strict=True):
        assert not differences(one, other)


@thorough
@given(text=texts, skip=st.booleans())
def test_decoding_in_a_stream_agrees(text: str, skip: bool) -> None:
    for name, ours, _, rust in pairs()[::37]:
        encoded = outcome(rust.encode, text)
        if encoded is None:
            continue
        theirs = encoded.ids
        stream = ours.decode_stream(skip_special_tokens=skip)
        expected = tokenizers.decoders.DecodeStream(skip_special_tokens=skip)
        pieces: list[str] = []
        agrees = True
        for token_id in theirs:
            pieces.append(stream.step(token_id))
            if agrees:
                piece, agrees = stepped(expected, rust, token_id)
                assert not agrees or pieces[-1] == piece, name
        pieces.append(stream.finish())
        # That one takes characters off the beginning of whatever it is given: of each piece, in a stream.
        if agrees and "long strip" not in name:
            assert "".join(pieces) == ours.decode(theirs, skip_special_tokens=skip), name


def stepped(stream: Any, rust: Any, token_id: int) -> tuple[str, bool]:
    """What the library's stream gives, and whether it goes on: it stops where a token changes what was decoded."""
    try:
        return stream.step(rust, token_id) or "", True
    except Exception as error:
        if "Invalid prefix" not in str(error):
            raise
        return "", False


# --------------------------------------------------------------------------------------------- damaged files


@cache
def documents() -> list[tuple[dict[str, Any], list[str]]]:
    """Files of the zoo, and where something can be wrong in them: everywhere but inside vocabularies."""
    found = []
    for _, rust in list(zoo())[::13]:
        document = json.loads(written(rust))
        model = document["model"]
        # A few of its entries are enough, and quicker to read.
        if isinstance(model["vocab"], list):
            model["vocab"] = model["vocab"][:40]
        places = [place for place in paths(document) if place.count(".") < 2 or not place.startswith("model.vocab.")]
        found.append((document, places))
    return found


@settings(thorough, max_examples=600)
@given(number=st.integers(0, 200), place=st.integers(0, 10**6), value=JSON_VALUES | st.just(...))
def test_no_damage_to_any_file_gives_any_other_error(number: int, place: int, value: Any) -> None:
    document, places = documents()[number % len(documents())]
    damaged = copy.deepcopy(document)
    *parents, last = places[place % len(places)].split(".")
    target: Any = damaged
    for parent in parents:
        target = target[int(parent) if isinstance(target, list) else parent]
    key: Any = int(last) if isinstance(target, list) else last
    if value is ...:
        del target[key]
    else:
        target[key] = value
    with contextlib.suppress(TokenizerError):
        ours = Tokenizer.from_json(json.dumps(damaged).encode())
        encoding = ours.encode("hello [SEP] wörld\u0301 漢 12", "a\r\n", truncation=True, max_length=12)
        ours(["hello", "the world 👍🏽"], padding=True)
        ours.decode(encoding.ids)


# ------------------------------------------------------------------------------------------- real vocabularies


def real_tokenizers() -> dict[str, bytes]:
    """Real vocabularies as `tokenizer.json`."""
    return {
        "wordpiece of MiniLM": vocabularies.minilm()[0],
        "byte-level BPE with NFKC": vocabularies.anthropic(),
        "byte-level BPE of tekken": vocabularies.tekken_tokenizer(),
    }


@pytest.mark.parametrize("kind", ["prose", "code"])
@pytest.mark.parametrize("name", ["wordpiece of MiniLM", "byte-level BPE with NFKC", "byte-level BPE of tekken"])
def test_real_vocabularies_agree_on_real_text(name: str, kind: str) -> None:
    data = real_tokenizers()[name]
    rust = tokenizers.Tokenizer.from_str(data.decode())
    rust.no_truncation()
    rust.no_padding()
    ours = Tokenizer.from_json(data)
    pieces = vocabularies.documents(getattr(vocabularies, kind)(), 4000)
    for text, theirs in zip(pieces, rust.encode_batch(pieces), strict=True):
        assert not differences(ours.encode(text), theirs), text[:80]
        assert ours.ids(text) == theirs.ids
        assert ours.decode(theirs.ids) == rust.decode(theirs.ids, skip_special_tokens=False)


@pytest.mark.parametrize("name", ["wordpiece of MiniLM", "byte-level BPE with NFKC", "byte-level BPE of tekken"])
@settings(thorough, max_examples=150)
@given(text=texts, pair=st.none() | texts)
def test_real_vocabularies_agree_on_any_text(name: str, text: str, pair: str | None) -> None:
    ours, rust = _real(name)
    assert not differences(ours.encode(text, pair), rust.encode(text, pair))


@cache
def _real(name: str) -> tuple[Tokenizer, Any]:
    data = real_tokenizers()[name]
    rust = tokenizers.Tokenizer.from_str(data.decode())
    rust.no_truncation()
    rust.no_padding()
    return Tokenizer.from_json(data), rust
