"""Byte pair encoding: characters are merged, the pair that was learned first comes first.

Source: Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units" (2016); `BPE` of the Rust
`tokenizers`, with its byte fallback, fusing of unknown tokens and `ignore_merges`. Dropout, which is for training, is
off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import chain, repeat, starmap
from operator import add
from typing import Final, cast

from pywebml.errors import TokenizerError
from pywebml.tokenization.fields import Fields, wrong_type
from pywebml.tokenization.words import Token, tokens_of_bytes


@dataclass(frozen=True)
class Merges:
    """Which tokens are merged, in the order in which this was learned.

    Attributes:
        pairs: Both tokens of each merge, with the separator between.
        separator: What is in none of them.
    """

    pairs: Sequence[str]
    separator: str

    @cached_property
    def ranks(self) -> Mapping[str, int]:
        """Each pair to its place; of equal pairs the last counts.

        Made when first needed: it is large.
        """
        return dict(zip(self.pairs, range(len(self.pairs)), strict=True))


@dataclass(frozen=True)
class BPE:
    """The model.

    Attributes:
        vocab: Token to id.
        merges: What is merged.
        unk_token: What stands for an unknown character; None: it is left out.
        continuing_subword_prefix: What tokens inside a word begin with in the vocabulary.
        end_of_word_suffix: What the last token of a word ends with in the vocabulary.
        fuse_unk: Unknown characters side by side are one token.
        byte_fallback: An unknown character is tokens such as `<0xE2>` for its bytes.
        ignore_merges: A word that is in the vocabulary is one token, whatever the merges say.
    """

    vocab: Mapping[str, int]
    merges: Merges
    unk_token: str | None = None
    continuing_subword_prefix: str = ""
    end_of_word_suffix: str = ""
    fuse_unk: bool = False
    byte_fallback: bool = False
    ignore_merges: bool = False

    @property
    def size(self) -> int:
        """How many tokens there are."""
        return len(self.vocab)

    @cached_property
    def tokens(self) -> Mapping[int, str]:
        """Id to token."""
        return {token_id: token for token, token_id in self.vocab.items()}

    def tokenize(self, word: str) -> tuple[int, ...]:
        """The ids of a word."""
        if self.ignore_merges:
            found = self.vocab.get(word)
            if found is not None:
                return (found,)
        return tuple(map(self.vocab.__getitem__, self._merged(*self._symbols(word))[0]))

    def describe(self, word: str) -> Sequence[Token]:
        """The tokens of a word."""
        if self.ignore_merges and word in self.vocab:
            return (Token(self.vocab[word], word, 0, len(word)),)
        tokens, lengths = self._merged(*self._symbols(word))
        parts: list[tuple[int, str, int, int]] = []
        start = 0
        for token, length in zip(tokens, lengths, strict=True):
            parts.append((self.vocab[token], token, start, start + length))
            start += length
        return tokens_of_bytes(word, parts)

    def _symbols(self, word: str) -> tuple[list[str], list[int]]:
        """The characters of a word as tokens, and the bytes that each stands for."""
        vocab = self.vocab
        prefix, suffix = self.continuing_subword_prefix, self.end_of_word_suffix
        symbols = list(word)
        if not prefix and not suffix and all(map(vocab.__contains__, symbols)):
            return symbols, [1] * len(word) if word.isascii() else [len(one.encode()) for one in symbols]
        symbols = []
        lengths: list[int] = []
        # An unknown character waits: the next may be fused with it. Bytes pass it by, as in the library.
        waiting = 0
        last = len(word) - 1
        for index, character in enumerate(word):
            length = len(character.encode())
            symbol = f"{prefix if index else ''}{character}{suffix if index == last else ''}"
            if symbol in vocab:
                if waiting:
                    symbols.append(self._unknown(character))
                    lengths.append(waiting)
                    waiting = 0
                symbols.append(symbol)
                lengths.append(length)
                continue
            fallback = self._bytes(symbol) if self.byte_fallback else None
            if fallback is not None:
                symbols += fallback
                lengths += [1] * len(fallback)
            elif self.unk_token is not None:
                unknown = self._unknown(character)
                if waiting and not self.fuse_unk:
                    symbols.append(unknown)
                    lengths.append(waiting)
                    waiting = 0
                waiting += length
        if waiting:
            symbols.append(self._unknown(word[-1]))
            lengths.append(waiting)
        return symbols, lengths

    def _bytes(self, symbol: str) -> list[str] | None:
        tokens = [f"<0x{byte:02X}>" for byte in symbol.encode()]
        return tokens if all(map(self.vocab.__contains__, tokens)) else None

    def _unknown(self, character: str) -> str:
        if self.unk_token is None or self.unk_token not in self.vocab:
            raise TokenizerError(
                f"The character {character!r} is not in the vocabulary, and neither is the token {self.unk_token!r} "
                "that should stand for it. The tokenizer file does not fit its model.",
                unk_token=self.unk_token,
            )
        return self.unk_token

    def _merged(self, symbols: list[str], lengths: list[int]) -> tuple[list[str], list[int]]:
        """Merge in place until no pair is left that can be; what is merged away has length 0 and is dropped."""
        ranks = self.merges.ranks
        separator = self.merges.separator
        cut = len(self.continuing_subword_prefix)
        count = len(symbols)
        # Rank first, then the place: the order in which the pairs were learned, from left to right.
        queue: list[tuple[int, int, str]] = []
        for index in range(count - 1):
            left, right = symbols[index], symbols[index + 1]
            rank = ranks.get(left + separator + right)
            if rank is not None:
                queue.append((rank, index, left + right[cut:]))
        if not queue:
            return symbols, lengths
        heapify(queue)
        following = list(range(1, count + 1))
        previous = list(range(-1, count - 1))
        while queue:
            _, index, made = heappop(queue)
            second = following[index]
            if not lengths[index] or second >= count:
                continue
            left, right = symbols[index], symbols[second]
            if left + right[cut:] != made or left + separator + right not in ranks:
                # The entry is older than a merge that took one of its sides.
                continue
            symbols[index] = made
            lengths[index] += lengths[second]
            lengths[second] = 0
            after = following[index] = following[second]
            before = previous[index]
            if before >= 0:
                rank = ranks.get(symbols[before] + separator + made)
                if rank is not None:
                    heappush(queue, (rank, before, symbols[before] + made[cut:]))
            if after < count:
                previous[after] = index
                rank = ranks.get(made + separator + symbols[after])
                if rank is not None:
                    heappush(queue, (rank, index, made + symbols[after][cut:]))
        kept = [index for index in range(count) if lengths[index]]
        return [symbols[index] for index in kept], [lengths[index] for index in kept]


def read_bpe(fields: Fields) -> BPE:
    """Read the model from its JSON.

    Raises:
        TokenizerError: It is malformed.
    """
    vocab = fields.vocabulary("vocab")
    prefix = fields.optional_string("continuing_subword_prefix") or ""
    return BPE(
        vocab,
        read_merges(fields.values("merges"), fields.place_of("merges"), vocab, prefix),
        unk_token=fields.optional_string("unk_token"),
        continuing_subword_prefix=prefix,
        end_of_word_suffix=fields.optional_string("end_of_word_suffix") or "",
        fuse_unk=fields.has("fuse_unk") and fields.boolean("fuse_unk"),
        byte_fallback=fields.has("byte_fallback") and fields.boolean("byte_fallback"),
        ignore_merges=fields.has("ignore_merges") and fields.boolean("ignore_merges"),
    )


def read_merges(values: Sequence[object], place: str, vocab: Mapping[str, int], prefix: str) -> Merges:
    """Merges, which are pairs, or strings with a space between.

    Everything here is done at the speed of C, and as little of it as can be: there may be hundreds of thousands.

    Args:
        values: What the file has.
        place: Where that stands, for messages.
        vocab: Must have what is merged and what that makes.
        prefix: What tokens inside a word begin with. As much is cut off the second token, whatever it begins with:
            so does the library.

    Raises:
        TokenizerError: They are malformed or need a token that the vocabulary lacks.
    """
    kinds = set(map(type, values))
    cut = len(prefix)
    tokens: Iterable[str]
    if kinds <= {str}:
        separator = " "
        lines = _without_version(cast(Sequence[str], values))
        if set(map(str.count, lines, repeat(separator))) - {1}:
            raise _no_pair(place)
        tokens = separator.join(lines).split(separator) if lines else []
        made = list(map(add, tokens[::2], [token[cut:] for token in tokens[1::2]] if cut else tokens[1::2]))
    elif kinds == {list}:
        pairs = cast(list[list[str]], values)
        separator = " " if " " not in "".join(vocab) else _NO_TEXT
        try:
            # What is no string cannot be joined, and what is no pair is not what `add` takes.
            lines = list(map(separator.join, pairs))
            made = [left + right[cut:] for left, right in pairs] if cut else list(starmap(add, pairs))
        except (TypeError, ValueError) as error:
            if set(map(len, pairs)) != {2}:
                raise _no_pair(place) from error
            raise wrong_type(place, "pairs of strings", pairs) from error
        tokens = chain.from_iterable(pairs)
    else:
        raise wrong_type(place, "a list of pairs of tokens", values)
    missing = set(chain(tokens, made)).difference(vocab)
    if missing:
        # What is missing because a part of it is comes after that part.
        token = min(missing, key=lambda token: (len(token), token))
        raise TokenizerError(
            f"{place} needs the token {token!r}, which is not in the vocabulary. The file is damaged.",
            place=place,
            token=token,
        )
    return Merges(lines, separator)


_NO_TEXT: Final = "\ud800"
"""Half of a surrogate pair: `Fields` sees to it that no token has it."""


def _without_version(lines: Sequence[str]) -> Sequence[str]:
    if any(map(str.startswith, lines[:1], repeat("#version"))) or "\n#version" in "\n".join(lines):
        return [line for line in lines if not line.startswith("#version")]
    return lines


def _no_pair(place: str) -> TokenizerError:
    return TokenizerError(f"{place} has a merge that is no pair of tokens. The file is damaged.", place=place)
