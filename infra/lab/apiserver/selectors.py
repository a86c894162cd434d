"""Label and field selectors: the grammar of Kubernetes with its error texts, and matching.

Grammar: Kubernetes documentation, "Labels and Selectors" and "Field Selectors".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from . import status
from .go_json import quote
from .validation_meta import label_value, qualified_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .kinds import KindInfo

_OPERATORS = "in, notin, =, ==, !=, gt, lt"
# The longest symbol first; every other character up to white space or a symbol belongs to a word
_TOKEN = re.compile(r"[ \t\r\n]*(==|!=|[=!,()<>]|[^ \t\r\n=!,()<>]+)")
_SYMBOLS = {"(", ")", ",", "!", "=", "==", "!=", "<", ">"}
_INTEGER = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Requirement:
    """One term. `operator`: in, notin, exists, absent, gt or lt."""

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        match self.operator:
            case "in":
                return value in self.values
            case "notin":  # also true without the key
                return value not in self.values
            case "exists":
                return value is not None
            case "absent":
                return value is None
        if value is None or not re.fullmatch(r"[+-]?\d+", value):
            return False
        bound = int(next(iter(self.values)))
        return int(value) > bound if self.operator == "gt" else int(value) < bound


@dataclass(frozen=True)
class LabelSelector:
    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str] | None) -> bool:
        return all(requirement.matches(labels or {}) for requirement in self.requirements)

    def __bool__(self) -> bool:
        return bool(self.requirements)


class _SelectorError(Exception):
    pass


class _Parser:
    """Tokens of a selector string; "" stands for its end. ``in`` and ``notin`` are words except as operators."""

    def __init__(self, text: str) -> None:
        self.tokens = _TOKEN.findall(text)
        self.at = 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def identifier_ahead(self) -> bool:
        return bool(self.peek()) and self.peek() not in _SYMBOLS

    def parse(self) -> list[Requirement]:
        out: list[Requirement] = []
        while self.peek():
            if not self.identifier_ahead() and self.peek() != "!":
                raise _SelectorError(f"found '{self.peek()}', expected: !, identifier, or 'end of string'")
            try:
                out.append(self.requirement())
            except _SelectorError as error:
                raise _SelectorError(f"unable to parse requirement: {error}") from None
            separator = self.take()
            if not separator:
                break
            if separator != ",":
                raise _SelectorError(f"found '{separator}', expected: ',' or 'end of string'")
            if not self.identifier_ahead() and self.peek() != "!":
                raise _SelectorError(f"found '{self.peek()}', expected: identifier after ','")
        return out

    def requirement(self) -> Requirement:
        absent = self.peek() == "!"
        if absent:
            self.take()
        if not self.identifier_ahead():
            raise _SelectorError(f"found '{self.take()}', expected: identifier")
        key = self.take()
        complaints = qualified_name(key)
        if complaints:
            raise _SelectorError(f"<nil>: Invalid value: {quote(key)}: {'; '.join(complaints)}")
        if absent:
            return Requirement(key, "absent")
        if self.peek() in ("", ","):
            return Requirement(key, "exists")
        operator = self.take()
        match operator:
            case "in" | "notin":
                return Requirement(key, operator, frozenset(_checked(key, self.value_list())))
            case "=" | "==" | "!=":
                values = _checked(key, {self.exact_value()})
                return Requirement(key, "notin" if operator == "!=" else "in", frozenset(values))
            case ">" | "<":
                values = _checked(key, {self.exact_value()}, integer=True)
                return Requirement(key, "gt" if operator == ">" else "lt", frozenset(values))
        raise _SelectorError(f"found '{operator}', expected: {_OPERATORS}")

    def exact_value(self) -> str:
        if self.peek() in ("", ","):
            return ""
        if not self.identifier_ahead():
            raise _SelectorError(f"found '{self.peek()}', expected: identifier")
        return self.take()

    def value_list(self) -> set[str]:
        if self.peek() != "(":
            raise _SelectorError(f"found '{self.peek()}' expected: '('")
        self.take()
        if self.peek() == ")":
            self.take()
            return {""}
        if not self.identifier_ahead() and self.peek() != ",":
            raise _SelectorError(f"found '{self.peek()}', expected: ',', ')' or identifier")
        values: set[str] = set()
        while True:
            if self.identifier_ahead():
                values.add(self.take())
                if self.peek() not in (",", ")"):
                    raise _SelectorError(f"found '{self.peek()}', expected: ',' or ')'")
                if self.peek() == ")":
                    break
            elif self.peek() == ",":
                self.take()
                if not values or self.peek() in (")", ","):
                    values.add("")
                if self.peek() == ")":
                    break
            else:
                raise _SelectorError(f"found '{self.peek()}', expected: ',', or identifier")
        self.take()
        return values


def _checked(key: str, values: set[str], *, integer: bool = False) -> list[str]:
    """The values, sorted; every complaint about them in one error, as an aggregate of field errors prints."""
    out: list[str] = []
    for number, value in enumerate(sorted(values)):
        if integer and not _INTEGER.fullmatch(value):
            message = "for 'Gt', 'Lt' operators, the value must be an integer"
            out.append(f"values[{number}]: Invalid value: {quote(value)}: {message}")
    for number, value in enumerate(sorted(values)):
        complaints = label_value(value)
        if complaints:
            out.append(f"values[{number}][{key}]: Invalid value: {quote(value)}: {'; '.join(complaints)}")
    if out:
        raise _SelectorError(out[0] if len(out) == 1 else f"[{', '.join(out)}]")
    return sorted(values)


@lru_cache(maxsize=512)
def _parse_labels(text: str) -> LabelSelector | str:
    try:
        return LabelSelector(tuple(_Parser(text).parse()))
    except _SelectorError as error:
        return str(error)


def parse_labels(text: str) -> LabelSelector:
    """`text` as in ``labelSelector=``; raises 400 in the server's words."""
    parsed = _parse_labels(text)
    if isinstance(parsed, str):
        raise status.bad_request(parsed)
    return parsed


