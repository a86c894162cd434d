"""PodSecurity admission: what the labels ``pod-security.kubernetes.io/...`` of a namespace forbid or warn of.

Source: Kubernetes docs, "Pod Security Standards" and "Pod Security Admission". Levels apply in their latest form; the
version a label names is told, not played. Of the standards the rules for Linux are kept, but for SELinux and AppArmor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .admission_errors import refusal
from .status import invalid, invalid_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .api import AdmissionAttributes
    from .store import Store

Object = dict[str, Any]
# One violation: what, and in which parts of the pod
Finding = tuple[str, str]

LABEL = "pod-security.kubernetes.io/"
LEVELS = ("privileged", "baseline", "restricted")
_TEMPLATES = {
    "replicationcontrollers": ("spec", "template", "spec"),
    "podtemplates": ("template", "spec"),
    "replicasets.apps": ("spec", "template", "spec"),
    "deployments.apps": ("spec", "template", "spec"),
    "daemonsets.apps": ("spec", "template", "spec"),
    "statefulsets.apps": ("spec", "template", "spec"),
    "jobs.batch": ("spec", "template", "spec"),
    "cronjobs.batch": ("spec", "jobTemplate", "spec", "template", "spec"),
}
_DEFAULT_CAPABILITIES = frozenset(
    {"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP"}
    | {"SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"}
)
_VOLUMES = frozenset(
    {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected"}
    | {"secret"}
)
_SAFE_SYSCTLS = frozenset(
    {"kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start"}
    | {"net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports"}
    | {"net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl"}
    | {"net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"}
)


@dataclass(frozen=True)
class Policy:
    """A level, and the version of it that was asked for."""

    level: str
    version: str

    def __str__(self) -> str:
        return f"{self.level}:{self.version}"


def check(attributes: AdmissionAttributes, store: Store) -> None:
    """Raises ApiStatusError 403 for a pod its namespace forbids; warnings go to the request."""
    kind = attributes.kind
    if attributes.obj is None:
        return
    if kind.resource == "namespaces" and not attributes.subresource:
        _namespace(attributes, store)
        return
    is_pod = kind.resource == "pods" and attributes.subresource in ("", "ephemeralcontainers")
    path = ("spec",) if is_pod else _TEMPLATES.get(kind.resource) if not attributes.subresource else None
    if path is None or (is_pod and attributes.old is not None and not _specification_changed(attributes)):
        return
    namespace = store.get("namespaces", "", attributes.namespace)
    if namespace is None:
        return
    spec: Any = attributes.obj
    for step in path:
        spec = (spec or {}).get(step)
    enforced, warned = policy(namespace.labels, "enforce"), policy(namespace.labels, "warn")
    if is_pod and (found := violations(spec or {}, enforced.level)):
        raise refusal(attributes, f'violates PodSecurity "{enforced}": {_listed(found)}')
    if found := violations(spec or {}, warned.level):
        attributes.request.warnings.append(f'would violate PodSecurity "{warned}": {_listed(found)}')


def _specification_changed(attributes: AdmissionAttributes) -> bool:
    return (attributes.obj or {}).get("spec") != (attributes.old or {}).get("spec")


def policy(labels: Object, mode: str) -> Policy:
    """What a namespace asks for; `mode` is enforce or warn. What cannot be read forbids all there is to forbid."""
    level = labels.get(f"{LABEL}{mode}", "privileged")
    return Policy(level if level in LEVELS else "restricted", labels.get(f"{LABEL}{mode}-version", "latest"))


def _namespace(attributes: AdmissionAttributes, store: Store) -> None:
    new = ((attributes.obj or {}).get("metadata") or {}).get("labels") or {}
    old = ((attributes.old or {}).get("metadata") or {}).get("labels") or {}
    names = [f"{LABEL}{mode}" for mode in ("enforce", "audit", "warn")]
    wrong = [name for name in names if name in new and new[name] not in LEVELS]
    if wrong and any(new.get(name) != old.get(name) for name in names):
        words = f"must be one of {', '.join(LEVELS)}"
        causes = [invalid_value(f"metadata.labels[{name}]", f'"{new[name]}"', words) for name in wrong]
        raise invalid("Namespace", attributes.name, causes)
    wanted, before = policy(new, "enforce"), policy(old, "enforce")
    if attributes.old is None or wanted == before or LEVELS.index(wanted.level) <= LEVELS.index(before.level):
        return
    bad: dict[str, list[str]] = {}
    for pod in store.objects("pods", attributes.name):
        if found := violations(pod.obj.get("spec") or {}, wanted.level):
            bad.setdefault(", ".join(reason for reason, _ in found), []).append(pod.key[1])
    if not bad:
        return
    text = f'existing pods in namespace "{attributes.name}" violate the new PodSecurity enforce level "{wanted}"'
    attributes.request.warnings.append(text)
    for reasons, pods in sorted(bad.items(), key=lambda item: item[1][0]):
        more = len(pods) - 1
        others = f" (and {more} other pod{'s' if more > 1 else ''})" if more else ""
        attributes.request.warnings.append(f"{pods[0]}{others}: {reasons}")


def _listed(found: list[Finding]) -> str:
    return ", ".join(f"{reason} ({detail})" if detail else reason for reason, detail in found)


def violations(spec: Object, level: str) -> list[Finding]:
    """What in a pod specification the level forbids: reasons with details, in the order the real server tells them."""
    if level == "privileged":
        return []
    checks = _RESTRICTED if level == "restricted" else _BASELINE
    return [(reason, detail) for reason, rule in checks if (detail := rule(spec))]


def _containers(spec: Object) -> Iterator[tuple[str, Object, Object]]:
    """Name, container and security context of every container."""
    for group in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(group) or []:
            yield container.get("name") or "", container, container.get("securityContext") or {}


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _named(noun: str, names: list[str]) -> str:
    return f"{noun}{'s' if len(names) > 1 else ''} {_quoted(names)}"


def _namespaces(spec: Object) -> str:
    return ", ".join(f"{name}=true" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name))


def _host_ports(spec: Object) -> str:
    found = {
        name: [str(port["hostPort"]) for port in container.get("ports") or [] if port.get("hostPort")]
        for name, container, _ in _containers(spec)
    }
    names = [name for name, ports in found.items() if ports]
    ports = sorted({port for name in names for port in found[name]})
    if not names:
        return ""
    verb = "use" if len(names) > 1 else "uses"
    return f"{_named('container', names)} {verb} hostPort{'s' if len(ports) > 1 else ''} {', '.join(ports)}"


def _setting(wrong: Callable[[Object], bool], words: str) -> Callable[[Object], str]:
    """A rule about the security context of each container."""

    def rule(spec: Object) -> str:
        names = [name for name, _, context in _containers(spec) if wrong(context)]
        return f"{_named('container', names)} {words}" if names else ""

    return rule


def _added(allowed: frozenset[str]) -> Callable[[Object], str]:
    def rule(spec: Object) -> str:
        found = {
            name: [c for c in (context.get("capabilities") or {}).get("add") or [] if c not in allowed]
            for name, _, context in _containers(spec)
        }
        names = [name for name, added in found.items() if added]
        added = sorted({capability for name in names for capability in found[name]})
        words = f"must not include {_quoted(added)} in securityContext.capabilities.add"
        return f"{_named('container', names)} {words}" if names else ""

    return rule


def _capabilities(spec: Object) -> str:
    def keeps(context: Object) -> bool:
        return "ALL" not in ((context.get("capabilities") or {}).get("drop") or [])

    parts = [
        _setting(keeps, 'must set securityContext.capabilities.drop=["ALL"]')(spec),
        _added(frozenset({"NET_BIND_SERVICE"}))(spec),
    ]
    return "; ".join(part for part in parts if part)


def _sysctls(spec: Object) -> str:
    given = (spec.get("securityContext") or {}).get("sysctls") or []
    return ", ".join(entry["name"] for entry in given if entry.get("name") not in _SAFE_SYSCTLS)


def _host_paths(spec: Object) -> str:
    names = [volume["name"] for volume in spec.get("volumes") or [] if volume.get("hostPath") is not None]
    return _named("volume", names) if names else ""


def _volume_types(spec: Object) -> str:
    names, types = [], []
    for volume in spec.get("volumes") or []:
        source = next((key for key, value in volume.items() if key != "name" and value is not None), "unknown")
        if source not in _VOLUMES:
            names.append(volume.get("name") or "")
            types.append(source)
    if not names:
        return ""
    verb = "use restricted volume types" if len(names) > 1 else "uses restricted volume type"
    return f"{_named('volume', names)} {verb} {_quoted(sorted(set(types)))}"


def _unconfined(spec: Object) -> str:
    def wrong(context: Object) -> bool:
        return (context.get("seccompProfile") or {}).get("type") == "Unconfined"

    who = ["pod"] if wrong(spec.get("securityContext") or {}) else []
    names = [name for name, _, context in _containers(spec) if wrong(context)]
    who += [_named("container", names)] if names else []
    return f'{" and ".join(who)} must not set securityContext.seccompProfile.type to "Unconfined"' if who else ""


def _seccomp(spec: Object) -> str:
    good = ("RuntimeDefault", "Localhost")
    common = ((spec.get("securityContext") or {}).get("seccompProfile") or {}).get("type")
    names = [
        name
        for name, _, context in _containers(spec)
        if ((context.get("seccompProfile") or {}).get("type") or common) not in good
    ]
    words = f'must set securityContext.seccompProfile.type to "{good[0]}" or "{good[1]}"'
    return f"pod or {_named('container', names)} {words}" if names else ""


def _non_root(spec: Object) -> str:
    common = (spec.get("securityContext") or {}).get("runAsNonRoot")
    names = [name for name, _, context in _containers(spec) if context.get("runAsNonRoot", common) is not True]
    return f"pod or {_named('container', names)} must set securityContext.runAsNonRoot=true" if names else ""


def _root_user(spec: Object) -> str:
    who = ["pod"] if (spec.get("securityContext") or {}).get("runAsUser") == 0 else []
    names = [name for name, _, context in _containers(spec) if context.get("runAsUser") == 0]
    who += [_named("container", names)] if names else []
    return f"{' and '.join(who)} must not set runAsUser=0" if who else ""


def _escalates(context: Object) -> bool:
    return context.get("allowPrivilegeEscalation") is not False


_Rules = list[tuple[str, "Callable[[Object], str]"]]
_HOST: _Rules = [("host namespaces", _namespaces)]
_PORTS: _Rules = [
    ("hostPort", _host_ports),
    ("privileged", _setting(lambda c: bool(c.get("privileged")), "must not set securityContext.privileged=true")),
    (
        "procMount",
        _setting(
            lambda c: c.get("procMount") not in (None, "Default"),
            'must not set securityContext.procMount to "Unmasked"',
        ),
    ),
]
_SYSCTLS: _Rules = [("forbidden sysctls", _sysctls)]
# In the order of the names the real server's checks have
_BASELINE: _Rules = [
    ("non-default capabilities", _added(_DEFAULT_CAPABILITIES)),
    *_HOST,
    ("hostPath volumes", _host_paths),
    *_PORTS,
    ("seccompProfile", _unconfined),
    *_SYSCTLS,
]
# Restricted looks at capabilities, volumes and seccomp in its own, stricter way
_RESTRICTED: _Rules = [
    *_HOST,
    *_PORTS,
    *_SYSCTLS,
    (
        "allowPrivilegeEscalation != false",
        _setting(_escalates, "must set securityContext.allowPrivilegeEscalation=false"),
    ),
    ("unrestricted capabilities", _capabilities),
    ("restricted volume types", _volume_types),
    ("runAsNonRoot != true", _non_root),
    ("runAsUser=0", _root_user),
    ("seccompProfile", _seccomp),
]
