"""Patterns written for Oniguruma, and those that would take forever."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pywebml.errors import TokenizerError
from pywebml.tokenization import patterns
from pywebml.tokenization.patterns import Pattern


@pytest.mark.parametrize(
    ("source", "text", "pieces"),
    [
        (r"\p{L}+", "añ1b", ["añ", "1", "b"]),
        (r"[^\p{L}\s]", "a-b c", ["a", "-", "b c"]),
        (r"[a-c&&[^b]]", "abc", ["a", "b", "c"]),
        (r"x{2}?", "xxx", ["xx", "x"]),
        (r"(?i:é)", "aÉé", ["a", "É", "é"]),
        (r"(?<=aa|b)c", "aacbc", ["aa", "c", "b", "c"]),
        (r"a$", "a\nba", ["a", "\nb", "a"]),
        (r"(?m:a.)", "a\nb", ["a\n", "b"]),
        ("", "ab", ["a", "b"]),
        (r"x*", "axb", ["a", "x", "b"]),
    ],
)
def test_text_is_split_at_matches(source: str, text: str, pieces: list[str]) -> None:
    assert Pattern.parse(source).pieces(text) == pieces


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("(", r"without its '\)'"),
        (")", r"without its '\('"),
        ("[a", "ends too early"),
        ("*", "repeats nothing"),
        ("a{3,2}", r"repeats \{3,2\} times"),
        ("a{99999}", r"repeats \{99999\} times"),
        ("[b-a]", "range whose end lies before"),
        (r"\p{Klingon}", "'Klingon', which is unknown"),
        (r"\p", "no name in braces"),
        (r"\x{110000}", "beyond Unicode"),
        (r"[[:odd:]]", r"\[:odd:\]"),
        (r"(?x:a)", "flags 'x'"),
        (r"\k<a>", r"'\\k'"),
        ("(" * 100 + ")" * 100, "nests more than 64"),
        ("[" * 100 + "a" + "]" * 100, "nests more than 64"),
        ("\\", "ends too early"),
    ],
    ids=lambda value: value[:20],
)
def test_what_cannot_be_read_is_refused(source: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Pattern.parse(source)


@pytest.mark.parametrize("source", [r"(a+)+c", r"(a|a)*c|(a|aa)+$", r"(?:a*)*b"])
def test_explosive_pattern_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.2)
    started = time.monotonic()
    with contextlib.suppress(TokenizerError):
        Pattern.parse(source).pieces("a" * 5000 + "b" * 2)
    assert time.monotonic() - started < 20


@settings(max_examples=400, derandomize=True, deadline=None, database=None)
@given(source=st.text(st.sampled_from(list("ab(|)[]^$.*+?{}1,2\\pLswd&-:!<=>i")), max_size=14))
def test_no_pattern_gives_any_other_error(source: str) -> None:
    with contextlib.suppress(TokenizerError):
        assert "".join(Pattern.parse(source).pieces("ab[1] é")) == "ab[1] é"
