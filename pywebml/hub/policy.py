"""Which addresses models may come from: the allow and deny list.

Source: Firefox's `URLChecker` (`toolkit/components/ml`, collection `ml-model-allow-deny-list`). As there, an entry is a
beginning of addresses in lower case, and one that denies wins over any that allow. Unlike there, an entry is compared
by origin and path, so that `https://hub.example` lets nothing of `https://hub.example.org` through.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from pywebml.errors import ForbiddenURLError, OptionsError

ALLOW, DENY = "ALLOW", "DENY"
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_DEFAULT_PORTS = {"http": 80, "https": 443}
# Browsers take a host that ends so for an IPv4 address, in one of many spellings.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")

_Origin = tuple[str, str, int | None]


@dataclass(frozen=True, slots=True)
class _Prefix:
    origin: _Origin
    path: str

    def covers(self, origin: _Origin, path: str) -> bool:
        return self.origin == origin and path.startswith(self.path)


class AllowDenyList:
    """What may be reached.

    Without entries everything may. With entries that allow, only what they name may, besides the page's own origin and
    this machine (as in Firefox its own pages and localhost); what an entry denies never may.

    Args:
        records: Entries with `filter` (`ALLOW` or `DENY`) and `urlPrefix`, as in `ml-model-allow-deny-list`.
        base_url: Of the page; empty where there is none.

    Raises:
        OptionsError: An entry is not one. A list that cannot be understood must not let everything through.
    """

    def __init__(self, records: Iterable[Mapping[str, Any]] = (), base_url: str = "") -> None:
        self._own = _origin(urlsplit(base_url)) if base_url else None
        self._prefixes: dict[str, list[_Prefix]] = {ALLOW: [], DENY: []}
        for record in records:
            kind, address = record.get("filter"), record.get("urlPrefix")
            try:
                usable = isinstance(kind, str) and kind in self._prefixes and isinstance(address, str)
                # What follows the path would not be compared.
                usable = usable and not urlsplit(address).query and not urlsplit(address).fragment
                prefix = _Prefix(*_split(str(address))) if usable else None
            except ValueError:
                prefix = None
            if prefix is None:
                raise OptionsError(
                    f"{dict(record)!r} is no entry of the allow and deny list: give 'filter', ALLOW or DENY, and "
                    "'urlPrefix', an http or https address.",
                    field="allowDenyList",
                    value=repr(dict(record)),
                )
            self._prefixes[str(kind)].append(prefix)

    def check(self, url: str) -> None:
        """Let an address through.

        Raises:
            ForbiddenURLError: It may not be reached.
        """
        try:
            origin, path = _split(url)
        except ValueError:
            raise _forbidden(url, "DISALLOWED", "it is no http or https address") from None
        if any(prefix.covers(origin, path) for prefix in self._prefixes[DENY]):
            raise _forbidden(url, "DENIED", "an entry of the allow and deny list forbids it")
        if not self._prefixes[ALLOW] or origin == self._own or origin[1] in _LOOPBACK:
            return
        if not any(prefix.covers(origin, path) for prefix in self._prefixes[ALLOW]):
            raise _forbidden(url, "DISALLOWED", "no entry of the allow and deny list allows it")


def _split(address: str) -> tuple[_Origin, str]:
    """Origin and path in lower case, without escapes. Raises `ValueError` for what leaves open where it leads."""
    parts = urlsplit(address)
    # Escapes are undone, so that none hides an address from an entry.
    path = unquote(parts.path or "/").lower()
    if "\\" in address or "\\" in path or not {".", ".."}.isdisjoint(path.split("/")):
        raise ValueError(address)
    return _origin(parts), path


def _origin(parts: SplitResult) -> _Origin:
    if parts.scheme not in _DEFAULT_PORTS or not parts.hostname or parts.username is not None:
        raise ValueError(parts)
    # One spelling for every host, as clients look it up.
    host = parts.hostname.removesuffix(".").encode("idna").decode().lower()
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        host = str(ipaddress.IPv4Address(host))
    return parts.scheme, host, parts.port or _DEFAULT_PORTS[parts.scheme]


def _forbidden(url: str, reason: str, why: str) -> ForbiddenURLError:
    return ForbiddenURLError(
        f"{url} may not be used: {why}. Choose another model or hub, or have the list changed.", url=url, reason=reason
    )
