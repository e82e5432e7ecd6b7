"""Decoders with a cache."""

from __future__ import annotations

from pywebml.prepare.exporting.rows import Table

ROWS: Table = {}
