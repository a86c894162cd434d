"""The types of the built-in kinds, read from ``schema_types.txt``.

One table serves everything that has to know the shape of an object: the JSON codec (`schema_codec`), strategic merge
(`patch`), server-side apply (`managed_fields`) and the protobuf decoder (`protobuf`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

_TABLE = Path(__file__).with_name("schema_types.txt")

# API group -> package of the type table
_PACKAGES = {
    "": "core",
    "admissionregistration.k8s.io": "admissionregistration",
    "apiextensions.k8s.io": "apiextensions",
    "apiregistration.k8s.io": "apiregistration",
    "apps": "apps",
    "authentication.k8s.io": "authentication",
    "authorization.k8s.io": "authorization",
    "autoscaling": "autoscaling",
    "batch": "batch",
    "certificates.k8s.io": "certificates",
    "coordination.k8s.io": "coordination",
    "discovery.k8s.io": "discovery",
    "events.k8s.io": "events",
    "meta.k8s.io": "meta",
    "networking.k8s.io": "networking",
    "node.k8s.io": "node",
    "policy": "policy",
    "rbac.authorization.k8s.io": "rbac",
    "scheduling.k8s.io": "scheduling",
    "storage.k8s.io": "storage",
}

# How Go names the scalars in a decoding error
_GO_NAMES = {
    "bytes": "[]uint8",
    "quantity": "resource.Quantity",
    "intorstring": "intstr.IntOrString",
    "time": "v1.Time",
    "microtime": "v1.MicroTime",
    "duration": "v1.Duration",
    "fieldsv1": "v1.FieldsV1",
    "raw": "runtime.RawExtension",
}

# Scalars which are structures in Go: `omitempty` never leaves them out
_STRUCT_SCALARS = frozenset({"quantity", "intorstring", "time", "microtime", "duration", "raw", "fieldsv1"})


@dataclass(frozen=True)
class Type:
    """A field's type: exactly one of `scalar`, `struct` (a name), `item` (list) and `value` (map with string keys)."""

    pointer: bool = False
    scalar: str = ""
    struct: str = ""
    item: Type | None = None
    value: Type | None = None
    go_name: str = ""

    @property
    def always_encoded(self) -> bool:
        """True for values `omitempty` has no effect on (Go structures which are not behind a pointer)."""
        return not self.pointer and (bool(self.struct) or self.scalar in _STRUCT_SCALARS)


@dataclass(frozen=True)
class Field:
    """One field of a type; `name` is ``-`` for an embedded type (`inline`)."""

    name: str
    number: int
    type: Type
    keep: bool = False
    omitzero: bool = False
    inline: bool = False
    atomic: bool = False
    patch: frozenset[str] = frozenset()
    merge_key: str = ""
    list_type: str = ""
    list_keys: tuple[str, ...] = ()
    default: str | None = None


@dataclass(frozen=True)
class Struct:
    """A type with named fields. `declared` has the embedded ones, `fields` what the JSON object shows."""

    name: str
    atomic: bool
    declared: tuple[Field, ...]

    @cached_property
    def fields(self) -> tuple[Field, ...]:
        """Fields in the order of the JSON encoding, embedded types spread out."""
        out: list[Field] = []
        for entry in self.declared:
            if entry.inline:
                out.extend(struct(entry.type.struct).fields)
            else:
                out.append(entry)
        return tuple(out)

    @cached_property
    def by_name(self) -> dict[str, Field]:
        return {entry.name: entry for entry in self.fields}

    @cached_property
    def rank(self) -> dict[str, int]:
        """Position of each field in the JSON encoding."""
        return {entry.name: position for position, entry in enumerate(self.fields)}

    @cached_property
    def always(self) -> dict[str, Type]:
        """Fields which are encoded even when they are empty, with their types."""
        return {f.name: f.type for f in self.fields if f.keep or (f.type.always_encoded and not f.omitzero)}

    @cached_property
    def optional(self) -> frozenset[str]:
        """Fields which may be present and empty at once (behind a pointer)."""
        return frozenset(f.name for f in self.fields if f.type.pointer)

    @cached_property
    def by_number(self) -> dict[int, Field]:
        return {entry.number: entry for entry in self.declared if entry.number}

    @property
    def go_type(self) -> str:
        """``Container`` of ``core/v1.Container``: the name decoding errors show."""
        return self.name.rsplit(".", 1)[1]


def _parse_type(text: str) -> Type:
    text, _, alias = text.partition("~")
    pointer = text.startswith("*")
    text = text.removeprefix("*")
    if text.startswith("[]"):
        item = _parse_type(text[2:])
        return Type(pointer, item=item, go_name=alias or f"[]{item.go_name}")
    if text.startswith("map[string]"):
        value = _parse_type(text.removeprefix("map[string]"))
        return Type(pointer, value=value, go_name=alias or f"map[string]{value.go_name}")
    if "." in text:
        return Type(pointer, struct=text, go_name=text.rsplit("/", 1)[1])
    return Type(pointer, scalar=text, go_name=alias or _GO_NAMES.get(text, text))


def _parse_field(line: str) -> Field:
    name, number, kind, *flags = line.split()
    words = dict(flag.partition("=")[::2] for flag in flags)
    strategies, _, merge_key = words.get("patch", "").partition("/")
    list_type, _, keys = words.get("list", "").partition("/")
    return Field(
        name=name,
        number=int(number),
        type=_parse_type(kind),
        keep="keep" in words,
        omitzero="omitzero" in words,
        inline="inline" in words,
        atomic="atomic" in words,
        patch=frozenset(strategies.split(",")) - {""},
        merge_key=merge_key,
        list_type=list_type,
        list_keys=tuple(keys.split(",")) if keys else (),
        default=words.get("default"),
    )


@cache
def _table() -> dict[str, Struct]:
    structs: dict[str, Struct] = {}
    for block in _TABLE.read_text(encoding="utf-8").split("\n\n"):
        lines = [line for line in block.splitlines() if line and not line.startswith("#")]
        if lines:
            name, *flags = lines[0].split()
            structs[name] = Struct(name, "atomic" in flags, tuple(_parse_field(line) for line in lines[1:]))
    return structs


def struct(name: str) -> Struct:
    """The type of that name (``core/v1.PodSpec``). Raises KeyError for one that is not in the table."""
    return _table()[name]


def find_struct(group: str, version: str, kind: str) -> Struct | None:
    """The type of a built-in kind, None for any other (custom resources)."""
    package = _PACKAGES.get(group)
    if package is None:
        return None
    found = _table().get(f"{package}/{version}.{kind}")
    if found is None and package != "meta":
        # options (DeleteOptions, ...) may come in the words of any group
        found = _table().get(f"meta/{version}.{kind}")
    return found


OBJECT_META = "meta/v1.ObjectMeta"
