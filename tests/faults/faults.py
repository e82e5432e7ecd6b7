"""The rules that break answers: which requests they meet, and which of them a request gets."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class Kind:
    """How rules of a kind behave.

    Attributes:
        lasting: A way the server is: it goes together with other rules. Of the others, the accidents, the first due
            rule alone meets a request.
        ranged: Meets only requests with a Range (True) or only those without (False).
        head: Also meets HEAD, though the rule is for GET; these requests are not counted.
    """

    lasting: bool = False
    ranged: bool | None = None
    head: bool = False


# In the order in which they are applied to one answer.
KINDS = {
    "auth": Kind(lasting=True, head=True),
    "drop": Kind(),
    "status": Kind(),
    "html": Kind(),
    "redirect": Kind(),
    "change": Kind(lasting=True, head=True),
    "no_range": Kind(lasting=True),
    "etag": Kind(lasting=True),
    "weak_etag": Kind(lasting=True),
    "wrong_range": Kind(ranged=True),
    "flip": Kind(),
    "shorter": Kind(),
    "lying_total": Kind(lasting=True, ranged=True),
    "gzip": Kind(lasting=True, ranged=False),
    "no_length": Kind(lasting=True),
    "close_delimited": Kind(lasting=True),
    "longer": Kind(),
    "truncate": Kind(),
    "stall": Kind(),
    "reset": Kind(),
    "slow": Kind(lasting=True),
    "header": Kind(lasting=True),
}
ORDER = {kind: index for index, kind in enumerate(KINDS)}


@dataclass
class Fault:
    """One rule; see the table of `server.py`.

    Attributes:
        path: Shell pattern of the paths.
        kind: One of `KINDS`.
        value: What the kind needs.
        times: How many requests it meets; None: all.
        method: Of the requests; `*`: any.
        skip: How many fitting requests pass unharmed first.
        from_byte: Only requests that want bytes from here on.
        to_byte: Only requests that want bytes before this one.
    """

    path: str
    kind: str
    value: Any = None
    times: int | None = None
    method: str = "GET"
    skip: int = 0
    from_byte: int | None = None
    to_byte: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"There is no fault of the kind {self.kind!r}; there are: {', '.join(KINDS)}.")
        if self.kind == "change":
            self.skip += int(self.value["after_requests"])
        if self.kind == "flip" and self.from_byte is None and self.to_byte is None:
            self.from_byte, self.to_byte = int(self.value), int(self.value) + 1


@dataclass(frozen=True)
class Asked:
    """What a request wants, as far as rules look at it; without a Range, `begin` to `end` is the whole file."""

    method: str
    path: str
    authorization: str
    begin: int
    end: int
    ranged: bool


class Rules:
    """The rules of one server; the caller holds its lock."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        self._faults.append(fault)

    def clear(self) -> None:
        self._faults.clear()

    def take(self, asked: Asked) -> list[Fault]:
        """The rules that meet this request, in the order of `KINDS`; one that refuses it comes alone."""
        due = [fault for fault in self._faults if _fits(fault, asked) and _is_due(fault, asked)]
        for fault in due:
            if fault.kind == "auth" and asked.authorization != fault.value:
                _count(fault)
                return [fault]
        accident = next((fault for fault in due if not KINDS[fault.kind].lasting), None)
        taken = [fault for fault in due if fault is accident or (KINDS[fault.kind].lasting and fault.kind != "auth")]
        for fault in taken:
            _count(fault)
        return sorted(taken, key=lambda fault: ORDER[fault.kind])


def _fits(fault: Fault, asked: Asked) -> bool:
    kind = KINDS[fault.kind]
    if not fnmatchcase(asked.path, fault.path):
        return False
    if fault.method not in {asked.method, "*"} and not (kind.head and asked.method == "HEAD"):
        return False
    if kind.ranged is not None and kind.ranged != asked.ranged:
        return False
    if fault.from_byte is not None and asked.end <= fault.from_byte:
        return False
    return fault.to_byte is None or asked.begin < fault.to_byte


def _is_due(fault: Fault, asked: Asked) -> bool:
    if fault.skip:
        # HEAD sees what the next GET will see.
        fault.skip -= fault.method in {asked.method, "*"}
        return False
    return fault.times != 0


def _count(fault: Fault) -> None:
    if fault.times is not None:
        fault.times -= 1
