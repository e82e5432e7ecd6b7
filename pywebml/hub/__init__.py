"""Model files: where they are on a hub, how they come into the store, and what is stored."""

from pywebml.hub.addresses import HUBS, HubAddress
from pywebml.hub.hub import FileStatus, ModelHub
from pywebml.hub.listing import PART_SIZE, FileEntry
from pywebml.hub.policy import AllowDenyList
from pywebml.hub.stored import ModelInfo, Selection, StoredFile, StoredModels, Verification

__all__ = [
    "HUBS",
    "PART_SIZE",
    "AllowDenyList",
    "FileEntry",
    "FileStatus",
    "HubAddress",
    "ModelHub",
    "ModelInfo",
    "Selection",
    "StoredFile",
    "StoredModels",
    "Verification",
]
