"""Rules for the small kinds of the core group, leases, events and RBAC objects."""

from __future__ import annotations

import base64
import ipaddress
import json
from typing import TYPE_CHECKING, Any

from infra.lab.apiserver import go_json
from infra.lab.apiserver import validation_meta as meta
from infra.lab.apiserver.validation_containers import port_name
from infra.lab.apiserver.validation_meta import IMMUTABLE, bad, duplicate, forbidden, longer_than, missing, unsupported

if TYPE_CHECKING:
    from infra.lab.apiserver.status import Cause

Object = dict[str, Any]

RBAC = "rbac.authorization.k8s.io"
_SIZE_LIMIT = 1024 * 1024
_FIXED = "field is immutable when `immutable` is set"


def _frozen(new: Object, old: Object | None, fields: tuple[str, ...]) -> list[Cause]:
    """An object marked immutable keeps its data and the mark."""
    if old is None or not old.get("immutable"):
        return []
    out = [] if new.get("immutable") else [forbidden("immutable", _FIXED)]
    return out + [forbidden(name, _FIXED) for name in fields if (new.get(name) or {}) != (old.get(name) or {})]


def config_map(new: Object, old: Object | None) -> list[Cause]:
    out = _frozen(new, old, ("data", "binaryData"))
    data, binary = new.get("data") or {}, new.get("binaryData") or {}
    size = 0
    for key, value in sorted(data.items()):
        out += [bad(f"data[{key}]", key, message) for message in meta.config_key(key)]
        if key in binary:
            out.append(bad(f"data[{key}]", key, "duplicate of key present in binaryData"))
        size += len(value.encode())
    for key, value in sorted(binary.items()):
        out += [bad(f"binaryData[{key}]", key, message) for message in meta.config_key(key)]
        size += len(base64.b64decode(value))
    return [*out, longer_than("", _SIZE_LIMIT)] if size > _SIZE_LIMIT else out


# keys a Secret of a type has to have
_SECRET_KEYS = {
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
}
_SECRET_JSON = {
    "kubernetes.io/dockercfg": ".dockercfg",
    "kubernetes.io/dockerconfigjson": ".dockerconfigjson",
}
_ACCOUNT_NAME = "kubernetes.io/service-account.name"


def secret(new: Object, old: Object | None) -> list[Cause]:
    out: list[Cause] = []
    if old is not None and new.get("type") != old.get("type"):
        out.append(bad("type", new.get("type"), IMMUTABLE))
    out += _frozen(new, old, ("data",))
    data, kind = new.get("data") or {}, new.get("type") or ""
    for key in sorted(data):
        out += [bad(f"data[{key}]", key, message) for message in meta.config_key(key)]
    if sum(len(base64.b64decode(value)) for value in data.values()) > _SIZE_LIMIT:
        out.append(longer_than("data", _SIZE_LIMIT))
    if kind == "kubernetes.io/service-account-token":
        if not ((new.get("metadata") or {}).get("annotations") or {}).get(_ACCOUNT_NAME):
            out.append(missing(f"metadata.annotations[{_ACCOUNT_NAME}]"))
    elif kind in _SECRET_JSON:
        out += _docker_config(data, _SECRET_JSON[kind])
    elif kind == "kubernetes.io/basic-auth":
        if "username" not in data and "password" not in data:
            out += [missing("data[username]"), missing("data[password]")]
    else:
        empty = kind == "kubernetes.io/ssh-auth"
        for key in _SECRET_KEYS.get(kind, ()):
            if key not in data or (empty and not data[key]):
                out.append(missing(f"data[{key}]"))
    return out


def _docker_config(data: Object, key: str) -> list[Cause]:
    if key not in data:
        return [missing(f"data[{key}]")]
    text = base64.b64decode(data[key]).decode("utf-8", "replace")
    problem = go_json.syntax_error(text)
    if not problem:
        value = json.loads(text)
        if value is not None and not isinstance(value, dict):
            problem = go_json.unmarshal_error(value, "map[string]interface {}")
    return [bad(f"data[{key}]", "<secret contents redacted>", problem)] if problem else []


_SERVICE_TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
_PROTOCOLS = ("SCTP", "TCP", "UDP")
_KUBELET_PORT = 10250


