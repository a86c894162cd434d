"""The managed clusters of a subscription, and the operations that change them. No HTTP here."""

from __future__ import annotations

import asyncio
import copy
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from infra.lab.aks.arm import validation
from infra.lab.aks.arm.errors import ArmError

JSON = dict[str, Any]
Apply = Callable[[JSON, JSON | None], Awaitable[None]]  # (new properties, old properties or None)


@dataclass
class Operation:
    """A long-running change. `status` is InProgress, Succeeded or Failed."""

    id: str
    started: datetime
    status: str = "InProgress"
    ended: datetime | None = None
    error: JSON | None = None

    def document(self) -> JSON:
        """As the operation's URL answers."""
        found: JSON = {"name": self.id, "status": self.status, "startTime": _stamp(self.started)}
        if self.ended is not None:
            found["endTime"] = _stamp(self.ended)
        if self.error is not None:
            found["error"] = self.error
        return found


@dataclass
class Cluster:
    """One managed cluster.

    Attributes:
        body: What was put last: location, tags, properties and the like.
        state: provisioningState.
        etag: Changes with every change of the body or the state.
    """

    name: str
    group: str
    body: JSON
    state: str = "Succeeded"
    etag: str = field(default_factory=lambda: str(uuid.uuid4()))
    operation: Operation | None = None

    @property
    def properties(self) -> JSON:
        """What its last accepted body says."""
        found: JSON = self.body.setdefault("properties", {})
        return found


