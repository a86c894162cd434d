"""What a verifier is asked and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from capstan.pki.inspect import Certificate


class Purpose(StrEnum):
    """What a leaf is used for; a mesh proxy is both ends at once."""

    PEER = "peer"
    SERVER = "server"
    CLIENT = "client"

    @property
    def as_server(self) -> bool:
        """Whether serverAuth is needed."""
        return self is not Purpose.CLIENT

    @property
    def as_client(self) -> bool:
        """Whether clientAuth is needed."""
        return self is not Purpose.SERVER


class Relaxation(StrEnum):
    """What a certificate may lack although RFC 5280 demands it, because certificates in the field do lack it.

    Nothing else is ever relaxed: not signatures, validity, CA bit, path length, name constraints, usages that are
    present, or unknown critical extensions.
    """

    AKI_ABSENT = "authority key identifier absent below the root"
    SKI_ABSENT = "subject key identifier absent in a CA"
    KEY_USAGE_ABSENT = "key usage absent in a CA"
    BASIC_CONSTRAINTS_NOT_CRITICAL = "basic constraints of a CA not marked critical"


STRICT: frozenset[Relaxation] = frozenset()
"""For what Capstan mints."""

GIVEN_ROOT: frozenset[Relaxation] = frozenset(
    {Relaxation.KEY_USAGE_ABSENT, Relaxation.SKI_ABSENT, Relaxation.BASIC_CONSTRAINTS_NOT_CRITICAL}
)
"""For what is signed anew under a root that somebody else made and nobody can make anew: `openssl req -x509` gives a
root no key usage unless it is told to, and every proxy takes such a root."""

IN_THE_FIELD: frozenset[Relaxation] = frozenset(Relaxation)
"""For what is already there: made by `openssl x509 -req`, `step`, or older installers, and accepted by every proxy."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One verifier's answer.

    Attributes:
        verifier: Its name.
        accepted: Whether the chain verifies.
        reason: Why not, in its own words; empty when accepted.
        chain: Leaf (or issuer) first, root last; empty when refused.
    """

    verifier: str
    accepted: bool
    reason: str
    chain: tuple[Certificate, ...]

    def __str__(self) -> str:
        return f"{self.verifier}: {'accepted' if self.accepted else self.reason}"


def accepted(verifier: str, chain: tuple[Certificate, ...]) -> Answer:
    """An answer that accepts."""
    return Answer(verifier, accepted=True, reason="", chain=chain)


def refused(verifier: str, reason: str) -> Answer:
    """An answer that refuses."""
    return Answer(verifier, accepted=False, reason=reason or "refused without a reason", chain=())
