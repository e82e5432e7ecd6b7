"""The expression language of `filter_expression`.

An evaluator of its own: JEXL's maintained library is JavaScript, and this code also runs without any. It is compared
with that library in the tests. Source of the language: Mozilla's JEXL (mozjexl) and npm `jexl`.

Values behave as in JavaScript (`==` converts, `+` joins texts, only empty texts, 0 and nothing are false). What is
missing is None at any depth. Deviations: `null` in the data is missing, too; the one transform is `versionCompare`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from pywebml.settings.versions import compare_versions

LONGEST_EXPRESSION = 16 * 1024
_DEEPEST = 100

_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<number>(?:\d*\.\d+|\d+))
  | (?P<text>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')
  | (?P<name>[A-Za-z_$À-ɏ][\w$]*)
  | (?P<sign>\|\||&&|==|!=|>=|<=|//|\?:|[-+*/%^<>!?:.,|()\[\]{}])
    """,
    re.VERBOSE | re.DOTALL,
)
_PRECEDENCE = {
    **dict.fromkeys(("||", "&&"), 10),
    **dict.fromkeys(("==", "!=", ">", ">=", "<", "<=", "in"), 20),
    **dict.fromkeys(("+", "-"), 30),
    **dict.fromkeys(("*", "/", "//"), 40),
    **dict.fromkeys(("%", "^"), 50),
}


_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


class JexlError(ValueError):
    """The expression is none, or cannot be evaluated."""


class _Token(NamedTuple):
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class _Scope:
    """What names mean.

    Attributes:
        names: At the top.
        element: Inside a filter, what a leading dot is relative to.
    """

    names: Any
    element: Any = None


_Node = Callable[[_Scope], Any]


def evaluate(expression: str, names: Mapping[str, Any]) -> Any:
    """The value of an expression.

    Args:
        expression: At most 16,384 characters.
        names: What it can see: plain data.

    Raises:
        JexlError: It cannot be parsed or evaluated.
    """
    return _compile(expression)(_Scope(names))


def truthy(value: Any) -> bool:
    """Whether JavaScript takes a value for true."""
    if isinstance(value, list | dict):
        return True
    return bool(value) and value == value


@lru_cache(maxsize=256)
def _compile(expression: str) -> _Node:
    if len(expression) > LONGEST_EXPRESSION:
        raise JexlError(f"the expression has more than {LONGEST_EXPRESSION} characters")
    parser = _Parser(_tokens(expression))
    node = parser.ternary()
    parser.end()
    return node


