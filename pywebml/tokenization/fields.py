"""Reading of untrusted JSON: every wrong type and missing key becomes a `TokenizerError` that names its place."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeGuard, cast

from pywebml.errors import TokenizerError

_ID_LIMIT: Final = 2**32
_ID: Final = "a token id (an integer from 0 to 4294967295)"
_NUMBER_LIMIT: Final = 2**63
_DEEPEST: Final = 32
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_NESTING: Final[frozenset[type]] = frozenset((dict, list))
_LARGE: Final = ("vocab", "merges")
"""What may have hundreds of thousands of values. What reads it takes only plain ones and pairs of them."""
_KINDS: Final = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def _nested(value: object) -> list[object]:
    """The objects and lists right inside an object or a list, but for the large ones that cannot nest."""
    inner: Iterable[object]
    if isinstance(value, dict):
        inner = {**value, **dict.fromkeys(_LARGE)}.values()
    elif isinstance(value, list):
        inner = value
    else:
        return []
    # Where there are many values, they are plain ones: passed over without a Python loop.
    if _NESTING.isdisjoint(map(type, inner)):
        return []
    return [item for item in inner if isinstance(item, dict | list)]


@contextmanager
def without_collector() -> Iterator[None]:
    """No search for garbage in cycles meanwhile: reading a large file makes none, and the search would take longer."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Required:
    """Type of the default that means: there is none, the key must be there."""


REQUIRED: Final = Required()


def wrong_type(place: str, expected: str, value: object) -> TokenizerError:
    """The error for a value of a wrong type."""
    found = _KINDS.get(type(value), type(value).__name__)
    return TokenizerError(
        f"{place}: expected {expected}, found {found}. The file is damaged or not a tokenizer file.",
        place=place,
        expected=expected,
        found=found,
    )


def is_id(value: object) -> TypeGuard[int]:
    """Whether this can be a token's id: an integer of 32 bits without sign."""
    return type(value) is int and 0 <= value < _ID_LIMIT


def check_text(text: str, place: str) -> None:
    """Raise `TokenizerError` when a string is not text: JSON can write half of a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"{place} has half of a surrogate pair, which is not text. The file is damaged.", place=place
        ) from error


class Fields:
    """A JSON object that knows its place in the file.

    Args:
        value: What the JSON parser gave.
        place: Where it stands, for messages: `tokenizer.json`, `tokenizer.json: model`, ….

    Raises:
        TokenizerError: `value` is not an object. Every reader below raises it too: for a missing key without a
            default, and for a value of another type.
    """

    def __init__(self, value: object, place: str) -> None:
        if not isinstance(value, dict):
            raise wrong_type(place, "an object", value)
        self._values: dict[str, object] = value
        self.place = place

    @classmethod
    def parse(cls, data: bytes, name: str) -> Fields:
        """Read a whole file."""
        try:
            value: object = json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            # A UnicodeDecodeError and a JSONDecodeError are both ValueErrors.
            raise TokenizerError(
                f"{name} is not JSON in UTF-8: {error}. Download the file again.", place=name
            ) from error
        if _SURROGATE.search(data) is not None:
            # It may be half of a pair that is whole.
            check_text(json.dumps(value, ensure_ascii=False), name)
        # Components nest, and so do the calls that run them: a bound here is one for those too.
        level = [value]
        for _ in range(_DEEPEST):
            level = [inner for outer in level for inner in _nested(outer)]
        if level:
            raise TokenizerError(
                f"{name} nests its values more than {_DEEPEST} deep. The file is damaged.",
                place=name,
                limit=_DEEPEST,
            )
        return cls(value, name)

    def place_of(self, name: str) -> str:
        """The place of one of the values."""
        return f"{self.place}.{name}"

    def has(self, name: str) -> bool:
        """Whether there is a value, and it is not null."""
        return self._values.get(name) is not None

    def value(self, name: str) -> object:
        """A value of any type; None when it is null or missing."""
        return self._values.get(name)

    def items(self) -> Iterator[tuple[str, object]]:
        """All keys and values."""
        return iter(self._values.items())

    def string(self, name: str, default: str | Required = REQUIRED) -> str:
        """A string."""
        value = self._get(name, default)
        if not isinstance(value, str):
            raise wrong_type(self.place_of(name), "a string", value)
        return value

    def boolean(self, name: str, default: bool | Required = REQUIRED) -> bool:
        """A boolean."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise wrong_type(self.place_of(name), "a boolean", value)
        return value

    def natural(self, name: str, default: int | Required = REQUIRED) -> int:
        """An integer that is not negative."""
        value = self._get(name, default)
        if type(value) is not int or not 0 <= value < _NUMBER_LIMIT:
            raise wrong_type(self.place_of(name), "an integer of 64 bits that is not negative", value)
        return value

    def optional_string(self, name: str) -> str | None:
        """A string; None when it is null or missing."""
        return self.string(name) if self.has(name) else None

    def child(self, name: str) -> Fields:
        """An object."""
        return Fields(self._get(name, REQUIRED), self.place_of(name))

    def sequence(self, name: str) -> list[tuple[object, str]]:
        """A list: each value with its place."""
        value = self._get(name, REQUIRED)
        place = self.place_of(name)
        if not isinstance(value, list):
            raise wrong_type(place, "a list", value)
        return [(item, f"{place}[{index}]") for index, item in enumerate(value)]

    def vocabulary(self, name: str) -> dict[str, int]:
        """An object of token ids, which is not empty."""
        values = self.child(name)._values
        place = self.place_of(name)
        if not values:
            raise TokenizerError(f"{place} is empty. The file is damaged.", place=place)
        # What `is_id` says, without a call for each of tens of thousands.
        found = cast(dict[str, int], values)
        if set(map(type, values.values())) != {int} or min(found.values()) < 0 or max(found.values()) >= _ID_LIMIT:
            token = next(token for token, value in values.items() if not is_id(value))
            raise wrong_type(f"{place}[{token!r}]", _ID, values[token])
        check_text("\n".join(found), place)
        return found

    def values(self, name: str) -> list[object]:
        """A list, as it stands."""
        value = self._get(name, REQUIRED)
        if not isinstance(value, list):
            raise wrong_type(self.place_of(name), "a list", value)
        return value

    def ids(self, name: str) -> tuple[int, ...]:
        """A list of token ids."""
        found: list[int] = []
        for item, place in self.sequence(name):
            if not is_id(item):
                raise wrong_type(place, _ID, item)
            found.append(item)
        return tuple(found)

    def strings(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        found: list[str] = []
        for item, place in self.sequence(name):
            if not isinstance(item, str):
                raise wrong_type(place, "a string", item)
            found.append(item)
        return tuple(found)

    def _get(self, name: str, default: object) -> object:
        value = self._values.get(name, default)
        if isinstance(value, Required):
            raise TokenizerError(
                f"{self.place} has no {name!r}, which it must have. The file is damaged or of another format.",
                place=self.place,
                field=name,
            )
        return value


def unknown_component(kind: str, name: str, place: str, known: list[str]) -> TokenizerError:
    """The error for a component that this package does not have."""
    return TokenizerError(
        f"{place}: the {kind} {name!r} is not supported. Supported are {', '.join(known)}. "
        "Use a model whose tokenizer is built of these.",
        place=place,
        component=name,
        kind=kind,
        known=known,
    )
