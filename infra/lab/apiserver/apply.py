"""Who manages which field: server-side apply and the record of other writes (Kubernetes docs, "Server-Side Apply")."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from infra.lab.apiserver import custom_shape, go_json, managed_fields, schema, schema_codec
from infra.lab.apiserver.managed_fields import EMPTY, FieldSet, Path, Shape, TypedError
from infra.lab.apiserver.status import ApiStatusError, Cause, apply_conflict, plain_error

if TYPE_CHECKING:
    from datetime import datetime

    from infra.lab.apiserver.kinds import KindInfo

Object = dict[str, Any]

# Fields nobody manages: they identify the object or belong to the server
_UNMANAGED = {
    ("f:apiVersion",),
    ("f:kind",),
    ("f:metadata",),
    *(
        ("f:metadata", f"f:{name}")
        for name in (
            "name",
            "namespace",
            "creationTimestamp",
            "selfLink",
            "uid",
            "clusterName",
            "generation",
            "managedFields",
            "resourceVersion",
        )
    ),
}
# How many managers by update an object records; the oldest are merged into one
_MAX_UPDATERS = 10
_ANCIENT = "ancient-changes"
_BEFORE = "before-first-apply"
_IDENTITY: tuple[str, ...] = ("manager", "operation", "apiVersion")

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
# An annotation may not grow beyond this many bytes; beyond, the last configuration is not kept
_LAST_APPLIED_LIMIT = 262_144


class _Managers:
    """The entries of managedFields, decoded: identity -> fields, and the time each was last changed."""

    def __init__(self, entries: list[Object] | None) -> None:
        self.sets: dict[str, FieldSet] = {}
        self.times: dict[str, str] = {}
        # what was read, so that an untouched entry need not be written anew
        self._read: dict[str, tuple[FieldSet, Object]] = {}
        for entry in entries or []:
            identity = _identity(entry)
            fields = managed_fields.decode(entry.get("fieldsV1"))
            self.sets[identity] = self.sets.get(identity, EMPTY) | fields
            self._read[identity] = (fields, entry.get("fieldsV1") or {})
            if entry.get("time"):
                self.times[identity] = entry["time"]

    def entries(self) -> list[Object]:
        """Sorted as the real server does: appliers first, then by time and name."""
        out = []
        for identity, fields in self.sets.items():
            entry = json.loads(identity)
            if identity in self.times:
                entry["time"] = self.times[identity]
            entry["fieldsType"] = "FieldsV1"
            read, written = self._read.get(identity, (EMPTY, {}))
            entry["fieldsV1"] = written if read == fields else managed_fields.encode(fields)
            order = ("manager", "operation", "apiVersion", "time", "fieldsType", "fieldsV1", "subresource")
            out.append({key: entry[key] for key in order if key in entry})
        out.sort(
            key=lambda e: (e["operation"], e.get("time", ""), e["manager"], e["apiVersion"], e.get("subresource", ""))
        )
        return out

    def cap(self) -> None:
        """Merge the oldest updaters so that no more than the limit are recorded."""
        updaters = [identity for identity in self.sets if json.loads(identity)["operation"] == "Update"]
        if len(updaters) <= _MAX_UPDATERS:
            return
        updaters.sort(key=lambda identity: self.times.get(identity, ""))
        for identity in updaters[: len(updaters) - _MAX_UPDATERS + 1]:
            entry = json.loads(identity)
            bucket = _identity({**entry, "manager": _ANCIENT})
            self.sets[bucket] = self.sets.get(bucket, EMPTY) | self.sets.pop(identity)
            if identity in self.times:
                self.times[bucket] = max(self.times.get(bucket, ""), self.times.pop(identity))


def _identity(entry: Object) -> str:
    """What makes two entries one: appliers keep theirs across API versions."""
    kept = {key: entry.get(key, "") for key in _IDENTITY}
    if entry.get("subresource"):
        kept["subresource"] = entry["subresource"]
    return json.dumps(kept)


def _shape(kind: KindInfo) -> Shape:
    if kind.custom:
        return custom_shape.of(kind.schema, root=True)
    return managed_fields.root(schema.find_struct(kind.group, kind.version, kind.kind))


def _managed(kind: KindInfo, fields: FieldSet, subresource: str) -> FieldSet:
    """Without what nobody manages, and what this path of the resource cannot change."""

    if subresource == "status":
        return frozenset(path for path in fields if path[0] == "f:status")
    if kind.has_status:
        return frozenset(path for path in fields if path[0] != "f:status" and path not in _UNMANAGED)
    return fields - _UNMANAGED


def track_update(  # the arguments are those of the request
    kind: KindInfo,
    old: Object | None,
    new: Object,
    manager: str,
    operation: str,
    subresource: str,
    now: datetime,
) -> None:
    """Record in ``new.metadata.managedFields`` who changed what. In place.

    Args:
        kind: The resource.
        old: The stored object; None at creation.
        new: The object about to be stored, defaults applied.
        manager: Field manager of the request.
        operation: ``Update``; kept for the record as given.
        subresource: Path the write came by (``status``, ``scale``), or empty.
        now: Time of the request, to the second.

    A client that sends managedFields replaces the record; ``[{}]`` clears it.
    """
    metadata = new.setdefault("metadata", {})
    given = metadata.get("managedFields")
    if given == [{}]:
        metadata.pop("managedFields")
        return
    before = (old or {}).get("metadata", {}).get("managedFields")
    managers = _Managers(given or before)
    shape = _shape(kind)
    try:
        difference = managed_fields.compare(shape, _empty(shape) if old is None else old, new)
    except TypedError:
        # list elements that cannot be told apart: the record stays as it was
        _record(metadata, managers)
        return
    changed = _managed(kind, difference.changed, subresource)
    entry = {"manager": manager, "operation": operation, "apiVersion": kind.api_version}
    identity = _identity({**entry, "subresource": subresource})
    for other, fields in list(managers.sets.items()):
        if other != identity:
            _set(managers, other, fields - changed - difference.removed)
    mine = managers.sets.get(identity, EMPTY)
    after = (mine - difference.removed) | changed
    if changed or identity not in managers.times:  # also a new value in a field it held: managedfieldsupdater.go
        managers.times[identity] = _stamp(now)
    _set(managers, identity, after)
    managers.cap()
    _record(metadata, managers)


def _set(managers: _Managers, identity: str, fields: FieldSet) -> None:
    if fields:
        managers.sets[identity] = fields
    else:
        managers.sets.pop(identity, None)


def _record(metadata: Object, managers: _Managers) -> None:
    entries = managers.entries()
    if entries:
        metadata["managedFields"] = entries
    else:
        metadata.pop("managedFields", None)


def _stamp(now: datetime) -> str:
    return now.strftime("%Y-%m-%dT%H:%M:%SZ")


def server_side_apply(
    kind: KindInfo,
    current: Object | None,
    applied: Object,
    manager: str,
    force: bool,
    now: datetime,
    subresource: str = "",
) -> Object:
    """The object after `manager` applied its configuration, ownership recorded; `current` is not changed.

    Args:
        kind: The resource.
        current: The stored object, None when it does not exist.
        applied: The configuration as the client wrote it.
        manager: Field manager of the request.
        force: Take fields other managers own, instead of failing.
        now: Time of the request.
        subresource: ``status`` when applied there.

    Raises:
        ApiStatusError: 409 with a cause per field another manager owns and has set otherwise; 500 without reason when
            the configuration does not fit the type.
    """
    shape = _shape(kind)
    complaints = list(managed_fields.check_types(shape, applied))
    if complaints:
        raise typed_error(kind, applied, complaints)
    if current is not None:
        complaints = list(managed_fields.check_types(shape, current))
        if complaints:
            raise typed_error(kind, current, complaints, "live")
    live = schema_codec.clone(current) if current is not None else _blank(kind, applied)
    managers = _Managers((live.get("metadata") or {}).pop("managedFields", None))
    if current is not None and not managers.sets:
        _attribute(kind, shape, live, managers, now)
    entry = {"manager": manager, "operation": "Apply", "apiVersion": kind.api_version, "subresource": subresource}
    identity = _applier(managers, entry)
    last = managers.sets.get(identity, EMPTY)
    mine = _managed(kind, frozenset(managed_fields.owned(shape, applied)), subresource)

    merged: Object = managed_fields.merge(shape, live, applied)
    others: FieldSet = frozenset().union(*(fields for other, fields in managers.sets.items() if other != identity))
    abandoned = last - mine
    merged = managed_fields.remove(shape, merged, abandoned, mine | others)

    difference = managed_fields.compare(shape, live, merged)
    contested = _managed(kind, difference.changed, subresource)
    conflicts = [
        (other, path)
        for other, fields in sorted(managers.sets.items())
        if other != identity
        for path in sorted(fields & contested)
    ]
    if conflicts and not force:
        own = _client_side_fields(kind, manager, current)
        foreign = [(other, path) for other, path in conflicts if path not in own]
        if foreign:
            raise _conflict(foreign)
    for other, fields in list(managers.sets.items()):
        if other != identity:
            _set(managers, other, fields - contested - difference.removed)
    if mine != last or difference.changed or difference.removed or identity not in managers.times:
        managers.times[identity] = _stamp(now)
    _set(managers, identity, mine)
    _record(merged.setdefault("metadata", {}), managers)
    _remember_configuration(manager, merged, applied)
    return merged


def _attribute(kind: KindInfo, shape: Shape, live: Object, managers: _Managers, now: datetime) -> None:
    """Nobody was recorded for an object that exists: what it holds belongs to a manager of before."""
    held = managed_fields.compare(shape, _empty(shape), live).changed
    identity = _identity({"manager": _BEFORE, "operation": "Update", "apiVersion": kind.api_version})
    _set(managers, identity, _managed(kind, held, ""))
    managers.times[identity] = _stamp(now)


_EMPTY_OBJECTS: dict[str, Object] = {}


def _empty(shape: Shape) -> Object:
    """An object of this type with nothing set, as it is encoded; not to be changed."""
    if shape.struct is None:
        return {}
    name = shape.struct.name
    if name not in _EMPTY_OBJECTS:
        _EMPTY_OBJECTS[name] = schema_codec.normalise(shape.struct, {})
    return _EMPTY_OBJECTS[name]


def _blank(kind: KindInfo, applied: Object) -> Object:
    """What a configuration for a missing object is merged into."""
    return {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": {}} if applied else {}


def _applier(managers: _Managers, entry: Object) -> str:
    """The identity of this applier: it stays the same when the API version changes."""
    wanted = (entry["manager"], entry["subresource"])
    for identity in managers.sets:
        held = json.loads(identity)
        if held["operation"] == "Apply" and (held["manager"], held.get("subresource", "")) == wanted:
            return identity
    return _identity(entry)


def typed_error(kind: KindInfo, applied: Object, complaints: list[str], which: str = "patch") -> ApiStatusError:
    """500 without a reason: what is applied does not fit the kind's schema."""
    metadata = applied.get("metadata") if isinstance(applied.get("metadata"), dict) else {}
    assert isinstance(metadata, dict)  # noqa: S101  (narrows the type; established one line above)
    name = f"{metadata.get('namespace') or ''}/{metadata.get('name') or ''}"
    gvk = f"{kind.api_version if kind.group else '/' + kind.version}, Kind={kind.kind}"
    words = complaints[0] if len(complaints) == 1 else "errors:\n" + "\n".join(f"  {text}" for text in complaints)
    return plain_error(f"failed to create typed {which} object ({name}; {gvk}): {words}")


