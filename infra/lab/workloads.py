"""Sample applications to rotate under: meshed and un-meshed, of every kind, in several namespaces.

One namespace has no mark of its own; its pods are injected because their templates say so. Tools that look at
namespaces only miss it. How a mark reads is the mesh's: an annotation for Linkerd, labels for Istio.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from infra.lab.client import Informer
from infra.lab.objects import create, wait_until_available

if TYPE_CHECKING:
    from infra.lab.client import KubeClient

JSON = dict[str, Any]

INJECT = "linkerd.io/inject"
ISTIO_INJECT = "sidecar.istio.io/inject"
ISTIO_NAMESPACE = "istio-injection"
ISTIO_REVISION = "istio.io/rev"
AMBIENT_MODE = "istio.io/dataplane-mode"
_PORT = 8080


class Injection(Protocol):
    """How a mesh is told what to inject: metadata (labels, annotations) of namespaces and pod templates."""

    def namespace(self, index: int) -> JSON:
        """Of the meshed namespace with this index."""

    def pod(self, inject: str) -> JSON:
        """Of a pod template that is `enabled` or `disabled` by itself."""


class LinkerdInjection:
    """By annotations."""

    def namespace(self, index: int) -> JSON:
        """Every namespace alike."""
        del index
        return {"annotations": {INJECT: "enabled"}}

    def pod(self, inject: str) -> JSON:
        """The same annotation."""
        return {"annotations": {INJECT: inject}}


@dataclass(frozen=True)
class IstioInjection:
    """By labels.

    Attributes:
        revisions: The meshed namespaces are spread over them; `default` is the one that istio-injection=enabled means.
        annotated: Pods are told by an annotation, as before Istio 1.10.
    """

    revisions: tuple[str, ...] = ("default",)
    annotated: bool = False

    def namespace(self, index: int) -> JSON:
        """`istio-injection=enabled`, or the revision."""
        revision = self.revisions[index % len(self.revisions)]
        return {"labels": {ISTIO_NAMESPACE: "enabled"} if revision == "default" else {ISTIO_REVISION: revision}}

    def pod(self, inject: str) -> JSON:
        """`sidecar.istio.io/inject`, or the revision where the namespace names none."""
        if self.annotated:
            return {"annotations": {ISTIO_INJECT: str(inject == "enabled").lower()}}
        if inject == "disabled":
            return {"labels": {ISTIO_INJECT: "false"}}
        revision = self.revisions[-1]
        return {"labels": {ISTIO_INJECT: "true"} if revision == "default" else {ISTIO_REVISION: revision}}


@dataclass(frozen=True)
class Workload:
    """One application.

    Attributes:
        kind: Deployment, StatefulSet or DaemonSet.
        replicas: Ignored for a DaemonSet: one on every node.
        inject: The mark on the pod template, `enabled` or `disabled`; "" for none.
        annotations: Of the pod template besides.
    """

    kind: str
    namespace: str
    name: str
    replicas: int = 1
    inject: str = ""
    annotations: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Estate:
    """Namespaces (name -> whether they are marked for injection) and what runs in them.

    Attributes:
        ambient: Names of those whose pods a node proxy serves, without a sidecar.
    """

    namespaces: tuple[tuple[str, bool], ...]
    workloads: tuple[Workload, ...]
    ambient: tuple[str, ...] = ()

    def meshed_pods(self, nodes: int) -> int:
        """How many pods will be meshed on that many nodes."""
        marked = dict(self.namespaces)
        return sum(
            nodes if workload.kind == "DaemonSet" else workload.replicas
            for workload in self.workloads
            if workload.inject == "enabled" or (marked[workload.namespace] and workload.inject != "disabled")
        )

    def with_workload(self, workload: Workload) -> Estate:
        """One application more."""
        return dataclasses.replace(self, workloads=(*self.workloads, workload))

    def marked_everywhere(self) -> Estate:
        """The same pods meshed, where only marked namespaces are looked at: the others' pods opt out one by one."""
        marked = dict(self.namespaces)
        workloads = tuple(
            w if marked[w.namespace] or w.inject else dataclasses.replace(w, inject="disabled") for w in self.workloads
        )
        return dataclasses.replace(
            self, namespaces=tuple((name, True) for name, _ in self.namespaces), workloads=workloads
        )

    def with_ambient(self, namespace: str, *workloads: Workload) -> Estate:
        """A namespace in ambient mode, and what runs in it."""
        return Estate((*self.namespaces, (namespace, False)), (*self.workloads, *workloads), (*self.ambient, namespace))


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


def objects(estate: Estate, injection: Injection) -> list[JSON]:
    """Namespaces first, then a ServiceAccount and a workload for each application."""
    found: list[JSON] = []
    marked = [name for name, is_marked in estate.namespaces if is_marked]
    for name, is_marked in estate.namespaces:
        metadata = injection.namespace(marked.index(name)) if is_marked else {}
        if name in estate.ambient:
            metadata = {"labels": {AMBIENT_MODE: "ambient"}}
        found.append({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, **metadata}})
    for workload in estate.workloads:
        found += [_account(workload), _workload(workload, injection)]
    return found


async def deploy(client: KubeClient, estate: Estate, injection: Injection, *, seconds: float = 120.0) -> None:
    """Create the estate and wait until all of it is available.

    Raises:
        ApiError: If the cluster refuses an object.
        TimeoutError: If it is not available within `seconds`.
    """
    for item in objects(estate, injection):
        await create(client, item)
    kinds = sorted({f"{workload.kind.lower()}s" for workload in estate.workloads})
    informers = [Informer(client, f"/apis/apps/v1/{kind}") for kind in kinds]
    try:
        for informer in informers:
            await wait_until_available(informer, seconds)
    finally:
        for informer in informers:
            await informer.stop()


def _account(workload: Workload) -> JSON:
    metadata = {"name": workload.name, "namespace": workload.namespace}
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}


def _workload(workload: Workload, injection: Injection) -> JSON:
    labels = {"app": workload.name}
    marks = injection.pod(workload.inject) if workload.inject else {}
    spec: JSON = {
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {
                "labels": labels | marks.get("labels", {}),
                "annotations": dict(workload.annotations) | marks.get("annotations", {}),
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
