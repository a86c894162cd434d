"""What the record of a rotation of webhook certificates says: what each caBundle held, and what is to be served."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from capstan.pki.bundle import Bundle
from capstan.trust.hooks import HookAim

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capstan.cluster.record import RotationRecord
    from capstan.trust.hooks import Serving

_NOTE: Final = "ca-bundle/"  # + CLUSTER/HOOK: a note of the record


def notes_of(bundles: Mapping[str, Bundle]) -> dict[str, str]:
    """Notes of a record that keep what each caBundle held."""
    return {f"{_NOTE}{name}": bundle.pem() for name, bundle in bundles.items()}


def anchors_before(record: RotationRecord) -> dict[str, Bundle]:
    """`CLUSTER/HOOK` -> what its caBundle held when the rotation began.

    Raises:
        InvalidPem: The note of it was changed.
    """
    where = f"record of rotation {record.rotation_id}"
    return {
        note.removeprefix(_NOTE): Bundle.parse(text, where)
        for note, text in record.notes.items()
        if note.startswith(_NOTE)
    }


def hook_aim(record: RotationRecord, *, back: bool, new: Serving | None = None) -> HookAim:
    """What such a rotation is after.

    Args:
        back: The way back.
        new: Hook -> the certificate that was minted; by default as the record has it.
    """
    before = {name: bundle.fingerprints for name, bundle in anchors_before(record).items()}
    minted = dict(record.issuers) if new is None else dict(new)
    single = {name: frozenset({each}) for name, each in minted.items()}
    if not back:
        return HookAim(before, single, minted)
    return HookAim(single, before, record.issuers_before)
