"""Post-processors: special tokens are put around the texts, and each token gets its type id.

Each equals the component of the same name in the Rust `tokenizers` library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from pywebml.errors import TokenizerError
from pywebml.tokenization import unicode_tables as tables
from pywebml.tokenization.byte_level import SPACE
from pywebml.tokenization.encoding import Encoding, merged, special
from pywebml.tokenization.fields import Fields, is_id, unknown_component, wrong_type

_SPECIAL = (-1, -2)
"""Ids that stand for the texts while a layout is worked out."""


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a layout.

    Attributes:
        sequence: Which text stands here, 0 or 1; None for special tokens.
        ids: Of the special tokens.
        type_id: Of everything in this part.
    """

    sequence: int | None
    ids: tuple[int, ...]
    type_id: int


Layout: TypeAlias = tuple[Part, ...]


class Step(Protocol):
    """Changes the encodings of one or two texts, or of these and special tokens."""

    def added(self, *, pair: bool) -> int:
        """How many tokens it puts around a text, or around two."""

    def process(self, encodings: list[Encoding], add_special_tokens: bool) -> list[Encoding]:
        """The changed encodings."""


class PostProcessor:
    """Steps, one after the other; and what becomes of texts by them.

    Args:
        steps: What to do; None: nothing at all.
    """

    def __init__(self, steps: Sequence[Step] | None) -> None:
        self._steps = steps
        self._layouts: dict[tuple[bool, bool], Layout] = {}

    def added(self, *, pair: bool) -> int:
        """How many tokens are put around a text, or around two."""
        return sum(step.added(pair=pair) for step in self._steps or ())

    def layout(self, *, pair: bool, add_special_tokens: bool) -> Layout:
        """What a text, or a pair of texts, looks like afterwards.

        Raises:
            TokenizerError: The steps do not go together.
        """
        found = self._layouts.get((pair, add_special_tokens))
        if found is None:
            found = self._layout(pair=pair, add_special_tokens=add_special_tokens)
            self._layouts[pair, add_special_tokens] = found
        return found

    def process(self, encodings: list[Encoding], *, add_special_tokens: bool) -> Encoding:
        """Put special tokens around one or two texts, which become one encoding."""
        if self._steps is None:
            if len(encodings) == 1:
                return encodings[0]
            for index, encoding in enumerate(encodings):
                encoding.mark_sequence(index)
            return merged(encodings)
        for index, encoding in enumerate(encodings):
            for one in (encoding, *encoding.overflowing):
                one.mark_sequence(index)
            encoding.type_ids = [index] * len(encoding)
        for step in self._steps:
            encodings = step.process(encodings, add_special_tokens)
        return merged(encodings)

    def _layout(self, *, pair: bool, add_special_tokens: bool) -> Layout:
        # Found out with a stand-in of one token for each text: no step looks into the texts.
        texts = [
            Encoding([token_id], [index], [""], [(0, 0)], [0], [1], [0])
            for index, token_id in enumerate(_SPECIAL[: 1 + pair])
        ]
        whole = self.process(texts, add_special_tokens=add_special_tokens)
        return tuple(
            Part(None, (token_id,), type_id) if token_id >= 0 else Part(_SPECIAL.index(token_id), (), type_id)
            for token_id, type_id in zip(whole.ids, whole.type_ids, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Bert:
    """`[CLS] A [SEP]`, and ` B [SEP]`."""

    cls: tuple[str, int]
    sep: tuple[str, int]

    def added(self, *, pair: bool) -> int:
        """How many tokens it puts around a text, or around two."""
        return 3 if pair else 2

    def process(self, encodings: list[Encoding], add_special_tokens: bool) -> list[Encoding]:
        """The changed encodings."""
        if not add_special_tokens:
            return encodings
        return [
            _wrapped(encoding, self.cls, self.sep, index=0, type_id=0)
            if index == 0
            else _wrapped(encoding, None, self.sep, index=1, type_id=1)
            for index, encoding in enumerate(encodings)
        ]


@dataclass(frozen=True, slots=True)
class Roberta:
    """`<s> A </s>`, and `</s> B </s>`; every type id is 0."""

    cls: tuple[str, int]
    sep: tuple[str, int]
    trim_offsets: bool
    add_prefix_space: bool

    def added(self, *, pair: bool) -> int:
        """How many tokens it puts around a text, or around two."""
        return 4 if pair else 2

    def process(self, encodings: list[Encoding], add_special_tokens: bool) -> list[Encoding]:
        """The changed encodings."""
        if self.trim_offsets:
            trim_offsets(encodings, add_prefix_space=self.add_prefix_space)
        for encoding in encodings:
            encoding.type_ids = [0] * len(encoding)
        if not add_special_tokens:
            return encodings
        wrapped = [
            _wrapped(encoding, self.cls if index == 0 else self.sep, self.sep, index=min(index, 1), type_id=0)
            for index, encoding in enumerate(encodings)
        ]
        for encoding in wrapped:
            for other in encoding.overflowing:
                other.type_ids = [0] * len(other)
        return wrapped


@dataclass(frozen=True, slots=True)
class ByteLevel:
    """Spaces at the ends of tokens do not count to their places."""

    trim_offsets: bool
    add_prefix_space: bool

    def added(self, *, pair: bool) -> int:
        """None."""
        return 0

    def process(self, encodings: list[Encoding], add_special_tokens: bool) -> list[Encoding]:
        """The changed encodings."""
        if self.trim_offsets:
            trim_offsets(encodings, add_prefix_space=self.add_prefix_space)
        for index, encoding in enumerate(encodings):
            encoding.mark_sequence(index)
        return encodings


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a template: a text, or special tokens.

    Attributes:
        sequence: Which text stands here, 0 or 1; None for special tokens.
        ids: Of the special tokens.
        tokens: The same as strings.
        type_id: Of everything in this piece.
    """

    sequence: int | None
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    type_id: int


@dataclass(frozen=True, slots=True)
class Template:
    """Texts and special tokens in any order."""

    single: tuple[Piece, ...]
    pair: tuple[Piece, ...]

    def added(self, *, pair: bool) -> int:
        """How many tokens it puts around a text, or around two."""
        return sum(len(piece.ids) for piece in (self.pair if pair else self.single))

    def process(self, encodings: list[Encoding], add_special_tokens: bool) -> list[Encoding]:
        """The changed encodings."""
        if len(encodings) > 2:
            raise TokenizerError(
                "A TemplateProcessing stands behind another post-processor that adds tokens, which it cannot: it "
                "takes one or two texts. The file is damaged.",
                encodings=len(encodings),
            )
        found: list[Encoding] = []
        for piece in self.pair if len(encodings) == 2 else self.single:
            if piece.sequence is None:
                if add_special_tokens:
                    found.append(special(piece.ids, piece.tokens, piece.type_id))
                continue
            encoding = encodings[piece.sequence]
            encoding.type_ids = [piece.type_id] * len(encoding)
            encoding.mark_sequence(piece.sequence)
            found.append(encoding.copy())
        return found


def trim_offsets(encodings: Sequence[Encoding], *, add_prefix_space: bool) -> None:
    """Take spaces at the ends of tokens out of their places.

    Args:
        encodings: Changed in place, with all that overflowed.
        add_prefix_space: A single space before the first token was put there, so it has no place to be taken from.
    """
    for encoding in encodings:
        for one in (encoding, *encoding.overflowing):
            trimmed = [
                _trimmed(token, offsets, is_first=index == 0, add_prefix_space=add_prefix_space)
                for index, (token, offsets) in enumerate(zip(one.tokens, one.offsets, strict=True))
            ]
            one.offsets = trimmed


_SPACES = frozenset(SPACE) | {chr(point) for point in range(0x3001) if tables.membership(tables.WHITESPACE)(point)}
_STRIPPED = "".join(_SPACES)


def _trimmed(token: str, offsets: tuple[int, int], *, is_first: bool, add_prefix_space: bool) -> tuple[int, int]:
    leading = len(token) - len(token.lstrip(_STRIPPED))
    trailing = len(token) - len(token.rstrip(_STRIPPED))
    start, end = offsets
    if leading:
        if (is_first or start == 0) and add_prefix_space and leading == 1:
            leading = 0
        start = min(start + leading, end)
    if trailing and end >= trailing:
        end = max(end - trailing, start)
    return start, end


def _wrapped(
    encoding: Encoding, before: tuple[str, int] | None, after: tuple[str, int], *, index: int, type_id: int
) -> Encoding:
    """A text, and what overflowed of it, between special tokens."""
    result = Encoding() if before is None else special((before[1],), (before[0],), type_id)
    start = len(result)
    content = encoding.part(0, len(encoding))
    content.special_tokens_mask = [0] * len(content)
    content.attention_mask = [1] * len(content)
    result.extend(content)
    result.sequence_ranges = {index: (start, len(result))}
    result.extend(special((after[1],), (after[0],), type_id))
    result.overflowing = [
        _wrapped(other, before, after, index=index, type_id=type_id) for other in encoding.overflowing
    ]
    return result


# ---------------------------------------------------------------------------------------------- from the file


_SEQUENCES: Mapping[str, int] = {"A": 0, "B": 1}


def _bert(fields: Fields) -> Sequence[Step]:
    return (Bert(_token_and_id(fields, "cls"), _token_and_id(fields, "sep")),)


def _roberta(fields: Fields) -> Sequence[Step]:
    return (
        Roberta(
            _token_and_id(fields, "cls"),
            _token_and_id(fields, "sep"),
            trim_offsets=fields.boolean("trim_offsets"),
            add_prefix_space=fields.boolean("add_prefix_space"),
        ),
    )


def _byte_level(fields: Fields) -> Sequence[Step]:
    return (
        ByteLevel(trim_offsets=fields.boolean("trim_offsets"), add_prefix_space=fields.boolean("add_prefix_space")),
    )


def _token_and_id(fields: Fields, name: str) -> tuple[str, int]:
    values = fields.values(name)
    if len(values) == 2:
        token, token_id = values
        if isinstance(token, str) and is_id(token_id):
            return token, token_id
    raise wrong_type(fields.place_of(name), "a list of a token and its id", values)


def _template(fields: Fields) -> Sequence[Step]:
    special_tokens = fields.child("special_tokens")
    return (
        Template(
            _template_pieces(fields, "single", special_tokens, sequences=1),
            _template_pieces(fields, "pair", special_tokens, sequences=2),
        ),
    )


def _template_pieces(fields: Fields, name: str, special_tokens: Fields, *, sequences: int) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    for value, place in fields.sequence(name):
        piece = Fields(value, place)
        if piece.has("Sequence"):
            body = piece.child("Sequence")
            sequence = _SEQUENCES.get(body.string("id"), sequences)
            if sequence >= sequences:
                raise TokenizerError(
                    f"{body.place_of('id')}: there is no sequence {body.string('id')!r} in a {name!r} template. "
                    "The file is damaged.",
                    place=body.place,
                )
            pieces.append(Piece(sequence, (), (), body.natural("type_id")))
        else:
            body = piece.child("SpecialToken")
            token = special_tokens.child(body.string("id"))
            ids, tokens = token.ids("ids"), token.strings("tokens")
            if len(ids) != len(tokens):
                raise TokenizerError(
                    f"{token.place} has {len(ids)} ids for {len(tokens)} tokens. The file is damaged.",
                    place=token.place,
                )
            pieces.append(Piece(None, ids, tokens, body.natural("type_id")))
    return tuple(pieces)


def _sequence(fields: Fields) -> Sequence[Step]:
    return [step for item in fields.sequence("processors") for step in _steps(*item)]


POST_PROCESSORS: Mapping[str, Callable[[Fields], Sequence[Step]]] = {
    "BertProcessing": _bert,
    "ByteLevel": _byte_level,
    "RobertaProcessing": _roberta,
    "Sequence": _sequence,
    "TemplateProcessing": _template,
}
"""Type name in `tokenizer.json` to what makes its steps."""


def _steps(value: object, place: str) -> Sequence[Step]:
    fields = Fields(value, place)
    name = fields.string("type")
    builder = POST_PROCESSORS.get(name)
    if builder is None:
        raise unknown_component("post-processor", name, place, sorted(POST_PROCESSORS))
    return builder(fields)


def build_post_processor(value: object, place: str) -> PostProcessor:
    """Build a post-processor from its JSON.

    Args:
        value: The parsed JSON; null adds no tokens.
        place: Where it stands in the file, for messages.

    Raises:
        TokenizerError: It is not supported or malformed.
    """
    return PostProcessor(None if value is None else _steps(value, place))


def fill(layout: Layout, sequences: Sequence[list[int]]) -> tuple[list[int], list[int]]:
    """Put sequences of ids into a layout: returns ids and type ids."""
    ids: list[int] = []
    type_ids: list[int] = []
    for part in layout:
        before = len(ids)
        ids += part.ids if part.sequence is None else sequences[part.sequence]
        type_ids += [part.type_id] * (len(ids) - before)
    return ids, type_ids
