"""`tokenizer.json` for checkpoints whose tokenizer has no fast form in transformers.

Translation models of Marian (`vocab.json`, `source.spm`, `target.spm`) and models of sound that give characters for CTC
(`vocab.json`). What is made behaves as the slow class does.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from pywebml.errors import SourceError, TokenizerError
from pywebml.prepare.source import CONFIG, read_json_object
from pywebml.tokenization.fields import is_id
from pywebml.tokenization.sentencepiece import ModelKind, PieceKind, SentencePieceModel, read_model

Document: TypeAlias = dict[str, Any]

_VOCABULARY: Final = "vocab.json"
_METASPACE: Final = "▁"
# Lookarounds, because JavaScript knows neither \A nor \z, and `^` stands for every line in the Rust library.
_FIRST: Final = r"(?<![\s\S])"
_LAST: Final = r"(?![\s\S])"
_NEVER: Final = "\ufdd0"
"""A code point that is no character, so that no vocabulary has it."""
_UNLIKELY: Final = -1e6
"""Far below any way to split a word: a piece with this score is only for decoding."""


# --------------------------------------------------------------------------------------------------- Marian


def _marian(folder: Path, config: Mapping[str, Any]) -> Document:
    """The source's pieces split a text, as in SentencePiece; all other pieces are there for decoding."""
    if config.get("separate_vocabs"):
        raise SourceError(
            f"{folder / 'tokenizer_config.json'} asks for separate_vocabs: one vocabulary for encoding, another for "
            "decoding. A tokenizer.json has only one.",
            path=str(folder),
        )
    vocab = _vocabulary(folder / _VOCABULARY, read_json_object(folder / _VOCABULARY))
    pieces = sorted(vocab, key=vocab.__getitem__)
    if [vocab[piece] for piece in pieces] != list(range(len(pieces))):
        raise SourceError(f"{folder / _VOCABULARY} must number its pieces from 0 without gaps.", path=str(folder))
    unknown, end = _token(config, "unk_token", "<unk>"), _token(config, "eos_token", "</s>")
    special = (unknown, end, _token(config, "pad_token", "<pad>"))
    _require(folder, vocab, special)
    source = _sentencepiece(folder / "source.spm")
    # Only its presence and soundness count: a piece that the source does not have never splits a text.
    _sentencepiece(folder / "target.spm")
    kinds = (PieceKind.NORMAL, PieceKind.USER_DEFINED)
    scores = {piece.text: piece.score for piece in source.pieces if piece.kind in kinds and piece.text in vocab}
    steps = _sentencepiece_steps(source)
    own = set("".join(scores))
    if foreign := set("".join(vocab.keys() - scores.keys())) - own:
        # To SentencePiece what the source cannot write is one piece up to what it can write again, and the vocabulary
        # knows that piece only when it is one character. Without this, pieces for decoding would be found inside.
        strange = f"[^{_class(own)}]"
        steps.append(_replace_regex(f"[{_class(foreign)}](?={strange})|(?<={strange})[{_class(foreign)}]", _NEVER))
    languages = [piece for piece in pieces if piece.startswith(">>") and piece.endswith("<<")]
    return {
        "added_tokens": [
            *(_added(token, vocab[token], special=True) for token in dict.fromkeys(special)),
            *(_added(token, vocab[token], special=False) for token in languages),
        ],
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_part("A"), _end(end)],
            "pair": [_part("A"), _part("B"), _end(end)],
            "special_tokens": {end: {"id": end, "ids": [vocab[end]], "tokens": [end]}},
        },
        "decoder": _decoders(_replace(_METASPACE, " ")),
        "model": {
            "type": "Unigram",
            "unk_id": vocab[unknown],
            "vocab": [[piece, scores.get(piece, _UNLIKELY)] for piece in pieces],
            "byte_fallback": False,
        },
    }


def _sentencepiece(path: Path) -> SentencePieceModel:
    try:
        model = read_model(path.read_bytes(), path.name)
    except FileNotFoundError as error:
        raise SourceError(f"{path.parent} has no {path.name}.", path=str(path)) from error
    except (OSError, TokenizerError) as error:
        raise SourceError(f"{path} is not usable: {error}", path=str(path)) from error
    if model.kind is not ModelKind.UNIGRAM or model.byte_fallback or model.treat_whitespace_as_suffix:
        raise SourceError(
            f"{path} is a SentencePiece model of the kind {model.kind.name}"
            f"{' with bytes' if model.byte_fallback else ''}"
            f"{' with spaces behind words' if model.treat_whitespace_as_suffix else ''}; of Marian only UNIGRAM with "
            "spaces before words is supported.",
            path=str(path),
        )
    return model


