"""JSON in, JSON out, as a typed server does it: what is unknown falls away, what is empty is left out or spelled out.

A real API server decodes every body into Go structures and encodes those again. Much that clients see follows from
that alone: ``status: {}``, ``resources: {}``, ``lastProbeTime: null``, quantities in canonical form, unknown fields
gone. `decode` does the same on dictionaries, from the type table, and words errors as Go's decoder does.
"""

from __future__ import annotations

import json
from typing import Any

from infra.lab.apiserver import schema, schema_scalars
from infra.lab.apiserver.schema_scalars import ScalarError


class DecodeError(Exception):
    """The first value of a document which does not fit its type; the text is that of Go's decoder."""


class DuplicateKeys(dict[str, Any]):
    """A JSON object whose text had some keys twice; the last value counts."""

    duplicates: tuple[str, ...] = ()


def clone(value: Any) -> Any:
    """A deep copy of a JSON value, several times faster than copy.deepcopy."""
    if isinstance(value, dict):
        return {key: clone(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [clone(item) for item in value]
    return value


def parse_json(text: bytes | str) -> Any:
    """Parse JSON and remember duplicate keys (see `DuplicateKeys`). Raises json.JSONDecodeError, UnicodeDecodeError."""
    return json.loads(text, object_pairs_hook=_pairs)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    out = DuplicateKeys(plain)
    seen: set[str] = set()
    repeated: list[str] = []
    for key, _ in pairs:
        if key in seen:
            repeated.append(key)
        seen.add(key)
    out.duplicates = tuple(repeated)
    return out


def duplicates(value: object, path: str = "") -> list[str]:
    """Complaints about keys given twice, anywhere in a document read by `parse_json`."""
    out: list[str] = []
    if isinstance(value, dict):
        if isinstance(value, DuplicateKeys):
            out += [f'duplicate field "{_join(path, key)}"' for key in value.duplicates]
        for key, entry in value.items():
            out += duplicates(entry, _join(path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            out += duplicates(item, f"{path}[{number}]")
    return out


def json_kind(value: object) -> str:
    """What Go's decoder calls a JSON value in its errors."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    if value is None:
        return "null"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


class Decoder:
    """One pass over one document. After it, `unknown` has the strict-decoding complaints in document order."""

    def __init__(self, *, unstructured: bool = False) -> None:
        """`unstructured`: word errors as the conversion of untyped maps does (strategic merge)."""
        self.unknown: list[str] = []
        self._error: str = ""
        self._unstructured = unstructured

    def decode(self, struct: schema.Struct, value: dict[str, Any]) -> dict[str, Any]:
        """The document as it comes back from the typed server. Raises DecodeError for a wrong type."""
        self._duplicates(value, "")
        out = self._struct(struct, value, None)
        if self._error:
            raise DecodeError(self._error)
        return out

    def _duplicates(self, value: object, path: str) -> None:
        if isinstance(value, DuplicateKeys):
            self.unknown.extend(f'duplicate field "{_join(path, key)}"' for key in value.duplicates)

    def _fail(self, message: str) -> None:
        self._error = self._error or message

    def _mismatch(self, value: object, kind: schema.Type, struct: schema.Struct, place: _Place) -> None:
        shown, wanted = json_kind(value), kind.go_name
        if self._unstructured:
            held = {"array": "slice", "object": "map", "number": "int64"}.get(shown, shown)
            if kind.struct:
                self._fail(f"cannot restore struct from: {held}")
            elif kind.item is not None:
                self._fail(f"cannot restore slice from {held}")
            elif kind.value is not None:
                self._fail(f"cannot restore map from {held}")
            else:
                self._fail(f"unrecognized type: {kind.scalar}")
            return
        if shown == "number" and wanted in schema_scalars.INTEGERS:
            shown = f"number {json.dumps(value)}"
        where = f"Go struct field {struct.go_type}.{_fields_of(place)}"
        self._fail(f"json: cannot unmarshal {shown} into {where} of type {wanted}")

    def _struct(self, struct: schema.Struct, value: dict[str, Any], place: _Place | None) -> dict[str, Any]:
        known = struct.by_name
        found: dict[str, Any] = {}
        for key, entry in value.items():
            field = known.get(key)
            if field is None:
                self.unknown.append(f'unknown field "{_join(_path(place), key)}"')
                continue
            found[key] = self._value(field.type, entry, struct, (place, key))
        return encode_fields(struct, found)

    def _value(self, kind: schema.Type, value: Any, owner: schema.Struct, place: _Place) -> Any:
        if value is None:
            return None if kind.pointer else zero(kind)
        if kind.scalar:
            if kind.scalar == "string" and isinstance(value, str):
                return value
            return self._scalar(kind, value, owner, place)
        if kind.item is not None:
            if not isinstance(value, list):
                self._mismatch(value, kind, owner, place)
                return None
            return [self._value(kind.item, item, owner, (place, n)) for n, item in enumerate(value)]
        if not isinstance(value, dict):
            self._mismatch(value, kind, owner, place)
            return zero(kind)
        if isinstance(value, DuplicateKeys):
            self._duplicates(value, _path(place))
        if kind.struct:
            return self._struct(schema.struct(kind.struct), value, place)
        assert kind.value is not None  # noqa: S101  (a type is a scalar, a list, a structure or a map)
        out = {key: self._value(kind.value, value[key], owner, (place, key, "")) for key in sorted(value)}
        if kind.value.scalar == "bytes":
            # no bytes and an empty text are the same once they are stored
            return {key: entry or "" for key, entry in out.items()}
        return out

    def _scalar(self, kind: schema.Type, value: Any, owner: schema.Struct, place: _Place) -> Any:
        try:
            return schema_scalars.decode(kind.scalar, value)
        except ScalarError as error:
            if error.message:
                self._fail(error.message)
            else:
                self._mismatch(value, kind, owner, place)
            return zero(kind)


# Where a value is: the place of what contains it, and its field name or list position; map keys have a third element
_Place = tuple[Any, ...]


def _steps(place: _Place | None) -> list[_Place]:
    out: list[_Place] = []
    while place is not None:
        out.append(place)
        place = place[0]
    return out[::-1]


def _path(place: _Place | None) -> str:
    """As strict decoding shows it: ``spec.containers[0].image``."""
    path = ""
    for step in _steps(place):
        path = f"{path}[{step[1]}]" if isinstance(step[1], int) else _join(path, step[1])
    return path


def _fields_of(place: _Place) -> str:
    """As decoding errors show it: field names alone, without list positions and map keys."""
    return ".".join(step[1] for step in _steps(place) if len(step) == 2 and isinstance(step[1], str))


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def zero(kind: schema.Type) -> Any:
    """What an unset field of this type looks like when it is spelled out."""
    if kind.pointer or kind.item is not None or kind.value is not None:
        return None
    if kind.struct:
        return encode_fields(schema.struct(kind.struct), {})
    return schema_scalars.ZERO.get(kind.scalar)


def encode_fields(struct: schema.Struct, found: dict[str, Any]) -> dict[str, Any]:
    """`found` (decoded values by JSON name) in the order and with the omissions of the Go encoder."""
    always, optional = struct.always, struct.optional
    out = {name: zero(kind) for name, kind in always.items() if name not in found}
    for name, value in found.items():
        if value or name in always or (value is not None and name in optional):
            out[name] = value
    if len(out) > 1:
        rank = struct.rank
        return {name: out[name] for name in sorted(out, key=rank.__getitem__)}
    return out


def normalise(struct: schema.Struct, value: dict[str, Any]) -> dict[str, Any]:
    """`value` decoded and encoded again. Raises DecodeError; unknown fields are dropped silently."""
    return Decoder().decode(struct, value)
