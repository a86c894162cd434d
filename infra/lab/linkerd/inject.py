"""What the proxy-injector does to a pod: pure functions from an admission request to a JSON patch (RFC 6902)."""

from __future__ import annotations

import io
from typing import Any

from ruamel.yaml import YAML

from infra.lab.linkerd import sidecar, versions
from infra.lab.linkerd.proxy import MIN_REFRESH, POLICIES, UNAUTHENTICATED
from infra.lab.linkerd.sidecar import SidecarConfig

JSON = dict[str, Any]

INJECT = "linkerd.io/inject"
INBOUND_POLICY = "config.linkerd.io/default-inbound-policy"
_OWNER_LABELS = {
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "Job",
    "CronJob",
    "ReplicaSet",
    "ReplicationController",
}


def config_from_values(values_yaml: str, namespace: str) -> SidecarConfig:
    """The injector's configuration from the `values` key of ConfigMap linkerd-config."""
    values: JSON = YAML(typ="safe").load(io.StringIO(values_yaml)) or {}
    proxy_values = values.get("proxy") or {}
    additional = {entry["name"]: entry["value"] for entry in proxy_values.get("additionalEnv") or []}
    return SidecarConfig(
        namespace=namespace,
        version=values.get("linkerdVersion") or "edge-26.8.3",
        trust_domain=values.get("identityTrustDomain") or values.get("clusterDomain") or "cluster.local",
        native=bool(proxy_values.get("nativeSidecar", False)),  # a chart without the value knows no native sidecars
        min_refresh=additional.get(MIN_REFRESH, ""),
        inbound_policy=proxy_values.get("defaultInboundPolicy") or UNAUTHENTICATED,
    )


def skip_reason(pod: JSON, namespace_annotations: dict[str, str]) -> str:
    """Why the pod is left alone ("" if it is not), in the words the real injector uses in its reports."""
    spec, annotations = pod["spec"], pod["metadata"].get("annotations") or {}
    if spec.get("hostNetwork"):
        return "host_network"
    containers = [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
    if any(container["name"] == sidecar.CONTAINER for container in containers):
        return "sidecar_already_exists"
    wanted = annotations.get(INJECT)
    if wanted == "disabled":
        return "injection_disable_annotation_present"
    if wanted is None and namespace_annotations.get(INJECT) not in ("enabled", "ingress"):
        return "injection_enable_annotation_absent"
    return ""


def patch(
    pod: JSON,
    *,
    namespace: str,
    roots_pem: str,
    config: SidecarConfig,
    owner: tuple[str, str],
    namespace_annotations: dict[str, str] | None = None,
) -> list[JSON]:
    """The JSON patch that adds the sidecar.

    Args:
        namespace: The pod's.
        roots_pem: The raw ca-bundle.crt; it goes in as it is, and its hash is over these bytes.
        owner: (kind, name) of the workload the pod belongs to; ("Pod", name) for a bare pod.
        namespace_annotations: Configuration there is for each pod that has none of its own.
    """
    metadata, spec = pod["metadata"], pod["spec"]
    labels = {"linkerd.io/control-plane-ns": config.namespace, "linkerd.io/workload-ns": namespace}
    kind, name = owner
    if kind in _OWNER_LABELS:
        labels[f"linkerd.io/proxy-{kind.lower()}"] = name
    annotations = {
        "linkerd.io/created-by": f"linkerd/proxy-injector {config.version}",
        INJECT: "enabled",
        "linkerd.io/proxy-version": config.version,
    }
    if versions.hashes_injected_roots(config.version):
        annotations["linkerd.io/trust-root-sha256"] = sidecar.trust_root_sha256(roots_pem)
    ports = [
        str(port["containerPort"])
        for container in spec.get("containers") or []
        for port in container.get("ports") or []
    ]
    native = config.native
    configured = {**(namespace_annotations or {}), **(metadata.get("annotations") or {})}
    policy = configured.get(INBOUND_POLICY, "")  # one that it does not know the injector warns of, and leaves out
    container = sidecar.proxy_container(
        config,
        sidecar.literal_roots(roots_pem),
        native=native,
        ports=",".join(ports),
        inbound_policy=policy if policy in POLICIES else "",
    )
    operations = [_map_add("/metadata/labels", metadata.get("labels"), labels)]
    operations.append(_map_add("/metadata/annotations", metadata.get("annotations"), annotations))
    operations.append(_list_add("/spec/volumes", spec.get("volumes"), sidecar.volumes()))
    init = [sidecar.init_container(config)] + ([container] if native else [])
    # The network is set up, and a native proxy runs, before any init container of the pod's own.
    operations.append(_list_add("/spec/initContainers", spec.get("initContainers"), init, first=True))
    if not native:
        operations.append(_list_add("/spec/containers", spec["containers"], [container]))
    return [operation for group in operations for operation in group]


def _map_add(path: str, existing: dict[str, str] | None, entries: dict[str, str]) -> list[JSON]:
    if not existing:
        return [{"op": "add", "path": path, "value": entries}]
    return [
        {"op": "add", "path": f"{path}/{key.replace('~', '~0').replace('/', '~1')}", "value": value}
        for key, value in entries.items()
    ]


def _list_add(path: str, existing: list[JSON] | None, items: list[JSON], *, first: bool = False) -> list[JSON]:
    if not existing:
        return [{"op": "add", "path": path, "value": items}]
    if first:
        return [{"op": "add", "path": f"{path}/{index}", "value": item} for index, item in enumerate(items)]
    return [{"op": "add", "path": f"{path}/-", "value": item} for item in items]
