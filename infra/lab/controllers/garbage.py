"""The garbage collector: objects whose owners are gone go too; foreground and orphan deletions end.

Semantics: https://kubernetes.io/docs/concepts/architecture/garbage-collection/. It watches the metadata of all
resources that can be listed, watched and deleted, keeps who owns whom, and believes an owner to be gone only after
asking the API server for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError, Informer, Key, key_of
from infra.lab.controllers.discovery import Resource, resources
from infra.lab.controllers.framework import Context, Controller, object_path

if TYPE_CHECKING:
    from collections.abc import Iterator

JSON = dict[str, Any]
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
FOREGROUND, ORPHAN = "foregroundDeletion", "orphan"
NEVER_OWNED = {"events"}
UNKNOWN_OWNER_SECONDS = 0.3  # for the owner's own ADDED event to arrive before the server is asked

log = logging.getLogger(__name__)


class GarbageCollector:
    """See the module. Its queue's keys are (resource path, "namespace/name")."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.controller = Controller("garbage collector", self.reconcile, workers=16)
        self._resources: dict[str, Resource] = {}
        self._objects: dict[str, dict[Key, JSON]] = {}
        self._by_uid: dict[str, tuple[str, Key]] = {}
        self._dependents: dict[str, set[tuple[str, Key]]] = {}
        self._absent: set[str] = set()  # uids that were seen deleted
        self._discovering: asyncio.Task[None] | None = None
        self._again = asyncio.Event()

    def start(self) -> Controller:
        """Begin to watch everything; a new CustomResourceDefinition is watched as soon as it is established."""
        self._again.set()
        self.context.informer(CRDS).on_change(lambda *_: self._again.set())
        self._discovering = asyncio.create_task(self._discover(), name="garbage collector discovery")
        stop = self.controller.stop

        async def stop_both() -> None:
            assert self._discovering is not None  # noqa: S101 - set just above
            self._discovering.cancel()
            await asyncio.gather(self._discovering, return_exceptions=True)
            await stop()

        self.controller.stop = stop_both  # type: ignore[method-assign]  # one handle for both
        return self.controller

    async def _discover(self) -> None:
        while True:
            await self._again.wait()
            self._again.clear()
            try:
                found = await resources(self.context.client)
            except ApiError as error:
                log.info("garbage collector: discovery failed: %s", error)
                await asyncio.sleep(1)
                self._again.set()
                continue
            for resource in found:
                wanted = {"list", "watch", "delete"} <= resource.verbs and resource.plural not in NEVER_OWNED
                if wanted and resource.collection not in self._resources:
                    self._resources[resource.collection] = resource
                    self._watch(resource)
            await asyncio.sleep(0.5)  # CRDs are established a moment after they change

    def _watch(self, resource: Resource) -> None:
        path = resource.collection
        self._objects[path] = {}
        informer: Informer = self.context.informer(path)
        informer.on_change(lambda kind, old, new: self._changed(path, kind, old, new))

    # The graph -----------------------------------------------------------------------------------------------------

    def _changed(self, path: str, kind: str, old: JSON | None, new: JSON) -> None:
        key = key_of(new)
        node = (path, key)
        if old is not None:
            for uid in _owner_uids(old):
                self._disown(uid, node)
        uid = new["metadata"]["uid"]
        if kind == "DELETED":
            self._objects[path].pop(key, None)
            if self._by_uid.get(uid) == node:
                del self._by_uid[uid]
            if self._dependents.get(uid):
                self._absent.add(uid)
            else:
                self._dependents.pop(uid, None)
            for dependent in self._dependents.get(uid, ()):
                self._enqueue(*dependent)
            for owner in _owner_uids(new):
                if owner in self._by_uid:
                    self._enqueue(*self._by_uid[owner])
            return
        self._objects[path][key] = new
        self._by_uid[uid] = node
        for owner in _owner_uids(new):
            self._dependents.setdefault(owner, set()).add(node)
            owning = self._by_uid.get(owner)
            if owning is None:
                self.controller.add_after(_queue_key(path, key), UNKNOWN_OWNER_SECONDS)
            elif _deleting(self._objects[owning[0]].get(owning[1])):
                self._enqueue(*node)
                self._enqueue(*owning)
        if _deleting(new):
            self._enqueue(path, key)

    def _disown(self, uid: str, node: tuple[str, Key]) -> None:
        nodes = self._dependents.get(uid)
        if nodes is not None:
            nodes.discard(node)
            if not nodes:
                del self._dependents[uid]
                self._absent.discard(uid)

    def _enqueue(self, path: str, key: Key) -> None:
        self.controller.add(_queue_key(path, key))

    async def reconcile(self, queued: Key) -> float | None:
        """Look at one object: as an owner that is being deleted, and as a dependent."""
        path = queued[0]
        namespace, _, name = queued[1].partition("/")
        key = (namespace, name)
        item = self._objects.get(path, {}).get(key)
        if item is None:
            return None
        if _deleting(item):
            finalizers = item["metadata"].get("finalizers") or []
            if ORPHAN in finalizers:
                await self._orphan(path, item)
            elif FOREGROUND in finalizers:
                await self._foreground(path, item)
            return None
        references = item["metadata"].get("ownerReferences") or []
        if references:
            await self._attempt(path, item, references)
        return None

    # As an owner ---------------------------------------------------------------------------------------------------

    def _children(self, item: JSON) -> Iterator[tuple[str, JSON, JSON]]:
        uid = item["metadata"]["uid"]
        for path, key in list(self._dependents.get(uid, ())):
            child = self._objects.get(path, {}).get(key)
            if child is not None:
                reference = next(r for r in child["metadata"]["ownerReferences"] if r["uid"] == uid)
                yield path, child, reference

    async def _orphan(self, path: str, item: JSON) -> None:
        """Take the reference out of every dependent, then let the owner go."""
        uid = item["metadata"]["uid"]
        for child_path, child, _ in self._children(item):
            await self._drop_references(child_path, child, {uid})
        await self._remove_finalizer(path, item, ORPHAN)

    async def _foreground(self, path: str, item: JSON) -> None:
        """Delete dependents; the owner goes when none is left that blocks it."""
        blocking = False
        for child_path, child, reference in self._children(item):
            if not _deleting(child):
                others = [r for r in child["metadata"]["ownerReferences"] if r["uid"] != reference["uid"]]
                if any(r["uid"] in self._by_uid and not self._waits(r["uid"]) for r in others):
                    await self._drop_references(child_path, child, {reference["uid"]})
                    continue
                # Only a dependent which has dependents itself has anything to wait for.
                has_children = any(True for _ in self._children(child))
                await self._delete(child_path, child, "Foreground" if has_children else "Background")
            blocking |= bool(reference.get("blockOwnerDeletion"))
        if not blocking:
            await self._remove_finalizer(path, item, FOREGROUND)

    def _waits(self, uid: str) -> bool:
        """An owner that is itself waiting for its dependents."""
        path, key = self._by_uid[uid]
        item = self._objects[path].get(key)
        return item is not None and _deleting(item) and FOREGROUND in (item["metadata"].get("finalizers") or [])

    # As a dependent ------------------------------------------------------------------------------------------------

    async def _attempt(self, path: str, item: JSON, references: list[JSON]) -> None:
        states: dict[str, list[JSON]] = {"there": [], "gone": [], "waiting": []}
        for reference in references:
            states[await self._owner_state(item, reference)].append(reference)
        solid, dangling, waiting = states["there"], states["gone"], states["waiting"]
        if solid:
            if dangling or waiting:
                await self._drop_references(path, item, {r["uid"] for r in [*dangling, *waiting]})
            return
        finalizers = item["metadata"].get("finalizers") or []
        if waiting and any(True for _ in self._children(item)):
            policy = "Foreground"
        else:
            policy = "Orphan" if ORPHAN in finalizers else "Foreground" if FOREGROUND in finalizers else "Background"
        await self._delete(path, item, policy)

    async def _owner_state(self, item: JSON, reference: JSON) -> str:
        """ "there", "gone", or "waiting" (being deleted in the foreground)."""
        uid = reference["uid"]
        if uid in self._by_uid:
            return "waiting" if self._waits(uid) else "there"
        if uid in self._absent:
            return "gone"
        resource = self._resource_of(reference)
        if resource is None:
            return "there"  # a type we cannot look up is no proof of absence
        path = object_path(resource.collection, item["metadata"].get("namespace", "") if resource.namespaced else "")
        try:
            live = await self.context.client.get(f"{path}/{reference['name']}")
        except ApiError as error:
            if error.status == 404:
                self._absent.add(uid)
                return "gone"
            raise
        return "there" if live["metadata"]["uid"] == uid else "gone"

    def _resource_of(self, reference: JSON) -> Resource | None:
        group = reference["apiVersion"].rpartition("/")[0]
        for resource in self._resources.values():
            if resource.kind == reference["kind"] and resource.api_version.rpartition("/")[0] == group:
                return resource
        return None

    # Writes --------------------------------------------------------------------------------------------------------

    def _path(self, path: str, item: JSON) -> str:
        return object_path(path, *key_of(item))

    async def _delete(self, path: str, item: JSON, policy: str) -> None:
        metadata = item["metadata"]
        body = {
            "kind": "DeleteOptions",
            "apiVersion": "v1",
            "propagationPolicy": policy,
            "preconditions": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]},
        }
        try:
            await self.context.client.delete(self._path(path, item), body)
        except ApiError as error:
            if error.status == 409:
                self.controller.add_after(_queue_key(path, key_of(item)), 0.05)
            elif error.status != 404:
                raise

    async def _drop_references(self, path: str, item: JSON, uids: set[str]) -> None:
        metadata = item["metadata"]
        left = [r for r in metadata.get("ownerReferences") or [] if r["uid"] not in uids]
        await self._patch(path, item, {"ownerReferences": left or None})

    async def _remove_finalizer(self, path: str, item: JSON, finalizer: str) -> None:
        left = [f for f in item["metadata"].get("finalizers") or [] if f != finalizer]
        await self._patch(path, item, {"finalizers": left or None})

    async def _patch(self, path: str, item: JSON, metadata: JSON) -> None:
        body = {"metadata": {"resourceVersion": item["metadata"]["resourceVersion"], **metadata}}
        with contextlib.suppress(KeyError):
            body["metadata"]["uid"] = item["metadata"]["uid"]
        try:
            await self.context.client.patch(self._path(path, item), body)
        except ApiError as error:
            if error.status == 409:
                self.controller.add_after(_queue_key(path, key_of(item)), 0.05)
            elif error.status != 404:
                raise


def _queue_key(path: str, key: Key) -> Key:
    return path, "/".join(key)


def _owner_uids(item: JSON) -> list[str]:
    return [reference["uid"] for reference in item["metadata"].get("ownerReferences") or []]


def _deleting(item: JSON | None) -> bool:
    return item is not None and "deletionTimestamp" in item["metadata"]
