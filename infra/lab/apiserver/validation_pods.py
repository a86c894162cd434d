"""Rules for pod specifications, in pods and in templates, and for what of a pod may be changed."""

from __future__ import annotations

import copy
import difflib
import json
import re
from typing import TYPE_CHECKING, Any

from infra.lab.apiserver import validation_meta as meta
from infra.lab.apiserver.schema_scalars import parse_quantity
from infra.lab.apiserver.status import not_found_value
from infra.lab.apiserver.validation_meta import bad, duplicate, forbidden, missing, unsupported

if TYPE_CHECKING:
    from infra.lab.apiserver.status import Cause

Object = dict[str, Any]

RESTART_POLICIES = ("Always", "OnFailure", "Never")
_DNS_POLICIES = ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")
_PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_PROTOCOLS = ("SCTP", "TCP", "UDP")
_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
_CONTAINER_RESOURCES = frozenset({"cpu", "memory", "ephemeral-storage"})
_QUOTA_RESOURCES = frozenset(
    {"pods", "services", "replicationcontrollers", "resourcequotas", "secrets", "configmaps", "storage"}
    | {"persistentvolumeclaims"}
)
_PORT_RANGE = "must be between 1 and 65535, inclusive"


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
    out += _containers(containers, f"{path}.containers", volumes, names)
    starting = spec.get("initContainers") or []
    out += _containers(starting, f"{path}.initContainers", volumes, names)
    out += _not_for_init(starting, f"{path}.initContainers")
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
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= 2**31 - 1:
        out.append(bad(f"{path}.activeDeadlineSeconds", deadline, "must be between 1 and 2147483647, inclusive"))
    for number, toleration in enumerate(spec.get("tolerations") or []):
        out += _toleration(toleration, f"{path}.tolerations[{number}]")
    return out


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


def _containers(containers: list[Object], path: str, volumes: frozenset[str], names: set[str]) -> list[Cause]:
    out: list[Cause] = []
    for number, container in enumerate(containers):
        at = f"{path}[{number}]"
        name = container.get("name") or ""
        if not name:
            out.append(missing(f"{at}.name"))
        else:
            out += [bad(f"{at}.name", name, message) for message in meta.label(name)]
            if name in names:
                out.append(duplicate(f"{at}.name", name))
            names.add(name)
        out += _container(container, at, volumes)
    return out


def _not_for_init(containers: list[Object], path: str) -> list[Cause]:
    """What only makes sense for a container that goes on running."""
    message = "may not be set for init containers without restartPolicy=Always"
    return [
        forbidden(f"{path}[{number}].{field}", message)
        for number, container in enumerate(containers)
        if container.get("restartPolicy") != "Always"
        for field in ("lifecycle", "livenessProbe", "readinessProbe", "startupProbe")
        if container.get(field) is not None
    ]


def _container(container: Object, at: str, volumes: frozenset[str]) -> list[Cause]:
    out: list[Cause] = []
    image = container.get("image") or ""
    if not image:
        out.append(missing(f"{at}.image"))
    elif image.strip() != image:
        out.append(bad(f"{at}.image", image, "must not have leading or trailing whitespace"))
    policy = container.get("terminationMessagePolicy")
    if policy not in (None, "", "File", "FallbackToLogsOnError"):
        policies = ("FallbackToLogsOnError", "File")
        out.append(unsupported(f"{at}.terminationMessagePolicy", policy, policies))
    out += _ports(container.get("ports") or [], f"{at}.ports")
    for number, variable in enumerate(container.get("env") or []):
        out += _variable(variable, f"{at}.env[{number}]")
    paths: set[str] = set()
    for number, mount in enumerate(container.get("volumeMounts") or []):
        where = f"{at}.volumeMounts[{number}]"
        if not mount.get("name"):
            out.append(missing(f"{where}.name"))
        elif mount["name"] not in volumes:
            out.append(not_found_value(f"{where}.name", json.dumps(mount["name"])))
        if not mount.get("mountPath"):
            out.append(missing(f"{where}.mountPath"))
        elif mount["mountPath"] in paths:
            out.append(bad(f"{where}.mountPath", mount["mountPath"], "must be unique"))
        paths.add(mount.get("mountPath") or "")
    pull = container.get("imagePullPolicy") or ""
    if not pull:
        out.append(missing(f"{at}.imagePullPolicy"))
    elif pull not in _PULL_POLICIES:
        out.append(unsupported(f"{at}.imagePullPolicy", pull, _PULL_POLICIES))
    out += _resources(container.get("resources") or {}, f"{at}.resources")
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        if container.get(probe):
            out += _probe(container[probe], f"{at}.{probe}")
    return out


