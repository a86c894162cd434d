"""A container's environment, command line and downward-API values, resolved from the Pod and the objects it refers to.

Rules: https://kubernetes.io/docs/tasks/inject-data-application/ and the field comments of EnvVar in the API reference.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Any

JSON = dict[str, Any]
Lookup = Callable[[str, str], JSON | None]  # ("configmaps" | "secrets", name) -> object in the pod's namespace


class ConfigError(Exception):
    """The container cannot be configured yet (a ConfigMap, Secret or key is missing); worth another try later."""


_REFERENCE = re.compile(r"\$(?:\$|\(([A-Za-z0-9_.\-]+)\))")


def expand(text: str, env: dict[str, str]) -> str:
    """$(NAME) becomes the variable's value; an unknown name stays as written; $$ stands for one $."""

    def one(match: re.Match[str]) -> str:
        if match[1] is None:
            return "$"
        return env.get(match[1], match[0])

    return _REFERENCE.sub(one, text)


def environment(pod: JSON, container: JSON, lookup: Lookup, base: dict[str, str] | None = None) -> dict[str, str]:
    """All variables of a container: `base`, then envFrom, then env, each able to refer to the ones before.

    Raises ConfigError when a required ConfigMap, Secret or key does not exist.
    """
    env = dict(base or {})
    for source in container.get("envFrom") or []:
        prefix = source.get("prefix", "")
        for plural, key in (("configmaps", "configMapRef"), ("secrets", "secretRef")):
            if (reference := source.get(key)) is not None:
                found = lookup(plural, reference["name"])
                if found is None:
                    if not reference.get("optional"):
                        raise ConfigError(f'{plural[:-1]} "{reference["name"]}" not found')
                    continue
                env.update({prefix + k: v.decode(errors="replace") for k, v in data_of(found).items()})
    for variable in container.get("env") or []:
        name = variable["name"]
        if (source := variable.get("valueFrom")) is None:
            env[name] = expand(variable.get("value") or "", env)
        elif (value := _value_from(pod, container, source, lookup)) is not None:
            env[name] = value
    return env


def data_of(item: JSON) -> dict[str, bytes]:
    """The contents of a ConfigMap (data and binaryData) or a Secret (data) as bytes."""
    if item["kind"] == "Secret":
        return {k: base64.b64decode(v) for k, v in (item.get("data") or {}).items()}
    text = {k: v.encode() for k, v in (item.get("data") or {}).items()}
    return text | {k: base64.b64decode(v) for k, v in (item.get("binaryData") or {}).items()}


def _value_from(pod: JSON, container: JSON, source: JSON, lookup: Lookup) -> str | None:
    if (reference := source.get("fieldRef")) is not None:
        return field_value(pod, reference["fieldPath"])
    if (reference := source.get("resourceFieldRef")) is not None:
        return resource_value(pod, reference, container)
    for plural, key in (("configmaps", "configMapKeyRef"), ("secrets", "secretKeyRef")):
        if (reference := source.get(key)) is not None:
            found = lookup(plural, reference["name"])
            if found is None:
                if reference.get("optional"):
                    return None
                raise ConfigError(f'{plural[:-1]} "{reference["name"]}" not found')
            value = data_of(found).get(reference["key"])
            if value is None:
                if reference.get("optional"):
                    return None
                where = f"{pod['metadata']['namespace']}/{reference['name']}"
                raise ConfigError(f"couldn't find key {reference['key']} in {found['kind']} {where}")
            return value.decode(errors="replace")
    raise ConfigError(f"invalid valueFrom {sorted(source)}: the lab's kubelet does not know this source")


_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['(.+)'\]")


def field_value(pod: JSON, path: str) -> str:
    """A downward-API field of the pod, as text. Raises ConfigError for a field the downward API does not offer."""
    metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
    if match := _SUBSCRIPT.fullmatch(path):
        return str((metadata.get(match[1]) or {}).get(match[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        items = sorted((metadata.get(path.split(".")[1]) or {}).items())
        return "\n".join(f'{k}="{_escape(str(v))}"' for k, v in items)
    plain = {
        "metadata.name": metadata.get("name"),
        "metadata.namespace": metadata.get("namespace"),
        "metadata.uid": metadata.get("uid"),
        "spec.nodeName": spec.get("nodeName"),
        "spec.serviceAccountName": spec.get("serviceAccountName"),
        "status.hostIP": status.get("hostIP"),
        "status.podIP": status.get("podIP"),
        "status.hostIPs": ",".join(each["ip"] for each in status.get("hostIPs") or []),
        "status.podIPs": ",".join(each["ip"] for each in status.get("podIPs") or []),
    }
    if path not in plain:
        raise ConfigError(f"unsupported fieldPath: {path}")
    return str(plain[path] or "")


def resource_value(pod: JSON, reference: JSON, container: JSON | None = None) -> str:
    """A resourceFieldRef (limits.cpu, requests.memory, ...) divided by its divisor and rounded up, as a kubelet gives
    it.
    """
    name = reference.get("containerName")
    if name:
        every = [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]
        container = next((c for c in every if c["name"] == name), container)
    kind, _, resource = reference["resource"].partition(".")
    resources = (container or {}).get("resources") or {}
    quantity = (resources.get(kind) or {}).get(resource) or (resources.get("limits") or {}).get(resource) or "0"
    divisor = _number(str(reference.get("divisor") or "1")) or 1.0
    return str(-int(-_number(str(quantity)) // divisor))


_UNITS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18} | {
    f"{unit}i": 1024.0**power for power, unit in enumerate("KMGTPE", start=1)
}


def _number(quantity: str) -> float:
    match = re.fullmatch(r"([0-9.]+(?:[eE][+-]?[0-9]+)?)([a-zA-Z]*)", quantity)
    if match is None or match[2] not in _UNITS:
        return 0.0
    return float(match[1]) * _UNITS[match[2]]


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
