"""The allow and deny list: which addresses it lets through, and that no way to a model leads past it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pywebml import configure, create_engine, is_cached, plan
from pywebml.errors import ForbiddenURLError, OptionsError
from pywebml.hub import AllowDenyList, ModelHub
from pywebml.hub.addresses import HubAddress
from pywebml.options import get_configuration
from pywebml.platform import Platform
from pywebml.platform.native import NativePlatform
from pywebml.prepare.mirror import Json, MirrorCollection, write_mirror
from pywebml.sources import ALLOW_DENY_COLLECTION, model_hub, settings_client
from tests.faults.server import FaultServer
from tests.kinto.admin import KintoAdmin
from tests.kinto.server import KintoServer
from tests.tiny_model import FILES, TinyModel

HUB = "https://hub.example/"
MODEL, REVISION = "tests/tiny", "v1.0.0"
TINY: dict[str, Any] = {
    "task_name": "feature-extraction",
    "model_id": MODEL,
    "model_revision": REVISION,
    "dtype": "fp32",
}


def allow(prefix: str) -> dict[str, str]:
    return {"filter": "ALLOW", "urlPrefix": prefix}


def deny(prefix: str) -> dict[str, str]:
    return {"filter": "DENY", "urlPrefix": prefix}


def verdict(records: list[dict[str, str]], url: str, base_url: str = "") -> str:
    try:
        AllowDenyList(records, base_url).check(url)
    except ForbiddenURLError as error:
        forbidden = error
    else:
        return "passes"
    assert forbidden.details["url"] == url
    assert url in forbidden.message
    return str(forbidden.details["reason"])


# The rules


@pytest.mark.parametrize(
    ("records", "url", "expected"),
    [
        ([], f"{HUB}a/b", "passes"),
        ([], "http://anything.example:8080/x", "passes"),
        ([deny(f"{HUB}a/")], f"{HUB}a/b", "DENIED"),
        ([deny(f"{HUB}a/")], f"{HUB}b/a/", "passes"),
        ([deny(f"{HUB}a/")], "https://other.example/a/", "passes"),
        ([allow(f"{HUB}a/")], f"{HUB}a/b", "passes"),
        ([allow(f"{HUB}a/")], f"{HUB}b", "DISALLOWED"),
        ([allow(f"{HUB}a/")], "https://other.example/a/b", "DISALLOWED"),
        ([allow(HUB), deny(f"{HUB}a/")], f"{HUB}a/b", "DENIED"),
        ([deny(f"{HUB}a/"), allow(f"{HUB}a/b")], f"{HUB}a/b", "DENIED"),
        ([allow(HUB), deny(f"{HUB}a/")], f"{HUB}b", "passes"),
        ([allow(f"{HUB}a/"), allow(f"{HUB}b/")], f"{HUB}b/c", "passes"),
        # A beginning, not a folder.
        ([allow(f"{HUB}mod")], f"{HUB}models/a", "passes"),
    ],
)
def test_deny_wins_and_what_is_not_allowed_is_not_once_anything_is(
    records: list[dict[str, str]], url: str, expected: str
) -> None:
    assert verdict(records, url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "https://page.example/hub/x",
        "https://PAGE.example:443/hub/x",
        "http://localhost:8080/x",
        "http://127.0.0.1/x",
        "https://[::1]:9/x",
    ],
)
def test_own_origin_and_this_machine_pass_unless_denied(url: str) -> None:
    page = "https://page.example/inference/index.html?a=b#c"
    assert verdict([allow(HUB)], url, page) == "passes"
    assert verdict([allow(HUB), deny(url)], url, page) == "DENIED"


@pytest.mark.parametrize(
    "url",
    ["http://page.example/x", "https://page.example:444/x", "https://sub.page.example/x", "https://page.example.org/x"],
)
def test_another_origin_is_not_the_pages_own(url: str) -> None:
    assert verdict([allow(HUB)], url, "https://page.example/") == "DISALLOWED"


@pytest.mark.parametrize(
    "url",
    [
        "https://hub.example.org/a",
        "https://hub.example@evil.example/a",
        "https://hub.example:pass@evil.example/a",
        "https://user@hub.example/a",
        "https://evilhub.example/a",
        "https://sub.hub.example/a",
        "https://hub.example:8443/a",
        "http://hub.example/a",
        "https://hub.example\\@evil.example/a",
        "https://evil.example/https://hub.example/a",
        "https://hub.exampl\u0435/a",
        "ftp://hub.example/a",
        "hub.example/a",
        "//hub.example/a",
        "https://",
        "https://hub.example:99999/",
        "https://[hub.example/",
        "",
    ],
)
@pytest.mark.parametrize("prefix", ["https://hub.example", "https://hub.example/"])
def test_address_that_looks_like_an_allowed_one_does_not_pass(prefix: str, url: str) -> None:
    assert verdict([allow(prefix)], url) == "DISALLOWED"


@pytest.mark.parametrize(
    "url",
    [
        "https://hub.example/models/a",
        "https://HUB.EXAMPLE/models/a",
        "https://hub.example/MODELS/a",
        "https://hub.example:443/models/a",
        "https://hub.example./models/a",
        "https://hub.example/%6dodels/a",
        "https://hub.example/models%2Fa",
        "https://hub.example/models/a?x#y",
        "https://ｈub.example/models/a",
        "https://hub。example/models/a",
    ],
)
def test_no_spelling_of_a_denied_address_passes(url: str) -> None:
    assert verdict([deny("https://Hub.example/Models/")], url) == "DENIED"


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0177.0.0.1", "10.0.0.1.", "0xA.0.0.1"])
def test_no_other_spelling_of_a_denied_number_passes(host: str) -> None:
    records = [deny("http://10.0.0.1/"), deny("http://127.0.0.1/")]
    assert verdict(records, f"http://{host}/a") in {"DENIED", "DISALLOWED"}


@pytest.mark.parametrize(
    "path",
    ["models/../secret", "models/%2e%2e/secret", "models/..%2fsecret", "models/./a", "models\\..\\secret", "a%5Cb"],
)
def test_address_that_climbs_is_let_through_by_nothing(path: str) -> None:
    for records in ([], [allow(f"{HUB}models/")], [deny("https://other.example/")]):
        assert verdict(records, HUB + path) == "DISALLOWED"


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"filter": "ALLOW"},
        {"urlPrefix": HUB},
        {"filter": "allow", "urlPrefix": HUB},
        {"filter": ["ALLOW"], "urlPrefix": HUB},
        {"filter": None, "urlPrefix": HUB},
        {"filter": "DENY", "urlPrefix": None},
        {"filter": "DENY", "urlPrefix": 5},
        {"filter": "DENY", "urlPrefix": ""},
        {"filter": "DENY", "urlPrefix": "hub.example/"},
        {"filter": "DENY", "urlPrefix": "ftp://hub.example/"},
        {"filter": "DENY", "urlPrefix": "https://user@hub.example/"},
        {"filter": "DENY", "urlPrefix": "https://hub.example:99999/"},
        {"filter": "DENY", "urlPrefix": "https://hub.example/a/../b"},
        {"filter": "ALLOW", "urlPrefix": "https://hub.example/?model=a"},
        {"filter": "ALLOW", "urlPrefix": "https://hub.example/#a"},
    ],
)
def test_entry_that_cannot_be_understood_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(OptionsError, match="no entry of the allow and deny list") as caught:
        AllowDenyList([allow(HUB), record])
    assert caught.value.details["field"] == "allowDenyList"


ADDRESSES = st.text(max_size=20) | st.builds(
    lambda scheme, host, rest: f"{scheme}://{host}/{rest}",
    st.sampled_from(["https", "http", "HTTPS", "ftp"]),
    st.sampled_from(["hub.example", "hub.example.", "HUB.example:443", "user@hub.example", "127.0.0.1"]) | st.text(),
    st.text(alphabet="a./\\%2e?#", max_size=12) | st.text(),
)


@given(ADDRESSES, ADDRESSES)
def test_any_text_is_let_through_or_refused_by_name_and_deny_always_wins(prefix: str, url: str) -> None:
    assert verdict([allow(HUB)], url) in {"passes", "DISALLOWED"}
    try:
        AllowDenyList([deny(prefix)])
    except OptionsError:
        return
    assert verdict([allow(prefix), deny(prefix)], prefix) == "DENIED"
    assert verdict([allow(prefix), deny(prefix)], url) in {"DENIED", "DISALLOWED", "passes"}


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_every_address_of_a_hub_is_covered_by_its_root(model: str, revision: str, path: str) -> None:
    address = HubAddress.of("https://hub.example/models/", "{model}/{revision}")
    try:
        url = address.file_url(model, revision, path)
    except OptionsError:
        return
    assert verdict([allow(address.root_url)], url) == "passes"
    assert verdict([deny(address.root_url)], url) == "DENIED"


# Every access


class Switch:
    """A policy of which a test can change the entries."""

    def __init__(self) -> None:
        self.records: list[dict[str, str]] = []

    async def __call__(self) -> AllowDenyList:
        return AllowDenyList(self.records)


ACCESSES: Mapping[str, Callable[[ModelHub], Awaitable[Any]]] = {
    "get_file": lambda hub: hub.get_file(MODEL, REVISION, "config.json"),
    "get_file of an optional one": lambda hub: hub.get_file(MODEL, REVISION, "config.json", required=False),
    "read_file": lambda hub: hub.read_file(MODEL, REVISION, "config.json"),
    "read_stored": lambda hub: hub.read_stored(MODEL, REVISION, "config.json"),
    "has_file": lambda hub: hub.has_file(MODEL, REVISION, "config.json"),
    "file_status": lambda hub: hub.file_status(MODEL, REVISION, "config.json"),
    "entries": lambda hub: hub.entries(MODEL, REVISION),
}


@pytest.mark.parametrize("access", ACCESSES)
async def test_model_that_is_denied_after_it_was_stored_is_refused_until_the_entry_goes(
    platform: Platform, server: FaultServer, access: str
) -> None:
    TinyModel().write(server.root / MODEL / REVISION)
    policy = Switch()
    hub = ModelHub(platform, server.url, policy=policy)
    await hub.get_file(MODEL, REVISION, "config.json")
    server.forget()

    policy.records = [deny(f"{server.url}/tests/")]
    with pytest.raises(ForbiddenURLError, match="forbids it"):
        await ACCESSES[access](hub)
    assert server.requests() == []

    policy.records = [deny(f"{server.url}/others/")]
    assert await ACCESSES[access](hub)
    assert server.requests() == []


@pytest.mark.parametrize(
    "records",
    [
        lambda url: [deny(f"{url}/api/"), deny(f"{url}/{MODEL}/raw/")],
        lambda url: [allow("https://hub.example/"), deny(f"{url}/api/"), deny(f"{url}/{MODEL}/raw/")],
    ],
)
async def test_lists_and_pointers_that_are_denied_are_not_asked_for(
    platform: Platform, server: FaultServer, records: Callable[[str], list[dict[str, str]]]
) -> None:
    files = TinyModel(manifest=False).files()
    server.hugging_face(MODEL, REVISION, files)
    policy = Switch()
    policy.records = records(server.url)
    hub = ModelHub(platform, server.url, "{model}/resolve/{revision}", policy=policy)
    assert await hub.entries(MODEL, REVISION) is None
    for path, data in files.items():
        assert await platform.blobs.read(await hub.get_file(MODEL, REVISION, path)) == data
    assert server.requests("/api/*") == server.requests("*/raw/*") == []


async def test_denied_model_can_still_be_listed_and_deleted(platform: Platform, server: FaultServer) -> None:
    TinyModel().write(server.root / MODEL / REVISION)
    policy = Switch()
    hub = ModelHub(platform, server.url, policy=policy)
    await hub.get_file(MODEL, REVISION, "config.json")
    policy.records = [deny(f"{server.url}/")]
    assert [model.model for model in await hub.list_models()] == [MODEL]
    assert await hub.delete_model(MODEL) > 0


@pytest.mark.usefixtures("surroundings")
async def test_configured_list_keeps_a_stored_model_from_engines_plans_and_prefetch(server: FaultServer) -> None:
    TinyModel().write(server.root / "hub" / MODEL / REVISION)
    async with await create_engine(**TINY):
        pass
    server.forget()
    configure(allow_deny_list=[deny(f"{server.url}/hub/")])
    for use in (create_engine, plan, is_cached):
        with pytest.raises(ForbiddenURLError):
            await use(**TINY)
    assert server.requests() == []
    configure(allow_deny_list=[allow("https://hub.example/"), deny(f"{server.url}/hub/others/")])
    async with await create_engine(**TINY) as engine:
        assert (await engine.run("cat")).shape == (1, 3, 8)
    assert server.requests() == []


@pytest.mark.usefixtures("surroundings")
async def test_configured_entry_that_cannot_be_understood_lets_nothing_through(server: FaultServer) -> None:
    TinyModel().write(server.root / "hub" / MODEL / REVISION)
    configure(allow_deny_list=[{"filter": "DENY", "urlPrefix": "hub.example"}])
    with pytest.raises(OptionsError, match=r"hub\.example"):
        await create_engine(**TINY)
    assert server.requests() == []


# From the settings server


def publish_list(server: FaultServer, *records: dict[str, str], timestamp: int) -> None:
    runtime = MirrorCollection("main", "ml-onnx-runtime", timestamp, {})
    options = MirrorCollection("main", "ml-inference-options", timestamp, {})
    entries: dict[str, dict[str, Json]] = {str(index): {**record} for index, record in enumerate(records)}
    write_mirror(
        server.root / "v1", [runtime, options, MirrorCollection("main", ALLOW_DENY_COLLECTION, timestamp, entries)]
    )


@pytest.mark.usefixtures("surroundings")
async def test_list_of_the_settings_counts_beside_the_configured_one_and_a_sync_changes_it(
    server: FaultServer, platform: NativePlatform
) -> None:
    for model in (MODEL, "tests/other"):
        TinyModel().write(server.root / "hub" / model / REVISION)
    publish_list(server, deny(f"{server.url}/hub/{MODEL}/"), timestamp=1_760_000_000_000)
    configure(settings_server=f"{server.url}/v1", allow_deny_list=[deny("https://other.example/")])
    settings = settings_client(platform)
    assert settings is not None
    hub = model_hub(platform)
    with pytest.raises(ForbiddenURLError):
        await hub.get_file(MODEL, REVISION, "config.json")
    assert await hub.get_file("tests/other", REVISION, "config.json")

    publish_list(server, deny(f"{server.url}/hub/tests/other/"), timestamp=1_760_000_001_000)
    await settings.sync(ALLOW_DENY_COLLECTION)
    assert await hub.get_file(MODEL, REVISION, "config.json")
    with pytest.raises(ForbiddenURLError):
        await hub.read_stored("tests/other", REVISION, "config.json")


@pytest.mark.usefixtures("surroundings")
async def test_entry_of_the_settings_that_cannot_be_understood_lets_nothing_through(
    server: FaultServer, platform: NativePlatform
) -> None:
    publish_list(server, {"filter": "BAN", "urlPrefix": "https://hub.example/"}, timestamp=1_760_000_000_000)
    configure(settings_server=f"{server.url}/v1")
    with pytest.raises(OptionsError, match="BAN"):
        await model_hub(platform).get_file(MODEL, REVISION, "config.json")


@pytest.mark.usefixtures("surroundings")
async def test_settings_server_without_a_list_is_asked_for_it_once(
    server: FaultServer, platform: NativePlatform
) -> None:
    TinyModel().write(server.root / "hub" / MODEL / REVISION)
    configure(settings_server=f"{server.url}/v1")
    write_mirror(server.root / "v1", [MirrorCollection("main", "ml-onnx-runtime", 1_760_000_000_000, {})])
    await model_hub(platform).get_file(MODEL, REVISION, "config.json")
    assert server.requests("/v1/*")
    server.forget()
    configure(max_cache_bytes=10**9)
    assert get_configuration().max_cache_bytes == 10**9
    await model_hub(platform).get_file(MODEL, REVISION, "config.json")
    assert server.requests("/v1/*") == []


@pytest.mark.usefixtures("surroundings")
async def test_entry_in_a_kinto_server_stops_a_stored_model_and_its_deletion_frees_it(
    server: FaultServer, platform: NativePlatform
) -> None:
    TinyModel().write(server.root / "hub" / MODEL / REVISION)
    with KintoServer() as kinto:
        async with httpx.AsyncClient(trust_env=False) as http:

            async def send(method: str, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
                response = await http.request(method, url, headers=dict(headers), content=body)
                return response.status_code, response.content

            admin = KintoAdmin(kinto.url, send)
            await admin.setup(ALLOW_DENY_COLLECTION, "ml-inference-options")
            await admin.put(ALLOW_DENY_COLLECTION, "first", **deny("https://other.example/"))
            configure(settings_server=kinto.url, settings_root_hash=kinto.root_sha256, allow_unsigned_settings=False)
            settings = settings_client(platform)
            assert settings is not None
            async with await create_engine(**TINY):
                pass

            await admin.put(ALLOW_DENY_COLLECTION, "second", **deny(f"{server.url}/hub/tests/"))
            await settings.sync(ALLOW_DENY_COLLECTION)
            server.forget()
            with pytest.raises(ForbiddenURLError) as caught:
                await create_engine(**TINY)
            assert caught.value.details["reason"] == "DENIED"
            with pytest.raises(ForbiddenURLError):
                await model_hub(platform).read_stored(MODEL, REVISION, FILES["fp32"])

            await admin.delete(ALLOW_DENY_COLLECTION, "second")
            await settings.sync(ALLOW_DENY_COLLECTION)
            async with await create_engine(**TINY):
                assert server.requests() == []