def namespace_finalizers(new: Object) -> list[Cause]:
    """What may stand in the way of a namespace's end: ``kubernetes``, and names with a domain."""
    out: list[Cause] = []
    message = "name is neither a standard finalizer name nor is it fully qualified"
    for number, name in enumerate((new.get("spec") or {}).get("finalizers") or []):
        path = f"spec.finalizers[{number}]"
        out += [bad(path, name, complaint) for complaint in meta.qualified_name(name)]
        if "/" not in name and name not in meta.STANDARD_FINALIZERS:
            out.append(bad(path, name, message))
    return out


def service(new: Object, old: Object | None) -> list[Cause]:
    path, spec = "spec", new.get("spec") or {}
    out: list[Cause] = []
    ports, kind = spec.get("ports") or [], spec.get("type") or ""
    if not ports and kind != "ExternalName" and spec.get("clusterIP") != "None":
        out.append(missing(f"{path}.ports"))
    headless = spec.get("clusterIP") == "None"
    if kind in ("LoadBalancer", "NodePort") and headless:
        out.append(bad(f"{path}.clusterIPs[0]", "None", f"may not be set to 'None' for {kind} services"))
    if kind == "ExternalName":
        if spec.get("clusterIPs"):
            out.append(forbidden(f"{path}.clusterIPs", "may not be set when `type` is 'ExternalName'"))
        name = (spec.get("externalName") or "").removesuffix(".")
        out += [bad(f"{path}.externalName", name, message) for message in meta.subdomain(name)] if name else []
        if not name:
            out.append(missing(f"{path}.externalName"))
    names: set[str] = set()
    for number, port in enumerate(ports):
        if kind == "LoadBalancer" and port.get("port") == _KUBELET_PORT:
            message = f"may not expose port {_KUBELET_PORT} externally since it is used by kubelet"
            out.append(bad(f"{path}.ports[{number}]", _KUBELET_PORT, message))
        out += _service_port(port, f"{path}.ports[{number}]", names, required=len(ports) > 1)
    out += meta.labels(spec.get("selector"), f"{path}.selector")
    affinity = spec.get("sessionAffinity") or ""
    if not affinity:
        out.append(missing(f"{path}.sessionAffinity"))
    elif affinity not in ("ClientIP", "None"):
        out.append(unsupported(f"{path}.sessionAffinity", affinity, ("ClientIP", "None")))
    if not kind:
        out.append(missing(f"{path}.type"))
    elif kind not in _SERVICE_TYPES:
        out.append(unsupported(f"{path}.type", kind, _SERVICE_TYPES))
    out += _port_numbers(ports, f"{path}.ports", kind)
    for number, address in enumerate(spec.get("clusterIPs") or []):
        if address != "None" and not _is_address(address):
            message = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
            out.append(bad(f"{path}.clusterIPs[{number}]", address, message))
    before = (old or {}).get("spec") or {}
    fixed = before.get("clusterIP") and "ExternalName" not in (before.get("type"), kind)
    if fixed and spec.get("clusterIP") != before["clusterIP"]:
        held = [spec["clusterIP"]] if spec.get("clusterIP") else []
        out.append(bad(f"{path}.clusterIPs[0]", held, "may not change once set"))
    return out


