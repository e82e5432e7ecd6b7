"""Where settings and models come from, as configured."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from urllib.parse import urljoin, urlsplit
from weakref import WeakMethod, WeakValueDictionary, finalize

from pywebml.errors import OptionsError, PywebmlError, UnknownCollectionError
from pywebml.hub import HUBS, AllowDenyList, HubAddress, ModelHub
from pywebml.options import Configuration, PipelineOptions, get_configuration
from pywebml.platform import Platform
from pywebml.settings import PRODUCTION_ROOT_SHA256, RemoteSettings, SyncResult, Trust, packaged_dump, same_origin

RUNTIME_COLLECTION = "ml-onnx-runtime"
OPTIONS_COLLECTION = "ml-inference-options"
ALLOW_DENY_COLLECTION = "ml-model-allow-deny-list"
COLLECTIONS = (RUNTIME_COLLECTION, OPTIONS_COLLECTION, ALLOW_DENY_COLLECTION)

# How long the allow and deny list is taken for the newest, in case another tab has fetched a newer one.
_POLICY_SECONDS = 30.0

_logger = logging.getLogger("pywebml")


def settings_client(platform: Platform, configuration: Configuration | None = None) -> RemoteSettings | None:
    """The configured settings client; None when no server is configured."""
    configuration = configuration or get_configuration()
    server, read_dump = configuration.settings_server, None
    if server is None and configuration.assets_base is not None:
        # What the package brings along belongs to the mirror that was built with it, and to no other server.
        server, read_dump = urljoin(_folder(configuration.assets_base), "v1/"), packaged_dump
    if server is None:
        return None
    address = _absolute(platform, server)
    built_with_us = read_dump is not None or same_origin(address, platform.environment.base_url)
    root = configuration.settings_root_hash or (built_with_us and platform.environment.settings_root_hash)
    trust = Trust(root or PRODUCTION_ROOT_SHA256, unsigned=configuration.allow_unsigned_settings)
    key = (id(platform), address, trust, read_dump is None)
    client = _settings_clients.get(key)
    if client is None:
        client = RemoteSettings(platform, address, trust=trust, read_dump=read_dump)
        _settings_clients[key] = client
    return client


# Engines that load at the same time share these, so that what several want is fetched once.
_settings_clients: WeakValueDictionary[tuple[int, str, Trust, bool], RemoteSettings] = WeakValueDictionary()
_hubs: WeakValueDictionary[tuple[int, int, HubAddress], ModelHub] = WeakValueDictionary()


def model_hub(
    platform: Platform, configuration: Configuration | None = None, options: PipelineOptions | None = None
) -> ModelHub:
    """The hub that an engine with these options uses.

    Raises:
        OptionsError: No hub is configured.
    """
    configuration = configuration or get_configuration()
    address = hub_address(platform, configuration, options or PipelineOptions())
    # The hub holds its configuration, so that no other one can have this id as long as the hub is there.
    key = (id(platform), id(configuration), address)
    hub = _hubs.get(key)
    if hub is None:
        hub = ModelHub(
            platform,
            address.root_url,
            address.url_template,
            listing=address.listing,
            access_token=_access_token(configuration, address),
            policy=_Policy(platform, configuration),
            stall_seconds=configuration.stall_timeout_ms / 1000,
        )
        _hubs[key] = hub
    return hub


def hub_address(platform: Platform, configuration: Configuration, options: PipelineOptions) -> HubAddress:
    """Where the models of an engine with these options are.

    Raises:
        OptionsError: No hub is configured, or its address is not usable.
    """
    if options.model_hub is not None:
        return HUBS[options.model_hub]
    root = options.model_hub_root_url or configuration.hub_root_url
    if root is None and configuration.assets_base is not None:
        root = urljoin(_folder(configuration.assets_base), "hub/")
    if root is None:
        raise OptionsError(
            "No model hub: call configure(hub_root_url=…), or give model_hub='huggingface' or model_hub_root_url.",
            field="hub_root_url",
            value=None,
        )
    template = options.model_hub_url_template or configuration.hub_url_template
    return HubAddress.of(_absolute(platform, root), template)


def _access_token(configuration: Configuration, address: HubAddress) -> str | None:
    for origin, token in (configuration.hub_access_tokens or {}).items():
        if _origin(origin) == _origin(address.root_url):
            return token
    return None


def _origin(address: str) -> tuple[str, str, int | None]:
    parts = urlsplit(address)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme)


class _Policy:
    """The allow and deny list of the settings server and the configuration, as it is at the moment."""

    def __init__(self, platform: Platform, configuration: Configuration) -> None:
        self._platform = platform
        self._configuration = configuration
        self._settings = settings_client(platform, configuration)
        self._read: float | None = None
        self._list = AllowDenyList()
        if self._settings is not None:
            forget = WeakMethod(self._forget)

            def on_sync(collection: str, result: SyncResult) -> None:
                if (method := forget()) is not None:
                    method(collection, result)

            # The settings may outlive the hub that this is for.
            finalize(self, self._settings.on_sync(on_sync))

    async def __call__(self) -> AllowDenyList:
        now = self._platform.monotonic()
        if self._read is None or now - self._read >= _POLICY_SECONDS:
            records = [*(self._configuration.allow_deny_list or ()), *await self._records()]
            self._list = AllowDenyList(records, self._platform.environment.base_url)
            self._read = now
        return self._list

    async def _records(self) -> list[dict[str, Any]]:
        settings = self._settings
        if settings is None:
            return []
        # A server without this collection is asked once; later syncs find out when it has one.
        asked = f"{ALLOW_DENY_COLLECTION}/{settings.server_url}"
        known_absent = await self._platform.documents.get(asked) is not None
        try:
            return await settings.get(ALLOW_DENY_COLLECTION, sync_if_empty=not known_absent)
        except UnknownCollectionError:
            await self._platform.documents.put(asked, "absent")
            return []

    def _forget(self, _collection: str, _result: SyncResult) -> None:
        self._read = None


def _folder(address: str) -> str:
    return address if address.endswith("/") else f"{address}/"


def _absolute(platform: Platform, address: str) -> str:
    return urljoin(platform.environment.base_url, address)


_revalidations: set[asyncio.Task[None]] = set()


def revalidate(settings: RemoteSettings) -> None:
    """Ask the server in the background what has changed: for the next start, without delaying this one."""

    async def sync_all() -> None:
        for collection in COLLECTIONS:
            try:
                await settings.sync(collection)
            except PywebmlError as error:
                _logger.info("Settings stay as they are: %s", error)

    # The loop itself keeps only a weak reference to a task.
    task = asyncio.ensure_future(sync_all())
    _revalidations.add(task)
    task.add_done_callback(_revalidations.discard)
