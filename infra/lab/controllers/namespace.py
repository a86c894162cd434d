"""The end of a namespace: delete everything in it, say what remains, and take the finalizer away when it is empty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError
from infra.lab.controllers.discovery import Resource, resources
from infra.lab.controllers.framework import Context, Controller, object_path
from infra.lab.controllers.pods import timestamp

if TYPE_CHECKING:
    from infra.lab.client import Key

JSON = dict[str, Any]
NAMESPACES = "/api/v1/namespaces"
LOOK_AGAIN_SECONDS = 0.5


class NamespaceController:
    """Empties namespaces that are being deleted."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.namespaces = context.informer(NAMESPACES)
        self.controller = Controller("namespace", self.reconcile, workers=4)
        self._resources: list[Resource] = []

    def start(self) -> Controller:
        """Begin to react to changes."""
        self.namespaces.on_change(lambda _, __, new: self.controller.add(("", new["metadata"]["name"])))
        return self.controller

    async def reconcile(self, key: Key) -> float | None:
        """Delete what is left; report; finalize when nothing is."""
        namespace = self.namespaces.objects.get(key)
        if namespace is None or "deletionTimestamp" not in namespace["metadata"]:
            return None
        if "kubernetes" not in (namespace["spec"].get("finalizers") or []):
            return None
        remaining: dict[str, int] = {}
        finalizers: dict[str, int] = {}
        for resource in await self._content_types():
            left = await self._empty(resource, key[1])
            if left:
                remaining[resource.qualified] = len(left)
            for item in left:
                for finalizer in item["metadata"].get("finalizers") or []:
                    finalizers[finalizer] = finalizers.get(finalizer, 0) + 1
        namespace = await self._report(key, remaining, finalizers)
        if remaining:
            return LOOK_AGAIN_SECONDS
        spec = {**namespace["spec"], "finalizers": [f for f in namespace["spec"]["finalizers"] if f != "kubernetes"]}
        try:
            await self.context.client.replace(f"{NAMESPACES}/{key[1]}/finalize", {**namespace, "spec": spec})
        except ApiError as error:
            if error.status != 404:
                raise
        return None

    async def _content_types(self) -> list[Resource]:
        wanted = {"list", "delete"}
        found = await resources(self.context.client)
        # Events last: the deletions of everything else make some.
        types = [r for r in found if r.namespaced and wanted <= r.verbs]
        return sorted(types, key=lambda r: r.plural == "events")

    async def _empty(self, resource: Resource, namespace: str) -> list[JSON]:
        """Delete all objects of one type; return those that are still there."""
        path = object_path(resource.collection, namespace)
        try:
            found = (await self.context.client.list(path))["items"]
            if not any("deletionTimestamp" not in item["metadata"] for item in found):
                return list(found)
            if "deletecollection" in resource.verbs:
                await self.context.client.delete(path, {"propagationPolicy": "Background"})
            else:
                for item in found:
                    await self.context.client.delete(f"{path}/{item['metadata']['name']}")
            return list((await self.context.client.list(path))["items"])
        except ApiError as error:
            if error.status in (404, 405):  # a type that was removed meanwhile holds nothing
                return []
            raise

    async def _report(self, key: Key, remaining: dict[str, int], finalizers: dict[str, int]) -> JSON:
        namespace = await self.context.client.get(f"{NAMESPACES}/{key[1]}")
        before = {c["type"]: c for c in (namespace.get("status") or {}).get("conditions") or []}
        types = ", ".join(f"{name} has {count} resource instances" for name, count in sorted(remaining.items()))
        held = ", ".join(f"{name} in {count} resource instances" for name, count in sorted(finalizers.items()))
        made = [
            (
                "NamespaceDeletionDiscoveryFailure",
                False,
                "ResourcesDiscovered",
                "All resources successfully discovered",
            ),
            (
                "NamespaceDeletionGroupVersionParsingFailure",
                False,
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed",
            ),
            (
                "NamespaceDeletionContentFailure",
                False,
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
            ("NamespaceContentRemaining", True, "SomeResourcesRemain", f"Some resources are remaining: {types}")
            if remaining
            else ("NamespaceContentRemaining", False, "ContentRemoved", "All content successfully removed"),
            (
                "NamespaceFinalizersRemaining",
                True,
                "SomeFinalizersRemain",
                f"Some content in the namespace has finalizers remaining: {held}",
            )
            if finalizers
            else (
                "NamespaceFinalizersRemaining",
                False,
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished",
            ),
        ]
        conditions = []
        for kind, holds, reason, message in made:
            fresh = {"type": kind, "status": str(holds), "reason": reason, "message": message}
            old = before.get(kind)
            same = old is not None and old["status"] == fresh["status"]
            conditions.append(
                {**fresh, "lastTransitionTime": old["lastTransitionTime"] if same and old else timestamp()}
            )
        status = {**(namespace.get("status") or {}), "conditions": conditions}
        if status == namespace.get("status"):
            return namespace
        return await self.context.client.replace(f"{NAMESPACES}/{key[1]}/status", {**namespace, "status": status})
