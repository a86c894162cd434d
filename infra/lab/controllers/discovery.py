"""Which resources a server has: for controllers that work on all of them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError

if TYPE_CHECKING:
    from infra.lab.client import KubeClient

JSON = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """One resource of the preferred version of its group."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool
    verbs: frozenset[str]

    @property
    def collection(self) -> str:
        """The path of its collection over all namespaces."""
        root = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        return f"{root}/{self.plural}"

    @property
    def qualified(self) -> str:
        """plural.group, as messages name it ("configmaps", "deployments.apps")."""
        group, _, _ = self.api_version.rpartition("/")
        return f"{self.plural}.{group}" if group else self.plural


async def resources(client: KubeClient) -> list[Resource]:
    """All resources without subresources. Groups that do not answer are left out (an aggregated API may be down).
    Raises ApiError.
    """
    groups = (await client.get("/apis"))["groups"]
    versions = ["v1", *(group["preferredVersion"]["groupVersion"] for group in groups)]
    answers = await asyncio.gather(*(_of(client, version) for version in versions))
    return [resource for answer in answers for resource in answer]


async def _of(client: KubeClient, api_version: str) -> list[Resource]:
    root = "/apis" if "/" in api_version else "/api"
    try:
        answer = await client.get(f"{root}/{api_version}")
    except ApiError as error:
        if error.status in (404, 503):
            return []
        raise
    return [
        Resource(api_version, each["kind"], each["name"], bool(each["namespaced"]), frozenset(each["verbs"]))
        for each in answer["resources"]
        if "/" not in each["name"]
    ]
