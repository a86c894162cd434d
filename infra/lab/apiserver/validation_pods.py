"""Rules for pod specifications, in pods and in templates, and for what of a pod may be changed."""

from __future__ import annotations

import copy
import difflib
import json
from typing import TYPE_CHECKING, Any

from infra.lab.apiserver import validation_containers as rules
from infra.lab.apiserver import validation_meta as meta
from infra.lab.apiserver.validation_meta import bad, duplicate, forbidden, missing, unsupported

if TYPE_CHECKING:
    from infra.lab.apiserver.status import Cause

Object = dict[str, Any]

RESTART_POLICIES = ("Always", "OnFailure", "Never")
_DNS_POLICIES = ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def pod_template(template: Object, path: str, claims: frozenset[str] = frozenset()) -> list[Cause]:
    """A PodTemplateSpec. `claims` are volumes that volumeClaimTemplates will add."""
    metadata = template.get("metadata") or {}
    return [
        *meta.labels(metadata.get("labels"), f"{path}.labels"),
        *meta.annotation_map(metadata.get("annotations"), f"{path}.annotations"),
        *pod_spec(template.get("spec") or {}, f"{path}.spec", claims),
    ]


def pod_spec(spec: Object, path: str, claims: frozenset[str] = frozenset()) -> list[Cause]:
    """A PodSpec, in the order the real server checks it."""
    volumes, out = _volumes(spec.get("volumes") or [], f"{path}.volumes")
    volumes |= claims
    containers = spec.get("containers") or []
    names: set[str] = set()
    if not containers:
        out.append(missing(f"{path}.containers"))
    out += rules.containers(containers, f"{path}.containers", volumes, names)
    starting = spec.get("initContainers") or []
    out += rules.containers(starting, f"{path}.initContainers", volumes, names)
    out += rules.not_for_init(starting, f"{path}.initContainers")
    policy = spec.get("restartPolicy") or ""
    if not policy:
        out.append(missing(f"{path}.restartPolicy"))
    elif policy not in RESTART_POLICIES:
        out.append(unsupported(f"{path}.restartPolicy", policy, RESTART_POLICIES))
    if (spec.get("dnsPolicy") or "ClusterFirst") not in _DNS_POLICIES:
        out.append(unsupported(f"{path}.dnsPolicy", spec["dnsPolicy"], _DNS_POLICIES))
    out += meta.labels(spec.get("nodeSelector"), f"{path}.nodeSelector")
    for field, rule in (
        ("serviceAccountName", meta.subdomain),
        ("nodeName", meta.subdomain),
        ("hostname", meta.label),
        ("subdomain", meta.label),
        ("priorityClassName", meta.subdomain),
    ):
        if spec.get(field):
            out += [bad(f"{path}.{field}", spec[field], message) for message in rule(spec[field])]
    if spec.get("dnsPolicy") == "None":
        out += _own_dns(spec.get("dnsConfig"), f"{path}.dnsConfig")
    out += rules.ephemeral_containers(spec, path, volumes, names)
    if spec.get("schedulingGates") and spec.get("nodeName"):
        message = "nodeName cannot be set until all schedulingGates have been cleared"
        out.append(forbidden(f"{path}.nodeName", message))
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= 2**31 - 1:
        out.append(bad(f"{path}.activeDeadlineSeconds", deadline, "must be between 1 and 2147483647, inclusive"))
    for number, toleration in enumerate(spec.get("tolerations") or []):
        out += _toleration(toleration, f"{path}.tolerations[{number}]")
    return out


def _own_dns(config: Object | None, path: str) -> list[Cause]:
    if config is None:
        return [missing(path, "must provide `dnsConfig` when `dnsPolicy` is None")]
    if config.get("nameservers"):
        return []
    return [missing(f"{path}.nameservers", "must provide at least one DNS nameserver when `dnsPolicy` is None")]


def _volumes(volumes: list[Object], path: str) -> tuple[frozenset[str], list[Cause]]:
    names: set[str] = set()
    out: list[Cause] = []
    for number, volume in enumerate(volumes):
        at = f"{path}[{number}]"
        sources = [name for name in volume if name != "name" and volume[name] is not None]
        if not sources:
            out.append(missing(at, "must specify a volume type"))
        for extra in sources[1:]:
            out.append(forbidden(f"{at}.{extra}", "may not specify more than 1 volume type"))
        for source, field in (("secret", "secretName"), ("configMap", "name"), ("persistentVolumeClaim", "claimName")):
            if source in sources and not volume[source].get(field):
                out.append(missing(f"{at}.{source}.{field}"))
        if "hostPath" in sources and not volume["hostPath"].get("path"):
            out.append(missing(f"{at}.hostPath.path"))
        name = volume.get("name") or ""
        if not name:
            out.append(missing(f"{at}.name"))
            continue
        wrong = meta.label(name)
        out += [bad(f"{at}.name", name, message) for message in wrong]
        if name in names:
            out.append(duplicate(f"{at}.name", name))
        if not wrong:
            names.add(name)
    return frozenset(names), out


