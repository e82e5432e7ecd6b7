"""One Remote Settings server: requests to it, where its files are, and what its headers ask of clients.

Source: Remote Settings client specification: `Backoff`, `Retry-After` and `Alert` headers; the root's capabilities.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from urllib.parse import urljoin, urlsplit

from pywebml.errors import (
    OptionsError,
    SettingsBackoffError,
    SettingsNetworkError,
    SettingsResponseError,
)
from pywebml.platform import NetworkError, Platform, Response
from pywebml.settings.protocol import Root, parse_root

LONGEST_BACKOFF_SECONDS = 24 * 60 * 60
"""A server that asks for more, by mistake or not, is asked again after a day."""

_LARGEST_ANSWER = 32 * 1024 * 1024
_LARGEST_CHAIN = 128 * 1024
_LONGEST_ALERT = 500

_logger = logging.getLogger("pywebml")


class SettingsServer:
    """Requests to one server.

    Args:
        platform: Where requests go out and what the server asked for is kept.
        server_url: With the version: `https://settings.example/v1`; or relative to the page.

    Raises:
        OptionsError: `server_url` is not usable.
    """

    def __init__(self, platform: Platform, server_url: str) -> None:
        self.url = _check_server(server_url, platform.environment.base_url)
        self._platform = platform
        self.alert: Mapping[str, str] | None = None
        """What the server last told its users: `code`, `message`, `url`."""

    async def read(self, url: str, limit: int = _LARGEST_ANSWER) -> bytes:
        """The body of an answer. Raises as `answer`."""
        response = await self.answer(url)
        try:
            return await response.read(limit)
        except NetworkError as error:
            raise SettingsNetworkError(f"The answer of {url} broke off: {error}.", url=url) from error
        finally:
            await response.close()

    async def answer(self, url: str) -> Response:
        """The head of a successful answer.

        Raises:
            SettingsNetworkError: The server could not be reached or answered with an error status. Details: `status`
                and `retry_after` (seconds) when it answered.
        """
        try:
            response = await self._platform.request(url)
        except NetworkError as error:
            raise SettingsNetworkError(
                f"The settings server could not be reached at {url}: {error}. Check the connection and the address.",
                url=url,
            ) from error
        # Attachments and chains can be on hosts of their own, which do not speak for the server.
        if url.startswith(f"{self.url}/"):
            await self._heed(response)
        if response.status != 200:
            await response.close()
            raise self._refusal(response, url)
        return response

    async def check_backoff(self) -> None:
        """Raise `SettingsBackoffError` while the server wants to be left alone."""
        until = await self._platform.documents.get(self._backoff_document())
        if not isinstance(until, int | float) or isinstance(until, bool) or not math.isfinite(until):
            return
        # More than ever is stored means that the clock was set back.
        seconds = min(until - self._platform.now(), LONGEST_BACKOFF_SECONDS)
        if seconds > 0:
            raise SettingsBackoffError(
                f"The settings server {self.url} has asked its clients to wait; it is asked again in "
                f"{math.ceil(seconds)} seconds. What is stored can be used until then.",
                url=self.url,
                seconds=math.ceil(seconds),
            )

    async def root(self, *, ask: bool = False) -> tuple[Root, bool]:
        """What the server's root says, from the store unless `ask`; and whether the server has just said it.

        Raises:
            SettingsNetworkError: As `answer`.
            SettingsResponseError: It is not the root of a Remote Settings server.
        """
        name = f"settings-root/{self.url}"
        if not ask:
            stored = Root.from_stored(await self._platform.documents.get(name))
            if stored is not None:
                return stored, False
        url = f"{self.url}/"
        root = parse_root(await self.read(url), url)
        await self._platform.documents.put(name, root.to_stored())
        return root, True

    async def read_chain(self, x5u: str) -> bytes:
        """The PEM file at an `x5u`, which may be relative to what the root calls `certs_chains_base_url`.

        Raises:
            SettingsNetworkError: It could not be fetched.
            SettingsResponseError: It cannot be an address of a chain.
        """
        base = f"{self.url}/"
        # A scheme comes before the first colon; what has none is relative to where the server keeps its chains.
        if not urlsplit(x5u).scheme:
            base = (await self.root())[0].chains_base or base
        url = urljoin(base, x5u)
        scheme = urlsplit(url).scheme
        if scheme != "https" and (scheme != "http" or urlsplit(self.url).scheme != "http"):
            raise SettingsResponseError(
                f"{x5u[:200]!r} is no address that a certificate chain can have.", url=url[:200]
            )
        return await self.read(url, _LARGEST_CHAIN)

    async def _heed(self, response: Response) -> None:
        """Remember what the headers ask for."""
        waits = [_seconds(response.headers.get("backoff"))]
        if response.status in {429, 503}:
            waits.append(_seconds(response.headers.get("retry-after")))
        if (wait := max(waits)) > 0:
            await self._platform.documents.put(self._backoff_document(), self._platform.now() + wait)
        alert = _parse_alert(response.headers.get("alert"))
        if alert is not None and alert != self.alert:
            self.alert = alert
            _logger.warning("The settings server %s says: %s %s", self.url, alert["message"], alert["url"])

    def _refusal(self, response: Response, url: str) -> SettingsNetworkError:
        if response.status == 410:
            said = f" It says: {self.alert['message']} {self.alert['url']}".rstrip() if self.alert else ""
            advice = f"It has been switched off.{said} Use a newer version of pywebml, or another settings server"
        elif response.status < 500 and response.status != 429:
            advice = "Check its address"
        else:
            advice = "Try again later"
        return SettingsNetworkError(
            f"The settings server answered {response.status} for {url}. {advice}.",
            url=url,
            status=response.status,
            retry_after=_seconds(response.headers.get("retry-after")),
        )

    def _backoff_document(self) -> str:
        return f"settings-backoff/{self.url}"


def same_origin(one: str, other: str) -> bool:
    """Whether two absolute addresses have the same scheme, host and port."""
    mine, theirs = urlsplit(one), urlsplit(other)
    return bool(mine.netloc) and (mine.scheme, mine.netloc.lower()) == (theirs.scheme, theirs.netloc.lower())


def _check_server(server_url: str, base_url: str) -> str:
    """The server's address, absolute, without a slash at its end."""
    try:
        absolute = urljoin(base_url, server_url)
        parts = urlsplit(absolute)
        port = parts.port
    except ValueError:
        absolute, parts, port = "", urlsplit(""), None
    plain = parts.username is None and not parts.query and not parts.fragment and port != 0
    if parts.scheme not in {"http", "https"} or not parts.hostname or not plain:
        raise OptionsError(
            f"{server_url!r} cannot be a settings server. Give an http or https address with its version, like "
            "'https://settings.example/v1', without query, fragment or password.",
            field="settingsServer",
            value=server_url,
        )
    return absolute.rstrip("/")


def _seconds(header: str | None) -> int:
    """A number of seconds in a header, within reason; 0 when there is none."""
    if header is None or not header.isascii() or not header.isdigit():
        return 0
    return min(int(header[:9]), LONGEST_BACKOFF_SECONDS)


def _parse_alert(header: str | None) -> dict[str, str] | None:
    """The `Alert` header: JSON with `code`, `message` and `url`. Anything else says nothing."""
    try:
        values = json.loads(header or "null")
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or not isinstance(values.get("message"), str):
        return None
    return {name: str(values.get(name) or "")[:_LONGEST_ALERT] for name in ("code", "message", "url")}
