"""Sets of fields, as ``metadata.managedFields`` records them (Kubernetes docs, "Server-Side Apply").

A path is a tuple of the elements `fieldsV1` is written with: ``f:NAME`` a field or map key, ``k:{...}`` a list element
by its keys, ``v:VALUE`` an element of a set. How deep a value is taken apart follows from its type: atomic maps,
structures and lists are one field, and so are all lists of untyped objects.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.lab.apiserver import schema
from infra.lab.apiserver.schema_scalars import INTEGERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Path = tuple[str, ...]
FieldSet = frozenset[Path]
Object = dict[str, Any]

EMPTY: FieldSet = frozenset()


class TypedError(ValueError):
    """A value that does not fit its type, in the words of the typed-object library real servers use."""


class Shape:
    """How a value is taken apart: its type and the merge rules of the field it is in.

    `leaf`: one field as a whole (scalars, atomic structures, maps and lists). Shapes are made once per type and field.
    """

    __slots__ = ("_element", "_members", "field", "is_list", "leaf", "struct", "type", "untyped")

    def __init__(
        self,
        kind: schema.Type | None = None,
        field: schema.Field | None = None,
        struct: schema.Struct | None = None,
    ) -> None:
        self.type = kind
        self.field = field
        self.struct = struct
        self.untyped = kind is None and struct is None
        self.is_list = kind is not None and kind.item is not None
        self.leaf = self._is_leaf()
        self._members: dict[str, Shape | None] = {}
        self._element: Shape | None = None

    def _is_leaf(self) -> bool:
        if self.type is None:
            return False
        if self.type.scalar or (self.field is not None and self.field.atomic):
            return True
        if self.struct is not None:
            return self.struct.atomic
        return self.is_list and (self.field is None or self.field.list_type not in ("map", "set"))

    def member(self, name: str) -> Shape | None:
        """The shape of a field or map key; None when the type has no such field."""
        if self.struct is None:
            # every key of a map has the same shape
            name = ""
        if name not in self._members:
            self._members[name] = self._new_member(name)
        return self._members[name]

    def _new_member(self, name: str) -> Shape | None:
        if self.struct is not None:
            field = self.struct.by_name.get(name)
            return _of(field.type, field) if field else None
        if self.type is not None and self.type.value is not None:
            return _of(self.type.value, None)
        return UNTYPED

    def default(self, name: str) -> Any:
        """The default of a field, None without one."""
        field = self.struct.by_name.get(name) if self.struct else None
        return field.default if field else None

    @property
    def element(self) -> Shape:
        """The shape of a list's elements."""
        if self._element is None:
            item = self.type.item if self.type else None
            self._element = _of(item, None) if item is not None else UNTYPED
        return self._element


UNTYPED = Shape()


def _of(kind: schema.Type, field: schema.Field | None) -> Shape:
    return Shape(kind, field, schema.struct(kind.struct) if kind.struct else None)


_ROOTS: dict[str, Shape] = {}


def root(struct: schema.Struct | None) -> Shape:
    """The shape of a whole object; None for kinds without a type."""
    if struct is None:
        return UNTYPED
    if struct.name not in _ROOTS:
        _ROOTS[struct.name] = Shape(struct=struct)
    return _ROOTS[struct.name]


def opens(shape: Shape, value: Any) -> bool:
    """True when a value is taken apart into its fields."""
    if shape.untyped:
        return isinstance(value, dict)
    return not shape.leaf and isinstance(value, dict | list)


