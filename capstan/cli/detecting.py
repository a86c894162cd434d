"""Which trust system a cluster has, where nobody said so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capstan.cluster.resources import DEPLOYMENTS
from capstan.config import System
from capstan.errors import Denied, InvalidInput
from capstan.systems.opening import connect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capstan.cluster.client import Cluster
    from capstan.config import ClusterRef

# The labels of what signs leaves: Linkerd's identity, istiod, and before Istio 1.5 Citadel.
_IDENTITY: Final = "linkerd.io/control-plane-component=identity"
_ISTIOD: Final = "app=istiod"
_CITADEL: Final = "istio=citadel"


def detect(reference: ClusterRef, namespace: str | None = None, among: Sequence[System] = tuple(System)) -> System:
    """The one trust system whose control plane runs in a cluster; the first of `among` where none is found.

    Args:
        namespace: Look only there; default: the namespace that each system comes with.
        among: Systems to look for.

    Raises:
        InvalidInput: There is more than one, or the kubeconfig cannot be used.
        CapstanError: The cluster cannot be read.
    """
    cluster = connect(reference)
    try:
        found = [system for system in among if _runs(cluster, system, namespace or system.namespace)]
    finally:
        cluster.close()
    if System.ISTIO in found and namespace == System.AKS_ISTIO.namespace:
        found.remove(System.ISTIO)
    elif System.AKS_ISTIO in found and namespace not in (None, System.AKS_ISTIO.namespace):
        found.remove(System.AKS_ISTIO)
    if len(found) > 1:
        raise InvalidInput(
            "this cluster has more than one trust system", where=f"cluster {reference.name}",
            observed=", ".join(system.value for system in found), expected="one of them to be named",
            next_command=f"the same command with --system {found[0].value}",
        )  # fmt: skip
    return found[0] if found else among[0]


def _runs(cluster: Cluster, system: System, namespace: str) -> bool:
    selectors = {System.LINKERD: (_IDENTITY,), System.ISTIO: (_ISTIOD, _CITADEL), System.AKS_ISTIO: (_ISTIOD,)}[system]
    try:
        return any(
            cluster.list(DEPLOYMENTS, namespace, label_selector=selector, metadata_only=True).items
            for selector in selectors
        )
    except Denied:
        return False  # whoever may not look into a namespace does not rotate what is in it