def _sentencepiece_steps(model: SentencePieceModel) -> list[Document]:
    """Normalizers that do what SentencePiece does before it splits."""
    steps: list[Document] = []
    if model.charsmap:
        encoded = base64.b64encode(model.charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    if model.remove_extra_whitespaces:
        steps += [_replace_regex(f"{_FIRST} +| +{_LAST}", ""), _replace_regex(" {2,}", " ")]
    if model.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": _METASPACE})
    return [*steps, _replace(" ", _METASPACE)]


def _class(characters: Iterable[str]) -> str:
    """The inside of a pattern's brackets."""
    return "".join(f"\\{one}" if one in r"\[]^-&~" else one for one in sorted(characters))


def _part(name: str) -> Document:
    return {"Sequence": {"id": name, "type_id": 0}}


def _end(token: str) -> Document:
    return {"SpecialToken": {"id": token, "type_id": 0}}


# ------------------------------------------------------------------------------------------------------ CTC


def _ctc(folder: Path, config: Mapping[str, Any]) -> Document:
    """Each character is a token; decoding merges repeats and drops the blank."""
    values = read_json_object(folder / _VOCABULARY)
    language = config.get("target_lang")
    if language is not None:
        nested = values.get(language) if isinstance(language, str) else None
        if not isinstance(nested, dict):
            raise SourceError(f"{folder / _VOCABULARY} has no language {language!r}.", path=str(folder))
        values = nested
    vocab = _vocabulary(folder / _VOCABULARY, values)
    if (folder / "added_tokens.json").is_file():
        path = folder / "added_tokens.json"
        vocab = {**_vocabulary(path, read_json_object(path)), **vocab}
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokens = {role: _token(config, role, default) for role, default in roles.items()}
    delimiter = _token(config, "word_delimiter_token", "|")
    _require(folder, vocab, (tokens["pad_token"], tokens["unk_token"]))
    special = set(tokens.values())
    space = config.get("replace_word_delimiter_char", " ")
    # In the library only a decoder with `cleanup` writes spaces for delimiters.
    steps: list[Document] = [
        {
            "type": "CTC",
            "pad_token": tokens["pad_token"],
            "word_delimiter_token": delimiter,
            "cleanup": space == " ",
        }
    ]
    if space != " ":
        steps.append(_replace(delimiter, str(space)))
    normalizers = [_replace(" ", delimiter)]
    if config.get("do_lower_case"):
        # A vocabulary of capitals. There is no normalizer that makes them, and no decoder that unmakes them.
        characters = map(chr, range(sys.maxunicode + 1))
        upper = [(one, one.upper()) for one in characters if one.upper() != one]
        normalizers += [_replace(one, big) for one, big in upper if len(big) > 1 or big in vocab]
        capitals = sorted({one for token in vocab for one in token if one.lower() != one})
        steps += [_replace(one, one.lower()) for one in capitals]
    return {
        "added_tokens": [
            _added(token, number, special=token in special, lstrip=len(token) > 1, rstrip=len(token) > 1)
            for token, number in sorted(vocab.items(), key=lambda item: item[1])
            if len(token) > 1 or token in special
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False},
        "decoder": _decoders(*steps),
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": tokens["unk_token"]},
    }


# -------------------------------------------------------------------------------------------------- helpers


def _vocabulary(path: Path, values: Mapping[str, object]) -> dict[str, int]:
    vocab: dict[str, int] = {}
    for token, number in values.items():
        if not is_id(number):
            raise SourceError(f"{path} has {number!r} for {token!r}, expected a token id.", path=str(path))
        vocab[token] = number
    if len(set(vocab.values())) != len(vocab):
        raise SourceError(f"{path} has the same id for several tokens.", path=str(path))
    return vocab


def _require(folder: Path, vocab: Mapping[str, int], tokens: Iterable[str]) -> None:
    if missing := next((token for token in tokens if token not in vocab), None):
        raise SourceError(
            f"{folder / _VOCABULARY} has no token {missing!r}, which the tokenizer needs.", path=str(folder)
        )


def _token(config: Mapping[str, Any], role: str, default: str) -> str:
    value = config.get(role, default)
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str) or not content:
        raise SourceError(f"tokenizer_config.json has {value!r} as {role}, expected a token.", role=role)
    return content


def _added(content: str, token_id: int, *, special: bool, lstrip: bool = False, rstrip: bool = False) -> Document:
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": lstrip,
        "rstrip": rstrip,
        "normalized": False,
        "special": special,
    }


def _replace(pattern: str, content: str) -> Document:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def _replace_regex(pattern: str, content: str) -> Document:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _decoders(*steps: Document) -> Document:
    """The steps, then one text without spaces around it."""
    trim = _replace_regex(rf"{_FIRST}\s+|\s+{_LAST}", "")
    return {"type": "Sequence", "decoders": [*steps, {"type": "Fuse"}, trim]}


KINDS: Final[Mapping[str, Callable[[Path, Mapping[str, Any]], Document]]] = {
    "MarianTokenizer": _marian,
    "Wav2Vec2CTCTokenizer": _ctc,
}
"""Name of a class of transformers to what builds its tokenizer."""

_SOUND: Final = (
    *("data2vec-audio", "hubert", "sew", "sew-d", "unispeech", "unispeech-sat"),
    *("wav2vec2", "wav2vec2-bert", "wav2vec2-conformer", "wavlm"),
)
CLASSES: Final[Mapping[str, str]] = {"marian": "MarianTokenizer", **dict.fromkeys(_SOUND, "Wav2Vec2CTCTokenizer")}
"""`model_type` to the class of its tokenizer, where `tokenizer_config.json` names none."""


def make_older_tokenizer(folder: Path) -> str | None:
    """What `tokenizer.json` says for a checkpoint of one of `KINDS`.

    Args:
        folder: Holds the checkpoint.

    Returns:
        The JSON; None: it is of no such kind.

    Raises:
        SourceError: A file is missing or malformed.
    """
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            config.update((key, value) for key, value in read_json_object(folder / name).items() if value is not None)
    model_type = read_json_object(folder / CONFIG).get("model_type")
    named = config.get("tokenizer_class", CLASSES.get(model_type) if isinstance(model_type, str) else None)
    build = KINDS.get(named) if isinstance(named, str) else None
    if build is None or not (folder / _VOCABULARY).is_file():
        return None
    document = {"version": "1.0", "pre_tokenizer": None, "post_processor": None, **build(folder, config)}
    text = json.dumps(document, ensure_ascii=False)
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_str(text)
    # The library has no exceptions of its own.
    except Exception as error:
        raise SourceError(f"{folder / _VOCABULARY} makes no usable tokenizer: {error}.", path=str(folder)) from error
    return text
