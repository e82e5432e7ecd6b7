"""`pywebml …` on the command line. CPython only."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pywebml
from pywebml import inspect_cli, models_cli
from pywebml.errors import OptionsError, PywebmlError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Words after `pywebml`; default those of the process.

    Returns:
        Exit status: 0 for success, 1 for an error of this package, whose message is on standard error, 130 when the
        user stopped it. Wrong words end in `SystemExit` with 2.
    """
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # Of words that may stand before and after options, argparse gives back the second half.
    if rest and (not hasattr(arguments, "fields") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.fields += rest
    try:
        arguments.run(arguments)
    except ModuleNotFoundError as error:
        return _complain(_missing(error, "native"))
    except PywebmlError as error:
        return _complain(error)
    except KeyboardInterrupt:
        print("pywebml: stopped", file=sys.stderr)
        return 130
    return 0


def _complain(error: PywebmlError) -> int:
    print(f"pywebml: {type(error).__name__}: {error}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pywebml", description="Models for the browser and for CPython.")
    parser.add_argument("--version", action="version", version=f"pywebml {pywebml.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    convert = commands.add_parser(
        "convert",
        help="convert an encoder to ONNX and put it into a hub folder",
        description="Convert an encoder of text to ONNX, compare it with PyTorch, and put it into "
        "HUB/ORG/NAME/REVISION. Nothing is written when anything fails.",
    )
    source = convert.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--model-id", metavar="ORG/NAME", help="repository of the Hugging Face hub (HF_ENDPOINT names another hub)"
    )
    source.add_argument("--path", type=Path, metavar="DIR", help="folder with config.json, tokenizer.json, safetensors")
    convert.add_argument(
        "--source-revision", metavar="R", help="branch, tag or commit to take with --model-id (default: main)"
    )
    convert.add_argument("--task", default="feature-extraction", help="default: %(default)s")
    convert.add_argument(
        "--modes", nargs="+", default=["fp32", "q8"], metavar="DTYPE", help="fp32 and q8 are possible (default: both)"
    )
    convert.add_argument("--opset", type=int, default=18, help="version of ONNX's operators (default: %(default)s)")
    convert.add_argument("--output", type=Path, required=True, metavar="HUB", help="root of the hub")
    convert.add_argument("--name", metavar="ORG/NAME", help="in the hub (default: that of the source)")
    convert.add_argument(
        "--revision", default="main", metavar="R", help="in the hub, such as v1.0.0 (default: %(default)s)"
    )
    convert.set_defaults(run=_convert)
    models_cli.add_commands(commands)
    inspect_cli.add_command(commands)
    try:
        from pywebml.prepare.settings_cli import add_commands
    except ModuleNotFoundError as error:
        missing = _missing(error, "native")
        settings = commands.add_parser("settings", help="make, sign and publish your own settings collections")
        settings.add_argument("words", nargs=argparse.REMAINDER)
        settings.set_defaults(run=lambda arguments: _refuse(missing))
        return parser
    add_commands(commands)
    return parser


def _missing(error: ModuleNotFoundError, extra: str) -> PywebmlError:
    """What to install; a missing module of our own is a fault of ours and goes on."""
    if error.name is None or error.name.partition(".")[0] == "pywebml":
        raise error
    return PywebmlError(
        f"This command needs the package '{error.name}'. Install what it takes: pip install \"pywebml[{extra}]\"",
        package=error.name,
    )


def _refuse(error: PywebmlError) -> None:
    raise error


def _convert(arguments: argparse.Namespace) -> None:
    model_id: str | None = arguments.model_id
    if arguments.source_revision is not None and model_id is None:
        raise OptionsError(
            "--source-revision belongs to --model-id; a folder given with --path has no revisions.",
            field="source-revision",
            value=arguments.source_revision,
        )
    # PyTorch and its kin take seconds to import, and only this command needs them.
    try:
        from pywebml.prepare.convert import convert
        from pywebml.prepare.source import download_checkpoint, open_checkpoint
    except ModuleNotFoundError as error:
        raise _missing(error, "convert") from error

    if model_id is not None:
        print(f"Taking {model_id} from the Hugging Face hub", flush=True)
        checkpoint = download_checkpoint(model_id, arguments.source_revision or "main")
        name = model_id
    else:
        folder = arguments.path.resolve()
        checkpoint = open_checkpoint(folder, f"local folder '{folder.name}'")
        name = folder.name
    convert(
        checkpoint,
        arguments.output,
        arguments.name or name,
        revision=arguments.revision,
        task=arguments.task,
        modes=arguments.modes,
        opset=arguments.opset,
        log=lambda line: print(line, flush=True),
    )


if __name__ == "__main__":
    sys.exit(main())
