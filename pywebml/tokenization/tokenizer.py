"""The tokenizer: text to the tensors that a model takes.

Ids, type ids and masks equal those of the Rust `tokenizers` library for the same `tokenizer.json`; batching,
truncation and padding those of a fast tokenizer of `transformers` that is called with the same arguments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pywebml.errors import TokenizerError
from pywebml.tokenization.added_tokens import AddedVocabulary, Split, read_added_tokens
from pywebml.tokenization.fields import Fields, wrong_type
from pywebml.tokenization.models import Model, build_model
from pywebml.tokenization.normalizers import build_normalizer
from pywebml.tokenization.post_processors import (
    PostProcessor,
    build_post_processor,
    count_special,
    fill,
)
from pywebml.tokenization.pre_tokenizers import PreTokenizer, build_pre_tokenizer

Side: TypeAlias = Literal["left", "right"]
PaddingArgument: TypeAlias = bool | Literal["longest", "max_length"]
_PADDINGS: Final[tuple[PaddingArgument, ...]] = (True, False, "longest", "max_length")

UNLIMITED_LENGTH: Final = int(1e30)
"""`model_max_length` of a tokenizer whose files name none: the number that `transformers` uses."""

# Above this, transformers takes a length for "none given".
_LARGEST_LENGTH: Final = int(1e20)
_CACHED_WORDS: Final = 1 << 15
_CACHED_WORD_LENGTH: Final = 128

_DEFAULT_INPUT_NAMES: Final = ("input_ids", "token_type_ids", "attention_mask")
_INPUT_NAMES: Mapping[str, tuple[str, ...]] = {
    "DistilBertTokenizer": ("input_ids", "attention_mask"),
    "MPNetTokenizer": ("input_ids", "attention_mask"),
}


@dataclass(frozen=True, slots=True)
class Encoding:
    """One text, or pair of texts, as tokens. All lists have the same length.

    Attributes:
        ids: Of the tokens.
        type_ids: 0 and 1 for the first and second text, as the model's template says.
        attention_mask: 1 everywhere; padding, which comes later, has 0.
        special_tokens_mask: 1 for tokens that were put around the texts; 0 for all that is in the texts, even where
            a text has a special token.
        tokens: The tokens themselves.
    """

    ids: list[int]
    type_ids: list[int]
    attention_mask: list[int]
    special_tokens_mask: list[int]
    tokens: list[str]


@dataclass(frozen=True, slots=True)
class _Settings:
    """What the files say about lengths and padding."""

    model_max_length: int
    padding_side: Side
    truncation_side: Side
    pad_token: str | None
    pad_token_id: int | None
    pad_token_type_id: int
    model_input_names: tuple[str, ...]


class Tokenizer:
    """A tokenizer as `tokenizer.json` describes it. Made by `from_json`; never changes; can be shared.

    Attributes:
        model_max_length: The most tokens that the model takes, special ones included; `UNLIMITED_LENGTH` when the
            files name none.
        padding_side: Where padding goes.
        truncation_side: Where tokens are cut off.
        pad_token_id: Id of the padding token; None when there is none.
        pad_token_type_id: Type id of padding.
        model_input_names: Which of the arrays the model was trained with.
    """

    def __init__(
        self,
        added: AddedVocabulary,
        pre_tokenizer: PreTokenizer,
        model: Model,
        post_processor: PostProcessor,
        settings: _Settings,
    ) -> None:
        self._added = added
        self._split = pre_tokenizer.split
        self._model = model
        self._post_processor = post_processor
        self.model_max_length = settings.model_max_length
        self.padding_side = settings.padding_side
        self.truncation_side = settings.truncation_side
        self.pad_token = settings.pad_token
        self.pad_token_id = settings.pad_token_id
        self.pad_token_type_id = settings.pad_token_type_id
        self.model_input_names = settings.model_input_names
        self._word_ids: dict[str, tuple[int, ...]] = {}

    @classmethod
    def from_json(cls, tokenizer_json: bytes, tokenizer_config: bytes | None = None) -> Tokenizer:
        """Read a tokenizer.

        Args:
            tokenizer_json: Bytes of `tokenizer.json`.
            tokenizer_config: Bytes of `tokenizer_config.json`, for lengths and padding. The text is treated as
                `tokenizer.json` says.

        Raises:
            TokenizerError: A file is malformed, or has a component that is not supported. Details: `place`.
        """
        fields = Fields.parse(tokenizer_json, "tokenizer.json")
        model = build_model(fields.child("model"))
        normalizer = build_normalizer(fields.value("normalizer"), fields.place_of("normalizer"))
        added = AddedVocabulary(read_added_tokens(fields, model.vocab), normalizer)
        return cls(
            added,
            build_pre_tokenizer(fields.value("pre_tokenizer"), fields.place_of("pre_tokenizer")),
            model,
            build_post_processor(fields.value("post_processor"), fields.place_of("post_processor")),
            _read_settings(fields, tokenizer_config, {**model.vocab, **added.ids}),
        )

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, or None."""
        found = self._added.ids.get(token)
        return self._model.vocab.get(token) if found is None else found

    def id_to_token(self, token_id: int) -> str | None:
        """The token of an id, or None."""
        return self._tokens_by_id.get(token_id)

    def encode(self, text: str, pair: str | None = None, *, add_special_tokens: bool = True) -> Encoding:
        """Split a text, or a pair of texts, into tokens; without truncation or padding.

        Raises:
            TokenizerError: A text is no string or has half of a surrogate pair.
        """
        sequences: list[list[int]] = []
        tokens: list[list[str]] = []
        for part in (text,) if pair is None else (text, pair):
            sequences.append([])
            tokens.append([])
            for split in self._added.split(_checked(part)):
                ids = self._ids_of(split)
                sequences[-1] += ids
                tokens[-1] += [split.text] if split.id is not None else map(self._token_of, ids)
        layout = self._post_processor.layout(pair=pair is not None, add_special_tokens=add_special_tokens)
        ids, type_ids = fill(layout, sequences)
        filled_tokens: list[str] = []
        special: list[int] = []
        for piece in layout:
            filled_tokens += piece.tokens if piece.sequence is None else tokens[piece.sequence]
            special += [int(piece.sequence is None)] * (len(filled_tokens) - len(special))
        return Encoding(ids, type_ids, [1] * len(ids), special, filled_tokens)

    def __call__(
        self,
        texts: str | Sequence[str],
        *,
        text_pairs: str | Sequence[str] | None = None,
        padding: PaddingArgument = True,
        truncation: bool = True,
        max_length: int | None = None,
        add_special_tokens: bool = True,
    ) -> dict[str, NDArray[np.int64]]:
        """Turn texts into a batch for a model.

        Args:
            texts: A text, which makes a batch of one, or texts.
            text_pairs: The second text of each. An empty one next to a single text counts as none.
            padding: True or `longest`: to the longest text; `max_length`: to `max_length`; False: texts must turn
                out equally long.
            truncation: Cut texts so that each row, special tokens included, has at most `max_length` tokens; of a
                pair the longer text first. A `max_length` that special tokens alone exceed cuts nothing.
            max_length: In tokens; None: `model_max_length`.
            add_special_tokens: Whether to put the model's special tokens around the texts.

        Returns:
            `input_ids`, `attention_mask` (0 on padding) and `token_type_ids`: int64, shape (batch, length).

        Raises:
            TokenizerError: No texts; something that is not text; rows of different lengths without padding; padding
                without a padding token.
        """
        if padding not in _PADDINGS:
            raise TokenizerError(
                f"padding={padding!r} is none of True, False, 'longest', 'max_length'.", padding=str(padding)
            )
        if max_length is not None and (type(max_length) is not int or max_length < 0):
            raise TokenizerError(f"max_length={max_length!r} is not a number of tokens.", max_length=str(max_length))
        rows = _rows(texts, text_pairs)
        limit = self.model_max_length if max_length is None else max_length
        layout = self._post_processor.layout(pair=len(rows[0]) == 2, add_special_tokens=add_special_tokens)
        room = limit - count_special(layout)
        cuts = truncation and limit <= _LARGEST_LENGTH and room >= 0

        ids: list[list[int]] = []
        type_ids: list[list[int]] = []
        for row in rows:
            sequences = [self._encode_text(text) for text in row]
            if cuts:
                self._truncate(sequences, room)
            row_ids, row_type_ids = fill(layout, sequences)
            ids.append(row_ids)
            type_ids.append(row_type_ids)
        return self._batch(ids, type_ids, padding, limit)

    @cached_property
    def _tokens_by_id(self) -> dict[int, str]:
        tokens = {token_id: token for token, token_id in self._model.vocab.items()}
        tokens.update((token_id, token.content) for token_id, token in self._added.tokens.items())
        return tokens

    def _token_of(self, token_id: int) -> str:
        return self._tokens_by_id[token_id]

    def _encode_text(self, text: str) -> list[int]:
        ids: list[int] = []
        for split in self._added.split(_checked(text)):
            ids += self._ids_of(split)
        return ids

    def _ids_of(self, split: Split) -> list[int]:
        if split.id is not None:
            return [split.id]
        ids: list[int] = []
        known = self._word_ids
        for word in self._split(split.text):
            word_ids = known.get(word)
            if word_ids is None:
                word_ids = self._model.tokenize(word)
                if len(word) <= _CACHED_WORD_LENGTH:
                    if len(known) >= _CACHED_WORDS:
                        known.clear()
                    known[word] = word_ids
            ids += word_ids
        return ids

    def _truncate(self, sequences: list[list[int]], room: int) -> None:
        """Cut the sequences in place so that together they have at most `room` ids."""
        keep = [min(len(sequences[0]), room)] if len(sequences) == 1 else _shares(sequences, room)
        for sequence, count in zip(sequences, keep, strict=True):
            if self.truncation_side == "right":
                del sequence[count:]
            else:
                del sequence[: len(sequence) - count]

    def _batch(
        self, ids: list[list[int]], type_ids: list[list[int]], padding: PaddingArgument, limit: int
    ) -> dict[str, NDArray[np.int64]]:
        """Make rectangles of the rows."""
        lengths = np.array([len(row) for row in ids])
        longest, shortest = int(lengths.max()), int(lengths.min())
        width = longest
        if padding == "max_length":
            if limit > _LARGEST_LENGTH:
                raise TokenizerError(
                    "padding='max_length' needs a max_length: the tokenizer's files name none.", padding=padding
                )
            width = limit
        if shortest != longest and (padding is False or longest > width):
            raise TokenizerError(
                f"The rows have {shortest} to {longest} tokens, which makes no rectangle. Use padding=True, or "
                "truncation=True with a max_length that has room for the special tokens.",
                shortest=shortest,
                longest=longest,
            )
        width = max(width, longest)
        if shortest < width and self.pad_token_id is None:
            raise TokenizerError(
                f"Rows of {shortest} tokens must be padded to {width}, but the tokenizer has no padding token. Encode "
                "the texts one by one with padding=False, or use a model whose tokenizer has one."
            )
        positions = np.arange(width)
        if self.padding_side == "right":
            filled = positions < lengths[:, None]
        else:
            filled = positions >= (width - lengths)[:, None]
        # A boolean index goes row by row from left to right, on either side of the padding.
        input_ids = np.full(filled.shape, self.pad_token_id or 0, dtype=np.int64)
        input_ids[filled] = np.fromiter(chain.from_iterable(ids), np.int64)
        token_type_ids = np.full(filled.shape, self.pad_token_type_id, dtype=np.int64)
        token_type_ids[filled] = np.fromiter(chain.from_iterable(type_ids), np.int64)
        return {
            "input_ids": input_ids,
            "attention_mask": filled.astype(np.int64),
            "token_type_ids": token_type_ids,
        }


