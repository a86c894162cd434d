"""The scheduler: gives every pod of its name a node, through the binding subresource as real schedulers do."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError, key_of
from infra.lab.controllers import pods, scheduling
from infra.lab.controllers.framework import Context, Controller, path_of
from infra.lab.events import record

if TYPE_CHECKING:
    from infra.lab.client import Key

JSON = dict[str, Any]
NODES = "/api/v1/nodes"
NAME = "default-scheduler"


class Scheduler:
    """Filters nodes by scheduling.py and takes the one with the fewest pods."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.pods = context.informer(pods.PODS)
        self.nodes = context.informer(NODES)
        self.controller = Controller("scheduler", self.reconcile, workers=16)
        self._on_node: dict[str, dict[Key, JSON]] = {}
        self._unschedulable: set[Key] = set()

    def start(self) -> Controller:
        """Begin to react to changes."""
        self.pods.on_change(self._pod_changed)
        self.nodes.on_change(self._node_changed)
        return self.controller

    def _pod_changed(self, kind: str, old: JSON | None, pod: JSON) -> None:
        key = key_of(pod)
        before = (old or {}).get("spec", {}).get("nodeName")
        after = pod["spec"].get("nodeName") if kind != "DELETED" and not pods.finished(pod) else None
        if before and before != after:
            self._on_node.get(before, {}).pop(key, None)
            self._retry_unschedulable()
        if after:
            self._on_node.setdefault(after, {})[key] = pod
        elif kind != "DELETED" and _waits(pod):
            self.controller.add(key)
        if kind == "DELETED" or after:
            self._unschedulable.discard(key)

    def _node_changed(self, kind: str, old: JSON | None, node: JSON) -> None:
        if kind == "MODIFIED" and old is not None:
            same = old["spec"] == node["spec"] and old["metadata"].get("labels") == node["metadata"].get("labels")
            if same:
                return
        self._retry_unschedulable()

    def _retry_unschedulable(self) -> None:
        for key in self._unschedulable:
            self.controller.add(key)

    async def reconcile(self, key: Key) -> float | None:
        """Bind one pod, or say why not."""
        await self.nodes.synced()
        await self.pods.synced()
        pod = self.pods.objects.get(key)
        if pod is None or not _waits(pod):
            return None
        neighbours = {name: list(there.values()) for name, there in self._on_node.items()}
        nodes = {node["metadata"]["name"]: node for node in self.nodes.objects.values()}
        reasons: Counter[str] = Counter()
        fitting = []
        for name, node in nodes.items():
            why = scheduling.obstacle(pod, node, neighbours, nodes)
            if why is None:
                fitting.append((len(neighbours.get(name, [])), name))
            else:
                reasons[why] += 1
        if not fitting:
            self._unschedulable.add(key)
            await self._refuse(pod, len(nodes), reasons)
            return None
        await self._bind(pod, min(fitting)[1])
        return None

    async def _bind(self, pod: JSON, node: str) -> None:
        namespace, name = key_of(pod)
        body = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace, "uid": pod["metadata"]["uid"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        # Count it at once: the next pods are placed while this request is under way.
        assumed = {**pod, "spec": {**pod["spec"], "nodeName": node}}
        self._on_node.setdefault(node, {})[key_of(pod)] = assumed
        try:
            await self.context.client.create(f"{path_of(pods.PODS, pod)}/binding", body)
        except BaseException as error:
            self._on_node[node].pop(key_of(pod), None)
            if not isinstance(error, ApiError) or error.status != 404:
                raise

    async def _refuse(self, pod: JSON, nodes: int, reasons: Counter[str]) -> None:
        why = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        helpless = f"{nodes} Preemption is not helpful for scheduling." if nodes else "no nodes."
        message = f"0/{nodes} nodes are available: {why}. preemption: 0/{nodes} nodes are available: {helpless}"
        if not nodes:
            message = "no nodes available to schedule pods"
        known = pods.condition(pod, "PodScheduled")
        if known is not None and known.get("message") == message:
            return
        fresh = {
            "type": "PodScheduled",
            "observedGeneration": pod["metadata"].get("generation", 1),
            "status": "False",
            "lastProbeTime": None,
            "lastTransitionTime": known["lastTransitionTime"] if known else pods.timestamp(),
            "reason": "Unschedulable",
            "message": message,
        }
        try:
            body = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": {"conditions": [fresh]}}
            answer = await self.context.client.patch(f"{path_of(pods.PODS, pod)}/status", body, "strategic")
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            return
        self.pods.observe(answer)
        await asyncio.shield(record(self.context.client, pod, "Warning", "FailedScheduling", message, component=NAME))


def _waits(pod: JSON) -> bool:
    """It has no node, is this scheduler's, and is free to be scheduled."""
    return (
        not pod["spec"].get("nodeName")
        and pod["spec"].get("schedulerName", NAME) == NAME
        and not pod["spec"].get("schedulingGates")
        and pods.active(pod)
    )
