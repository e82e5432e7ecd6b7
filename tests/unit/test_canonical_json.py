"""The one spelling of records, and what has none."""

from typing import Any

import pytest

from pywebml.errors import SignatureError
from pywebml.settings.canonical_json import canonical_json, signed_message


@pytest.mark.parametrize(
    ("value", "spelling"),
    [
        ({"b": 1, "a": [True, False, None]}, b'{"a":[true,false,null],"b":1}'),
        ({}, b"{}"),
        ([], b"[]"),
        ("a/b", b'"a/b"'),
        ('"\\\b\f\n\r\t\x00\x1f', b'"\\"\\\\\\b\\f\\n\\r\\t\\u0000\\u001f"'),
        ("\x7f", b'"\\u007f"'),
        ("é", b'"\\u00e9"'),
        ("\U0001f600", b'"\\ud83d\\ude00"'),
        ({"\uffff": 1, "\U0001f600": 2}, b'{"\\uffff":1,"\\ud83d\\ude00":2}'),
        (-(2**53), b"-9007199254740992"),
        (2**53, b"9007199254740992"),
        (0, b"0"),
    ],
)
def test_every_value_has_one_spelling(value: object, spelling: bytes) -> None:
    assert canonical_json(value) == spelling


class Words(str):
    __slots__ = ()


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (1.5, r"\$ is a float"),
        ({"a": [0, 1.0]}, r"\$\.a\[1\] is a float"),
        (float("nan"), "is a float"),
        (2**53 + 1, "beyond ±2^53".replace("^", r"\^")),
        (-(2**53) - 1, "beyond"),
        (10**400, "beyond"),
        ("a\ud800", r"\$ has half a pair of surrogates \(U\+D800\)"),
        ({"\udfff": 1}, r"a key of \$ has half a pair of surrogates \(U\+DFFF\)"),
        ({1: 2}, "has the key 1, which is no string"),
        ((1, 2), "is a tuple"),
        (b"a", "is a bytes"),
        (Words("a"), "is a Words"),
        (LOOP, "deeper than 64 levels"),
        ({"x" * 10_000: 1.5}, r"x…$"),
    ],
)
def test_what_has_no_spelling_is_refused_with_its_place(value: object, reason: str) -> None:
    with pytest.raises(SignatureError, match="cannot be signed or verified") as caught:
        canonical_json(value)
    assert pytest.raises(SignatureError, match=reason).matches(SignatureError(caught.value.details["reason"]))


def test_sixty_four_levels_are_allowed() -> None:
    value: Any = 1
    for _ in range(64):
        value = [value]
    assert canonical_json(value) == b"[" * 64 + b"1" + b"]" * 64
    with pytest.raises(SignatureError):
        canonical_json([value])


def test_a_message_has_live_records_by_id_and_the_timestamp_as_text() -> None:
    records = [
        {"id": "b", "last_modified": 2},
        {"id": "gone", "last_modified": 3, "deleted": True},
        {"id": "a", "last_modified": 1, "deleted": False},
    ]
    assert signed_message(records, 3) == (
        b'Content-Signature:\x00{"data":[{"deleted":false,"id":"a","last_modified":1},{"id":"b","last_modified":2}],'
        b'"last_modified":"3"}'
    )
    assert signed_message([], 0) == b'Content-Signature:\x00{"data":[],"last_modified":"0"}'


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([{"last_modified": 1}], "has the id None"),
        ([{"id": 1}], "has the id 1"),
        ([{"id": "a"}, {"id": "a"}], "'a' is there twice"),
        ([{"id": "a", "size": 1.5}], r"\$\.data\[0\]\.size is a float"),
    ],
)
def test_records_that_cannot_be_signed_are_refused(records: list[dict[str, Any]], reason: str) -> None:
    with pytest.raises(SignatureError, match=reason):
        signed_message(records, 1)
