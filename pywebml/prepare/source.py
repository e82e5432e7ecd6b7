"""Checkpoints to convert: a local folder, or a repository of the Hugging Face hub.

Weights are read from safetensors only. Pickled checkpoints can run code when they are read, so they are refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from pywebml.errors import SourceError

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
CARD = "README.md"

TOKENIZER_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "target_vocab.json",
    "merges.txt",
    "bpe.codes",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "tokenizer.model",
    "source.spm",
    "target.spm",
    "normalizer.json",
    "chat_template.jinja",
    "chat_template.json",
)
VOCABULARIES = (
    TOKENIZER,
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "tokenizer.model",
)
"""With one of these a folder has a tokenizer."""
COPIED_FILES = (
    *TOKENIZER_FILES,
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "[0-9]_*/config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY.md",
)
"""Files (patterns) that go into the hub as they are, beside the configuration."""

_SHARDS = "model-*-of-*.safetensors"
_WANTED = (CONFIG, *COPIED_FILES, CARD, WEIGHTS, WEIGHTS_INDEX, _SHARDS)
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checked folder.

    Attributes:
        folder: Holds the configuration, the weights, and what else the model has.
        origin: Where it comes from, in words for the report and the model card.
        licence: Identifier from the original's model card; empty when it names none.
        arguments: What names it on the command line of `pywebml convert`.
    """

    folder: Path
    origin: str
    licence: str
    arguments: str = "--path CHECKPOINT"

    def copied_files(self) -> list[Path]:
        """Those that go into the hub as they are, below the folder, in order."""
        found = {path for pattern in COPIED_FILES for path in self.folder.glob(pattern) if path.is_file()}
        return sorted(path.relative_to(self.folder) for path in found)

    def weights(self) -> list[Path]:
        """The files with weights, in order."""
        return sorted(weight_files(self.folder))


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a checkpoint's weights.

    Raises:
        SourceError: The list of them cannot be read.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / WEIGHTS_INDEX).is_file():
        return []
    names = read_json_object(folder / WEIGHTS_INDEX).get("weight_map")
    shards = set(names.values()) if isinstance(names, dict) else set()
    if not shards or not all(isinstance(name, str) and fnmatchcase(name, "*.safetensors") for name in shards):
        raise SourceError(f"{folder / WEIGHTS_INDEX} does not tell the files of the weights.", path=str(folder))
    if wrong := next((name for name in sorted(shards) if Path(name).name != name), None):
        raise SourceError(f"{folder / WEIGHTS_INDEX} names '{wrong}', which is no file beside it.", path=str(folder))
    return [folder / name for name in sorted(shards)]


def open_checkpoint(
    folder: Path, origin: str, licence: str | None = None, arguments: str = "--path CHECKPOINT"
) -> Checkpoint:
    """Check that a folder holds what a conversion reads.

    Args:
        folder: Holds `config.json` and weights in safetensors, in one file or in shards.
        origin: See `Checkpoint`.
        licence: See `Checkpoint`; default what the folder's model card says.
        arguments: See `Checkpoint`.

    Raises:
        SourceError: Something is missing or not safe to read.
    """
    if not folder.is_dir():
        raise SourceError(f"There is no folder {folder}. Give the folder of a checkpoint.", path=str(folder))
    read_json_object(folder / CONFIG)
    weights = weight_files(folder)
    if not weights:
        _refuse_without_weights([path.name for path in folder.iterdir()], str(folder))
    if missing := [path.name for path in weights if not path.is_file()]:
        raise SourceError(
            f"{folder} lacks {len(missing)} of the {len(weights)} files that {WEIGHTS_INDEX} names, such as "
            f"{missing[0]}. Fetch it whole.",
            path=str(folder),
            files=missing,
        )
    for path in weights:
        with path.open("rb") as file:
            if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                raise SourceError(
                    f"{path} is a Git LFS pointer, not the weights. Fetch them with `git lfs pull`.", path=str(path)
                )
    return Checkpoint(folder, origin, _licence(folder / CARD) if licence is None else licence, arguments)


def _refuse_without_weights(names: Iterable[str], place: str) -> None:
    pickled = sorted(name for name in names if Path(name).suffix in _PICKLED and name != "training_args.bin")
    if pickled:
        raise SourceError(
            f"{place} has weights only as {', '.join(pickled)}. Such files can run code when they are read, so they "
            "are refused. Use a revision with safetensors, or convert the file in a place that you trust.",
            path=place,
            files=pickled,
        )
    raise SourceError(f"{place} has no {WEIGHTS}. Give one with weights in safetensors.", path=place)


