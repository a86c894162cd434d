"""Schemas of OpenAPI v3 for the kinds the server knows: what `kubectl explain` reads.

Built-in kinds come from the type table (`schema`), under the names a real server gives them; custom ones from their
CustomResourceDefinition. The table has no descriptions and does not say which fields are required, so neither do these.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from . import schema

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .kinds import KindInfo
    from .schema import Field, Type

JSON = dict[str, Any]
_META = "io.k8s.apimachinery.pkg.apis.meta.v1"
_HOMES = {
    "meta": "io.k8s.apimachinery.pkg.apis.meta",
    "apiextensions": "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions",
    "apiregistration": "io.k8s.kube-aggregator.pkg.apis.apiregistration",
}
_PLAIN: dict[str, JSON] = {
    "string": {"type": "string"},
    "bool": {"type": "boolean"},
    "int32": {"type": "integer", "format": "int32"},
    "int64": {"type": "integer", "format": "int64"},
    "float64": {"type": "number", "format": "double"},
    "bytes": {"type": "string", "format": "byte"},
}
_NAMED: dict[str, tuple[str, JSON]] = {
    "quantity": ("io.k8s.apimachinery.pkg.api.resource.Quantity", {"oneOf": [{"type": "string"}, {"type": "number"}]}),
    "intorstring": (
        "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
        {"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]},
    ),
    "time": (f"{_META}.Time", {"type": "string", "format": "date-time"}),
    "microtime": (f"{_META}.MicroTime", {"type": "string", "format": "date-time"}),
    "duration": (f"{_META}.Duration", {"type": "string"}),
    "fieldsv1": (f"{_META}.FieldsV1", {"type": "object"}),
    "raw": ("io.k8s.apimachinery.pkg.runtime.RawExtension", {"type": "object"}),
}


def schemas(kinds: Iterable[KindInfo]) -> JSON:
    """`components.schemas` of these kinds and of all that they refer to, by name."""
    out: JSON = {}
    for kind in kinds:
        identity = {"group": kind.group, "kind": kind.kind, "version": kind.version}
        if kind.custom:
            name, found = _custom(kind)
            out[name] = found
            _add(out, schema.OBJECT_META)
        else:
            struct = schema.find_struct(kind.group, kind.version, kind.kind)
            if struct is None:
                continue
            name = _name(struct.name)
            _add(out, struct.name)
        out[name].setdefault("x-kubernetes-group-version-kind", []).append(identity)
    return dict(sorted(out.items()))


def _name(struct: str) -> str:
    """`core/v1.Pod` as `io.k8s.api.core.v1.Pod`."""
    package, _, rest = struct.partition("/")
    return f"{_HOMES.get(package, f'io.k8s.api.{package}')}.{rest}"


def _add(out: JSON, struct: str) -> None:
    name = _name(struct)
    if name in out:
        return
    properties: JSON = {}
    out[name] = {"type": "object", "properties": properties}
    for field in schema.struct(struct).fields:
        properties[field.name] = _field(out, field)


def _field(out: JSON, field: Field) -> JSON:
    found = _type(out, field.type)
    if field.patch:
        found["x-kubernetes-patch-strategy"] = ",".join(sorted(field.patch))
    if field.merge_key:
        found["x-kubernetes-patch-merge-key"] = field.merge_key
    if field.list_type:
        found["x-kubernetes-list-type"] = field.list_type
    if field.list_keys:
        found["x-kubernetes-list-map-keys"] = list(field.list_keys)
    return found


def _type(out: JSON, kind: Type) -> JSON:
    if kind.item is not None:
        return {"type": "array", "items": _type(out, kind.item)}
    if kind.value is not None:
        return {"type": "object", "additionalProperties": _type(out, kind.value)}
    if kind.struct:
        _add(out, kind.struct)
        return _reference(_name(kind.struct))
    if kind.scalar in _PLAIN:
        return dict(_PLAIN[kind.scalar])
    name, found = _NAMED[kind.scalar]
    out.setdefault(name, dict(found))
    return _reference(name)


def _reference(name: str) -> JSON:
    # Beside a bare $ref nothing else may stand; servers wrap it for that reason.
    return {"allOf": [{"$ref": f"#/components/schemas/{name}"}]}


def _custom(kind: KindInfo) -> tuple[str, JSON]:
    found: JSON = copy.deepcopy(dict(kind.schema)) or {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    properties = found.setdefault("properties", {})
    properties["apiVersion"] = properties["kind"] = {"type": "string"}
    properties["metadata"] = _reference(_name(schema.OBJECT_META))
    return ".".join([*reversed(kind.group.split(".")), kind.version, kind.kind]), found
