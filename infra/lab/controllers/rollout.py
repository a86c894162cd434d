"""The arithmetic of a Deployment's rollout. Pure: objects in, sizes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.lab.controllers.framework import percent

if TYPE_CHECKING:
    from collections.abc import Callable

JSON = dict[str, Any]


def size(item: JSON) -> int:
    """spec.replicas, 1 if unset."""
    return int(item["spec"].get("replicas", 1))


def available(item: JSON) -> int:
    """status.availableReplicas of a ReplicaSet."""
    return int((item.get("status") or {}).get("availableReplicas", 0))


def surge(item: JSON) -> int:
    """Pods allowed above spec.replicas; 0 unless the strategy is RollingUpdate and there is something to run."""
    if item["spec"]["strategy"].get("type") == "Recreate" or not size(item):
        return 0
    return percent((item["spec"]["strategy"].get("rollingUpdate") or {}).get("maxSurge", "25%"), size(item), up=True)


def unavailable(item: JSON) -> int:
    """Pods that may be missing; at least 1 if maxSurge is 0 too, or nothing could ever move."""
    if item["spec"]["strategy"].get("type") == "Recreate" or not size(item):
        return 0
    value = (item["spec"]["strategy"].get("rollingUpdate") or {}).get("maxUnavailable", "25%")
    count = min(percent(value, size(item), up=False), size(item))
    return count or (0 if surge(item) else 1)


def first_size(item: JSON, old: list[JSON]) -> int:
    """Size of a ReplicaSet that is about to be created."""
    if item["spec"]["strategy"].get("type") == "Recreate":
        return size(item)
    room = size(item) + surge(item) - sum(size(s) for s in old)
    return max(min(room, size(item)), 0)


def new_size(item: JSON, new: JSON, old: list[JSON]) -> int:
    """What the new ReplicaSet may grow (or must shrink) to."""
    if size(new) >= size(item):
        return size(item)
    room = size(item) + surge(item) - size(new) - sum(size(s) for s in old)
    return size(new) + max(min(room, size(item) - size(new)), 0)


def old_sizes(item: JSON, new: JSON, old: list[JSON]) -> list[tuple[JSON, int]]:
    """How far the old ReplicaSets may shrink now: first their pods that are not available, then what availability
    allows.
    """
    total_old = sum(size(s) for s in old)
    if not total_old:
        return []
    minimum = size(item) - unavailable(item)
    # Pods of the new ReplicaSet that are not available yet may never be: they do not count towards what may go.
    removable = size(new) + total_old - minimum - (size(new) - available(new))
    if removable <= 0:
        return []
    sizes = {s["metadata"]["uid"]: size(s) for s in old}
    oldest_first = sorted(old, key=lambda s: s["metadata"]["creationTimestamp"])
    gone = 0
    for each in oldest_first:
        unhealthy = min(max(size(each) - available(each), 0), removable - gone)
        sizes[each["metadata"]["uid"]] -= unhealthy
        gone += unhealthy
    healthy = available(new) + sum(available(s) for s in old) - minimum
    for each in oldest_first:
        step = max(min(sizes[each["metadata"]["uid"]], healthy), 0)
        sizes[each["metadata"]["uid"]] -= step
        healthy -= step
    return [(s, sizes[s["metadata"]["uid"]]) for s in oldest_first if sizes[s["metadata"]["uid"]] != size(s)]


def proportional(
    item: JSON, sets: list[JSON], new: JSON | None, largest: Callable[[JSON], int | None]
) -> list[tuple[JSON, int]]:
    """Sizes after the Deployment itself was scaled.

    With one ReplicaSet in use it takes the whole number; in the middle of a rollout all in use share the difference
    in proportion to their sizes. `largest` gives the Deployment's size plus surge as it was when a ReplicaSet was
    last sized.
    """
    used = [s for s in sets if size(s)]
    if len(used) <= 1:
        only = used[0] if used else new
        if only is None and sets:
            only = max(sets, key=lambda s: s["metadata"]["creationTimestamp"])
        return [(only, size(item))] if only is not None else []
    if new is not None and size(new) == size(item) and available(new) == size(item):
        return [(s, 0 if s is not new else size(item)) for s in used]
    if item["spec"]["strategy"].get("type") == "Recreate":
        return []
    total = sum(size(s) for s in used)
    left = (size(item) + surge(item) if size(item) else 0) - total
    growing = left > 0
    by_size = sorted(used, key=lambda s: (-size(s), s["metadata"]["creationTimestamp"]), reverse=False)
    plan: list[tuple[JSON, int]] = []
    for each in by_size:
        before = largest(each) or total
        share = round(size(each) * (size(item) + surge(item)) / before) - size(each) if before else 0
        share = min(max(share, 0), left) if growing else max(min(share, 0), left)
        left -= share
        plan.append((each, size(each) + share))
    first, rest = plan[0], plan[1:]
    return [(first[0], max(first[1] + left, 0)), *rest]
