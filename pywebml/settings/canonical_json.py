"""Canonical JSON: the one spelling of a value that a signature covers.

Keys in the order of their code points, no spaces, everything outside printable ASCII as lower-case `\\uXXXX` (pairs of
surrogates above U+FFFF), short escapes where JSON has them, `/` as it is. Reference implementation: canonicaljson-rs,
with which Mozilla's server signs. What two implementations could spell differently is refused instead of guessed:
fractions and exponents, integers that JavaScript cannot hold, half a pair of surrogates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pywebml.errors import SignatureError

PREFIX = b"Content-Signature:\x00"
"""What a content signature puts before the data, so that it can never be mistaken for one of another protocol."""

LARGEST_INTEGER = 2**53
"""Further away from zero neighbouring integers are the same number to JavaScript."""

_DEEPEST = 64
_LONGEST_REASON = 300
_SURROGATE = re.compile("[\ud800-\udfff]")


def canonical_json(value: object) -> bytes:
    """The canonical spelling of a JSON value, as ASCII.

    Args:
        value: Of dictionaries with strings for keys, lists, strings, integers, booleans and None.

    Raises:
        SignatureError: It has no canonical spelling: a float, an integer beyond ±2^53, half a pair of surrogates,
            another type, or more than 64 levels. The reason says where.
    """
    _check(value, "$", 0)
    # allow_nan is about floats, which are gone by now; without check_circular it is a third faster.
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, check_circular=False)
    return text.encode("ascii")


def signed_message(records: Iterable[Mapping[str, Any]], timestamp: int) -> bytes:
    """The bytes that a collection's signature covers.

    Neither the collection's name nor its metadata are part of it: the same records verify under every name.

    Args:
        records: The whole collection in any order; tombstones (`"deleted": true`) are left out.
        timestamp: Of the collection, in milliseconds; not that of its metadata.

    Returns:
        The prefix and the canonical JSON of `{"data": records by id, "last_modified": "<timestamp>"}`.

    Raises:
        SignatureError: A record has no canonical spelling or no id, or two have the same.
    """
    live: dict[str, Mapping[str, Any]] = {}
    for record in records:
        if record.get("deleted") is True:
            continue
        name = record.get("id")
        if not isinstance(name, str):
            raise _refused(f"a record has the id {name!r}")
        if name in live:
            raise _refused(f"the record {name!r} is there twice")
        live[name] = record
    data = [dict(live[name]) for name in sorted(live)]
    return PREFIX + canonical_json({"data": data, "last_modified": str(timestamp)})


def _check(value: object, place: str, depth: int) -> None:
    """Refuse what has no canonical spelling. Exact types: a subclass could be written in its own way."""
    kind = type(value)
    if isinstance(value, str) and kind is str:
        _check_text(value, place)
    elif isinstance(value, int) and kind is int:
        if not -LARGEST_INTEGER <= value <= LARGEST_INTEGER:
            raise _refused(f"{place} is an integer beyond ±2^53")
    elif isinstance(value, dict) and kind is dict:
        _check_depth(place, depth)
        for name, item in value.items():
            if type(name) is not str:
                raise _refused(f"{place} has the key {name!r}, which is no string")
            _check_text(name, f"a key of {place}")
            _check(item, f"{place}.{name}", depth + 1)
    elif isinstance(value, list) and kind is list:
        _check_depth(place, depth)
        for index, item in enumerate(value):
            _check(item, f"{place}[{index}]", depth + 1)
    elif value is not None and kind is not bool:
        raise _refused(f"{place} is a {kind.__name__}, which has no canonical spelling")


def _check_depth(place: str, depth: int) -> None:
    if depth >= _DEEPEST:
        raise _refused(f"{place} is nested deeper than {_DEEPEST} levels")


def _check_text(text: str, place: str) -> None:
    if not text.isascii() and (half := _SURROGATE.search(text)):
        raise _refused(f"{place} has half a pair of surrogates (U+{ord(half[0]):04X})")


def _refused(reason: str) -> SignatureError:
    # Names of fields are part of it, and those can have any length.
    reason = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}…"
    return SignatureError(
        f"These records cannot be signed or verified: {reason}. Correct the record on the settings server.",
        reason=reason,
    )
