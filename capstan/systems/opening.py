"""From a trust domain's declaration to the adapters of its clusters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from capstan.cluster.client import Cluster

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
        InvalidInput: A kubeconfig cannot be used.
    """
    from capstan.systems.linkerd import Linkerd

    clusters = {reference.name: connect(reference) for reference in domain.clusters}
    return clusters, {
        name: Linkerd(cluster, namespace=domain.control_plane_namespace) for name, cluster in clusters.items()
    }
