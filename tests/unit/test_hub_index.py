"""A hub like Hugging Face's: its tree as the list of files, pinned and moving revisions, private models."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pywebml import configure, create_engine
from pywebml.errors import DownloadError, FileNotFoundOnHubError, IntegrityError, PywebmlError
from pywebml.hub import ModelHub
from pywebml.hub import hub as hub_module
from pywebml.hub import index as index_module
from pywebml.hub.addresses import HubAddress
from pywebml.hub.listing import FileEntry
from pywebml.options import get_configuration
from pywebml.platform import BlobKey, Platform
from tests.conftest import PatientPlatform
from tests.faults.hugging_face import git_blob_sha1
from tests.faults.server import FaultServer
from tests.tiny_model import TinyModel

MODEL = "org/name"
TEMPLATE = "{model}/resolve/{revision}"
TREE = "GET /api/models/org/name/tree/main"
CONFIG = b'{"model_type": "bert"}'
WEIGHTS = bytes(range(256)) * 5000
FILES = {"config.json": CONFIG, "onnx/model.onnx": WEIGHTS, "README.md": b"# A model"}
TOKEN = "hf_s3cr3tS3cr3t"


def visit(platform: Platform, server: FaultServer, **options: Any) -> ModelHub:
    """The hub as a page sees it that was just opened."""
    return ModelHub(platform, server.url, TEMPLATE, **options)


@pytest.fixture
def other_server(tmp_path: Path) -> Iterator[FaultServer]:
    """Another origin."""
    root = tmp_path / "other-www"
    root.mkdir()
    with FaultServer(root) as running:
        yield running


@pytest.fixture
def short_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions of whose answers there is an older state wait a twentieth of a second, in place of one."""
    for module in (index_module, hub_module):
        assert module.HEAD_SECONDS == 1.0
        monkeypatch.setattr(module, "HEAD_SECONDS", 0.05)


# The tree


async def test_one_answer_lists_all_files_of_a_model(platform: Platform, server: FaultServer) -> None:
    held = server.hugging_face(MODEL, "main", FILES)
    hub = visit(platform, server)
    assert await hub.entries(MODEL, "main") == {
        "config.json": FileEntry(len(CONFIG), git_oid=git_blob_sha1(CONFIG)),
        "onnx/model.onnx": FileEntry(len(WEIGHTS), held.files["onnx/model.onnx"].sha256),
        "README.md": FileEntry(9, git_oid=git_blob_sha1(b"# A model")),
    }
    for path, data in FILES.items():
        key = await hub.get_file(MODEL, "main", path)
        assert await platform.blobs.read(key) == data
    assert server.requests("/api/*") == [TREE]
    assert server.queries("/api/*") == ["recursive=true"]
    assert server.requests("*/raw/*") == []
    assert [r for r in server.requests() if r.startswith("HEAD")] == []


async def test_tree_of_several_pages_is_read_to_its_end(platform: Platform, server: FaultServer) -> None:
    files = {f"folder/{number}.json": f"{number}" for number in range(10)}
    server.hugging_face(MODEL, "main", files, page_size=3)
    entries = await visit(platform, server).entries(MODEL, "main")
    assert entries is not None
    assert set(entries) == set(files)
    # Eleven entries with their folder.
    assert server.requests("/api/*") == [TREE] * 4


async def test_page_of_another_origin_is_not_asked_for(
    platform: Platform, server: FaultServer, other_server: FaultServer
) -> None:
    server.hugging_face(MODEL, "main", FILES)
    link = f'<{other_server.url}/api/models/org/name/tree/main>; rel="next"'
    server.fault("/api/*", "header", {"Link": link})
    assert await visit(platform, server).entries(MODEL, "main")
    assert other_server.requests() == []


async def test_tree_without_an_end_is_given_up(
    platform: Platform, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "_MOST_PAGES", 3)
    server.hugging_face(MODEL, "main", FILES)
    server.fault("/api/*", "header", {"Link": f'<{server.url}/api/models/org/name/tree/main>; rel="next"'})
    hub = visit(platform, server)
    assert await hub.entries(MODEL, "main") is None
    assert len(server.requests("/api/*")) == 3
    assert await hub.read_file(MODEL, "main", "config.json") == CONFIG


