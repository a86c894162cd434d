"""Reading meshed pods as Kubernetes describes them: which container is the proxy, what it was born with, its ports."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from capstan.systems.linkerd.layout import (
    ADMIN_PORT,
    ADMIN_PORT_NAME,
    ANCHORS_ENV,
    COMPONENT_LABEL,
    CONTROL_PLANE,
    LOCAL_NAME_ENV,
    PROXY,
)
from capstan.trust.observation import Role

if TYPE_CHECKING:
    from capstan.cluster.values import Object

INJECT: Final = "linkerd.io/inject"
INJECTED: Final = ("enabled", "ingress")
NOT_INJECTED: Final = "disabled"
ADMISSION_LABEL: Final = "config.linkerd.io/admission-webhooks"
_REFERENCE: Final = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")


def proxy_container(pod_spec: Object) -> Object | None:
    """The container named linkerd-proxy: a native sidecar among the init containers (default since 2.20), or a plain
    container. Takes a pod's spec or a pod template's."""
    for group in ("initContainers", "containers"):
        for container in pod_spec.get(group) or []:
            if container.get("name") == PROXY:
                return dict(container)
    return None


def proxy_runs(pod: Object) -> bool:
    """Whether the proxy's process is up (its pod may still be Pending: native sidecars start first)."""
    status = pod.get("status", {})
    for group in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(group) or []:
            if container.get("name") == PROXY:
                return "running" in (container.get("state") or {})
    return False


def proxy_is_over(pod: Object) -> bool:
    """Whether the proxy's process has ended and none will take its place, although the pod is still there: the kubelet
    starts no container again in a pod that is being deleted, nor against the pod's `restartPolicy`."""
    ended: Object | None = None
    for group in ("initContainerStatuses", "containerStatuses"):
        for status in pod.get("status", {}).get(group) or []:
            if status.get("name") == PROXY:
                ended = (status.get("state") or {}).get("terminated")
    if ended is None:
        return False
    if "deletionTimestamp" in pod["metadata"]:
        return True
    if (proxy_container(pod["spec"]) or {}).get("restartPolicy") == "Always":
        return False  # a native sidecar
    restart = pod["spec"].get("restartPolicy", "Always")
    return restart == "Never" or (restart == "OnFailure" and not ended.get("exitCode"))


def has_ended(pod: Object) -> bool:
    """Completed, failed or evicted: no process of it is left, however long the object stays."""
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")


def only_proxy_runs(pod: Object) -> bool:
    """Whether every container of the pod's own has ended, and its proxy is what keeps it from ending: a Job with a
    proxy that is no native sidecar and that nobody tells to stop."""
    own = [
        status.get("state") or {}
        for status in pod.get("status", {}).get("containerStatuses") or []
        if status.get("name") != PROXY
    ]
    return bool(own) and proxy_runs(pod) and all("terminated" in state for state in own)


def why_not_injected(template: Object, namespace: Object) -> str:
    """Why a pod born of this template now would have no proxy; empty if nothing speaks against it.

    The rules of the injector (linkerd2, pkg/inject/report.go) and of its webhook's namespaceSelector: the pod's own
    annotation decides, else its namespace's, an empty one counts for nothing, and a value that Linkerd does not know
    forbids it in either place; pods on the host's network are left alone.

    Args:
        template: A pod template: metadata and spec.
        namespace: The Namespace object it lives in.
    """
    metadata = namespace["metadata"]
    if (metadata.get("labels") or {}).get(ADMISSION_LABEL) == "disabled":
        return f"its namespace has the label {ADMISSION_LABEL}=disabled"
    if (template.get("spec") or {}).get("hostNetwork"):
        return "its template is on the host's network"
    own = ((template.get("metadata") or {}).get("annotations") or {}).get(INJECT)
    theirs = (metadata.get("annotations") or {}).get(INJECT)
    for place, value in (("its namespace", theirs), ("its template", own)):
        if value and value not in (*INJECTED, NOT_INJECTED):
            return f"{place} has the annotation {INJECT}: {value}, which Linkerd does not know"
    if (own or theirs) in INJECTED:
        return ""
    if not own and not theirs:
        return f"neither its template nor its namespace has the annotation {INJECT}"
    return f"{'its template' if own else 'its namespace'} has the annotation {INJECT}: {own or theirs}"


def admin_port(container: Object) -> int:
    """Port of the proxy's admin server: the one named linkerd-admin, 4191 unless configured otherwise."""
    for port in container.get("ports") or []:
        if port.get("name") == ADMIN_PORT_NAME:
            return int(port["containerPort"])
    return ADMIN_PORT


def literal_anchors(container: Object) -> str | None:
    """The roots written into the pod at its birth; None in the control-plane namespace, where a reference stands."""
    for entry in container.get("env") or []:
        if entry.get("name") == ANCHORS_ENV and "value" in entry:
            return str(entry["value"])
    return None


def local_name(pod: Object, container: Object) -> str | None:
    """The proxy's own identity, with `$(_pod_sa)` and the like expanded as the kubelet expands them."""
    values: dict[str, str] = {}
    for entry in container.get("env") or []:
        value = str(entry["value"]) if "value" in entry else _field(pod, entry.get("valueFrom") or {})
        if value is not None:
            values[entry["name"]] = _expand(value, values)
    return values.get(LOCAL_NAME_ENV)


def role_of(pod: Object, namespace: str) -> Role:
    """Control plane: the components whose proxies must know a root before anything else may be restarted."""
    metadata = pod["metadata"]
    component = (metadata.get("labels") or {}).get(COMPONENT_LABEL, "")
    if metadata.get("namespace") == namespace and f"linkerd-{component}" in CONTROL_PLANE:
        return Role.CONTROL_PLANE
    return Role.WORKLOAD


def _field(pod: Object, source: dict[str, Any]) -> str | None:
    path = str((source.get("fieldRef") or {}).get("fieldPath", ""))
    metadata, spec = pod["metadata"], pod.get("spec", {})
    plain = {
        "metadata.name": metadata.get("name"),
        "metadata.namespace": metadata.get("namespace"),
        "metadata.uid": metadata.get("uid"),
        "spec.serviceAccountName": spec.get("serviceAccountName"),
        "spec.nodeName": spec.get("nodeName"),
        "status.podIP": pod.get("status", {}).get("podIP"),
        "status.hostIP": pod.get("status", {}).get("hostIP"),
    }
    value = plain.get(path)
    return str(value) if value is not None else None


def _expand(text: str, values: dict[str, str]) -> str:
    """`$(NAME)` of variables defined before; `$$` is a dollar sign; unknown names stay as they are."""
    return _REFERENCE.sub(lambda m: "$" if m[0] == "$$" else values.get(m[1], m[0]), text)
