"""What a method that a page calls can tell the page while it works."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeAlias

from pywebml.progress import ProgressEvent


class Call(Protocol):
    """One call from a page."""

    def progress(self, event: ProgressEvent) -> None:
        """Report a step."""

    def chunk(self, value: Any) -> None:
        """Send a piece of the result."""


Handler: TypeAlias = Callable[[str, Mapping[str, Any], Call], Awaitable[Any]]
"""Method name, parameters and call to the result. When the page no longer wants the answer, it is cancelled."""