def _tokens(expression: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while at < len(expression):
        match = _TOKEN.match(expression, at)
        if match is None:
            raise JexlError(f"unexpected {expression[at]!r} at character {at + 1}")
        at = match.end()
        if match.lastgroup and match.lastgroup != "space":
            tokens.append(_Token(match.lastgroup, match[0]))
    return tokens


class _Parser:
    """Precedence climbing. Every method returns a function of the scope."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0
        self._relative = False

    def end(self) -> None:
        if self._at < len(self._tokens):
            raise JexlError(f"unexpected {self._tokens[self._at].text!r}")

    def ternary(self) -> _Node:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise JexlError(f"the expression is nested deeper than {_DEEPEST} levels")
        node = self._binary(0)
        if self._take("?:"):
            node = _otherwise(node, self.ternary())
        elif self._take("?"):
            # `a ?: b` may be written with a space.
            if self._take(":"):
                node = _otherwise(node, self.ternary())
            else:
                chosen = self.ternary()
                self._expect(":")
                node = _choice(node, chosen, self.ternary())
        self._depth -= 1
        return node

    def _binary(self, lowest: int) -> _Node:
        left = self._unary()
        # As many operators in a row nest as deeply when they are evaluated.
        chain = 0
        while (operator := self._peek()) in _PRECEDENCE and _PRECEDENCE[operator] > lowest:
            chain += 1
            if chain > _DEEPEST:
                raise JexlError(f"more than {_DEEPEST} operators in a row")
            self._at += 1
            left = _operation(operator, left, self._binary(_PRECEDENCE[operator]))
        return left

    def _unary(self) -> _Node:
        count = 0
        while self._take("!"):
            count += 1
        # A sign belongs to a number only where no number can end.
        if self._peek() == "-" and self._kind(1) == "number":
            self._at += 1
            number = -float(self._next().text)
            return self._postfix(lambda scope: number) if count == 0 else _negation(lambda scope: number, count)
        node = self._postfix(self._primary())
        return _negation(node, count) if count else node

    def _primary(self) -> _Node:
        kind, text = self._next()
        if kind == "number":
            number = float(text)
            return lambda scope: number
        if kind == "text":
            literal = re.sub(
                r"\\(.)", lambda match: match[1] if match[1] in "\\\"'" else match[0], text[1:-1], flags=re.S
            )
            return lambda scope: literal
        if kind == "name" and text in {"true", "false"}:
            return lambda scope: text == "true"
        if kind == "name":
            return lambda scope: _member(scope.names, text)
        if text == ".":
            self._relative = True
            name = self._name()
            return lambda scope: _member(scope.element, name)
        if text == "(":
            node = self.ternary()
            self._expect(")")
            return node
        if text == "[":
            items = self._list("]")
            return lambda scope: [item(scope) for item in items]
        if text == "{":
            return self._object()
        raise JexlError(f"unexpected {text!r}")

    def _postfix(self, node: _Node) -> _Node:
        links = 0
        while (sign := self._peek()) in {".", "[", "|"}:
            links += 1
            if links > _DEEPEST:
                raise JexlError(f"more than {_DEEPEST} names in a row")
            self._at += 1
            if sign == ".":
                node = _access(node, self._name())
            elif sign == "[":
                outside, self._relative = self._relative, False
                inner = self.ternary()
                self._expect("]")
                node = _selection(node, inner) if self._relative else _index(node, inner)
                self._relative = outside
            else:
                name = self._name()
                arguments = self._list(")") if self._take("(") else []
                node = _transform(name, node, arguments)
        return node

    def _object(self) -> _Node:
        items: dict[str, _Node] = {}
        while not self._take("}"):
            kind, text = self._next()
            if kind not in {"name", "text"}:
                raise JexlError(f"{text!r} is no key")
            self._expect(":")
            items[text.strip("\"'")] = self.ternary()
            if self._peek() != "}":
                self._expect(",")
        return lambda scope: {name: item(scope) for name, item in items.items()}

    def _list(self, closing: str) -> list[_Node]:
        items: list[_Node] = []
        while not self._take(closing):
            items.append(self.ternary())
            if self._peek() != closing:
                self._expect(",")
        return items

    def _name(self) -> str:
        kind, text = self._next()
        if kind != "name":
            raise JexlError(f"{text!r} is no name")
        return text

    def _kind(self, ahead: int) -> str:
        at = self._at + ahead
        return self._tokens[at].kind if at < len(self._tokens) else ""

    def _peek(self) -> str:
        """The next sign, or `in`; empty for anything else."""
        if self._at >= len(self._tokens):
            return ""
        kind, text = self._tokens[self._at]
        return text if kind == "sign" or text == "in" else ""

    def _take(self, sign: str) -> bool:
        taken = self._peek() == sign
        self._at += taken
        return taken

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            found = self._tokens[self._at].text if self._at < len(self._tokens) else "the end"
            raise JexlError(f"{sign!r} is missing before {found!r}")

    def _next(self) -> _Token:
        if self._at >= len(self._tokens):
            raise JexlError("the expression ends too early")
        self._at += 1
        return self._tokens[self._at - 1]


def _negation(node: _Node, count: int) -> _Node:
    return lambda scope: truthy(node(scope)) == (count % 2 == 0)


def _choice(test: _Node, chosen: _Node, other: _Node) -> _Node:
    return lambda scope: chosen(scope) if truthy(test(scope)) else other(scope)


def _otherwise(node: _Node, other: _Node) -> _Node:
    def evaluated(scope: _Scope) -> Any:
        value = node(scope)
        return value if truthy(value) else other(scope)

    return evaluated


def _access(node: _Node, name: str) -> _Node:
    return lambda scope: _member(node(scope), name)


def _index(node: _Node, inner: _Node) -> _Node:
    def evaluated(scope: _Scope) -> Any:
        subject, index = node(scope), inner(scope)
        if isinstance(index, bool):
            return (subject[0] if isinstance(subject, list) and subject else subject) if index else None
        if isinstance(subject, list | str) and isinstance(index, int | float):
            return subject[int(index)] if 0 <= index < len(subject) and index == int(index) else None
        return subject.get(_text(index)) if isinstance(subject, dict) else None

    return evaluated


def _selection(node: _Node, test: _Node) -> _Node:
    def evaluated(scope: _Scope) -> Any:
        subject = node(scope)
        elements = subject if isinstance(subject, list) else [] if subject is None else [subject]
        return [element for element in elements if truthy(test(_Scope(scope.names, element)))]

    return evaluated


def _transform(name: str, node: _Node, arguments: list[_Node]) -> _Node:
    if name != "versionCompare":
        raise JexlError(f"there is no transform {name!r}")
    if len(arguments) != 1:
        raise JexlError("versionCompare takes one version")

    def evaluated(scope: _Scope) -> float:
        left, right = node(scope), arguments[0](scope)
        if not isinstance(left, str) or not isinstance(right, str):
            raise JexlError("versionCompare compares texts")
        return float(compare_versions(left, right))

    return evaluated


def _operation(operator: str, left: _Node, right: _Node) -> _Node:
    # These two do not always need their right side.
    if operator == "&&":
        return lambda scope: right(scope) if truthy(value := left(scope)) else value
    if operator == "||":
        return lambda scope: value if truthy(value := left(scope)) else right(scope)
    operation = _OPERATIONS[operator]
    return lambda scope: operation(left(scope), right(scope))


def _member(subject: Any, name: str) -> Any:
    if isinstance(subject, list):
        subject = subject[0] if subject else None
    return subject.get(name) if isinstance(subject, Mapping) else None


def _number(value: Any) -> float:
    """As JavaScript converts; what is no number is NaN."""
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, list):
        return _number(_text(value))
    if isinstance(value, str):
        text = value.strip()
        return (float(text) if _NUMBER.fullmatch(text) else math.nan) if text else 0.0
    return math.nan


def _text(value: Any) -> str:
    if value is None:
        return "undefined"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, int | float):
        return str(int(value)) if abs(value) < 1e21 and value == int(value) else repr(value)
    if isinstance(value, list):
        return ",".join("" if item is None else _text(item) for item in value)
    return value if isinstance(value, str) else "[object Object]"


def _add(left: Any, right: Any) -> Any:
    if isinstance(left, str | list | dict) or isinstance(right, str | list | dict):
        return _text(left) + _text(right)
    return _number(left) + _number(right)


def _equal(left: Any, right: Any) -> bool:
    if left is None or right is None:
        return left is right
    if isinstance(left, list | dict) and isinstance(right, list | dict):
        return left is right
    if isinstance(left, list | dict) or isinstance(right, list | dict):
        return _equal(_text(left), right) if isinstance(left, list | dict) else _equal(left, _text(right))
    if isinstance(left, str) and isinstance(right, str):
        return left == right
    return _number(left) == _number(right)


def _less(left: Any, right: Any, *, or_equal: bool) -> bool:
    left, right = (_text(value) if isinstance(value, list | dict) else value for value in (left, right))
    if isinstance(left, str) and isinstance(right, str):
        # JavaScript compares UTF-16 code units.
        one, other = left.encode("utf-16-be", "surrogatepass"), right.encode("utf-16-be", "surrogatepass")
        return one <= other if or_equal else one < other
    one_number, other_number = _number(left), _number(right)
    return one_number <= other_number if or_equal else one_number < other_number


def _divide(left: Any, right: Any) -> float:
    one, other = _number(left), _number(right)
    if other == 0:
        return math.nan if one == 0 or one != one else math.copysign(math.inf, one) * math.copysign(1, other)
    return one / other


def _floor_divide(left: Any, right: Any) -> float:
    quotient = _divide(left, right)
    return float(math.floor(quotient)) if math.isfinite(quotient) else quotient


def _remainder(left: Any, right: Any) -> float:
    one, other = _number(left), _number(right)
    return math.fmod(one, other) if math.isfinite(one) and other != 0 else math.nan


def _power(left: Any, right: Any) -> float:
    base, exponent = _number(left), _number(right)
    # Where C says 1.
    if exponent != exponent or (abs(base) == 1 and math.isinf(exponent)):
        return math.nan
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return math.inf
    except ValueError:
        return math.inf if base == 0 else math.nan


def _contains(left: Any, right: Any) -> bool:
    if isinstance(right, str):
        return _text(left) in right
    if isinstance(right, list):
        # Without conversions, as JavaScript searches lists.
        return any(isinstance(left, str) == isinstance(item, str) and _equal(left, item) for item in right)
    return False


_OPERATIONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": _add,
    "-": lambda left, right: _number(left) - _number(right),
    "*": lambda left, right: _number(left) * _number(right),
    "/": _divide,
    "//": _floor_divide,
    "%": _remainder,
    "^": _power,
    "==": _equal,
    "!=": lambda left, right: not _equal(left, right),
    "<": lambda left, right: _less(left, right, or_equal=False),
    "<=": lambda left, right: _less(left, right, or_equal=True),
    ">": lambda left, right: _less(right, left, or_equal=False),
    ">=": lambda left, right: _less(right, left, or_equal=True),
    "in": _contains,
}
