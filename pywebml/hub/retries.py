"""How often and when a request that failed is made again."""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime

ATTEMPTS = 5
"""Requests in a row that may bring nothing."""
LONGEST_WAIT = 60.0
"""Seconds. A server that wants more is not waited for."""
RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers after which the same request may succeed a little later."""

_FIRST_WAIT = 0.5


def backoff_seconds(failures: int) -> float:
    """How long to wait after so many failures in a row, of which there is at least one: twice as long each time."""
    return float(min(LONGEST_WAIT, _FIRST_WAIT * 2 ** (failures - 1)))


def retry_after_seconds(header: str | None, now: float) -> float | None:
    """What a `Retry-After` header asks for; None when there is none, or none that can be read.

    Source: RFC 9110, section 10.2.3: seconds or a date.

    Args:
        header: Its value.
        now: Seconds since the epoch.
    """
    if not header:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        date = parsedate_to_datetime(text)
        # These dates are in UTC, also where they do not say so.
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, OverflowError, IndexError):
        return None
