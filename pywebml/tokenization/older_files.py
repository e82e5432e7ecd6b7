"""Vocabularies from before `tokenizer.json`: what such a file would say is worked out from the older ones.

Each family of tokenizers gets the components that its class has in transformers; which family it is says
`tokenizer_class` in `tokenizer_config.json`. What is made here is read like any `tokenizer.json`, with all its checks.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from pywebml.errors import TokenizerError
from pywebml.tokenization.fields import Fields, check_text, is_id, wrong_type
from pywebml.tokenization.sentencepiece import ModelKind, PieceKind, SentencePieceModel, read_model

Document: TypeAlias = dict[str, Any]

_METASPACE: Final = "▁"
_BYTE_LEVEL: Final = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_CLIP: Final = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True, slots=True)
class Source:
    """What a family's builder works with.

    Attributes:
        config: `tokenizer_config.json`, with the special tokens of `special_tokens_map.json`.
        files: The model's files.
    """

    config: Fields
    files: Mapping[str, bytes]

    def token(self, role: str, default: str) -> str:
        """The special token of a role."""
        if not self.config.has(role):
            return default
        if isinstance(self.config.value(role), dict):
            return self.config.child(role).string("content")
        return self.config.string(role)

    def flag(self, name: str, *, default: bool) -> bool:
        """An option."""
        return self.config.boolean(name) if self.config.has(name) else default

    def text(self, name: str) -> str:
        """A text file."""
        try:
            return self.files[name].decode("utf-8")
        except UnicodeDecodeError as error:
            raise TokenizerError(f"{name} is not UTF-8. Download the file again.", place=name) from error

    def sentencepiece(self) -> SentencePieceModel:
        """The SentencePiece model."""
        name = next(name for name in SENTENCEPIECE_FILES if name in self.files)
        return read_model(self.files[name], name)


SENTENCEPIECE_FILES: Final = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "sentencepiece.model")


# ------------------------------------------------------------------------------------------------ vocab.txt


def _bert(source: Source) -> Document:
    tokens = source.text("vocab.txt").split("\n")
    if tokens and not tokens[-1]:
        tokens.pop()
    vocab = {token.rstrip("\r"): index for index, token in enumerate(tokens)}
    unknown = source.token("unk_token", "[UNK]")
    cls, sep = source.token("cls_token", "[CLS]"), source.token("sep_token", "[SEP]")
    special = [unknown, cls, sep, source.token("pad_token", "[PAD]"), source.token("mask_token", "[MASK]")]
    return {
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": source.flag("tokenize_chinese_chars", default=True),
            "strip_accents": source.config.value("strip_accents"),
            "lowercase": source.flag("do_lower_case", default=True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _template(vocab, [cls, "A", sep], [cls, "A", sep, "B:1", f"{sep}:1"]),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": unknown,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
        "added_tokens": _special(special, vocab),
    }


# ------------------------------------------------------------------------------------- vocab.json, merges.txt


def _bpe(source: Source, **options: Any) -> Document:
    vocab = dict(Fields.parse(source.files["vocab.json"], "vocab.json").items())
    for token, value in vocab.items():
        if not is_id(value):
            raise wrong_type(f"vocab.json[{token!r}]", "a token id", value)
    merges = [line for line in source.text("merges.txt").split("\n") if line and not line.startswith("#version")]
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": vocab,
        "merges": [line.removesuffix("\r") for line in merges],
        **options,
    }


def _gpt2(source: Source) -> Document:
    model = _bpe(source)
    end = "<|endoftext|>"
    special = [source.token(role, end) for role in ("unk_token", "bos_token", "eos_token")]
    prefix = source.flag("add_prefix_space", default=False)
    return {
        "pre_tokenizer": {**_BYTE_LEVEL, "add_prefix_space": prefix},
        "decoder": _BYTE_LEVEL,
        "model": model,
        "added_tokens": _special(special, model["vocab"]),
    }


def _roberta(source: Source) -> Document:
    document = _gpt2(source)
    vocab = document["model"]["vocab"]
    cls, sep = source.token("cls_token", "<s>"), source.token("sep_token", "</s>")
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    special = [cls, sep, *(source.token(role, default) for role, default in names.items())]
    added = _special(special, vocab)
    mask = source.token("mask_token", "<mask>")
    added += [{**token, "lstrip": True} for token in _special([mask], vocab)]
    document["post_processor"] = {
        "type": "RobertaProcessing",
        "sep": [sep, _id(vocab, sep)],
        "cls": [cls, _id(vocab, cls)],
        "trim_offsets": source.flag("trim_offsets", default=True),
        "add_prefix_space": source.flag("add_prefix_space", default=False),
    }
    return {**document, "added_tokens": added}


def _clip(source: Source) -> Document:
    begin, end = source.token("bos_token", "<|startoftext|>"), source.token("eos_token", "<|endoftext|>")
    unknown = source.token("unk_token", "<|endoftext|>")
    model = _bpe(source, unk_token=unknown, end_of_word_suffix="</w>")
    vocab = model["vocab"]
    spaces = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    words = {"type": "Split", "pattern": {"Regex": _CLIP}, "behavior": "Removed", "invert": True}
    ends = {"type": "Replace", "pattern": {"String": "</w>"}, "content": " "}
    return {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, spaces, {"type": "Lowercase"}]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [words, _BYTE_LEVEL]},
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": [end, _id(vocab, end)],
            "cls": [begin, _id(vocab, begin)],
            "trim_offsets": False,
            "add_prefix_space": False,
        },
        # A space for the end of each word, and none at the end of the text.
        "decoder": {
            "type": "Sequence",
            "decoders": [_BYTE_LEVEL, ends, {"type": "Strip", "content": " ", "start": 1, "stop": 1}],
        },
        "model": model,
        "added_tokens": _special([unknown, begin, end], vocab),
    }


# --------------------------------------------------------------------------------------------- SentencePiece


def _unigram(pieces: Sequence[tuple[str, float]], unk_id: int, *, byte_fallback: bool = False) -> Document:
    return {"type": "Unigram", "unk_id": unk_id, "vocab": list(map(list, pieces)), "byte_fallback": byte_fallback}


def _scored(model: SentencePieceModel) -> list[tuple[str, float]]:
    return [(piece.text, piece.score) for piece in model.pieces]


def _precompiled(model: SentencePieceModel) -> list[Document]:
    encoded = base64.b64encode(model.charsmap).decode()
    return [{"type": "Precompiled", "precompiled_charsmap": encoded}] if encoded else []


def _words(source: Source) -> Document:
    """Words begin with a metaspace."""
    scheme = "always" if source.flag("add_prefix_space", default=True) else "never"
    metaspace = {"type": "Metaspace", "replacement": _METASPACE, "prepend_scheme": scheme, "split": True}
    return {
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "decoder": metaspace,
    }


def _t5(source: Source) -> Document:
    model = source.sentencepiece()
    extra = source.config.natural("extra_ids", 100)
    if extra > _MOST_EXTRA:
        raise TokenizerError(f"tokenizer_config.json asks for {extra} extra_ids; at most {_MOST_EXTRA} are possible.")
    # The extra tokens count down.
    pieces = [*_scored(model), *((f"<extra_id_{index}>", 0.0) for index in reversed(range(extra)))]
    vocab = {token: index for index, (token, _) in enumerate(pieces)}
    end = source.token("eos_token", "</s>")
    special = [source.token("pad_token", "<pad>"), end, source.token("unk_token", "<unk>")]
    special += [f"<extra_id_{index}>" for index in reversed(range(extra))]
    return {
        **_words(source),
        "normalizer": _sequence(_precompiled(model)),
        "post_processor": _template(vocab, ["A", end], ["A", end, "B", end]),
        "model": _unigram(pieces, model.unk_id),
        "added_tokens": _special(special, vocab),
    }


_MOST_EXTRA: Final = 10_000


def _xlm_roberta(source: Source) -> Document:
    model = source.sentencepiece()
    begin, end = source.token("bos_token", "<s>"), source.token("eos_token", "</s>")
    pad, unknown = source.token("pad_token", "<pad>"), source.token("unk_token", "<unk>")
    mask = source.token("mask_token", "<mask>")
    # The first model was trained with another library, whose special tokens come first and in another order.
    pieces = [(token, 0.0) for token in (begin, pad, end, unknown)]
    pieces += [*_scored(model)[3:], (mask, 0.0)]
    vocab = {token: index for index, (token, _) in enumerate(pieces)}
    added = _special([begin, pad, end, unknown], vocab)
    added += [{**token, "lstrip": True} for token in _special([mask], vocab)]
    return {
        **_words(source),
        "normalizer": _sequence(_precompiled(model)),
        "post_processor": _template(vocab, [begin, "A", end], [begin, "A", end, end, "B", end]),
        "model": _unigram(pieces, 3),
        "added_tokens": added,
    }


def _albert(source: Source) -> Document:
    model = source.sentencepiece()
    pieces = _scored(model)
    vocab = {token: index for index, (token, _) in enumerate(pieces)}
    cls, sep = source.token("cls_token", "[CLS]"), source.token("sep_token", "[SEP]")
    steps: list[Document] = [_replace("``", '"'), _replace("''", '"')]
    if not source.flag("keep_accents", default=False):
        steps += [{"type": "NFKD"}, {"type": "StripAccents"}]
    if source.flag("do_lower_case", default=True):
        steps.append({"type": "Lowercase"})
    special = [source.token("pad_token", "<pad>"), source.token("unk_token", "<unk>"), cls, sep]
    added = _special(special, vocab)
    mask = source.token("mask_token", "[MASK]")
    added += [{**token, "lstrip": True} for token in _special([mask], vocab)]
    return {
        **_words(source),
        "normalizer": _sequence([*steps, *_precompiled(model)]),
        "post_processor": _template(vocab, [cls, "A", sep], [cls, "A", sep, "B:1", f"{sep}:1"]),
        "model": _unigram(pieces, model.unk_id),
        "added_tokens": added,
    }


def _plain_sentencepiece(source: Source) -> Document:
    """Any other model: what the SentencePiece library itself does with it."""
    model = source.sentencepiece()
    if model.kind not in (ModelKind.UNIGRAM, ModelKind.BPE) or model.treat_whitespace_as_suffix:
        raise TokenizerError(
            f"The SentencePiece model is of the kind {model.kind.name}"
            f"{' with spaces behind words' if model.treat_whitespace_as_suffix else ''}, which is not supported. Use a "
            "model with a tokenizer.json."
        )
    steps = _precompiled(model)
    if model.remove_extra_whitespaces:
        # Spaces alone: other white space stays, where the table of replacements has left it.
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A +|(?<! ) +\z"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if model.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": _METASPACE})
    steps.append(_replace(" ", _METASPACE))
    decoders: list[Document] = [_replace(_METASPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if model.add_dummy_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        "normalizer": _sequence(steps),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _model_of(model),
        "added_tokens": _control(model),
    }


def _model_of(model: SentencePieceModel) -> Document:
    pieces = _scored(model)
    if model.kind is ModelKind.UNIGRAM:
        return _unigram(pieces, model.unk_id, byte_fallback=model.byte_fallback)
    vocab = {token: index for index, (token, _) in enumerate(pieces)}
    return {
        "type": "BPE",
        "unk_token": model.pieces[model.unk_id].text,
        "fuse_unk": True,
        "byte_fallback": model.byte_fallback,
        "vocab": vocab,
        "merges": _merges(model, vocab),
    }


def _merges(model: SentencePieceModel, vocab: Mapping[str, int]) -> list[list[str]]:
    """Every way to put a piece together of two others, the best piece first."""
    found: list[tuple[float, int, int, str, str]] = []
    kinds = (PieceKind.NORMAL, PieceKind.USER_DEFINED, PieceKind.UNUSED)
    for piece in model.pieces:
        if piece.kind not in kinds or len(piece.text) > _LONGEST_PIECE:
            continue
        text = piece.text
        splits = [(text[:index], text[index:]) for index in range(1, len(text))]
        known = [pair for pair in splits if pair[0] in vocab and pair[1] in vocab]
        known.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        found += [(-piece.score, -len(left), -len(right), left, right) for left, right in known]
    found.sort(key=lambda merge: merge[:3])
    return [[left, right] for *_, left, right in found]


_LONGEST_PIECE: Final = 512


def _llama(source: Source) -> Document:
    model = source.sentencepiece()
    if model.kind is not ModelKind.BPE:
        return _plain_sentencepiece(source)
    begin, end = source.token("bos_token", "<s>"), source.token("eos_token", "</s>")
    document = _plain_sentencepiece(source)
    vocab = document["model"]["vocab"]
    before = [begin] if source.flag("add_bos_token", default=False) else []
    behind = [end] if source.flag("add_eos_token", default=False) else []
    second = [f"{begin}:1"] if before else []
    second_end = [f"{end}:1"] if behind else []
    prefix = source.flag("add_prefix_space", default=True)
    scheme = ("always" if source.flag("legacy", default=False) else "first") if prefix else "never"
    decoders: list[Document] = [_replace(_METASPACE, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    special = [source.token("unk_token", "<unk>"), begin, end]
    known = {token["content"] for token in document["added_tokens"]}
    added = document["added_tokens"] + _special([one for one in special if one not in known], vocab)
    return {
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": _METASPACE,
            "prepend_scheme": scheme,
            "split": False,
        },
        "post_processor": _template(
            vocab, [*before, "A", *behind], [*before, "A", *behind, *second, "B:1", *second_end]
        ),
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": document["model"],
        "added_tokens": added,
    }


# --------------------------------------------------------------------------------------------------- helpers


def _replace(pattern: str, content: str) -> Document:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def _sequence(steps: Sequence[Document]) -> Document | None:
    return {"type": "Sequence", "normalizers": list(steps)} if steps else None


def _id(vocab: Mapping[str, Any], token: str) -> int:
    found = vocab.get(token)
    if not is_id(found):
        raise TokenizerError(f"The vocabulary has no token {token!r}, which the tokenizer needs.", token=token)
    return found


def _special(tokens: Sequence[str], vocab: Mapping[str, Any]) -> list[Document]:
    """Special tokens, each once; those that are not in the vocabulary get an id behind it."""
    return [
        added_token(token, index, special=True, normalized=False)
        for index, token in enumerate(dict.fromkeys(tokens), len(vocab))
        if token
    ]


def _control(model: SentencePieceModel) -> list[Document]:
    kinds = {PieceKind.CONTROL: True, PieceKind.UNKNOWN: True, PieceKind.USER_DEFINED: False}
    return [
        added_token(piece.text, index, special=kinds[piece.kind], normalized=False)
        for index, piece in enumerate(model.pieces)
        if piece.kind in kinds and piece.text
    ]


def added_token(content: str, token_id: int, **flags: bool) -> Document:
    """An entry of `added_tokens`."""
    check_text(content, "added token")
    return {"id": token_id, "content": content, **dict.fromkeys(FLAGS, False), **flags}


FLAGS: Final = ("single_word", "lstrip", "rstrip", "normalized", "special")
"""Options of an added token."""


def _template(vocab: Mapping[str, Any], single: Sequence[str], pair: Sequence[str]) -> Document:
    """A template of texts (`A`, `B`) and special tokens, each with `:` and its type id where that is not 0."""
    tokens: dict[str, Document] = {}

    def piece(item: str) -> Document:
        name, type_id = (item[:-2], 1) if item.endswith(":1") else (item, 0)
        if name in ("A", "B"):
            return {"Sequence": {"id": name, "type_id": type_id}}
        tokens[name] = {"id": name, "ids": [_id(vocab, name)], "tokens": [name]}
        return {"SpecialToken": {"id": name, "type_id": type_id}}

    return {
        "type": "TemplateProcessing",
        "single": list(map(piece, single)),
        "pair": list(map(piece, pair)),
        "special_tokens": tokens,
    }


FAMILIES: Final[Mapping[str, Callable[[Source], Document]]] = {
    "AlbertTokenizer": _albert,
    "BertTokenizer": _bert,
    "BartTokenizer": _roberta,
    "CLIPTokenizer": _clip,
    "CamembertTokenizer": _plain_sentencepiece,
    "CodeLlamaTokenizer": _llama,
    "DistilBertTokenizer": _bert,
    "ElectraTokenizer": _bert,
    "GPT2Tokenizer": _gpt2,
    "LlamaTokenizer": _llama,
    "LongformerTokenizer": _roberta,
    "MobileBertTokenizer": _bert,
    "RobertaTokenizer": _roberta,
    "T5Tokenizer": _t5,
    "XLMRobertaTokenizer": _xlm_roberta,
}
"""Name of a class of transformers to what builds its tokenizer."""

DEFAULT_FAMILIES: Final = (
    (("vocab.txt",), _bert),
    (("vocab.json", "merges.txt"), _gpt2),
    *(((name,), _plain_sentencepiece) for name in SENTENCEPIECE_FILES),
)
"""Files to what builds a tokenizer of them when the class is unknown."""


def older_document(config: Fields, files: Mapping[str, bytes]) -> Document:
    """What `tokenizer.json` would say.

    Args:
        config: `tokenizer_config.json`, with the special tokens of `special_tokens_map.json`.
        files: The model's files.

    Raises:
        TokenizerError: There is no vocabulary, or a file is malformed.
    """
    default = next((build for names, build in DEFAULT_FAMILIES if all(name in files for name in names)), None)
    if default is None:
        raise TokenizerError(
            "The model has no vocabulary: neither tokenizer.json nor vocab.txt, vocab.json with merges.txt, or a "
            f"SentencePiece model ({', '.join(SENTENCEPIECE_FILES)}).",
            found=sorted(files),
        )
    name = config.string("tokenizer_class", "").removesuffix("Fast") if config.has("tokenizer_class") else ""
    build = FAMILIES.get(name, default)
    try:
        document = build(Source(config, files))
    except (KeyError, StopIteration) as error:
        raise TokenizerError(
            f"A {name} needs other files than {', '.join(sorted(files))}.", tokenizer_class=name, found=sorted(files)
        ) from error
    return {"version": "1.0", "normalizer": None, "pre_tokenizer": None, "post_processor": None, **document}
