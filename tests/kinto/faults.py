"""Faults on demand, the log of requests, and CORS: a tween around all that a Kinto server answers.

`POST /v1/__faults__` takes a rule as JSON, `DELETE` forgets all of them; `GET /v1/__requests__` is a list of
`"GET /v1/path?query"`, `DELETE` empties it. Neither appears in the log. A rule breaks answers to GET:

    path             shell pattern of the path, without the query
    times            how many answers it breaks (default: all); the first rule that is left counts
    delay            seconds to wait at most; forgetting the faults ends it at once
    drop_connection  true: the connection ends without an answer
    status, body, content_type
                     answered instead (default: 200, {} and application/json)
    flip             place of a byte of the body that has a bit changed
    shorter          how many bytes of the body go missing
    cut              bytes of the body that come before the connection ends; the announced length is never reached
    headers          added to the answer
    no_cors          true: without permission for other origins
"""

from __future__ import annotations

import fnmatch
import threading
from typing import Any

from kinto.core.errors import raise_invalid
from pyramid.response import Response
from pyramid.security import NO_PERMISSION_REQUIRED
from pyramid.tweens import INGRESS
from waitress.channel import ClientDisconnected

_ALLOW = "Access-Control-Allow-"
_EXPOSED = "Backoff, Retry-After, Alert, Content-Length, Content-Type"
_PREFLIGHT = {
    f"{_ALLOW}Origin": "*",
    f"{_ALLOW}Methods": "GET, POST, PUT, PATCH, DELETE",
    f"{_ALLOW}Headers": "Authorization, Content-Type",
}
_KEYS = frozenset(
    [
        "path",
        "times",
        "delay",
        "drop_connection",
        "status",
        "body",
        "content_type",
        "flip",
        "shorter",
        "cut",
        "headers",
        "no_cors",
    ]
)


class Faults:
    """Rules and log of one server."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self._rules: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._forgotten = threading.Event()

    def add(self, rule: dict[str, Any]) -> None:
        """The last one to count."""
        with self._lock:
            self._rules.append({"times": -1, **rule})

    def forget(self) -> None:
        """Everything is well again, also for requests that wait."""
        with self._lock:
            self._rules.clear()
            self._forgotten.set()
            self._forgotten = threading.Event()

    def meet(self, request: Any) -> dict[str, Any]:
        """Log a request, wait if a rule says so, and return the rule; empty without one."""
        with self._lock:
            self.requests.append(f"{request.method} {request.path_qs}")
            rule = self._due(request)
            forgotten = self._forgotten
        if "delay" in rule:
            forgotten.wait(rule["delay"])
        return rule

    def _due(self, request: Any) -> dict[str, Any]:
        for rule in self._rules:
            if rule["times"] != 0 and request.method == "GET" and fnmatch.fnmatchcase(request.path, rule["path"]):
                rule["times"] -= 1
                return rule
        return {}


def includeme(config: Any) -> None:
    """Pyramid calls this."""
    config.registry.faults = Faults()
    for path, method, view in (
        ("/__faults__", "POST", add_fault),
        ("/__faults__", "DELETE", forget_faults),
        ("/__requests__", "GET", list_requests),
        ("/__requests__", "DELETE", forget_requests),
    ):
        name = f"{method} {path}"
        config.add_route(name, path, request_method=method)
        config.add_view(view, route_name=name, renderer="json", permission=NO_PERMISSION_REQUIRED)
    config.add_tween("tests.kinto.faults.tween", under=INGRESS)


def tween(handler: Any, registry: Any) -> Any:
    """Outermost, so that nothing escapes it."""
    faults: Faults = registry.faults

    def handle(request: Any) -> Any:
        if request.method == "OPTIONS":
            return Response(headers=_PREFLIGHT)
        rule = {} if request.path.startswith("/v1/__") else faults.meet(request)
        if rule.get("drop_connection"):
            # What the server itself raises in this case: it closes the connection and says nothing.
            raise ClientDisconnected
        response = _broken(rule, handler, request)
        response.headers[f"{_ALLOW}Origin"] = "*"
        response.headers["Access-Control-Expose-Headers"] = _EXPOSED
        response.headers.update(rule.get("headers", {}))
        if rule.get("no_cors"):
            for name in [name for name in response.headers if name.lower().startswith("access-control-")]:
                del response.headers[name]
        return response

    return handle


def _broken(rule: dict[str, Any], handler: Any, request: Any) -> Any:
    if "status" in rule or "body" in rule:
        return Response(
            status=rule.get("status", 200),
            body=rule.get("body", "{}").encode(),
            content_type=rule.get("content_type", "application/json"),
        )
    response = handler(request)
    if not rule.keys() & {"flip", "shorter", "cut"}:
        return response
    body = response.body
    headers = [(name, value) for name, value in response.headerlist if name.lower() != "content-length"]
    if "cut" in rule:
        cut = Response(app_iter=[body[: rule["cut"]]], headerlist=headers)
        cut.content_length = len(body)
        return cut
    if "flip" in rule:
        at = rule["flip"]
        body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
    return Response(body=body[: len(body) - rule.get("shorter", 0)], headerlist=headers)


def add_fault(request: Any) -> dict[str, Any]:
    """Add a rule."""
    rule = request.json_body
    unknown = sorted(rule.keys() - _KEYS)
    if unknown or "path" not in rule:
        described = f"a fault has a path and some of {', '.join(sorted(_KEYS))}; not {', '.join(unknown) or 'no path'}"
        raise_invalid(request, location="body", name="fault", description=described)
    request.registry.faults.add(rule)
    return {}


def forget_faults(request: Any) -> dict[str, Any]:
    """Forget all rules."""
    request.registry.faults.forget()
    return {}


def list_requests(request: Any) -> list[str]:
    """What was asked for since the log was emptied."""
    return list(request.registry.faults.requests)


def forget_requests(request: Any) -> dict[str, Any]:
    """Empty the log."""
    request.registry.faults.requests.clear()
    return {}