def _port_numbers(ports: list[Object], path: str, kind: str) -> list[Cause]:
    """Node ports where there are none, and numbers given twice."""
    out: list[Cause] = []
    nodes: set[tuple[Any, Any]] = set()
    seen: set[tuple[Any, Any]] = set()
    for number, port in enumerate(ports):
        node = port.get("nodePort") or 0
        if node and kind == "ClusterIP":
            out.append(forbidden(f"{path}[{number}].nodePort", "may not be used when `type` is 'ClusterIP'"))
        elif node and (port.get("protocol"), node) in nodes:
            out.append(duplicate(f"{path}[{number}].nodePort", node))
        nodes.add((port.get("protocol"), node))
    for number, port in enumerate(ports):
        protocol, value = port.get("protocol"), port.get("port")
        if (protocol, value) in seen:
            # the server compares values of its internal type, whose JSON has Go's names
            internal = {"Name": "", "Protocol": protocol, "AppProtocol": None, "Port": value}
            out.append(duplicate(f"{path}[{number}]", {**internal, "TargetPort": 0, "NodePort": 0}))
        seen.add((protocol, value))
    return out


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _service_port(port: Object, at: str, names: set[str], *, required: bool) -> list[Cause]:
    out: list[Cause] = []
    name = port.get("name") or ""
    if required and not name:
        out.append(missing(f"{at}.name"))
    elif name:
        out += [bad(f"{at}.name", name, message) for message in meta.label(name)]
        if name in names:
            out.append(duplicate(f"{at}.name", name))
        names.add(name)
    in_range = "must be between 1 and 65535, inclusive"
    if not 1 <= (port.get("port") or 0) <= 65535:
        out.append(bad(f"{at}.port", port.get("port") or 0, in_range))
    protocol = port.get("protocol") or ""
    if not protocol:
        out.append(missing(f"{at}.protocol"))
    elif protocol not in _PROTOCOLS:
        out.append(unsupported(f"{at}.protocol", protocol, _PROTOCOLS))
    target = port.get("targetPort")
    if isinstance(target, int) and not 1 <= target <= 65535:
        out.append(bad(f"{at}.targetPort", target, in_range))
    elif isinstance(target, str):
        out += [bad(f"{at}.targetPort", target, message) for message in port_name(target)]
    return out


def lease(new: Object, old: Object | None) -> list[Cause]:  # noqa: ARG001  (the signature of every rule)
    spec = new.get("spec") or {}
    out: list[Cause] = []
    seconds, transitions = spec.get("leaseDurationSeconds"), spec.get("leaseTransitions")
    if seconds is not None and seconds <= 0:
        out.append(bad("spec.leaseDurationSeconds", seconds, "must be greater than 0"))
    if transitions is not None and transitions < 0:
        out.append(bad("spec.leaseTransitions", transitions, "must be greater than or equal to 0"))
    return out


def core_event(new: Object, old: Object | None) -> list[Cause]:  # noqa: ARG001  (the signature of every rule)
    """Events of the core group: what they are about has to be in their namespace."""
    namespace = (new.get("metadata") or {}).get("namespace") or ""
    about = (new.get("involvedObject") or {}).get("namespace") or ""
    if namespace == about or (not about and namespace == "default"):
        return []
    return [bad("involvedObject.namespace", about, "does not match event.namespace")]


# events.k8s.io field -> the core group's name for it, which errors use
_EVENT_NAMES = {
    "regarding": "involvedObject",
    "reason": "reason",
    "note": "message",
    "deprecatedSource": "source",
    "deprecatedFirstTimestamp": "firstTimestamp",
    "deprecatedLastTimestamp": "lastTimestamp",
    "deprecatedCount": "count",
    "type": "type",
    "eventTime": "eventTime",
    "action": "action",
    "related": "related",
    "reportingController": "reportingController",
    "reportingInstance": "reportingInstance",
}
_TEXT_LIMIT, _NOTE_LIMIT = 128, 1024


def event(new: Object, old: Object | None) -> list[Cause]:
    """Events of events.k8s.io: complete at creation, then fixed but for the series."""
    if old is not None:
        return [
            bad(shown, new.get(field), IMMUTABLE)
            for field, shown in _EVENT_NAMES.items()
            if new.get(field) != old.get(field)
        ]
    out: list[Cause] = []
    namespace = (new.get("metadata") or {}).get("namespace") or ""
    about = (new.get("regarding") or {}).get("namespace") or ""
    if namespace != about and not (not about and namespace in ("default", "kube-system")):
        out.append(bad("involvedObject.namespace", about, "does not match event.namespace"))
    if not new.get("eventTime"):
        out.append(missing("eventTime"))
    controller = new.get("reportingController") or ""
    if not controller:
        out.append(missing("reportingController"))
    else:
        out += [bad("reportingController", controller, message) for message in meta.qualified_name(controller)]
    for field in ("reportingInstance", "action", "reason"):
        value = new.get(field) or ""
        if not value:
            out.append(missing(field))
        elif len(value) > _TEXT_LIMIT:
            out.append(bad(field, "", f"can have at most {_TEXT_LIMIT} characters"))
    if len(new.get("note") or "") > _NOTE_LIMIT:
        out.append(bad("message", "", f"can have at most {_NOTE_LIMIT} characters"))
    kind = new.get("type") or ""
    if not kind:
        out.append(missing("type"))
    elif kind not in ("Normal", "Warning"):
        out.append(bad("type", "", "has invalid value: " + kind))
    return out


