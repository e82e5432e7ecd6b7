"""A tokenizer from the files that a model has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pywebml.errors import TokenizerError
from pywebml.tokenization.fields import Fields, is_id, without_collector, wrong_type
from pywebml.tokenization.older_files import FLAGS, SENTENCEPIECE_FILES, added_token, older_document
from pywebml.tokenization.tokenizer import SPECIAL_ROLES, Tokenizer, build_tokenizer

VOCABULARY_FILES: Final[tuple[tuple[str, ...], ...]] = (
    ("tokenizer.json",),
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
    *((name,) for name in SENTENCEPIECE_FILES),
)
"""Of these sets of files a model needs one; the first that it has whole is used."""

OPTIONAL_FILES: Final = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""What is used besides, when it is there; so is `additional_chat_templates/*.jinja`."""


def tokenizer_from_files(files: Mapping[str, bytes]) -> Tokenizer:
    """Build a tokenizer.

    Args:
        files: Names as in the model's folder, and contents: one of the sets of `VOCABULARY_FILES`, and whatever there
            is of `OPTIONAL_FILES`.

    Raises:
        TokenizerError: A file is missing or malformed, or has a component that is not supported. Details: `place`.
    """
    with without_collector():
        config = _config(files)
        if "tokenizer.json" in files:
            fields = Fields.parse(files["tokenizer.json"], "tokenizer.json")
        else:
            document = older_document(config, files)
            document["added_tokens"] = _added(config, files, document["added_tokens"])
            fields = Fields(document, "tokenizer files")
        return build_tokenizer(fields, config, files)


def _config(files: Mapping[str, bytes]) -> Fields:
    """`tokenizer_config.json`, with the special tokens that only `special_tokens_map.json` has."""
    values: dict[str, object] = {}
    if "special_tokens_map.json" in files:
        special = Fields.parse(files["special_tokens_map.json"], "special_tokens_map.json")
        values = {name: value for name, value in special.items() if name in SPECIAL_ROLES}
    if "tokenizer_config.json" in files:
        config = Fields.parse(files["tokenizer_config.json"], "tokenizer_config.json")
        values.update((name, value) for name, value in config.items() if value is not None)
    return Fields(values, "tokenizer_config.json")


def _added(config: Fields, files: Mapping[str, bytes], special: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All added tokens: those with an id in `added_tokens.json` or the configuration, then the family's own."""
    by_content = {token["content"]: token for token in special}
    found: dict[int, dict[str, Any]] = {}
    if "added_tokens.json" in files:
        for token, value in Fields.parse(files["added_tokens.json"], "added_tokens.json").items():
            if not is_id(value):
                raise wrong_type(f"added_tokens.json[{token!r}]", "a token id", value)
            found[value] = by_content.get(token) or added_token(token, value, normalized=True)
    if config.has("added_tokens_decoder"):
        decoder = config.child("added_tokens_decoder")
        for key, value in decoder.items():
            place = decoder.place_of(key)
            number = int(key) if key.isascii() and key.isdigit() and len(key) <= _LONGEST_ID else None
            if not is_id(number):
                raise TokenizerError(f"{place} is no token id. The file is damaged.", place=place)
            item = Fields(value, place)
            flags = {name: item.boolean(name, False) for name in FLAGS}
            found[number] = added_token(item.string("content"), number, **flags)
    listed = {token["content"] for token in found.values()}
    return [
        *(token for _, token in sorted(found.items())),
        *(token for token in special if token["content"] not in listed),
    ]


_LONGEST_ID: Final = 10
