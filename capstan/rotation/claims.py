"""Whose rotation it is while no process holds the Lease.

A durable run gives the Lease back each time it leaves its process to wait or to be approved. The record says whose
rotation it is meanwhile: another launch is refused and names that run, until the run has ended or an operator takes
over.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from capstan.errors import CapstanError, LockHeld

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from capstan.cluster.record import Claim, RotationRecord


class Claimant(Protocol):
    """The run that wants to go on with a rotation, as far as claims go."""

    def claim(self, at: datetime) -> Claim | None:
        """What to write into the record; None for a run that ends with its process."""

    def has_ended(self, claim: Claim) -> bool | None:
        """Whether the run of an earlier claim has ended for good; None where that cannot be known."""

    def comes_back(self, error: Exception) -> bool:
        """Whether this run leaves its process because of an error, and goes on later by itself."""


class Unclaimed:
    """A run that ends with its process: the Lease says all there is to say."""

    def claim(self, at: datetime) -> Claim | None:
        """Nothing."""

    def has_ended(self, claim: Claim) -> bool | None:
        """It cannot be known here."""

    def comes_back(self, error: Exception) -> bool:
        """It ends with its process."""
        del error
        return False


@contextmanager
def given_up_on_failure(
    owner: Claimant, remember: Callable[[Callable[[RotationRecord], RotationRecord]], None], now: Callable[[], datetime]
) -> Iterator[None]:
    """Take back the claim where the enclosed run fails for good: whoever is launched next may go on at once.

    A run that comes back after a fault goes on as it was, and nobody gets between: its rotation stays its own, and a
    roll-back finds it and ends it.
    """
    try:
        yield
    except Exception as error:
        if owner.claim(now()) is not None and not owner.comes_back(error):
            with suppress(CapstanError):
                remember(lambda record: record.model_copy(update={"claim": None}))
        raise


def require_unclaimed(
    record: RotationRecord, claimant: Claimant, at: datetime, *, where: str, take_over: bool
) -> Claim | None:
    """Refuse a rotation that belongs to another run.

    Args:
        take_over: The operator says that the other run is not to go on.

    Returns:
        The claim that is taken over from a run that has ended (or is told not to go on); None if there is none.

    Raises:
        LockHeld: Another run has it; names that run.
    """
    held = record.claim
    if held is None or record.finished is not None:
        return None
    own = claimant.claim(at)
    if own is not None and own.run == held.run:
        return None
    ended = claimant.has_ended(held)
    if ended or take_over:
        return held
    raise LockHeld(
        "another run has this rotation under way",
        where=where,
        observed=f"{describe(held)}, " + ("which lives" if ended is False else "whose state cannot be asked from here"),
        expected="no other run",
        next_command="let that run go on"
        + ("" if held.url else " (in its Prefect server)")
        + "; or cancel it first; if its Prefect server is gone for good: capstan rotate --take-over",
    )


def describe(claim: Claim) -> str:
    """A claim for a person: the run, where to look at it, since when."""
    at = f" {claim.url}" if claim.url else ""
    return f"flow run {claim.name!r} ({claim.run}){at} since {claim.at:%Y-%m-%d %H:%M:%S} UTC"
