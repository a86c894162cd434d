"""Rules for kinds with few of them: claims and volumes, classes, nodes, autoscalers, revisions, controllers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.lab.apiserver import validation_meta as meta
from infra.lab.apiserver.validation_meta import IMMUTABLE, bad, duplicate, forbidden, missing, non_negative, unsupported
from infra.lab.apiserver.validation_pods import pod_template

if TYPE_CHECKING:
    from infra.lab.apiserver.status import Cause

Object = dict[str, Any]

_ACCESS_MODES = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
_RECLAIM_POLICIES = ("Delete", "Recycle", "Retain")
_SYSTEM_PRIORITIES = ("system-node-critical", "system-cluster-critical")
_HIGHEST_PRIORITY = 1_000_000_000
_EFFECTS = ("NoExecute", "NoSchedule", "PreferNoSchedule")
_NO_MATCH = "`selector` does not match template `labels`"


def replication_controller(new: Object, old: Object | None) -> list[Cause]:  # noqa: ARG001  (the signature of every rule)
    path, spec = "spec", new.get("spec") or {}
    out = non_negative(spec, "minReadySeconds", path)
    selector, template = spec.get("selector") or {}, spec.get("template")
    if not selector:
        out.append(missing(f"{path}.selector"))
    out += non_negative(spec, "replicas", path)
    if template is None:
        return [*out, missing(f"{path}.template")]
    labels = (template.get("metadata") or {}).get("labels")
    if selector and not meta.selects({"matchLabels": selector}, labels):
        out.append(bad(f"{path}.template.metadata.labels", labels, _NO_MATCH))
    out += pod_template(template, f"{path}.template")
    pod = template.get("spec") or {}
    if pod.get("restartPolicy") not in ("Always", None, ""):
        out.append(unsupported(f"{path}.template.spec.restartPolicy", pod["restartPolicy"], ("Always",)))
    if pod.get("activeDeadlineSeconds") is not None:
        message = "activeDeadlineSeconds in ReplicationController is not Supported"
        out.append(forbidden(f"{path}.template.spec.activeDeadlineSeconds", message))
    return out


def pod_template_kind(new: Object, old: Object | None) -> list[Cause]:  # noqa: ARG001  (the signature of every rule)
    return pod_template(new.get("template") or {}, "template")


def controller_revision(new: Object, old: Object | None) -> list[Cause]:
    out: list[Cause] = []
    if old is None and new.get("data") is None:
        out.append(missing("data", "data is mandatory"))
    if (new.get("revision") or 0) < 0:
        out.append(bad("revision", new["revision"], "must be greater than or equal to 0"))
    if old is not None and new.get("data") != old.get("data"):
        out.append(bad("data", new.get("data"), IMMUTABLE))
    return out


def autoscaler(new: Object, old: Object | None) -> list[Cause]:  # noqa: ARG001  (the signature of every rule)
    path, spec = "spec", new.get("spec") or {}
    out: list[Cause] = []
    low, high = spec.get("minReplicas"), spec.get("maxReplicas") or 0
    if low is not None and low < 1:
        out.append(bad(f"{path}.minReplicas", low, "must be greater than or equal to 1"))
    if high < 1:
        out.append(bad(f"{path}.maxReplicas", high, "must be greater than 0"))
    if low is not None and high < low:
        out.append(bad(f"{path}.maxReplicas", high, "must be greater than or equal to `minReplicas`"))
    target = spec.get("scaleTargetRef") or {}
    for field in ("kind", "name"):
        value = target.get(field) or ""
        if not value:
            out.append(missing(f"{path}.scaleTargetRef.{field}"))
        else:
            out += [
                bad(f"{path}.scaleTargetRef.{field}", value, message) for message in meta.path_segment(value, False)
            ]
    return out


def claim(new: Object, old: Object | None) -> list[Cause]:
    """A PersistentVolumeClaim; of a claim that is there only the size may change."""
    path, spec = "spec", new.get("spec") or {}
    out = _access_modes(spec, path) + meta.label_selector(spec.get("selector"), f"{path}.selector")
    requests = (spec.get("resources") or {}).get("requests") or {}
    if "storage" not in requests:
        out.append(missing(f"{path}.resources[storage]"))
    if old is not None:
        before = old.get("spec") or {}
        kept = {key: value for key, value in spec.items() if key not in ("resources", "volumeName")}
        held = {key: value for key, value in before.items() if key not in ("resources", "volumeName")}
        if kept != held:
            message = "spec is immutable after creation except resources.requests and volumeAttributesClassName for "
            out.append(forbidden(path, f"{message}bound claims"))
    return out


def volume(new: Object, old: Object | None) -> list[Cause]:  # noqa: ARG001  (the signature of every rule)
    path, spec = "spec", new.get("spec") or {}
    out = _access_modes(spec, path)
    if not spec.get("capacity"):
        out.append(missing(f"{path}.capacity"))
    elif "storage" not in spec["capacity"]:
        out.append(unsupported(f"{path}.capacity", spec["capacity"], ("storage",)))
    policy = spec.get("persistentVolumeReclaimPolicy") or ""
    if policy and policy not in _RECLAIM_POLICIES:
        out.append(unsupported(f"{path}.persistentVolumeReclaimPolicy", policy, _RECLAIM_POLICIES))
    return out


def _access_modes(spec: Object, path: str) -> list[Cause]:
    modes = spec.get("accessModes") or []
    if not modes:
        return [missing(f"{path}.accessModes", "at least 1 access mode is required")]
    wrong = (mode for mode in modes if mode not in _ACCESS_MODES)
    return [unsupported(f"{path}.accessModes", mode, _ACCESS_MODES) for mode in wrong]


def storage_class(new: Object, old: Object | None) -> list[Cause]:
    out: list[Cause] = [] if new.get("provisioner") else [missing("provisioner")]
    if old is not None:
        for field in ("parameters", "provisioner", "reclaimPolicy"):
            if (new.get(field) or None) != (old.get(field) or None):
                out.append(forbidden(field, f"updates to {field} are forbidden."))
        if new.get("volumeBindingMode") != old.get("volumeBindingMode"):
            out.append(bad("volumeBindingMode", new.get("volumeBindingMode"), IMMUTABLE))
    return out


def priority_class(new: Object, old: Object | None) -> list[Cause]:
    name, value = (new.get("metadata") or {}).get("name") or "", new.get("value") or 0
    out: list[Cause] = []
    if old is not None:
        if value != (old.get("value") or 0):
            out.append(forbidden("value", "may not be changed in an update."))
        if new.get("preemptionPolicy") != old.get("preemptionPolicy"):
            out.append(bad("preemptionPolicy", new.get("preemptionPolicy"), IMMUTABLE))
        return out
    if name.startswith("system-"):
        if name not in _SYSTEM_PRIORITIES:
            words = "priority class names with 'system-' prefix are reserved for system use only. error: "
            out.append(forbidden("metadata.name", f"{words}{name} is not a known system priority class"))
    elif value > _HIGHEST_PRIORITY:
        words = f"maximum allowed value of a user defined priority is {_HIGHEST_PRIORITY}"
        out.append(forbidden("value", words))
    return out


def node(new: Object, old: Object | None) -> list[Cause]:
    """A Node: taints, and what is given to it once."""
    spec = new.get("spec") or {}
    out: list[Cause] = []
    seen: set[tuple[str, str]] = set()
    for number, taint in enumerate(spec.get("taints") or []):
        at, key, effect = f"spec.taints[{number}]", taint.get("key") or "", taint.get("effect") or ""
        out += [bad(f"{at}.key", key, message) for message in meta.qualified_name(key)]
        out += [bad(f"{at}.value", taint["value"], m) for m in meta.label_value(taint.get("value") or "")]
        if not effect:
            out.append(missing(f"{at}.effect"))
        elif effect not in _EFFECTS:
            out.append(unsupported(f"{at}.effect", effect, ("NoSchedule", "PreferNoSchedule", "NoExecute")))
        if (key, effect) in seen:
            out.append(duplicate(at, taint))
        seen.add((key, effect))
    before = (old or {}).get("spec") or {}
    for field, path in (("podCIDR", "spec.podCIDRs"), ("providerID", "spec.providerID")):
        if before.get(field) and spec.get(field) != before[field]:
            out.append(forbidden(path, f'node updates may not change {field} except from "" to valid'))
    return out