def key_of(shape: Shape, item: Any, position: int = 0) -> str:
    """The path element of a list's element. Raises TypedError when it lacks a key that has no default."""
    if shape.field is not None and shape.field.list_type == "map":
        keys: Object = {}
        for name in shape.field.list_keys:
            value = item.get(name) if isinstance(item, dict) else None
            if value is None:
                value = shape.element.default(name)
            if value is None:
                complaint = "associative list with keys has an element that omits key field"
                raise TypedError(f'element {position}: {complaint} "{name}" (and doesn\'t have default value)')
            keys[name] = value
        return "k:" + json.dumps(keys, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "v:" + json.dumps(item, separators=(",", ":"), ensure_ascii=False)


def children(shape: Shape, value: Any) -> Iterator[tuple[str, Shape, Any]]:
    """Path element, shape and value of everything directly below a value that `opens`."""
    if isinstance(value, dict):
        for name, entry in value.items():
            below = shape.member(name)
            if below is not None:
                yield f"f:{name}", below, entry
    else:
        below = shape.element
        for position, item in enumerate(value):
            yield key_of(shape, item, position), below, item


def tree(shape: Shape, value: Any, path: Path = ()) -> Iterator[Path]:
    """A value that came or went as a whole: its own path and those of everything in it."""
    if path:
        yield path
    if opens(shape, value):
        for name, below, entry in children(shape, value):
            yield from tree(below, entry, (*path, name))


def owned(shape: Shape, value: Any, path: Path = ()) -> Iterator[Path]:
    """What an applied configuration owns: its leaves, its list elements, and containers it leaves empty."""
    if not opens(shape, value) or not value:
        if path:
            yield path
        return
    is_list = isinstance(value, list)
    for name, below, entry in children(shape, value):
        if is_list:
            yield (*path, name)
        yield from owned(below, entry, (*path, name))


@dataclass(frozen=True)
class Difference:
    """Paths by what happened to them."""

    changed: FieldSet
    removed: FieldSet


def compare(shape: Shape, old: Any, new: Any) -> Difference:
    """Which fields were added or modified (`changed`) and which removed."""
    changed: set[Path] = set()
    removed: set[Path] = set()
    _compare(shape, old, new, (), changed, removed)
    return Difference(frozenset(changed), frozenset(removed))


def _compare(shape: Shape, old: Any, new: Any, path: Path, changed: set[Path], removed: set[Path]) -> None:
    if old == new and type(old) is type(new):
        return
    old_opens, new_opens = opens(shape, old), opens(shape, new)
    if not (old_opens or old is None) or not (new_opens or new is None) or not (old_opens or new_opens):
        changed.add(path)
        return
    before = {name: (below, entry) for name, below, entry in children(shape, old)} if old_opens else {}
    after = {name: (below, entry) for name, below, entry in children(shape, new)} if new_opens else {}
    for name, (below, entry) in before.items():
        if name not in after:
            removed.update(tree(below, entry, (*path, name)))
    for name, (below, entry) in after.items():
        if name not in before:
            changed.update(tree(below, entry, (*path, name)))
        else:
            _compare(below, before[name][1], entry, (*path, name), changed, removed)


def check_types(shape: Shape, value: Any, path: Path = ()) -> Iterator[str]:
    """What in an applied configuration does not fit the type, as ``PATH: complaint``."""
    where = show(path)
    kind = shape.type
    if value is None or shape.untyped:
        return
    if kind is not None and kind.scalar:
        complaint = _scalar_complaint(kind.scalar, value)
        if complaint:
            yield f"{where}: {complaint}"
    elif shape.is_list:
        if not isinstance(value, list):
            yield f"{where}: expected list, got {_unstructured(value)}"
            return
        yield from _check_items(shape, value, path)
    elif not isinstance(value, dict):
        yield f"{where}: expected map, got {_unstructured(value)}"
    else:
        for name, entry in value.items():
            below = shape.member(name)
            if below is None:
                yield f"{show((*path, f'f:{name}'))}: field not declared in schema"
            else:
                yield from check_types(below, entry, (*path, f"f:{name}"))


def _check_items(shape: Shape, value: list[Any], path: Path) -> Iterator[str]:
    associative = shape.field is not None and shape.field.list_type in ("map", "set")
    seen: set[str] = set()
    for position, item in enumerate(value):
        name = f"i:{position}"
        if associative:
            try:
                name = key_of(shape, item, position)
            except TypedError as error:
                yield f"{show(path)}: {error}"
                continue
            if name in seen:
                yield f"{show(path)}: duplicate entries for key {show((name,))}"
            seen.add(name)
        yield from check_types(shape.element, item, (*path, name))


def _unstructured(value: object) -> str:
    from infra.lab.apiserver import go_json

    return f"&value.valueUnstructured{{Value:{go_json.show(value)}}}"


def _scalar_complaint(scalar: str, value: object) -> str:
    if scalar in (*INTEGERS, "float64"):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return ""
        return f"expected numeric (int or float), got {_word(value)}"
    if scalar == "bool":
        return "" if isinstance(value, bool) else f"expected boolean, got {_unstructured(value)}"
    if scalar in ("string", "bytes", "time", "microtime"):
        return "" if isinstance(value, str) else f"expected string, got {_unstructured(value)}"
    return ""


def _word(value: object) -> str:
    if isinstance(value, str):
        return "string"
    if isinstance(value, bool):
        return "boolean"
    return "list" if isinstance(value, list) else "map"


def show(path: Path) -> str:
    """A path as conflicts print it: ``.spec.containers[name="main"].image``."""
    out = []
    for name in path:
        mark, _, rest = name.partition(":")
        if mark == "f":
            out.append(f".{rest}")
        elif mark == "k":
            keys = json.loads(rest)
            out.append("[" + ",".join(f"{key}={json.dumps(keys[key], ensure_ascii=False)}" for key in keys) + "]")
        elif mark == "v":
            out.append(f"[={rest}]")
        else:
            out.append(f"[{rest}]")
    return "".join(out)


def encode(fields: Iterable[Path]) -> Object:
    """`fieldsV1` of a set: nested objects, ``.`` where a field with children is a member itself."""
    out: Object = {}
    for path in fields:
        here = out
        for name in path:
            here = here.setdefault(name, {})
        here["."] = {}
    return _without_lone_dots(out)


def _rank(name: str) -> tuple[int, str]:
    return ("fkvi".find(name[:1]), name)


def _without_lone_dots(node: Object) -> Object:
    out: Object = {}
    if "." in node and len(node) > 1:
        out["."] = {}
    for name in sorted((name for name in node if name != "."), key=_rank):
        out[name] = _without_lone_dots(node[name])
    return out


def decode(fields: Any) -> FieldSet:
    """The set written as `fieldsV1`. What is malformed is left out."""
    out: set[Path] = set()

    def visit(node: Any, path: Path) -> None:
        if not isinstance(node, dict):
            return
        if path and (not node or "." in node):
            out.add(path)
        for name, below in node.items():
            if name != ".":
                visit(below, (*path, name))

    visit(fields, ())
    return frozenset(out)


def remove(shape: Shape, value: Any, paths: FieldSet, keep: FieldSet, path: Path = ()) -> Any:
    """`value` without the fields in `paths`; a field with something of `keep` below it stays as a container."""
    if not opens(shape, value):
        return value
    is_list = isinstance(value, list)
    kept: list[tuple[str, Any]] = []
    for name, below, entry in children(shape, value):
        here = (*path, name)
        gone = here in paths and here not in keep
        if gone and not any(other[: len(here)] == here for other in keep):
            continue
        kept.append((name, remove(below, entry, paths, keep, here)))
    if is_list:
        return [entry for _, entry in kept]
    return {name[2:]: entry for name, entry in kept}


def merge(shape: Shape, live: Any, applied: Any) -> Any:
    """`live` with `applied` laid over it, list elements matched by their keys."""
    if applied is None:
        return live
    if not opens(shape, applied) or not opens(shape, live):
        return applied
    if isinstance(applied, dict) and isinstance(live, dict):
        out = dict(live)
        for name, entry in applied.items():
            below = shape.member(name) or UNTYPED
            out[name] = merge(below, live[name], entry) if name in live else entry
        return out
    if isinstance(applied, list) and isinstance(live, list):
        return _merge_lists(shape, live, applied)
    return applied


def _merge_lists(shape: Shape, live: list[Any], applied: list[Any]) -> list[Any]:
    """Applied elements in the order applied, each after the elements that stood before it."""
    below = shape.element
    old = {key_of(shape, item): item for item in live}
    new = {key_of(shape, item): item for item in applied}
    waiting = list(old)
    out: list[Any] = []
    for name, item in new.items():
        if name in old:
            if name in waiting:
                before = waiting[: waiting.index(name)]
                out += [old[other] for other in before if other not in new]
                waiting = [other for other in waiting if other not in before and other != name]
            out.append(merge(below, old[name], item))
        else:
            if not any(other in old for other in list(new)[list(new).index(name) :]):
                out += [old[other] for other in waiting if other not in new]
                waiting = []
            out.append(item)
    return [*out, *(old[other] for other in waiting if other not in new)]
