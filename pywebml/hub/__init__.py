"""Model files: where they are on a hub, how they come into the store, and what is stored."""

from pywebml.hub.addresses import HUBS, HubAddress
from pywebml.hub.hub import ModelHub, ModelInfo
from pywebml.hub.manifest import FileEntry

__all__ = ["HUBS", "FileEntry", "HubAddress", "ModelHub", "ModelInfo"]
