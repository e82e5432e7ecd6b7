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
        bucket: In which everything is that takes the name of a collection.
    """

    def __init__(self, url: str, send: Send, *, bucket: str = "main") -> None:
        self.url = url
        self.bucket = bucket
        self._send = send

    async def call(self, method: str, path: str, value: object = None) -> Any:
        """One request; the answer's JSON. An error status is an AssertionError."""
        body = b"" if value is None else json.dumps(value).encode()
        return await self._request(method, path, {"Content-Type": "application/json"}, body)

    async def setup(self, *collections: str) -> None:
        """An empty server but for these collections, without faults and with an empty log."""
        await self.flush()
        await self.mend()
        await self.create_bucket()
        for collection in collections:
            await self.create(collection)

    async def flush(self) -> None:
        """Empty the server. Faults stay."""
        await self.call("POST", "/__flush__")

    async def create_bucket(self) -> None:
        """The bucket of this admin, for everyone to read."""
        await self.call("PUT", f"/buckets/{self.bucket}", {"permissions": {"read": ["system.Everyone"]}})

    async def create(self, collection: str, **attributes: Any) -> None:
        """A collection. Attributes as for `change`."""
        await self.call("PUT", self._path(collection), {"data": attributes})

    async def put(self, collection: str, record_id: str, **fields: Any) -> dict[str, Any]:
        """Write a record."""
        answer = await self.call("PUT", f"{self._path(collection)}/records/{record_id}", {"data": fields})
        return dict(answer["data"])

    async def delete(self, collection: str, record_id: str) -> None:
        """Delete a record."""
        await self.call("DELETE", f"{self._path(collection)}/records/{record_id}")

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
        path = f"{self._path(collection)}/records/{record_id}/attachment"
        await self._request("POST", path, {"Content-Type": content_type}, body)

    async def change(self, collection: str, **attributes: Any) -> None:
        """Set attributes of a collection: what `tests.kinto.plugin` knows, and anything else. None takes one away."""
        data = (await self.call("GET", self._path(collection)))["data"] | attributes
        kept = {name: value for name, value in data.items() if value is not None}
        await self.call("PUT", self._path(collection), {"data": kept})

    async def resign(self, collection: str) -> int:
        """Move the timestamp without a change."""
        return int((await self.call("POST", f"{self._path(collection)}/__resign__", {}))["timestamp"])

    async def snapshot(self, collection: str, name: str) -> None:
        """Keep what the collection answers now."""
        await self.call("POST", f"{self._path(collection)}/__snapshot__", {"name": name})

    async def fault(self, path: str, **what: Any) -> None:
        """Break answers: see `tests.kinto.faults`."""
        await self.call("POST", "/__faults__", {"path": path, **what})

    async def clear_faults(self) -> None:
        """Forget faults."""
        await self.call("DELETE", "/__faults__")

    async def clear_requests(self) -> None:
        """Empty the log."""
        await self.call("DELETE", "/__requests__")

    async def mend(self) -> None:
        """Forget faults and the log."""
        await self.clear_faults()
        await self.clear_requests()

    async def requests(self, word: str = "") -> list[str]:
        """What was asked for with `word` in it since the log was emptied, such as "GET /v1/path?query"."""
        return [request for request in await self.call("GET", "/__requests__") if word in request]

    async def _request(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Any:
        status, answer = await self._send(method, self.url + path, {**headers, "Authorization": _AUTHORIZATION}, body)
        assert 200 <= status < 300, f"{method} {path}: {status} {answer[:500]!r}"
        return json.loads(answer) if answer else None

    def _path(self, collection: str) -> str:
        return f"/buckets/{self.bucket}/collections/{collection}"
