"""Checkpoints to convert: a local folder, or a repository of the Hugging Face hub.

Weights are read from safetensors only. Pickled checkpoints can run code when they are read, so they are refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pywebml.errors import SourceError

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
CARD = "README.md"
COPIED_FILES = (CONFIG, TOKENIZER, "tokenizer_config.json", "special_tokens_map.json")
"""Files that go into the hub as they are."""

_WANTED = (*COPIED_FILES, CARD, WEIGHTS, WEIGHTS_INDEX, "model-*-of-*.safetensors")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checked folder.

    Attributes:
        folder: Holds the configuration, the tokenizer and the weights.
        origin: Where it comes from, in words for the report and the model card.
        licence: Identifier from the original's model card; empty when it names none.
    """

    folder: Path
    origin: str
    licence: str


def open_checkpoint(folder: Path, origin: str, licence: str | None = None) -> Checkpoint:
    """Check that a folder holds what a conversion reads.

    Args:
        folder: Holds `config.json`, `tokenizer.json` and weights in safetensors.
        origin: See `Checkpoint`.
        licence: See `Checkpoint`; default what the folder's model card says.

    Raises:
        SourceError: Something is missing or not safe to read.
    """
    if not folder.is_dir():
        raise SourceError(f"There is no folder {folder}. Give the folder of a checkpoint.", path=str(folder))
    read_json_object(folder / CONFIG)
    if not (folder / TOKENIZER).is_file():
        raise SourceError(
            f"{folder} has no {TOKENIZER}. Save the tokenizer in its fast form first: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder).",
            path=str(folder),
        )
    if not any((folder / name).is_file() for name in (WEIGHTS, WEIGHTS_INDEX)):
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
        if pickled:
            raise SourceError(
                f"{folder} has weights only as {', '.join(pickled)}. Such files can run code when they are read, so "
                "they are refused. Use a revision with safetensors, or convert the file in a place that you trust.",
                path=str(folder),
                files=pickled,
            )
        raise SourceError(f"{folder} has no {WEIGHTS}. Give a folder with weights in safetensors.", path=str(folder))
    return Checkpoint(folder=folder, origin=origin, licence=_licence(folder / CARD) if licence is None else licence)


def download_checkpoint(model_id: str, revision: str) -> Checkpoint:
    """Take a repository from the Hugging Face hub (or `HF_ENDPOINT`) into its usual cache.

    Args:
        model_id: `organisation/name`.
        revision: Branch, tag or commit.

    Raises:
        SourceError: The hub does not answer, has no such repository, or the repository is not usable.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model_id, revision=revision, allow_patterns=list(_WANTED)))
    # The library raises its own errors, those of its HTTP client and OSError, depending on its version.
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise SourceError(
            f"Cannot take {model_id} at {revision} from the Hugging Face hub: {reason}. Check the name, the revision "
            "and the network, or give a local folder with --path.",
            model_id=model_id,
            revision=revision,
        ) from error
    # A snapshot's folder is named after the commit that the revision meant.
    return open_checkpoint(folder, f"https://huggingface.co/{model_id} at {folder.name}")


def read_json_object(path: Path) -> dict[str, object]:
    """A JSON file that must hold an object.

    Raises:
        SourceError: It is missing, is not JSON, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SourceError(f"{path.parent} has no {path.name}.", path=str(path)) from error
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} is not readable as JSON: {error}.", path=str(path)) from error
    if not isinstance(value, dict):
        raise SourceError(f"{path} holds {type(value).__name__}, expected an object.", path=str(path))
    return value


def _licence(card: Path) -> str:
    """`license:` of the block between `---` lines with which a model card begins."""
    if not card.is_file():
        return ""
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return ""
    for line in lines[1:]:
        key, _, value = line.partition(":")
        if key.strip() == "---":
            break
        if key == "license":
            return value.strip().strip("'\"")
    return ""
