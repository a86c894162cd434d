"""Replacing pods one at a time by evicting them, and saying why pods are not ready."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from capstan.cluster.follow import follow
from capstan.cluster.resources import NODES, POD_DISRUPTION_BUDGETS, PODS
from capstan.cluster.workloads import RESOURCES, PodRef, controller, is_ready, selects
from capstan.errors import CapstanError, Conflict, Denied, GateTimedOut, NotFound, Retryable, Throttled

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


class NeverEvicted(Exception):
    """A disruption budget that can never let this pod go: all its pods are healthy, and it needs every one of them.

    Args:
        reason: What the budget says and what the operator can choose, for a person.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def replace_pods(cluster: Cluster, pods: Sequence[Object], *, until: float, say: Callable[[str], None]) -> int:
    """Evict these pods one after the other, each time waiting until it is gone and its siblings are ready again.

    Returns:
        How many were evicted.

    Raises:
        NeverEvicted: A disruption budget will not let one go however long it is asked.
        GateTimedOut: A disruption budget, or a replacement that never became ready, held it up past `until`.
    """
    for count, pod in enumerate(pods, 1):
        name = pod["metadata"]["name"]
        say(f"evicting {name} ({count} of {len(pods)})")
        ready_before = ready_siblings(cluster, [pod])
        _evict(cluster, pod, until, say)
        await_replacements(cluster, [pod], ready_before, until)
    return len(pods)


def ready_siblings(cluster: Cluster, pods: Sequence[Object]) -> int:
    """How many pods of the same controllers are ready, these included."""
    return sum(1 for sibling in _siblings(cluster, pods) if is_ready(sibling))


def troubles(cluster: Cluster, owner: Owner) -> tuple[str, ...]:
    """Why pods of this owner are not ready, one line a pod."""
    resource = RESOURCES.get(owner.kind)
    item = cluster.find(resource, owner.name, owner.namespace) if resource else None
    if item is None:
        return ()
    listing = cluster.list(PODS, owner.namespace, label_selector=_selector(item))
    ill = [pod for pod in listing.items if not is_ready(pod) or "deletionTimestamp" in pod["metadata"]]
    lost = _lost_nodes(cluster) if ill else {}
    return tuple(
        "; ".join(filter(None, (why_not_ready(pod), lost.get(str(pod["spec"].get("nodeName"))))))
        for pod in sorted(ill, key=is_ready)
    )


def _lost_nodes(cluster: Cluster) -> dict[str, str]:
    """Nodes that are not ready, and what to do: a pod on one ends only when the node is back, or is deleted.

    Source: Kubernetes, "Nodes": pods of an unreachable node stay Terminating or Unknown until its kubelet answers again
    or the Node object is deleted.
    """
    try:
        items = cluster.list(NODES).items
    except CapstanError:  # it is told for a person's sake only; who may not list nodes is told the rest
        return {}
    found = {}
    for item in items:
        name, conditions = str(item["metadata"]["name"]), (item.get("status") or {}).get("conditions") or []
        ready: Object = next((condition for condition in conditions if condition.get("type") == "Ready"), {})
        if ready.get("status", "True") != "True":
            why = ": ".join(str(ready[key]) for key in ("reason", "message") if ready.get(key))
            found[name] = f"its node {name} is not ready ({why}): bring it back, or kubectl delete node {name}"
    return found


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


def _siblings(cluster: Cluster, pods: Sequence[Object]) -> list[Object]:
    uids = _controllers(pods)
    return [
        other for other in cluster.list(PODS, pods[0]["metadata"]["namespace"]).items if _controllers([other]) & uids
    ]


def _controllers(pods: Sequence[Object]) -> set[str]:
    return {str(reference["uid"]) for pod in pods if (reference := controller(pod)) is not None}


def _evict(cluster: Cluster, pod: Object, until: float, say: Callable[[str], None]) -> None:
    metadata = pod["metadata"]
    while True:
        try:
            cluster.evict(metadata["name"], metadata["namespace"], uid=metadata["uid"])
        except (Conflict, NotFound):
            return  # it is gone; or another incarnation has the name
        except Retryable as error:
            reason = why_never(cluster, pod, error)
            if reason:
                raise NeverEvicted(reason) from error
            if cluster.clock() >= until:
                raise _timed_out(pod, error.observed) from error
            say(f"{metadata['name']} may not be evicted yet: {error.observed}")
            cluster.sleep(min(error.delay or PAUSE, max(until - cluster.clock(), 0.0)))
        else:
            return