@pytest.mark.parametrize(
    ("path", "fault", "value"),
    [
        ("/cdn/*", "flip", 12345),
        ("/cdn/*", "shorter", 7),
        ("*/config.json", "flip", 3),
        ("*/config.json", "shorter", 1),
        ("*/config.json", "html", None),
    ],
)
async def test_bytes_that_are_not_the_trees_are_refused(
    platform: Platform, server: FaultServer, path: str, fault: str, value: Any
) -> None:
    server.hugging_face(MODEL, "main", FILES)
    server.fault(path, fault, value)
    wanted = "onnx/model.onnx" if path == "/cdn/*" else "config.json"
    hub = visit(platform, server)
    with pytest.raises(IntegrityError):
        await hub.get_file(MODEL, "main", wanted)
    assert await platform.blobs.list("model") == []
    server.mend()
    assert await platform.blobs.read(await hub.get_file(MODEL, "main", wanted)) == FILES[wanted]


async def test_file_that_the_tree_does_not_list_costs_no_request(platform: Platform, server: FaultServer) -> None:
    server.hugging_face(MODEL, "main", FILES)
    hub = visit(platform, server)
    assert await hub.get_file(MODEL, "main", "generation_config.json", required=False) is None
    with pytest.raises(FileNotFoundOnHubError, match=r"tokenizer\.json") as caught:
        await hub.get_file(MODEL, "main", "tokenizer.json")
    assert caught.value.details["status"] == 404
    assert server.requests() == [TREE]


async def test_file_status_is_the_trees_and_costs_no_further_request(platform: Platform, server: FaultServer) -> None:
    server.hugging_face(MODEL, "main", FILES)
    hub = visit(platform, server)
    await hub.get_file(MODEL, "main", "config.json")
    server.forget()
    statuses = [
        await hub.file_status(MODEL, "main", path) for path in ("config.json", "onnx/model.onnx", "tokenizer.json")
    ]
    assert [(s.size, s.stored, s.loaded, s.exists) for s in statuses] == [
        (len(CONFIG), True, len(CONFIG), True),
        (len(WEIGHTS), False, 0, True),
        (None, False, 0, False),
    ]
    assert server.requests() == []


async def test_without_a_tree_pointers_and_redirects_tell_size_and_hash(
    platform: Platform, server: FaultServer
) -> None:
    server.hugging_face(MODEL, "main", FILES)
    server.fault("/api/*", "status", 500)
    hub = visit(platform, server)
    assert await hub.entries(MODEL, "main") is None
    status = await hub.file_status(MODEL, "main", "onnx/model.onnx")
    assert (status.size, status.exists) == (len(WEIGHTS), True)
    assert not (await hub.file_status(MODEL, "main", "generation_config.json")).exists
    server.fault("/cdn/*", "flip", 12345, times=1)
    with pytest.raises(IntegrityError, match="SHA-256"):
        await hub.get_file(MODEL, "main", "onnx/model.onnx")
    assert server.requests("*/raw/*") == ["GET /org/name/raw/main/onnx/model.onnx"]
    assert await platform.blobs.read(await hub.get_file(MODEL, "main", "onnx/model.onnx")) == WEIGHTS


async def test_tree_that_is_none_leaves_each_file_to_tell_for_itself(platform: Platform, server: FaultServer) -> None:
    server.hugging_face(MODEL, "main", FILES)
    server.fault("/api/*", "html")
    hub = visit(platform, server)
    assert await hub.entries(MODEL, "main") is None
    assert await hub.read_file(MODEL, "main", "config.json") == CONFIG


# Revisions


@pytest.mark.parametrize("kind", ["commit", "tag"])
async def test_pinned_revision_is_never_asked_for_again(platform: Platform, server: FaultServer, kind: str) -> None:
    held = server.hugging_face(MODEL, "v1.2.0", FILES)
    revision = held.commit if kind == "commit" else "v1.2.0"
    await _get_all(visit(platform, server), revision)
    assert len(server.requests("/api/*")) == 1
    server.forget()
    await _get_all(visit(platform, server), revision)
    assert (await visit(platform, server).file_status(MODEL, revision, "onnx/model.onnx")).stored
    assert server.requests() == []


async def _get_all(hub: ModelHub, revision: str) -> None:
    for path in FILES:
        assert await hub.get_file(MODEL, revision, path)
    assert await hub.get_file(MODEL, revision, "generation_config.json", required=False) is None


