"""Deployment: one ReplicaSet per template, moved from old to new within maxSurge and maxUnavailable.

Semantics: https://kubernetes.io/docs/concepts/workloads/controllers/deployment/. The arithmetic of a rolling update
is in rollout.py, the status in deployment_status.py; both are pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError, key_of
from infra.lab.controllers import deployment_status, pods, rollout
from infra.lab.controllers.framework import (
    Context,
    Controller,
    controller_of,
    object_path,
    owner_reference,
    path_of,
    selects,
)
from infra.lab.controllers.revisions import pruned, safe_hash

if TYPE_CHECKING:
    from infra.lab.client import Key

JSON = dict[str, Any]
DEPLOYMENTS = "/apis/apps/v1/deployments"
SETS = "/apis/apps/v1/replicasets"
HASH = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
DESIRED = "deployment.kubernetes.io/desired-replicas"
LARGEST = "deployment.kubernetes.io/max-replicas"
HISTORY = "deployment.kubernetes.io/revision-history"
_NOT_COPIED = {"kubectl.kubernetes.io/last-applied-configuration", REVISION, HISTORY, DESIRED, LARGEST,
               "deprecated.deployment.rollback.to"}  # fmt: skip


class DeploymentController:
    """See the module."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.deployments = context.informer(DEPLOYMENTS)
        self.sets = context.informer(SETS)
        self.pods = context.informer(pods.PODS)
        context.by_owner(SETS)
        context.orphans(SETS)
        context.by_owner(pods.PODS)
        self.controller = Controller("Deployment", self.reconcile, settle=0.02)

    def start(self) -> Controller:
        """Begin to react to changes."""
        self.deployments.on_change(lambda _, __, new: self.controller.add(key_of(new)))
        self.sets.on_change(self._set_changed)
        self.pods.on_change(self._pod_changed)
        return self.controller

    def _set_changed(self, _: str, __: JSON | None, item: JSON) -> None:
        pods.enqueue_owner(item, "Deployment", self.controller.add)
        if controller_of(item) is None:
            for key, each in self.deployments.objects.items():
                if key[0] == key_of(item)[0] and selects(each["spec"]["selector"], item["metadata"].get("labels")):
                    self.controller.add(key)

    def _pod_changed(self, kind: str, _: JSON | None, pod: JSON) -> None:
        """Only Recreate waits for pods themselves; everything else shows in the ReplicaSets."""
        owner = controller_of(pod)
        if kind == "DELETED" and owner is not None and owner["kind"] == "ReplicaSet":
            replica_set = self.sets.get(pod["metadata"]["namespace"], owner["name"])
            if replica_set is not None:
                pods.enqueue_owner(replica_set, "Deployment", self.controller.add)

    async def reconcile(self, key: Key) -> float | None:
        """One step towards the wanted state, then the status."""
        await self.deployments.synced()
        await self.sets.synced()
        await self.pods.synced()
        item = self.deployments.objects.get(key)
        if item is None:
            return None
        if not item["spec"].get("selector"):
            return None
        sets = await self._owned(item)
        if pods.terminating(item):
            await self._report(item, sets, self._matching(item, sets))
            return None
        item = await self._mark_pause(item)
        if item["spec"].get("paused"):
            new = self._matching(item, sets)
            await self._scale_proportionally(item, sets, new)
            await self._clean_up(item, self._others(sets, new))
        elif self._scaled(item, sets):
            new = await self._new_set(item, sets, create=False)
            await self._scale_proportionally(item, sets, new)
        elif item["spec"]["strategy"].get("type") == "Recreate":
            new = await self._recreate(item, sets)
        else:
            new = await self._roll(item, sets)
        sets = self.context.by_owner(SETS).get(item["metadata"]["uid"])
        new = next((s for s in sets if new is not None and key_of(s) == key_of(new)), new)
        newest = self.deployments.objects.get(key, item)
        if newest["metadata"].get("generation") != item["metadata"].get("generation"):
            return 0.0  # what was done above answers an older generation: reporting it as observed would be a lie
        return await self._report(newest, sets, new)

    # ReplicaSets ---------------------------------------------------------------------------------------------------

    async def _owned(self, item: JSON) -> list[JSON]:
        mine = []
        for each in self.context.by_owner(SETS).get(item["metadata"]["uid"]):
            if selects(item["spec"]["selector"], each["metadata"].get("labels")):
                mine.append(each)
            else:
                await pods.release(self.context, SETS, each, item)
        if not pods.terminating(item):
            for each in self.context.orphans(SETS).get(key_of(item)[0]):
                if selects(item["spec"]["selector"], each["metadata"].get("labels")) and not pods.terminating(each):
                    mine.append(await pods.adopt(self.context, SETS, each, item, "apps/v1", "Deployment"))
        return mine

    @staticmethod
    def _matching(item: JSON, sets: list[JSON]) -> JSON | None:
        """The oldest ReplicaSet whose template is the Deployment's (apart from the hash label)."""
        wanted = pruned(item["spec"]["template"])
        found = [s for s in sets if _bare_template(s) == wanted]
        return min(found, key=lambda s: (s["metadata"]["creationTimestamp"], s["metadata"]["name"]), default=None)

    @staticmethod
    def _others(sets: list[JSON], new: JSON | None) -> list[JSON]:
        return [s for s in sets if new is None or s["metadata"]["uid"] != new["metadata"]["uid"]]

    async def _new_set(self, item: JSON, sets: list[JSON], *, create: bool = True) -> JSON | None:
        """The ReplicaSet of the template: brought up to date, or created. The Deployment's revision follows it."""
        new = self._matching(item, sets)
        others = self._others(sets, new)
        revision = str(max((_revision(s) for s in others), default=0) + 1)
        if new is not None:
            wanted = _annotations(item, new, revision)
            minimum = item["spec"].get("minReadySeconds", 0)
            if wanted != (new["metadata"].get("annotations") or {}) or minimum != new["spec"].get("minReadySeconds", 0):
                body = {"metadata": {"annotations": wanted}, "spec": {"minReadySeconds": minimum or None}}
                new = await self._patch_set(new, body)
            await self._set_revision(item, _annotations(item, new, revision)[REVISION])
            return new
        if not create:
            return None
        new = await self._create_set(item, others, revision)
        newest = self.deployments.objects.get(key_of(item), item)
        await self._set_revision(item, revision, deployment_status.created_conditions(newest, new))
        return new

    async def _create_set(self, item: JSON, others: list[JSON], revision: str) -> JSON:
        namespace, name = key_of(item)
        template = item["spec"]["template"]
        collisions = (item.get("status") or {}).get("collisionCount") or 0
        while True:
            digest = safe_hash(pruned(template), collisions)
            metadata = template.get("metadata") or {}
            labels = {**(metadata.get("labels") or {}), HASH: digest}
            selector = item["spec"]["selector"]
            body: JSON = {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "metadata": {
                    "name": f"{name}-{digest}",
                    "labels": labels,
                    "annotations": _annotations(item, None, revision),
                    "ownerReferences": [owner_reference(item, "apps/v1", "Deployment")],
                },
                "spec": {
                    "replicas": rollout.first_size(item, others),
                    "selector": {**selector, "matchLabels": {**(selector.get("matchLabels") or {}), HASH: digest}},
                    "template": {**template, "metadata": {**metadata, "labels": labels}},
                },
            }
            if item["spec"].get("minReadySeconds"):
                body["spec"]["minReadySeconds"] = item["spec"]["minReadySeconds"]
            try:
                answer = await self.context.client.create(object_path(SETS, namespace), body)
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise
                there = await self.context.client.get(object_path(SETS, namespace, f"{name}-{digest}"))
                owner = controller_of(there)
                if owner and owner["uid"] == item["metadata"]["uid"] and _bare_template(there) == pruned(template):
                    return there
                collisions += 1
                continue
            self.sets.observe(answer)
            return answer

    async def _set_revision(self, item: JSON, revision: str, conditions: list[JSON] | None = None) -> None:
        """Write the revision annotation (and conditions) through the status subresource, as a real controller does.

        A change of annotations through the object itself would count as a new generation of a Deployment.
        """
        newest = self.deployments.objects.get(key_of(item), item)
        notes = newest["metadata"].get("annotations") or {}
        if notes.get(REVISION) == revision and conditions is None:
            return
        body = {**newest, "metadata": {**newest["metadata"], "annotations": {**notes, REVISION: revision}}}
        if conditions is not None:
            body["status"] = {**(newest.get("status") or {}), "conditions": conditions}
        self.deployments.observe(await self.context.client.replace(f"{path_of(DEPLOYMENTS, item)}/status", body))

    async def _patch_set(self, item: JSON, body: JSON) -> JSON:
        answer = await self.context.client.patch(path_of(SETS, item), body)
        self.sets.observe(answer)
        return answer

    async def _resize(self, item: JSON, deployment: JSON, size: int) -> JSON:
        """Set a ReplicaSet's size and the annotations that later tell whether the Deployment was scaled since."""
        sizes = _sizes(deployment)
        known = item["metadata"].get("annotations") or {}
        body: JSON = {}
        if item["spec"].get("replicas", 1) != size:
            body["spec"] = {"replicas": size}
        if any(known.get(k) != v for k, v in sizes.items()):
            body["metadata"] = {"annotations": sizes}
        if not body:
            return item
        body.setdefault("metadata", {})["resourceVersion"] = item["metadata"]["resourceVersion"]
        return await self._patch_set(item, body)

    # Strategies ----------------------------------------------------------------------------------------------------

    @staticmethod
    def _scaled(item: JSON, sets: list[JSON]) -> bool:
        wanted = str(item["spec"].get("replicas", 1))
        return any(
            s["spec"].get("replicas", 1) and (s["metadata"].get("annotations") or {}).get(DESIRED, wanted) != wanted
            for s in sets
        )

    async def _scale_proportionally(self, item: JSON, sets: list[JSON], new: JSON | None) -> None:
        for each, size in rollout.proportional(item, sets, new, lambda s: _number(s, LARGEST)):
            await self._resize(each, item, size)

    async def _recreate(self, item: JSON, sets: list[JSON]) -> JSON | None:
        new = self._matching(item, sets)
        old = self._others(sets, new)
        for each in old:
            await self._resize(each, item, 0)
        uids = {s["metadata"]["uid"] for s in old}
        if any(not pods.finished(pod) for uid in uids for pod in self.context.by_owner(pods.PODS).get(uid)):
            return new
        new = await self._new_set(item, sets)
        if new is not None:
            new = await self._resize(new, item, item["spec"].get("replicas", 1))
        await self._clean_up_when_complete(item, new, old)
        return new

    async def _roll(self, item: JSON, sets: list[JSON]) -> JSON | None:
        new = await self._new_set(item, sets)
        assert new is not None  # noqa: S101 - with create=True there is one
        old = self._others(sets, new)
        size = rollout.new_size(item, new, old)
        if size != new["spec"].get("replicas", 1):
            return await self._resize(new, item, size)
        new = await self._resize(new, item, size)
        for each, smaller in rollout.old_sizes(item, new, old):
            await self._resize(each, item, smaller)
        await self._clean_up_when_complete(item, new, old)
        return new

    async def _clean_up_when_complete(self, item: JSON, new: JSON | None, old: list[JSON]) -> None:
        if deployment_status.complete(item, deployment_status.counters(item, [*old, *([new] if new else [])], new)):
            await self._clean_up(item, old)

    async def _clean_up(self, item: JSON, old: list[JSON]) -> None:
        """Delete the oldest empty ReplicaSets beyond revisionHistoryLimit."""
        limit = item["spec"].get("revisionHistoryLimit", 10)
        surplus = len(old) - limit
        for each in sorted(old, key=_revision)[: max(surplus, 0)]:
            busy = (each.get("status") or {}).get("replicas") or each["spec"].get("replicas", 1)
            stale = (each.get("status") or {}).get("observedGeneration", 0) < each["metadata"].get("generation", 0)
            if not busy and not stale and not pods.terminating(each):
                try:
                    await self.context.client.delete(path_of(SETS, each), {"propagationPolicy": "Background"})
                except ApiError as error:
                    if error.status != 404:
                        raise

    # Status --------------------------------------------------------------------------------------------------------

    async def _mark_pause(self, item: JSON) -> JSON:
        conditions = deployment_status.pause_conditions(item)
        if conditions is None:
            return item
        return await self.context.write_status(
            DEPLOYMENTS, item, {**(item.get("status") or {}), "conditions": conditions}
        )

    async def _report(self, item: JSON, sets: list[JSON], new: JSON | None) -> float | None:
        status, again = deployment_status.compute(item, sets, new)
        await self.context.write_status(DEPLOYMENTS, item, status)
        return again


