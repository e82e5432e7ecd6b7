"""The tokenizer: text to the tensors that a model takes, and back.

Encodings equal those of the Rust `tokenizers` library for the same `tokenizer.json`; batching, truncation and padding
those of a fast tokenizer of `transformers` that is called with the same arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import index
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pywebml.errors import TokenizerError
from pywebml.tokenization.added_tokens import AddedVocabulary, read_added_tokens
from pywebml.tokenization.chat_templates import ChatTemplates, Message, read_chat_templates
from pywebml.tokenization.decoders import build_decoder, clean_up
from pywebml.tokenization.encoding import (
    STRATEGIES,
    Encoding,
    Side,
    TruncationStrategy,
    flattened,
    kept_lengths,
    pad,
    truncated,
)
from pywebml.tokenization.fields import Fields, without_collector, wrong_type
from pywebml.tokenization.models import build_model
from pywebml.tokenization.normalizers import build_normalizer
from pywebml.tokenization.pipeline import Pipeline
from pywebml.tokenization.post_processors import build_post_processor, fill
from pywebml.tokenization.pre_tokenizers import build_pre_tokenizer
from pywebml.tokenization.streaming import DecodeStream

PaddingArgument: TypeAlias = bool | Literal["longest", "max_length"]
TruncationArgument: TypeAlias = bool | TruncationStrategy
Batch: TypeAlias = dict[str, NDArray[np.int64]]

_PADDINGS: Final[tuple[PaddingArgument, ...]] = (True, False, "longest", "max_length")

UNLIMITED_LENGTH: Final = int(1e30)
"""`model_max_length` of a tokenizer whose files name none: the number that `transformers` uses."""

# Above this, transformers takes a length for "none given".
_LARGEST_LENGTH: Final = int(1e20)

_DEFAULT_INPUT_NAMES: Final = ("input_ids", "token_type_ids", "attention_mask")
_INPUT_NAMES: Mapping[str, tuple[str, ...]] = {
    "DistilBertTokenizer": ("input_ids", "attention_mask"),
    "MPNetTokenizer": ("input_ids", "attention_mask"),
}

SPECIAL_ROLES: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""What a special token can be for, besides the additional ones."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the files say besides the components: lengths, padding, special tokens, chat templates."""

    model_max_length: int
    padding_side: Side
    truncation_side: Side
    pad_token: str | None
    pad_token_id: int | None
    pad_token_type_id: int
    model_input_names: tuple[str, ...]
    special_tokens: Mapping[str, str]
    cleans_up: bool
    chat_templates: ChatTemplates


