"""The rotation record: what a rotation must remember and cannot see in the cluster.

One ConfigMap per trust domain in Capstan's own namespace. Which phase a rotation is in is *not* here: that is derived
from certificates. Fingerprints and references only; never key material.
"""

from __future__ import annotations

import json
from datetime import datetime  # noqa: TC003  # pydantic reads the annotations at run time
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer

from capstan.cluster.resources import CONFIG_MAPS, NAMESPACES
from capstan.errors import Conflict, InvalidInput, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable

    from capstan.cluster.client import Cluster
    from capstan.cluster.lease import LeaseLock
    from capstan.cluster.values import Object

NAMESPACE: Final = "capstan-system"
KEY: Final = "record.json"
SCHEMA_VERSION: Final = 3
READABLE: Final = frozenset({1, 2, SCHEMA_VERSION})  # 2 only adds fields to 1, and 3 `kind` to 2
LOG_LENGTH: Final = 400  # entries; some 100 bytes each, far below a ConfigMap's 1 MiB
WRITE_ATTEMPTS: Final = 8
BUDGET: Final = 5  # restarts of a crashed run between two phases


Kind = Literal["anchor", "issuer", "re-date", "webhooks", "expired"]
"""What a rotation gives a trust domain: another root and other issuers; other issuers under the same root; the same
root with another period of validity; Linkerd's webhooks other serving certificates; or whatever has to take the place
of what has expired."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Approval(_Frozen):
    """A person's decision on one gate.

    Attributes:
        gate: Which gate: `trust`, `issue`, `distrust` or `roll-back`.
        decision: What was decided; `held` leaves the gate closed and asks again.
        by: Who says so; a claim unless `signature` verifies.
        at: When, aware UTC.
        digest: Digest of what was shown (`capstan.approvals.Request.digest`); it counts for nothing else.
        request: Id of the request it answers; empty in records of schema version 1.
        signature: Signature over the request and the decision, where the domain demands one.
        ticket: Reference to the change in whatever system keeps changes.
        comment: What the approver wrote.
    """

    gate: str
    decision: Literal["approved", "rejected", "held"]
    by: str
    at: datetime
    digest: str
    request: str = ""
    signature: str = ""
    ticket: str = ""
    comment: str = ""


class Asked(_Frozen):
    """A request for approval that is or was open.

    Attributes:
        id: Names this asking; never used twice, so that no answer to an earlier one counts for it.
        digest: Digest of what was shown.
        at: When it was asked first, aware UTC.
        until: When it runs out; a timeout is neither an approval nor a rejection.
        answered: How many answers to it were looked at, those that do not count included.
    """

    id: str
    digest: str
    at: datetime
    until: datetime
    answered: int = 0


class Claim(_Frozen):
    """Whose rotation this is while no process holds the Lease: a Prefect run that waits or is suspended lives on.

    Attributes:
        run: Id of the flow run.
        name: Its name.
        url: Where a person can look at it; empty where nothing serves it.
        at: When it claimed the rotation, aware UTC.
    """

    run: str
    name: str
    url: str = ""
    at: datetime


class LogEntry(_Frozen):
    """One step that was taken."""

    at: datetime
    step: str
    text: str


class RotationRecord(_Frozen):
    """The record of one rotation of one trust domain.

    Attributes:
        rotation_id: Names the rotation; new material is minted once per id.
        system: `linkerd`, `istio` ...
        kind: What is rotated; `anchor` in records of schema versions 1 and 2.
        old: Fingerprints of the roots to be turned away from.
        new: Fingerprint of the new root; empty before it is minted. Of a rotation of the issuers alone: the root that
            they are under, which stays; empty before they are minted.
        issuer: Fingerprint of the new issuer; empty before it is minted.
        generation: Generation number in the new root's common name.
        vault: References to material in the vault (name -> version or path).
        approvals: Every decision, oldest first.
        deadlines: Wait name -> until when, aware UTC.
        log: The last steps taken.
        budget: Restarts of a crashed run that are still allowed; filled up again when a phase is left.
        fence: Lease transitions at the last write; a writer with a smaller number has lost the lock.
        finished: When the rotation ended; None while it goes on.
        outcome: `completed`, `rolled back` ...; empty while it goes on.
        notes: Adapter-specific facts that must survive a crash (such as a backup's name).
        direction: `forward` to the new root, or `back` to the old ones.
        turn: 1, and one more at each change of direction: approvals and restarts of an earlier turn do not count.
        asked: Gate -> the request for approval last made for it.
        claim: The durable run this rotation belongs to; None while none does.
        issuers: Cluster -> fingerprint of its new issuer; empty before they are minted, or in an older schema.
        issuers_before: Cluster -> fingerprint of the issuer it had when the rotation began; empty in an older schema.
    """

    schema_version: Literal[1, 2, 3] = SCHEMA_VERSION
    rotation_id: str
    domain: str
    system: str
    kind: Kind = "anchor"
    started: datetime
    old: frozenset[str] = frozenset()
    new: str = ""
    issuer: str = ""
    generation: int = 0
    vault: dict[str, str] = Field(default_factory=dict)
    approvals: tuple[Approval, ...] = ()
    deadlines: dict[str, datetime] = Field(default_factory=dict)
    log: tuple[LogEntry, ...] = ()
    budget: int = BUDGET
    fence: int = 0
    finished: datetime | None = None
    outcome: str = ""
    notes: dict[str, str] = Field(default_factory=dict)
    direction: Literal["forward", "back"] = "forward"
    turn: int = 1
    asked: dict[str, Asked] = Field(default_factory=dict)
    claim: Claim | None = None
    issuers: dict[str, str] = Field(default_factory=dict)
    issuers_before: dict[str, str] = Field(default_factory=dict)

    @field_serializer("old")
    def _in_order(self, old: frozenset[str]) -> list[str]:
        return sorted(old)  # the same record is always the same text

    def logged(self, at: datetime, step: str, text: str) -> RotationRecord:
        """The same with one more log entry (the oldest are dropped past a bound)."""
        return self.model_copy(update={"log": (*self.log, LogEntry(at=at, step=step, text=text))[-LOG_LENGTH:]})


def record_name(domain: str) -> str:
    """Name of the ConfigMap and of the Lease of a trust domain."""
    return f"capstan-rotation-{domain}"


class RecordStore:
    """Reads and writes the record of one trust domain in one cluster.

    Args:
        lease: The lock under which is written; without one, only reading makes sense outside tests and tools.
    """

    def __init__(self, cluster: Cluster, domain: str, *, lease: LeaseLock | None = None) -> None:
        self.cluster = cluster
        self.domain = domain
        self.lease = lease

    @property
    def where(self) -> str:
        """For messages."""
        return f"configmap {NAMESPACE}/{record_name(self.domain)} in cluster {self.cluster.name}"

    def load(self) -> RotationRecord | None:
        """The record; None if no rotation of this domain was ever begun here.

        Raises:
            InvalidInput: It is not one of ours, or of a newer Capstan.
        """
        item = self.cluster.find(CONFIG_MAPS, record_name(self.domain), NAMESPACE)
        return None if item is None else self._parse(item)

    def begin(self, record: RotationRecord) -> RotationRecord:
        """Write a new rotation's record; one that is finished is replaced, one that goes on is kept and returned.

        Returns:
            The record that holds now: check its `rotation_id`.
        """
        ensure_namespace(self.cluster)
        for _ in range(WRITE_ATTEMPTS):
            item = self.cluster.find(CONFIG_MAPS, record_name(self.domain), NAMESPACE)
            present = self._parse(item) if item else None
            if present is not None and present.finished is None:
                return present
            try:
                return self._write(item, record)
            except Conflict:
                continue
        raise self._too_busy()

    def update(self, change: Callable[[RotationRecord], RotationRecord]) -> RotationRecord:
        """Read, change, write under resourceVersion; read again where somebody wrote in between.

        Args:
            change: A pure function; it may be called more than once. Returning the record unchanged writes nothing.

        Raises:
            NotFound: There is no record to change.
            LockHeld: The lease was lost; nothing was written.
        """
        for _ in range(WRITE_ATTEMPTS):
            item = self.cluster.get(CONFIG_MAPS, record_name(self.domain), NAMESPACE)
            present = self._parse(item)
            wanted = change(present)
            if wanted == present:
                return present
            try:
                return self._write(item, wanted)
            except Conflict:
                continue
        raise self._too_busy()

    def require_lock(self) -> None:
        """Look whether the lock is still ours: nothing that it protects is changed otherwise.

        Raises:
            As `LeaseLock.confirm`.
        """
        if self.lease is not None:
            self.lease.confirm()

    def _write(self, item: Object | None, record: RotationRecord) -> RotationRecord:
        if self.lease is not None:
            self.lease.check(floor=self._parse(item).fence if item else 0)
            record = record.model_copy(update={"fence": self.lease.transitions})
        body: Object = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": record_name(self.domain),
                "namespace": NAMESPACE,
                "labels": {"app.kubernetes.io/managed-by": "capstan", "capstan.dev/domain": self.domain},
            },
            "data": {KEY: json.dumps(record.model_dump(mode="json"), sort_keys=True, indent=1)},
        }
        if item is None:
            return self._parse(self.cluster.create(CONFIG_MAPS, body))
        body["metadata"]["resourceVersion"] = item["metadata"]["resourceVersion"]
        return self._parse(self.cluster.replace(CONFIG_MAPS, body))

    def _parse(self, item: Object) -> RotationRecord:
        text = (item.get("data") or {}).get(KEY, "")
        try:
            raw: Any = json.loads(text)
            found = raw.get("schema_version") if isinstance(raw, dict) else None
            if found not in READABLE:
                raise InvalidInput(
                    "this rotation record cannot be read", where=self.where, observed=f"schema version {found}",
                    expected=f"schema version {SCHEMA_VERSION}", next_command="use the Capstan version that wrote it",
                )  # fmt: skip
            # From the text and not from the decoded JSON: strings become times only in JSON mode.
            return RotationRecord.model_validate_json(text).model_copy(update={"schema_version": SCHEMA_VERSION})
        except (ValueError, ValidationError) as error:
            raise InvalidInput(
                "this rotation record cannot be read", where=self.where, observed=str(error).splitlines()[0],
                expected=f"JSON of schema version {SCHEMA_VERSION} under the key {KEY}",
                next_command=f"kubectl get configmap {record_name(self.domain)} -n {NAMESPACE} -o yaml",
            ) from error  # fmt: skip

    def _too_busy(self) -> Conflict:
        return Conflict(
            "the rotation record changes faster than it can be written", where=self.where,
            observed=f"{WRITE_ATTEMPTS} conflicts in a row", expected="one writer: the holder of the lease",
            next_command=f"kubectl get lease {record_name(self.domain)} -n {NAMESPACE} -o yaml",
        )  # fmt: skip


def ensure_namespace(cluster: Cluster) -> None:
    """Create Capstan's own namespace unless it is there."""
    try:
        cluster.get(NAMESPACES, NAMESPACE)
    except NotFound:
        labels = {"app.kubernetes.io/managed-by": "capstan"}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
        try:
            cluster.create(NAMESPACES, body)
        except Conflict:
            return  # somebody was faster