def _shares(sequences: list[list[int]], room: int) -> list[int]:
    """How many ids of each of two sequences stay: the longer one is cut first, then both to halves."""
    lengths = [len(sequence) for sequence in sequences]
    if sum(lengths) <= room:
        return lengths
    shorter = min(lengths)
    longer = max(shorter, room - shorter)
    if shorter + longer > room:
        shorter = room // 2
        longer = room - shorter
    return [shorter, longer] if lengths[0] <= lengths[1] else [longer, shorter]


def _checked(text: object) -> str:
    if not isinstance(text, str):
        raise TokenizerError(f"Expected a text, found {type(text).__name__}.", found=type(text).__name__)
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"The text has half of a surrogate pair (U+{ord(text[error.start]):04X}) at position {error.start}, "
                "which is not text. Remove it, or decode the text with errors='replace'.",
                position=error.start,
            ) from error
    return text


def _rows(texts: str | Sequence[str], text_pairs: str | Sequence[str] | None) -> list[tuple[str, ...]]:
    """The texts of each row: one, or two."""
    if isinstance(texts, str):
        if text_pairs is not None and not isinstance(text_pairs, str):
            raise TokenizerError("text_pairs must be one text, as texts is one.")
        return [(texts, text_pairs)] if text_pairs else [(texts,)]
    if isinstance(text_pairs, str):
        raise TokenizerError("text_pairs must be a list of texts, as texts is a list.")
    for name, value in (("texts", texts), ("text_pairs", text_pairs)):
        if value is not None and not isinstance(value, Sequence):
            raise TokenizerError(f"{name} must be a text or a list of texts, not {type(value).__name__}.")
    if not texts:
        raise TokenizerError("There are no texts: an empty list makes no batch. Pass at least one text.")
    if text_pairs is None:
        return [(text,) for text in texts]
    if len(texts) != len(text_pairs):
        raise TokenizerError(
            f"There are {len(texts)} texts but {len(text_pairs)} text_pairs; each text needs one.",
            texts=len(texts),
            text_pairs=len(text_pairs),
        )
    return list(zip(texts, text_pairs, strict=True))


