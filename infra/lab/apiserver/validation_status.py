"""Rules for what controllers report of workloads: counts are not negative, and none is greater than their total."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.lab.apiserver.validation_meta import bad, non_negative

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.lab.apiserver.status import Cause

Object = dict[str, Any]

_WHOLE, _READY = "cannot be greater than status.replicas", "cannot be greater than readyReplicas"
_REPLICAS = ("replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration")
_DEPLOYMENT = "observedGeneration replicas updatedReplicas readyReplicas availableReplicas unavailableReplicas"
_STATEFUL_SET = "replicas readyReplicas currentReplicas updatedReplicas availableReplicas observedGeneration"
_DAEMON_SET = (
    "currentNumberScheduled numberMisscheduled desiredNumberScheduled numberReady observedGeneration "
    "updatedNumberScheduled numberAvailable numberUnavailable collisionCount"
)
# kind -> counts, in the order in which they are looked at; those which are parts of `replicas`
_COUNTS: dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]] = {
    ("apps", "Deployment"): (
        (*_DEPLOYMENT.split(), "terminatingReplicas", "collisionCount"),
        ("updatedReplicas", "readyReplicas", "availableReplicas"),
    ),
    ("apps", "ReplicaSet"): (_REPLICAS, ("fullyLabeledReplicas", "readyReplicas", "availableReplicas")),
    ("", "ReplicationController"): (_REPLICAS, ("fullyLabeledReplicas", "readyReplicas", "availableReplicas")),
    ("apps", "StatefulSet"): (
        (*_STATEFUL_SET.split(), "collisionCount"),
        ("readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"),
    ),
    ("apps", "DaemonSet"): (tuple(_DAEMON_SET.split()), ()),
    ("policy", "PodDisruptionBudget"): (
        ("disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"),
        (),
    ),
}


def _rule(counts: tuple[str, ...], parts: tuple[str, ...]) -> Callable[[Object], list[Cause]]:
    def check(new: Object) -> list[Cause]:
        status = new.get("status") or {}
        out = [cause for name in counts for cause in non_negative(status, name, "status")]
        total = status.get("replicas") or 0
        held = {name: status.get(name) or 0 for name in parts}
        out += [bad(f"status.{name}", count, _WHOLE) for name, count in held.items() if count > total]
        available = status.get("availableReplicas") or 0
        if "availableReplicas" in parts and available > (status.get("readyReplicas") or 0):
            out.append(bad("status.availableReplicas", available, _READY))
        return out

    return check


RULES = {kind: _rule(*counts) for kind, counts in _COUNTS.items()}
