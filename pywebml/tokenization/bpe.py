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
from itertools import repeat
from operator import add, itemgetter
from typing import cast

from pywebml.errors import TokenizerError
from pywebml.tokenization.fields import Fields, wrong_type
from pywebml.tokenization.words import Token, tokens_of_bytes


@dataclass(frozen=True)
class BPE:
    """The model.

    Attributes:
        vocab: Token to id.
        left: The first token of each merge, in their order.
        right: The second one.
        unk_token: What stands for an unknown character; None: it is left out.
        continuing_subword_prefix: What tokens inside a word begin with in the vocabulary.
        end_of_word_suffix: What the last token of a word ends with in the vocabulary.
        fuse_unk: Unknown characters side by side are one token.
        byte_fallback: An unknown character is tokens such as `<0xE2>` for its bytes.
        ignore_merges: A word that is in the vocabulary is one token, whatever the merges say.
    """

    vocab: Mapping[str, int]
    left: Sequence[str]
    right: Sequence[str]
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

    @cached_property
    def _merges(self) -> Mapping[tuple[int, int], tuple[int, int]]:
        """Pair of ids to its rank and the id of what it makes. Made when first needed: it is large."""
        vocab = self.vocab.__getitem__
        made = map(vocab, merged_tokens(self.left, self.right, self.continuing_subword_prefix))
        pairs = zip(map(vocab, self.left), map(vocab, self.right), strict=True)
        return dict(zip(pairs, enumerate(made), strict=True))

    def tokenize(self, word: str) -> tuple[int, ...]:
        """The ids of a word."""
        if self.ignore_merges:
            found = self.vocab.get(word)
            if found is not None:
                return (found,)
        return tuple(self._merged(*self._symbols(word))[0])

    def describe(self, word: str) -> Sequence[Token]:
        """The tokens of a word."""
        if self.ignore_merges and word in self.vocab:
            return (Token(self.vocab[word], word, 0, len(word)),)
        ids, lengths = self._merged(*self._symbols(word))
        parts: list[tuple[int, str, int, int]] = []
        start = 0
        for token_id, length in zip(ids, lengths, strict=True):
            parts.append((token_id, self.tokens[token_id], start, start + length))
            start += length
        return tokens_of_bytes(word, parts)

    def _symbols(self, word: str) -> tuple[list[int], list[int]]:
        """The characters of a word as ids, and the bytes that each stands for."""
        vocab = self.vocab
        prefix, suffix = self.continuing_subword_prefix, self.end_of_word_suffix
        if not prefix and not suffix:
            try:
                ids = [vocab[character] for character in word]
            except KeyError:
                pass
            else:
                return ids, [1] * len(word) if word.isascii() else [len(character.encode()) for character in word]
        ids = []
        lengths: list[int] = []
        # An unknown character waits: the next may be fused with it. Bytes pass it by, as in the library.
        waiting: tuple[int, int] | None = None
        last = len(word) - 1
        for index, character in enumerate(word):
            length = len(character.encode())
            symbol = f"{prefix if index else ''}{character}{suffix if index == last else ''}"
            found = vocab.get(symbol)
            if found is not None:
                if waiting is not None:
                    ids.append(waiting[0])
                    lengths.append(waiting[1])
                    waiting = None
                ids.append(found)
                lengths.append(length)
                continue
            fallback = self._bytes(symbol) if self.byte_fallback else None
            if fallback is not None:
                ids += fallback
                lengths += [1] * len(fallback)
            elif self.unk_token is not None:
                if waiting is None:
                    waiting = (self._unknown(character), length)
                elif self.fuse_unk:
                    waiting = (waiting[0], waiting[1] + length)
                else:
                    ids.append(waiting[0])
                    lengths.append(waiting[1])
                    waiting = (self._unknown(character), length)
        if waiting is not None:
            ids.append(waiting[0])
            lengths.append(waiting[1])
        return ids, lengths

    def _bytes(self, symbol: str) -> list[int] | None:
        found = [self.vocab.get(f"<0x{byte:02X}>") for byte in symbol.encode()]
        return None if None in found else cast(list[int], found)

    def _unknown(self, character: str) -> int:
        found = self.vocab.get(self.unk_token or "")
        if found is None:
            raise TokenizerError(
                f"The character {character!r} is not in the vocabulary, and neither is the token {self.unk_token!r} "
                "that should stand for it. The tokenizer file does not fit its model.",
                unk_token=self.unk_token,
            )
        return found

    def _merged(self, ids: list[int], lengths: list[int]) -> tuple[list[int], list[int]]:
        """Merge in place until no pair is left that can be; what is merged away has length 0 and is dropped."""
        merges = self._merges
        count = len(ids)
        queue = [
            (*merge, index)
            for index, pair in enumerate(zip(ids, ids[1:], strict=False))
            if (merge := merges.get(pair)) is not None
        ]
        if not queue:
            return ids, lengths
        # Rank first, then the place: the order in which the pairs were learned, from left to right.
        queue = [(rank, index, made) for rank, made, index in queue]
        heapify(queue)
        following = list(range(1, count + 1))
        previous = list(range(-1, count - 1))
        while queue:
            _, index, made = heappop(queue)
            if not lengths[index]:
                continue
            right = following[index]
            if right >= count:
                continue
            merge = merges.get((ids[index], ids[right]))
            if merge is None or merge[1] != made:
                # The entry is older than a merge that took one of its sides.
                continue
            ids[index] = made
            lengths[index] += lengths[right]
            lengths[right] = 0
            after = following[index] = following[right]
            before = previous[index]
            if before >= 0:
                merge = merges.get((ids[before], made))
                if merge is not None:
                    heappush(queue, (merge[0], before, merge[1]))
            if after < count:
                previous[after] = index
                merge = merges.get((made, ids[after]))
                if merge is not None:
                    heappush(queue, (merge[0], index, merge[1]))
        kept = [index for index in range(count) if lengths[index]]
        return [ids[index] for index in kept], [lengths[index] for index in kept]


