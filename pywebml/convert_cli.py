"""`pywebml convert …`: words, and progress for people at a terminal and for log files."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pywebml.errors import OptionsError

if TYPE_CHECKING:
    from pywebml.prepare.convert import Log, OnProgress
    from pywebml.prepare.source import Checkpoint

DEFAULT_MODES = ("fp32", "q8")
DEFAULT_OPSET = 18
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def add_command(commands: Any) -> None:
    """Add `convert` to the words of the command line."""
    parser = commands.add_parser(
        "convert",
        help="convert a model to ONNX and put it into a hub folder",
        description="Convert a model of transformers to ONNX at one or more levels, compare each file with PyTorch, "
        "and put them into HUB/ORG/NAME/REVISION. Nothing appears there when anything fails; what is good is kept for "
        "the next try.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--model-id", metavar="ORG/NAME", help="repository of the Hugging Face hub (HF_ENDPOINT names another hub)"
    )
    source.add_argument("--path", type=Path, metavar="DIR", help="folder with config.json, weights in safetensors, …")
    parser.add_argument(
        "--source-revision", metavar="R", help="branch, tag or commit to take with --model-id (default: main)"
    )
    parser.add_argument("--task", help="what the model is for (default: what it was trained for)")
    levels = parser.add_mutually_exclusive_group()
    levels.add_argument(
        "--modes",
        nargs="+",
        default=list(DEFAULT_MODES),
        metavar="LEVEL",
        help=f"levels to write (default: {' '.join(DEFAULT_MODES)}), of fp32 fp16 q8 int8 uint8 q4 q4f16 bnb4 q2 q2f16",
    )
    levels.add_argument("--quantize", action="store_true", help="write all levels but those of 2 bits")
    parser.add_argument(
        "--external-data",
        nargs="?",
        const="1GB",
        metavar="LIMIT",
        help="put weights into files of their own, of at most LIMIT bytes, such as 500MB (default: 1GB); without this, "
        "only what is too large for one file",
    )
    parser.add_argument(
        "--opset",
        type=int,
        default=DEFAULT_OPSET,
        metavar="N",
        help="version of ONNX's operators, 18 to 25 (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="HUB", help="root of the hub")
    parser.add_argument("--name", metavar="ORG/NAME", help="in the hub (default: that of the source)")
    parser.add_argument(
        "--revision", default="main", metavar="R", help="in the hub, such as v1.0.0 (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="levels to make at the same time")
    parser.add_argument(
        "--no-gqa",
        action="store_true",
        help="without the files of decoders whose caches are shared between past and present",
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that the checkpoint brings along; it can do whatever you can",
    )
    parser.set_defaults(run=_run, extra="convert")


def parse_size(text: str) -> int:
    """`500MB`, `1.5GB`, `64MiB` or plain bytes as bytes. Raises `OptionsError`."""
    found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)\s*([KMG]I?)?B?", text.strip().upper())
    size = 0 if found is None else int(float(found[1]) * _UNITS[found[2] or ""])
    if size < 1:
        raise OptionsError(
            f"'{text}' is no size for --external-data. Give one like 500MB, 1.5GB or 64MiB.",
            field="external-data",
            value=text,
        )
    return size


def _run(arguments: argparse.Namespace) -> None:
    if arguments.source_revision is not None and arguments.model_id is None:
        raise OptionsError(
            "--source-revision belongs to --model-id; a folder given with --path has no revisions.",
            field="source-revision",
            value=arguments.source_revision,
        )
    limit = None if arguments.external_data is None else parse_size(arguments.external_data)
    # PyTorch and its kin take seconds to import, and only this command needs them.
    from pywebml.prepare.convert import USEFUL_MODES, Choices, convert
    from pywebml.prepare.layout import model_folder

    choices = Choices(
        task=arguments.task,
        modes=USEFUL_MODES if arguments.quantize else tuple(arguments.modes),
        opset=arguments.opset,
        external_data=limit,
        trust_remote_code=arguments.trust_remote_code,
        with_gqa=not arguments.no_gqa,
        jobs=arguments.jobs,
    )
    name = arguments.model_id or arguments.path.resolve().name if arguments.name is None else arguments.name
    # Before anything is downloaded.
    choices.check()
    model_folder(arguments.output, name, arguments.revision)
    checkpoint = _open(arguments)
    with progress() as (log, on_progress):
        convert(
            checkpoint,
            arguments.output,
            name,
            choices,
            revision=arguments.revision,
            log=log,
            on_progress=on_progress,
        )


def _open(arguments: argparse.Namespace) -> Checkpoint:
    from pywebml.prepare.source import download_checkpoint, open_checkpoint

    model_id: str | None = arguments.model_id
    if model_id is not None:
        print(f"Taking {model_id} from the Hugging Face hub", flush=True)
        return download_checkpoint(
            model_id, arguments.source_revision or "main", trust_remote_code=arguments.trust_remote_code
        )
    folder = arguments.path.resolve()
    return open_checkpoint(folder, f"local folder '{folder.name}'")


@contextmanager
def progress() -> Iterator[tuple[Log, OnProgress]]:
    """Lines as they are, and on a terminal a bar below them."""

    def say(line: str) -> None:
        print(line, flush=True)

    if not sys.stderr.isatty():
        yield say, lambda *_: None
        return
    from tqdm import tqdm

    with tqdm(unit="file", leave=False, bar_format="{desc}: {n_fmt}/{total_fmt} |{bar}| {elapsed}") as bar:

        def show(done: int, total: int, title: str) -> None:
            bar.total = max(total, 1)
            bar.n = done
            bar.set_description_str(title)
            bar.refresh()

        yield lambda line: tqdm.write(line), show
