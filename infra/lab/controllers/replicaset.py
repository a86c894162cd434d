"""ReplicaSet and ReplicationController: keep the number of pods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError, key_of
from infra.lab.controllers import pods
from infra.lab.controllers.framework import Context, Controller, compact, controller_of, selects

if TYPE_CHECKING:
    from infra.lab.client import Key

JSON = dict[str, Any]
BURST = 500  # pods created or deleted in one go, as in kube-controller-manager


class ReplicaController:
    """One controller for both kinds: they differ in group, in the form of the selector and in two status fields."""

    def __init__(self, context: Context, collection: str, api_version: str, kind: str) -> None:
        self.context = context
        self.collection = collection
        self.api_version = api_version
        self.kind = kind
        self.sets = context.informer(collection)
        self.pods = context.informer(pods.PODS)
        context.by_owner(pods.PODS)
        context.orphans(pods.PODS)
        self.controller = Controller(kind, self.reconcile)

    def start(self) -> Controller:
        """Begin to react to changes."""
        self.sets.on_change(lambda _, __, new: self.controller.add(key_of(new)))
        self.pods.on_change(self._pod_changed)
        return self.controller

    def _pod_changed(self, _: str, old: JSON | None, pod: JSON) -> None:
        pods.enqueue_owner(pod, self.kind, self.controller.add)
        if old is not None:
            pods.enqueue_owner(old, self.kind, self.controller.add)
        if controller_of(pod) is None:
            for key, each in self.sets.objects.items():
                if key[0] == key_of(pod)[0] and selects(self._selector(each), pod["metadata"].get("labels")):
                    self.controller.add(key)

    def _selector(self, item: JSON) -> JSON:
        selector = item["spec"].get("selector") or {}
        return selector if self.kind == "ReplicaSet" else {"matchLabels": selector}

    async def reconcile(self, key: Key) -> float | None:
        """Create or delete pods, then report."""
        await self.sets.synced()
        await self.pods.synced()
        item = self.sets.objects.get(key)
        if item is None:
            return None
        mine = await pods.owned(self.context, item, self.api_version, self.kind, self._selector(item))
        replicas = [pod for pod in mine if pods.active(pod)]
        failure: ApiError | None = None
        if not pods.terminating(item):
            try:
                await self._scale(item, replicas)
            except ApiError as error:
                failure = error
            mine = self.context.by_owner(pods.PODS).get(item["metadata"]["uid"])
            replicas = [pod for pod in mine if pods.active(pod)]
        again = await self._report(item, mine, replicas, failure)
        if failure is not None:
            raise failure
        return again

    async def _scale(self, item: JSON, replicas: list[JSON]) -> None:
        wanted = item["spec"].get("replicas", 1)
        missing = min(wanted - len(replicas), BURST)
        if missing > 0:
            template = item["spec"]["template"]
            new = [pods.from_template(template, item, self.api_version, self.kind) for _ in range(missing)]
            await pods.create_many(self.context, key_of(item)[0], new)
        elif missing < 0:
            await pods.delete_many(self.context, sorted(replicas, key=pods.first_to_go)[: min(-missing, BURST)])

    async def _report(
        self, item: JSON, mine: list[JSON], replicas: list[JSON], failure: ApiError | None
    ) -> float | None:
        minimum = item["spec"].get("minReadySeconds", 0)
        waits = [wait for pod in replicas if (wait := pods.available_in(pod, minimum)) is not None]
        labels = (item["spec"]["template"].get("metadata") or {}).get("labels") or {}
        fully = [pod for pod in replicas if labels.items() <= (pod["metadata"].get("labels") or {}).items()]
        status: JSON = {
            "replicas": len(replicas),
            "fullyLabeledReplicas": len(fully),
            "readyReplicas": len(waits),
            "availableReplicas": sum(wait == 0 for wait in waits),
            "observedGeneration": item["metadata"].get("generation", 0),
            "conditions": _conditions(item, failure),
        }
        keep = ["replicas"]
        if self.kind == "ReplicaSet":
            status["terminatingReplicas"] = sum(pods.terminating(pod) and not pods.finished(pod) for pod in mine)
            keep.append("terminatingReplicas")
        await self.context.write_status(self.collection, item, compact(status, keep))
        return min((wait for wait in waits if wait), default=None)


def _conditions(item: JSON, failure: ApiError | None) -> list[JSON]:
    others = [c for c in (item.get("status") or {}).get("conditions") or [] if c["type"] != "ReplicaFailure"]
    if failure is None:
        return others
    known = pods.condition(item, "ReplicaFailure")
    fresh = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreate",
        "message": failure.message,
        "lastTransitionTime": known["lastTransitionTime"] if known else pods.timestamp(),
    }
    return [*others, fresh]
