"""Runs the contracts inside Pyodide, on the browser platform. Each returns what failed."""

from __future__ import annotations

import json
import statistics
import time
import traceback
from collections.abc import Mapping

import pywebml
from pywebml.planning import DEFAULT_RUNTIME_FILE
from pywebml.platform import Platform, SessionWorker, get_platform
from pywebml.settings import RemoteSettings, Trust, select_runtime
from pywebml.sources import RUNTIME_COLLECTION
from tests.contract import download_contract, session_contract, settings_contract, store_contract
from tests.kinto.admin import KintoAdmin


async def run_store_contract() -> list[str]:
    """Every check on an empty store."""
    platform = await _platform()
    failures = []
    for check in store_contract.CONTRACT:
        for kind in ("model", "attachment"):
            await platform.blobs.delete([info.key for info in await platform.blobs.list(kind)])
        try:
            await check(platform)
        except Exception:
            failures.append(f"{check.__name__}: {traceback.format_exc()}")
    return failures


async def run_session_contract() -> list[str]:
    """Every check with the runtime that the settings name."""
    from pyodide.http import pyfetch

    platform = await _platform()
    trust = Trust(platform.environment.settings_root_hash)
    settings = RemoteSettings(platform, f"{platform.environment.base_url}/../../v1/", trust=trust)
    record = select_runtime(
        await settings.get(RUNTIME_COLLECTION),
        name=DEFAULT_RUNTIME_FILE,
        version=platform.environment.runtime_version,
    )
    runtime = await settings.attachment(RUNTIME_COLLECTION, record)

    async def start() -> SessionWorker:
        return await platform.start_session_worker(runtime, num_threads=1)

    async def read(name: str) -> bytes:
        content: bytes = await (await pyfetch(f"/fixtures/models/{name}")).bytes()
        return content

    models = await session_contract.store_models(platform, read)
    failures = []
    for check in session_contract.CONTRACT:
        try:
            await check(platform, start, models)
        except Exception:
            failures.append(f"{check.__name__}: {traceback.format_exc()}")
    return failures


async def run_settings_contract(kinto: str) -> list[str]:
    """Every case against a server on another origin; `kinto` is what it says when it starts."""
    server = await _kinto(kinto)
    failures = []
    for check in settings_contract.CONTRACT:
        await server.start()
        try:
            await check(server)
        except Exception:
            failures.append(f"{check.__name__}: {traceback.format_exc()}")
    return failures


async def run_download_contract(server: str, cdn: str, part: int, parts: int) -> list[str]:
    """One of so many parts of the cases, with these two fault servers."""
    from pyodide.http import pyfetch

    async def send(method: str, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        arguments = {"body": body.decode()} if method == "POST" else {}
        response = await pyfetch(url, method=method, headers=dict(headers), **arguments)
        return response.status, bytes(await response.bytes())

    platform = await _platform()
    failures = []
    for name, check in list(download_contract.contract("browser").items())[part::parts]:
        controls = (download_contract.FaultControl(url, send) for url in (server, cdn))
        scene = download_contract.Scene(platform, *controls)
        try:
            await scene.start()
            await check(scene)
        except Exception:
            failures.append(f"{name}: {traceback.format_exc()}")
        finally:
            await scene.end()
    return failures


async def measure_settings(kinto: str) -> list[str]:
    """What verifying a collection of 200 records takes, and a `get` of it."""
    server = await _kinto(kinto)
    await server.start()
    for number in range(200):
        fields = {"featureId": f"feature-{number}", "taskName": "feature-extraction", "modelId": f"org/model-{number}"}
        await server.put(f"record-{number}", **fields, modelRevision="v1.0.0", dtype="q8", filter_expression="")
    client = server.client()
    await client.sync(server.collection)
    lines = []
    for what, verify in (("get", False), ("get with verify", True)):
        times = []
        for _ in range(31):
            started = time.perf_counter()
            assert len(await client.get(server.collection, verify=verify)) == 200
            times.append(1000 * (time.perf_counter() - started))
        lines.append(f"{what} of 200 records: median {statistics.median(times):.1f} ms, lowest {min(times):.1f} ms")
    return lines


async def _kinto(line: str) -> settings_contract.Kinto:
    from pyodide.http import pyfetch

    async def send(method: str, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        arguments = {"body": body} if method not in {"GET", "HEAD"} else {}
        response = await pyfetch(url, method=method, headers=dict(headers), **arguments)
        return response.status, bytes(await response.bytes())

    values = json.loads(line)
    admin = KintoAdmin(values.pop("url"), send)
    return settings_contract.Kinto(await _platform(), admin, **values)


async def _platform() -> Platform:
    pywebml.configure(assets_base="/")
    return await get_platform()
