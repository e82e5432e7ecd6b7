"""`pywebml …` on the command line. CPython only."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pywebml
from pywebml import convert_cli, inspect_cli, models_cli
from pywebml.errors import PywebmlError


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
        return _complain(_missing(error, getattr(arguments, "extra", "native")))
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

    convert_cli.add_command(commands)
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


if __name__ == "__main__":
    sys.exit(main())
