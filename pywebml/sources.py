"""Where settings and models come from, as configured."""

from __future__ import annotations

import asyncio
import logging
from urllib.parse import urljoin
from weakref import WeakValueDictionary

from pywebml.errors import OptionsError, PywebmlError
from pywebml.hub import HUBS, ModelHub
from pywebml.options import Configuration, PipelineOptions, get_configuration
from pywebml.platform import Platform
from pywebml.settings import PRODUCTION_ROOT_SHA256, RemoteSettings, Trust, packaged_dump, same_origin

RUNTIME_COLLECTION = "ml-onnx-runtime"
OPTIONS_COLLECTION = "ml-inference-options"

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
_hubs: WeakValueDictionary[tuple[int, str, str, bool], ModelHub] = WeakValueDictionary()


def model_hub(
    platform: Platform, configuration: Configuration | None = None, options: PipelineOptions | None = None
) -> ModelHub:
    """The hub that an engine with these options uses.

    Raises:
        OptionsError: No hub is configured.
    """
    configuration = configuration or get_configuration()
    options = options or PipelineOptions()
    if options.model_hub is not None:
        known = HUBS[options.model_hub]
        return _shared_hub(platform, known.root_url, known.url_template, known.uses_manifest)
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
    return _shared_hub(platform, _absolute(platform, root), template, True)


def _shared_hub(platform: Platform, root_url: str, url_template: str, uses_manifest: bool) -> ModelHub:
    key = (id(platform), root_url, url_template, uses_manifest)
    hub = _hubs.get(key)
    if hub is None:
        hub = ModelHub(platform, root_url, url_template, uses_manifest=uses_manifest)
        _hubs[key] = hub
    return hub


def _folder(address: str) -> str:
    return address if address.endswith("/") else f"{address}/"


def _absolute(platform: Platform, address: str) -> str:
    return urljoin(platform.environment.base_url, address)


_revalidations: set[asyncio.Task[None]] = set()


def revalidate(settings: RemoteSettings) -> None:
    """Ask the server in the background what has changed: for the next start, without delaying this one."""

    async def sync_all() -> None:
        for collection in (RUNTIME_COLLECTION, OPTIONS_COLLECTION):
            try:
                await settings.sync(collection)
            except PywebmlError as error:
                _logger.info("Settings stay as they are: %s", error)

    # The loop itself keeps only a weak reference to a task.
    task = asyncio.ensure_future(sync_all())
    _revalidations.add(task)
    task.add_done_callback(_revalidations.discard)
