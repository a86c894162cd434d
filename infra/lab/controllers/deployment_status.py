"""A Deployment's status. Pure, apart from reading the clock.

Reasons and messages are those a real controller writes; `kubectl rollout status` and `kubectl wait` depend on them.
"""

from __future__ import annotations

from typing import Any

from infra.lab.controllers.framework import compact
from infra.lab.controllers.pods import condition, now, parse_time, timestamp
from infra.lab.controllers.rollout import size, unavailable

JSON = dict[str, Any]


def counters(item: JSON, sets: list[JSON], new: JSON | None) -> JSON:
    """The numbers of the status, from the ReplicaSets' own status."""

    def total(name: str, among: list[JSON]) -> int:
        return sum((s.get("status") or {}).get(name) or 0 for s in among)

    wanted = sum(size(s) for s in sets)
    available = total("availableReplicas", sets)
    return {
        "observedGeneration": item["metadata"].get("generation", 0),
        "replicas": total("replicas", sets),
        "updatedReplicas": total("replicas", [new]) if new is not None else 0,
        "readyReplicas": total("readyReplicas", sets),
        "availableReplicas": available,
        "unavailableReplicas": max(wanted - available, 0),
        "terminatingReplicas": total("terminatingReplicas", sets),
        "collisionCount": (item.get("status") or {}).get("collisionCount"),
    }


def complete(item: JSON, status: JSON) -> bool:
    """All pods are new, and all of them are available."""
    return bool(
        status.get("updatedReplicas", 0) == size(item)
        and status.get("replicas", 0) == size(item)
        and status.get("availableReplicas", 0) == size(item)
        and status.get("observedGeneration", 0) >= item["metadata"].get("generation", 0)
    )


def compute(item: JSON, sets: list[JSON], new: JSON | None) -> tuple[JSON, float | None]:
    """The whole status, and after how many seconds the progress deadline has to be looked at again."""
    fresh = counters(item, sets, new)
    conditions = [c for c in (item.get("status") or {}).get("conditions") or [] if c["type"] != "Available"]
    enough = fresh["availableReplicas"] >= size(item) - unavailable(item)
    conditions.append(
        _kept(
            item,
            _made("Available", "True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
            if enough
            else _made(
                "Available", "False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability."
            ),
        )
    )
    conditions = _with_failures(item, conditions, sets)
    status = {**fresh, "conditions": conditions}
    again = None
    deadline = item["spec"].get("progressDeadlineSeconds")
    if deadline is not None and not item["spec"].get("paused") and deadline < 2**31 - 1:
        progress, again = _progress(item, fresh, new, deadline)
        if progress is not None:
            status["conditions"] = [c for c in conditions if c["type"] != "Progressing"] + [progress]
    return compact(status, ["terminatingReplicas"]), again


def pause_conditions(item: JSON) -> list[JSON] | None:
    """Conditions after `spec.paused` was switched, None when nothing has to change."""
    if item["spec"].get("progressDeadlineSeconds") is None:
        return None
    known = condition(item, "Progressing")
    reason = known["reason"] if known else ""
    if reason == "ProgressDeadlineExceeded":
        return None
    if item["spec"].get("paused") and reason != "DeploymentPaused":
        fresh = _made("Progressing", "Unknown", "DeploymentPaused", "Deployment is paused")
    elif not item["spec"].get("paused") and reason == "DeploymentPaused":
        fresh = _made("Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed")
    else:
        return None
    others = [c for c in (item.get("status") or {}).get("conditions") or [] if c["type"] != "Progressing"]
    return [*others, _kept(item, fresh)]


def created_conditions(item: JSON, new: JSON) -> list[JSON] | None:
    """Conditions after a ReplicaSet was created: the progress deadline counts anew. None without a deadline."""
    if item["spec"].get("progressDeadlineSeconds") is None:
        return None
    message = f'Created new replica set "{new["metadata"]["name"]}"'
    fresh = _made("Progressing", "True", "NewReplicaSetCreated", message)
    others = [c for c in (item.get("status") or {}).get("conditions") or [] if c["type"] != "Progressing"]
    return [*others, _kept(item, fresh)]


def _progress(item: JSON, fresh: JSON, new: JSON | None, deadline: int) -> tuple[JSON | None, float | None]:
    known = condition(item, "Progressing")
    subject = (
        f'ReplicaSet "{new["metadata"]["name"]}"' if new is not None else f'Deployment "{item["metadata"]["name"]}"'
    )
    was_complete = known is not None and known["reason"] == "NewReplicaSetAvailable"
    if was_complete and fresh["replicas"] == fresh["updatedReplicas"]:
        return None, None
    if complete(item, fresh):
        message = f"{subject} has successfully progressed."
        return _kept(item, _made("Progressing", "True", "NewReplicaSetAvailable", message)), None
    if known is None or _moved(item, fresh) or was_complete:
        message = f"{subject} is progressing."
        return _kept(item, _made("Progressing", "True", "ReplicaSetUpdated", message)), float(deadline) + 0.1
    if known["reason"] == "ProgressDeadlineExceeded":
        return None, None
    waited = (now() - parse_time(known["lastUpdateTime"])).total_seconds()
    if waited >= deadline:
        message = f"{subject} has timed out progressing."
        return _kept(item, _made("Progressing", "False", "ProgressDeadlineExceeded", message)), None
    return None, deadline - waited + 0.05


def _moved(item: JSON, fresh: JSON) -> bool:
    """The rollout has got further since the last status."""
    old = item.get("status") or {}

    def was(name: str) -> int:
        return int(old.get(name, 0))

    return bool(
        fresh["updatedReplicas"] > was("updatedReplicas")
        or fresh["replicas"] - fresh["updatedReplicas"] < was("replicas") - was("updatedReplicas")
        or fresh["readyReplicas"] > was("readyReplicas")
        or fresh["availableReplicas"] > was("availableReplicas")
    )


def _with_failures(item: JSON, conditions: list[JSON], sets: list[JSON]) -> list[JSON]:
    others = [c for c in conditions if c["type"] != "ReplicaFailure"]
    failed = next((c for s in sets if (c := condition(s, "ReplicaFailure")) is not None), None)
    if failed is None:
        return others
    return [*others, _kept(item, _made("ReplicaFailure", failed["status"], failed["reason"], failed["message"]))]


def _made(kind: str, holds: str, reason: str, message: str) -> JSON:
    moment = timestamp()
    return {
        "type": kind,
        "status": holds,
        "lastUpdateTime": moment,
        "lastTransitionTime": moment,
        "reason": reason,
        "message": message,
    }


def _kept(item: JSON, fresh: JSON) -> JSON:
    """As it was if status and reason are the same; else new, with the old lastTransitionTime if the status is the same.

    Progress renews lastUpdateTime although status and reason stay, for the deadline counts from there.
    """
    old = condition(item, fresh["type"])
    if old is None or old["status"] != fresh["status"]:
        return fresh
    if old["reason"] == fresh["reason"] and fresh["reason"] != "ReplicaSetUpdated":
        return old
    return {**fresh, "lastTransitionTime": old["lastTransitionTime"]}
