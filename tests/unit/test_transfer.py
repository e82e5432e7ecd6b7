"""Models from one machine to another by folder or archive, as a program does it, and the room that they take."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest

from pywebml import (
    ProgressEvent,
    Selection,
    StoreUsage,
    configure,
    create_engine,
    export_models,
    import_models,
    persist_storage,
    prefetch,
    storage_usage,
    stored_models,
)
from pywebml.errors import ForbiddenURLError, OptionsError, QuotaExceededError
from pywebml.options import PipelineOptions
from pywebml.platform import set_platform
from pywebml.platform.native import NativePlatform
from tests.conftest import PatientPlatform
from tests.faults.server import FaultServer
from tests.tiny_model import TinyModel

pytestmark = pytest.mark.usefixtures("surroundings")

MODEL, REVISION = "tests/tiny", "v1.0.0"
TINY: dict[str, Any] = {
    "task_name": "feature-extraction",
    "model_id": MODEL,
    "model_revision": REVISION,
    "dtype": "fp32",
}


@pytest.fixture
async def stored(surroundings: None, server: FaultServer) -> None:
    """Two models are stored here; from now on no hub answers."""
    for model in (MODEL, "tests/other"):
        TinyModel().write(server.root / "hub" / model / REVISION)
        await prefetch(**{**TINY, "model_id": model})
    server.fault("*", "drop", method="*")


def another_machine(tmp_path: Path) -> NativePlatform:
    platform = PatientPlatform(tmp_path / "other-cache")
    set_platform(platform)
    return platform


@pytest.mark.parametrize("name", ["out", "out.tar"])
@pytest.mark.usefixtures("stored")
async def test_exported_model_makes_an_engine_on_another_machine(tmp_path: Path, name: str) -> None:
    assert await export_models(target=tmp_path / name, model=MODEL) is None
    assert (tmp_path / name).is_file() == name.endswith(".tar")
    another_machine(tmp_path)
    events: list[ProgressEvent] = []
    assert await import_models(tmp_path / name, on_progress=events.append) == [(MODEL, REVISION)]
    assert {event.type for event in events} == {"importing"}
    assert events[0].metadata["model"] == MODEL
    async with await create_engine(**TINY) as engine:
        assert (await engine.run("cat")).shape == (1, 3, 8)


@pytest.mark.usefixtures("stored")
async def test_kind_of_an_export_can_be_chosen_and_nothing_named_is_everything(tmp_path: Path) -> None:
    await export_models(target=tmp_path / "models.bin", archive=True)
    with tarfile.open(tmp_path / "models.bin") as archive:
        models = {"/".join(name.split("/")[:2]) for name in archive.getnames()}
    assert models == {MODEL, "tests/other"}
    await export_models(Selection(model=MODEL), target=tmp_path / "folder.tar", archive=False)
    assert (tmp_path / "folder.tar" / MODEL / REVISION / "config.json").exists()


@pytest.mark.usefixtures("stored")
async def test_imported_models_are_of_the_chosen_hub(tmp_path: Path) -> None:
    await export_models(target=tmp_path / "out", model=MODEL)
    another_machine(tmp_path)
    await import_models(tmp_path / "out", model_hub="mozilla")
    await import_models(tmp_path / "out", PipelineOptions(model_hub_root_url="https://hub.example/"))
    hubs = {model.hub for model in await (await stored_models()).models()}
    assert hubs == {"model-hub.mozilla.org/", "hub.example/"}


async def test_choice_is_given_in_one_way(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="not both"):
        await export_models(Selection(), target=tmp_path / "out", model=MODEL)
    with pytest.raises(OptionsError, match="not both"):
        await import_models(tmp_path / "out", PipelineOptions(), model_hub="mozilla")


@pytest.mark.usefixtures("stored")
async def test_model_that_is_denied_is_not_imported_and_nothing_with_it(tmp_path: Path, server: FaultServer) -> None:
    await export_models(target=tmp_path / "out")
    another_machine(tmp_path)
    configure(allow_deny_list=[{"filter": "DENY", "urlPrefix": f"{server.url}/hub/{MODEL}/"}])
    with pytest.raises(ForbiddenURLError, match=MODEL):
        await import_models(tmp_path / "out")
    assert await (await stored_models()).files() == []


@pytest.mark.usefixtures("stored")
async def test_import_keeps_to_the_configured_limit(tmp_path: Path) -> None:
    await export_models(target=tmp_path / "out")
    another_machine(tmp_path)
    configure(max_cache_bytes=100)
    with pytest.raises(QuotaExceededError):
        await import_models(tmp_path / "out")
    assert (await storage_usage()).files == 0


@pytest.mark.usefixtures("stored")
async def test_usage_is_what_the_stored_files_take() -> None:
    usage = await storage_usage()
    assert isinstance(usage, StoreUsage)
    assert usage.files == sum(model.size for model in await (await stored_models()).models()) > 0
    assert usage.available is None or usage.available > 0


async def test_files_of_a_disk_stay() -> None:
    assert await persist_storage() is True
