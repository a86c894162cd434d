"""HorizontalPodAutoscaler (autoscaling/v2): keeps the size of what it scales between its bounds and near its target.

The rules are those of the horizontal controller of kube-controller-manager: desired = ceil(pods x value / target), a
tolerance of 10 %, at most double or four more at once, and the highest recommendation of the stabilization window when
going down (`behavior.scaleDown.stabilizationWindowSeconds`, 300 s by default). Of metrics it knows the CPU utilization:
the annotation lab.capstan.dev/cpu-load on the autoscaler says how much work there is, in percent of one pod's request
(300: three pods are fully busy), and ready pods share it. Without the annotation nobody measures, as in a cluster
without metrics-server: the condition ScalingActive is False, and only the bounds are kept. Looks every second (15 s in
life); the metrics that Pods, Objects and others bring, and `behavior` policies, are not played.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError, key_of
from infra.lab.controllers import pods
from infra.lab.controllers.framework import Context, Controller, object_path
from infra.lab.events import record

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.lab.client import Key

JSON = dict[str, Any]
AUTOSCALERS = "/apis/autoscaling/v2/horizontalpodautoscalers"
LOAD = "lab.capstan.dev/cpu-load"
PERIOD_SECONDS = 1.0
STABILIZATION_SECONDS = 300.0
TOLERANCE = 0.1
TARGETS = {
    ("apps/v1", "Deployment"): "/apis/apps/v1/deployments",
    ("apps/v1", "ReplicaSet"): "/apis/apps/v1/replicasets",
    ("apps/v1", "StatefulSet"): "/apis/apps/v1/statefulsets",
    ("v1", "ReplicationController"): "/api/v1/replicationcontrollers",
}
NO_METRICS = (
    "the HPA was unable to compute the replica count: failed to get cpu utilization: unable to get metrics for "
    "resource cpu: unable to fetch metrics from resource metrics API: the server could not find the requested resource "
    "(get pods.metrics.k8s.io)"
)
_WITHIN_RANGE = "the desired count is within the acceptable range"


class Autoscaler:
    """See the module. `clock` gives monotonic seconds."""

    def __init__(self, context: Context, clock: Callable[[], float] = time.monotonic) -> None:
        self.context = context
        self.autoscalers = context.informer(AUTOSCALERS)
        self.pods = context.informer(pods.PODS)
        self.controller = Controller("HorizontalPodAutoscaler", self.reconcile, workers=2)
        self._clock = clock
        self._recommended: dict[str, list[tuple[float, int]]] = {}  # by uid

    def start(self) -> Controller:
        """Begin to look."""
        self.autoscalers.on_change(lambda _, __, new: self.controller.add(key_of(new)))
        return self.controller

    async def reconcile(self, key: Key) -> float | None:
        """Look at one autoscaler and scale its target if need be."""
        await self.autoscalers.synced()
        await self.pods.synced()
        item = self.autoscalers.objects.get(key)
        if item is None or pods.terminating(item):
            return None
        conditions: dict[str, tuple[bool, str, str]] = {}
        status = {**(item.get("status") or {}), "observedGeneration": item["metadata"].get("generation", 1)}
        status.setdefault("desiredReplicas", 0)
        try:
            await self._scale(item, key, status, conditions)
        finally:
            status["conditions"] = _conditions(item, conditions)
            await self.context.write_status(AUTOSCALERS, item, status)
        return PERIOD_SECONDS

    async def _scale(self, item: JSON, key: Key, status: JSON, conditions: dict[str, tuple[bool, str, str]]) -> None:
        reference = item["spec"]["scaleTargetRef"]
        collection = TARGETS.get((reference.get("apiVersion", ""), reference["kind"]))
        if collection is None:
            text = f'unable to determine resource for scale target reference: no matches for kind "{reference["kind"]}"'
            conditions["AbleToScale"] = (False, "FailedGetScale", text)
            return
        path = object_path(collection, key[0], reference["name"])
        try:
            scale = await self.context.client.get(f"{path}/scale")
        except ApiError as error:
            text = f"the HPA controller was unable to get the target's current scale: {error.message}"
            conditions["AbleToScale"] = (False, "FailedGetScale", text)
            return
        conditions["AbleToScale"] = (True, "SucceededGetScale", "the HPA controller was able to get the target's "
                                     "current scale")  # fmt: skip
        present, observed = scale["spec"].get("replicas", 0), (scale.get("status") or {}).get("replicas", 0)
        status["currentReplicas"] = observed
        if present == 0:
            conditions["ScalingActive"] = (False, "ScalingDisabled", "scaling is disabled since the replica count of "
                                           "the target is zero")  # fmt: skip
            status["desiredReplicas"] = 0
            return
        desired, reason = self._desired(item, key, scale, present, status, conditions)
        status["desiredReplicas"] = desired
        if desired == present:
            return
        scale["spec"]["replicas"] = desired
        await self.context.client.replace(f"{path}/scale", scale)
        conditions["AbleToScale"] = (True, "SucceededRescale", "the HPA controller was able to update the target scale "
                                     f"to {desired}")  # fmt: skip
        status["lastScaleTime"] = pods.timestamp()
        message = f"New size: {desired}; reason: {reason}"
        await record(
            self.context.client, item, "Normal", "SuccessfulRescale", message, component="horizontal-pod-autoscaler"
        )

    def _desired(
        self, item: JSON, key: Key, scale: JSON, present: int, status: JSON,
        conditions: dict[str, tuple[bool, str, str]],
    ) -> tuple[int, str]:  # fmt: skip
        """How many there shall be, and why."""
        least, most = item["spec"].get("minReplicas", 1), item["spec"]["maxReplicas"]
        if present > most:
            return most, "Current number of replicas above Spec.MaxReplicas"
        if present < least:
            return least, "Current number of replicas below Spec.MinReplicas"
        target = _target(item)
        load = (item["metadata"].get("annotations") or {}).get(LOAD)
        if load is None or target is None:
            conditions["ScalingActive"] = (False, "FailedGetResourceMetric", NO_METRICS)
            status.pop("currentMetrics", None)
            return present, ""
        ready = len(self._ready(key[0], (scale.get("status") or {}).get("selector", "")))
        if not ready:
            text = "the HPA was unable to compute the replica count: did not receive metrics for targeted pods (pods "
            conditions["ScalingActive"] = (False, "FailedGetResourceMetric", text + "might be unready)")
            return present, ""
        conditions["ScalingActive"] = (
            True, "ValidMetricFound", "the HPA was able to successfully calculate a replica count from cpu resource "
            "utilization (percentage of request)",
        )  # fmt: skip
        utilization = round(float(load) / ready)
        status["currentMetrics"] = [
            {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": utilization}}}
        ]
        wanted = recommended(present, ready, utilization / target)
        limited = self._stabilized(item, wanted, present)
        bounded = min(max(limited, least), most, max(2 * present, present + 4))
        conditions["ScalingLimited"] = _limit(limited, bounded, least)
        above = wanted > present
        return bounded, "cpu resource utilization (percentage of request) above target" if above else (
            "All metrics below target"
        )

    def _ready(self, namespace: str, selector: str) -> list[JSON]:
        labels = dict(pair.split("=", 1) for pair in selector.split(",") if "=" in pair)
        return [
            pod
            for key, pod in self.pods.objects.items()
            if key[0] == namespace
            and labels.items() <= (pod["metadata"].get("labels") or {}).items()
            and pods.active(pod)
            and pods.available_in(pod, 0) == 0
        ]

    def _stabilized(self, item: JSON, wanted: int, present: int) -> int:
        """Going down, the highest recommendation within the window; up at once."""
        down = (item["spec"].get("behavior") or {}).get("scaleDown") or {}
        window = down.get("stabilizationWindowSeconds")
        seconds = STABILIZATION_SECONDS if window is None else float(window)
        now = self._clock()
        known = self._recommended.setdefault(item["metadata"]["uid"], [(now, present)])
        known.append((now, wanted))
        self._recommended[item["metadata"]["uid"]] = kept = [entry for entry in known if now - entry[0] <= seconds]
        return wanted if wanted >= present else min(max(count for _, count in kept or [(now, wanted)]), present)


def recommended(present: int, ready: int, ratio: float) -> int:
    """The size for a ratio of measured to wanted utilization, over the pods that were measured (all others count as
    doing what is wanted of them).
    """
    return present if abs(ratio - 1.0) <= TOLERANCE else math.ceil(round(ready * ratio, 6))


def _target(item: JSON) -> float | None:
    for metric in item["spec"].get("metrics") or []:
        resource = metric.get("resource") or {}
        utilization = (resource.get("target") or {}).get("averageUtilization")
        if metric.get("type") == "Resource" and resource.get("name") == "cpu" and utilization:
            return float(utilization)
    return None


def _limit(wanted: int, bounded: int, least: int) -> tuple[bool, str, str]:
    if wanted == bounded:
        return False, "DesiredWithinRange", _WITHIN_RANGE
    if bounded == least:
        return True, "TooFewReplicas", "the desired replica count is less than the minimum replica count"
    return True, "TooManyReplicas", "the desired replica count is more than the maximum replica count"


def _conditions(item: JSON, fresh: dict[str, tuple[bool, str, str]]) -> list[JSON]:
    """The conditions, with the time at which each last changed."""
    known = {each["type"]: each for each in (item.get("status") or {}).get("conditions") or []}
    for kind, (holds, reason, message) in fresh.items():
        state = "True" if holds else "False"
        before = known.get(kind, {})
        since = before["lastTransitionTime"] if before.get("status") == state else pods.timestamp()
        known[kind] = {
            "type": kind,
            "status": state,
            "lastTransitionTime": since,
            "reason": reason,
            "message": message,
        }
    return list(known.values())
