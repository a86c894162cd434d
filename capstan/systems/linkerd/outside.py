"""Machines outside the cluster that are in the mesh (ExternalWorkload, Linkerd 2.15 and later).

Each runs a proxy with trust roots of its own, in a file that somebody put there, and has its leaf from a SPIRE agent
(Linkerd's page "Adding non-Kubernetes workloads to your mesh"). No API server leads to them, so nobody here can ask
which roots they hold, or restart them: a rotation that does not know of them cuts them off when the old root goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capstan.cluster.resources import Resource
from capstan.cluster.restart import Skipped
from capstan.errors import NotFound
from capstan.trust.observation import Owner

if TYPE_CHECKING:
    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object

GROUP: Final = "workload.linkerd.io"
EXTERNAL_WORKLOADS: Final = tuple(
    Resource(GROUP, version, "externalworkloads", "ExternalWorkload") for version in ("v1beta1", "v1alpha1")
)
"""The CRD's versions, the present one first (charts/linkerd-crds)."""
TURNED: Final = "capstan.dev/turned"
BY_HAND: Final = "by-hand"
"""Value of that annotation on an ExternalWorkload: somebody turns its roots beside each phase, and answers for it."""
CHOICE: Final = (
    "a machine outside the cluster, which nobody here can ask or restart: put the bundle on it, and restart it"
)


def external_workloads(cluster: Cluster) -> tuple[Object, ...]:
    """All of them; none where this Linkerd knows no such kind.

    Raises:
        Denied: They may not be listed. Others: as any read.
    """
    for resource in EXTERNAL_WORKLOADS:
        try:
            return cluster.list(resource).items
        except NotFound:
            continue
    return ()


def by_hand(workload: Object) -> bool:
    """Whether somebody has said that this machine is turned by hand."""
    return (workload["metadata"].get("annotations") or {}).get(TURNED) == BY_HAND


def described(workload: Object) -> str:
    """`vms/db-1 (spiffe://root.linkerd.cluster.local/db, 10.0.3.7)`."""
    metadata, spec = workload["metadata"], workload.get("spec") or {}
    tls = spec.get("meshTLS") or spec.get("meshTls") or {}
    known = [str(tls.get("identity", "")), *(str(entry.get("ip", "")) for entry in spec.get("workloadIPs") or [])]
    said = ", ".join(text for text in known if text)
    return f"{metadata['namespace']}/{metadata['name']}" + (f" ({said})" if said else "")


def left_to_their_keepers(cluster: Cluster) -> tuple[Skipped, ...]:
    """Each of them as a workload that a restart left alone."""
    return tuple(
        Skipped(Owner("ExternalWorkload", str(item["metadata"]["namespace"]), str(item["metadata"]["name"])), CHOICE)
        for item in external_workloads(cluster)
    )
