"""From a trust domain's declaration to the adapters of its clusters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from capstan.cluster.client import Cluster
from capstan.config import System, request_timeout
from capstan.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capstan.config import ClusterRef, TrustDomain
    from capstan.systems.base import TrustSystem
    from capstan.systems.linkerd.webhooks import LinkerdWebhook

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


def connect(reference: ClusterRef) -> Cluster:
    """The cluster's API; without kubeconfig and context, in a pod, the one the pod runs in.

    Raises:
        InvalidInput: The kubeconfig, or `$CAPSTAN_REQUEST_TIMEOUT`, cannot be used.
    """
    bare = reference.kubeconfig is None and reference.context is None
    return Cluster.connect(
        kubeconfig=reference.kubeconfig,
        context=reference.context,
        name=reference.name,
        timeout=request_timeout(),
        in_cluster=bare and _SERVICE_ACCOUNT.exists() and not (Path.home() / ".kube" / "config").exists(),
    )


def open_systems(domain: TrustDomain) -> tuple[dict[str, Cluster], Mapping[str, TrustSystem]]:
    """Connections and adapters by cluster name.

    Raises:
        InvalidInput: A kubeconfig, or the vault of a plug-in CA, cannot be used.
    """
    clusters = {reference.name: connect(reference) for reference in domain.clusters}
    return clusters, {
        reference.name: _adapter(domain, reference, clusters[reference.name]) for reference in domain.clusters
    }


def open_webhooks(domain: TrustDomain, clusters: Mapping[str, Cluster]) -> Mapping[str, LinkerdWebhook]:
    """Every webhook of Linkerd in these clusters, by `CLUSTER/HOOK`.

    Raises:
        InvalidInput: The domain is no Linkerd's.
        CapstanError: A cluster cannot be read.
    """
    from capstan.systems.linkerd.webhooks import installed

    if domain.system is not System.LINKERD:
        raise InvalidInput(
            "only Linkerd's webhook certificates can be rotated", where=f"trust domain {domain.name}",
            observed=f"trust system {domain.system.value}", expected="trust system linkerd",
            next_command="capstan rotate --help",
        )  # fmt: skip
    found = (hook for cluster in clusters.values() for hook in installed(cluster, domain.control_plane_namespace))
    return {hook.cluster_name: hook for hook in found}


def _adapter(domain: TrustDomain, reference: ClusterRef, cluster: Cluster) -> TrustSystem:
    namespace = domain.control_plane_namespace
    match domain.system:
        case System.LINKERD:
            from capstan.systems.linkerd import Linkerd

            return Linkerd(cluster, namespace=namespace)
        case System.ISTIO | System.AKS_ISTIO:
            from capstan.systems.istio import open_istio

            return open_istio(domain, reference, cluster)
