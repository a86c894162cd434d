"""Replacing pods one at a time by evicting them, and saying why pods are not ready."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from capstan.cluster.follow import follow
from capstan.cluster.resources import PODS
from capstan.cluster.workloads import RESOURCES, PodRef, controller, is_ready
from capstan.errors import Conflict, GateTimedOut, Retryable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object
    from capstan.trust.observation import Owner

PAUSE: Final = 2.0  # between two tries when a disruption budget says no; a budget's 429 has no Retry-After


def pods_of(cluster: Cluster, item: Object) -> list[Object]:
    """The pods that this workload controls, also those on their way out."""
    metadata = item["metadata"]
    listing = cluster.list(PODS, metadata["namespace"], label_selector=_selector(item))
    return [pod for pod in listing.items if (controller(pod) or {}).get("uid") == metadata["uid"]]


def old_pods(cluster: Cluster, kind: str, item: Object, annotation: str, stamp: str) -> list[Object]:
    """The workload's pods that were born before its template got the stamp.

    A pod born of the stamped template carries the stamp. A StatefulSet's pod below the partition never does, so there
    the pod's birth is compared with the time the API server noted for our write (one clock, whole seconds; a pod born
    in that same second counts as old, and is replaced once more for nothing).
    """
    stamped_at = _stamped_at(item)
    old = []
    for pod in pods_of(cluster, item):
        if "deletionTimestamp" in pod["metadata"]:
            continue
        if (pod["metadata"].get("annotations") or {}).get(annotation) == stamp:
            continue
        born = datetime.fromisoformat(pod["metadata"]["creationTimestamp"])
        if kind == "StatefulSet" and stamped_at is not None and born > stamped_at:
            continue
        old.append(pod)
    return old


def still_there(cluster: Cluster, refs: Sequence[PodRef]) -> list[Object]:
    """Those of the pods that still exist in the same incarnation."""
    found = []
    for ref in refs:
        pod = cluster.find(PODS, ref.name, ref.namespace)
        if pod is not None and pod["metadata"]["uid"] == ref.uid and "deletionTimestamp" not in pod["metadata"]:
            found.append(pod)
    return found


def replace_pods(cluster: Cluster, pods: Sequence[Object], *, until: float, say: Callable[[str], None]) -> int:
    """Evict these pods one after the other, each time waiting until it is gone and its siblings are ready again.

    Returns:
        How many were evicted.

    Raises:
        GateTimedOut: A disruption budget, or a replacement that never became ready, held it up past `until`.
    """
    for count, pod in enumerate(pods, 1):
        name = pod["metadata"]["name"]
        say(f"evicting {name} ({count} of {len(pods)})")
        ready_before = sum(1 for sibling in _siblings(cluster, pod) if is_ready(sibling))
        _evict(cluster, pod, until, say)
        _await_replacement(cluster, pod, ready_before, until)
    return len(pods)


def troubles(cluster: Cluster, owner: Owner) -> tuple[str, ...]:
    """Why pods of this owner are not ready, one line a pod."""
    resource = RESOURCES.get(owner.kind)
    item = cluster.find(resource, owner.name, owner.namespace) if resource else None
    if item is None:
        return ()
    listing = cluster.list(PODS, owner.namespace, label_selector=_selector(item))
    return tuple(why_not_ready(pod) for pod in listing.items if not is_ready(pod))


def why_not_ready(pod: Object) -> str:
    """`pod web-1: ImagePullBackOff: Back-off pulling image`: the first thing in its status that explains it."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    if "deletionTimestamp" in pod["metadata"]:
        return f"pod {name}: is being deleted"
    containers = (status.get("initContainerStatuses") or []) + (status.get("containerStatuses") or [])
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return _line(name, waiting.get("reason"), waiting.get("message"))
    for condition in status.get("conditions") or []:
        if condition.get("status") == "False" and condition.get("type") in ("PodScheduled", "ContainersReady", "Ready"):
            return _line(name, condition.get("reason"), condition.get("message"))
    return _line(name, status.get("reason") or status.get("phase", "Unknown"), status.get("message"))


def _line(name: str, reason: Any, message: Any) -> str:
    return f"pod {name}: " + ": ".join(str(part) for part in (reason, message) if part)


def _selector(item: Object) -> str:
    selector = item["spec"].get("selector") or {}
    if "matchLabels" not in selector and "matchExpressions" not in selector:  # a ReplicationController's is a plain map
        return ",".join(f"{key}={value}" for key, value in selector.items())
    parts = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    for rule in selector.get("matchExpressions") or []:
        key, operator, values = rule["key"], rule["operator"], ",".join(rule.get("values") or [])
        parts.append(
            {"In": f"{key} in ({values})", "NotIn": f"{key} notin ({values})", "Exists": key}.get(operator, f"!{key}")
        )
    return ",".join(parts)


def _stamped_at(item: Object) -> datetime | None:
    times = [
        entry["time"]
        for entry in item["metadata"].get("managedFields") or []
        if entry.get("manager") == "capstan" and entry.get("time") and not entry.get("subresource")
    ]
    return datetime.fromisoformat(max(times)) if times else None


def _siblings(cluster: Cluster, pod: Object) -> list[Object]:
    uid = (controller(pod) or {}).get("uid")
    listing = cluster.list(PODS, pod["metadata"]["namespace"])
    return [other for other in listing.items if uid and (controller(other) or {}).get("uid") == uid]


def _evict(cluster: Cluster, pod: Object, until: float, say: Callable[[str], None]) -> None:
    metadata = pod["metadata"]
    while True:
        try:
            cluster.evict(metadata["name"], metadata["namespace"], uid=metadata["uid"])
        except Conflict:
            return  # another incarnation has the name: ours is gone
        except Retryable as error:
            if cluster.clock() >= until:
                raise _timed_out(pod, error.observed) from error
            say(f"{metadata['name']} may not be evicted yet: {error.observed}")
            cluster.sleep(error.delay or PAUSE)
        else:
            return


def _await_replacement(cluster: Cluster, pod: Object, ready_before: int, until: float) -> None:
    uid, owner = pod["metadata"]["uid"], (controller(pod) or {}).get("uid")
    seen: dict[str, Object] = {}
    for event in follow(cluster, PODS, pod["metadata"]["namespace"], until=until):
        if event.type == "SYNCED":
            seen = {item["metadata"]["uid"]: item for item in event.object["items"]}
        elif event.type == "DELETED":
            seen.pop(event.object["metadata"]["uid"], None)
        elif event.type in ("ADDED", "MODIFIED"):
            seen[event.object["metadata"]["uid"]] = event.object
        else:
            continue
        siblings = [item for item in seen.values() if (controller(item) or {}).get("uid") == owner]
        ready = sum(1 for item in siblings if is_ready(item) and "deletionTimestamp" not in item["metadata"])
        if event.type != "ADDED" and uid not in seen and ready >= ready_before:
            return
    raise _timed_out(pod, "its replacement did not become ready")


def _timed_out(pod: Object, reason: str) -> GateTimedOut:
    metadata = pod["metadata"]
    text = f"pod {metadata['name']}: {reason}"
    return GateTimedOut(
        "a pod could not be replaced", stragglers=(text,), where=f"pod {metadata['namespace']}/{metadata['name']}",
        observed=reason, expected="eviction and a ready replacement",
        next_command=f"kubectl get poddisruptionbudgets -n {metadata['namespace']}",
    )  # fmt: skip
