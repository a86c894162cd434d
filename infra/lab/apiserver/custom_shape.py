"""How server-side apply takes custom resources apart: by the list and map types of their definition's schema.

Source: Kubernetes docs, "Server-Side Apply", "Merge strategy" (``x-kubernetes-list-type``, ``-list-map-keys``,
``-map-type``). Lists are atomic unless the schema says otherwise; what it leaves open is taken apart as it is found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.lab.apiserver import schema
from infra.lab.apiserver.managed_fields import UNTYPED, Shape

if TYPE_CHECKING:
    from collections.abc import Mapping

_SCALARS = {"string": "string", "integer": "int64", "number": "float64", "boolean": "bool"}
_TEXT = Shape(schema.Type(scalar="string"))
_META = {"apiVersion": _TEXT, "kind": _TEXT}
_OPEN = "x-kubernetes-preserve-unknown-fields"


class CustomShape(Shape):
    """A Shape read from an OpenAPI v3 schema; `root`: of a whole object, whose metadata has its own type."""

    __slots__ = ("_node", "_root")

    def __init__(self, node: Mapping[str, Any], root: bool = False) -> None:
        self._node = node
        self._root = root or bool(node.get("x-kubernetes-embedded-resource"))
        item = schema.Type(scalar="raw")  # stands for whatever `element` says
        kind: schema.Type | None = None
        if node.get("x-kubernetes-int-or-string"):
            kind = schema.Type(scalar="intorstring")
        elif node.get("type") in _SCALARS:
            kind = schema.Type(scalar=_SCALARS[node["type"]])
        elif node.get("type") == "array":
            kind = schema.Type(item=item)
        super().__init__(kind, _field(node, kind) if kind else None)
        self.untyped = kind is None and not self._known
        self.leaf = self.leaf or node.get("x-kubernetes-map-type") == "atomic"

    @property
    def _known(self) -> bool:
        return self._root or any(self._node.get(name) for name in ("properties", "additionalProperties"))

    def _new_member(self, name: str) -> Shape | None:
        node = self._node
        if self._root and name in _META:
            return _META[name]
        if self._root and name == "metadata":
            return Shape(schema.Type(struct=schema.OBJECT_META), None, schema.struct(schema.OBJECT_META))
        if name in (node.get("properties") or {}):
            return of(node["properties"][name])
        if node.get("additionalProperties"):
            extra = node["additionalProperties"]
            return of(extra) if isinstance(extra, dict) else UNTYPED
        return UNTYPED if node.get(_OPEN) or self.untyped else None

    def member(self, name: str) -> Shape | None:
        """The shape of a field or map key; None when the schema has no such field."""
        if name not in self._members:
            self._members[name] = self._new_member(name)
        return self._members[name]

    @property
    def element(self) -> Shape:
        """The shape of a list's elements."""
        if self._element is None:
            self._element = of(self._node.get("items") or {})
        return self._element

    def default(self, name: str) -> Any:
        """The default of a field, None without one."""
        return ((self._node.get("properties") or {}).get(name) or {}).get("default")


def of(node: Mapping[str, Any], root: bool = False) -> Shape:
    """The Shape of a part of a schema; without one everything is taken apart as it is found."""
    return CustomShape(node, root) if node else UNTYPED


def _field(node: Mapping[str, Any], kind: schema.Type) -> schema.Field:
    list_type = node.get("x-kubernetes-list-type") or ""
    keys = tuple(node.get("x-kubernetes-list-map-keys") or ())
    return schema.Field(name="", number=0, type=kind, list_type=list_type, list_keys=keys)
