"""Sample applications to rotate under: meshed and un-meshed, of every kind, in several namespaces.

One namespace has no annotation of its own; its pods are injected because their templates say so. Tools that look at
namespaces only miss it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.lab.client import Informer
from infra.lab.objects import create, wait_until_available

if TYPE_CHECKING:
    from infra.lab.client import KubeClient

JSON = dict[str, Any]

INJECT = "linkerd.io/inject"
_PORT = 8080


@dataclass(frozen=True)
class Workload:
    """One application.

    Attributes:
        kind: Deployment, StatefulSet or DaemonSet.
        replicas: Ignored for a DaemonSet: one on every node.
        inject: The annotation on the pod template; "" for none.
    """

    kind: str
    namespace: str
    name: str
    replicas: int = 1
    inject: str = ""


@dataclass(frozen=True)
class Estate:
    """Namespaces (name -> whether they carry the inject annotation) and what runs in them."""

    namespaces: tuple[tuple[str, bool], ...]
    workloads: tuple[Workload, ...]

    def meshed_pods(self, nodes: int) -> int:
        """How many pods will be meshed on that many nodes."""
        annotated = dict(self.namespaces)
        return sum(
            nodes if workload.kind == "DaemonSet" else workload.replicas
            for workload in self.workloads
            if workload.inject == "enabled" or (annotated[workload.namespace] and workload.inject != "disabled")
        )


DEMO = Estate(
    namespaces=(("shop", True), ("ledger", True), ("stream", True), ("edge", False)),
    workloads=(
        Workload("Deployment", "shop", "storefront", 4),
        Workload("Deployment", "shop", "cart", 4),
        Workload("Deployment", "shop", "catalogue", 4),
        Workload("StatefulSet", "shop", "orders-db", 3),
        Workload("Deployment", "shop", "legacy-import", 1, inject="disabled"),
        Workload("Deployment", "ledger", "accounts", 4),
        Workload("Deployment", "ledger", "settlement", 3),
        Workload("StatefulSet", "ledger", "journal", 3),
        Workload("DaemonSet", "ledger", "audit-tap"),
        Workload("Deployment", "stream", "ingest", 4),
        Workload("Deployment", "stream", "query", 3),
        Workload("StatefulSet", "stream", "broker", 3),
        Workload("Deployment", "edge", "gateway", 4, inject="enabled"),
        Workload("DaemonSet", "edge", "cache", inject="enabled"),
        Workload("Deployment", "edge", "static-files", 2),
    ),
)
SMALL = Estate(
    namespaces=(("shop", True), ("edge", False)),
    workloads=(
        Workload("Deployment", "shop", "storefront", 2),
        Workload("StatefulSet", "shop", "orders-db", 2),
        Workload("Deployment", "edge", "gateway", 2, inject="enabled"),
        Workload("DaemonSet", "edge", "cache", inject="enabled"),
        Workload("Deployment", "edge", "static-files", 1),
    ),
)
SIZES = {"demo": DEMO, "small": SMALL}


def objects(estate: Estate) -> list[JSON]:
    """Namespaces first, then a ServiceAccount and a workload for each application."""
    found = [_namespace(name, annotated) for name, annotated in estate.namespaces]
    for workload in estate.workloads:
        found += [_account(workload), _workload(workload)]
    return found


async def deploy(client: KubeClient, estate: Estate, *, seconds: float = 120.0) -> None:
    """Create the estate and wait until all of it is available.

    Raises:
        ApiError: If the cluster refuses an object.
        TimeoutError: If it is not available within `seconds`.
    """
    for item in objects(estate):
        await create(client, item)
    kinds = sorted({f"{workload.kind.lower()}s" for workload in estate.workloads})
    informers = [Informer(client, f"/apis/apps/v1/{kind}") for kind in kinds]
    try:
        for informer in informers:
            await wait_until_available(informer, seconds)
    finally:
        for informer in informers:
            await informer.stop()


def _namespace(name: str, annotated: bool) -> JSON:
    annotations = {INJECT: "enabled"} if annotated else {}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "annotations": annotations}}


def _account(workload: Workload) -> JSON:
    metadata = {"name": workload.name, "namespace": workload.namespace}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}


def _workload(workload: Workload) -> JSON:
    labels = {"app": workload.name}
    spec: JSON = {
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {
                "labels": labels,
                "annotations": {INJECT: workload.inject} if workload.inject else {},
            },
            "spec": {
                "serviceAccountName": workload.name,
                "containers": [
                    {
                        "name": "app",
                        "image": f"registry.example/{workload.namespace}/{workload.name}:1.0.0",
                        "ports": [{"containerPort": _PORT, "name": "http"}],
                    }
                ],
            },
        },
    }
    if workload.kind != "DaemonSet":
        spec["replicas"] = workload.replicas
    if workload.kind == "StatefulSet":
        spec["serviceName"] = workload.name
    return {
        "apiVersion": "apps/v1",
        "kind": workload.kind,
        "metadata": {"name": workload.name, "namespace": workload.namespace, "labels": labels},
        "spec": spec,
    }
