"""What the server remarks about an object it accepts: ``Warning`` headers which clients such as kubectl print."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from infra.lab.apiserver import validation_meta as meta

if TYPE_CHECKING:
    from infra.lab.apiserver.kinds import KindInfo

Object = dict[str, Any]

_IN_POD_NAMES = "this is used in Pod names and hostnames, which can result in surprising behavior"
_IN_HOSTNAME = "this is used in the Pod's hostname, which can result in surprising behavior"
_NAMED_PODS = ("deployments.apps", "replicasets.apps", "statefulsets.apps", "jobs.batch", "cronjobs.batch")
# kind -> where its pod specification is
_POD_SPECS = {
    "pods": ("spec",),
    "deployments.apps": ("spec", "template", "spec"),
    "replicasets.apps": ("spec", "template", "spec"),
    "daemonsets.apps": ("spec", "template", "spec"),
    "statefulsets.apps": ("spec", "template", "spec"),
    "jobs.batch": ("spec", "template", "spec"),
    "cronjobs.batch": ("spec", "jobTemplate", "spec", "template", "spec"),
}


def about(kind: KindInfo, obj: Object, old: Object | None = None) -> list[str]:
    """Warnings about `obj`, stored in place of `old` or new."""
    out: list[str] = []
    name = (obj.get("metadata") or {}).get("name") or ""
    if old is None and (kind.resource in _NAMED_PODS or kind.resource == "pods"):
        problems = meta.label(name)
        if problems:
            words = _IN_HOSTNAME if kind.resource == "pods" else _IN_POD_NAMES
            out.append(f"metadata.name: {words}; a DNS label is recommended: [{' '.join(problems)}]")
    if kind.resource in _POD_SPECS:
        path = _POD_SPECS[kind.resource]
        spec: Any = obj
        for step in path:
            spec = (spec or {}).get(step)
        out += _pod(spec or {}, ".".join(path))
    if kind.resource == "secrets" and obj.get("type") == "kubernetes.io/tls":
        data = obj.get("data") or {}
        pair = [base64.b64decode(data.get(key) or "") for key in ("tls.crt", "tls.key")]
        problem = key_pair_problem(*pair)
        out += [problem] if problem else []
    return out


def _pod(spec: Object, path: str) -> list[str]:
    out: list[str] = []
    for group in ("initContainers", "containers"):
        for number, container in enumerate(spec.get(group) or []):
            at = f"{path}.{group}[{number}]"
            out += _env(container.get("env") or [], at)
            out += _ports(container.get("ports") or [], at)
    return out


def _env(variables: list[Object], at: str) -> list[str]:
    seen: set[str] = set()
    out: list[str] = []
    for number, variable in enumerate(variables):
        name = variable.get("name") or ""
        # a later definition may build on the one before
        if name in seen and f"$({name})" not in (variable.get("value") or ""):
            hides = f'hides previous definition of "{name}", which may be dropped when using apply'
            out.append(f"{at}.env[{number}]: {hides}")
        seen.add(name)
    return out


def _ports(ports: list[Object], at: str) -> list[str]:
    seen: dict[tuple[Any, ...], int] = {}
    out: list[str] = []
    for number, port in enumerate(ports):
        key = (port.get("containerPort"), port.get("protocol"), port.get("hostIP"), port.get("hostPort"))
        if key in seen:
            out.append(f"{at}.ports[{number}]: duplicate port definition with {at}.ports[{seen[key]}]")
        seen.setdefault(key, number)
    return out


def key_pair_problem(certificate: bytes, key: bytes) -> str:
    """What Go's TLS library says about this pair (PEM); empty when certificate and key belong together."""
    if b"-----BEGIN" not in certificate:
        return "tls: failed to find any PEM data in certificate input"
    if b"-----BEGIN CERTIFICATE-----" not in certificate:
        return 'tls: failed to find "CERTIFICATE" PEM block in certificate input after skipping PEM blocks'
    if b"-----BEGIN" not in key:
        return "tls: failed to find any PEM data in key input"
    try:
        leaf = x509.load_pem_x509_certificates(certificate)[0]
    except ValueError as error:
        return f"x509: malformed certificate: {error}"
    try:
        public = load_pem_private_key(key, None).public_key()
    except (ValueError, TypeError):
        return "tls: failed to parse private key"
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if leaf.public_key().public_bytes(*form) != public.public_bytes(*form):
        return "tls: private key does not match public key"
    return ""