def merged_tokens(left: Sequence[str], right: Sequence[str], prefix: str) -> Iterable[str]:
    """What each merge makes: the second token without its prefix behind the first."""
    if not prefix:
        return map(add, left, right)
    # The library cuts off as many bytes as the prefix has, whatever they are.
    size = len(prefix.encode())
    return map(add, left, (token.encode()[size:].decode(errors="replace") for token in right))


def read_bpe(fields: Fields) -> BPE:
    """Read the model from its JSON.

    Raises:
        TokenizerError: It is malformed.
    """
    vocab = fields.vocabulary("vocab")
    left, right = read_merges(fields.values("merges"), fields.place_of("merges"))
    return checked_bpe(
        BPE(
            vocab,
            left,
            right,
            unk_token=fields.optional_string("unk_token"),
            continuing_subword_prefix=fields.optional_string("continuing_subword_prefix") or "",
            end_of_word_suffix=fields.optional_string("end_of_word_suffix") or "",
            fuse_unk=fields.has("fuse_unk") and fields.boolean("fuse_unk"),
            byte_fallback=fields.has("byte_fallback") and fields.boolean("byte_fallback"),
            ignore_merges=fields.has("ignore_merges") and fields.boolean("ignore_merges"),
        ),
        fields.place_of("merges"),
    )


def read_merges(values: Sequence[object], place: str) -> tuple[Sequence[str], Sequence[str]]:
    """The two sides of merges, which are pairs, or strings with a space between.

    Raises:
        TokenizerError: They are malformed.
    """
    kinds = set(map(type, values))
    pairs: list[list[str]]
    if kinds <= {str}:
        lines = [line for line in cast(Sequence[str], values) if not line.startswith("#version")]
        pairs = list(map(str.split, lines, repeat(" ")))
    elif kinds <= {list}:
        pairs = cast(list[list[str]], values)
    else:
        raise wrong_type(place, "a list of pairs of tokens", list(kinds))
    if set(map(len, pairs)) - {2}:
        raise TokenizerError(f"{place} has a merge that is no pair of tokens. The file is damaged.", place=place)
    left, right = list(map(itemgetter(0), pairs)), list(map(itemgetter(1), pairs))
    if (set(map(type, left)) | set(map(type, right))) - {str}:
        raise wrong_type(place, "pairs of strings", left)
    return left, right


def checked_bpe(model: BPE, place: str) -> BPE:
    """The model, when its vocabulary has all that its merges need.

    Raises:
        TokenizerError: It lacks something.
    """
    vocab = model.vocab
    needed = (model.left, model.right, merged_tokens(model.left, model.right, model.continuing_subword_prefix))
    for tokens in needed:
        # Set by set, at the speed of C: there may be hundreds of thousands.
        missing = set(tokens).difference(vocab)
        if missing:
            token = min(missing)
            raise TokenizerError(
                f"{place} needs the token {token!r}, which is not in the vocabulary. The file is damaged.",
                place=place,
                token=token,
            )
    return model