def why_never(cluster: Cluster, pod: Object, error: Retryable) -> str:
    """Why a refused eviction will be refused for ever; empty if it may be allowed later, or if that cannot be told."""
    if not isinstance(error, Throttled) or "disruption budget" not in error.observed:
        return ""
    labels = pod["metadata"].get("labels") or {}
    try:
        budgets = cluster.list(POD_DISRUPTION_BUDGETS, pod["metadata"]["namespace"]).items
    except (Denied, Retryable):
        return ""
    for budget in budgets:
        status, spec = budget.get("status") or {}, budget.get("spec") or {}
        expected, needed = int(status.get("expectedPods", 0)), int(status.get("desiredHealthy", 0))
        current = int(status.get("observedGeneration", 0)) >= int(budget["metadata"].get("generation", 0))
        if (
            current
            and expected
            and needed >= expected
            and int(status.get("currentHealthy", 0)) >= expected
            and selects(spec.get("selector"), labels)
        ):
            return (
                f"disruption budget {budget['metadata']['name']} never lets a pod go: it needs {needed} of {expected}"
                f" pods healthy, and all are; add a replica or relax the budget for a while, then run this again"
            )
    return ""


def await_replacements(cluster: Cluster, pods: Sequence[Object], ready_before: int, until: float) -> None:
    """Wait until these pods are gone and as many of their siblings are ready as were before, or, where an autoscaler
    wants fewer meanwhile, as many as their controllers want now.

    Raises:
        GateTimedOut: Not within time.
    """
    old, owners = {pod["metadata"]["uid"] for pod in pods}, _controllers(pods)
    seen: dict[str, Object] = {}
    for event in follow(cluster, PODS, pods[0]["metadata"]["namespace"], until=until):
        if event.type == "SYNCED":
            seen = {item["metadata"]["uid"]: item for item in event.object["items"]}
        elif event.type == "DELETED":
            seen.pop(event.object["metadata"]["uid"], None)
        elif event.type in ("ADDED", "MODIFIED"):
            seen[event.object["metadata"]["uid"]] = event.object
        else:
            continue
        if event.type == "ADDED" or old & set(seen):
            continue
        siblings = [
            item
            for item in seen.values()
            if _controllers([item]) & owners and "deletionTimestamp" not in item["metadata"]
        ]
        ready = sum(map(is_ready, siblings))
        if ready >= ready_before or (ready == len(siblings) and _are_enough(cluster, pods, ready)):
            return
    raise _timed_out(
        next((pod for pod in pods if pod["metadata"]["uid"] in seen), pods[0]), _why_not_replaced(seen, old)
    )


def _why_not_replaced(seen: dict[str, Object], old: set[str]) -> str:
    return "it is still there" if old & set(seen) else "its replacement did not become ready"


def _are_enough(cluster: Cluster, pods: Sequence[Object], ready: int) -> bool:
    """Whether the controllers want no more pods than are ready: an autoscaler may have changed its mind."""
    wanted = 0
    for kind, name in {(str(r["kind"]), str(r["name"])) for pod in pods if (r := controller(pod)) is not None}:
        resource = RESOURCES.get(kind)
        item = cluster.find(resource, name, pods[0]["metadata"]["namespace"]) if resource is not None else None
        if item is None:
            return False
        count = (
            (item.get("status") or {}).get("desiredNumberScheduled")
            if kind == "DaemonSet"
            else item["spec"].get("replicas")
        )
        if count is None:
            return False
        wanted += int(count)
    return ready >= wanted


def _timed_out(pod: Object, reason: str) -> GateTimedOut:
    metadata = pod["metadata"]
    text = f"pod {metadata['name']}: {reason}"
    return GateTimedOut(
        "a pod could not be replaced", stragglers=(text,), where=f"pod {metadata['namespace']}/{metadata['name']}",
        observed=reason, expected="eviction and a ready replacement",
        next_command=f"kubectl get poddisruptionbudgets -n {metadata['namespace']}",
    )  # fmt: skip
