"""What the checks of one Linkerd are judged on, read once; judging (`checks_*`) does no I/O.

Beside the view (declared roots, every proxy's roots and leaf) that is: the texts that Linkerd's own check compares,
pods that ended, what the API server needs to call Linkerd's webhooks and what they really serve, each identity's own
word about its issuer, the nodes' clocks, and Events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from capstan.cluster.parallel import map_bounded
from capstan.cluster.resources import CONFIG_MAPS, EVENTS, LEASES, NAMESPACES, NODES, PODS, REPLICA_SETS, SECRETS
from capstan.errors import CapstanError
from capstan.systems.base import RECENT
from capstan.systems.linkerd.checks_hooks import HOOKS, VIZ_HOOKS, HookReading, read_hook
from capstan.systems.linkerd.identity import Replica, read_replicas
from capstan.systems.linkerd.layout import (
    ANCHORS,
    CONFIG,
    IDENTITY,
    ISSUER,
    MESH_LABEL,
    TRUST_ROOTS,
    TRUST_ROOTS_KEY,
    config_values,
)
from capstan.systems.linkerd.observe import CONCURRENCY, PEER_TIMEOUT
from capstan.systems.linkerd.outside import external_workloads
from capstan.systems.linkerd.owners import release_drift

if TYPE_CHECKING:
    from collections.abc import Callable

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object
    from capstan.systems.linkerd.observe import View

EXTENSION_LABEL: Final = "linkerd.io/extension"
NODE_LEASES: Final = "kube-node-lease"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer(Generic[T]):
    """What a question to the API brought, or why it brought nothing. What could not be read never passes a check."""

    value: T
    problem: str = ""

    @classmethod
    def to(cls, question: Callable[[], T], otherwise: T) -> Answer[T]:
        """Ask; an error becomes the problem."""
        try:
            return cls(question())
        except CapstanError as error:
            return cls(otherwise, said(error))


@dataclass(frozen=True, slots=True)
class Evidence:
    """See the module. All lists of objects are as the API gave them.

    Attributes:
        now: The moment to judge for, aware UTC.
        since: How far back Events and restarts count.
        values: Of `linkerd-config`.
        bundle_text: `ca-bundle.crt`, to the byte.
        pods: Meshed pods, the ended ones too.
        extensions: Namespaces of extensions.
        extension_pods: Pods in those namespaces, meshed or not.
        leases: Of the nodes.
        clocks_read: When nodes and Leases were read, by our clock: a Lease renewed since `now` is not ahead of it.
        outside: Machines outside the cluster that are in the mesh.
        release_drift: How the Helm release that owns the trust roots differs from them; empty if it does not.
    """

    now: datetime
    view: View
    values: dict[str, Any]
    bundle_text: str
    issuer_secret: Answer[Object]
    pods: tuple[Object, ...]
    replica_sets: Answer[tuple[Object, ...]]
    nodes: Answer[tuple[Object, ...]]
    leases: Answer[tuple[Object, ...]]
    events: Answer[tuple[Object, ...]]
    extensions: Answer[tuple[Object, ...]]
    extension_pods: Answer[tuple[Object, ...]]
    replicas: tuple[Replica, ...]
    hooks: tuple[HookReading, ...]
    clocks_read: datetime
    has_config: bool = True
    since: timedelta = field(default=RECENT)
    release_drift: str = ""
    outside: Answer[tuple[Object, ...]] = field(default_factory=lambda: Answer(()))

    @property
    def namespace(self) -> str:
        """The control plane's."""
        return self.view.layout.namespace

    @property
    def anchors_text(self) -> str:
        """The trust anchors as most of `linkerd check` reads them: a value of `linkerd-config`."""
        return str(self.values.get(ANCHORS) or "")

    @property
    def control_plane(self) -> tuple[Object, ...]:
        """Meshed pods of the control plane's namespace."""
        return tuple(pod for pod in self.pods if pod["metadata"]["namespace"] == self.namespace)

    @property
    def data_plane(self) -> tuple[Object, ...]:
        """Meshed pods elsewhere."""
        return tuple(pod for pod in self.pods if pod["metadata"]["namespace"] != self.namespace)


