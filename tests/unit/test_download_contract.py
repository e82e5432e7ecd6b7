"""The downloader natively against real fault servers; the browser tests run the same functions in Chromium."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import httpx
import pytest

from pywebml.platform.native import NativePlatform
from tests.contract.download_contract import FaultControl, Scene, contract
from tests.faults.server import FaultServer

CASES = contract("native")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FaultServer, FaultServer]]:
    with FaultServer(tmp_path_factory.mktemp("hub")) as hub, FaultServer(tmp_path_factory.mktemp("cdn")) as cdn:
        yield hub, cdn


@pytest.fixture
async def scene(tmp_path: Path, servers: tuple[FaultServer, FaultServer]) -> AsyncIterator[Scene]:
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=60) as client:

        async def send(method: str, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
            response = await client.request(method, url, headers=dict(headers), content=body)
            return response.status_code, response.content

        hub, cdn = (FaultControl(server.url, send) for server in servers)
        scene = Scene(NativePlatform(tmp_path / "cache"), hub, cdn)
        await scene.start()
        yield scene
        await scene.end()


@pytest.mark.parametrize("name", CASES)
async def test_downloads(name: str, scene: Scene) -> None:
    await CASES[name](scene)
