"""Template hashes and ControllerRevisions: how workloads tell one version of their template from another."""

from __future__ import annotations

import json
from typing import Any

from infra.lab.client import ApiError, key_of
from infra.lab.controllers.framework import Context, object_path, owner_reference, path_of

JSON = dict[str, Any]
REVISIONS = "/apis/apps/v1/controllerrevisions"
_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"  # no vowels, no digits that look like letters: no accidental words


def safe_hash(value: Any, collisions: int = 0) -> str:
    """A short name-safe hash of a JSON value: FNV-1a (32 bit), its decimal digits mapped to consonants as Kubernetes
    does.

    The value is not the one a real controller computes for the same template (that hashes a dump of Go structures);
    only its form is.
    """
    digest = 0x811C9DC5
    for byte in json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + (
        b"%d" % collisions if collisions else b""
    ):
        digest = (digest ^ byte) * 0x01000193 & 0xFFFFFFFF
    return "".join(_ALPHABET[ord(digit) % len(_ALPHABET)] for digit in str(digest))


def pruned(value: Any) -> Any:
    """Without nulls, empty maps and empty lists: an absent field and an empty one mean the same in a template."""
    if isinstance(value, dict):
        return {k: p for k, v in value.items() if (p := pruned(v)) not in (None, {}, [])}
    if isinstance(value, list):
        return [pruned(each) for each in value]
    return value


class History:
    """The ControllerRevisions of one StatefulSet or DaemonSet, oldest first."""

    def __init__(self, context: Context, owner: JSON, kind: str) -> None:
        self.context = context
        self.owner = owner
        self.kind = kind
        found = context.by_owner(REVISIONS).get(owner["metadata"]["uid"])
        self.revisions = sorted(found, key=lambda r: (r["revision"], r["metadata"]["creationTimestamp"]))

    async def current(self) -> JSON:
        """The revision of the owner's template as it is now: found, moved to the front, or created. Raises ApiError."""
        data = {"spec": {"template": {**self.owner["spec"]["template"], "$patch": "replace"}}}
        same = [r for r in self.revisions if pruned(r["data"]) == pruned(data)]
        newest = self.revisions[-1]["revision"] if self.revisions else 0
        if same and same[-1] is self.revisions[-1]:
            found: JSON = same[-1]
            return found
        if same:  # an old template again: it becomes the newest revision instead of a second copy
            answer = await self.context.client.patch(path_of(REVISIONS, same[-1]), {"revision": newest + 1})
            self.revisions.remove(same[-1])
        else:
            answer = await self._create(data, newest + 1)
        self.context.informer(REVISIONS).observe(answer)
        self.revisions.append(answer)
        return answer

    async def _create(self, data: JSON, number: int) -> JSON:
        namespace, name = key_of(self.owner)
        collisions = (self.owner.get("status") or {}).get("collisionCount") or 0
        while True:
            digest = safe_hash(pruned(data), collisions)
            labels = {
                **(self.owner["spec"]["template"]["metadata"].get("labels") or {}),
                "controller.kubernetes.io/hash": digest,
            }
            if self.kind == "DaemonSet":
                labels["controller-revision-hash"] = digest
            body = {
                "apiVersion": "apps/v1",
                "kind": "ControllerRevision",
                "metadata": {
                    "name": f"{name}-{digest}",
                    "labels": labels,
                    "ownerReferences": [owner_reference(self.owner, "apps/v1", self.kind)],
                },
                "data": data,
                "revision": number,
            }
            try:
                return await self.context.client.create(object_path(REVISIONS, namespace), body)
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise
                there = await self.context.client.get(object_path(REVISIONS, namespace, f"{name}-{digest}"))
                owners = [r["uid"] for r in there["metadata"].get("ownerReferences") or []]
                if pruned(there["data"]) == pruned(data) and self.owner["metadata"]["uid"] in owners:
                    return there
                collisions += 1

    async def trim(self, live: set[str], keep: int) -> None:
        """Delete the oldest revisions beyond `keep` whose names are not in `live`. Raises ApiError."""
        unused = [r for r in self.revisions if r["metadata"]["name"] not in live]
        for revision in unused[: max(len(unused) - keep, 0)]:
            try:
                await self.context.client.delete(path_of(REVISIONS, revision))
            except ApiError as error:
                if error.status != 404:
                    raise
