"""PodDisruptionBudgets: how many pods may be evicted now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.lab.client import key_of
from infra.lab.controllers import pods
from infra.lab.controllers.framework import Context, Controller, controller_of, object_path, percent, selects

if TYPE_CHECKING:
    from infra.lab.client import Key

JSON = dict[str, Any]
BUDGETS = "/apis/policy/v1/poddisruptionbudgets"
SCALABLE = {
    "ReplicaSet": "/apis/apps/v1/replicasets",
    "Deployment": "/apis/apps/v1/deployments",
    "StatefulSet": "/apis/apps/v1/statefulsets",
    "ReplicationController": "/api/v1/replicationcontrollers",
}
EVICTION_SECONDS = 120.0  # an evicted pod whose deletion is not seen within this time counts again


class DisruptionController:
    """Keeps the status of budgets, which the eviction subresource decides by."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.budgets = context.informer(BUDGETS)
        self.pods = context.informer(pods.PODS)
        self.controller = Controller("disruption", self.reconcile)

    def start(self) -> Controller:
        """Begin to react to changes."""
        self.budgets.on_change(lambda _, __, new: self.controller.add(key_of(new)))
        self.pods.on_change(self._pod_changed)
        return self.controller

    def _pod_changed(self, _: str, old: JSON | None, pod: JSON) -> None:
        namespace = pod["metadata"]["namespace"]
        for key, budget in self.budgets.objects.items():
            if key[0] == namespace and any(
                selects(budget["spec"].get("selector"), each["metadata"].get("labels")) for each in (old, pod) if each
            ):
                self.controller.add(key)

    async def reconcile(self, key: Key) -> float | None:
        """Count, and write the status."""
        await self.budgets.synced()
        await self.pods.synced()
        budget = self.budgets.objects.get(key)
        if budget is None:
            return None
        covered = [
            pod
            for (namespace, _), pod in self.pods.objects.items()
            if namespace == key[0]
            and not pods.finished(pod)
            and selects(budget["spec"].get("selector"), pod["metadata"].get("labels"))
        ]
        expected, desired = await self._wanted(budget, covered)
        evicted, again = self._evicted(budget, covered)
        healthy = sum(
            pods.is_ready(p) and not pods.terminating(p) and p["metadata"]["name"] not in evicted for p in covered
        )
        allowed = max(healthy - desired, 0) if expected > 0 else 0
        generation = budget["metadata"].get("generation", 0)
        fresh = {
            "type": "DisruptionAllowed",
            "status": "True" if allowed else "False",
            "observedGeneration": generation,
            "reason": "SufficientPods" if allowed else "InsufficientPods",
            "message": "",
        }
        known = pods.condition(budget, "DisruptionAllowed")
        same = known is not None and known["status"] == fresh["status"]
        fresh["lastTransitionTime"] = known["lastTransitionTime"] if same and known else pods.timestamp()
        others = [c for c in (budget.get("status") or {}).get("conditions") or [] if c["type"] != "DisruptionAllowed"]
        status: JSON = {
            "observedGeneration": generation,
            "disruptionsAllowed": allowed,
            "currentHealthy": healthy,
            "desiredHealthy": desired,
            "expectedPods": expected,
            "conditions": [*others, fresh],
        }
        if evicted:
            status["disruptedPods"] = evicted
        await self.context.write_status(BUDGETS, budget, status)
        return again

    async def _wanted(self, budget: JSON, covered: list[JSON]) -> tuple[int, int]:
        """(expectedPods, desiredHealthy). Percentages and maxUnavailable count the replicas the pods' controllers
        want.
        """
        spec = budget["spec"]
        maximum, minimum = spec.get("maxUnavailable"), spec.get("minAvailable")
        if maximum is None and isinstance(minimum, int):
            return len(covered), minimum
        expected = await self._scale(covered)
        if maximum is not None:
            return expected, max(expected - percent(maximum, expected, up=True), 0)
        return expected, percent(minimum if minimum is not None else 0, expected, up=True)

    async def _scale(self, covered: list[JSON]) -> int:
        wanted: dict[str, int] = {}
        for pod in covered:
            owner = controller_of(pod)
            item: JSON | None = None
            while owner is not None and owner["kind"] in SCALABLE:
                informer = await self.context.informer(SCALABLE[owner["kind"]]).synced()
                above = informer.get(pod["metadata"]["namespace"], owner["name"])
                if above is None or above["metadata"]["uid"] != owner["uid"]:
                    break
                item, owner = above, controller_of(above)
            if item is not None:
                wanted[item["metadata"]["uid"]] = item["spec"].get("replicas", 1)
        return sum(wanted.values())

    @staticmethod
    def _evicted(budget: JSON, covered: list[JSON]) -> tuple[JSON, float | None]:
        """Pods whose eviction was granted but whose deletion has not been seen yet, and when to look again."""
        there = {pod["metadata"]["name"]: pod for pod in covered}
        left: JSON = {}
        waits = []
        for name, time in ((budget.get("status") or {}).get("disruptedPods") or {}).items():
            age = (pods.now() - pods.parse_time(time)).total_seconds()
            if name in there and not pods.terminating(there[name]) and age < EVICTION_SECONDS:
                left[name] = time
                waits.append(EVICTION_SECONDS - age)
        return left, min(waits, default=None)

    @staticmethod
    def path(namespace: str) -> str:
        """Where the budgets of a namespace are."""
        return object_path(BUDGETS, namespace)
