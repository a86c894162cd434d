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
        out = self._struct(struct, value, [], "")
        if self._error:
            raise DecodeError(self._error)
        return out

    def _duplicates(self, value: object, path: str) -> None:
        if isinstance(value, DuplicateKeys):
            self.unknown.extend(f'duplicate field "{_join(path, key)}"' for key in value.duplicates)

    def _fail(self, message: str) -> None:
        self._error = self._error or message

    def _mismatch(self, value: object, kind: schema.Type, struct: schema.Struct, stack: list[str]) -> None:
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
        where = f"Go struct field {struct.go_type}.{'.'.join(stack)}"
        self._fail(f"json: cannot unmarshal {shown} into {where} of type {wanted}")

    def _struct(self, struct: schema.Struct, value: dict[str, Any], stack: list[str], path: str) -> dict[str, Any]:
        known = struct.by_name
        found: dict[str, Any] = {}
        for key, entry in value.items():
            field = known.get(key)
            if field is None:
                self.unknown.append(f'unknown field "{_join(path, key)}"')
                continue
            found[key] = self._value(field.type, entry, struct, [*stack, key], _join(path, key))
        return encode_fields(struct, found)

    def _value(self, kind: schema.Type, value: Any, owner: schema.Struct, stack: list[str], path: str) -> Any:
        if value is None:
            return None if kind.pointer else zero(kind)
        if kind.struct:
            if not isinstance(value, dict):
                self._mismatch(value, kind, owner, stack)
                return zero(kind)
            self._duplicates(value, path)
            return self._struct(schema.struct(kind.struct), value, stack, path)
        if kind.item is not None:
            if not isinstance(value, list):
                self._mismatch(value, kind, owner, stack)
                return None
            return [self._value(kind.item, item, owner, stack, f"{path}[{n}]") for n, item in enumerate(value)]
        if kind.value is not None:
            if not isinstance(value, dict):
                self._mismatch(value, kind, owner, stack)
                return None
            self._duplicates(value, path)
            return {key: self._value(kind.value, value[key], owner, stack, _join(path, key)) for key in sorted(value)}
        try:
            return schema_scalars.decode(kind.scalar, value)
        except ScalarError as error:
            if error.message:
                self._fail(error.message)
            else:
                self._mismatch(value, kind, owner, stack)
            return zero(kind)


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
    out: dict[str, Any] = {}
    for field in struct.fields:
        kind = field.type
        present = field.name in found
        value = found[field.name] if present else zero(kind)
        if field.keep or (kind.always_encoded and not field.omitzero):
            out[field.name] = value
        elif kind.pointer:
            if value is not None:
                out[field.name] = value
        elif value or (value not in (None, "", 0, False, [], {})):
            out[field.name] = value
    return out


def normalise(struct: schema.Struct, value: dict[str, Any]) -> dict[str, Any]:
    """`value` decoded and encoded again. Raises DecodeError; unknown fields are dropped silently."""
    return Decoder().decode(struct, value)
