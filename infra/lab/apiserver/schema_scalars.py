"""The scalar types of the Kubernetes API: what is accepted, and in which form it comes back."""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from typing import Any

INTEGERS = {
    "int": (-(2**63), 2**63 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
}

ZERO: dict[str, Any] = {
    "string": "",
    "bool": False,
    "float64": 0,
    "quantity": "0",
    "intorstring": 0,
    "duration": "0s",
    **dict.fromkeys(INTEGERS, 0),
}


class ScalarError(ValueError):
    """The value does not fit. `message` is the type's own complaint; empty when only the JSON type is wrong."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message


_QUANTITY = re.compile(r"^([+-]?)(\d+(?:\.\d*)?|\.\d+)([numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)?$")
_QUANTITY_RULE = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
_BINARY = {f"{letter}i": 1024**power for power, letter in enumerate("KMGTPE", start=1)}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def parse_quantity(text: str) -> Decimal:
    """The number a resource quantity stands for. Raises ScalarError."""
    match = _QUANTITY.match(text)
    if match is None:
        raise ScalarError(_QUANTITY_RULE)
    sign, digits, suffix = match[1], match[2], match[3] or ""
    number = Decimal(f"{sign}{digits}")
    if suffix in _BINARY:
        return number * Decimal(_BINARY[suffix])
    if suffix in _DECIMAL:
        return number.scaleb(_DECIMAL[suffix])
    return number.scaleb(int(suffix[1:]))


def canonical_quantity(text: str) -> str:
    """A quantity as the server prints it: no fraction, the largest suffix that fits, the suffix family of the input.

    Kubernetes API conventions, "Quantity": ``0.5`` becomes ``500m``, ``1024Mi`` becomes ``1Gi``; precision beyond nano
    is rounded up. Raises ScalarError.
    """
    value = parse_quantity(text)
    if value == 0:
        return "0"
    suffix = re.sub(r"^[+-]?[\d.]+", "", text)
    if suffix in _BINARY and value == value.to_integral_value() and abs(value) >= 1024:
        number, name = int(value), ""
        for candidate, factor in _BINARY.items():
            if int(value) % factor == 0:
                number, name = int(value) // factor, candidate
        return f"{number}{name}"
    nano = (value * 10**9).to_integral_value(rounding=ROUND_CEILING)
    number, exponent = int(nano), -9
    while number % 1000 == 0 and exponent < 18:
        number //= 1000
        exponent += 3
    if len(suffix) > 1 and suffix[0] in "eE" and suffix[1:].lstrip("+-").isdigit():
        return f"{number}e{exponent}" if exponent else str(number)
    names = {power: name for name, power in _DECIMAL.items()}
    return f"{number}{names[exponent]}"


def _quantity(value: object) -> str:
    if isinstance(value, bool):
        raise ScalarError(_QUANTITY_RULE)
    if isinstance(value, int | float):
        value = str(value)
    if not isinstance(value, str):
        raise ScalarError(_QUANTITY_RULE)
    return canonical_quantity(value)


_TIME_PARTS = (("2006", 4, "-"), ("01", 2, "-"), ("02", 2, "T"), ("15", 2, ":"), ("04", 2, ":"), ("05", 2, ""))


def _time_error(text: str, layout: str, fraction: bool) -> ScalarError:
    """Go's complaint about a time: the rest of the input at the point where it stops matching the layout."""
    rest = text
    for element, width, separator in _TIME_PARTS:
        if not (len(rest) >= width and rest[:width].isdigit()):
            return ScalarError(f'parsing time "{text}" as "{layout}": cannot parse "{rest}" as "{element}"')
        rest = rest[width:]
        if separator:
            if not rest.startswith(separator):
                return ScalarError(f'parsing time "{text}" as "{layout}": cannot parse "{rest}" as "{separator}"')
            rest = rest[1:]
    if fraction:
        match = re.match(r"\.\d{6}", rest)
        if not match:
            return ScalarError(f'parsing time "{text}" as "{layout}": cannot parse "{rest}" as ".000000"')
        rest = rest[match.end() :]
    if not re.fullmatch(r"Z|[+-]\d\d:\d\d", rest):
        return ScalarError(f'parsing time "{text}" as "{layout}": cannot parse "{rest}" as "Z07:00"')
    return ScalarError(f'parsing time "{text}": day out of range')


# Already as the server prints it, and in range whatever the month
_PLAIN_TIME = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])T([01]\d|2[0-3])(:[0-5]\d){2}Z")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d([.,]\d+)?(Z|[+-]\d\d:\d\d)")


def _parse_instant(text: str) -> datetime:
    trimmed = re.sub(r"[.,](\d{1,6})\d*", r".\1", text)
    return datetime.fromisoformat(trimmed).astimezone(UTC)


def _time(value: object) -> str:
    if not isinstance(value, str):
        raise ScalarError
    if _PLAIN_TIME.fullmatch(value):
        return value
    layout = "2006-01-02T15:04:05Z07:00"
    if not _RFC3339.fullmatch(value):
        raise _time_error(value, layout, fraction=False)
    try:
        return _parse_instant(value).strftime("%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        raise _time_error(value, layout, fraction=False) from None


def _microtime(value: object) -> str:
    if not isinstance(value, str):
        raise ScalarError
    layout = "2006-01-02T15:04:05.000000Z07:00"
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d\d:\d\d)", value):
        raise _time_error(value, layout, fraction=True)
    try:
        return _parse_instant(value).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except ValueError:
        raise _time_error(value, layout, fraction=True) from None


def _base64_error(text: str) -> ScalarError:
    """Where Go's standard decoder gives up: at the first byte outside the alphabet, or at bad padding."""
    for position, char in enumerate(text):
        if not (char.isascii() and (char.isalnum() or char in "+/")):
            if char == "=" and position % 4 in (2, 3):
                rest = text[position:].replace("\n", "").replace("\r", "")
                if rest == "=" * (4 - position % 4):
                    continue
            return ScalarError(f"illegal base64 data at input byte {position}")
    return ScalarError(f"illegal base64 data at input byte {len(text) - len(text) % 4}")


def _bytes(value: object) -> str:
    if not isinstance(value, str):
        raise ScalarError
    text = value.replace("\n", "").replace("\r", "")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _base64_error(text) from None
    return base64.b64encode(raw).decode()


def _int_or_string(value: object) -> int | str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and INTEGERS["int32"][0] <= value <= 2**31 - 1:
        return value
    kind = {bool: "bool", list: "array", dict: "object"}.get(type(value))
    if kind is None:
        raise ScalarError(f"json: cannot unmarshal number {value} into Go value of type int32")
    raise ScalarError(f"json: cannot unmarshal {kind} into Go value of type int32")


def decode(scalar: str, value: Any) -> Any:
    """`value` (not null) in canonical form. Raises ScalarError."""
    if scalar in INTEGERS:
        low, high = INTEGERS[scalar]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ScalarError
        return value
    match scalar:
        case "string":
            fits = isinstance(value, str)
        case "bool":
            fits = isinstance(value, bool)
        case "float64":
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        case "fieldsv1":
            fits = isinstance(value, dict)
        case _:
            converter = _CONVERTERS.get(scalar)
            return converter(value) if converter else value
    if not fits:
        raise ScalarError
    return value


_CONVERTERS = {
    "quantity": _quantity,
    "time": _time,
    "microtime": _microtime,
    "bytes": _bytes,
    "intorstring": _int_or_string,
}
