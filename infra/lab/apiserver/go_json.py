"""Go's words and spelling: its JSON encoding, its quoting, its complaints about malformed JSON.

Clients and the golden vectors compare messages word for word, and much of a Kubernetes message is Go's own.
"""

from __future__ import annotations

import json
from typing import Any

from infra.lab.apiserver.schema_codec import json_kind

_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def encode(value: object) -> str:
    """Compact JSON as ``json.Marshal`` writes it (keys in the order given)."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).translate(_ESCAPES)


def quote(text: str) -> str:
    """A string as ``%q`` prints it."""
    simple = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r", "\a": "\\a", "\b": "\\b"}
    simple |= {"\f": "\\f", "\v": "\\v"}
    out = []
    for char in text:
        if char in simple:
            out.append(simple[char])
        elif char.isprintable():
            out.append(char)
        elif ord(char) < 0x80:
            out.append(f"\\x{ord(char):02x}")
        elif ord(char) <= 0xFFFF:
            out.append(f"\\u{ord(char):04x}")
        else:
            out.append(f"\\U{ord(char):08x}")
    return '"' + "".join(out) + '"'


def show(value: Any) -> str:
    """A value as ``%v`` prints it: ``map[a:1 b:[x y]]``."""
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{show(value[key])}" for key in sorted(value)) + "]"
    if isinstance(value, list):
        return "[" + " ".join(show(item) for item in value) + "]"
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def field_value(value: Any) -> str:
    """A bad value as validation errors show it: strings quoted, ``null``, numbers plain, the rest as JSON."""
    if isinstance(value, str):
        return quote(value)
    return encode(value)


def sorted_keys(value: Any) -> Any:
    """A JSON value with its keys in the order in which maps are encoded."""
    if isinstance(value, dict):
        return {key: sorted_keys(value[key]) for key in sorted(value)}
    return [sorted_keys(item) for item in value] if isinstance(value, list) else value


def unmarshal_error(value: object, wanted: str) -> str:
    """The complaint about a whole document of the wrong JSON type."""
    return f"json: cannot unmarshal {json_kind(value)} into Go value of type {wanted}"


# What its decoder says of a body that is no object when it looks for apiVersion and kind
TYPE_META = (
    "json: cannot unmarshal {} into Go value of type struct {{ APIVersion string "
    '"json:\\"apiVersion,omitempty\\""; Kind string "json:\\"kind,omitempty\\"" }}'
)
NO_TYPE = "couldn't get version/kind; json parse error: "
END = "unexpected end of JSON input"
_SPACE = " \t\r\n"
_LITERALS = {"t": "true", "f": "false", "n": "null"}


class _SyntaxError(Exception):
    pass


class _Scanner:
    """A JSON reader that only looks for the first mistake, to word it as Go does."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, context: str) -> _SyntaxError:
        if self.at >= len(self.text):
            return _SyntaxError(END)
        return _SyntaxError(f"invalid character {_quote_char(self.text[self.at])} {context}")

    def space(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in _SPACE:
            self.at += 1

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def document(self) -> None:
        self.value()
        self.space()
        if self.at < len(self.text):
            raise self.fail("after top-level value")

    def value(self) -> None:
        self.space()
        char = self.peek()
        if char == "{":
            self.container("}", "object")
        elif char == "[":
            self.container("]", "array")
        elif char == '"':
            self.string()
        elif char in _LITERALS and char:
            self.literal(_LITERALS[char])
        elif char == "-" or char.isdigit():
            self.number()
        else:
            raise self.fail("looking for beginning of value")

    def container(self, end: str, name: str) -> None:
        self.at += 1
        self.space()
        if self.peek() == end:
            self.at += 1
            return
        after = "after object key:value pair" if name == "object" else "after array element"
        while True:
            if name == "object":
                self.key()
            self.value()
            self.space()
            char = self.peek()
            if char == end:
                self.at += 1
                return
            if char != ",":
                raise self.fail(after)
            self.at += 1

    def key(self) -> None:
        self.space()
        if self.peek() != '"':
            raise self.fail("looking for beginning of object key string")
        self.string()
        self.space()
        if self.peek() != ":":
            raise self.fail("after object key")
        self.at += 1

    def string(self) -> None:
        self.at += 1
        while True:
            char = self.peek()
            if not char:
                raise self.fail("")
            if char == '"':
                self.at += 1
                return
            if char == "\\":
                self.at += 1
                if self.peek() not in '"\\/bfnrtu' or not self.peek():
                    raise self.fail("in string escape code")
                if self.peek() == "u":
                    for _ in range(4):
                        self.at += 1
                        if self.peek() not in "0123456789abcdefABCDEF" or not self.peek():
                            raise self.fail("in \\u hexadecimal character escape")
            elif char < " ":
                raise self.fail("in string literal")
            self.at += 1

    def literal(self, word: str) -> None:
        for char in word:
            if self.peek() != char:
                raise self.fail(f"in literal {word} (expecting {_quote_char(char)})")
            self.at += 1

    def number(self) -> None:
        if self.peek() == "-":
            self.at += 1
            if not self.peek().isdigit():
                raise self.fail("in numeric literal")
        if self.peek() == "0":
            self.at += 1
        else:
            self.digits()
        if self.peek() == ".":
            self.at += 1
            if not self.peek().isdigit():
                raise self.fail("after decimal point in numeric literal")
            self.digits()
        if self.peek() in ("e", "E"):
            self.at += 1
            if self.peek() in ("+", "-"):
                self.at += 1
            if not self.peek().isdigit():
                raise self.fail("in exponent of numeric literal")
            self.digits()

    def digits(self) -> None:
        while self.peek().isdigit():
            self.at += 1


def _quote_char(char: str) -> str:
    if char == "'":
        return "'\\''"
    if char == '"':
        return "'\"'"
    return "'" + quote(char)[1:-1] + "'"


def syntax_error(text: str) -> str:
    """What Go's decoder says about this malformed document; empty when it is well-formed."""
    try:
        _Scanner(text).document()
    except _SyntaxError as error:
        return str(error)
    return ""
