"""Rules for the containers of a pod specification, and for those that are added to look into a running pod."""

from __future__ import annotations

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

_PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_PROTOCOLS = ("SCTP", "TCP", "UDP")
_CONTAINER_RESOURCES = frozenset({"cpu", "memory", "ephemeral-storage"})
_QUOTA_RESOURCES = frozenset(
    {"pods", "services", "replicationcontrollers", "resourcequotas", "secrets", "configmaps", "storage"}
    | {"persistentvolumeclaims"}
)
_PORT_RANGE = "must be between 1 and 65535, inclusive"
_SOURCES = ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef")


def ephemeral_containers(spec: Object, path: str, volumes: frozenset[str], names: set[str]) -> list[Cause]:
    """Containers added to look into a pod that runs: `names` are those of the others."""
    debugging = spec.get("ephemeralContainers") or []
    path = f"{path}.ephemeralContainers"
    known = set(names)
    out = containers(debugging, path, volumes, known)
    for number, container in enumerate(debugging):
        target = container.get("targetContainerName") or ""
        if target and target not in names:
            out.append(not_found_value(f"{path}[{number}].targetContainerName", json.dumps(target)))
        out += [
            forbidden(f"{path}[{number}].{field}", "cannot be set for an Ephemeral Container")
            for field in ("lifecycle", "livenessProbe", "ports", "readinessProbe", "startupProbe")
            if container.get(field)
        ]
    return out


def debugging_update(new: Object, old: Object) -> list[Cause]:
    """Ephemeral containers are added, and never changed or taken away."""
    spec, before = new.get("spec") or {}, old.get("spec") or {}
    groups = ("initContainers", "containers")
    names = {container.get("name") or "" for group in groups for container in spec.get(group) or []}
    mounted = frozenset(volume.get("name") or "" for volume in spec.get("volumes") or [])
    out = ephemeral_containers(spec, "spec", mounted, names)
    given = {container.get("name"): container for container in spec.get("ephemeralContainers") or []}
    for held in before.get("ephemeralContainers") or []:
        name = held.get("name")
        if name not in given:
            words = f"existing ephemeral containers {json.dumps(name)} may not be removed\n"
            out.append(forbidden("spec.ephemeralContainers", words))
        elif given[name] != held:
            words = f"existing ephemeral containers {json.dumps(name)} may not be changed\n"
            out.append(forbidden("spec.ephemeralContainers", words))
    return out


def containers(group: list[Object], path: str, volumes: frozenset[str], names: set[str]) -> list[Cause]:
    out: list[Cause] = []
    for number, container in enumerate(group):
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


def not_for_init(group: list[Object], path: str) -> list[Cause]:
    """What only makes sense for a container that goes on running."""
    message = "may not be set for init containers without restartPolicy=Always"
    return [
        forbidden(f"{path}[{number}].{field}", message)
        for number, container in enumerate(group)
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
    for number, source in enumerate(container.get("envFrom") or []):
        if not source.get("configMapRef") and not source.get("secretRef"):
            words = "must specify one of: `configMapRef` or `secretRef`"
            out.append(bad(f"{at}.envFrom[{number}]", "", words))
        for name in ("configMapRef", "secretRef"):
            if source.get(name) is not None and not source[name].get("name"):
                out.append(missing(f"{at}.envFrom[{number}].{name}.name"))
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
        if mount.get("subPath"):
            out += _inside(mount["subPath"], f"{where}.subPath")
        paths.add(mount.get("mountPath") or "")
    pull = container.get("imagePullPolicy") or ""
    if not pull:
        out.append(missing(f"{at}.imagePullPolicy"))
    elif pull not in _PULL_POLICIES:
        out.append(unsupported(f"{at}.imagePullPolicy", pull, _PULL_POLICIES))
    out += _resources(container.get("resources") or {}, f"{at}.resources")
    for hook in ("postStart", "preStop"):
        if (container.get("lifecycle") or {}).get(hook) is not None:
            out += _handler(container["lifecycle"][hook], f"{at}.lifecycle.{hook}")
    for probe in ("livenessProbe", "readinessProbe", "startupProbe"):
        if container.get(probe) is not None:
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


def _inside(path: str, at: str) -> list[Cause]:
    out: list[Cause] = []
    if path.startswith("/"):
        out.append(bad(at, path, "must be a relative path"))
    return [*out, bad(at, path, "must not contain '..'")] if ".." in path.split("/") else out


def _handler(action: Object, at: str) -> list[Cause]:
    """What a probe or a hook does: exactly one thing."""
    known = ("exec", "httpGet", "tcpSocket", "grpc", "sleep")
    handlers = [name for name in known if action.get(name) is not None]
    out: list[Cause] = []
    if not handlers:
        return [missing(at, "must specify a handler type")]
    for extra in handlers[1:]:
        out.append(forbidden(f"{at}.{extra}", "may not specify more than 1 handler type"))
    kind, handler = handlers[0], action[handlers[0]]
    where = f"{at}.{kind}"
    if kind == "exec" and not handler.get("command"):
        out.append(missing(f"{where}.command"))
    if kind == "httpGet" and not handler.get("path"):
        out.append(missing(f"{where}.path"))
    if kind in ("httpGet", "tcpSocket", "grpc"):
        port = handler.get("port")
        if isinstance(port, str):
            out += [bad(f"{where}.port", port, message) for message in port_name(port)]
        elif not 1 <= (port or 0) <= 65535:
            out.append(bad(f"{where}.port", port or 0, _PORT_RANGE))
    if kind == "httpGet" and handler.get("scheme") not in ("HTTP", "HTTPS"):
        out.append(unsupported(f"{where}.scheme", handler.get("scheme") or "", ("HTTP", "HTTPS")))
    return out


def _probe(probe: Object, at: str) -> list[Cause]:
    out = _handler(probe, at)
    fields = ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold")
    for field in fields:
        out += meta.non_negative(probe, field, at)
    if not at.endswith("readinessProbe") and (probe.get("successThreshold") or 1) != 1:
        out.append(bad(f"{at}.successThreshold", probe["successThreshold"], "must be 1"))
    return out
