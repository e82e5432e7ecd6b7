"""The store contract on the native platform; the browser tests run the same functions in Chromium."""

from collections.abc import Awaitable, Callable

import pytest

from pywebml.platform import Platform
from tests.contract import store_contract


@pytest.mark.parametrize("check", store_contract.CONTRACT, ids=lambda check: str(check.__name__))
async def test_store(check: Callable[[Platform], Awaitable[None]], platform: Platform) -> None:
    await check(platform)
