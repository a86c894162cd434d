"""Has this rollout ended? The rules of `kubectl rollout status`, as pure functions on raw objects.

Source: the documented meaning of the status fields of Deployment, StatefulSet and DaemonSet (Kubernetes API reference,
apps/v1) and the observable behaviour of kubectl 1.32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from capstan.cluster.values import Object


@dataclass(frozen=True, slots=True)
class Rollout:
    """One look at a rollout.

    Attributes:
        done: It has ended well.
        message: What is being waited for, or why it has failed; for a person.
        failed: Its controller has given up (a Deployment's progress deadline).
        updated: Pods of the new template.
        wanted: Pods there should be.
    """

    done: bool
    message: str
    failed: bool = False
    updated: int = 0
    wanted: int = 0


def judge(kind: str, item: Object) -> Rollout:
    """The state of the rollout of a Deployment, StatefulSet or DaemonSet (its `kind` is not sent in lists)."""
    spec, status = item.get("spec", {}), item.get("status", {})
    if int(status.get("observedGeneration", 0)) < int(item["metadata"].get("generation", 0)):
        return Rollout(False, "its controller has not seen the new template yet")
    if kind == "Deployment":
        return _deployment(spec, status)
    if kind == "StatefulSet":
        return _stateful_set(spec, status)
    return _daemon_set(status)


def strategy(item: Object) -> str:
    """`RollingUpdate`, `OnDelete` or `Recreate`."""
    spec = item.get("spec", {})
    return str((spec.get("strategy") or spec.get("updateStrategy") or {}).get("type", "RollingUpdate"))


def partition(item: Object) -> int:
    """Below this ordinal a StatefulSet keeps its pods at the old revision."""
    update = item.get("spec", {}).get("updateStrategy") or {}
    return int((update.get("rollingUpdate") or {}).get("partition") or 0)


def _deployment(spec: dict[str, Any], status: dict[str, Any]) -> Rollout:
    wanted = int(spec.get("replicas", 1))
    updated, total = int(status.get("updatedReplicas", 0)), int(status.get("replicas", 0))
    available = int(status.get("availableReplicas", 0))
    for condition in status.get("conditions") or []:
        if condition.get("type") == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
            message = f"exceeded its progress deadline: {condition.get('message', '')}"
            return Rollout(False, message, True, updated, wanted)
    if updated < wanted:
        return Rollout(False, f"{updated} of {wanted} pods are of the new template", False, updated, wanted)
    if total > updated:
        return Rollout(False, f"{total - updated} old pods are still to end", False, updated, wanted)
    if available < updated:
        return Rollout(False, f"{available} of {updated} new pods are available", False, updated, wanted)
    return Rollout(True, "rolled out", False, updated, wanted)


def _stateful_set(spec: dict[str, Any], status: dict[str, Any]) -> Rollout:
    wanted = int(spec.get("replicas", 1))
    updated, ready = int(status.get("updatedReplicas", 0)), int(status.get("readyReplicas", 0))
    update = spec.get("updateStrategy") or {}
    if update.get("type") == "OnDelete":
        if ready < wanted:
            return Rollout(False, f"{ready} of {wanted} pods are ready", False, updated, wanted)
        return Rollout(True, "all pods are ready", False, updated, wanted)
    kept = int((update.get("rollingUpdate") or {}).get("partition") or 0)
    if ready < wanted:
        return Rollout(False, f"{ready} of {wanted} pods are ready", False, updated, wanted)
    if kept > 0:
        if updated < wanted - kept:
            message = f"{updated} of {wanted - kept} pods above the partition are of the new template"
            return Rollout(False, message, False, updated, wanted)
        return Rollout(True, "rolled out above its partition", False, updated, wanted)
    if status.get("updateRevision") != status.get("currentRevision"):
        return Rollout(False, f"{updated} of {wanted} pods are of the new template", False, updated, wanted)
    return Rollout(True, "rolled out", False, updated, wanted)


def _daemon_set(status: dict[str, Any]) -> Rollout:
    wanted = int(status.get("desiredNumberScheduled", 0))
    updated, available = int(status.get("updatedNumberScheduled", 0)), int(status.get("numberAvailable", 0))
    if updated < wanted:
        return Rollout(False, f"{updated} of {wanted} nodes run the new template", False, updated, wanted)
    if available < wanted:
        return Rollout(False, f"{available} of {wanted} pods are available", False, updated, wanted)
    return Rollout(True, "rolled out", False, updated, wanted)
