"""Text encoders with their heads."""

from __future__ import annotations

from pywebml.prepare.exporting.rows import Table

ROWS: Table = {}
