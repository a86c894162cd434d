"""StatefulSet: pods with names and an order.

Semantics: https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/. Pods NAME-0, NAME-1, ... are
created in order, each after the one before is available (unless podManagementPolicy is Parallel), replaced from the
highest ordinal down to the partition, and never replaced by OnDelete.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError, key_of
from infra.lab.controllers import pods
from infra.lab.controllers.framework import Context, Controller, compact, object_path, percent
from infra.lab.controllers.revisions import REVISIONS, History

if TYPE_CHECKING:
    from infra.lab.client import Key

JSON = dict[str, Any]
STATEFUL_SETS = "/apis/apps/v1/statefulsets"
CLAIMS = "/api/v1/persistentvolumeclaims"
REVISION_LABEL = "controller-revision-hash"


class StatefulSetController:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.sets = context.informer(STATEFUL_SETS)
        self.pods = context.informer(pods.PODS)
        self.revisions = context.informer(REVISIONS)
        context.by_owner(REVISIONS)
        context.by_owner(pods.PODS)
        context.orphans(pods.PODS)
        self.controller = Controller("StatefulSet", self.reconcile)

    def start(self) -> Controller:
        """Begin to react to changes."""
        self.sets.on_change(lambda _, __, new: self.controller.add(key_of(new)))
        self.pods.on_change(lambda _, __, pod: pods.enqueue_owner(pod, "StatefulSet", self.controller.add))
        return self.controller

    async def reconcile(self, key: Key) -> float | None:
        """One step in the order, then the status."""
        for informer in (self.sets, self.pods, self.revisions):
            await informer.synced()
        item = self.sets.objects.get(key)
        if item is None:
            return None
        mine = await pods.owned(self.context, item, "apps/v1", "StatefulSet", item["spec"]["selector"])
        history = History(self.context, item, "StatefulSet")
        update = str((await history.current())["metadata"]["name"])
        known = {r["metadata"]["name"] for r in history.revisions}
        current = str((item.get("status") or {}).get("currentRevision"))
        if current not in known:
            current = update
        by_ordinal = {o: pod for pod in mine if (o := _ordinal(item, pod)) is not None}
        again = None
        if not pods.terminating(item):
            again = await self._step(item, by_ordinal, history, current, update)
        mine = self.context.by_owner(pods.PODS).get(item["metadata"]["uid"])
        wait = await self._report(item, mine, current, update)
        live = {current, update} | {(p["metadata"].get("labels") or {}).get(REVISION_LABEL, "") for p in mine}
        await history.trim(live, item["spec"].get("revisionHistoryLimit", 10))
        waits = [seconds for seconds in (again, wait) if seconds is not None]
        return min(waits, default=None)

    async def _step(
        self, item: JSON, there: dict[int, JSON], history: History, current: str, update: str
    ) -> float | None:
        spec = item["spec"]
        start = (spec.get("ordinals") or {}).get("start", 0)
        wanted = range(start, start + spec.get("replicas", 1))
        parallel = spec.get("podManagementPolicy") == "Parallel"
        minimum = spec.get("minReadySeconds", 0)
        # Up: every ordinal in turn exists and is available before the next one is looked at.
        for ordinal in wanted:
            pod = there.get(ordinal)
            if pod is not None and pods.finished(pod) and not pods.terminating(pod):
                await pods.delete(self.context, pod)  # a failed or finished pod is replaced
                return None
            if pod is not None and pods.terminating(pod) and not parallel:
                return None  # its name is free when it has gone; the watch tells
            if pod is None:
                revision = self._revision_for(item, ordinal - start, current, update)
                await self._create(item, ordinal, revision, history)
                if not parallel:
                    return None
            elif not parallel and (wait := pods.available_in(pod, minimum)) != 0.0:
                return wait
        # Down: the highest ordinal first, and only while all lower ones are healthy.
        surplus = sorted((o for o in there if o not in wanted), reverse=True)
        for ordinal in surplus:
            pod = there[ordinal]
            if not pods.terminating(pod):
                await pods.delete(self.context, pod)
            if not parallel:
                return None
        if surplus:
            return None
        return await self._update(item, there, wanted, update)

    async def _update(self, item: JSON, there: dict[int, JSON], wanted: range, update: str) -> float | None:
        """Replace pods of an old revision, from the highest ordinal down to the partition."""
        strategy = item["spec"].get("updateStrategy") or {}
        if strategy.get("type") == "OnDelete":
            return None
        rolling = strategy.get("rollingUpdate") or {}
        partition = wanted.start + rolling.get("partition", 0)
        room = max(percent(rolling.get("maxUnavailable", 1), len(wanted), up=True), 1)
        minimum = item["spec"].get("minReadySeconds", 0)
        waits: list[float] = []
        missing = 0
        for ordinal in wanted:
            pod = there.get(ordinal)
            wait = None if pod is None or pods.terminating(pod) else pods.available_in(pod, minimum)
            missing += wait != 0.0
            waits += [wait] if wait else []
        for ordinal in sorted((o for o in wanted if o >= partition), reverse=True):
            pod = there.get(ordinal)
            if pod is None or pods.terminating(pod):
                if missing >= room:
                    return min(waits, default=None)
                continue
            old = (pod["metadata"].get("labels") or {}).get(REVISION_LABEL) != update
            if old and (missing < room or pods.available_in(pod, minimum) is None):
                await pods.delete(self.context, pod)
                missing += 1
            if missing >= room:
                return min(waits, default=None)
        return min(waits, default=None)

    @staticmethod
    def _revision_for(item: JSON, index: int, current: str, update: str) -> str:
        """Which revision a pod that is missing is made of: below the partition, still the current one."""
        strategy = item["spec"].get("updateStrategy") or {}
        if strategy.get("type", "RollingUpdate") != "RollingUpdate":
            return update
        rolling = strategy.get("rollingUpdate")
        bound = (item.get("status") or {}).get("currentReplicas", 0) if rolling is None else rolling.get("partition", 0)
        return current if index < bound else update

    async def _create(self, item: JSON, ordinal: int, revision: str, history: History) -> None:
        namespace, name = key_of(item)
        chosen = next((r for r in history.revisions if r["metadata"]["name"] == revision), None)
        template = chosen["data"]["spec"]["template"] if chosen else item["spec"]["template"]
        pod = pods.from_template(copy.deepcopy(template), item, "apps/v1", "StatefulSet")
        pod["metadata"]["generateName"] = f"{name}-"
        pod["metadata"]["name"] = f"{name}-{ordinal}"
        pod["metadata"]["labels"] |= {
            "statefulset.kubernetes.io/pod-name": f"{name}-{ordinal}",
            "apps.kubernetes.io/pod-index": str(ordinal),
            REVISION_LABEL: revision,
        }
        pod["spec"]["hostname"] = f"{name}-{ordinal}"
        if item["spec"].get("serviceName"):
            pod["spec"]["subdomain"] = item["spec"]["serviceName"]
        await self._claims(item, ordinal, pod)
        try:
            await pods.create(self.context, namespace, pod)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise

    async def _claims(self, item: JSON, ordinal: int, pod: JSON) -> None:
        """Create the claims of this ordinal and mount them in place of volumes of the same name."""
        namespace, name = key_of(item)
        for template in item["spec"].get("volumeClaimTemplates") or []:
            volume = template["metadata"]["name"]
            claim = f"{volume}-{name}-{ordinal}"
            labels = {
                **(template["metadata"].get("labels") or {}),
                **(item["spec"]["selector"].get("matchLabels") or {}),
            }
            body = {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": claim, "labels": labels},
                "spec": template["spec"],
            }
            try:
                await self.context.client.create(object_path(CLAIMS, namespace), body)
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise
            others = [v for v in pod["spec"].get("volumes") or [] if v["name"] != volume]
            pod["spec"]["volumes"] = [*others, {"name": volume, "persistentVolumeClaim": {"claimName": claim}}]

    async def _report(self, item: JSON, mine: list[JSON], current: str, update: str) -> float | None:
        minimum = item["spec"].get("minReadySeconds", 0)
        waits = {p["metadata"]["name"]: pods.available_in(p, minimum) for p in mine}
        going = {p["metadata"]["name"] for p in mine if pods.terminating(p)}

        def count(revision: str) -> int:
            return sum(
                (p["metadata"].get("labels") or {}).get(REVISION_LABEL) == revision
                for p in mine
                if p["metadata"]["name"] not in going
            )

        known = item.get("status") or {}
        status: JSON = {
            "observedGeneration": item["metadata"].get("generation", 0),
            "replicas": len(mine),
            "readyReplicas": sum(wait is not None for wait in waits.values()),
            "availableReplicas": sum(wait == 0.0 for wait in waits.values()),
            "currentReplicas": count(current),
            "updatedReplicas": count(update),
            "currentRevision": current,
            "updateRevision": update,
            "collisionCount": known.get("collisionCount") or 0,
            "conditions": known.get("conditions"),
        }
        rolling = (item["spec"].get("updateStrategy") or {}).get("type", "RollingUpdate") == "RollingUpdate"
        if rolling and status["updatedReplicas"] == status["replicas"] == status["readyReplicas"]:
            # The update is complete: what was new is now current.
            status["currentReplicas"] = status["updatedReplicas"]
            status["currentRevision"] = update
        await self.context.write_status(
            STATEFUL_SETS, item, compact(status, ["replicas", "collisionCount", "availableReplicas"])
        )
        return min((wait for wait in waits.values() if wait), default=None)


def _ordinal(item: JSON, pod: JSON) -> int | None:
    head, _, tail = pod["metadata"]["name"].rpartition("-")
    return int(tail) if head == item["metadata"]["name"] and tail.isdigit() else None
