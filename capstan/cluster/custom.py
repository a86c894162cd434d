"""Custom resources that restart their own pods when asked to, each in its operator's own way.

An operator knows more than a disruption budget does: which Kafka broker is in sync, which PostgreSQL is the primary
(whose budget never lets it be evicted). So where a kind has a documented way to ask for a rolling restart, that is used
and waited for. Every other custom resource's pods are evicted; see `capstan.cluster.eviction`.

Sources: Argo Rollouts, "Restarting Rollout Pods" (`spec.restartAt`); Strimzi, "Managing rolling updates" (annotation
`strimzi.io/manual-rolling-update`, taken away by the operator when it is done); CloudNativePG, `kubectl cnpg restart`
(annotation `kubectl.kubernetes.io/restartedAt` of the Cluster).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from capstan.cluster.resources import REPLICA_SETS, Resource
from capstan.cluster.values import PatchKind
from capstan.cluster.workloads import controller
from capstan.errors import Denied, NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object
    from capstan.trust.observation import Owner


@dataclass(frozen=True, slots=True)
class Asking:
    """How a kind is asked to restart its pods.

    Attributes:
        plural: As in the URL.
        path: Of the field that asks, from the object's top.
        value: What to write; None for the present time in RFC 3339.
    """

    plural: str
    path: tuple[str, ...]
    value: str | None = None


KINDS: Final[dict[tuple[str, str], Asking]] = {
    ("argoproj.io", "Rollout"): Asking("rollouts", ("spec", "restartAt")),
    ("core.strimzi.io", "StrimziPodSet"): Asking(
        "strimzipodsets", ("metadata", "annotations", "strimzi.io/manual-rolling-update"), "true"
    ),
    ("postgresql.cnpg.io", "Cluster"): Asking(
        "clusters", ("metadata", "annotations", "kubectl.kubernetes.io/restartedAt")
    ),
}


def ask(cluster: Cluster, owner: Owner, pods: Sequence[Object], now: datetime) -> str:
    """Ask the owner's operator to restart its pods, unless it has been asked since the youngest of these was born.

    Args:
        pods: The old pods, all controlled by this owner, directly or through a ReplicaSet.

    Returns:
        How it was asked, for a person; empty if this kind has no way, or if the right to ask is missing: then the pods
        have to be evicted.
    """
    reference = _reference(cluster, owner, pods[0])
    group, _, version = str((reference or {}).get("apiVersion", "")).partition("/")
    asking = KINDS.get((group, owner.kind))
    if asking is None:
        return ""
    resource = Resource(group, version, asking.plural, owner.kind)
    try:
        item = cluster.get(resource, owner.name, owner.namespace)
        if _asked(item, asking, pods):
            return f"its operator was asked already ({'.'.join(asking.path)})"
        cluster.patch(
            resource, owner.name, _body(asking, now), owner.namespace, kind=PatchKind.MERGE,
            resource_version=str(item["metadata"]["resourceVersion"]),
        )  # fmt: skip
    except (Denied, NotFound):
        return ""
    return f"its operator is asked ({'.'.join(asking.path)})"


def _reference(cluster: Cluster, owner: Owner, pod: Object) -> dict[str, Any] | None:
    reference = controller(pod)
    if reference is not None and reference["kind"] == "ReplicaSet" and owner.kind != "ReplicaSet":
        above = cluster.find(REPLICA_SETS, str(reference["name"]), owner.namespace)
        return controller(above) if above is not None else None
    return reference


def _asked(item: Object, asking: Asking, pods: Sequence[Object]) -> bool:
    value: Any = item
    for key in asking.path:
        value = value.get(key) if isinstance(value, dict) else None
    if not value or asking.value is not None:
        return bool(value) and value == asking.value
    try:
        asked = datetime.fromisoformat(str(value))
        return asked > max(datetime.fromisoformat(pod["metadata"]["creationTimestamp"]) for pod in pods)
    except (ValueError, TypeError):
        return False  # not a time, or one without a zone: written by somebody else, for something else


def _body(asking: Asking, now: datetime) -> dict[str, Any]:
    body: Any = asking.value if asking.value is not None else now.strftime("%Y-%m-%dT%H:%M:%SZ")
    for key in reversed(asking.path):
        body = {key: body}
    return dict(body)
