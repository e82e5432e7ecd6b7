"""What tests of several parts share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pywebml.platform.native import NativePlatform
from tests.faults.server import FaultServer


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is reached directly, whatever the surroundings say."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def platform(tmp_path: Path) -> NativePlatform:
    """A native platform with an empty store."""
    return NativePlatform(tmp_path / "cache")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultServer]:
    """A server of the empty folder `server.root`, with faults on demand."""
    root = tmp_path / "www"
    root.mkdir()
    with FaultServer(root) as running:
        yield running
