"""What the server does to an object before it stores it: which parts a client may set, generation, generated fields.

The rules are those of the strategies of Kubernetes' built-in kinds: a create starts with an empty status, an update of
the object keeps the status and an update of the status keeps the specification (API conventions, "Spec and Status").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import csr, services

if TYPE_CHECKING:
    from .api import Api
    from .kinds import KindInfo

# Kinds whose status the creator may give.
_STATUS_AT_CREATE = {"nodes", "apiservices.apiregistration.k8s.io"}
# What counts as specification for metadata.generation, where it is not .spec
_SPECIFICATION = {
    "mutatingwebhookconfigurations.admissionregistration.k8s.io": ("webhooks",),
    "validatingwebhookconfigurations.admissionregistration.k8s.io": ("webhooks",),
    "endpointslices.discovery.k8s.io": ("endpoints", "ports", "addressType"),
    "podtemplates": ("template",),
    "priorityclasses.scheduling.k8s.io": (),
}
TEMPLATE_GENERATION = "deprecated.daemonset.template.generation"


def prepare_create(api: Api, kind: KindInfo, obj: dict[str, Any]) -> None:
    """Fill in what the system owns. In place; uid, creationTimestamp and name are already set."""
    metadata = obj["metadata"]
    for field in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"):
        metadata.pop(field, None)
    if kind.generation or kind.custom:
        metadata["generation"] = 1
    if kind.has_status and kind.storage not in _STATUS_AT_CREATE:
        obj.pop("status", None)
    match kind.storage:
        case "pods":
            obj["status"] = {"phase": "Pending", "qosClass": qos_class(obj.get("spec") or {})}
        case "namespaces":
            obj["status"] = {"phase": "Active"}
            finalizers = obj.setdefault("spec", {}).setdefault("finalizers", [])
            if "kubernetes" not in finalizers:
                finalizers.append("kubernetes")
            metadata.setdefault("labels", {})["kubernetes.io/metadata.name"] = metadata["name"]
        case "services":
            services.create(api, obj)
        case "jobs.batch":
            _label_job(obj)
        case "customresourcedefinitions.apiextensions.k8s.io":
            versions = obj["spec"].get("versions") or []
            obj["status"] = {"storedVersions": [version["name"] for version in versions if version.get("storage")]}
        case "daemonsets.apps":
            metadata.setdefault("annotations", {})[TEMPLATE_GENERATION] = "1"
        case csr.RESOURCE:
            obj["status"] = {}


def prepare_update(kind: KindInfo, obj: dict[str, Any], old: dict[str, Any], subresource: str) -> None:
    """Keep from `old` what this path may not change, and count the generation. In place."""
    metadata, before = obj["metadata"], old["metadata"]
    for field in ("generation", "creationTimestamp", "selfLink"):
        _keep(metadata, before, field)
    if before.get("deletionTimestamp"):
        _keep(metadata, before, "deletionTimestamp")
    for field in ("uid", "deletionGracePeriodSeconds"):
        if metadata.get(field) is None or metadata[field] == "":
            _keep(metadata, before, field)
    if kind.storage == csr.RESOURCE:
        csr.keep_fixed(obj, old, subresource)
        return
    if subresource == "status":
        _prepare_status(kind, obj, old)
        return
    if kind.has_status:
        _keep(obj, old, "status")
    if kind.storage == "namespaces":
        if subresource != "finalize":
            _keep(obj, old, "spec")
        metadata.setdefault("labels", {})["kubernetes.io/metadata.name"] = metadata["name"]
    if kind.storage == "services":
        services.update(obj, old)
    if kind.storage == "daemonsets.apps":
        _count_template(obj, old)
    if (kind.generation or kind.custom) and specification_changed(kind, obj, old):
        metadata["generation"] = before.get("generation", 0) + 1


def complete_update(api: Api, kind: KindInfo, obj: dict[str, Any], subresource: str) -> None:
    """Fill in what a change made necessary, once it has been found valid. In place. Raises ApiStatusError 422."""
    if kind.storage == "services" and not subresource:
        services.complete_update(api, obj)


def _count_template(obj: dict[str, Any], old: dict[str, Any]) -> None:
    """DaemonSets count changes of their template in an annotation, left from older API versions."""
    count = int((old["metadata"].get("annotations") or {}).get(TEMPLATE_GENERATION, "1"))
    if (obj.get("spec") or {}).get("template") != (old.get("spec") or {}).get("template"):
        count += 1
    annotations = obj["metadata"].get("annotations") or {}
    obj["metadata"]["annotations"] = {**annotations, TEMPLATE_GENERATION: str(count)}


def _prepare_status(kind: KindInfo, obj: dict[str, Any], old: dict[str, Any]) -> None:
    for field in list(obj):
        if field not in ("kind", "apiVersion", "metadata", "status"):
            _keep(obj, old, field)
    for field in old:
        if field not in obj and field != "status":
            obj[field] = old[field]
    metadata, before = obj["metadata"], old["metadata"]
    if kind.custom:
        # custom resources: metadata belongs to the main path, except who manages what
        managed = metadata.get("managedFields")
        obj["metadata"] = dict(before)
        if managed is not None:
            obj["metadata"]["managedFields"] = managed
        return
    if kind.storage in ("deployments.apps", "jobs.batch", "cronjobs.batch"):
        _keep(metadata, before, "labels")
    if kind.storage == "pods":
        _keep(metadata, before, "ownerReferences")


def _keep(new: dict[str, Any], old: dict[str, Any], field: str) -> None:
    if field in old:
        new[field] = old[field]
    else:
        new.pop(field, None)


def specification_changed(kind: KindInfo, obj: dict[str, Any], old: dict[str, Any]) -> bool:
    if kind.custom:
        return _without_bookkeeping(kind, obj) != _without_bookkeeping(kind, old)
    fields = _SPECIFICATION.get(kind.storage, ("spec",))
    if any(obj.get(field) != old.get(field) for field in fields):
        return True
    if kind.storage == "deployments.apps":
        # the Deployment strategy also counts changed annotations
        return (obj["metadata"].get("annotations") or {}) != (old["metadata"].get("annotations") or {})
    return False


def _without_bookkeeping(kind: KindInfo, obj: dict[str, Any]) -> dict[str, Any]:
    skipped = {"metadata", "status"} if kind.has_status else {"metadata"}
    return {key: value for key, value in obj.items() if key not in skipped}


def qos_class(spec: dict[str, Any]) -> str:
    """Guaranteed, Burstable or BestEffort (Kubernetes docs, "Pod Quality of Service Classes")."""
    requests: dict[str, set[str]] = {"requests": set(), "limits": set()}
    guaranteed = True
    containers = [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]
    for container in containers:
        resources = container.get("resources") or {}
        limits = resources.get("limits") or {}
        asked = resources.get("requests") or {}
        for name, found in (("requests", asked), ("limits", limits)):
            requests[name].update(key for key, value in found.items() if key in ("cpu", "memory") and value)
        if not all(key in limits and asked.get(key, limits[key]) == limits[key] for key in ("cpu", "memory")):
            guaranteed = False
    if not requests["requests"] and not requests["limits"]:
        return "BestEffort"
    return "Guaranteed" if guaranteed else "Burstable"


def _label_job(obj: dict[str, Any]) -> None:
    """A Job selects its pods by a label which the server puts on them (unless manualSelector)."""
    spec = obj["spec"]
    if spec.get("manualSelector"):
        return
    uid, name = obj["metadata"]["uid"], obj["metadata"]["name"]
    labels = {
        "batch.kubernetes.io/controller-uid": uid,
        "batch.kubernetes.io/job-name": name,
        "controller-uid": uid,
        "job-name": name,
    }
    template = spec.setdefault("template", {}).setdefault("metadata", {})
    template["labels"] = {**(template.get("labels") or {}), **labels}
    if not spec.get("selector"):
        spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    if not obj["metadata"].get("labels"):
        # defaulting: a Job without labels shows those of its template
        obj["metadata"]["labels"] = dict(template["labels"])


def bump_generation(obj: dict[str, Any]) -> None:
    if obj["metadata"].get("generation"):
        obj["metadata"]["generation"] += 1