def _ports(ports: list[Object], path: str) -> list[Cause]:
    out: list[Cause] = []
    names: set[str] = set()
    for number, port in enumerate(ports):
        at = f"{path}[{number}]"
        name = port.get("name") or ""
        if name:
            out += [bad(f"{at}.name", name, message) for message in port_name(name)]
            if name in names:
                out.append(duplicate(f"{at}.name", name))
            names.add(name)
        value = port.get("containerPort") or 0
        if not value:
            out.append(missing(f"{at}.containerPort"))
        elif not 1 <= value <= 65535:
            out.append(bad(f"{at}.containerPort", value, _PORT_RANGE))
        host = port.get("hostPort") or 0
        if host and not 1 <= host <= 65535:
            out.append(bad(f"{at}.hostPort", host, _PORT_RANGE))
        protocol = port.get("protocol") or ""
        if not protocol:
            out.append(missing(f"{at}.protocol"))
        elif protocol not in _PROTOCOLS:
            out.append(unsupported(f"{at}.protocol", protocol, _PROTOCOLS))
    return out


def port_name(name: str) -> list[str]:
    """An IANA service name (RFC 6335, section 5.1)."""
    out: list[str] = []
    if len(name) > 15:
        out.append("must be no more than 15 characters")
    if not re.fullmatch(r"[-a-z0-9]+", name):
        out.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not re.search(r"[a-z]", name):
        out.append("must contain at least one letter (a-z)")
    if "--" in name:
        out.append("must not contain consecutive hyphens")
    if name.startswith("-") or name.endswith("-"):
        out.append("must not begin or end with a hyphen")
    return out


_SOURCES = ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef")


def _variable(variable: Object, at: str) -> list[Cause]:
    out: list[Cause] = []
    name = variable.get("name") or ""
    if not name:
        out.append(missing(f"{at}.name"))
    elif not all(" " <= char <= "~" and char != "=" for char in name):
        message = "a valid environment variable name must consist only of printable ASCII characters other than '='"
        out.append(bad(f"{at}.name", name, message))
    source = variable.get("valueFrom")
    if source is None:
        return out
    given = [field for field in _SOURCES if source.get(field) is not None]
    where = f"{at}.valueFrom"
    if not given:
        words = ", ".join(f"`{field}`" for field in _SOURCES[:-1])
        out.append(bad(where, "", f"must specify one of: {words} or `{_SOURCES[-1]}`"))
    elif variable.get("value"):
        out.append(bad(where, "", "may not be specified when `value` is not empty"))
    elif len(given) > 1:
        out.append(bad(where, "", "may not have more than one field specified at a time"))
    for field in ("configMapKeyRef", "secretKeyRef"):
        if field in given and not source[field].get("key"):
            out.append(missing(f"{where}.{field}.key"))
    if "fieldRef" in given and not source["fieldRef"].get("fieldPath"):
        out.append(missing(f"{where}.fieldRef.fieldPath"))
    return out


def _resources(resources: Object, path: str) -> list[Cause]:
    out: list[Cause] = []
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for field, amounts in (("limits", limits), ("requests", requests)):
        for name, amount in amounts.items():
            out += _resource_name(name, f"{path}.{field}[{name}]")
            if parse_quantity(str(amount)) < 0:
                out.append(bad(f"{path}.{field}[{name}]", amount, "must be greater than or equal to 0"))
    for name, amount in requests.items():
        if name in limits and parse_quantity(str(amount)) > parse_quantity(str(limits[name])):
            message = f"must be less than or equal to {name} limit of {limits[name]}"
            out.append(bad(f"{path}.requests", amount, message))
    return out


def _resource_name(name: str, path: str) -> list[Cause]:
    """A name without a domain must be one of the resources that Kubernetes itself counts for containers."""
    complaints = meta.qualified_name(name)
    if complaints:
        return [bad(path, name, message) for message in complaints]
    if "/" in name or name in _CONTAINER_RESOURCES or name.startswith("hugepages-"):
        return []
    known = name in _QUOTA_RESOURCES or name.startswith(("requests.", "limits."))
    out = [] if known else [bad(path, name, "must be a standard resource type or fully qualified")]
    return [*out, bad(path, name, "must be a standard resource for containers")]


def _probe(probe: Object, at: str) -> list[Cause]:
    handlers = [name for name in ("exec", "httpGet", "tcpSocket", "grpc") if probe.get(name) is not None]
    out: list[Cause] = []
    if not handlers:
        out.append(missing(at, "must specify a handler type"))
    for extra in handlers[1:]:
        out.append(forbidden(f"{at}.{extra}", "may not specify more than 1 handler type"))
    fields = ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold")
    for field in fields:
        out += meta.non_negative(probe, field, at)
    if not at.endswith("readinessProbe") and (probe.get("successThreshold") or 1) != 1:
        out.append(bad(f"{at}.successThreshold", probe["successThreshold"], "must be 1"))
    return out


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
