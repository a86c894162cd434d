"""Defaults of a pod specification and what is in it (Kubernetes API reference, "default" of each field of PodSpec)."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal
from typing import Any

from infra.lab.apiserver.schema_scalars import canonical_quantity, parse_quantity

Object = dict[str, Any]

_VOLUME_MODE = 0o644


def default(obj: Object, field: str, value: object) -> None:
    """Set a field that is absent, null, empty or zero, as `if x == "" {` and `if x == nil {` do."""
    if obj.get(field) in (None, "", 0) and obj.get(field) is not False:
        obj[field] = value


def default_unset(obj: Object, field: str, value: object) -> None:
    """Set a field that is absent or null; an explicit zero stays (optional fields)."""
    if obj.get(field) is None:
        obj[field] = value


def child(obj: Object, field: str) -> Object:
    """The object under `field`, made if it is not there."""
    held = obj.get(field)
    if not isinstance(held, dict):
        held = obj[field] = {}
    return held


def items(obj: Object, field: str) -> list[Object]:
    return [item for item in obj.get(field) or [] if isinstance(item, dict)]


def pod_template(template: Object) -> None:
    """Defaults of a PodTemplateSpec. In place."""
    pod_spec(child(template, "spec"))


def pod_spec(spec: Object) -> None:
    """Defaults every PodSpec gets, in pods and in templates. In place."""
    default(spec, "restartPolicy", "Always")
    default_unset(spec, "terminationGracePeriodSeconds", 30)
    default(spec, "dnsPolicy", "ClusterFirst")
    default_unset(spec, "securityContext", {})
    default(spec, "schedulerName", "default-scheduler")
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if account:
        # serviceAccount is the old name of the same field; both are always shown
        spec["serviceAccountName"] = spec["serviceAccount"] = account
    for volume in items(spec, "volumes"):
        _volume(volume)
    for group in ("initContainers", "containers", "ephemeralContainers"):
        for container in items(spec, group):
            _container(container)
    _round_up(spec.get("overhead"))


def pod(spec: Object) -> None:
    """Defaults only a Pod gets, not a template."""
    for container in [*items(spec, "containers"), *items(spec, "initContainers")]:
        resources = child(container, "resources")
        limits = resources.get("limits")
        if limits:
            requests = child(resources, "requests")
            for name, amount in limits.items():
                requests.setdefault(name, amount)
        if spec.get("hostNetwork"):
            for port in items(container, "ports"):
                default(port, "hostPort", port.get("containerPort"))
    default_unset(spec, "enableServiceLinks", True)


def image_tag(image: str) -> str:
    """The tag of an image reference; ``latest`` when it has neither tag nor digest, empty when it has only a digest."""
    name, _, digest = image.partition("@")
    last = name.rsplit("/", 1)[-1]
    _, colon, tag = last.partition(":")
    if colon:
        return tag
    return "" if digest else "latest"


def _container(container: Object) -> None:
    for port in items(container, "ports"):
        default(port, "protocol", "TCP")
    for variable in items(container, "env"):
        source = variable.get("valueFrom") or {}
        if source.get("fieldRef") is not None:
            default(source["fieldRef"], "apiVersion", "v1")
        if source.get("fileKeyRef") is not None:
            default_unset(source["fileKeyRef"], "optional", False)
    resources = child(container, "resources")
    _round_up(resources.get("limits"))
    _round_up(resources.get("requests"))
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if isinstance(container.get(name), dict):
            _probe(container[name])
    for hook in (container.get("lifecycle") or {}).values():
        if isinstance(hook, dict) and isinstance(hook.get("httpGet"), dict):
            _http_get(hook["httpGet"])
    default(container, "terminationMessagePath", "/dev/termination-log")
    default(container, "terminationMessagePolicy", "File")
    latest = image_tag(container.get("image") or "") == "latest"
    default(container, "imagePullPolicy", "Always" if latest else "IfNotPresent")


def _round_up(amounts: object) -> None:
    """Resource amounts have a precision of one thousandth; finer ones are rounded up."""
    if not isinstance(amounts, dict):
        return
    for name, amount in amounts.items():
        if isinstance(amount, str) and re.search(r"[nu]$", amount):
            thousandths = (parse_quantity(amount) * Decimal(1000)).to_integral_value(rounding=ROUND_CEILING)
            amounts[name] = canonical_quantity(f"{thousandths}m")


def _probe(probe: Object) -> None:
    default(probe, "timeoutSeconds", 1)
    default(probe, "periodSeconds", 10)
    default(probe, "successThreshold", 1)
    default(probe, "failureThreshold", 3)
    if isinstance(probe.get("httpGet"), dict):
        _http_get(probe["httpGet"])
    if isinstance(probe.get("grpc"), dict):
        default_unset(probe["grpc"], "service", "")


def _http_get(action: Object) -> None:
    default(action, "path", "/")
    default(action, "scheme", "HTTP")


def _downward(items_of: Object) -> None:
    for item in items(items_of, "items"):
        if isinstance(item.get("fieldRef"), dict):
            default(item["fieldRef"], "apiVersion", "v1")


# volume source -> fields and their defaults, where a constant is all there is to it
_SOURCES: dict[str, Object] = {
    "secret": {"defaultMode": _VOLUME_MODE},
    "configMap": {"defaultMode": _VOLUME_MODE},
    "downwardAPI": {"defaultMode": _VOLUME_MODE},
    "projected": {"defaultMode": _VOLUME_MODE},
    "hostPath": {"type": ""},
    "iscsi": {"iscsiInterface": "default"},
    "rbd": {"pool": "rbd", "user": "admin", "keyring": "/etc/ceph/keyring"},
    "azureDisk": {"cachingMode": "ReadWrite", "fsType": "ext4", "readOnly": False, "kind": "Shared"},
    "scaleIO": {"storageMode": "ThinProvisioned", "fsType": "xfs"},
}


def _volume(volume: Object) -> None:
    sources = [name for name, value in volume.items() if name != "name" and isinstance(value, dict)]
    if not sources:
        volume["emptyDir"] = {}
    for name in sources:
        for field, value in _SOURCES.get(name, {}).items():
            default_unset(volume[name], field, value)
    if "downwardAPI" in sources:
        _downward(volume["downwardAPI"])
    if "ephemeral" in sources:
        claim = volume["ephemeral"].get("volumeClaimTemplate")
        if isinstance(claim, dict):
            default_unset(child(claim, "spec"), "volumeMode", "Filesystem")
    if "image" in sources:
        latest = image_tag(volume["image"].get("reference") or "") == "latest"
        default(volume["image"], "pullPolicy", "Always" if latest else "IfNotPresent")
    if "projected" in sources:
        for source in items(volume["projected"], "sources"):
            if isinstance(source.get("serviceAccountToken"), dict):
                default_unset(source["serviceAccountToken"], "expirationSeconds", 3600)
            if isinstance(source.get("downwardAPI"), dict):
                _downward(source["downwardAPI"])
