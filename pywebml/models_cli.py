"""`pywebml models …`: the stored models of this machine, for people at a terminal."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import os
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar
from urllib.parse import urlsplit

from pywebml.errors import OptionsError, StoreError
from pywebml.hub import Selection, StoredModels, Verification
from pywebml.library import plan, prefetch, stored_models
from pywebml.options import MODEL_HUBS, PipelineOptions, configure, get_configuration
from pywebml.planning import Plan
from pywebml.platform import get_platform
from pywebml.progress import ProgressEvent
from pywebml.sources import hub_address
from pywebml.transfer import export_models, import_models, storage_usage

Result = TypeVar("Result")

QUIET_SECONDS = 0.5
"""What takes longer shows how far it is."""

_TICK_SECONDS = 0.2
# Where lines cannot be written over, in a log file.
_LOG_SECONDS = 10.0


class ProgressLine:
    """A line on standard error that tells how far something is, for as long as it takes.

    Args:
        title: What is going on.
        stream: Where it goes; default standard error.
    """

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self._title = title
        self._stream = stream or sys.stderr
        self._state = ""
        self._width = 0

    def tell(self, state: str) -> None:
        """How far it is now."""
        self._state = state

    def on_event(self, event: ProgressEvent) -> None:
        """Follow a download (all of its files together) or an import."""
        if event.type == "loading":
            self.tell(f"{event.progress:.0f} % of {_size(event.total)}")
        elif event.type == "importing":
            self.tell(f"{event.metadata['file']} {event.progress:.0f} %")

    async def during(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Await `work`, with the line below the cursor."""
        showing = asyncio.ensure_future(self._show())
        try:
            return await work
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)
            self._clear()

    async def _show(self) -> None:
        started = time.monotonic()
        await asyncio.sleep(QUIET_SECONDS)
        while True:
            text = f"{self._title}: {self._state}".removesuffix(": ") + f" ({time.monotonic() - started:.0f} s)"
            if self._stream.isatty():
                self._stream.write(f"\r{text.ljust(self._width)}")
                self._width = len(text)
            else:
                self._stream.write(f"{text}\n")
            self._stream.flush()
            await asyncio.sleep(_TICK_SECONDS if self._stream.isatty() else _LOG_SECONDS)

    def _clear(self) -> None:
        if self._width:
            self._stream.write(f"\r{' ' * self._width}\r")
            self._stream.flush()


def add_commands(commands: Any) -> None:
    """Add `models` to the commands of `pywebml`."""
    models = commands.add_parser(
        "models",
        help="list, fetch, check, move and delete the models stored on this machine",
        description="List, fetch, check, move and delete the models stored on this machine. They lie in the folder "
        "that PYWEBML_CACHE_DIR names, else where the operating system keeps caches.",
    )
    parts = models.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, work: Callable[[argparse.Namespace], Coroutine[Any, Any, None]], text: str) -> Any:
        parser = parts.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        parser.set_defaults(run=lambda arguments: asyncio.run(work(arguments)))
        return parser

    _add_selection(add("list", _list, "list stored models"))
    _add_selection(add("files", _files, "list the files of stored models"))
    add("usage", _usage, "tell how much room stored models take")
    for name, work, text in (
        ("plan", _plan, "tell which files a model needs, how large they are, and what of them is here"),
        ("prefetch", _prefetch, "download everything that a model needs"),
    ):
        _add_options(add(name, work, text))
    _add_selection(add("verify", _verify, "compare stored files with their hashes and remove damaged ones"))
    _add_selection(add("pin", _pin, "keep models when others need room"))
    _add_selection(add("unpin", _unpin, "no longer keep models when others need room"))
    _add_selection(
        add("delete", _delete, "delete models; with --task or --engine, only files that nothing else is using")
    )
    purge = add("purge", _purge, "delete all revisions of a model but some")
    purge.add_argument("--keep", action="append", required=True, metavar="R", help="revision that stays; repeatable")
    _add_selection(purge, model_nargs=None, revision=False)
    export = add("export", _export, "write models to a folder, or to an archive if TARGET ends in .tar")
    export.add_argument("target", type=Path, metavar="TARGET")
    _add_selection(export)
    bring = add("import", _import, "read models from a folder or a .tar archive, as if they came from a hub")
    bring.add_argument("source", type=Path, metavar="SOURCE")
    _add_hub(bring, required=True)


def _add_hub(parser: Any, *, required: bool = False) -> None:
    hub = parser.add_mutually_exclusive_group(required=required)
    hub.add_argument("--hub", choices=MODEL_HUBS, help="a public hub")
    hub.add_argument("--hub-root-url", metavar="URL", help="root of any hub")
    parser.add_argument(
        "--hub-url-template",
        metavar="T",
        help="where models are below --hub-root-url (default: {model}/{revision})",
    )


