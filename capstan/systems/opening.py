"""From a trust domain's declaration to the adapters of its clusters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from capstan.cluster.client import Cluster
from capstan.config import System

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capstan.config import ClusterRef, TrustDomain
    from capstan.systems.base import TrustSystem

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


def connect(reference: ClusterRef) -> Cluster:
    """The cluster's API; without kubeconfig and context, in a pod, the one the pod runs in.

    Raises:
        InvalidInput: The kubeconfig cannot be used.
    """
    bare = reference.kubeconfig is None and reference.context is None
    return Cluster.connect(
        kubeconfig=reference.kubeconfig,
        context=reference.context,
        name=reference.name,
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


def _adapter(domain: TrustDomain, reference: ClusterRef, cluster: Cluster) -> TrustSystem:
    namespace = domain.control_plane_namespace
    match domain.system:
        case System.LINKERD:
            from capstan.systems.linkerd import Linkerd

            return Linkerd(cluster, namespace=namespace)
        case System.ISTIO | System.AKS_ISTIO:
            from capstan.systems.istio import open_istio

            return open_istio(domain, reference, cluster)
