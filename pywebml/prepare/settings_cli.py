"""`pywebml settings …`: for people who host their own settings. Needs the package `cryptography`."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import mimetypes
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pywebml.errors import OptionsError, PrepareError, RecordError, SettingsNetworkError
from pywebml.platform import NetworkError, Platform
from pywebml.platform.native import NativePlatform
from pywebml.prepare.check_mirror import Read, Report, check_mirror, folder_reader
from pywebml.prepare.mirror import Json, MirrorAttachment, write_dump_of
from pywebml.prepare.signing_keys import days_left
from pywebml.prepare.workspace import Workspace

_LARGEST_FILE = 2 * 1024**3
_FOLDER_BASE = "https://mirror.invalid/v1/"


def now() -> datetime.datetime:
    """The clock; tests set another one."""
    return datetime.datetime.now(datetime.UTC)


def add_commands(commands: Any) -> None:
    """Add `settings` to the commands of `pywebml`."""
    settings = commands.add_parser(
        "settings",
        help="make, sign and publish your own settings collections",
        description="Make, sign and publish settings collections that any host of static files can serve.",
    )
    parts = settings.add_subparsers(required=True, metavar="COMMAND")

    init = parts.add_parser("init", help="make a workspace with keys and certificates")
    init.add_argument("workspace", type=Path, metavar="DIR")
    init.add_argument("--bucket", default="main", help="default: %(default)s")
    init.add_argument("--root-key", choices=["rsa-4096", "ec-p384"], default="rsa-4096", help="default: %(default)s")
    init.add_argument("--root-days", type=int, default=3650, metavar="N", help="default: %(default)s")
    init.add_argument("--leaf-days", type=int, default=365, metavar="N", help="default: %(default)s")
    init.set_defaults(run=_init)

    add = parts.add_parser("add", help="write, change or delete a record")
    add.add_argument("workspace", type=Path, metavar="DIR")
    add.add_argument("collection", metavar="COLLECTION")
    add.add_argument("fields", nargs="*", metavar="FIELD=VALUE", help="JSON where it is JSON, else a text")
    add.add_argument("--id", help="of the record; default: a new one")
    add.add_argument("--record", type=Path, metavar="FILE.json", help="fields from a file; FIELD=VALUE goes on top")
    add.add_argument("--attach", type=Path, metavar="FILE", help="attach a file")
    add.add_argument("--mimetype", help="of the file; default: after its name")
    add.add_argument("--filename", help="of the attachment; default: that of the file")
    add.add_argument("--delete", action="store_true", help="delete the record --id")
    add.set_defaults(run=_add)

    sign = parts.add_parser("sign", help="sign what has changed")
    sign.add_argument("workspace", type=Path, metavar="DIR")
    sign.add_argument(
        "--renew", action="store_true", help="with a new certificate; done anyway when one is about to end"
    )
    sign.set_defaults(run=_sign)

    verify = parts.add_parser("verify", help="check a workspace, a mirror's folder or a server as a client would")
    verify.add_argument("target", metavar="DIR|URL")
    verify.add_argument("--root", metavar="SHA256", help="root that clients pin; default: that of the workspace")
    verify.set_defaults(run=_verify)

    export = parts.add_parser("export", help="write the static mirror")
    export.add_argument("workspace", type=Path, metavar="DIR")
    export.add_argument("--output", type=Path, required=True, metavar="MIRROR", help="server's root, such as dist/v1")
    export.add_argument("--dump", type=Path, metavar="FOLDER", help="also write records to package with an application")
    export.set_defaults(run=_export)


def _init(arguments: argparse.Namespace) -> None:
    for name in ("root_days", "leaf_days"):
        if not 1 <= getattr(arguments, name) <= 36_500:
            raise OptionsError(f"--{name.replace('_', '-')} must be from 1 to 36500.", field=name, value=None)
    workspace = Workspace.create(
        arguments.workspace,
        now(),
        bucket=arguments.bucket,
        root_key=arguments.root_key,
        root_days=arguments.root_days,
        leaf_days=arguments.leaf_days,
    )
    print(
        f"Made {workspace.folder} with new keys. Keep {workspace.folder / 'keys'} to yourself; best off line: root.key."
    )
    print(f"Clients trust it with\n  settingsRootHash: {workspace.signer.root_sha256}")
    print(f"Next: pywebml settings add {workspace.folder} COLLECTION FIELD=VALUE …")


def _add(arguments: argparse.Namespace) -> None:
    workspace = Workspace(arguments.workspace)
    if arguments.delete:
        if arguments.id is None or arguments.fields or arguments.record or arguments.attach:
            raise OptionsError("--delete goes with --id and nothing else.", field="delete", value=None)
        workspace.remove(arguments.collection, arguments.id, now())
        print(
            f"Deleted record {arguments.id} of {arguments.collection}. Next: pywebml settings sign {workspace.folder}"
        )
        return
    attachment = None
    if arguments.attach is not None:
        mimetype = arguments.mimetype or _mimetype(arguments.attach)
        attachment = MirrorAttachment(arguments.attach, mimetype, arguments.filename or "")
    fields = {**_record_file(arguments.record), **dict(map(_field, arguments.fields))}
    record_id = workspace.put(arguments.collection, fields, now(), record_id=arguments.id, attachment=attachment)
    print(f"Wrote record {record_id} of {arguments.collection}. Next: pywebml settings sign {workspace.folder}")


def _sign(arguments: argparse.Namespace) -> None:
    workspace = Workspace(arguments.workspace)
    names = workspace.sign(now(), renew=arguments.renew)
    print(f"Signed {', '.join(names)}." if names else "Everything was signed already.")
    print(f"The certificates are good for {int(days_left(workspace.signer, now()))} more days; sign again before.")


def _verify(arguments: argparse.Namespace) -> None:
    target, root = str(arguments.target), arguments.root
    if urlsplit(target).scheme in {"http", "https"}:
        if root is None:
            raise OptionsError("--root is needed to check a server.", field="root", value=None)
        platform = NativePlatform()
        base = target if target.endswith("/") else f"{target}/"
        report = asyncio.run(_check(platform, _reader(platform), base, root))
    elif (Path(target) / "settings.json").exists():
        workspace = Workspace(Path(target))
        with tempfile.TemporaryDirectory() as scratch:
            mirror = Path(scratch) / "v1"
            workspace.export(mirror)
            report = _check_folder(mirror, root or workspace.signer.root_sha256)
    else:
        if root is None:
            raise OptionsError("--root is needed to check a mirror.", field="root", value=None)
        if not Path(target).is_dir():
            raise RecordError(f"There is no folder {target}.")
        report = _check_folder(Path(target), root)
    for line in report.lines:
        print(line)
    if report.problems:
        raise RecordError("Clients would refuse this:\n" + "\n".join(f"  {problem}" for problem in report.problems))
    print("All of it verifies.")


def _export(arguments: argparse.Namespace) -> None:
    workspace = Workspace(arguments.workspace)
    collections = workspace.export(arguments.output)
    print(f"Wrote {len(collections)} collections to {arguments.output}.")
    if arguments.dump is not None:
        for collection in collections:
            write_dump_of(arguments.dump, collection)
        print(f"Wrote their dumps to {arguments.dump}.")
    print(f"Clients trust them with settingsRootHash: {workspace.signer.root_sha256}")


def _check_folder(mirror: Path, root: str) -> Report:
    return asyncio.run(_check(NativePlatform(), folder_reader(mirror, _FOLDER_BASE), _FOLDER_BASE, root))


async def _check(platform: Platform, read: Read, base: str, root: str) -> Report:
    return await check_mirror(platform, read, base, root_sha256=root, now=now().timestamp())


def _reader(platform: Platform) -> Read:
    async def read(url: str) -> bytes:
        try:
            response = await platform.request(url)
            try:
                if response.status != 200:
                    raise SettingsNetworkError(f"{url} answered {response.status}.", url=url, status=response.status)
                return await response.read(_LARGEST_FILE)
            finally:
                await response.close()
        except NetworkError as error:
            raise SettingsNetworkError(f"{url}: {error}", url=url) from error

    return read


def _mimetype(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def _record_file(path: Path | None) -> dict[str, Json]:
    if path is None:
        return {}
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PrepareError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise PrepareError(f"{path} holds no JSON object.")
    return fields


def _field(text: str) -> tuple[str, Json]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise OptionsError(f"'{text}' is not FIELD=VALUE.", field="fields", value=text)
    try:
        parsed: Json = json.loads(value)
    except ValueError:
        return name, value
    return name, parsed