def _add_selection(parser: Any, *, model_nargs: str | None = "?", revision: bool = True) -> None:
    parser.add_argument("model", nargs=model_nargs, metavar="ORG/NAME")
    parser.set_defaults(revision=None)
    if revision:
        parser.add_argument("--revision", metavar="R", help="only this branch, tag or commit")
    parser.add_argument("--task", metavar="TASK", help="only files that this task is using")
    parser.add_argument("--engine", metavar="ID", help="only files that the engine of this id is using")
    _add_hub(parser)


def _add_options(parser: Any) -> None:
    parser.add_argument("model", nargs="?", metavar="ORG/NAME", help="default: that of the task")
    parser.add_argument("--task", default="feature-extraction", help="default: %(default)s")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit (default: main)")
    parser.add_argument(
        "--dtype",
        action="append",
        metavar="DTYPE",
        help="precision, such as q8 (default) or fp32; for models of several files MODULE=DTYPE, repeatable",
    )
    parser.add_argument("--engine", metavar="ID", help="engine that the files are kept for")
    parser.add_argument(
        "--access-token-env", metavar="NAME", help="environment variable with the access token of a private hub"
    )
    _add_hub(parser, required=True)


async def _list(arguments: argparse.Namespace) -> None:
    models = await (await stored_models()).models(await _selection(arguments))
    if not models:
        print("No models are stored.")
        return
    _print_table(
        ("MODEL", "REVISION", "HUB", ">FILES", ">SIZE", "LAST USED", "TASKS", "ENGINES", "PINNED"),
        [
            (
                *(model.model, model.revision, model.hub, str(model.files), _size(model.size), _date(model.last_used)),
                *(", ".join(model.task_names), ", ".join(model.engine_ids), "pinned" if model.pinned else ""),
            )
            for model in models
        ],
    )
    print(f"{len(models)} in all, {_size(sum(model.size for model in models))}")


async def _files(arguments: argparse.Namespace) -> None:
    files = await (await stored_models()).files(await _selection(arguments))
    if not files:
        print("No files are stored.")
        return
    _print_table(
        ("MODEL", "REVISION", "FILE", ">SIZE", "UPDATED", "VERIFIED", "SHA-256"),
        [
            (
                *(file.model, file.revision, file.path, _size(file.size)),
                *(_date(file.updated), _date(file.verified), file.sha256),
            )
            for file in files
        ],
    )


async def _usage(arguments: argparse.Namespace) -> None:
    usage = await storage_usage()
    available = "unknown" if usage.available is None else _size(usage.available)
    _print_table(
        ("", ">"),
        [
            ("Stored files", _size(usage.files)),
            ("Unfinished downloads", _size(usage.drafts)),
            ("Free on the disk", available),
        ],
    )


async def _plan(arguments: argparse.Namespace) -> None:
    options = _options(arguments)
    _print_plan(await ProgressLine("Planning").during(plan(options)))


async def _prefetch(arguments: argparse.Namespace) -> None:
    options = _options(arguments)
    line = ProgressLine(f"Downloading {options.model_id or options.task_name}")
    planned = await line.during(prefetch(options, on_progress=line.on_event))
    made = planned.options
    print(
        f"{made.model_id} ({made.model_revision}) is here: {_size(planned.total)}, {_size(planned.missing)} of it new."
    )


async def _verify(arguments: argparse.Namespace) -> None:
    stored, selection = await stored_models(), await _selection(arguments)
    total = len(await stored.files(selection))
    results: list[Verification] = []
    line = ProgressLine("Verifying")

    def tell(result: Verification) -> None:
        results.append(result)
        line.tell(f"{len(results)} of {total} files")

    await line.during(stored.verify(selection, tell))
    damaged = [result.file for result in results if not result.ok]
    for file in damaged:
        print(f"damaged: {file.model} ({file.revision}) {file.path}")
    if damaged:
        raise StoreError(
            f"{len(damaged)} of {total} files were damaged and have been removed; what needs them downloads them again."
        )
    print(f"All {total} files are what they were when they were stored.")


async def _pin(arguments: argparse.Namespace) -> None:
    count = await (await stored_models()).pin(await _selection(arguments))
    print(f"Pinned {count} files.")


async def _unpin(arguments: argparse.Namespace) -> None:
    count = await (await stored_models()).pin(await _selection(arguments), False)
    print(f"Unpinned {count} files.")


async def _delete(arguments: argparse.Namespace) -> None:
    await _freed(arguments, lambda stored, selection: stored.delete(selection))


async def _purge(arguments: argparse.Namespace) -> None:
    await _freed(
        arguments,
        lambda stored, selection: stored.purge_revisions(arguments.model, arguments.keep, selection),
    )