def gather(
    cluster: Cluster,
    view: View,
    *,
    now: datetime,
    since: timedelta = RECENT,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    timeout: float = PEER_TIMEOUT,
) -> Evidence:
    """Read what the checks need beside the view. Never raises for one thing that cannot be read.

    Args:
        clock: The wall clock, by which a time to live becomes a time.
        timeout: Seconds for each question to a pod.

    Raises:
        CapstanError: The meshed pods cannot be listed.
    """
    namespace = view.layout.namespace
    roots = cluster.get(CONFIG_MAPS, TRUST_ROOTS, namespace)
    config = cluster.find(CONFIG_MAPS, CONFIG, namespace)
    pods = cluster.list(PODS, label_selector=f"{MESH_LABEL}={namespace}").items
    none: tuple[Object, ...] = ()
    extensions = Answer.to(lambda: cluster.list(NAMESPACES, label_selector=EXTENSION_LABEL).items, none)
    extension_pods = Answer.to(lambda: _pods_of(cluster, extensions.value), none)
    hooks = [(hook, namespace, pods) for hook in HOOKS]
    for item in extensions.value:
        if _extension(item) == "viz":
            hooks += [(hook, str(item["metadata"]["name"]), extension_pods.value) for hook in VIZ_HOOKS]
    return Evidence(
        now=now,
        since=since,
        view=view,
        values=config_values(config),
        has_config=config is not None,
        bundle_text=str((roots.get("data") or {}).get(TRUST_ROOTS_KEY, "")),
        release_drift=release_drift(cluster, roots, view.bundle.fingerprints),
        outside=Answer.to(lambda: external_workloads(cluster), none),
        issuer_secret=Answer.to(lambda: cluster.get(SECRETS, ISSUER, namespace), {}),
        pods=pods,
        replica_sets=Answer.to(lambda: cluster.list(REPLICA_SETS, namespace).items, none),
        nodes=Answer.to(lambda: cluster.list(NODES).items, none),
        leases=Answer.to(lambda: cluster.list(LEASES, NODE_LEASES).items, none),
        clocks_read=clock(),
        events=Answer.to(lambda: _identity_events(cluster, namespace), none),
        extensions=extensions,
        extension_pods=extension_pods,
        replicas=tuple(
            replica
            for replica in read_replicas(cluster, namespace, now=clock, timeout=timeout)
            if replica.started is not None
        ),
        hooks=tuple(
            map_bounded(lambda about: read_hook(cluster, *about, timeout=timeout), hooks, limit=CONCURRENCY)
        ),
    )  # fmt: skip


def said(error: CapstanError) -> str:
    """An error in one line: what, what was observed, and what to run."""
    after = f" (run: {error.next_command})" if error.next_command else ""
    return ": ".join(part for part in (error.what, error.observed) if part) + after


def container_runs(pod: Object, name: str) -> bool:
    """Whether this container of the pod is running."""
    status = pod.get("status") or {}
    return any(
        container.get("name") == name and "running" in (container.get("state") or {})
        for group in ("initContainerStatuses", "containerStatuses")
        for container in status.get(group) or []
    )


def pod_name(pod: Object) -> str:
    """`namespace/name`."""
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"


def _extension(namespace: Object) -> str:
    return str((namespace["metadata"].get("labels") or {}).get(EXTENSION_LABEL, ""))


def _pods_of(cluster: Cluster, namespaces: tuple[Object, ...]) -> tuple[Object, ...]:
    return tuple(pod for item in namespaces for pod in cluster.list(PODS, item["metadata"]["name"]).items)


def _identity_events(cluster: Cluster, namespace: str) -> tuple[Object, ...]:
    selector = f"involvedObject.kind=Deployment,involvedObject.name={IDENTITY}"
    return cluster.list(EVENTS, namespace, field_selector=selector).items
