"""The settings client natively against a real Kinto server; the browser tests run the same functions in Chromium."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping

import httpx
import pytest

from pywebml.platform import Platform
from tests.contract.settings_contract import CONTRACT, Kinto
from tests.kinto.admin import KintoAdmin
from tests.kinto.server import KintoServer


@pytest.fixture(scope="module")
def kinto_server() -> Iterator[KintoServer]:
    with KintoServer() as server:
        yield server


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: str(check.__name__))
async def test_settings(
    check: Callable[[Kinto], Awaitable[None]], platform: Platform, kinto_server: KintoServer
) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:

        async def send(method: str, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
            response = await client.request(method, url, headers=dict(headers), content=body)
            return response.status_code, response.content

        kinto = Kinto(
            platform,
            KintoAdmin(kinto_server.url, send),
            kinto_server.root_sha256,
            kinto_server.all_ec_root_sha256,
            kinto_server.bad_chains,
        )
        await kinto.start()
        await check(kinto)
