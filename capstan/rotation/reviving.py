"""Whether a run that died may be started again: asked of the cluster, which remembers more than Prefect does.

Prefect says that a run is dead; it may be wrong (heartbeats get lost, a worker is killed and its flow lives on). So the
Lease has the last word: a holder that still renews it is alive. How often a dead run is started again is a budget in
the rotation record, so that a crash that comes again each time ends, and does so across Prefect servers and databases.

The budget is spent before the run is started again, and the record is written under its resourceVersion: of two sweeps
at once, one is told to act. A sweep that dies in between leaves a note of its own, which another takes over later.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict, Field

from capstan.cluster.lease import holder_is_gone
from capstan.cluster.record import NAMESPACE, RecordStore, RotationRecord, record_name
from capstan.cluster.resources import LEASES
from capstan.errors import CapstanError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from capstan.cluster.client import Cluster

# A sweep acts within seconds of its note in the record; one that has not acted after this long has died.
HOLD: Final = timedelta(seconds=60)

_REVIVED: Final = "sweep.revived"  # note: "<state id> <when>" of the death that was last answered
# metav1.MicroTime has six digits of a second, Go's RFC 3339 nine; datetime reads six.
_FRACTION: Final = re.compile(r"(\.\d{6})\d+")


class SweepThresholds(BaseModel):
    """From when on a run counts as dead. Numbers are seconds unless the name says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    silent_seconds: float = Field(
        default=600,
        gt=0,
        description="Running without a heartbeat for so long; workers send one every 180 s by default",
    )
    crashed_seconds: float = Field(
        default=60, ge=0, description="Crashed for so long; a crash is reported up to twice, seconds apart"
    )
    pending_seconds: float = Field(
        default=600, gt=0, description="Pending for so long; longer than a worker takes to start a process or a pod"
    )
    tries_without_record: int = Field(
        default=3, ge=0, description="How often a run is started again that died before it had a rotation record"
    )
    crashed_at_most_days: float = Field(
        default=30, gt=0, description="A run that crashed longer ago is history and left as it is"
    )


class Ruling(StrEnum):
    """What may be done about a dead run."""

    REVIVE = "revive"
    """Start it again; one restart was taken from the budget."""
    REVIVE_UNRECORDED = "revive, if tries are left"
    """It died before it claimed a rotation: nothing here counts its restarts."""
    EXHAUSTED = "exhausted"
    """The budget is used up: it stays dead, and a person has to look."""
    NOT_NOW = "not now"
    """Another sweep is at it, or somebody holds the Lease, or the cluster cannot be read; a later sweep looks again."""
    NOT_ITS_OWN = "not its own"
    """The rotation went on without this run."""


@dataclass(frozen=True, slots=True)
class Death:
    """A run that looks dead.

    Attributes:
        run: Id of the flow run.
        name: Its name, for the record's log.
        state: Id of the state it is dead in; another death has another one.
        state_name: For a person.
        began: When the run first started, or was to start, aware UTC.
    """

    run: str
    name: str
    state: str
    state_name: str
    began: datetime


@dataclass(frozen=True, slots=True)
class Judgement:
    """A ruling, the reason in words, and what is left of the budget (None where no budget applies)."""

    ruling: Ruling
    why: str
    left: int | None = None
    rotation: str | None = None


def judge(domain: str, clusters: Mapping[str, Cluster], death: Death, *, now: datetime | None = None) -> Judgement:
    """Decide, and spend the budget where the answer is to start it again.

    Args:
        domain: Name of the trust domain.
        clusters: Its clusters by name; the first one's record counts, the others' are kept alike.
        now: Aware UTC.
    """
    at = now or datetime.now(UTC)
    stores = [RecordStore(cluster, domain) for cluster in clusters.values()]
    try:
        record = stores[0].load()
        held = _held(domain, tuple(clusters.values()), at)
        if held:
            return Judgement(Ruling.NOT_NOW, held, rotation=record.rotation_id if record else None)
        if record is None or not _owns(record, death):
            return _without_claim(record, death)
        judgement, written = _spend(stores[0], death, at)
    except CapstanError as error:
        observed = f": {error.observed}" if error.observed else ""
        return Judgement(Ruling.NOT_NOW, f"the rotation record cannot be read or written: {error.what}{observed}")
    for store in stores[1:]:
        with contextlib.suppress(CapstanError):  # the first cluster's counts
            store.update(lambda record: record.model_copy(update={"budget": written.budget, "notes": written.notes}))
    return judgement


