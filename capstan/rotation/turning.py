"""Turning a rotation round: back to what there was, and forward again.

The record says which way a rotation goes (`direction`) and which turn it is (`turn`); both change here only, under the
Lease. A turn takes back every approval and deadline of the turn before. Nothing in the mesh changes by it: the steps
observe, and the same order leads back from wherever they find the domain (`capstan.trust.explore` proves it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from capstan.audit import audited_step
from capstan.errors import GateRefused, InvalidInput, VerificationFailed
from capstan.evidence import signer_from_vault
from capstan.pki.bundle import Bundle
from capstan.pki.inspect import Certificate
from capstan.pki.verify import verify_issuer
from capstan.progress import watcher
from capstan.rotation import hooks, material
from capstan.rotation.accounts import begun, open_account, reopened
from capstan.rotation.expired import ROOTS_AFTER, closed
from capstan.rotation.hook_notes import hook_aim
from capstan.rotation.naming import rotate_command
from capstan.rotation.session import NEW_ROOT, plan_policy
from capstan.trust.aim import IssuerAim, RootAim
from capstan.trust.phase import Phase
from capstan.trust.redating import RedateAim
from capstan.trust.replacing import ExpiredAim

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from capstan.cluster.record import Claim, RotationRecord
    from capstan.rotation.material import Target
    from capstan.rotation.outcome import Direction
    from capstan.rotation.session import Rotation
    from capstan.trust.aim import Aim
    from capstan.trust.observation import Fingerprint, Observation
    from capstan.trust.phase import Goal
    from capstan.trust.steps import Policy
    from capstan.vaults.base import Reference, Vault

ROLLED_BACK = "rolled back"
"""`RotationRecord.outcome` of a rotation whose way back has ended."""
REJECTED = "an approval was rejected"
"""Why a rotation turns back by the policy of its domain, without being asked again."""

# Names of notes in the rotation record.
_WHY = "turned-because"
_BY = "turned-by"  # id of the durable run that turned it; empty for one that ends with its process


def aims(record: RotationRecord) -> tuple[frozenset[Fingerprint], Goal]:
    """(roots to go, roots to stay) of a rotation, for its plan; nothing is to go back from where nothing was minted."""
    if record.direction == "forward":
        return record.old, record.new or None
    return frozenset({record.new} if record.new else ()), record.old


def aim_of(record: RotationRecord, *, back: bool | None = None) -> Aim:
    """What a rotation is after, by its record alone.

    Args:
        back: Ask for the way back; None asks for the direction that the record has.
    """
    going_back = record.direction == "back" if back is None else back
    if record.kind == "webhooks":
        return hook_aim(record, back=going_back)
    if record.kind == "expired":
        text = record.notes.get(ROOTS_AFTER)
        roots = Bundle.parse(text, "rotation record").fingerprints if text else frozenset[str]()
        return ExpiredAim(record.issuers_before, record.issuers, record.old, roots)
    if record.kind == "issuer":
        pair = (record.issuers_before, record.issuers)
        return IssuerAim(pair[1] or pair[0], pair[0]) if going_back else IssuerAim(*pair)
    if record.kind == "re-date":
        before, new = record.issuers_before, record.issuers
        return RedateAim(new or before, before) if going_back else RedateAim(before, new)
    return RootAim(*aims(record.model_copy(update={"direction": "back" if going_back else "forward"})))


def minted_elsewhere(record: RotationRecord) -> Certificate | None:
    """The root of a rotation's issuers where the vault has no entry of it."""
    text = record.notes.get(NEW_ROOT)
    return Certificate.from_pem(text, f"record of rotation {record.rotation_id}") if text else None


def face_forward(rotation: Rotation, *, again: bool = False) -> None:
    """Make sure that the rotation goes to its new root; to be called before any other step of the way there.

    Args:
        again: Turn a rotation that is on its way back, as a new turn: everything is asked for anew.

    Raises:
        InvalidInput: It was rolled back to its end, or is on its way back and nobody said to turn it again.
    """
    with audited_step("face-forward"):
        record, forward = _settled(rotation), rotate_command(rotation.domain.system, rotation.kind)
        if record.finished and record.outcome == ROLLED_BACK:
            raise InvalidInput(
                "this rotation was rolled back and is over",
                where=f"rotation {rotation.id}",
                observed=f"{record.outcome} at {record.finished:%Y-%m-%d %H:%M:%S} UTC",
                expected="a rotation that goes on; the root it had minted is never used again",
                next_command=f"{forward} --domain {rotation.domain.name} --rotation {rotation.id}-again",
            )
        if record.direction == "back" and not again:
            raise InvalidInput(
                "this rotation is being rolled back",
                where=f"rotation {rotation.id}",
                observed=f"turn {record.turn}, back to the old roots",
                expected="a rotation that goes forward, or the word to turn it again",
                next_command=f"go on back: capstan rollback --rotation {rotation.id}; "
                f"or turn it forward again: {forward} --rotation {rotation.id} --forward",
            )
        rotation.direction, rotation.target, rotation.retired = "forward", None, None
        if record.direction == "back":
            record = _turn(rotation, "forward", "it was asked for")
        _account_for(rotation, record)


