"""`pywebml settings`: from new keys to a mirror that clients believe."""

from __future__ import annotations

import datetime
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from pywebml.cli import main
from pywebml.errors import SignatureError
from pywebml.platform.native import NativePlatform
from pywebml.prepare import settings_cli
from pywebml.prepare.workspace import Workspace
from pywebml.settings import RemoteSettings, Trust, parse_dump
from tests.faults.server import FaultServer

DAY = datetime.timedelta(days=1)


class Clock:
    """The clock of the commands."""

    def __init__(self) -> None:
        self.now = datetime.datetime.now(datetime.UTC)

    def __call__(self) -> datetime.datetime:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(settings_cli, "now", clock)
    return clock


@pytest.fixture
def workspace(tmp_path: Path, clock: Clock) -> Path:
    folder = tmp_path / "workspace"
    assert run("init", folder, "--root-key", "ec-p384") == 0
    return folder


def run(*words: object) -> int:
    return main(["settings", *map(str, words)])


def records(workspace: Path, collection: str) -> list[dict[str, Any]]:
    return [dict(record) for record in Workspace(workspace).read(collection).records]


@pytest.fixture
def filled(workspace: Path, tmp_path: Path) -> Path:
    (tmp_path / "ort.wasm").write_bytes(b"\0asm" + bytes(500))
    add = ("add", workspace, "ml-onnx-runtime", "--id", "runtime", "name=ort.wasm", "version=1.30.0")
    assert run(*add, "--attach", tmp_path / "ort.wasm") == 0
    assert run("add", workspace, "ml-inference-options", "--id", "cats", "featureId=cats", "modelId=org/cats") == 0
    return workspace


def test_keys_are_for_their_owner_only(workspace: Path) -> None:
    assert stat.S_IMODE((workspace / "keys").stat().st_mode) == 0o700
    for name in ("root.key", "intermediate.key", "leaf.key"):
        assert stat.S_IMODE((workspace / "keys" / name).stat().st_mode) == 0o600