def _owns(record: RotationRecord, death: Death) -> bool:
    return record.claim is not None and record.claim.run == death.run


def _without_claim(record: RotationRecord | None, death: Death) -> Judgement:
    """No budget applies: did the run never come to claim a rotation, or did the rotation go on without it?"""
    if record is None:
        return Judgement(Ruling.REVIVE_UNRECORDED, "it died before its rotation began")
    if record.finished is not None and record.finished < death.began:
        return Judgement(
            Ruling.REVIVE_UNRECORDED, f"it died before its rotation began; the last was {record.rotation_id}"
        )
    if record.finished is None and record.claim is None:
        why = f"it died before it claimed rotation {record.rotation_id}"
        return Judgement(Ruling.REVIVE_UNRECORDED, why, rotation=record.rotation_id)
    owner = f"flow run {record.claim.name!r} ({record.claim.run})" if record.claim else "a run without a claim"
    did = "was finished by" if record.finished is not None else "belongs to"
    return Judgement(Ruling.NOT_ITS_OWN, f"rotation {record.rotation_id} {did} {owner}", rotation=record.rotation_id)


def _spend(store: RecordStore, death: Death, at: datetime) -> tuple[Judgement, RotationRecord]:
    """Take one restart from the budget, once per death."""
    judgement = Judgement(Ruling.NOT_NOW, "")

    def change(record: RotationRecord) -> RotationRecord:
        nonlocal judgement
        state, _, when = record.notes.get(_REVIVED, "").partition(" ")
        if not _owns(record, death):
            judgement = _without_claim(record, death)
            return record
        if state == death.state and at - datetime.fromisoformat(when) < HOLD:
            judgement = Judgement(
                Ruling.NOT_NOW, f"another sweep is at it since {when}", record.budget, record.rotation_id
            )
            return record
        if state != death.state and record.budget <= 0:
            why = f"no restart is left for rotation {record.rotation_id}"
            judgement = Judgement(Ruling.EXHAUSTED, why, 0, record.rotation_id)
            return record
        left = record.budget if state == death.state else record.budget - 1
        judgement = Judgement(Ruling.REVIVE, f"{left} more until rotation {record.rotation_id} is a phase further",
                              left, record.rotation_id)  # fmt: skip
        text = f"flow run {death.name!r} ({death.run}) was {death.state_name}; started again, {left} restarts left"
        noted = {**record.notes, _REVIVED: f"{death.state} {at.isoformat()}"}
        return record.model_copy(update={"budget": left, "notes": noted}).logged(at, "sweep", text)

    written = store.update(change)
    return judgement, written


def _held(domain: str, clusters: Sequence[Cluster], at: datetime) -> str:
    """Who holds the domain's Lease and is alive; empty if nobody is."""
    for cluster in clusters:
        item = cluster.find(LEASES, record_name(domain), NAMESPACE)
        spec = (item or {}).get("spec") or {}
        holder = str(spec.get("holderIdentity") or "")
        renewed = str(spec.get("renewTime") or "")
        if not holder or not renewed or holder_is_gone(holder):
            continue
        until = datetime.fromisoformat(_FRACTION.sub(r"\1", renewed)) + timedelta(
            seconds=float(spec.get("leaseDurationSeconds") or 0)
        )
        if until > at:
            where = f"lease {NAMESPACE}/{record_name(domain)} in cluster {cluster.name}"
            return f"{where} is held by {holder}, renewed {renewed}"
    return ""
