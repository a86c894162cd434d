"""Whatever the sizes and whatever fails to become ready, a rolling update stays within its bounds, and ends if pods
become ready.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.lab.controllers import rollout

JSON = dict[str, Any]


def deployment(replicas: int, surge: int | str, unavailable: int | str) -> JSON:
    rolling = {"maxSurge": surge, "maxUnavailable": unavailable}
    return {"spec": {"replicas": replicas, "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling}}}


def replica_set(name: str, size: int, available: int) -> JSON:
    metadata = {"uid": name, "name": name, "creationTimestamp": name}
    return {"metadata": metadata, "spec": {"replicas": size}, "status": {"availableReplicas": available}}


def total(sets: list[JSON], *path: str) -> int:
    key, name = path
    return sum(s[key][name] for s in sets)


@settings(max_examples=150, deadline=None)
@given(
    replicas=st.integers(1, 12),
    surge=st.one_of(st.integers(0, 5), st.sampled_from(["25%", "50%", "100%", "1%"])),
    unavailable=st.one_of(st.integers(0, 5), st.sampled_from(["25%", "50%", "100%", "1%"])),
    old_sizes=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    data=st.data(),
)
def test_a_rolling_update_never_leaves_its_bounds_and_ends(
    replicas: int, surge: int | str, unavailable: int | str, old_sizes: list[int], data: st.DataObject
) -> None:
    item = deployment(replicas, surge, unavailable)
    old_sizes[0] = max(replicas - sum(old_sizes[1:]), 0)
    old = [replica_set(f"old-{i}", size, size) for i, size in enumerate(old_sizes)]
    ceiling = max(replicas + rollout.surge(item), sum(old_sizes))
    new = replica_set("new", min(rollout.first_size(item, old), replicas), 0)
    floor = min(replicas - rollout.unavailable(item), sum(old_sizes))
    for _ in range(200):
        sets = [*old, new]
        assert total(sets, "spec", "replicas") <= ceiling
        assert total(sets, "status", "availableReplicas") >= floor
        if total(old, "spec", "replicas") == 0 and new["status"]["availableReplicas"] == replicas:
            return
        # Some pods of the new version become available, now or later.
        pending = new["spec"]["replicas"] - new["status"]["availableReplicas"]
        new["status"]["availableReplicas"] += data.draw(st.integers(min(1, pending), pending), label="become ready")
        size = rollout.new_size(item, new, old)
        if size != new["spec"]["replicas"]:
            new["spec"]["replicas"] = size
            continue
        for each, smaller in rollout.old_sizes(item, new, old):
            each["spec"]["replicas"] = smaller
            each["status"]["availableReplicas"] = min(each["status"]["availableReplicas"], smaller)
    pytest.fail("the rollout did not end")


def test_old_pods_that_never_became_ready_go_first() -> None:
    item = deployment(4, 1, 0)
    broken, healthy = replica_set("a", 2, 0), replica_set("b", 4, 4)
    new = replica_set("c", 0, 0)
    assert {s["metadata"]["name"]: size for s, size in rollout.old_sizes(item, new, [healthy, broken])} == {"a": 0}


def test_a_new_version_that_never_becomes_ready_stops_the_update() -> None:
    item = deployment(4, 1, 1)
    old, new = replica_set("a", 3, 3), replica_set("b", 2, 0)
    assert rollout.new_size(item, new, [old]) == 2
    assert rollout.old_sizes(item, new, [old]) == []


def test_no_surge_and_nothing_unavailable_still_moves_one_pod() -> None:
    assert rollout.unavailable(deployment(3, 0, 0)) == 1


def test_scaling_in_the_middle_of_a_rollout_shares_the_difference() -> None:
    item = deployment(20, "50%", "25%")
    old, new = replica_set("a", 8, 8), replica_set("b", 4, 4)
    sizes = {s["metadata"]["name"]: size for s, size in rollout.proportional(item, [old, new], new, lambda _: 15)}
    assert sum(sizes.values()) == 30
    assert sizes["a"] > sizes["b"] > 4