def role(new: Object, old: Object | None) -> list[Cause]:  # noqa: ARG001  (the signature of every rule)
    return _rules(new, namespaced=True)


def cluster_role(new: Object, old: Object | None) -> list[Cause]:  # noqa: ARG001  (the signature of every rule)
    out = _rules(new, namespaced=False)
    aggregation = new.get("aggregationRule")
    if aggregation is None:
        return out
    path, selectors = "aggregationRule.clusterRoleSelectors", aggregation.get("clusterRoleSelectors") or []
    if not selectors:
        words = "at least one clusterRoleSelector required if aggregationRule is non-nil"
        out.append(missing(path, words))
    for number, selector in enumerate(selectors):
        out += meta.label_selector(selector, f"{path}[{number}]")
    return out


def _rules(new: Object, *, namespaced: bool) -> list[Cause]:
    out: list[Cause] = []
    for number, rule in enumerate(new.get("rules") or []):
        at = f"rules[{number}]"
        if not rule.get("verbs"):
            out.append(missing(f"{at}.verbs", "verbs must contain at least one value"))
        urls = rule.get("nonResourceURLs") or []
        if urls:
            where = f"{at}.nonResourceURLs"
            if namespaced:
                out.append(bad(where, urls, "namespaced rules cannot apply to non-resource URLs"))
            if any(rule.get(field) for field in ("apiGroups", "resources", "resourceNames")):
                out.append(bad(where, urls, "rules cannot apply to both regular resources and non-resource URLs"))
            continue
        if not rule.get("apiGroups"):
            out.append(missing(f"{at}.apiGroups", "resource rules must supply at least one api group"))
        if not rule.get("resources"):
            out.append(missing(f"{at}.resources", "resource rules must supply at least one resource"))
    return out


def role_binding(new: Object, old: Object | None) -> list[Cause]:
    return _binding(new, old, ("ClusterRole", "Role"))


def cluster_role_binding(new: Object, old: Object | None) -> list[Cause]:
    return _binding(new, old, ("ClusterRole",))


def _binding(new: Object, old: Object | None, kinds: tuple[str, ...]) -> list[Cause]:
    out: list[Cause] = []
    reference = new.get("roleRef") or {}
    if reference.get("apiGroup") != RBAC:
        out.append(unsupported("roleRef.apiGroup", reference.get("apiGroup") or "", (RBAC,)))
    if reference.get("kind") not in kinds:
        out.append(unsupported("roleRef.kind", reference.get("kind") or "", kinds))
    name = reference.get("name") or ""
    if not name:
        out.append(missing("roleRef.name"))
    else:
        out += [bad("roleRef.name", name, message) for message in meta.path_segment(name, False)]
    for number, subject in enumerate(new.get("subjects") or []):
        out += _subject(subject, f"subjects[{number}]", namespaced="Role" in kinds)
    if old is not None and reference != (old.get("roleRef") or {}):
        shown = {"APIGroup": reference.get("apiGroup"), "Kind": reference.get("kind"), "Name": name}
        out.append(bad("roleRef", shown, "cannot change roleRef"))
    return out


def _subject(subject: Object, at: str, *, namespaced: bool) -> list[Cause]:
    out: list[Cause] = []
    name, group = subject.get("name") or "", subject.get("apiGroup") or ""
    if not name:
        out.append(missing(f"{at}.name"))
    match subject.get("kind"):
        case "ServiceAccount":
            if name:
                out += [bad(f"{at}.name", name, message) for message in meta.subdomain(name)]
            if group:
                out.append(unsupported(f"{at}.apiGroup", group, ("",)))
            if not namespaced and not subject.get("namespace"):
                out.append(missing(f"{at}.namespace"))
        case "User" | "Group":
            if group != RBAC:
                out.append(unsupported(f"{at}.apiGroup", group, (RBAC,)))
        case other:
            out.append(unsupported(f"{at}.kind", other or "", ("ServiceAccount", "User", "Group")))
    return out
