"""Bodies in the Kubernetes protobuf encoding, which kubectl uses for every typed create.

An encoded object is the magic ``k8s\\0`` and a ``runtime.Unknown`` message with apiVersion, kind and the object's own
message. Field numbers come from the type table (`schema`). Wire format: protobuf.dev, "Encoding".
"""

from __future__ import annotations

import base64
import json
import struct as binary
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from infra.lab.apiserver import schema, schema_codec
from infra.lab.apiserver.status import ApiStatusError, bad_request

if TYPE_CHECKING:
    from collections.abc import Iterator

Object = dict[str, Any]

MAGIC = b"k8s\x00"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _Malformed(ValueError):
    """Bytes that are no protobuf message."""


def decode(body: bytes, wanted: str = "") -> Object:
    """The object in a protobuf body, with `apiVersion` and `kind`, in the form its type gives it.

    `wanted` is the kind the URL asks for; it appears in errors. Raises ApiStatusError 400.
    """
    if not body.startswith(MAGIC):
        raise _unrecognized(
            wanted, "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]", body
        )
    try:
        return _decode(body[len(MAGIC) :])
    except (_Malformed, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _unrecognized(wanted, str(error), body) from None


def _unrecognized(wanted: str, words: str, body: bytes) -> ApiStatusError:
    shown = body.hex() if len(body) <= 1024 else f"{body[:1024].hex()} ..."
    return bad_request(f"the object provided is unrecognized (must be of type {wanted}): {words} ({shown})")


def _decode(envelope: bytes) -> Object:
    api_version = kind = ""
    raw = b""
    for number, value in _fields(envelope):
        if number == 1 and isinstance(value, bytes):
            for inner, text in _fields(value):
                if inner == 1:
                    api_version = _text(text)
                elif inner == 2:
                    kind = _text(text)
        elif number == 2 and isinstance(value, bytes):
            raw = value
    group, _, version = api_version.rpartition("/")
    found = schema.find_struct(group, version, kind)
    if found is None:
        raise _Malformed(f'no kind "{kind}" is registered for version "{api_version}"')
    obj = {"kind": kind, "apiVersion": api_version, **_message(found, raw)}
    try:
        return schema_codec.normalise(found, obj)
    except schema_codec.DecodeError as error:
        raise _Malformed(str(error)) from None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    shift = value = 0
    while True:
        if at >= len(data) or shift > 63:
            raise _Malformed("unexpected EOF")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field: an int for varints, the bytes for everything else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise _Malformed(f"proto: illegal wireType {wire}")
        if at + size > len(data):
            raise _Malformed("unexpected EOF")
        yield tag >> 3, data[at : at + size]
        at += size


def _message(found: schema.Struct, data: bytes) -> Object:
    out: Object = {}
    numbers = found.by_number
    for number, value in _fields(data):
        field = numbers.get(number)
        if field is None:
            continue
        if field.inline:
            out.update(_message(schema.struct(field.type.struct), _bytes(value)))
        elif field.type.item is not None:
            out.setdefault(field.name, []).extend(_repeated(field.type.item, value))
        elif field.type.value is not None:
            key, entry = _map_entry(field.type.value, _bytes(value))
            out.setdefault(field.name, {})[key] = entry
        else:
            out[field.name] = _value(field.type, value)
    return out


def _repeated(item: schema.Type, value: int | bytes) -> list[Any]:
    if item.scalar in ("int32", "int64") and isinstance(value, bytes):
        # packed: several numbers in one field
        out, at = [], 0
        while at < len(value):
            number, at = _varint(value, at)
            out.append(_signed(number))
        return out
    return [_value(item, value)]


def _map_entry(kind: schema.Type, data: bytes) -> tuple[str, Any]:
    key, entry = "", schema_codec.zero(kind)
    for number, value in _fields(data):
        if number == 1:
            key = _text(value)
        elif number == 2 and kind.item is not None:
            # a list as a map's value has a message of its own around it
            entry = [_value(kind.item, inner) for field, inner in _fields(_bytes(value)) if field == 1]
        elif number == 2:
            entry = _value(kind, value)
    return key, entry


def _value(kind: schema.Type, value: int | bytes) -> Any:
    if kind.struct:
        return _message(schema.struct(kind.struct), _bytes(value))
    match kind.scalar:
        case "string":
            return _text(value)
        case "bool":
            return bool(value)
        case "int" | "int32" | "int64":
            return _signed(value)
        case "uint32":
            return value
        case "float64":
            return binary.unpack("<d", _bytes(value))[0]
        case "bytes":
            return base64.b64encode(_bytes(value)).decode()
    inner = dict(_fields(_bytes(value)))
    match kind.scalar:
        case "quantity":
            return _text(inner.get(1, b"0")) or "0"
        case "intorstring":
            return _text(inner.get(3, b"")) if inner.get(1) else _signed(inner.get(2, 0))
        case "time" | "microtime":
            return _instant(inner, micro=kind.scalar == "microtime")
        case "duration":
            return f"{_signed(inner.get(1, 0)) / 1e9:g}s"
        case _:
            raw = _bytes(inner.get(1, b""))
            return json.loads(raw) if raw else None


def _instant(inner: dict[int, int | bytes], *, micro: bool) -> str | None:
    """A time is seconds and nanoseconds since 1970; an empty message is no time at all."""
    seconds, nanos = _signed(inner.get(1, 0)), _signed(inner.get(2, 0))
    if not seconds and not nanos:
        return None
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds, microseconds=nanos // 1000)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")


def _signed(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise _Malformed("proto: wrong wireType")
    return value - 2**64 if value >= 2**63 else value


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise _Malformed("proto: wrong wireType")
    return value


def _text(value: int | bytes) -> str:
    return _bytes(value).decode()