def _show_manager(identity: str) -> str:
    entry = json.loads(identity)
    text = go_json.quote(entry["manager"])
    if entry.get("subresource"):
        text = f"{text} with subresource {go_json.quote(entry['subresource'])}"
    return f"{text} using {entry['apiVersion']}" if entry["operation"] == "Update" else text


def _conflict(conflicts: list[tuple[str, Path]]) -> ApiStatusError:
    causes = [
        Cause("FieldManagerConflict", f"conflict with {_show_manager(identity)}", managed_fields.show(path))
        for identity, path in conflicts
    ]
    if len(causes) == 1:
        return apply_conflict(f"Apply failed with 1 conflict: {causes[0].message}: {causes[0].field}", causes)
    lines: list[str] = []
    for identity in dict.fromkeys(identity for identity, _ in conflicts):
        lines.append(f"conflicts with {_show_manager(identity)}:")
        lines += [f"- {managed_fields.show(path)}" for other, path in conflicts if other == identity]
    return apply_conflict(f"Apply failed with {len(causes)} conflicts: " + "\n".join(lines), causes)


# --- client-side apply: kubectl keeps its last configuration in an annotation; the server helps it move over


def _last_configuration(current: Object | None) -> Object | None:
    annotations = ((current or {}).get("metadata") or {}).get("annotations") or {}
    try:
        value = json.loads(annotations.get(LAST_APPLIED) or "null")
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _client_side_fields(kind: KindInfo, manager: str, current: Object | None) -> FieldSet:
    """What kubectl applied on the client's side and nobody changed since: kubectl may take it over without force."""
    last = _last_configuration(current)
    if manager != "kubectl" or last is None or last.get("apiVersion", kind.api_version) != kind.api_version:
        return EMPTY
    shape = _shape(kind)
    if list(managed_fields.check_types(shape, last)):
        return EMPTY
    difference = managed_fields.compare(shape, last, current)
    return frozenset(managed_fields.owned(shape, last)) - difference.changed - difference.removed


def _remember_configuration(manager: str, obj: Object, applied: Object) -> None:
    annotations = (obj.get("metadata") or {}).get("annotations")
    if manager != "kubectl" or not annotations or LAST_APPLIED not in annotations:
        return
    kept = schema_codec.clone(applied)
    ((kept.get("metadata") or {}).get("annotations") or {}).pop(LAST_APPLIED, None)
    text = go_json.encode(_sorted(kept)) + "\n"
    if len(text.encode()) > _LAST_APPLIED_LIMIT:
        del annotations[LAST_APPLIED]
    else:
        obj["metadata"]["annotations"] = {**annotations, LAST_APPLIED: text}


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value
