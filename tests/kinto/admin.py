"""What the tests do as the owner of a Kinto server, in CPython and inside Pyodide."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Send = Callable[[str, str, Mapping[str, str], bytes], Awaitable[tuple[int, bytes]]]
"""Method, URL, headers and body to status and body."""

_AUTHORIZATION = "Basic " + base64.b64encode(b"admin:s3cr3t").decode()
_BOUNDARY = "kinto-admin-boundary"


class KintoAdmin:
    """Speaks to one server.

    Args:
        url: With the version.
        send: How.
    """

    def __init__(self, url: str, send: Send) -> None:
        self.url = url
        self._send = send

    async def call(self, method: str, path: str, value: object = None) -> Any:
        """One request; the answer's JSON. An error status is an AssertionError."""
        body = b"" if value is None else json.dumps(value).encode()
        return await self._request(method, path, {"Content-Type": "application/json"}, body)

    async def setup(self, *collections: str, bucket: str = "main") -> None:
        """An empty server but for these collections."""
        await self._request("POST", "/__flush__", {}, b"", anonymous=True)
        await self._request("POST", "/__mend__", {}, b"", anonymous=True)
        account = json.dumps({"data": {"password": "s3cr3t"}}).encode()
        await self._request("PUT", "/accounts/admin", {"Content-Type": "application/json"}, account, anonymous=True)
        await self.call("PUT", f"/buckets/{bucket}", {"permissions": {"read": ["system.Everyone"]}})
        for collection in collections:
            await self.call("PUT", f"/buckets/{bucket}/collections/{collection}", {"data": {}})

    async def put(self, collection: str, record_id: str, **fields: Any) -> dict[str, Any]:
        """Write a record."""
        answer = await self.call("PUT", f"{_path(collection)}/records/{record_id}", {"data": fields})
        return dict(answer["data"])

    async def delete(self, collection: str, record_id: str) -> None:
        """Delete a record."""
        await self.call("DELETE", f"{_path(collection)}/records/{record_id}")

    async def attach(self, collection: str, record_id: str, filename: str, data: bytes, **fields: Any) -> None:
        """Write a record with a file."""
        lines = [
            f"--{_BOUNDARY}",
            'Content-Disposition: form-data; name="data"',
            "",
            json.dumps(fields),
            f"--{_BOUNDARY}",
            f'Content-Disposition: form-data; name="attachment"; filename="{filename}"',
            "Content-Type: application/octet-stream",
            "",
            "",
        ]
        body = "\r\n".join(lines).encode() + data + f"\r\n--{_BOUNDARY}--\r\n".encode()
        content_type = f"multipart/form-data; boundary={_BOUNDARY}"
        path = f"{_path(collection)}/records/{record_id}/attachment"
        await self._request("POST", path, {"Content-Type": content_type}, body)

    async def change(self, collection: str, **attributes: Any) -> None:
        """Set attributes of a collection: what `tests.kinto.plugin` knows, and anything else. None takes one away."""
        data = (await self.call("GET", _path(collection)))["data"] | attributes
        kept = {name: value for name, value in data.items() if value is not None}
        await self.call("PUT", _path(collection), {"data": kept})

    async def resign(self, collection: str) -> int:
        """Move the timestamp without a change."""
        return int((await self.call("POST", f"{_path(collection)}/__resign__", {}))["timestamp"])

    async def snapshot(self, collection: str, name: str) -> None:
        """Keep what the collection answers now."""
        await self.call("POST", f"{_path(collection)}/__snapshot__", {"name": name})

    async def fault(self, path: str, **what: Any) -> None:
        """Break answers: see `tests.kinto.plugin`."""
        await self.call("POST", "/__faults__", {"path": path, **what})

    async def mend(self) -> None:
        """Forget faults and the log."""
        await self.call("POST", "/__mend__", {})

    async def requests(self, word: str = "") -> list[str]:
        """What was asked for with `word` in it since `mend`."""
        return [request for request in await self.call("GET", "/__requests__") if word in request]

    async def _request(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, *, anonymous: bool = False
    ) -> Any:
        everything = dict(headers) if anonymous else {**headers, "Authorization": _AUTHORIZATION}
        status, answer = await self._send(method, self.url + path, everything, body)
        assert 200 <= status < 300, f"{method} {path}: {status} {answer[:500]!r}"
        return json.loads(answer) if answer else None


def _path(collection: str) -> str:
    return f"/buckets/main/collections/{collection}"