def _read_settings(fields: Fields, config_bytes: bytes | None, vocab: Mapping[str, int]) -> _Settings:
    """Lengths and padding: `tokenizer_config.json` first, then the blocks of `tokenizer.json`, then defaults."""
    config = Fields({}, "tokenizer_config.json")
    if config_bytes is not None:
        config = Fields.parse(config_bytes, "tokenizer_config.json")
    padding = fields.child("padding") if fields.has("padding") else Fields({}, fields.place_of("padding"))
    truncation = fields.child("truncation") if fields.has("truncation") else Fields({}, fields.place_of("truncation"))

    model_max_length = UNLIMITED_LENGTH
    if config.has("model_max_length"):
        model_max_length = _length(config, "model_max_length")
    elif truncation.has("max_length"):
        model_max_length = _length(truncation, "max_length")

    pad_token: str | None = "[PAD]" if "[PAD]" in vocab else None
    if config.has("pad_token"):
        pad_token = _config_token(config, "pad_token")
    elif padding.has("pad_token"):
        pad_token = padding.string("pad_token")
    pad_token_id = None if pad_token is None else vocab.get(pad_token)

    model_input_names = _INPUT_NAMES.get(
        config.string("tokenizer_class").removesuffix("Fast") if config.has("tokenizer_class") else "",
        _DEFAULT_INPUT_NAMES,
    )
    if config.has("model_input_names"):
        model_input_names = config.strings("model_input_names")
    type_id_source = config if config.has("pad_token_type_id") else padding
    type_id_name = "pad_token_type_id" if config.has("pad_token_type_id") else "pad_type_id"
    return _Settings(
        model_max_length=model_max_length,
        padding_side=_side(config, "padding_side", padding),
        truncation_side=_side(config, "truncation_side", truncation),
        pad_token=pad_token,
        pad_token_id=pad_token_id,
        pad_token_type_id=type_id_source.natural(type_id_name, 0),
        model_input_names=model_input_names,
    )


def _length(fields: Fields, name: str) -> int:
    value = fields.value(name)
    # Large "no limit" values are written as floats.
    if isinstance(value, float) and math.isfinite(value) and value >= 1:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise wrong_type(fields.place_of(name), "a positive number", value)
    return value


def _config_token(config: Fields, name: str) -> str:
    """A token of `tokenizer_config.json`: a string, or an object with `content`."""
    return config.child(name).string("content") if isinstance(config.value(name), dict) else config.string(name)


def _side(config: Fields, name: str, block: Fields) -> Side:
    """A side: from `tokenizer_config.json`, else from a block of `tokenizer.json`, where it has a capital."""
    source, key = (config, name) if config.has(name) else (block, "direction")
    value = source.string(key, "right") if source.has(key) else "right"
    if value.lower() == "right":
        return "right"
    if value.lower() == "left":
        return "left"
    place = source.place_of(key)
    raise TokenizerError(f"{place}: {value!r} is neither 'left' nor 'right'.", place=place, value=value)