def recall(rotation: Rotation) -> None:
    """Look back in this run: what the rotation minted, and what there was before it, with proof that it can be had.

    Nothing is changed, the record's direction included.

    Raises:
        GateRefused: The way back is closed; says by what, and what remains.
        Permanent, Retryable: As the vault and the clusters.
    """
    with audited_step("recall"):
        record = _settled(rotation)
        rotation.direction = "back"
        if rotation.kind == "expired":
            if record.direction != "back":
                require_unused(record, rotation.observe(), plan_policy(rotation.domain))
            rotation.target = None
            return  # nothing of it is in use: there is nothing to be taken back
        if not record.new:
            return  # it minted nothing that it knew of, so nothing of it can be in a cluster
        watcher().step("recall what there was before", rotation.vault.url)
        if rotation.kind == "webhooks":
            domain, systems = rotation.domain.name, rotation.systems
            rotation.retired = hooks.minted_before(rotation.id, domain, rotation.vault, systems)
            rotation.target = hooks.found_before(rotation.vault, rotation.observe(), record, systems, rotation.now())
            rotation.acted()
            return
        rotation.retired = material.minted_before(
            rotation.vault,
            domain=rotation.domain.name,
            rotation=rotation.id,
            clusters=rotation.systems,
            root=minted_elsewhere(record),
        )
        rotation.target = before(
            rotation.vault,
            rotation.observe(),
            {f: c for system in rotation.systems.values() for f, c in system.certificates().items()},
            domain=rotation.domain.name,
            rotation=rotation.id,
            original=rotation.original,
            now=rotation.now(),
            minted=rotation.retired.issuers,
        )
        rotation.acted()  # the issuers just recalled are to be recognised


def require_unused(record: RotationRecord, seen: Observation, policy: Policy) -> None:
    """Refuse a way back to what has expired, once anything that was made in its place is in use.

    Raises:
        GateRefused: It is; says what remains.
    """
    if record.finished or aim_of(record, back=False).plan(seen, policy).entered(Phase.ISSUE):
        raise closed(record)


def rejected(record: RotationRecord, claim: Claim | None = None) -> bool:
    """Whether this is an unfinished way back that a rejection began: running the rotation again goes on with it.

    Args:
        claim: Only if it came in this run, which left its process since.
    """
    by_it = claim is None or record.notes.get(_BY) == claim.run
    return record.direction == "back" and record.finished is None and record.notes.get(_WHY) == REJECTED and by_it


def turn_back(rotation: Rotation, claim: Claim | None = None, *, why: str = "it was asked for") -> None:
    """Turn the rotation in the record, unless it is turned; a finished one is opened again, with a further account.

    Args:
        claim: Whose it is from now on, where a finished one belonged to nobody.
        why: For the account; `REJECTED` makes later runs of the rotation go on with the way back.

    Raises:
        InvalidInput: Called before `recall`.
    """
    with audited_step("turn-back"):
        if rotation.direction != "back":
            raise InvalidInput("nobody has looked back yet", where=f"rotation {rotation.id}", next_command="recall")
        record = _settled(rotation)
        if record.direction != "back":
            record = _turn(rotation, "back", why, claim)
        if record.finished is None:
            _account_for(rotation, record)


