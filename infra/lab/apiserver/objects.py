"""Forms of an object: canonical JSON as a typed server writes it, stored versions, versions shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import events, schema, schema_codec
from .kinds import KindInfo

if TYPE_CHECKING:
    from .store import Stored

JSON = dict[str, Any]
CORE_EVENT = KindInfo("", "v1", "Event", "events", True)


def ordered(obj: JSON, kind: KindInfo) -> JSON:
    """The object with kind, apiVersion and metadata in front, so that their JSON prefix is the same for a kind."""
    out: JSON = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": obj.get("metadata") or {}}
    for key, value in obj.items():
        if key not in out:
            out[key] = value
    return out


def canonical(obj: JSON, kind: KindInfo) -> JSON:
    """The object as a typed server would write it back: known order of fields, empty structures spelled out."""
    struct = None if kind.custom else schema.find_struct(kind.group, kind.version, kind.kind)
    if struct:
        return ordered(schema_codec.normalise(struct, obj), kind)
    metadata = schema_codec.normalise(schema.struct(schema.OBJECT_META), obj.get("metadata") or {})
    return ordered({**obj, "metadata": metadata}, kind)


def stored_form(obj: JSON, kind: KindInfo) -> JSON:
    """A canonical object of `kind` in the version it is stored in."""
    if kind.stored_as == "events":
        return canonical(events.to_core(obj), CORE_EVENT)
    if kind.storage_version and kind.storage_version != kind.version:
        return {**obj, "apiVersion": f"{kind.group}/{kind.storage_version}"}
    return obj


def convert(obj: JSON, kind: KindInfo) -> JSON:
    """A stored object in the version `kind` serves; the object itself when it is stored that way."""
    if obj.get("apiVersion") == kind.api_version:
        return obj
    if kind.stored_as == "events":
        return canonical(events.to_events_v1(obj), kind)
    return {**obj, "apiVersion": kind.api_version}


def render(stored: Stored, kind: KindInfo) -> bytes:
    """JSON of a single object as a GET or a watch shows it."""
    if stored.obj.get("apiVersion") == kind.api_version:
        return stored.raw
    return stored.variant(kind.api_version, lambda obj: convert(obj, kind))


def list_item(stored: Stored, kind: KindInfo, prefix: bytes) -> bytes:
    """JSON of an object as an item of a list: those of built-in kinds carry neither kind nor apiVersion.

    `prefix` is `item_prefix(kind)`.
    """
    raw = render(stored, kind)
    return raw if kind.custom else b"{" + raw[len(prefix) :]


def item_prefix(kind: KindInfo) -> bytes:
    return f'{{"kind":"{kind.kind}","apiVersion":"{kind.api_version}",'.encode()


def partial(obj: JSON, version: str = "v1") -> JSON:
    """PartialObjectMetadata."""
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": f"meta.k8s.io/{version}",
        "metadata": obj["metadata"],
    }
