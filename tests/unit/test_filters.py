"""Filter expressions, versions, and what expressions can see."""

from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pywebml
from pywebml.platform import Environment
from pywebml.settings.filters import filter_context, filter_records, record_matches
from pywebml.settings.jexl import LONGEST_EXPRESSION, JexlError, evaluate
from pywebml.settings.versions import compare_versions

ENVIRONMENT = Environment(
    name="browser",
    base_url="https://page.example/",
    cross_origin_isolated=True,
    hardware_concurrency=8,
    locale="de-CH",
    os_name="Android",
    runtime_version="1.30.0",
    needs_runtime_file=True,
    device_memory=4,
    webgpu=False,
)
NAMES = {"env": {"version": "140.0", "list": [{"n": 1}, {"n": 2}], "os": {"name": "Linux"}}}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("2 * 3 ^ 2", 18),
        ("7 // 2", 3),
        ("7 % 4", 3),
        ("1 < 2 && 2 < 3", True),
        ('"a" + 1', "a1"),
        ('"1" == 1', True),
        ("!0", True),
        ("!!'x'", True),
        ("-1 < 0", True),
        ("env.missing.deep.er", None),
        ("env.list[.n > 1][0].n", 2),
        ("env.list[5]", None),
        ("env.os['name']", "Linux"),
        ("'in' in 'Linux'", True),
        ("'inu' in env.os.name", True),
        ("2 in [1, 2]", True),
        ("{a: 1, 'b': [2]}.b[0]", 2),
        ("1 ? 'yes' : 'no'", "yes"),
        ("'' ?: 'else'", "else"),
        ("env.version|versionCompare('139.0') > 0", True),
        ("true\n&&\n\ttrue", True),
    ],
)
def test_expression_has_its_value(expression: str, value: Any) -> None:
    assert evaluate(expression, NAMES) == value


@pytest.mark.parametrize(
    "expression",
    [
        *("", "1 +", "(1", "[1", "{a 1}", "1 2", "a b", "=", "#", "'open", "1 ? 2", ".", "a..b", "a.1", "|", "a|", "!"),
        *(
            "a|unknown",
            "'1'|versionCompare",
            "'1'|versionCompare(1)",
            "1|versionCompare('1')",
            "a|versionCompare('1','2')",
        ),
        "(" * 200 + "1" + ")" * 200,
        "1" + " + 1" * 200,
        "a" + ".b" * 200,
        "!" * 20_000 + "1",
        "1" * (LONGEST_EXPRESSION + 1),
    ],
)
def test_what_is_no_expression_is_named(expression: str) -> None:
    with pytest.raises(JexlError):
        evaluate(expression, NAMES)


WORDS = st.sampled_from(
    [
        "1",
        "'a'",
        "env",
        ".",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "!",
        "?",
        ":",
        "?:",
        "|",
        "&&",
        "||",
        "==",
        "<",
        "+",
        "^",
        "in",
        ",",
    ]
)


@settings(max_examples=1500, deadline=None, derandomize=True, database=None)
@example("9 ^ 9 ^ 9 ^ 9")
@example("1" * 5000)
@given(st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=25).map(" ".join), st.lists(WORDS).map("".join)))
def test_arbitrary_text_has_a_value_or_a_named_error(text: str) -> None:
    with contextlib.suppress(JexlError):
        evaluate(text, NAMES)


@pytest.mark.parametrize(
    ("expression", "matches"),
    [
        (None, True),
        ("", True),
        ("false", False),
        ("true", True),
        ("1", True),
        ("[]", True),
        ("''", False),
        ("0 / 0", False),
        ("env.missing", False),
        ("env.version ==== 1", False),
        ("env|shout", False),
        (7, False),
        (["true"], False),
        ('env.formFactor == "phone" && env.os.name == "Android"', True),
        ("env.deviceMemory >= 4 && env.crossOriginIsolated && !env.webgpu", True),
        ('env.appinfo.ID == "pywebml" && env.platform == "browser"', True),
        ('env.runtimeVersion|versionCompare("1.30.0") == 0', True),
        ('env.version|versionCompare("0.0.1") > 0', True),
        ('env.locale in ["de-CH", "de-DE"]', True),
    ],
)
def test_records_are_filtered(expression: Any, matches: bool) -> None:
    record = {"id": "a", **({} if expression is None else {"filter_expression": expression})}
    assert record_matches(record, filter_context(ENVIRONMENT)) is matches
    assert filter_records([record], filter_context(ENVIRONMENT)) == ([record] if matches else [])


def test_values_of_the_caller_are_laid_over_the_context() -> None:
    context = filter_context(ENVIRONMENT, {"country": "CH", "channel": "beta", "locale": None})
    assert (context["country"], context["channel"], context["platform"]) == ("CH", "beta", "browser")
    assert "locale" not in context


LADDERS = (
    ("1.-1", "1", "1.1a", "1.1aa", "1.1ab", "1.1b", "1.1c", "1.1pre", "1.1pre1a", "1.1pre1aa", "1.1pre1b", "1.1pre1"),
    ("1.1pre2", "1.1pre10", "1.1", "1.1.0.1", "1.1.1", "1.1.*", "1.10", "1.*", "1.*.1", "2.0", "2.0.1", "10"),
    ("5.0a1", "5.0b2", "5.0", "5.1", "6.0a1", "6.0"),
)


@pytest.mark.parametrize("ladder", LADDERS, ids=lambda ladder: ladder[0])
def test_versions_are_in_the_order_of_firefox(ladder: tuple[str, ...]) -> None:
    for lower, one in enumerate(ladder):
        for higher, other in enumerate(ladder):
            assert compare_versions(one, other) == (lower > higher) - (lower < higher), (one, other)


@pytest.mark.parametrize(("one", "other"), [("1", "1."), ("1", "1.0.0"), ("1.1pre", "1.1pre0"), ("1.0+", "1.1pre")])
def test_versions_with_several_spellings_are_equal(one: str, other: str) -> None:
    assert compare_versions(one, other) == compare_versions(other, one) == 0


@settings(max_examples=1000, deadline=None, derandomize=True, database=None)
@given(*[st.one_of(st.text("0123456789.abpre+-*", max_size=12), st.text(max_size=8))] * 3)
def test_versions_are_ordered_whatever_they_are(one: str, other: str, third: str) -> None:
    assert compare_versions(one, one) == 0
    assert compare_versions(one, other) == -compare_versions(other, one)
    if compare_versions(one, other) <= 0 and compare_versions(other, third) <= 0:
        assert compare_versions(one, third) <= 0


def test_package_tells_the_version_that_it_is_built_with() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["version"] == pywebml.__version__
