"""Every error Capstan raises on purpose.

    CapstanError
    ├── Retryable                  the same step may succeed later, unchanged; carries the delay to wait
    │   ├── Unreachable            no answer: connection refused, timeout, broken stream
    │   ├── Throttled              the server said "later" (429, with Retry-After where it gave one)
    │   ├── ServerFault            the server failed on its side (5xx)
    │   ├── Conflict               somebody wrote first (409 on a resourceVersion); observe again, then act
    │   └── NotYet                 a gate's condition does not hold yet; names who is being waited for
    └── Permanent                  repeating the step unchanged is useless; somebody has to act
        ├── InvalidInput           a parameter, file or object that cannot be used
        │   ├── InvalidPem         bytes that are no clean PEM certificate or bundle
        │   └── InvalidCertificate a certificate that breaks a rule of its role
        ├── VerificationFailed     a chain that does not verify
        │   └── VerifiersDisagree  the two independent verifiers gave different answers
        ├── Denied                 authentication or permission is missing (401, 403)
        ├── NotFound               an object that must exist does not
        ├── LockHeld               another rotation holds this cluster's Lease
        │   └── StillRunning       another process of this very run does
        ├── GateRefused            evidence contradicts going on; nothing was changed by the gate
        │   └── IssuerNotTaken     what signs leaves does not take, or cannot sign with, the issuer it was given
        ├── GateTimedOut           a wait ran past its bound; names the stragglers
        ├── ApprovalRequired       a person has to decide before the flow goes on
        ├── ApprovalRejected       a person decided against it
        ├── OwnedElsewhere         the object belongs to a tool that would revert our write
        └── EvidenceTampered       the account of a rotation does not verify

A message says what, where, what was observed, what was expected, and the next command to run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class CapstanError(Exception):
    """Base of every error raised on purpose.

    Args:
        what: What failed, as one clause.
        where: The object, file or endpoint, as `kind namespace/name` or a path.
        observed: What was found there.
        expected: What should have been found.
        next_command: What the reader should run or do now.

    No argument may ever carry private key material.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        observed: str = "",
        expected: str = "",
        next_command: str = "",
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.observed = observed
        self.expected = expected
        self.next_command = next_command

    def __str__(self) -> str:
        lines = [f"{self.what} ({self.where})" if self.where else self.what]
        if self.observed:
            lines.append(f"  observed: {self.observed}")
        if self.expected:
            lines.append(f"  expected: {self.expected}")
        if self.next_command:
            lines.append(f"  next:     {self.next_command}")
        return "\n".join(lines)


class Retryable(CapstanError):
    """The same step may succeed later, unchanged.

    Args:
        delay: Seconds to wait before the next try; None leaves it to the caller's own back-off.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        observed: str = "",
        expected: str = "",
        next_command: str = "",
        delay: float | None = None,
    ) -> None:
        super().__init__(what, where=where, observed=observed, expected=expected, next_command=next_command)
        self.delay = delay


class Unreachable(Retryable):
    """No answer: connection refused, timeout, or a stream that broke."""


class Throttled(Retryable):
    """The server asked to come back later (HTTP 429)."""


class ServerFault(Retryable):
    """The server failed on its side (HTTP 5xx)."""


class Conflict(Retryable):
    """Somebody wrote the object first (HTTP 409); observe again before acting."""


class NotYet(Retryable):
    """A gate's condition does not hold yet.

    Args:
        waiting_for: Who has not arrived: pod, replica or workload names.
    """

    def __init__(
        self,
        what: str,
        *,
        waiting_for: Sequence[str] = (),
        where: str = "",
        observed: str = "",
        expected: str = "",
        next_command: str = "",
        delay: float | None = None,
    ) -> None:
        super().__init__(
            what, where=where, observed=observed, expected=expected, next_command=next_command, delay=delay
        )
        self.waiting_for = tuple(waiting_for)


class Permanent(CapstanError):
    """Repeating the step unchanged is useless; somebody has to act."""


class InvalidInput(Permanent):
    """A parameter, file or object that cannot be used."""


class InvalidPem(InvalidInput):
    """Bytes that are no clean PEM certificate or bundle."""


class InvalidCertificate(InvalidInput):
    """A certificate that breaks a rule of its role (root, issuer or leaf)."""


class VerificationFailed(Permanent):
    """A chain that does not verify."""


class VerifiersDisagree(VerificationFailed):
    """The two independent verifiers gave different answers; neither is believed."""


class Denied(Permanent):
    """Authentication or permission is missing (HTTP 401, 403)."""


class NotFound(Permanent):
    """An object that must exist does not."""


class LockHeld(Permanent):
    """Another rotation holds this cluster's Lease."""


class StillRunning(LockHeld):
    """Another process of this very run holds the Lease and renews it: whoever started a second one was wrong."""


class GateRefused(Permanent):
    """Evidence contradicts going on; the gate changed nothing."""


class IssuerNotTaken(GateRefused):
    """A process that signs leaves does not take, or cannot sign with, the issuer that it was given.

    What it has in memory may go on signing until it ends or the process does; the issuer has to be put right before
    either.
    """


class GateTimedOut(Permanent):
    """A wait ran past its bound.

    Args:
        stragglers: Who never arrived: pod, replica or workload names.
    """

    def __init__(
        self,
        what: str,
        *,
        stragglers: Sequence[str] = (),
        where: str = "",
        observed: str = "",
        expected: str = "",
        next_command: str = "",
    ) -> None:
        super().__init__(what, where=where, observed=observed, expected=expected, next_command=next_command)
        self.stragglers = tuple(stragglers)


class ApprovalRequired(Permanent):
    """A person has to decide before the flow goes on."""


class ApprovalRejected(Permanent):
    """A person decided against going on."""


class OwnedElsewhere(Permanent):
    """The object belongs to a tool that would revert our write."""


class EvidenceTampered(Permanent):
    """The account of a rotation does not verify."""
