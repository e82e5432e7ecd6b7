"""Post-processors: special tokens are put around the sequences, and each token gets its type id.

All are compiled to the same thing: a layout per case, which the tokenizer fills in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from pywebml.errors import TokenizerError
from pywebml.tokenization.fields import Fields, is_id, unknown_component, wrong_type


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of a layout.

    Attributes:
        sequence: Which text stands here, 0 or 1; None for special tokens.
        ids: Of the special tokens.
        tokens: The same as strings.
        type_id: Of everything in this part.
    """

    sequence: int | None
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    type_id: int


Layout: TypeAlias = tuple[Part, ...]


class PostProcessor:
    """What a text, and a pair of texts, look like with and without special tokens.

    Args:
        single: Layout of one text.
        pair: Layout of two.
        plain_pair: Layout of two without special tokens; None: `pair` with those left out.
    """

    def __init__(self, single: Layout, pair: Layout, plain_pair: Layout | None = None) -> None:
        self._with_special = {False: single, True: pair}
        self._plain = {False: _without_special(single), True: plain_pair or _without_special(pair)}

    def layout(self, *, pair: bool, add_special_tokens: bool) -> Layout:
        """The layout of a case."""
        return (self._with_special if add_special_tokens else self._plain)[pair]


def _without_special(layout: Layout) -> Layout:
    return tuple(part for part in layout if part.sequence is not None)


def _text(sequence: int, type_id: int) -> Part:
    return Part(sequence, (), (), type_id)


def _special(token: str, token_id: int, *, type_id: int) -> Part:
    return Part(None, (token_id,), (token,), type_id)


_PLAIN_SINGLE: Layout = (_text(0, 0),)
_PLAIN_PAIR: Layout = (_text(0, 0), _text(1, 1))
_SEQUENCES: Mapping[str, int] = {"A": 0, "B": 1}


def _bert(fields: Fields) -> PostProcessor:
    cls, sep = _token_and_id(fields, "cls"), _token_and_id(fields, "sep")
    single = (_special(*cls, type_id=0), _text(0, 0), _special(*sep, type_id=0))
    return PostProcessor(single, (*single, _text(1, 1), _special(*sep, type_id=1)), _PLAIN_PAIR)


def _token_and_id(fields: Fields, name: str) -> tuple[str, int]:
    values = [value for value, _ in fields.sequence(name)]
    if len(values) == 2:
        token, token_id = values
        if isinstance(token, str) and is_id(token_id):
            return token, token_id
    raise wrong_type(fields.place_of(name), "a list of a token and its id", values)


def _template(fields: Fields) -> PostProcessor:
    special_tokens = fields.child("special_tokens")
    return PostProcessor(
        _template_layout(fields, "single", special_tokens, sequences=1),
        _template_layout(fields, "pair", special_tokens, sequences=2),
    )


def _template_layout(fields: Fields, name: str, special_tokens: Fields, *, sequences: int) -> Layout:
    parts: list[Part] = []
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
            parts.append(_text(sequence, body.natural("type_id")))
        else:
            body = piece.child("SpecialToken")
            token = special_tokens.child(body.string("id"))
            ids, tokens = token.ids("ids"), token.strings("tokens")
            if len(ids) != len(tokens):
                raise TokenizerError(
                    f"{token.place} has {len(ids)} ids for {len(tokens)} tokens. The file is damaged.",
                    place=token.place,
                )
            parts.append(Part(None, ids, tokens, body.natural("type_id")))
    return tuple(parts)


POST_PROCESSORS: Mapping[str, Callable[[Fields], PostProcessor]] = {
    "BertProcessing": _bert,
    "TemplateProcessing": _template,
}
"""Type name in `tokenizer.json` to builder."""


def build_post_processor(value: object, place: str) -> PostProcessor:
    """Build a post-processor from its JSON.

    Args:
        value: The parsed JSON; null adds no tokens.
        place: Where it stands in the file, for messages.

    Raises:
        TokenizerError: It is not supported or malformed.
    """
    if value is None:
        return PostProcessor(_PLAIN_SINGLE, _PLAIN_PAIR)
    fields = Fields(value, place)
    name = fields.string("type")
    builder = POST_PROCESSORS.get(name)
    if builder is None:
        raise unknown_component("post-processor", name, place, sorted(POST_PROCESSORS))
    return builder(fields)


def count_special(layout: Layout) -> int:
    """How many tokens a layout adds."""
    return sum(len(part.ids) for part in layout)


def fill(layout: Layout, sequences: Sequence[list[int]]) -> tuple[list[int], list[int]]:
    """Put sequences of ids into a layout: returns ids and type ids."""
    ids: list[int] = []
    type_ids: list[int] = []
    for part in layout:
        before = len(ids)
        ids += part.ids if part.sequence is None else sequences[part.sequence]
        type_ids += [part.type_id] * (len(ids) - before)
    return ids, type_ids
