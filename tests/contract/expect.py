"""What the contracts need of a test library, without one: they also run inside Pyodide."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def raises(kind: type[BaseException], *words: str) -> Iterator[None]:
    """The block must raise `kind`, with all `words` in its message."""
    try:
        yield
    except kind as error:
        missing = [word for word in words if word not in str(error)]
        if missing:
            raise AssertionError(f"{kind.__name__} was raised without {missing} in it: {error}") from error
    else:
        raise AssertionError(f"{kind.__name__} was not raised")