class Tokenizer:
    """A tokenizer as `tokenizer.json` describes it. Made by `from_json` or `tokenizer_from_files`; never changes; can
    be shared.

    Attributes:
        model_max_length: The most tokens that the model takes, special ones included; `UNLIMITED_LENGTH` when the
            files name none.
        padding_side: Where padding goes.
        truncation_side: Where tokens are cut off.
        pad_token_id: Id of the padding token; None when there is none.
        pad_token_type_id: Type id of padding.
        model_input_names: Which of the arrays the model was trained with.
        special_tokens: Special tokens by their role, such as `eos_token`.
        chat_templates: The model's chat templates.
    """

    def __init__(self, pipeline: Pipeline, decoder: Any, settings: Settings) -> None:
        self._pipeline = pipeline
        self._decoder = decoder
        self._added = pipeline.added
        self._model = pipeline.model
        self._post_processor = pipeline.post_processor
        self._cleans_up = settings.cleans_up
        self.model_max_length = settings.model_max_length
        self.padding_side = settings.padding_side
        self.truncation_side = settings.truncation_side
        self.pad_token = settings.pad_token
        self.pad_token_id = settings.pad_token_id
        self.pad_token_type_id = settings.pad_token_type_id
        self.model_input_names = settings.model_input_names
        self.special_tokens = settings.special_tokens
        self.chat_templates = settings.chat_templates

    @classmethod
    def from_json(cls, tokenizer_json: bytes, tokenizer_config: bytes | None = None) -> Tokenizer:
        """Read a tokenizer.

        Args:
            tokenizer_json: Bytes of `tokenizer.json`.
            tokenizer_config: Bytes of `tokenizer_config.json`, for lengths, padding, special tokens and chat
                templates. The text is treated as `tokenizer.json` says.

        Raises:
            TokenizerError: A file is malformed, or has a component that is not supported. Details: `place`.
        """
        with without_collector():
            fields = Fields.parse(tokenizer_json, "tokenizer.json")
            config = Fields({}, "tokenizer_config.json")
            if tokenizer_config is not None:
                config = Fields.parse(tokenizer_config, "tokenizer_config.json")
            return build_tokenizer(fields, config, {})

    # ------------------------------------------------------------------------------------------------ vocabulary

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones included."""
        return len(self._model.vocab) + sum(token not in self._model.vocab for token in self._added.ids)

    def get_vocab(self) -> dict[str, int]:
        """Every token with its id, added ones included."""
        return {**self._model.vocab, **self._added.ids}

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, or None."""
        found = self._added.ids.get(token)
        return self._model.vocab.get(token) if found is None else found

    def id_to_token(self, token_id: int) -> str | None:
        """The token of an id, or None. An added token that is normalized is given as the text has it then."""
        found = self._added.written.get(token_id)
        return self._model.tokens.get(token_id) if found is None else found

    def special_token_id(self, role: str) -> int | None:
        """The id of the special token of a role, such as `eos_token`; None when the model has none."""
        token = self.special_tokens.get(role)
        return None if token is None else self.token_to_id(token)

    @cached_property
    def all_special_ids(self) -> frozenset[int]:
        """Ids of all special tokens."""
        tokens = self._added.special.union(self.special_tokens.values())
        return frozenset(found for token in tokens if (found := self.token_to_id(token)) is not None)

    # -------------------------------------------------------------------------------------------------- encoding

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text, without special ones."""
        return self.encode(text, add_special_tokens=False).tokens

    def ids(self, text: str, pair: str | None = None, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text, or of a pair of texts, uncut: all that many models need, and the fastest way to it.

        Raises:
            TokenizerError: A text is no string or has half of a surrogate pair.
        """
        row = (text,) if pair is None else (text, pair)
        ids, _ = self._ids([row], None, UNLIMITED_LENGTH, add_special_tokens)
        return ids[0]

    def encode(
        self,
        text: str | Sequence[str],
        pair: str | Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        truncation: TruncationArgument = False,
        max_length: int | None = None,
        stride: int = 0,
    ) -> Encoding:
        """Split a text, or a pair of texts, into tokens, with all that is known of each; without padding.

        Args:
            text: A text, or words that are split already: then word ids count these, and offsets are in each word.
            pair: The second text.
            add_special_tokens: Whether to put the model's special tokens around the texts.
            truncation: Cut to `max_length`: `longest_first` (or True), `only_first`, `only_second`. What is cut off
                is in `overflowing`.
            max_length: In tokens, special ones included; None: `model_max_length`.
            stride: How many tokens two neighbouring pieces of what overflows have in common.

        Raises:
            TokenizerError: A text is no string or has half of a surrogate pair; arguments that do not go together.
        """
        strategy = _strategy(truncation)
        limit = self._limit(max_length)
        if type(stride) is not int or stride < 0:
            raise TokenizerError(f"stride={stride!r} is not a number of tokens.", stride=str(stride))
        texts = (text,) if pair is None else (text, pair)
        encodings = [self._encode_text(part, number) for number, part in enumerate(texts)]
        if strategy is not None and limit <= _LARGEST_LENGTH:
            room = limit - (self._post_processor.added(pair=pair is not None) if add_special_tokens else 0)
            if room >= 0:
                kept = kept_lengths(list(map(len, encodings)), room, strategy)
                encodings = [
                    truncated(encoding, count, stride, self.truncation_side)
                    for encoding, count in zip(encodings, kept, strict=True)
                ]
        return self._post_processor.process(encodings, add_special_tokens=add_special_tokens)

    def encode_batch(
        self,
        texts: Sequence[str | Sequence[str]],
        pairs: Sequence[str | Sequence[str]] | None = None,
        *,
        padding: PaddingArgument = False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        **options: Any,
    ) -> list[Encoding]:
        """Encode texts, and pad them.

        Args:
            texts: See `encode`.
            pairs: The second text of each.
            padding: True or `longest`: to the longest; `max_length`: to `max_length`; False: not at all.
            max_length: See `encode`.
            pad_to_multiple_of: Lengths are rounded up to a multiple of this.
            **options: Of `encode`.

        Raises:
            TokenizerError: See `encode`; padding without a padding token.
        """
        _check_padding(padding)
        seconds = [None] * len(texts) if pairs is None else pairs
        if len(seconds) != len(texts):
            raise TokenizerError(f"There are {len(texts)} texts but {len(seconds)} pairs; each text needs one.")
        encodings = [
            self.encode(text, second, max_length=max_length, **options)
            for text, second in zip(texts, seconds, strict=True)
        ]
        if padding is not False and encodings:
            rows, _ = flattened(encodings)
            width = self._width(max(map(len, rows)), padding, self._limit(max_length), pad_to_multiple_of)
            if any(len(row) < width for row in rows):
                token, token_id = self._padding_token(min(map(len, rows)), width)
                for encoding in encodings:
                    pad(encoding, width, token, token_id, self.pad_token_type_id, self.padding_side)
        return encodings

    def __call__(
        self,
        texts: str | Sequence[str],
        *,
        text_pairs: str | Sequence[str] | None = None,
        padding: PaddingArgument = True,
        truncation: TruncationArgument = True,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        pad_to_multiple_of: int | None = None,
        stride: int = 0,
        return_overflowing_tokens: bool = False,
        return_offsets_mapping: bool = False,
        return_special_tokens_mask: bool = False,
    ) -> Batch:
        """Turn texts into a batch for a model.

        Args:
            texts: A text, which makes a batch of one, or texts.
            text_pairs: The second text of each. An empty one next to a single text counts as none.
            padding: True or `longest`: to the longest text; `max_length`: to `max_length`; False: texts must turn
                out equally long.
            truncation: Cut texts so that each row, special tokens included, has at most `max_length` tokens: True or
                `longest_first`, of a pair the longer text first; `only_first`; `only_second`. A `max_length` that
                special tokens alone exceed cuts nothing.
            max_length: In tokens; None: `model_max_length`.
            add_special_tokens: Whether to put the model's special tokens around the texts.
            pad_to_multiple_of: The length is rounded up to a multiple of this.
            stride: How many tokens a row of what overflows has in common with the one before.
            return_overflowing_tokens: What is cut off becomes rows of its own behind the text's row; then there is
                also `overflow_to_sample_mapping`, shape (rows,): the number of each row's text.
            return_offsets_mapping: Also `offset_mapping`, shape (rows, length, 2): start and end of each token in its
                text, in characters (code points); 0 and 0 for special tokens and padding.
            return_special_tokens_mask: Also `special_tokens_mask`: 1 for special tokens and padding.

        Returns:
            `input_ids`, `attention_mask` (0 on padding) and `token_type_ids`: int64, shape (rows, length).

        Raises:
            TokenizerError: No texts; something that is not text; rows of different lengths without padding; padding
                without a padding token.
        """
        _check_padding(padding)
        strategy = _strategy(truncation)
        limit = self._limit(max_length)
        rows = _rows(texts, text_pairs)
        if not (stride or return_overflowing_tokens or return_offsets_mapping or return_special_tokens_mask):
            ids, type_ids = self._ids(rows, strategy, limit, add_special_tokens)
            return self._batch(ids, type_ids, padding, limit, pad_to_multiple_of)
        encodings = [
            self.encode(
                *row,
                add_special_tokens=add_special_tokens,
                truncation=truncation,
                max_length=max_length,
                stride=stride,
            )
            for row in rows
        ]
        samples = list(range(len(encodings)))
        if return_overflowing_tokens:
            encodings, samples = flattened(encodings)
        ids, type_ids = [one.ids for one in encodings], [one.type_ids for one in encodings]
        batch = self._batch(ids, type_ids, padding, limit, pad_to_multiple_of)
        filled = batch["attention_mask"].astype(bool)
        if return_special_tokens_mask:
            mask = np.ones(filled.shape, np.int64)
            mask[filled] = np.fromiter(chain.from_iterable(one.special_tokens_mask for one in encodings), np.int64)
            batch["special_tokens_mask"] = mask
        if return_offsets_mapping:
            offsets = np.zeros((*filled.shape, 2), np.int64)
            numbers = chain.from_iterable(chain.from_iterable(one.offsets for one in encodings))
            offsets[filled] = np.fromiter(numbers, np.int64).reshape(-1, 2)
            batch["offset_mapping"] = offsets
        if return_overflowing_tokens:
            batch["overflow_to_sample_mapping"] = np.array(samples, np.int64)
        return batch

    # -------------------------------------------------------------------------------------------------- decoding

    def decode(
        self,
        ids: Iterable[int] | NDArray[np.int64],
        *,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """Make text of tokens.

        Args:
            ids: Of the tokens; what is no token is left out.
            skip_special_tokens: Leave special tokens out.
            clean_up_tokenization_spaces: Take spaces out before punctuation, as for English; None: as
                `tokenizer_config.json` says.

        Raises:
            TokenizerError: An id is not an integer.
        """
        text: str = self._decoder(self._written(ids, skip_special_tokens=skip_special_tokens))
        cleans = self._cleans_up if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces
        return clean_up(text) if cleans else text

    def batch_decode(self, batch: Iterable[Iterable[int]] | NDArray[np.int64], **options: Any) -> list[str]:
        """`decode` for each row."""
        return [self.decode(row, **options) for row in batch]

    def decode_stream(self, *, skip_special_tokens: bool = False) -> DecodeStream:
        """Decode tokens as they come; without the clean-up, which looks at whole texts."""

        def decode(ids: Sequence[int]) -> str:
            text: str = self._decoder(self._written(ids, skip_special_tokens=skip_special_tokens))
            return text

        return DecodeStream(decode)

    def apply_chat_template(self, messages: Sequence[Message], **options: Any) -> str:
        """Make the text of a chat. Its special tokens are in it: encode it with `add_special_tokens=False`.

        Args:
            messages: Each with a `role` and a `content`.
            **options: `chat_template`, `tools`, `documents`, `add_generation_prompt`, `continue_final_message` of
                `ChatTemplates.render`; anything else is a variable of the template.

        Raises:
            TokenizerError: See `ChatTemplates.render`.
        """
        known = ("chat_template", "tools", "documents", "add_generation_prompt", "continue_final_message")
        given = {name: options.pop(name) for name in known if name in options}
        return self.chat_templates.render(messages, **given, variables=options)

    # --------------------------------------------------------------------------------------------------- private

    def _encode_text(self, text: str | Sequence[str], type_id: int) -> Encoding:
        if isinstance(text, str) or not isinstance(text, Sequence):
            return self._pipeline.encode(_checked(text), type_id)
        encoding = Encoding()
        for number, word in enumerate(text):
            encoding.extend(self._pipeline.encode(_checked(word), type_id, word_id=number))
        return encoding

    def _ids(
        self, rows: Sequence[tuple[str, ...]], strategy: TruncationStrategy | None, limit: int, special: bool
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Ids and type ids of each row, on the fast way."""
        pair = len(rows[0]) == 2
        layout = self._post_processor.layout(pair=pair, add_special_tokens=special)
        room = limit - (self._post_processor.added(pair=pair) if special else 0)
        cuts = strategy is not None and limit <= _LARGEST_LENGTH and room >= 0
        ids: list[list[int]] = []
        type_ids: list[list[int]] = []
        for row in rows:
            sequences = [self._pipeline.ids(_checked(text)) for text in row]
            if cuts and strategy is not None:
                kept = kept_lengths(list(map(len, sequences)), room, strategy)
                for sequence, count in zip(sequences, kept, strict=True):
                    if self.truncation_side == "right":
                        del sequence[count:]
                    else:
                        del sequence[: len(sequence) - count]
            row_ids, row_type_ids = fill(layout, sequences)
            ids.append(row_ids)
            type_ids.append(row_type_ids)
        return ids, type_ids

    def _limit(self, max_length: int | None) -> int:
        if max_length is None:
            return self.model_max_length
        if type(max_length) is not int or max_length < 0:
            raise TokenizerError(f"max_length={max_length!r} is not a number of tokens.", max_length=str(max_length))
        return max_length

    def _written(self, ids: Iterable[int] | NDArray[np.int64], *, skip_special_tokens: bool) -> list[str]:
        """What decoders get."""
        try:
            numbers = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
            if set(map(type, numbers)) - {int}:
                numbers = list(map(index, numbers))
        except TypeError as error:
            raise TokenizerError(f"Expected a list of token ids: {error}.") from error
        added, tokens = self._added.written, self._model.tokens
        found = [added.get(number) or tokens.get(number) for number in numbers]
        dropped = self._added.special if skip_special_tokens else frozenset()
        return [token for token in found if token is not None and token not in dropped]

    def _width(self, longest: int, padding: PaddingArgument, limit: int, multiple: int | None) -> int:
        width = longest
        if padding == "max_length":
            if limit > _LARGEST_LENGTH:
                raise TokenizerError(
                    "padding='max_length' needs a max_length: the tokenizer's files name none.", padding=padding
                )
            width = limit
        if multiple is not None and padding is not False:
            if type(multiple) is not int or multiple < 1:
                raise TokenizerError(f"pad_to_multiple_of={multiple!r} is not a number above 0.")
            width = -(-width // multiple) * multiple
        return width

    def _padding_token(self, shortest: int, width: int) -> tuple[str, int]:
        if self.pad_token_id is None or self.pad_token is None:
            raise TokenizerError(
                f"Rows of {shortest} tokens must be padded to {width}, but the tokenizer has no padding token. Encode "
                "the texts one by one with padding=False, or use a model whose tokenizer has one."
            )
        return self.pad_token, self.pad_token_id

    def _batch(
        self,
        ids: list[list[int]],
        type_ids: list[list[int]],
        padding: PaddingArgument,
        limit: int,
        multiple: int | None,
    ) -> Batch:
        """Make rectangles of the rows."""
        lengths = np.array([len(row) for row in ids])
        longest, shortest = int(lengths.max()), int(lengths.min())
        width = self._width(longest, padding, limit, multiple)
        if shortest != longest and (padding is False or longest > width):
            raise TokenizerError(
                f"The rows have {shortest} to {longest} tokens, which makes no rectangle. Use padding=True, or "
                "truncation=True with a max_length that has room for the special tokens.",
                shortest=shortest,
                longest=longest,
            )
        width = max(width, longest)
        if shortest < width:
            self._padding_token(shortest, width)
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


def build_tokenizer(fields: Fields, config: Fields, files: Mapping[str, bytes]) -> Tokenizer:
    """Build a tokenizer.

    Args:
        fields: The whole `tokenizer.json`.
        config: `tokenizer_config.json`.
        files: The model's other files, for chat templates.

    Raises:
        TokenizerError: Something is malformed or not supported. Details: `place`.
    """
    model = build_model(fields.child("model"))
    normalizer = build_normalizer(fields.value("normalizer"), fields.place_of("normalizer"))
    added = AddedVocabulary(read_added_tokens(fields, model.vocab, model.size), normalizer)
    pipeline = Pipeline(
        added,
        normalizer if fields.has("normalizer") else None,
        build_pre_tokenizer(fields.value("pre_tokenizer"), fields.place_of("pre_tokenizer")),
        model,
        build_post_processor(fields.value("post_processor"), fields.place_of("post_processor")),
    )
    decoder = build_decoder(fields.value("decoder"), fields.place_of("decoder"))

    def find(token: str) -> int | None:
        found = added.ids.get(token)
        return model.vocab.get(token) if found is None else found

    return Tokenizer(pipeline, decoder, _read_settings(fields, config, files, find))


def _check_padding(padding: PaddingArgument) -> None:
    if padding not in _PADDINGS:
        raise TokenizerError(
            f"padding={padding!r} is none of True, False, 'longest', 'max_length'.", padding=str(padding)
        )


def _strategy(truncation: TruncationArgument) -> TruncationStrategy | None:
    if truncation is True:
        return "longest_first"
    if truncation is False:
        return None
    if truncation not in STRATEGIES:
        raise TokenizerError(
            f"truncation={truncation!r} is none of True, False, {', '.join(map(repr, STRATEGIES))}.",
            truncation=str(truncation),
        )
    return truncation


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


def _read_settings(
    fields: Fields, config: Fields, files: Mapping[str, bytes], find: Callable[[str], int | None]
) -> Settings:
    """Lengths and padding: `tokenizer_config.json` first, then the blocks of `tokenizer.json`, then defaults."""
    padding = fields.child("padding") if fields.has("padding") else Fields({}, fields.place_of("padding"))
    truncation = fields.child("truncation") if fields.has("truncation") else Fields({}, fields.place_of("truncation"))

    model_max_length = UNLIMITED_LENGTH
    if config.has("model_max_length"):
        model_max_length = _length(config, "model_max_length")
    elif truncation.has("max_length"):
        model_max_length = _length(truncation, "max_length")

    pad_token: str | None = "[PAD]" if find("[PAD]") is not None else None
    if config.has("pad_token"):
        pad_token = _config_token(config, "pad_token")
    elif padding.has("pad_token"):
        pad_token = padding.string("pad_token")
    pad_token_id = None if pad_token is None else find(pad_token)

    model_input_names = _INPUT_NAMES.get(
        config.string("tokenizer_class").removesuffix("Fast") if config.has("tokenizer_class") else "",
        _DEFAULT_INPUT_NAMES,
    )
    if config.has("model_input_names"):
        model_input_names = config.strings("model_input_names")
    type_id_source = config if config.has("pad_token_type_id") else padding
    type_id_name = "pad_token_type_id" if config.has("pad_token_type_id") else "pad_type_id"
    special_tokens = {role: _config_token(config, role) for role in SPECIAL_ROLES if config.has(role)}
    return Settings(
        model_max_length=model_max_length,
        padding_side=_side(config, "padding_side", padding),
        truncation_side=_side(config, "truncation_side", truncation),
        pad_token=pad_token,
        pad_token_id=pad_token_id,
        pad_token_type_id=type_id_source.natural(type_id_name, 0),
        model_input_names=model_input_names,
        special_tokens=special_tokens,
        cleans_up=config.has("clean_up_tokenization_spaces") and config.boolean("clean_up_tokenization_spaces"),
        chat_templates=ChatTemplates(read_chat_templates(config, files), special_tokens),
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
