"""Engines whose model is named by a real Kinto server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest

from pywebml import configure, create_engine
from pywebml.errors import FileNotFoundOnHubError
from pywebml.platform.native import NativePlatform
from pywebml.platform.native_crypto import ALGORITHMS
from pywebml.sources import model_hub, settings_client
from tests.faults.server import FaultServer
from tests.kinto.admin import KintoAdmin
from tests.kinto.server import KintoServer
from tests.tiny_model import TinyModel

OPTIONS = "ml-inference-options"
MODEL = "tests/tiny"


@pytest.mark.usefixtures("surroundings")
async def test_model_moves_to_another_revision_by_data_alone(server: FaultServer, platform: NativePlatform) -> None:
    async def revisions() -> list[str]:
        return [model.revision for model in await model_hub(platform).list_models()]

    for revision in ("v1.0.0", "v2.0.0"):
        TinyModel().write(server.root / "hub" / MODEL / revision)
    with KintoServer() as kinto:
        async with httpx.AsyncClient(trust_env=False) as http:

            async def send(method: str, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
                response = await http.request(method, url, headers=dict(headers), content=body)
                return response.status_code, response.content

            admin = KintoAdmin(kinto.url, send)
            await admin.setup(OPTIONS)

            async def move_to(revision: str) -> None:
                fields = {"featureId": "cats", "taskName": "feature-extraction", "modelId": MODEL, "dtype": "fp32"}
                await admin.put(OPTIONS, "cats", **fields, modelRevision=revision)

            await move_to("v1.0.0")
            configure(settings_server=kinto.url, settings_root_hash=kinto.root_sha256, allow_unsigned_settings=False)
            settings = settings_client(platform)
            assert settings is not None
            await (await create_engine(feature_id="cats")).terminate()
            assert await revisions() == ["v1.0.0"]

            await move_to("v3.0.0")
            await settings.sync(OPTIONS)
            with pytest.raises(FileNotFoundOnHubError):
                await create_engine(feature_id="cats")
            assert await revisions() == ["v1.0.0"]

            await move_to("v2.0.0")
            await settings.sync(OPTIONS)
            async with await create_engine(feature_id="cats"):
                assert await revisions() == ["v2.0.0"]


def test_browsers_and_cpython_know_the_same_algorithms() -> None:
    source = Path(__file__).parents[2] / "web" / "src" / "bridge" / "crypto.ts"
    assert set(re.findall(r'^  \["([a-z0-9_-]+)", \{', source.read_text(), re.MULTILINE)) == ALGORITHMS
