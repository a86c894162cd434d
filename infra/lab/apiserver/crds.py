"""CustomResourceDefinitions at work: names accepted, resources served, instances removed with their definition."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, Any

from .kinds import STATUS_VERBS, KindInfo, Subresource, version_priority
from .store import ConflictError

if TYPE_CHECKING:
    from .api import Api
    from .store import Event, Stored

JSON = dict[str, Any]
RESOURCE = "customresourcedefinitions.apiextensions.k8s.io"
CLEANUP = "customresourcecleanup.apiextensions.k8s.io"
# The order in which the real server lists the verbs of custom resources.
VERBS = ("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch")


class CustomResources:
    """Keeps the registry in step with the definitions in the store."""

    def __init__(self, api: Api) -> None:
        self._api = api
        api.store.on_commit([RESOURCE], self._definition_changed)
        api.store.on_commit([], self._instance_changed)

    def _definition_changed(self, _resource: str, event: Event) -> None:
        if event.type == "DELETED":
            self._withdraw(event.new.obj)
            return
        # After the commit's own answer has been built: the real server's controllers are not instant either.
        asyncio.get_running_loop().call_soon(self._sync, event.new.key[1])

    def _instance_changed(self, resource: str, event: Event) -> None:
        if event.type != "DELETED" or self._api.store.get(RESOURCE, "", resource) is None:
            return
        asyncio.get_running_loop().call_soon(self._sync, resource)

    def _sync(self, name: str) -> None:
        stored = self._api.store.get(RESOURCE, "", name)
        if stored is None:
            return
        if stored.obj["metadata"].get("deletionTimestamp"):
            self._clean_up(stored)
            return
        status = self._status(stored)
        if status != stored.obj.get("status"):
            obj = {**stored.obj, "metadata": dict(stored.obj["metadata"]), "status": status}
            self._update(stored, obj)
        if _is_true(status, "Established"):
            self._serve(stored.obj)

    def _update(self, stored: Stored, obj: JSON) -> None:
        try:
            self._api.store.update(RESOURCE, stored.key, obj, stored.rv)
        except ConflictError:
            asyncio.get_running_loop().call_soon(self._sync, stored.key[1])

    def _status(self, stored: Stored) -> JSON:
        spec = stored.obj["spec"]
        status = copy.deepcopy(stored.obj.get("status") or {})
        clash = self._clash(stored)
        if clash:
            accepted = ("NamesAccepted", "False", clash[0], clash[1])
            established = ("Established", "False", "NotAccepted", "not all names are accepted")
        else:
            accepted = ("NamesAccepted", "True", "NoConflicts", "no conflicts found")
            established = ("Established", "True", "InitialNamesAccepted", "the initial names have been accepted")
            status["acceptedNames"] = copy.deepcopy(spec["names"])
        conditions = status.get("conditions") or []
        for wanted in (accepted, established):
            self._set_condition(conditions, *wanted)
        out: JSON = {
            "conditions": conditions,
            "acceptedNames": status.get("acceptedNames") or {"plural": "", "kind": ""},
            "storedVersions": list(status.get("storedVersions") or []),
        }
        storage = next(version["name"] for version in spec["versions"] if version.get("storage"))
        if storage not in out["storedVersions"]:
            out["storedVersions"].append(storage)
        return out

    def _set_condition(self, conditions: list[JSON], kind: str, value: str, reason: str, message: str) -> None:
        found = next((condition for condition in conditions if condition["type"] == kind), None)
        if found is None:
            found = {"type": kind, "status": "", "lastTransitionTime": ""}
            conditions.append(found)
        if found["status"] != value:
            found["lastTransitionTime"] = self._api.timestamp()
        found |= {"status": value, "reason": reason, "message": message}

    def _clash(self, stored: Stored) -> tuple[str, str] | None:
        """Reason and message when another resource of the group has one of the names."""
        spec = stored.obj["spec"]
        names = spec["names"]
        mine = {names["plural"], names.get("singular"), *(names.get("shortNames") or [])}
        for kind in self._api.registry:
            if kind.group != spec["group"] or kind.plural == names["plural"]:
                continue
            for name in sorted({kind.plural, kind.singular_name, *kind.short_names} & mine):
                return "Conflict", f'"{name}" is already in use'
            if kind.kind == names["kind"] or kind.listed_as == names.get("listKind"):
                return "KindConflict", f'"{names["kind"]}" is already in use'
        return None

    def _serve(self, crd: JSON) -> None:
        spec = crd["spec"]
        served = {kind.version: kind for kind in kinds_of(crd)}
        for kind in list(self._api.registry):
            if kind.group == spec["group"] and kind.plural == spec["names"]["plural"] and kind.version not in served:
                self._api.registry.remove(kind.group, kind.version, kind.plural)
        for kind in served.values():
            self._api.registry.add(kind)

    def _withdraw(self, crd: JSON) -> None:
        spec = crd["spec"]
        for version in spec["versions"]:
            self._api.registry.remove(spec["group"], version["name"], spec["names"]["plural"])

    def _clean_up(self, stored: Stored) -> None:
        """Delete the instances, then let the definition go."""
        store, resource = self._api.store, stored.key[1]
        if CLEANUP not in (stored.obj["metadata"].get("finalizers") or []):
            return
        for instance in store.objects(resource):
            if not instance.obj["metadata"].get("finalizers"):
                store.delete(resource, instance.key, instance.rv)
            elif not instance.obj["metadata"].get("deletionTimestamp"):
                metadata = {**instance.obj["metadata"], "deletionTimestamp": self._api.timestamp()}
                metadata["deletionGracePeriodSeconds"] = 0
                store.update(resource, instance.key, {**instance.obj, "metadata": metadata}, instance.rv)
        if store.count(resource):
            return
        metadata = dict(stored.obj["metadata"])
        metadata["finalizers"] = [name for name in metadata["finalizers"] if name != CLEANUP]
        obj = {**stored.obj, "metadata": metadata}
        if metadata["finalizers"]:
            self._update(stored, obj)
        else:
            del metadata["finalizers"]
            store.delete(RESOURCE, stored.key, stored.rv, obj)


def _is_true(status: JSON, kind: str) -> bool:
    conditions = status.get("conditions") or []
    return any(condition["type"] == kind and condition["status"] == "True" for condition in conditions)


def kinds_of(crd: JSON) -> list[KindInfo]:
    """A KindInfo for each version served."""
    spec = crd["spec"]
    names = spec["names"]
    storage = next(version["name"] for version in spec["versions"] if version.get("storage"))
    return [_kind(spec, names, version, storage) for version in spec["versions"] if version.get("served")]


def _kind(spec: JSON, names: JSON, version: JSON, storage: str) -> KindInfo:
    subresources: list[Subresource] = []
    given = version.get("subresources") or {}
    scale = given.get("scale")
    if given.get("status") is not None:
        subresources.append(Subresource("status", names["kind"], STATUS_VERBS))
    if scale:
        subresources.append(Subresource("scale", "Scale", STATUS_VERBS, "autoscaling", "v1"))
    schema = (version.get("schema") or {}).get("openAPIV3Schema") or {}
    if spec.get("preserveUnknownFields"):
        schema = {**schema, "x-kubernetes-preserve-unknown-fields": True}
    return KindInfo(
        group=spec["group"],
        version=version["name"],
        kind=names["kind"],
        plural=names["plural"],
        namespaced=spec["scope"] == "Namespaced",
        singular=names.get("singular") or names["kind"].lower(),
        short_names=tuple(names.get("shortNames") or ()),
        categories=tuple(names.get("categories") or ()),
        verbs=VERBS,
        subresources=tuple(subresources),
        list_kind=names.get("listKind") or f"{names['kind']}List",
        generation=True,
        unconditional_update=False,
        custom=True,
        deprecation=_deprecation(spec, version),
        storage_version=storage,
        schema=schema,
        printer_columns=tuple(version.get("additionalPrinterColumns") or ()),
        fields={
            field["jsonPath"].lstrip("."): field["jsonPath"].lstrip(".")
            for field in version.get("selectableFields") or ()
        },
        scale_paths={
            "spec": scale["specReplicasPath"],
            "status": scale["statusReplicasPath"],
            "selector": scale.get("labelSelectorPath") or "",
        }
        if scale
        else {},
    )


def _deprecation(spec: JSON, version: JSON) -> str:
    """The warning of a deprecated version; without one of its own it names the newest version to use instead."""
    if not version.get("deprecated"):
        return ""
    if version.get("deprecationWarning") is not None:
        return str(version["deprecationWarning"])
    group, kind = spec["group"], spec["names"]["kind"]
    served = [v["name"] for v in spec["versions"] if v.get("served") and not v.get("deprecated")]
    newer = [name for name in served if version_priority(name) > version_priority(version["name"])]
    text = f"{group}/{version['name']} {kind} is deprecated"
    return f"{text}; use {group}/{max(newer, key=version_priority)} {kind}" if newer else text
