"""Certificates met while reading a live system, and what is to be said of others by them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from capstan.pki.verify import anchors_of_issuer, anchors_of_leaf
from capstan.trust.observation import Issuer, Leaf

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from capstan.pki.inspect import Certificate
    from capstan.trust.observation import Fingerprint


@dataclass(slots=True)
class Known:
    """Roots and issuers met so far.

    A certificate belongs to the roots if it is self-issued, or if somebody trusts it as an anchor.
    """

    roots: dict[Fingerprint, Certificate] = field(default_factory=dict)
    issuers: dict[Fingerprint, Certificate] = field(default_factory=dict)

    def add(self, certificates: Iterable[Certificate]) -> None:
        """Remember roots and issuers; leaves are no business of this class."""
        for certificate in certificates:
            where = self.roots if certificate.self_issued else self.issuers
            where.setdefault(certificate.fingerprint, certificate)

    def trust(self, anchors: Iterable[Certificate]) -> None:
        """Remember what somebody holds as trust anchors."""
        for certificate in anchors:
            self.roots.setdefault(certificate.fingerprint, certificate)

    def all(self) -> dict[Fingerprint, Certificate]:
        """Everything met."""
        return {**self.roots, **self.issuers}

    def signer_of(self, child: Certificate, others: Sequence[Certificate] = ()) -> Certificate | None:
        """Who signed it, of `others` and of all known ones; None if nobody known did."""
        candidates = {certificate.fingerprint: certificate for certificate in others} | self.all()
        return next((candidate for candidate in candidates.values() if child.signed_by(candidate)), None)

    def leaf(self, chain: Sequence[Certificate], at: datetime) -> Leaf | None:
        """What a presented chain, leaf first, is worth; None for an empty one."""
        if not chain:
            return None
        leaf = chain[0]
        signer = self.signer_of(leaf, chain[1:])
        return Leaf(
            fingerprint=leaf.fingerprint,
            identity=leaf.identity,
            issuer=signer.fingerprint if signer else None,
            anchors=anchors_of_leaf(leaf, chain[1:], self.roots.values(), at),
            not_before=leaf.not_before,
            not_after=leaf.not_after,
        )

    def issuer(self, chain: Sequence[Certificate], at: datetime) -> Issuer | None:
        """What a configured issuer, with the intermediates above it, is worth; None for an empty chain."""
        if not chain:
            return None
        anchors = anchors_of_issuer(chain[0], self.roots.values(), at, chain[1:])
        return Issuer(chain[0].fingerprint, anchors, chain[0].not_after)