class Clusters:
    """All clusters of one subscription.

    Args:
        subscription: Its id.
        apply: Carries a change out; an ArmError of it makes the operation fail.
        now: Aware UTC.
    """

    def __init__(
        self, subscription: str, apply: Apply, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.subscription = subscription
        self.groups: set[str] = set()
        self.operations: dict[str, Operation] = {}
        self._apply = apply
        self._now = now
        self._clusters: dict[tuple[str, str], Cluster] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, group: str, name: str, body: JSON) -> Cluster:
        """A cluster that is there from the start."""
        self.groups.add(group.lower())
        cluster = Cluster(name, group, copy.deepcopy(body))
        self._clusters[group.lower(), name.lower()] = cluster
        return cluster

    def get(self, group: str, name: str) -> Cluster:
        """A cluster by its group and name, whatever their case. Raises ArmError 404."""
        self.check_group(group)
        cluster = self._clusters.get((group.lower(), name.lower()))
        if cluster is None:
            raise ArmError(
                404,
                "ResourceNotFound",
                f"The Resource 'Microsoft.ContainerService/managedClusters/{name}' under resource group '{group}' was"
                " not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix",
            )
        return cluster

    def all(self, group: str | None = None) -> list[Cluster]:
        """Every cluster, or those of a group. Raises ArmError 404."""
        if group is None:
            return list(self._clusters.values())
        self.check_group(group)
        return [cluster for (its, _), cluster in self._clusters.items() if its == group.lower()]

    def put(
        self, group: str, name: str, body: JSON, if_match: str = "", if_none_match: str = ""
    ) -> tuple[Cluster, bool]:
        """Begin to create or update; the cluster as it is meanwhile, and whether it is new.

        Raises:
            ArmError: 400 for a body that cannot be, 404 no such group, 409 an operation runs, 412 another etag.
        """
        self.check_group(group)
        held = self._clusters.get((group.lower(), name.lower()))
        self._check_etag(held, if_match, if_none_match)
        if not isinstance(body.get("location"), str):
            raise ArmError(
                400,
                "LocationRequired",
                f"The location property is required for the 'Microsoft.ContainerService/managedClusters/{name}'"
                " resource.",
            )
        if held is not None and held.operation is not None and held.operation.status == "InProgress":
            raise ArmError(
                409,
                "OperationNotAllowed",
                "Operation is not allowed because there's an in progress update managed cluster operation on the"
                f" managed cluster {name} started at {_stamp(held.operation.started)}. Please wait for it to finish"
                " before starting a new operation.",
            )
        old = None if held is None else held.properties
        body = copy.deepcopy(body)
        new = body.setdefault("properties", {})
        validation.check(new, old)
        cluster = held or Cluster(name, group, body)
        self._clusters[group.lower(), name.lower()] = cluster
        before, cluster.body = cluster.body, body
        cluster.state = "Creating" if held is None else "Updating"
        cluster.etag = str(uuid.uuid4())
        operation = Operation(str(uuid.uuid4()), self._now())
        self.operations[operation.id] = cluster.operation = operation
        task = asyncio.create_task(self._carry_out(cluster, operation, old, before))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return cluster, held is None

    def document(self, cluster: Cluster) -> JSON:
        """The resource as a GET shows it: the body, and what the service adds."""
        found = copy.deepcopy(cluster.body)
        found |= {
            "id": f"/subscriptions/{self.subscription}/resourcegroups/{cluster.group}"
            f"/providers/Microsoft.ContainerService/managedClusters/{cluster.name}",
            "name": cluster.name,
            "type": "Microsoft.ContainerService/ManagedClusters",
            "eTag": cluster.etag,
        }
        properties = found["properties"]
        properties["provisioningState"] = cluster.state
        properties.setdefault("powerState", {"code": "Running"})
        for addon, profile in (properties.get("addonProfiles") or {}).items():
            if profile.get("enabled"):
                profile["identity"] = self.identity(cluster, addon)
        return found

    async def stop(self) -> None:
        """Abandon what runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check_group(self, group: str) -> None:
        """Raises ArmError 404."""
        if group.lower() not in self.groups:
            raise ArmError(404, "ResourceGroupNotFound", f"Resource group '{group}' could not be found.")

    async def _carry_out(self, cluster: Cluster, operation: Operation, old: JSON | None, before: JSON) -> None:
        try:
            await self._apply(cluster.properties, old)
        except ArmError as error:
            operation.status, operation.error = "Failed", {"code": error.code, "message": error.message}
            cluster.state = "Failed"
            if old is not None:
                cluster.body = before
        except Exception as error:  # noqa: BLE001 - whatever fails, whoever polls the operation must be told
            operation.status = "Failed"
            operation.error = {"code": "InternalOperationError", "message": f"{type(error).__name__}: {error}"}
            cluster.state = "Failed"
            if old is not None:
                cluster.body = before
        else:
            operation.status, cluster.state = "Succeeded", "Succeeded"
        operation.ended = self._now()
        cluster.etag = str(uuid.uuid4())

    def _check_etag(self, held: Cluster | None, if_match: str, if_none_match: str) -> None:
        found = "" if held is None else held.etag
        wrong = (if_match == "*" and held is None) or (if_match not in ("", "*") and if_match.strip('"') != found)
        exists = bool(held) and if_none_match in ("*", found)
        if wrong:
            raise ArmError(
                412,
                "PreconditionFailed",
                f"The etag provided in if-match header {if_match} does not match etag {found} of resource in CCP"
                " cache.",
            )
        if exists:
            raise ArmError(412, "PreconditionFailed", "The resource exists, and if-none-match forbids that.")

    def identity(self, cluster: Cluster, addon: str) -> JSON:
        """The add-on's user-assigned identity, made by the service: the same one every time."""
        name = f"{addon.lower()}-{cluster.name}"
        seed = uuid.uuid5(uuid.NAMESPACE_URL, f"{self.subscription}/{cluster.group}/{name}".lower())
        location = str(cluster.body.get("location", ""))
        return {
            "resourceId": f"/subscriptions/{self.subscription}/resourcegroups/MC_{cluster.group}_{cluster.name}_"
            f"{location}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{name}",
            "clientId": str(uuid.uuid5(seed, "client")),
            "objectId": str(uuid.uuid5(seed, "object")),
        }


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