@pytest.mark.parametrize("fault", ["status", "stall", "drop"])
async def test_pinned_revision_whose_tree_could_not_be_had_is_not_asked_for_it_either(
    platform: Platform, server: FaultServer, fault: str
) -> None:
    server.hugging_face(MODEL, "v1.2.0", FILES)
    server.fault("/api/*", fault, 404 if fault == "status" else None)
    await _get_all(visit(platform, server, stall_seconds=0.1), "v1.2.0")
    server.mend()
    server.forget()
    server.fault("*", "stall", method="*")
    later = visit(platform, server, stall_seconds=600)
    async with asyncio.timeout(30):
        await _get_all(later, "v1.2.0")
        assert (await later.file_status(MODEL, "v1.2.0", "onnx/model.onnx")).stored
        assert not (await later.file_status(MODEL, "v1.2.0", "generation_config.json")).exists
    assert server.requests() == []


async def test_pinned_file_that_the_remembered_tree_contradicts_is_fetched_again(
    platform: Platform, server: FaultServer
) -> None:
    server.hugging_face(MODEL, "v1.2.0", FILES)
    await visit(platform, server).entries(MODEL, "v1.2.0")
    await store(platform, server, "v1.2.0", {"config.json": CONFIG[::-1]})
    server.forget()
    assert not (await visit(platform, server).file_status(MODEL, "v1.2.0", "config.json")).stored
    assert await visit(platform, server).read_file(MODEL, "v1.2.0", "config.json") == CONFIG
    assert server.requests() == ["GET /org/name/resolve/v1.2.0/config.json"]


async def store(platform: Platform, server: FaultServer, revision: str, files: dict[str, bytes]) -> None:
    """Have files in the store as an import leaves them: without what a hub says about them."""
    owner = visit(platform, server).address.owner(MODEL)
    for path, data in files.items():
        writer = await platform.blobs.open_writer(BlobKey("model", owner, revision, path))
        await writer.write(data)
        await writer.finish()
        await writer.commit({"model": MODEL})


@pytest.mark.parametrize("revision", ["main", "v1.2.0"])
async def test_imported_files_are_known_by_their_bytes(
    platform: Platform, server: FaultServer, monkeypatch: pytest.MonkeyPatch, revision: str
) -> None:
    server.hugging_face(MODEL, revision, FILES)
    await visit(platform, server).entries(MODEL, revision)
    await store(platform, server, revision, FILES)
    server.forget()
    await _get_all(visit(platform, server), revision)
    assert {request.rpartition(" ")[2] for request in server.requests()} <= {TREE.removeprefix("GET ")}

    # Git's name of them is worked out once.
    monkeypatch.setattr(hub_module, "git_oid_of", lambda _data: "0" * 40)
    await _get_all(visit(platform, server), revision)
    assert [request for request in server.requests() if "resolve" in request] == []


async def test_imported_file_of_a_branch_that_has_changed_is_fetched(platform: Platform, server: FaultServer) -> None:
    server.hugging_face(MODEL, "main", FILES)
    await store(platform, server, "main", {**FILES, "config.json": CONFIG[::-1]})
    later = visit(platform, server)
    assert not (await later.file_status(MODEL, "main", "config.json")).stored
    assert await later.read_file(MODEL, "main", "config.json") == CONFIG


@pytest.mark.parametrize(
    ("listing", "more"), [("huggingface", {}), ("huggingface", {"manifest.json": b"{}"}), ("manifest", {})]
)
@pytest.mark.parametrize("fault", ["drop", "stall"])
@pytest.mark.usefixtures("short_questions")
async def test_imported_branch_without_any_list_is_used_when_its_hub_is_away(
    platform: PatientPlatform, server: FaultServer, listing: Any, more: dict[str, bytes], fault: str
) -> None:
    await store(platform, server, "main", {**FILES, **more})
    server.fault("*", fault, method="*")
    hub = visit(platform, server, listing=listing, stall_seconds=600)
    async with asyncio.timeout(30):
        for path in FILES:
            assert (await hub.file_status(MODEL, "main", path)).stored
            assert await hub.get_file(MODEL, "main", path)


