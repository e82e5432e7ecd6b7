"""Remote Settings: collections of records and their attachments, kept in step with a server that signs them."""

from pywebml.settings.client import RemoteSettings, SyncResult, Trust
from pywebml.settings.collections import select_options, select_runtime
from pywebml.settings.server import same_origin
from pywebml.settings.signature import PRODUCTION_ROOT_SHA256, SIGNER_NAME
from pywebml.settings.stored import Dump, packaged_dump, parse_dump

__all__ = [
    "PRODUCTION_ROOT_SHA256",
    "SIGNER_NAME",
    "Dump",
    "RemoteSettings",
    "SyncResult",
    "Trust",
    "packaged_dump",
    "parse_dump",
    "same_origin",
    "select_options",
    "select_runtime",
]
