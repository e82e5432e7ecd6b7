"""Silence for libraries that talk about themselves; their exceptions still come through."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as transformers_logging


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings, no log lines below errors and no progress bars of others inside this block."""
    disabled_before = logging.root.manager.disable
    bars_before = transformers_logging.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            logging.disable(disabled_before)
            if bars_before:
                transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