async def _freed(
    arguments: argparse.Namespace, work: Callable[[StoredModels, Selection], Coroutine[Any, Any, int]]
) -> None:
    stored, selection = await stored_models(), await _selection(arguments)
    freed = await ProgressLine("Deleting").during(work(stored, selection))
    print(f"Freed {_size(freed)}.")


async def _export(arguments: argparse.Namespace) -> None:
    selection = await _selection(arguments)
    size = sum(model.size for model in await (await stored_models()).models(selection))
    line = ProgressLine(f"Writing {_size(size)} to {arguments.target}")
    await line.during(export_models(selection, target=arguments.target))
    print(f"Wrote {_size(size)} to {arguments.target}.")


async def _import(arguments: argparse.Namespace) -> None:
    line = ProgressLine(f"Reading {arguments.source}")
    imported = await line.during(import_models(arguments.source, _hub_options(arguments), on_progress=line.on_event))
    for model, revision in imported:
        print(f"Imported {model} ({revision}).")


def _hub_options(arguments: argparse.Namespace, **fields: Any) -> PipelineOptions:
    if arguments.hub_url_template is not None and arguments.hub_root_url is None:
        raise OptionsError(
            "--hub-url-template belongs to --hub-root-url.",
            field="hub-url-template",
            value=arguments.hub_url_template,
        )
    return PipelineOptions(
        model_hub=arguments.hub,
        model_hub_root_url=arguments.hub_root_url,
        model_hub_url_template=arguments.hub_url_template,
        **fields,
    )


async def _selection(arguments: argparse.Namespace) -> Selection:
    options = _hub_options(arguments)
    hub = None
    if arguments.hub is not None or arguments.hub_root_url is not None:
        hub = hub_address(await get_platform(), get_configuration(), options).owner_prefix
    return Selection(
        hub=hub,
        model=arguments.model,
        revision=arguments.revision,
        task_name=arguments.task,
        engine_id=arguments.engine,
    )


def _options(arguments: argparse.Namespace) -> PipelineOptions:
    options = _hub_options(
        arguments,
        task_name=arguments.task,
        model_id=arguments.model,
        model_revision=arguments.revision,
        dtype=_dtype(arguments.dtype),
        engine_id=arguments.engine,
    )
    if arguments.access_token_env is not None:
        _use_token(arguments, arguments.access_token_env)
    return options


def _dtype(words: Sequence[str] | None) -> str | dict[str, str] | None:
    if not words:
        return None
    if len(words) == 1 and "=" not in words[0]:
        return words[0]
    pairs = [word.partition("=") for word in words]
    if not all(sign for _, sign, _ in pairs):
        raise OptionsError(
            "Give --dtype once, or once for each module, as MODULE=DTYPE.", field="dtype", value=list(words)
        )
    return {module: dtype for module, _, dtype in pairs}


def _use_token(arguments: argparse.Namespace, name: str) -> None:
    token = os.environ.get(name)
    if not token:
        raise OptionsError(f"The environment variable {name} has no access token.", field=name, value=None)
    root = urlsplit(arguments.hub_root_url or "https://huggingface.co/")
    if arguments.hub == "mozilla":
        raise OptionsError("Mozilla's hub takes no access token.", field="access-token-env", value=name)
    configure(hub_access_tokens={f"{root.scheme}://{root.netloc}": token})


def _print_plan(planned: Plan) -> None:
    _print_table(
        ("FILE", "FOR", ">SIZE", "STORED"),
        [
            (
                *(file.file.path, file.file.purpose, "unknown" if file.size is None else _size(file.size)),
                "yes" if file.stored else f"{_size(file.loaded)} of it" if file.loaded else "no",
            )
            for file in planned.files
        ],
    )
    made = planned.options
    print(f"{made.model_id} ({made.model_revision}): {_size(planned.total)}, {_size(planned.missing)} to download")


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need to be; a head with `>` before it is of one that is flush right. Empty columns and
    heads are left out."""
    kept = [index for index in range(len(heads)) if any(row[index] for row in rows)]
    table = [[row[index] for index in kept] for row in [[head.removeprefix(">") for head in heads], *rows]]
    if not any(table[0]):
        del table[0]
    widths = [max(len(row[column]) for row in table) for column in range(len(kept))]
    for row in table:
        cells = (
            cell.rjust(width) if heads[index].startswith(">") else cell.ljust(width)
            for cell, width, index in zip(row, widths, kept, strict=True)
        )
        print("  ".join(cells).rstrip())


def _size(count: int) -> str:
    return "< 0.1 MB" if 0 < count < 50_000 else f"{count / 1e6:.1f} MB"


def _date(seconds: float) -> str:
    return f"{datetime.datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M}"