def _toleration(toleration: Object, at: str) -> list[Cause]:
    out: list[Cause] = []
    key, operator = toleration.get("key") or "", toleration.get("operator") or "Equal"
    if key:
        out += [bad(f"{at}.key", key, message) for message in meta.qualified_name(key)]
    elif operator != "Exists":
        message = 'operator must be Exists when `key` is empty, which means "match all values and all keys"'
        out.append(bad(f"{at}.operator", toleration.get("operator") or "", message))
    if toleration.get("tolerationSeconds") is not None and toleration.get("effect") != "NoExecute":
        message = "effect must be 'NoExecute' when `tolerationSeconds` is set"
        out.append(bad(f"{at}.effect", toleration.get("effect") or "", message))
    if operator == "Exists" and toleration.get("value"):
        out.append(bad(f"{at}.operator", toleration, "value must be empty when `operator` is 'Exists'"))
    elif operator not in ("Exists", "Equal", "Lt", "Gt"):
        out.append(unsupported(f"{at}.operator", operator, ("Equal", "Exists")))
    if toleration.get("effect") and toleration["effect"] not in _EFFECTS:
        out.append(unsupported(f"{at}.effect", toleration["effect"], _EFFECTS))
    return out


_MAY_CHANGE = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)


def pod_update(new: Object, old: Object) -> list[Cause]:
    """What of a Pod's specification may change: images, more tolerations, a shorter deadline."""
    out: list[Cause] = []
    after, before = copy.deepcopy(new.get("spec") or {}), old.get("spec") or {}
    for field in ("containers", "initContainers"):
        mine, theirs = after.get(field) or [], before.get(field) or []
        if len(mine) != len(theirs):
            return [forbidden(f"spec.{field}", "pod updates may not add or remove containers")]
        for container, held in zip(mine, theirs, strict=True):
            container["image"] = held.get("image")
    out += _deadline(after, before)
    existing = before.get("tolerations") or []
    if not all(any(_tolerates(held, toleration) for toleration in after.get("tolerations") or []) for held in existing):
        message = "existing toleration can not be modified except its tolerationSeconds"
        out.append(forbidden("spec.tolerations", message))
    _restore(after, before, "tolerations")
    if (before.get("terminationGracePeriodSeconds") or 0) < 0 and after.get("terminationGracePeriodSeconds") == 1:
        _restore(after, before, "terminationGracePeriodSeconds")
    if before.get("schedulingGates"):
        # gates can only be lifted; while there are any, scheduling directives may still be narrowed
        held = [gate["name"] for gate in before["schedulingGates"]]
        if all(gate["name"] in held for gate in after.get("schedulingGates") or []):
            _restore(after, before, "schedulingGates")
    if after != before:
        out.append(forbidden("spec", f"{_MAY_CHANGE}\n{_difference(before, after)}"))
    return out


def _tolerates(held: Object, toleration: Object) -> bool:
    return {**held, "tolerationSeconds": None} == {**toleration, "tolerationSeconds": None}


def _deadline(after: Object, before: Object) -> list[Cause]:
    out: list[Cause] = []
    new, old = after.get("activeDeadlineSeconds"), before.get("activeDeadlineSeconds")
    if new != old:
        if new is None:
            out.append(bad("spec.activeDeadlineSeconds", None, "must not update from a positive integer to nil value"))
        elif old is not None and new > old:
            message = "must be less than or equal to previous value"
            out.append(bad("spec.activeDeadlineSeconds", new, message))
    _restore(after, before, "activeDeadlineSeconds")
    return out


def _restore(after: Object, before: Object, field: str) -> None:
    if field in before:
        after[field] = before[field]
    else:
        after.pop(field, None)


def _difference(before: Object, after: Object) -> str:
    """The change as unified diff of the JSON text."""
    old, new = (json.dumps(spec, indent=1, sort_keys=True).splitlines() for spec in (before, after))
    return "\n".join(list(difflib.unified_diff(old, new, lineterm=""))[2:]) + "\n"
