"""What is stored: listing, choosing, deleting with shared files kept, pinning and verifying."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pywebml import create_engine, stored_models
from pywebml.errors import OptionsError
from pywebml.hub import ModelHub, Selection, StoredFile, StoredModels, Verification
from pywebml.hub.stored import LOCK, absence_document, commit_file, plain_uses, tree_document, uses_of
from pywebml.platform import BlobInfo, BlobKey, Platform
from pywebml.platform.native import NativePlatform
from tests.faults.server import FaultServer
from tests.tiny_model import FILES, TinyModel

HUB, OTHER_HUB = "hub.example/models/", "other.example/"
EMBED, FILL = "feature-extraction", "fill-mask"


async def put(
    platform: Platform,
    path: str,
    data: bytes = b"1234567890",
    *,
    hub: str = HUB,
    model: str = "org/name",
    revision: str = "main",
    **metadata: Any,
) -> BlobKey:
    """Store a file as a download does."""
    key = BlobKey("model", f"{hub}{model}", revision, path)
    writer = await platform.blobs.open_writer(key)
    await writer.write(data)
    await writer.finish()
    await writer.commit({"model": model, **metadata})
    return key


async def paths(stored: StoredModels, selection: Selection | None = None) -> list[str]:
    return [f"{file.model}@{file.revision}/{file.path}" for file in await stored.files(selection)]


@pytest.fixture
def stored(platform: NativePlatform) -> StoredModels:
    return StoredModels(platform)


async def fill(platform: Platform) -> None:
    """Two hubs, three models, two revisions; `shared` is kept for two tasks and two engines."""
    await put(platform, "config.json", uses=[[EMBED, None]])
    await put(platform, "shared", uses=[[EMBED, "one"], [FILL, "two"]])
    await put(platform, "only", uses=[[FILL, "two"]])
    await put(platform, "config.json", revision="v1.0.0", uses=[[EMBED, "one"]])
    await put(platform, "nobody", model="org/other")
    await put(platform, "config.json", hub=OTHER_HUB, uses=[[FILL, None]])


# Lists


async def test_files_tell_what_is_known_of_them(platform: Platform, stored: StoredModels) -> None:
    key = await put(
        platform,
        "onnx/model.onnx",
        lastUsed=5.0,
        verified=7,
        pinned=True,
        uses=[[EMBED, "one"], [None, "two"]],
    )
    info = await platform.blobs.info(key)
    assert info is not None
    assert await stored.files() == [
        StoredFile(
            key=key,
            hub=HUB,
            model="org/name",
            revision="main",
            path="onnx/model.onnx",
            size=10,
            sha256=info.sha256,
            updated=info.updated,
            last_used=5.0,
            verified=7.0,
            pinned=True,
            uses=((EMBED, "one"), (None, "two")),
        )
    ]


async def test_model_sums_up_its_files(platform: Platform, stored: StoredModels) -> None:
    await put(platform, "a", b"1", lastUsed=5.0, verified=9.0, uses=[[EMBED, "one"], [EMBED, None]])
    await put(platform, "b", b"22", lastUsed=3.0, verified=7.0, pinned=True, uses=[[FILL, "one"], [None, "two"]])
    newest = max(file.updated for file in await stored.files())
    [model] = await stored.models()
    assert (model.hub, model.model, model.revision) == (HUB, "org/name", "main")
    assert (model.files, model.size, model.updated, model.last_used, model.verified, model.pinned) == (
        *(2, 3, newest),
        *(5.0, 7.0, True),
    )
    assert (model.task_names, model.engine_ids) == ((EMBED, FILL), ("one", "two"))


async def test_models_are_listed_by_hub_model_and_revision(platform: Platform, stored: StoredModels) -> None:
    await fill(platform)
    assert [(model.hub, model.model, model.revision, model.files) for model in await stored.models()] == [
        (HUB, "org/name", "main", 3),
        (HUB, "org/name", "v1.0.0", 1),
        (HUB, "org/other", "main", 1),
        (OTHER_HUB, "org/name", "main", 1),
    ]


@pytest.mark.parametrize(
    ("selection", "count"),
    [
        (Selection(), 6),
        (Selection(hub=HUB), 5),
        (Selection(hub="hub.example/"), 0),
        (Selection(model="org/name"), 5),
        (Selection(model="name"), 0),
        (Selection(revision="main"), 5),
        (Selection(hub=HUB, model="org/name", revision="main"), 3),
        (Selection(task_name=EMBED), 3),
        (Selection(engine_id="one"), 2),
        (Selection(task_name=FILL, engine_id="one"), 0),
        (Selection(task_name=FILL, engine_id="two"), 2),
        (Selection(task_name=EMBED, revision="v1.0.0"), 1),
        (Selection(model=""), 0),
    ],
)
async def test_files_are_chosen_by_everything_that_is_named(
    platform: Platform, stored: StoredModels, selection: Selection, count: int
) -> None:
    await fill(platform)
    assert len(await stored.files(selection)) == count
    assert sum(model.files for model in await stored.models(selection)) == count


# Metadata


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, ()),
        ({"uses": [["a", "b"], ["a", None], [None, None]]}, (("a", "b"), ("a", None), (None, None))),
        ({"uses": [["a", "b"], ["a"], ["a", 5], "ab", None, [[], "b"]]}, (("a", "b"),)),
        ({"uses": "ab"}, ()),
        ({"taskNames": ["a", "b", 5]}, (("a", None), ("b", None))),
        ({"taskNames": "a"}, ()),
        # What this version wrote counts more than what version 0.1 did.
        ({"uses": [], "taskNames": ["a"]}, ()),
    ],
)
def test_uses_of_this_version_and_of_0_1_are_understood(
    metadata: dict[str, Any], expected: tuple[tuple[str | None, str | None], ...]
) -> None:
    assert uses_of(metadata) == expected
    assert plain_uses([*expected, *expected]) == [list(use) for use in expected]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(["model", "uses", "taskNames", "lastUsed", "verified", "pinned"])


@given(st.dictionaries(FIELDS, JSON), st.text())
def test_any_metadata_gives_a_stored_file(metadata: dict[str, Any], owner: str) -> None:
    file = StoredFile.of(BlobInfo(BlobKey("model", owner, "main", "a"), 1, "0" * 64, 2.0, metadata))
    assert file.hub + file.model == owner
    assert isinstance(file.last_used, float)
    assert all(isinstance(name, str | None) for use in file.uses for name in use)


async def test_model_of_version_0_1_is_listed_and_deleted_by_its_task(platform: Platform, stored: StoredModels) -> None:
    await put(platform, "config.json", taskNames=[EMBED, FILL])
    assert [model.task_names for model in await stored.models()] == [(EMBED, FILL)]
    assert await stored.delete(Selection(task_name=EMBED)) == 0
    assert [file.uses for file in await stored.files()] == [((FILL, None),)]
    assert await stored.delete(Selection(task_name=FILL)) == 10


# Deleting


@pytest.mark.parametrize(
    ("selection", "gone"),
    [
        (Selection(hub=OTHER_HUB), {"other.example/org/name@main/config.json"}),
        (Selection(hub=HUB, revision="v1.0.0"), {"hub.example/models/org/name@v1.0.0/config.json"}),
        (Selection(model="org/other"), {"hub.example/models/org/other@main/nobody"}),
        (Selection(engine_id="two"), {"hub.example/models/org/name@main/only"}),
        (Selection(engine_id="one"), {"hub.example/models/org/name@v1.0.0/config.json"}),
        (
            Selection(task_name=EMBED),
            {"hub.example/models/org/name@main/config.json", "hub.example/models/org/name@v1.0.0/config.json"},
        ),
        (Selection(model="unknown"), set()),
    ],
)
async def test_what_is_chosen_goes_and_what_others_use_stays(
    platform: Platform, stored: StoredModels, selection: Selection, gone: set[str]
) -> None:
    await fill(platform)

    async def names() -> set[str]:
        return {f"{file.hub}{file.model}@{file.revision}/{file.path}" for file in await stored.files()}

    before = await names()
    assert await stored.delete(selection) == 10 * len(gone)
    assert before - await names() == gone


async def test_shared_file_goes_with_its_last_user(platform: Platform, stored: StoredModels) -> None:
    await put(platform, "shared", uses=[[EMBED, "one"], [EMBED, None], [FILL, "two"]])
    assert await stored.delete(Selection(engine_id="one")) == 0
    assert [file.uses for file in await stored.files()] == [((EMBED, None), (FILL, "two"))]
    assert await stored.delete(Selection(task_name=EMBED)) == 0
    assert await stored.delete(Selection(engine_id="two")) == 10
    assert await stored.files() == []


async def test_deleting_by_name_asks_no_user(platform: Platform, stored: StoredModels) -> None:
    await fill(platform)
    assert await stored.delete(Selection(model="org/name")) == 50
    assert await paths(stored) == ["org/other@main/nobody"]


async def test_delete_of_nothing_in_particular_is_refused(platform: Platform, stored: StoredModels) -> None:
    await fill(platform)
    with pytest.raises(OptionsError, match="Say what to delete"):
        await stored.delete(Selection())
    assert len(await stored.files()) == 6


async def test_manifest_goes_with_the_last_file_of_its_model(platform: Platform, stored: StoredModels) -> None:
    for revision in ("v1.0.0", "v2.0.0"):
        await put(platform, "manifest.json", b"{}", revision=revision)
        await put(platform, "a", revision=revision, uses=[[EMBED, None]])
        await put(platform, "b", revision=revision, uses=[[FILL, None]])
    assert await stored.delete(Selection(task_name=EMBED)) == 20
    assert len(await stored.files()) == 4
    assert await stored.delete(Selection(task_name=FILL, revision="v1.0.0")) == 12
    assert await paths(stored) == ["org/name@v2.0.0/b", "org/name@v2.0.0/manifest.json"]


async def test_deleted_model_leaves_no_word_of_what_its_hub_had(platform: Platform, stored: StoredModels) -> None:
    for owner, revision in ((f"{HUB}org/name", "main"), (f"{HUB}org/name", "v1.0.0")):
        for name in (absence_document(owner, revision), tree_document(owner, revision)):
            await platform.documents.put(name, ["x"])
    await fill(platform)
    await stored.delete(Selection(hub=HUB, model="org/name", revision="main"))
    for document in (absence_document, tree_document):
        assert await platform.documents.get(document(f"{HUB}org/name", "main")) is None
        assert await platform.documents.get(document(f"{HUB}org/name", "v1.0.0")) == ["x"]


async def test_deleted_file_takes_what_a_broken_update_of_it_has_left(platform: Platform, stored: StoredModels) -> None:
    key = await put(platform, "a")
    writer = await platform.blobs.open_writer(key, "token")
    await writer.write(b"123")
    await writer.suspend()
    assert await platform.blobs.draft(key) == ("token", 3)
    await stored.delete(Selection(model="org/name"))
    assert await platform.blobs.draft(key) is None
    assert (await platform.blobs.usage()).drafts == 0


async def suspend(
    platform: Platform, path: str, *, hub: str = HUB, model: str = "org/name", revision: str = "main"
) -> str:
    """An unfinished download; returns how `unfinished` names it."""
    writer = await platform.blobs.open_writer(BlobKey("model", f"{hub}{model}", revision, path), "token")
    await writer.write(b"123")
    await writer.suspend()
    return f"{hub}{model}@{revision}/{path}"


async def unfinished(platform: Platform) -> set[str]:
    return {f"{key.owner}@{key.revision}/{key.path}" for key, _ in await platform.blobs.drafts()}


async def test_deleted_model_takes_its_unfinished_files(platform: Platform, stored: StoredModels) -> None:
    await put(platform, "config.json")
    await suspend(platform, "weights")
    others = {
        await suspend(platform, "weights", revision="v1.0.0"),
        await suspend(platform, "weights", model="org/other"),
        await suspend(platform, "weights", hub=OTHER_HUB),
    }
    await stored.delete(Selection(hub=HUB, model="org/name", revision="main"))
    assert await unfinished(platform) == others


async def test_model_of_which_nothing_is_finished_can_be_deleted(platform: Platform, stored: StoredModels) -> None:
    await suspend(platform, "weights")
    await suspend(platform, "weights", revision="v1.0.0")
    other = await suspend(platform, "weights", model="org/other")
    assert await stored.delete(Selection(model="org/name")) == 0
    assert await unfinished(platform) == {other}
    await stored.delete(Selection(hub=HUB))
    assert await unfinished(platform) == set()


async def test_unfinished_files_stay_as_long_as_a_file_of_their_model_does(
    platform: Platform, stored: StoredModels
) -> None:
    await put(platform, "a", uses=[[EMBED, None]])
    await put(platform, "b", uses=[[FILL, None]])
    draft = await suspend(platform, "c")
    await suspend(platform, "a")
    await stored.delete(Selection(task_name=EMBED))
    assert await unfinished(platform) == {draft}
    await stored.delete(Selection(task_name=FILL))
    assert await unfinished(platform) == set()


async def test_purged_revisions_take_their_unfinished_files(platform: Platform, stored: StoredModels) -> None:
    await put(platform, "a", revision="v1.0.0")
    await suspend(platform, "b", revision="v1.0.0")
    await suspend(platform, "b", revision="v2.0.0")
    draft = await suspend(platform, "b", revision="v3.0.0")
    await stored.purge_revisions("org/name", {"v3.0.0"})
    assert await unfinished(platform) == {draft}


async def test_use_that_is_noted_before_a_deletion_gets_its_turn_counts(
    platform: Platform, stored: StoredModels
) -> None:
    key = await put(platform, "a", uses=[[EMBED, "one"]])
    async with platform.lock(LOCK):
        deleting = asyncio.ensure_future(stored.delete(Selection(engine_id="one")))
        # As another tab does that has the lock; the deletion has had time to look at the files.
        for _ in range(5):
            await platform.blobs.list("model")
        await platform.blobs.update({key: {"model": "org/name", "uses": [[EMBED, "one"], [FILL, "two"]]}})
    assert await deleting == 0
    [file] = await stored.files()
    assert file.uses == ((FILL, "two"),)


async def test_purge_spares_pinned_revisions(platform: Platform, stored: StoredModels) -> None:
    await put(platform, "a", revision="v1.0.0", pinned=True, uses=[[EMBED, None]])
    # What came after the pin was set belongs to the pinned model too.
    await put(platform, "b", revision="v1.0.0", uses=[[EMBED, None]])
    await put(platform, "a", revision="v2.0.0", uses=[[EMBED, None]])
    await put(platform, "a", revision="v3.0.0")
    assert await stored.purge_revisions("org/name", {"v3.0.0"}, Selection(task_name=EMBED)) == 10
    assert [model.revision for model in await stored.models()] == ["v1.0.0", "v3.0.0"]
    assert await stored.purge_revisions("org/name", {"v3.0.0"}, pinned=True) == 20
    assert [model.revision for model in await stored.models()] == ["v3.0.0"]


async def rewrite(platform: Platform, key: BlobKey, **metadata: Any) -> None:
    writer = await platform.blobs.open_writer(key)
    await writer.write(b"newer")
    await writer.finish()
    await commit_file(platform, key, writer, {"model": "org/name", **metadata})


async def test_new_file_keeps_the_pin_and_the_uses_of_the_one_before(platform: Platform, stored: StoredModels) -> None:
    key = BlobKey("model", f"{HUB}org/name", "main", "a")
    await rewrite(platform, key, uses=[[EMBED, None]], pinned=False)
    [file] = await stored.files()
    assert (file.pinned, file.uses) == (False, ((EMBED, None),))
    # While the next one is being downloaded, with what was known of the file at its beginning:
    await stored.pin(Selection(model="org/name"))
    await stored.note_use([key], FILL, "two")
    await rewrite(platform, key, uses=[[EMBED, None], [EMBED, "one"]], pinned=False)
    [file] = await stored.files()
    assert (file.pinned, file.uses) == (True, ((EMBED, None), (FILL, "two"), (EMBED, "one")))
    await stored.pin(Selection(model="org/name"), False)
    await rewrite(platform, key, pinned=True)
    [file] = await stored.files()
    assert (file.pinned, len(file.uses)) == (False, 3)


async def test_new_file_waits_for_whoever_changes_what_is_known_of_the_one_before(platform: Platform) -> None:
    key = await put(platform, "a")
    writer = await platform.blobs.open_writer(key)
    await writer.write(b"newer")
    await writer.finish()
    async with platform.lock(LOCK):
        committing = asyncio.ensure_future(commit_file(platform, key, writer, {"etag": "new"}))
        for _ in range(5):
            await platform.blobs.list("model")
        await platform.blobs.update({key: {"model": "org/name", "pinned": True}})
    await committing
    info = await platform.blobs.info(key)
    assert info is not None
    assert (info.size, info.metadata["pinned"], info.metadata["etag"]) == (5, True, "new")


async def test_attachments_are_committed_without_anything_of_models(platform: Platform) -> None:
    key = BlobKey("attachment", "host/main/ml-onnx-runtime", "id", "a.wasm")
    await rewrite(platform, key)
    await rewrite(platform, key)
    info = await platform.blobs.info(key)
    assert info is not None
    assert info.metadata == {"model": "org/name"}


async def test_purge_deletes_all_revisions_but_some(platform: Platform, stored: StoredModels) -> None:
    await fill(platform)
    await put(platform, "a", revision="v2.0.0", uses=[[EMBED, None]])
    assert await stored.purge_revisions("org/name", {"v2.0.0", "main"}) == 10
    assert await stored.purge_revisions("org/name", {"v2.0.0"}, Selection(hub=HUB, task_name=EMBED)) == 10
    assert await stored.purge_revisions("org/name", {"v2.0.0"}, Selection(hub=HUB)) == 20
    assert await paths(stored) == ["org/name@v2.0.0/a", "org/other@main/nobody", "org/name@main/config.json"]


# Pins and uses


async def test_pin_is_set_and_taken_back(platform: Platform, stored: StoredModels) -> None:
    await fill(platform)
    assert await stored.pin(Selection(hub=HUB, model="org/name")) == 4
    assert [(model.revision, model.pinned) for model in await stored.models()] == [
        ("main", True),
        ("v1.0.0", True),
        ("main", False),
        ("main", False),
    ]
    assert await stored.pin(Selection(revision="v1.0.0"), False) == 1
    assert [model.revision for model in await stored.models() if model.pinned] == ["main"]
    assert await stored.pin(Selection(model="unknown")) == 0


async def test_pin_keeps_everything_else_that_is_known(platform: Platform, stored: StoredModels) -> None:
    await put(platform, "a", lastUsed=5.0, uses=[[EMBED, "one"]], etag='"x"')
    await stored.pin(Selection(model="org/name"))
    [info] = await platform.blobs.list("model")
    assert info.metadata == {
        "model": "org/name",
        "lastUsed": 5.0,
        "uses": [[EMBED, "one"]],
        "etag": '"x"',
        "pinned": True,
    }


async def test_use_is_noted_with_its_time_and_replaces_that_of_the_task_alone(
    platform: Platform, stored: StoredModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await put(platform, "a", lastUsed=5.0, uses=[[EMBED, None], [FILL, None]])
    other = await put(platform, "b", lastUsed=5.0)
    monkeypatch.setattr(platform, "now", lambda: 9.0)
    await stored.note_use([key], EMBED, "one")
    await stored.note_use([key], EMBED, "one")
    await stored.note_use([key], None, None)
    files = {file.key: file for file in await stored.files()}
    assert (files[key].last_used, files[key].uses) == (9.0, ((FILL, None), (EMBED, "one"), (None, None)))
    assert (files[other].last_used, files[other].uses) == (5.0, ())
    await stored.note_use([BlobKey("model", "x", "y", "z")], EMBED, "one")


@pytest.mark.usefixtures("surroundings")
async def test_engines_keep_their_files_until_they_are_deleted_for_each(server: FaultServer) -> None:
    TinyModel().write(server.root / "hub" / "tests" / "tiny" / "v1.0.0")
    options: dict[str, Any] = {"task_name": EMBED, "model_id": "tests/tiny", "model_revision": "v1.0.0"}
    async with (
        await create_engine(**options, dtype="fp32", engine_id="exact"),
        await create_engine(**options, dtype="q8", engine_id="small"),
    ):
        pass
    stored = await stored_models()
    [model] = await stored.models()
    assert (model.task_names, model.engine_ids) == ((EMBED,), ("exact", "small"))
    sizes = {file.path: file.size for file in await stored.files()}
    assert await stored.delete(Selection(engine_id="exact")) == sizes[FILES["fp32"]]
    assert {file.path for file in await stored.files()} == set(sizes) - {FILES["fp32"]}
    assert await stored.delete(Selection(engine_id="small")) == sum(sizes.values()) - sizes[FILES["fp32"]]
    assert await stored.files() == []


# Verifying


async def test_verify_tells_good_from_damaged_and_removes_the_damaged(
    platform: Platform, stored: StoredModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = await put(platform, "good", b"good bytes", verified=5.0, uses=[[EMBED, None]])
    await put(platform, "rotten", b"some bytes", uses=[[EMBED, None]])
    damage(tmp_path, b"some bytes", b"s0me bytes")
    monkeypatch.setattr(platform, "now", lambda: 9.0)
    seen: list[Verification] = []
    results = await stored.verify(on_checked=seen.append)
    assert [(result.file.path, result.ok) for result in results] == [("good", True), ("rotten", False)]
    assert seen == results
    [left] = await stored.files()
    assert (left.key, left.verified, left.uses) == (good, 9.0, ((EMBED, None),))


async def test_file_that_takes_the_place_of_a_damaged_one_while_that_is_looked_at_stays(
    platform: Platform, stored: StoredModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await put(platform, "a")
    verify, answers = platform.blobs.verify, [False]

    async def replaced_meanwhile(name: BlobKey) -> bool:
        if not answers:
            return await verify(name)
        await rewrite(platform, key)
        return answers.pop()

    monkeypatch.setattr(platform.blobs, "verify", replaced_meanwhile)
    assert [result.ok for result in await stored.verify()] == [True]
    assert await platform.blobs.read(key) == b"newer"


async def test_verify_looks_at_what_is_selected_alone(platform: Platform, stored: StoredModels, tmp_path: Path) -> None:
    await put(platform, "a", b"some bytes", model="org/rotten")
    await put(platform, "a", b"good bytes", model="org/good")
    damage(tmp_path, b"some bytes", b"s0me bytes")
    assert [result.ok for result in await stored.verify(Selection(model="org/good"))] == [True]
    assert len(await stored.files()) == 2
    assert [result.ok for result in await stored.verify(Selection(model="org/rotten"))] == [False]
    assert await paths(stored) == ["org/good@main/a"]


async def test_file_that_was_removed_as_damaged_is_downloaded_again(
    platform: Platform, stored: StoredModels, server: FaultServer, tmp_path: Path
) -> None:
    server.write("org/name/v1.0.0/config.json", '{"model_type": "bert"}')
    hub = ModelHub(platform, server.url, listing="none")
    await hub.get_file("org/name", "v1.0.0", "config.json")
    damage(tmp_path, b'{"model_type": "bert"}', b'{"model_type": "bart"}')
    assert await hub.read_file("org/name", "v1.0.0", "config.json") == b'{"model_type": "bart"}'
    assert [result.ok for result in await stored.verify()] == [False]
    assert await hub.read_file("org/name", "v1.0.0", "config.json") == b'{"model_type": "bert"}'


def damage(folder: Path, data: bytes, other: bytes) -> None:
    """Change a stored file behind the store's back."""
    [path] = [path for path in (folder / "cache").rglob("*.bin") if path.read_bytes() == data]
    path.write_bytes(other)
