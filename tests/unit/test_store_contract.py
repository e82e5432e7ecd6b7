"""The store contract on the native platform; the browser tests run the same functions in Chromium."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pywebml.platform import Platform
from pywebml.platform.native import NativePlatform
from tests.contract import store_contract


@pytest.fixture
def platform(tmp_path: Path) -> NativePlatform:
    """One that really sleeps."""
    return NativePlatform(tmp_path / "cache")


@pytest.mark.parametrize("check", store_contract.CONTRACT, ids=lambda check: str(check.__name__))
async def test_store(check: Callable[[Platform], Awaitable[None]], platform: Platform) -> None:
    await check(platform)
