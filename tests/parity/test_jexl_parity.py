"""Filter expressions against npm `jexl`, the language's library for JavaScript."""

from __future__ import annotations

import json
import math
import random
import subprocess
from pathlib import Path
from typing import Any

from pywebml.settings.jexl import JexlError, evaluate

COUNT = 6000
NAMES: dict[str, Any] = {
    "env": {
        "version": "140.0.1",
        "locale": "en-US",
        "empty": "",
        "zero": 0,
        "memory": 8,
        "half": 0.5,
        "yes": True,
        "no": False,
        "os": {"name": "Linux", "version": 6},
        "tags": ["a", "b", "c"],
        "list": [{"n": 1, "s": "x"}, {"n": 2, "s": "y"}, {"n": 3}],
    }
}
LEAVES = (
    *(
        "true",
        "false",
        "0",
        "1",
        "2",
        "10",
        "0.5",
        "'a'",
        '"Linux"',
        "''",
        '"8"',
        "'en-US'",
        "[]",
        "[1, 2]",
        "['a', 'b']",
    ),
    *("env.version", "env.locale", "env.empty", "env.zero", "env.memory", "env.half", "env.yes", "env.no"),
    *("env.os.name", "env.os.version", "env.missing", "env.missing.deep", "env.tags", "env.list.n", "unknown"),
    *("env.os['name']", "env.tags[1]", "env.tags[7]", "env.list[.n > 1]", "env.list[.s == 'y'].n", "env.list[.n == 9]"),
)
OPERATORS = ("+", "-", "*", "/", "//", "%", "^", "==", "!=", "<", "<=", ">", ">=", "&&", "||", "in")


def expression(rng: random.Random, depth: int) -> str:
    """A random one of the grammar, with and without brackets, so that precedence counts."""
    kind = rng.random()
    if depth == 0 or kind < 0.2:
        return rng.choice(LEAVES)
    if kind < 0.7:
        space = rng.choice([" ", "\n", "  "])
        left, right = expression(rng, depth - 1), expression(rng, depth - 1)
        return f"{left}{space}{rng.choice(OPERATORS)}{space}{right}"
    if kind < 0.8:
        return f"!{expression(rng, 0)}"
    if kind < 0.9:
        return f"({expression(rng, depth - 1)})"
    if kind < 0.95:
        return f"({expression(rng, depth - 1)}) ? {expression(rng, depth - 1)} : {expression(rng, 0)}"
    return f"({expression(rng, depth - 1)}) ?: {expression(rng, 0)}"


def plain(value: Any) -> Any:
    """In the words of the oracle's answer."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int | float):
        if math.isfinite(value):
            return float(value)
        return {"number": "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return {name: plain(item) for name, item in value.items()}


def same(mine: Any, theirs: Any) -> bool:
    if isinstance(mine, float) and isinstance(theirs, int | float) and not isinstance(theirs, bool):
        return math.isclose(mine, theirs, rel_tol=1e-12)
    if isinstance(mine, list) and isinstance(theirs, list):
        return len(mine) == len(theirs) and all(map(same, mine, theirs))
    if isinstance(mine, dict) and isinstance(theirs, dict):
        return mine.keys() == theirs.keys() and all(same(mine[name], theirs[name]) for name in mine)
    return type(mine) is type(theirs) and bool(mine == theirs)


def test_six_thousand_expressions_have_the_values_that_javascript_gives_them() -> None:
    rng = random.Random(20261124)
    cases = [expression(rng, rng.randint(0, 4)) for _ in range(COUNT)]
    completed = subprocess.run(
        ["node", Path(__file__).with_name("jexl_oracle.mjs")],
        input=json.dumps([{"expression": case, "names": NAMES} for case in cases]),
        capture_output=True,
        text=True,
        check=True,
    )
    different = []
    for case, answer in zip(cases, json.loads(completed.stdout), strict=True):
        try:
            value = plain(evaluate(case, NAMES))
        except JexlError as error:
            different.append((case, repr(error), answer))
            continue
        if "error" in answer or not same(value, plain(answer["value"])):
            different.append((case, value, answer))
    assert not different, f"{len(different)} of {COUNT}, first: {different[:12]}"
