"""Nodes: the taint of a cordoned node, and what happens when a kubelet stops renewing its Lease."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.lab.controllers import pods, scheduling
from infra.lab.controllers.framework import Context, Controller, path_of

if TYPE_CHECKING:
    from infra.lab.client import Key

JSON = dict[str, Any]
NODES = "/api/v1/nodes"
LEASES = "/apis/coordination.k8s.io/v1/leases"
GRACE_SECONDS = 50.0  # kube-controller-manager's --node-monitor-grace-period
CORDONED = "node.kubernetes.io/unschedulable"
UNREACHABLE = "node.kubernetes.io/unreachable"
NOT_READY = "node.kubernetes.io/not-ready"
_OURS = {(CORDONED, "NoSchedule")} | {(k, e) for k in (UNREACHABLE, NOT_READY) for e in ("NoSchedule", "NoExecute")}


class NodeLifecycle:
    """Keeps taints true and evicts from nodes that are gone."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.nodes = context.informer(NODES)
        self.leases = context.informer(LEASES)
        self.pods = context.informer(pods.PODS)
        self.controller = Controller("node lifecycle", self.reconcile, workers=4)

    def start(self) -> Controller:
        """Begin to react to changes. Lease renewals need no reaction: a timer looks when one would be overdue."""
        self.nodes.on_change(lambda _, __, new: self.controller.add(("", new["metadata"]["name"])))
        return self.controller

    async def reconcile(self, key: Key) -> float | None:
        """One node: its readiness, its taints, its pods."""
        await self.leases.synced()
        node = self.nodes.objects.get(key)
        if node is None:
            await self._remove_pods(key[1])
            return None
        wait = self._silent_in(key[1])
        if wait is not None and wait <= 0:
            node = await self._lost(node)
        await self._taint(node)
        await self._evict(node)
        return max(wait, 1.0) if wait is not None and wait > 0 else 10.0

    def _silent_in(self, name: str) -> float | None:
        """Seconds until the node counts as lost; None without a Lease."""
        lease = self.leases.get("kube-node-lease", name)
        renewed = ((lease or {}).get("spec") or {}).get("renewTime")
        if renewed is None:
            return None
        return GRACE_SECONDS - (pods.now() - pods.parse_time(renewed)).total_seconds()

    async def _lost(self, node: JSON) -> JSON:
        ready = pods.condition(node, "Ready")
        if ready is None or ready["status"] == "Unknown":
            return node
        moment = pods.timestamp()
        conditions = [
            {
                **condition,
                "status": "Unknown",
                "reason": "NodeStatusUnknown",
                "message": "Kubelet stopped posting node status.",
                "lastTransitionTime": moment,
            }
            for condition in node["status"]["conditions"]
        ]
        return await self.context.write_status(NODES, node, {**node["status"], "conditions": conditions})

    async def _taint(self, node: JSON) -> None:
        ready = (pods.condition(node, "Ready") or {}).get("status", "True")
        wanted = {(CORDONED, "NoSchedule")} if node["spec"].get("unschedulable") else set()
        if ready != "True":
            sick = UNREACHABLE if ready == "Unknown" else NOT_READY
            wanted |= {(sick, "NoSchedule"), (sick, "NoExecute")}
        known = node["spec"].get("taints") or []
        there = {(taint["key"], taint["effect"]) for taint in known}
        if wanted == there & _OURS:
            return
        taints = [t for t in known if (t["key"], t["effect"]) not in _OURS - wanted]
        taints += [{"key": k, "effect": e, "timeAdded": pods.timestamp()} for k, e in sorted(wanted - there)]
        body = {
            "metadata": {"resourceVersion": node["metadata"]["resourceVersion"]},
            "spec": {"taints": taints or None},
        }
        self.nodes.observe(await self.context.client.patch(path_of(NODES, node), body))

    async def _evict(self, node: JSON) -> None:
        """Delete pods that do not tolerate a NoExecute taint, or have tolerated it long enough."""
        taints = [t for t in node["spec"].get("taints") or [] if t["effect"] == "NoExecute"]
        if not taints:
            return
        name = node["metadata"]["name"]
        doomed = []
        for pod in list(self.pods.objects.values()):
            if pod["spec"].get("nodeName") == name and pods.active(pod):
                patience = min(_patience(pod, taint) for taint in taints)
                since = max((pods.parse_time(t["timeAdded"]) for t in taints if t.get("timeAdded")), default=pods.now())
                if (pods.now() - since).total_seconds() >= patience:
                    doomed.append(pod)
        await pods.delete_many(self.context, doomed)

    async def _remove_pods(self, name: str) -> None:
        """A node that no longer exists has no kubelet to end its pods: remove the objects."""
        for pod in list(self.pods.objects.values()):
            if pod["spec"].get("nodeName") == name:
                body = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod["metadata"]["uid"]}}
                await self.context.client.delete(path_of(pods.PODS, pod), body)


def _patience(pod: JSON, taint: JSON) -> float:
    """Seconds for which a pod stays in spite of a NoExecute taint."""
    if not scheduling.tolerates(pod, taint):
        return 0.0
    seconds = [
        toleration["tolerationSeconds"]
        for toleration in pod["spec"].get("tolerations") or []
        if "tolerationSeconds" in toleration and scheduling.tolerates({"spec": {"tolerations": [toleration]}}, taint)
    ]
    return float(min(seconds)) if seconds else float("inf")