def test_a_workspace_is_never_made_over_another_one(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (workspace / "keys" / "root.key").read_bytes()
    assert run("init", workspace) == 1
    assert "already is a settings workspace" in capsys.readouterr().err
    assert (workspace / "keys" / "root.key").read_bytes() == before


async def test_exported_mirror_is_believed_by_clients_that_pin_its_root(
    filled: Path, server: FaultServer, platform: NativePlatform
) -> None:
    assert run("sign", filled) == 0
    assert run("export", filled, "--output", server.root / "any" / "v1") == 0
    trust = Trust(Workspace(filled).signer.root_sha256)
    settings = RemoteSettings(platform, f"{server.url}/any/v1", trust=trust)
    [record] = await settings.get("ml-onnx-runtime")
    assert (record["id"], record["name"], record["version"]) == ("runtime", "ort.wasm", "1.30.0")
    key = await settings.attachment("ml-onnx-runtime", record)
    assert await platform.blobs.read(key) == b"\0asm" + bytes(500)
    with pytest.raises(SignatureError):
        await RemoteSettings(platform, f"{server.url}/any/v1", bucket="main", trust=Trust()).sync("ml-onnx-runtime")


async def test_changes_reach_clients_that_have_synced_before(
    filled: Path, server: FaultServer, platform: NativePlatform, clock: Clock
) -> None:
    settings = RemoteSettings(
        platform, f"{server.url}/v1", trust=Trust(Workspace(filled).signer.root_sha256), retry_seconds=0
    )

    async def publish() -> tuple[int, int, int]:
        assert run("sign", filled) == 0
        assert run("export", filled, "--output", server.root / "v1") == 0
        result = await settings.sync("ml-inference-options")
        return len(result.created), len(result.updated), len(result.deleted)

    assert await publish() == (1, 0, 0)
    # Also when the clock of who publishes goes back.
    clock.now -= DAY / 2
    run("add", filled, "ml-inference-options", "--id", "cats", "modelRevision=v2")
    run("add", filled, "ml-inference-options", "--id", "dogs", "featureId=dogs")
    assert await publish() == (1, 1, 0)
    run("add", filled, "ml-inference-options", "--id", "dogs", "--delete")
    assert await publish() == (0, 0, 1)
    [record] = await settings.get("ml-inference-options")
    assert (record["featureId"], record["modelRevision"]) == ("cats", "v2")


def test_values_are_json_where_they_are_json(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "fields.json").write_text('{"tags": ["a", {"b": null}], "version": "1"}')
    words = ("count=3", "yes=true", "text=plain", 'quoted="5"', "version=2.0.1", "empty=", "sign=a=b")
    assert run("add", workspace, "any", "--record", tmp_path / "fields.json", *words) == 0
    [record] = records(workspace, "any")
    del record["id"], record["last_modified"]
    assert record == {
        "tags": ["a", {"b": None}],
        "version": "2.0.1",
        "count": 3,
        "yes": True,
        "text": "plain",
        "quoted": "5",
        "empty": "",
        "sign": "a=b",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("any", "x=1.5"), "float 1.5"),
        (("any", "x=9007199254740993"), "beyond"),
        (("any", "id=me"), "'id', which the mirror sets itself"),
        (("any", "nothing"), "is not FIELD=VALUE"),
        (("../any", "x=1"), "is not a bucket and a collection"),
        (("any", "--attach", "missing.bin"), "there is no file missing.bin"),
        (("any", "--attach", "pyproject.toml", "--filename", "../x"), "cannot be an attachment's file name"),
        (("any", "--record", "pyproject.toml"), "cannot be read as JSON"),
        (("any", "--delete"), "--delete goes with --id"),
        (("any", "--delete", "--id", "nobody"), "has no record 'nobody'"),
    ],
)
def test_what_cannot_be_published_is_refused(
    workspace: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("add", workspace, *words) == 1
    assert message in capsys.readouterr().err
    assert Workspace(workspace).collections() == []


def test_unsigned_changes_are_not_exported_and_the_old_mirror_stays(
    filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror = tmp_path / "v1"
    assert run("export", filled, "--output", mirror) == 1
    assert not mirror.exists()
    run("sign", filled)
    assert run("export", filled, "--output", mirror) == 0
    before = {path: path.read_bytes() for path in mirror.rglob("*") if path.is_file()}
    run("add", filled, "ml-inference-options", "featureId=dogs")
    assert run("export", filled, "--output", mirror) == 1
    assert "Not signed since their last change: ml-inference-options" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in mirror.rglob("*") if path.is_file()} == before


def test_second_signing_has_nothing_to_do(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("sign", filled)
    before = (filled / "collections" / "ml-onnx-runtime.json").read_bytes()
    run("sign", filled)
    assert "signed already" in capsys.readouterr().out
    assert (filled / "collections" / "ml-onnx-runtime.json").read_bytes() == before


def test_certificate_that_is_about_to_end_is_renewed_and_clients_are_told(filled: Path, clock: Clock) -> None:
    run("sign", filled)
    before = Workspace(filled).read("ml-onnx-runtime")
    root = Workspace(filled).signer.root_sha256
    # The root's key is off line.
    (filled / "keys" / "root.key").unlink()
    clock.now += 320 * DAY
    assert run("sign", filled) == 0
    after = Workspace(filled).read("ml-onnx-runtime")
    assert after.timestamp > before.timestamp
    assert after.signatures[0]["x5u"] != before.signatures[0]["x5u"]
    assert after.records == before.records
    assert Workspace(filled).signer.root_sha256 == root
    assert run("verify", filled) == 0


def test_dump_holds_the_records(filled: Path, tmp_path: Path) -> None:
    run("sign", filled)
    assert run("export", filled, "--output", tmp_path / "v1", "--dump", tmp_path / "dumps") == 0
    dump = parse_dump((tmp_path / "dumps" / "main" / "ml-inference-options.json").read_bytes(), "dump")
    assert dump.timestamp == Workspace(filled).read("ml-inference-options").timestamp
    assert list(dump.records) == ["cats"]


def test_verify_finds_everything_in_order(
    filled: Path, tmp_path: Path, server: FaultServer, capsys: pytest.CaptureFixture[str]
) -> None:
    run("sign", filled)
    run("export", filled, "--output", server.root / "v1")
    root = Workspace(filled).signer.root_sha256
    for target in ((filled,), (server.root / "v1", "--root", root), (f"{server.url}/v1", "--root", root)):
        assert run("verify", *target) == 0
        output = capsys.readouterr().out
        assert "main/ml-onnx-runtime: 1 records, signed" in output
        assert "ort.wasm: 504 bytes" in output
        assert "more days" in output


@pytest.mark.parametrize("target", [("nowhere",), ("nowhere", "--root", "0" * 64), ("http://127.0.0.1:9/v1",)])
def test_verify_says_what_it_needs(target: tuple[str, ...]) -> None:
    assert run("verify", *target) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("record", "not that of these records"),
        ("attachment", "are not those of the record"),
        ("missing attachment", "cannot be read"),
        ("chain", "cannot be read"),
        ("root", "is the trusted one"),
        ("clock", "has expired"),
        ("duplicate", "2 records with"),
        ("monitor", "root or monitor"),
    ],
)
def test_verify_names_what_clients_would_refuse(
    filled: Path, tmp_path: Path, clock: Clock, damage: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if damage == "duplicate":
        run("add", filled, "ml-inference-options", "featureId=cats", "modelId=org/cats")
    run("sign", filled)
    mirror = tmp_path / "v1"
    run("export", filled, "--output", mirror)
    root = Workspace(filled).signer.root_sha256
    changeset = mirror / "buckets" / "main" / "collections" / "ml-inference-options" / "changeset"
    [wasm] = mirror.rglob("*.wasm")
    if damage == "record":
        changeset.write_text(changeset.read_text().replace("org/cats", "org/evil"))
    elif damage == "attachment":
        wasm.write_bytes(bytes(504))
    elif damage == "missing attachment":
        wasm.unlink()
    elif damage == "chain":
        for chain in (mirror / "chains").iterdir():
            chain.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    elif damage == "root":
        root = "0" * 64
    elif damage == "clock":
        clock.now += 400 * DAY
    elif damage == "monitor":
        (mirror / "buckets" / "monitor" / "collections" / "changes" / "changeset").write_text("[]")
    capsys.readouterr()
    assert run("verify", mirror, "--root", root) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["settings.json", "keys/chain.pem", "keys/leaf.key", "collections/ml-onnx-runtime.json"]
)
def test_damaged_workspace_is_named(filled: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (filled / name).write_text("damaged")
    assert run("sign", filled) == 1
    assert "pywebml: RecordError: " in capsys.readouterr().err


def test_leaf_and_key_must_belong_together(filled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("init", tmp_path / "other", "--root-key", "ec-p384")
    (filled / "keys" / "leaf.key").write_bytes((tmp_path / "other" / "keys" / "leaf.key").read_bytes())
    assert run("sign", filled) == 1
    assert "does not belong to its certificate" in capsys.readouterr().err


def test_rsa_root_like_mozillas_works(tmp_path: Path, clock: Clock) -> None:
    assert run("init", tmp_path / "rsa") == 0
    run("add", tmp_path / "rsa", "any", "x=1")
    run("sign", tmp_path / "rsa")
    assert run("verify", tmp_path / "rsa") == 0
    assert json.loads((tmp_path / "rsa" / "settings.json").read_text()) == {"format": 1, "bucket": "main"}
