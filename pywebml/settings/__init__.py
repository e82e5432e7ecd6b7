"""Remote Settings: collections of records and their attachments, kept in step with a server."""

from pywebml.settings.client import RemoteSettings, SyncResult
from pywebml.settings.collections import select_options, select_runtime

__all__ = ["RemoteSettings", "SyncResult", "select_options", "select_runtime"]
