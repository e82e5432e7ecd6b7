"""`pywebml inspect …`: what is in model files, for people at a terminal and for programs."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from pathlib import Path
from typing import Any

from pywebml.errors import OptionsError
from pywebml.inspecting import InspectedFile, inspect_url, inspect_what_is_here
from pywebml.inspecting.tables import LARGEST, to_plain, to_text
from pywebml.platform import get_platform


def add_command(commands: Any) -> None:
    """Add `inspect` to the words of the command line."""
    parser = commands.add_parser(
        "inspect",
        help="tell what is in ONNX and safetensors files",
        description="Tell what is in an ONNX or safetensors file, or in every such file of a folder. Weights are not "
        "read; of a file on a server, only its description is transferred.",
    )
    parser.add_argument("target", metavar="FILE|DIR|URL")
    parser.add_argument("--json", action="store_true", help="print plain data for programs, with all tensors")
    parser.add_argument(
        "--largest", type=int, default=LARGEST, metavar="N", help="tensors and operators to show (default: %(default)s)"
    )
    parser.add_argument(
        "--access-token-env", metavar="NAME", help="environment variable with the access token for a private URL"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    files = asyncio.run(_inspect(arguments))
    if arguments.json:
        # Names in files may hold what a terminal obeys, and halves of characters that cannot be written.
        print(json.dumps(to_plain(files), indent=2))
    else:
        print(to_text(files, max(arguments.largest, 0)))


async def _inspect(arguments: argparse.Namespace) -> list[InspectedFile]:
    target: str = arguments.target
    if arguments.largest < 0:
        raise OptionsError("--largest needs a number from 0 on.", field="largest", value=arguments.largest)
    platform = await get_platform()
    is_url = target.lower().startswith(("http://", "https://"))
    if arguments.access_token_env is None:
        headers = {}
    elif token := os.environ.get(arguments.access_token_env):
        headers = {"authorization": f"Bearer {token}"}
    else:
        raise OptionsError(
            f"The environment variable {arguments.access_token_env} has no access token.",
            field="access-token-env",
            value=arguments.access_token_env,
        )
    if is_url:
        return await inspect_url(platform, target, headers=headers)
    return await inspect_what_is_here(platform, Path(target))