@pytest.mark.parametrize("fault", ["drop", "stall"])
@pytest.mark.usefixtures("short_questions")
async def test_branch_whose_update_broke_off_is_used_when_its_hub_is_away(
    platform: PatientPlatform, server: FaultServer, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    server.hugging_face(MODEL, "main", FILES)
    await _get_all(visit(platform, server), "main")
    server.hugging_face(MODEL, "main", {**FILES, "config.json": b"{}", "onnx/model.onnx": WEIGHTS[::-1]})
    server.fault("/cdn/*", "status", 500)
    with pytest.raises(DownloadError, match="500"):
        await _get_all(visit(platform, server), "main")
    server.mend()
    server.fault("*", fault, method="*")
    hub = visit(platform, server, stall_seconds=600)
    async with asyncio.timeout(30):
        await _get_all(hub, "main")
        assert (await hub.file_status(MODEL, "main", "onnx/model.onnx")).stored
    assert await hub.read_stored(MODEL, "main", "config.json") == b"{}"
    assert await hub.read_stored(MODEL, "main", "onnx/model.onnx") == WEIGHTS
    assert [r.getMessage().split()[0] for r in caplog.records if r.levelname == "WARNING"] == [
        f"{server.url}/org/name/resolve/main/onnx/model.onnx"
    ]
    server.mend()
    later = visit(platform, server)
    await _get_all(later, "main")
    assert await later.read_stored(MODEL, "main", "onnx/model.onnx") == WEIGHTS[::-1]


async def test_branch_asks_for_its_tree_once_a_visit_and_fetches_what_has_changed(
    platform: Platform, server: FaultServer
) -> None:
    server.hugging_face(MODEL, "main", FILES)
    await _get_all(visit(platform, server), "main")
    server.forget()
    await _get_all(visit(platform, server), "main")
    assert server.requests() == [TREE]

    server.forget()
    server.hugging_face(MODEL, "main", {**FILES, "config.json": b"{}"})
    later = visit(platform, server)
    await _get_all(later, "main")
    assert server.requests() == [TREE, "GET /org/name/resolve/main/config.json"]
    assert await later.read_file(MODEL, "main", "config.json") == b"{}"


async def test_branch_is_asked_for_again_after_a_while(
    platform: Platform, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.hugging_face(MODEL, "main", FILES)
    hub = visit(platform, server)
    clock = 1000.0
    monkeypatch.setattr(platform, "monotonic", lambda: clock)
    for seconds, asked in ((0, 1), (29, 1), (31, 2)):
        clock = 1000.0 + seconds
        await hub.entries(MODEL, "main")
        assert len(server.requests("/api/*")) == asked


@pytest.mark.parametrize(
    ("kind", "value"),
    [("drop", None), ("stall", None), ("stall", 10), ("status", 503), ("status", 401), ("html", None)],
)
@pytest.mark.usefixtures("short_questions")
async def test_stored_branch_is_used_when_its_hub_is_away_or_slow(
    platform: PatientPlatform, server: FaultServer, kind: str, value: Any
) -> None:
    server.hugging_face(MODEL, "main", FILES)
    await _get_all(visit(platform, server), "main")
    server.forget()
    platform.slept.clear()
    server.fault("*", kind, value, method="*")
    hub = visit(platform, server, stall_seconds=600)
    async with asyncio.timeout(30):
        await _get_all(hub, "main")
        assert (await hub.file_status(MODEL, "main", "onnx/model.onnx")).stored
    # On a busy machine the time is over before the question has arrived.
    assert server.requests() in ([TREE], [])
    assert platform.slept == []


@pytest.mark.parametrize(("kind", "value"), [("drop", None), ("stall", None), ("status", 503), ("status", 401)])
@pytest.mark.usefixtures("short_questions")
async def test_branch_without_a_list_is_used_when_its_hub_is_away_or_slow(
    platform: PatientPlatform, server: FaultServer, kind: str, value: Any
) -> None:
    server.write("org/name/main/config.json", CONFIG)

    async def get(hub: ModelHub) -> bytes:
        assert await hub.get_file(MODEL, "main", "generation_config.json", required=False) is None
        assert not (await hub.file_status(MODEL, "main", "generation_config.json")).exists
        return await hub.read_file(MODEL, "main", "config.json")

    await get(ModelHub(platform, server.url))
    server.forget()
    platform.slept.clear()
    server.fault("*", kind, value, method="*")
    async with asyncio.timeout(30):
        assert await get(ModelHub(platform, server.url, stall_seconds=600)) == CONFIG
    # One question each, and nothing is tried again.
    assert {request.method for request in server.log()} <= {"HEAD"}
    assert platform.slept == []


async def test_slash_in_a_branch_is_escaped_everywhere(platform: Platform, server: FaultServer) -> None:
    server.hugging_face(MODEL, "refs/pr/1", FILES)
    hub = visit(platform, server)
    assert await hub.read_file(MODEL, "refs/pr/1", "config.json") == CONFIG
    assert await hub.entries(MODEL, "refs/pr/1")
    assert [model.revision for model in await hub.list_models()] == ["refs/pr/1"]


async def test_deleted_model_takes_its_tree_along(platform: Platform, server: FaultServer) -> None:
    server.hugging_face(MODEL, "v1.0.0", FILES)
    await _get_all(visit(platform, server), "v1.0.0")
    assert await visit(platform, server).delete_model(MODEL) == sum(map(len, FILES.values()))
    server.forget()
    await visit(platform, server).entries(MODEL, "v1.0.0")
    assert len(server.requests("/api/*")) == 1


# Who may


async def test_unknown_repository_is_a_file_that_is_not_found(platform: Platform, server: FaultServer) -> None:
    server.hugging_face(MODEL, "main", FILES)
    for model, revision in (("org/unknown", "main"), (MODEL, "v9.9.9")):
        with pytest.raises(FileNotFoundOnHubError, match="does not exist") as caught:
            await visit(platform, server).get_file(model, revision, "config.json")
        assert caught.value.details["status"] == 401
    assert await platform.blobs.list("model") == []


async def test_private_model_needs_its_token(platform: Platform, server: FaultServer) -> None:
    server.hugging_face(MODEL, "main", FILES, private_token=TOKEN)
    for wrong in (None, "hf_other"):
        with pytest.raises(FileNotFoundOnHubError, match="hub_access_tokens") as caught:
            await visit(platform, server, access_token=wrong).get_file(MODEL, "main", "config.json")
        assert "hf_other" not in _told(caught.value)
    await _get_all(visit(platform, server, access_token=TOKEN), "main")


async def test_token_is_not_stored(platform: Platform, server: FaultServer, tmp_path: Path) -> None:
    server.hugging_face(MODEL, "main", FILES, private_token=TOKEN)
    server.fault("/cdn/*", "truncate", 100_000, times=1)
    await _get_all(visit(platform, server, access_token=TOKEN), "main")
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) > len(FILES)
    for path in files:
        assert TOKEN.encode() not in path.read_bytes()
        assert TOKEN not in path.name


async def test_token_goes_to_the_hub_and_not_to_where_it_redirects(
    platform: Platform, server: FaultServer, other_server: FaultServer
) -> None:
    server.hugging_face(MODEL, "main", FILES, private_token=TOKEN, cdn_url=other_server.url)
    await _get_all(visit(platform, server, access_token=TOKEN), "main")
    assert {request.authorization for request in server.log()} == {f"Bearer {TOKEN}"}
    assert other_server.requests()
    assert {request.authorization for request in other_server.log()} == {""}


@pytest.mark.usefixtures("surroundings")
async def test_configured_token_goes_to_its_own_origin_alone(server: FaultServer, other_server: FaultServer) -> None:
    options: dict[str, Any] = {"task_name": "feature-extraction", "model_id": MODEL, "dtype": "fp32"}
    configure(hub_access_tokens={server.url.upper().replace("HTTP", "http"): TOKEN})
    for hub in (server, other_server):
        hub.hugging_face(MODEL, "main", TinyModel(manifest=False).files())
        async with await create_engine(**options, model_hub_root_url=hub.url, model_hub_url_template=TEMPLATE):
            pass
    assert {request.authorization for request in server.log()} == {f"Bearer {TOKEN}"}
    assert {request.authorization for request in other_server.log()} == {""}


async def test_token_is_in_no_message_and_in_nothing_printed(platform: Platform, server: FaultServer) -> None:
    server.hugging_face(MODEL, "main", FILES, private_token=TOKEN)
    server.fault("*", "drop")
    hub = visit(platform, server, access_token=TOKEN)
    with pytest.raises(DownloadError) as caught:
        await hub.get_file(MODEL, "main", "config.json")
    assert TOKEN not in _told(caught.value)
    assert TOKEN not in repr(hub)
    configure(hub_access_tokens={server.url: TOKEN})
    assert TOKEN not in repr(get_configuration()) + str(get_configuration())
    configure(hub_access_tokens={})


def _told(error: PywebmlError) -> str:
    causes: list[BaseException | None] = [error, error.__cause__, error.__context__]
    return repr([(repr(cause), str(cause), vars(cause) if cause else None) for cause in causes])


def test_addresses_of_the_tree_and_of_pointers() -> None:
    address = HubAddress.of("https://hub.example/x/", TEMPLATE)
    assert address.listing == "huggingface"
    assert (
        address.tree_url("org/name", "refs/pr/1")
        == "https://hub.example/x/api/models/org/name/tree/refs%2Fpr%2F1?recursive=true"
    )
    assert address.pointer_url("org/name", "main", "a b.onnx") == "https://hub.example/x/org/name/raw/main/a%20b.onnx"
    assert HubAddress.of("https://hub.example/", "{model}/{revision}").listing == "manifest"
