"""Who would replace a pod: ownerReferences walked up to the thing a person would restart."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from capstan.cluster.resources import (
    CRON_JOBS,
    DAEMON_SETS,
    DEPLOYMENTS,
    JOBS,
    REPLICA_SETS,
    REPLICATION_CONTROLLERS,
    STATEFUL_SETS,
    Resource,
)
from capstan.trust.observation import Owner

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object


class Method(StrEnum):
    """How the pods of an owner are replaced."""

    ROLLOUT = "rollout"
    """Its controller rolls when the pod template changes."""
    EVICT = "evict"
    """Its controller only re-creates what is gone: pods are evicted, under their disruption budgets."""
    NONE = "none"
    """Nothing brings the pod back, or bringing it back would repeat its work."""


RESOURCES: Final[dict[str, Resource]] = {
    resource.kind: resource
    for resource in (
        DEPLOYMENTS, STATEFUL_SETS, DAEMON_SETS, REPLICA_SETS, REPLICATION_CONTROLLERS, JOBS, CRON_JOBS,
    )
}  # fmt: skip

_ROLLED: Final = frozenset({"Deployment", "StatefulSet", "DaemonSet"})

WHY_NOT: Final[dict[str, str]] = {
    "Pod": "a pod without a controller: nothing would bring it back after it is deleted; delete it and apply it again",
    "Node": "a static pod: only its node's kubelet can restart it; move its manifest out of that folder and back",
    "Job": "a Job runs to its end; replacing its pod would repeat its work; wait, or delete it and apply it again",
    "CronJob": "a CronJob's next run starts a fresh pod; the present run ends by itself; wait, or delete its Job",
}
"""Each with what the operator can choose to do about it."""


@dataclass(frozen=True, slots=True)
class PodRef:
    """One pod, this incarnation of it."""

    namespace: str
    name: str
    uid: str


def method(owner: Owner) -> Method:
    """How pods of this owner are replaced; kinds unknown to Kubernetes itself (custom resources) are evicted."""
    if owner.kind in _ROLLED:
        return Method.ROLLOUT
    return Method.NONE if owner.kind in WHY_NOT else Method.EVICT


def controller(item: Object) -> dict[str, Any] | None:
    """The ownerReference that is marked as the object's controller."""
    for reference in item.get("metadata", {}).get("ownerReferences") or []:
        if reference.get("controller"):
            return dict(reference)
    return None


def is_live(pod: Object) -> bool:
    """Whether the pod has containers that run: not ended, not on its way out."""
    return pod.get("status", {}).get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]


def is_ready(pod: Object) -> bool:
    """The pod's Ready condition."""
    conditions = pod.get("status", {}).get("conditions") or []
    return any(entry.get("type") == "Ready" and entry.get("status") == "True" for entry in conditions)


def selects(selector: dict[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector matches; None matches nothing, an empty one everything (meta/v1, policy/v1)."""
    if selector is None:
        return False
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    for rule in selector.get("matchExpressions") or []:
        key, values = rule["key"], rule.get("values") or []
        if not {
            "In": labels.get(key) in values,
            "NotIn": labels.get(key) not in values,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }.get(rule["operator"], False):
            return False
    return True


class Owners:
    """Finds the owner of any pod, with one listing of ReplicaSets and one of Jobs for the whole cluster.

    Args:
        namespace: List those of this one only, where no others are asked about; empty lists all.

    A ReplicaSet or Job born after the listing is read by itself. A ReplicaSet of a Deployment counts as the Deployment,
    one of a custom resource (an Argo Rollout) as that resource, one on its own as itself.
    """

    def __init__(self, cluster: Cluster, namespace: str = "") -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._parents: dict[tuple[str, str, str], dict[str, Any] | None] = {}
        self._listed: set[str] = set()
        self._lock = threading.Lock()

    def of(self, pod: Object) -> Owner:
        """The pod's owner; the pod itself if nothing controls it."""
        namespace = str(pod["metadata"].get("namespace", ""))
        reference = controller(pod)
        if reference is None:
            return Owner("Pod", namespace, str(pod["metadata"]["name"]))
        kind, name = str(reference["kind"]), str(reference["name"])
        if kind in ("ReplicaSet", "Job"):
            parent = self._parent(kind, namespace, name)
            if parent is not None:
                return Owner(str(parent["kind"]), namespace, str(parent["name"]))
        return Owner(kind, namespace, name)

    def all_of(self, pods: Iterable[Object]) -> dict[Owner, tuple[PodRef, ...]]:
        """The owners of these pods, each with its pods."""
        found: dict[Owner, list[PodRef]] = {}
        for pod in pods:
            metadata = pod["metadata"]
            found.setdefault(self.of(pod), []).append(
                PodRef(str(metadata.get("namespace", "")), str(metadata["name"]), str(metadata.get("uid", "")))
            )
        return {owner: tuple(refs) for owner, refs in found.items()}

    def _parent(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        resource = RESOURCES[kind]
        key = (kind, namespace, name)
        with self._lock:
            if kind not in self._listed:
                for item in self._cluster.list(resource, self._namespace, metadata_only=True).items:
                    metadata = item["metadata"]
                    self._parents[kind, str(metadata.get("namespace", "")), str(metadata["name"])] = controller(item)
                self._listed.add(kind)
            if key not in self._parents:
                item_found = self._cluster.find(resource, name, namespace)
                self._parents[key] = controller(item_found) if item_found else None
            return self._parents[key]
