"""DaemonSet: one pod on every node that qualifies.

Semantics: https://kubernetes.io/docs/concepts/workloads/controllers/daemonset/. Pods are pinned to their node by node
affinity on metadata.name and placed by the scheduler; a rolling update replaces them within maxUnavailable, or starts
the new one first within maxSurge.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from infra.lab.client import key_of
from infra.lab.controllers import pods, scheduling
from infra.lab.controllers.framework import Context, Controller, compact, percent
from infra.lab.controllers.revisions import REVISIONS, History

if TYPE_CHECKING:
    from infra.lab.client import Key

JSON = dict[str, Any]
DAEMON_SETS = "/apis/apps/v1/daemonsets"
NODES = "/api/v1/nodes"
HASH = "controller-revision-hash"
GENERATION = "deprecated.daemonset.template.generation"
_TOLERATED = (
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
)


class DaemonSetController:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.sets = context.informer(DAEMON_SETS)
        self.pods = context.informer(pods.PODS)
        self.nodes = context.informer(NODES)
        self.revisions = context.informer(REVISIONS)
        context.by_owner(REVISIONS)
        context.by_owner(pods.PODS)
        context.orphans(pods.PODS)
        self.controller = Controller("DaemonSet", self.reconcile)

    def start(self) -> Controller:
        """Begin to react to changes."""
        self.sets.on_change(lambda _, __, new: self.controller.add(key_of(new)))
        self.pods.on_change(lambda _, __, pod: pods.enqueue_owner(pod, "DaemonSet", self.controller.add))
        self.nodes.on_change(self._node_changed)
        return self.controller

    def _node_changed(self, kind: str, old: JSON | None, node: JSON) -> None:
        if kind == "MODIFIED" and old is not None:
            same = old["metadata"].get("labels") == node["metadata"].get("labels")
            if same and old["spec"].get("taints") == node["spec"].get("taints"):
                return
        for key in self.sets.objects:
            self.controller.add(key)

    async def reconcile(self, key: Key) -> float | None:
        """Create what is missing, remove what does not belong, replace what is old; then the status."""
        for informer in (self.sets, self.pods, self.nodes, self.revisions):
            await informer.synced()
        item = self.sets.objects.get(key)
        if item is None:
            return None
        await pods.owned(self.context, item, "apps/v1", "DaemonSet", item["spec"]["selector"])
        history = History(self.context, item, "DaemonSet")
        digest = (await history.current())["metadata"]["labels"].get(HASH, "")
        if not pods.terminating(item):
            await self._place(item, digest)
            if item["spec"].get("updateStrategy", {}).get("type", "RollingUpdate") == "RollingUpdate":
                await self._update(item, digest)
        mine = self.context.by_owner(pods.PODS).get(item["metadata"]["uid"])
        live = {(p["metadata"].get("labels") or {}).get(HASH, "") for p in mine} | {digest}
        names = {r["metadata"]["name"] for r in history.revisions if r["metadata"]["labels"].get(HASH) in live}
        await history.trim(names, item["spec"].get("revisionHistoryLimit", 10))
        return await self._report(item, digest)

    def _by_node(self, item: JSON) -> dict[str, list[JSON]]:
        found: dict[str, list[JSON]] = {}
        for pod in self.context.by_owner(pods.PODS).get(item["metadata"]["uid"]):
            found.setdefault(_target(pod), []).append(pod)
        return found

    def _wanted(self, item: JSON, node: JSON) -> tuple[bool, bool]:
        """Whether a pod should be started there, and whether one that runs there may go on."""
        trial = _pod(item, node["metadata"]["name"], "")
        bare = {**trial, "spec": {**trial["spec"], "affinity": item["spec"]["template"]["spec"].get("affinity")}}
        if not scheduling.selected({"spec": {**bare["spec"], "affinity": bare["spec"]["affinity"] or {}}}, node):
            return False, False
        starts = scheduling.untolerated(trial, node) is None
        return starts, scheduling.untolerated(trial, node, ("NoExecute",)) is None

    async def _place(self, item: JSON, digest: str) -> None:
        by_node = self._by_node(item)
        new, old = [], []
        for node in self.nodes.objects.values():
            name = node["metadata"]["name"]
            starts, goes_on = self._wanted(item, node)
            there = by_node.pop(name, [])
            alive = [pod for pod in there if not pods.terminating(pod)]
            failed = [pod for pod in alive if pods.finished(pod)]
            old += failed
            alive = [pod for pod in alive if not pods.finished(pod)]
            if starts and not there:
                new.append(_pod(item, name, digest))
            elif alive and not goes_on:
                old += alive
            elif len(alive) > 1 and not self._surge(item):
                old += sorted(alive, key=lambda p: p["metadata"]["creationTimestamp"])[1:]
        gone = [pod for there in by_node.values() for pod in there if not pods.terminating(pod)]
        await pods.delete_many(self.context, old + gone)
        await pods.create_many(self.context, key_of(item)[0], new)

    @staticmethod
    def _surge(item: JSON) -> Any:
        rolling = (item["spec"].get("updateStrategy") or {}).get("rollingUpdate") or {}
        return rolling.get("maxSurge") or 0

    async def _update(self, item: JSON, digest: str) -> None:
        minimum = item["spec"].get("minReadySeconds", 0)
        rolling = (item["spec"].get("updateStrategy") or {}).get("rollingUpdate") or {}
        nodes = {n["metadata"]["name"]: n for n in self.nodes.objects.values() if self._wanted(item, n)[0]}
        by_node = {name: there for name, there in self._by_node(item).items() if name in nodes}
        surge = percent(rolling.get("maxSurge", 0) or 0, len(nodes), up=True)
        if surge:
            await self._update_with_surge(item, digest, by_node, surge, minimum)
            return
        room = max(percent(rolling.get("maxUnavailable", 1), len(nodes), up=True), 1)
        missing = 0
        candidates: list[JSON] = []
        broken: list[JSON] = []
        for name in nodes:
            alive = [p for p in by_node.get(name, []) if pods.active(p)]
            if not alive:
                missing += 1
            for pod in alive[:1]:
                available = pods.available_in(pod, minimum) == 0.0
                missing += not available
                if _hash(pod) != digest:
                    (candidates if available else broken).append(pod)
        # An old pod that does not serve anyway is replaced whatever the budget says.
        await pods.delete_many(self.context, [*broken, *candidates[: max(room - missing, 0)]])

    async def _update_with_surge(
        self, item: JSON, digest: str, by_node: dict[str, list[JSON]], surge: int, minimum: int
    ) -> None:
        """Start the new pod beside the old one; the old one goes when the new one is available."""
        doubled, done, waiting = 0, [], []
        for name, there in by_node.items():
            alive = [p for p in there if pods.active(p)]
            old = [p for p in alive if _hash(p) != digest]
            new = [p for p in alive if _hash(p) == digest]
            if old and new:
                if any(pods.available_in(p, minimum) == 0.0 for p in new):
                    done += old
                else:
                    doubled += 1
            elif old and all(pods.available_in(p, minimum) is None for p in old):
                done += old
            elif old:
                waiting.append(name)
        await pods.delete_many(self.context, done)
        fresh = [_pod(item, name, digest) for name in waiting[: max(surge - doubled, 0)]]
        await pods.create_many(self.context, key_of(item)[0], fresh)

    async def _report(self, item: JSON, digest: str) -> float | None:
        minimum = item["spec"].get("minReadySeconds", 0)
        by_node = self._by_node(item)
        status: JSON = dict.fromkeys(
            ("currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady",
             "updatedNumberScheduled", "numberAvailable"), 0
        )  # fmt: skip
        waits: list[float] = []
        for node in self.nodes.objects.values():
            alive = [p for p in by_node.get(node["metadata"]["name"], []) if not pods.terminating(p)]
            if not self._wanted(item, node)[0]:
                status["numberMisscheduled"] += bool(alive)
                continue
            status["desiredNumberScheduled"] += 1
            if not alive:
                continue
            status["currentNumberScheduled"] += 1
            ready = [(p, wait) for p in alive if (wait := pods.available_in(p, minimum)) is not None]
            status["numberReady"] += bool(ready)
            status["numberAvailable"] += any(wait == 0.0 for _, wait in ready)
            waits += [wait for _, wait in ready if wait]
            status["updatedNumberScheduled"] += any(_hash(p) == digest for p in alive)
        status["numberUnavailable"] = status["desiredNumberScheduled"] - status["numberAvailable"]
        status["observedGeneration"] = item["metadata"].get("generation", 0)
        status["collisionCount"] = (item.get("status") or {}).get("collisionCount")
        always = ["currentNumberScheduled", "desiredNumberScheduled", "numberMisscheduled", "numberReady"]
        await self.context.write_status(DAEMON_SETS, item, compact(status, always))
        return min(waits, default=None)


def _hash(pod: JSON) -> str:
    return str((pod["metadata"].get("labels") or {}).get(HASH, ""))


def _target(pod: JSON) -> str:
    """The node a pod runs on, or is pinned to."""
    if pod["spec"].get("nodeName"):
        return str(pod["spec"]["nodeName"])
    terms = (
        ((pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}).get(
            "requiredDuringSchedulingIgnoredDuringExecution"
        )
        or {}
    ).get("nodeSelectorTerms") or []
    for term in terms:
        for rule in term.get("matchFields") or []:
            if rule["key"] == "metadata.name":
                return str(rule["values"][0])
    return ""


def _pod(item: JSON, node: str, digest: str) -> JSON:
    """A pod of the set for one node."""
    pod = pods.from_template(copy.deepcopy(item["spec"]["template"]), item, "apps/v1", "DaemonSet")
    pod["metadata"]["labels"][HASH] = digest
    generation = (item["metadata"].get("annotations") or {}).get(GENERATION)
    if generation:
        pod["metadata"]["labels"]["pod-template-generation"] = generation
    spec = pod["spec"]
    pin = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
    affinity = spec.setdefault("affinity", {}).setdefault("nodeAffinity", {})
    required = affinity.setdefault("requiredDuringSchedulingIgnoredDuringExecution", {})
    terms = required.get("nodeSelectorTerms") or [{}]
    required["nodeSelectorTerms"] = [{**term, **pin} for term in terms]
    tolerated = spec.setdefault("tolerations", [])
    extra = [("node.kubernetes.io/network-unavailable", "NoSchedule")] if spec.get("hostNetwork") else []
    for key, effect in (*_TOLERATED, *extra):
        tolerated.append({"key": key, "operator": "Exists", "effect": effect})
    return pod
