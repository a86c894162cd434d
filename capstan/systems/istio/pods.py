"""Reading meshed pods as Kubernetes describes them: which container is the proxy, what it was born with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from capstan.systems.istio.layout import (
    CITADEL_CONTAINER,
    DISCOVERY,
    PROXY,
    REVISION_LABEL,
    ZTUNNEL,
    find_container,
    proxy_config,
)
from capstan.systems.istio.layout import literal_env as _literal_env
from capstan.trust.observation import Role

if TYPE_CHECKING:
    from capstan.cluster.values import Object

ADMIN_PORT: Final = 15000


def proxy_container(pod_spec: Object) -> Object | None:
    """The container named istio-proxy: a plain one, or a native sidecar among the init containers."""
    return find_container(pod_spec, PROXY)


def is_ztunnel(pod: Object) -> bool:
    """A pod of the ambient data plane's DaemonSet."""
    labels = pod["metadata"].get("labels") or {}
    return labels.get("app") == ZTUNNEL and any(
        f"/{ZTUNNEL}" in f"/{container.get('image', '')}" or container.get("name") == PROXY
        for container in pod["spec"].get("containers") or []
    )


def container_runs(pod: Object, name: str = PROXY) -> bool:
    """Whether this container's process is up (its pod may still be Pending: native sidecars start first)."""
    status = pod.get("status", {})
    for group in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(group) or []:
            if container.get("name") == name:
                return "running" in (container.get("state") or {})
    return False


def proxy_env(container: Object) -> dict[str, str]:
    """Literal environment of a proxy, and what its ProxyConfig's proxyMetadata adds to it."""
    env = _literal_env(container)
    metadata = proxy_config(env).get("proxyMetadata")
    return {**({str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else {}), **env}


def admin_port(env: dict[str, str]) -> int:
    """Envoy's admin port: 15000 unless ProxyConfig's proxyAdminPort says otherwise."""
    value: Any = proxy_config(env).get("proxyAdminPort")
    return int(value) if isinstance(value, int) and value else ADMIN_PORT


def runs_envoy(pod: Object, env: dict[str, str]) -> bool:
    """False for proxyless gRPC, where the agent hands certificates to the application itself."""
    templates = (pod["metadata"].get("annotations") or {}).get("inject.istio.io/templates", "")
    return "grpc-agent" not in templates and env.get("DISABLE_ENVOY", "").lower() != "true"


def kind_of(pod: Object) -> str:
    """`sidecar`, `gateway`, `waypoint` or `ztunnel`."""
    if is_ztunnel(pod):
        return "ztunnel"
    labels = pod["metadata"].get("labels") or {}
    if "gateway.istio.io/managed" in labels and "waypoint" in str(labels["gateway.istio.io/managed"]):
        return "waypoint"
    arguments = [str(item) for item in (proxy_container(pod["spec"]) or {}).get("args") or []]
    if arguments[:2] == ["proxy", "waypoint"]:
        return "waypoint"
    return "gateway" if arguments[:2] == ["proxy", "router"] else "sidecar"


def revision_of(pod: Object) -> str:
    """The revision that injected the pod; empty where it does not say."""
    metadata = pod["metadata"]
    for source in (metadata.get("annotations") or {}, metadata.get("labels") or {}):
        if source.get(REVISION_LABEL):
            return str(source[REVISION_LABEL])
    return ""


def role_of(pod: Object, namespace: str) -> Role:
    """Control plane: a pod of Pilot, Citadel and their like that has a sidecar of its own (before 1.5)."""
    own = pod["metadata"].get("namespace") == namespace
    control = any(find_container(pod["spec"], name) for name in (DISCOVERY, CITADEL_CONTAINER, "mixer", "galley"))
    return Role.CONTROL_PLANE if own and control else Role.WORKLOAD