def from_object(selector: Mapping[str, Any] | None) -> LabelSelector:
    """A LabelSelector of an object (matchLabels, matchExpressions); None matches nothing, empty matches everything."""
    if selector is None:
        return LabelSelector((Requirement("", "in"),))
    terms = [Requirement(key, "in", frozenset([value])) for key, value in (selector.get("matchLabels") or {}).items()]
    names = {"In": "in", "NotIn": "notin", "Exists": "exists", "DoesNotExist": "absent"}
    for expression in selector.get("matchExpressions") or []:
        values = frozenset(expression.get("values") or [])
        terms.append(Requirement(expression["key"], names[expression["operator"]], values))
    return LabelSelector(tuple(terms))


def format_selector(selector: Mapping[str, Any] | None) -> str:
    """A LabelSelector of an object in string form, keys sorted: ``app=web,tier in (a,b)`` (Scale, tables)."""
    if not selector:
        return "<none>" if selector is None else ""
    terms = [(key, f"{key}={value}") for key, value in (selector.get("matchLabels") or {}).items()]
    for expression in selector.get("matchExpressions") or []:
        key, values = expression["key"], ",".join(sorted(expression.get("values") or []))
        text = {"In": f"{key} in ({values})", "NotIn": f"{key} notin ({values})", "Exists": key}
        terms.append((key, text.get(expression["operator"], f"!{key}")))
    return ",".join(text for _, text in sorted(terms))


@dataclass(frozen=True)
class FieldTerm:
    path: str
    value: str
    negated: bool


@dataclass(frozen=True)
class FieldSelector:
    terms: tuple[FieldTerm, ...] = ()

    def matches(self, obj: Mapping[str, Any]) -> bool:
        return all((field_value(obj, term.path) == term.value) != term.negated for term in self.terms)

    def __bool__(self) -> bool:
        return bool(self.terms)

    def required(self, path: str) -> str | None:
        """The value which `path` must have, if one term says so."""
        return next((term.value for term in self.terms if term.path == path and not term.negated), None)


def field_value(obj: Mapping[str, Any], path: str) -> str:
    """A field as selectors compare it: booleans as true/false, absent as empty (a flag absent is false)."""
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        return _ABSENT.get(path, "")
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


_ABSENT = {
    "spec.unschedulable": "false",
    "spec.hostNetwork": "false",
    "status.replicas": "0",
    "status.succeeded": "0",
}


def parse_fields(text: str, kind: KindInfo) -> FieldSelector:
    """`text` as in ``fieldSelector=``; raises 400 for fields the kind does not support."""
    parsed = []
    for part in sorted(_split_unescaped(text)):
        if not part:
            continue
        found = re.match(r"(.*?)(!=|==|=)(.*)", part, re.DOTALL)
        if not found:
            raise status.bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        parsed.append((found[1], found[2] == "!=", _unescaped(found[3])))
    return FieldSelector(tuple(FieldTerm(_field_path(path, kind), value, no) for path, no, value in parsed))


def _split_unescaped(text: str) -> list[str]:
    return re.findall(r"(?:[^\\,]|\\.|\\$)+", text, re.DOTALL)


def _unescaped(value: str) -> str:
    """The value of a term; commas, equals signs and backslashes have a backslash before them."""
    out, rest = [], iter(value)
    for char in rest:
        if char in ",=":
            # the server prints the number of the character
            raise status.bad_request(f"invalid field selector: unescaped character in value: {ord(char)}")
        if char != "\\":
            out.append(char)
            continue
        escaped = next(rest, "")
        if not escaped or escaped not in "\\,=":
            raise status.bad_request(f"invalid field selector: invalid escape sequence: \\{escaped}")
        out.append(escaped)
    return "".join(out)


def _field_path(label: str, kind: KindInfo) -> str:
    if label in ("metadata.name", "metadata.namespace"):
        return label
    if label in kind.fields:
        return kind.fields[label]
    if kind.kind == "Job":
        raise status.bad_request(f'field label "{label}" not supported for Job')
    if kind.fields or kind.custom:
        raise status.bad_request(f"field label not supported: {label}")
    raise status.bad_request(f'"{label}" is not a known field selector: only "metadata.name", "metadata.namespace"')
