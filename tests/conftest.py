"""What tests of several parts share."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from pywebml import list_engines, options, sources
from pywebml.options import Configuration, configure
from pywebml.platform import set_platform
from pywebml.platform.native import NativePlatform
from pywebml.tasks import base
from tests.faults.server import FaultServer


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is reached directly, whatever the surroundings say."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


class PatientPlatform(NativePlatform):
    """A native platform on which waiting takes no time; `slept` has how long it would have."""

    def __init__(self, cache_dir: Path) -> None:
        super().__init__(cache_dir)
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await super().sleep(min(seconds, 0.005))


@pytest.fixture
def platform(tmp_path: Path) -> PatientPlatform:
    """A native platform with an empty store."""
    return PatientPlatform(tmp_path / "cache")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultServer]:
    """A server of the empty folder `server.root`, with faults on demand."""
    root = tmp_path / "www"
    root.mkdir()
    with FaultServer(root) as running:
        yield running


@pytest.fixture
async def surroundings(
    platform: NativePlatform, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[None]:
    """The package works on `platform` with the hub `hub/` of `server`; engines, tasks and settings go afterwards."""
    monkeypatch.setattr(options, "_configuration", Configuration())
    monkeypatch.setattr(base, "_tasks", dict(base._tasks))
    configure(hub_root_url=f"{server.url}/hub/", allow_unsigned_settings=True)
    set_platform(platform)
    yield
    for engine in list_engines():
        await engine.terminate()
    for revalidation in list(sources._revalidations):
        revalidation.cancel()
    await asyncio.gather(*sources._revalidations, return_exceptions=True)
    set_platform(None)
