"""What a fresh cluster has before anybody creates anything: namespaces, priority classes, the kubernetes Service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .certificates import SERVICE_IP
from .objects import canonical

if TYPE_CHECKING:
    from .api import Api

NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")


def create_defaults(api: Api) -> None:
    """Create what is missing; safe to call on a store that has been used."""
    for name in NAMESPACES:
        _ensure(
            api,
            "namespaces",
            {
                "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
                "spec": {"finalizers": ["kubernetes"]},
                "status": {"phase": "Active"},
            },
        )
    for name, value, description in (
        ("system-cluster-critical", 2000000000, "Used for system critical pods that must run in the cluster."),
        ("system-node-critical", 2000001000, "Used for system critical pods that must not be moved from their node."),
    ):
        body = {"value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority"}
        _ensure(api, "priorityclasses.scheduling.k8s.io", {"metadata": {"name": name, "generation": 1}, **body})
    _ensure(
        api,
        "services",
        {
            "metadata": {
                "name": "kubernetes",
                "namespace": "default",
                "labels": {"component": "apiserver", "provider": "kubernetes"},
            },
            "spec": {
                "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": 6443}],
                "clusterIP": SERVICE_IP,
                "clusterIPs": [SERVICE_IP],
                "type": "ClusterIP",
                "sessionAffinity": "None",
                "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack",
                "internalTrafficPolicy": "Cluster",
            },
            "status": {"loadBalancer": {}},
        },
    )


def ensure_client_ca(api: Api, ca_pem: str, front_proxy_ca_pem: str) -> None:
    """ConfigMap kube-system/extension-apiserver-authentication: how extension servers learn whom to trust."""
    data = {
        "client-ca-file": ca_pem,
        "requestheader-allowed-names": '["front-proxy-client"]',
        "requestheader-client-ca-file": front_proxy_ca_pem,
        "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
        "requestheader-group-headers": '["X-Remote-Group"]',
        "requestheader-username-headers": '["X-Remote-User"]',
    }
    metadata = {"name": "extension-apiserver-authentication", "namespace": "kube-system"}
    _ensure(api, "configmaps", {"metadata": metadata, "data": data})


def _ensure(api: Api, resource: str, body: dict[str, Any]) -> None:
    kind = api.registry.by_resource(resource)
    if kind is None:
        raise LookupError(f"the registry has no resource {resource}")
    metadata = body["metadata"]
    key = (metadata.get("namespace", ""), metadata["name"])
    if api.store.get(resource, *key) is not None:
        return
    metadata |= {"uid": api.new_uid(), "creationTimestamp": api.timestamp()}
    api.store.create(resource, key, canonical(body, kind))