def download_checkpoint(model_id: str, revision: str, *, trust_remote_code: bool = False) -> Checkpoint:
    """Take a repository from the Hugging Face hub (or `HF_ENDPOINT`) into its usual cache.

    Args:
        model_id: `organisation/name`.
        revision: Branch, tag or commit.
        trust_remote_code: Take Python code along.

    Raises:
        SourceError: The hub does not answer, has no such repository, or the repository is not usable.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    wanted = [*_WANTED, "*.py"] if trust_remote_code else list(_WANTED)
    try:
        info = HfApi().model_info(model_id, revision=revision)
    # The library raises its own errors, those of its HTTP client and OSError, depending on its version.
    except Exception as error:
        if _was_refused(error):
            raise _hub_error(error, model_id, revision) from error
        # Without a network, what was taken before may still be here.
        try:
            folder = Path(snapshot_download(model_id, revision=revision, allow_patterns=wanted, local_files_only=True))
        except Exception:
            raise _hub_error(error, model_id, revision) from error
    else:
        names = [sibling.rfilename for sibling in info.siblings or ()]
        place = f"{model_id} at {revision}"
        if CONFIG not in names:
            raise SourceError(
                f"{place} has no {CONFIG}, so it is no model of transformers. Is it an adapter, or of another library?",
                model_id=model_id,
                revision=revision,
            )
        if not {WEIGHTS, WEIGHTS_INDEX} & set(names):
            _refuse_without_weights(names, place)
        try:
            folder = Path(snapshot_download(model_id, revision=revision, allow_patterns=wanted))
        except Exception as error:
            raise _hub_error(error, model_id, revision) from error
    # A snapshot's folder is named after the commit, which means the same tomorrow.
    commit = folder.name
    return open_checkpoint(
        folder,
        f"{_without_credentials(constants.ENDPOINT)}/{model_id} at {commit}",
        arguments=f"--model-id {model_id} --source-revision {commit}",
    )


def _without_credentials(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")


def _status(error: Exception) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _was_refused(error: Exception) -> bool:
    """Whether the hub has answered, and will answer the same again."""
    from huggingface_hub.errors import HFValidationError

    status = _status(error)
    return isinstance(error, HFValidationError) or (status is not None and 400 <= status < 500 and status != 429)


def _hub_error(error: Exception, model_id: str, revision: str) -> SourceError:
    """What happened and what to do, in place of the library's own words."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = _without_credentials(constants.ENDPOINT)
    status = _status(error)
    login = "log in with `hf auth login`, or set HF_TOKEN"
    if isinstance(error, HFValidationError):
        message = f"'{model_id}' cannot be the name of a repository. Give it as ORG/NAME."
    elif isinstance(error, GatedRepoError) or status == 403:
        message = (
            f"{model_id} is gated: {hub} does not give it to you. Accept its terms at {hub}/{model_id}, then {login}."
        )
    elif isinstance(error, RevisionNotFoundError):
        message = f"{model_id} has no revision '{revision}'. Give a branch, tag or commit with --source-revision."
    elif isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        message = f"{hub} has no repository {model_id}, or it is private. Check the name; for a private one {login}."
    elif isinstance(error, OfflineModeIsEnabled):
        message = f"{model_id} is not in the cache, and HF_HUB_OFFLINE forbids the network."
    elif status is not None:
        message = f"{hub} answered with status {status} when asked for {model_id}. Try again later."
    else:
        reason = " ".join(str(error).split()).rstrip(".")
        message = (
            f"Cannot take {model_id} at {revision} from {hub}: {reason}. Check the network and HF_ENDPOINT, or give a "
            "local folder with --path."
        )
    return SourceError(message, model_id=model_id, revision=revision, status=status)


def read_json_object(path: Path) -> dict[str, object]:
    """A JSON file that must hold an object.

    Raises:
        SourceError: It is missing, is not JSON, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SourceError(f"{path.parent} has no {path.name}.", path=str(path)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path} is not readable as JSON: {error}.", path=str(path)) from error
    if not isinstance(value, dict):
        raise SourceError(f"{path} holds {type(value).__name__}, expected an object.", path=str(path))
    return value


def _licence(card: Path) -> str:
    """`license:` of the block between `---` lines with which a model card begins; of a list, its entries."""
    if not card.is_file():
        return ""
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
    if not lines or lines[0].strip() != "---":
        return ""
    for index, line in enumerate(lines[1:], start=2):
        key, _, value = line.partition(":")
        if key.strip() == "---":
            break
        if key == "license":
            entries = [value]
            for further in lines[index:] if not value.strip() else ():
                if not further.lstrip().startswith("- "):
                    break
                entries.append(further.lstrip().removeprefix("- "))
            return ", ".join(entry.strip().strip("'\"") for entry in entries if entry.strip())
    return ""