def _bare_template(item: JSON) -> Any:
    template = item["spec"]["template"]
    metadata = template.get("metadata") or {}
    labels = {k: v for k, v in (metadata.get("labels") or {}).items() if k != HASH}
    return pruned({**template, "metadata": {**metadata, "labels": labels}})


def _number(item: JSON, annotation: str) -> int | None:
    text = (item["metadata"].get("annotations") or {}).get(annotation, "")
    return int(text) if text.isdigit() else None


def _revision(item: JSON) -> int:
    return _number(item, REVISION) or 0


def _sizes(item: JSON) -> dict[str, str]:
    replicas = item["spec"].get("replicas", 1)
    return {DESIRED: str(replicas), LARGEST: str(replicas + rollout.surge(item))}


def _annotations(item: JSON, there: JSON | None, revision: str) -> dict[str, str]:
    """The annotations a new ReplicaSet carries: the Deployment's own, its revision (never going back), the sizes."""
    copied = {k: v for k, v in (item["metadata"].get("annotations") or {}).items() if k not in _NOT_COPIED}
    if there is None:
        return {**copied, REVISION: revision, **_sizes(item)}
    known = dict(there["metadata"].get("annotations") or {})
    wanted = {**known, **copied}
    old = known.get(REVISION, "0")
    if not old.isdigit() or int(old) < int(revision):
        wanted[REVISION] = revision
        if old.isdigit() and int(old) > 0:  # a template that comes back remembers which revisions it was
            wanted[HISTORY] = ",".join(filter(None, [known.get(HISTORY), old]))
    return wanted