def before(
    vault: Vault,
    seen: Observation,
    certificates: Mapping[Fingerprint, Certificate],
    *,
    domain: str,
    rotation: str,
    original: Bundle,
    now: datetime,
    minted: Mapping[str, Certificate],
) -> Target:
    """What a rotation found when it began: the issuers to go back to, and the root of the first.

    An issuer that was replaced comes from its backup, and has to be good today. One that chains to an old root as it is
    was never replaced (or somebody has put it there since): it is left alone.

    Args:
        certificates: Every root and issuer met while observing.
        original: The roots that were trusted when the rotation began.
        minted: Cluster -> the issuer that the rotation minted: under the same root, it is told by nothing else.

    Raises:
        GateRefused: An issuer was replaced, and the one before it is gone, has expired, or chains to none of the roots.
    """
    issuers: dict[str, Certificate] = {}
    references: dict[str, Reference] = {}
    roots: dict[str, Certificate] = {}
    for cluster in seen.clusters:
        name, present = cluster.name, cluster.issuer
        reference = material.previous_issuer(vault, domain=domain, rotation=rotation, cluster=name)
        # The backup is taken where it is the present issuer, too: a switch back may have died half-way.
        if (
            present is not None
            and (name not in minted or present.fingerprint != minted[name].fingerprint)
            and present.anchors & original.fingerprints
            and (reference is None or reference.fingerprint != present.fingerprint)
        ):
            issuers[name] = certificates[present.fingerprint]
            roots[name] = next(root for root in original if root.fingerprint in present.anchors)
        elif reference is not None:
            issuer, root = _good_today(vault, reference, name, original, now)
            issuers[name], references[f"issuer/{name}"], roots[name] = issuer, reference, root
        else:
            raise _closed(
                "the issuer before the rotation is not in the vault any more",
                where=f"cluster {name}, vault {vault.url}",
                observed=f"no usable backup tagged rotation {rotation}, and the present issuer is "
                + (present.fingerprint[:16] if present else "not readable"),
                expected="the backup made before the issuer was switched",
            )
    return material.Target(next(iter(roots.values())), issuers, references, roots)


def _good_today(
    vault: Vault, reference: Reference, cluster: str, original: Bundle, now: datetime
) -> tuple[Certificate, Certificate]:
    """The previous issuer and its root, if leaves could be signed by it now."""
    kept = material.issuer_material(vault, reference)
    try:
        return kept.certificate, verify_issuer(kept.certificate, original, now, kept.chain[1:]).anchor
    except VerificationFailed as error:
        raise _closed(
            "the issuer before the rotation is no good any more",
            where=f"cluster {cluster}, {reference}",
            observed=f"valid until {kept.certificate.not_after:%Y-%m-%d %H:%M:%S} UTC; {error.what}: {error.observed}",
            expected="an issuer that verifies today against a root that was trusted before the rotation",
        ) from error


def _closed(why: str, *, where: str, observed: str, expected: str) -> GateRefused:
    return GateRefused(
        f"there is no way back: {why}",
        where=where,
        observed=observed,
        expected=expected,
        next_command="go on forward: finish this rotation with `capstan rotate`; a new one then gives other roots",
    )


def _settled(rotation: Rotation) -> RotationRecord:
    """The record, after a turn or an end that died between two clusters was written into all of them.

    An end that stood in one cluster only would keep the rotation from going on, and every later one from beginning.
    """
    first = rotation.record()
    records = [(store, record) for store in rotation.stores.values() if (record := store.load()) is not None]
    last = max((record for _, record in records), key=lambda record: (record.turn, record.finished is not None))
    fields = ("direction", "turn", "asked", "deadlines", "finished", "outcome", "notes", "claim")
    for store, record in records:
        if (record.turn, record.finished) != (last.turn, last.finished):
            store.update(lambda behind: behind.model_copy(update={name: getattr(last, name) for name in fields}))
    rotation.turn = last.turn
    if first.turn != last.turn:
        _reopen_account(rotation, last)
    return last


def _turn(rotation: Rotation, direction: Direction, why: str, claim: Claim | None = None) -> RotationRecord:
    watcher().note(f"rotation {rotation.id} turns {direction}")

    def turned(record: RotationRecord) -> RotationRecord:
        if record.direction == direction:
            return record
        notes = reopened(record) if record.finished else record.notes
        notes = {**notes, _WHY: why, _BY: claim.run if claim else ""}
        update: dict[str, Any] = {"direction": direction, "turn": record.turn + 1, "asked": {}, "deadlines": {}}
        if record.finished:
            update |= {"finished": None, "outcome": "", "claim": claim}
        return record.model_copy(update={**update, "notes": notes})

    rotation.remember(turned)
    record = rotation.record()
    rotation.turn = record.turn
    _reopen_account(rotation, record)
    return record


def _reopen_account(rotation: Rotation, record: RotationRecord) -> None:
    rotation.evidence = open_account(rotation.domain, record, signer_from_vault(rotation.vault), rotation.now)
    head = rotation.evidence.head
    rotation.remember(lambda record: record.model_copy(update={"notes": begun(record.notes, head)}))


def _account_for(rotation: Rotation, record: RotationRecord) -> None:
    """Note the turn in the account, unless it is there: a run may have died between the record and the account."""
    if record.turn == 1 or any(e.kind == "turned" and e.body["turn"] == record.turn for e in rotation.evidence.entries):
        return
    why = record.notes.get(_WHY, "")
    rotation.note("turned", {"turn": record.turn, "direction": record.direction, "why": why})
