"""The first verifier for issuers: a search for a path from a CA to a root, by hand.

cryptography's verifier refuses a CA as the leaf, so RFC 5280 section 6.1 is followed here for the one case needed:
the target is a CA, no policies, no revocation. Where it does not know how to decide (a name constraint on a kind of
name that is present) it refuses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cryptography import x509

from capstan.pki.verify.answer import Answer, Purpose, Relaxation, accepted, refused
from capstan.pki.verify.pyca import KNOWN_CRITICAL, missing_usages

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from capstan.pki.inspect import Certificate

NAME = "path search"
MAX_CERTIFICATES = 8
_MAX_SIGNATURES = 256  # bounds the work that a hostile set of cross-signed intermediates can cause


def judge_issuer(
    issuer: Certificate,
    intermediates: Sequence[Certificate],
    roots: Sequence[Certificate],
    at: datetime,
    *,
    relax: frozenset[Relaxation],
) -> Answer:
    """Find one path from `issuer` to a root on which every certificate is in order."""
    search = _Search(tuple(intermediates), tuple(roots), at, relax)
    chain = search.up((issuer,))
    return accepted(NAME, chain) if chain else refused(NAME, "; ".join(dict.fromkeys(search.problems)))


class _Search:
    def __init__(
        self,
        intermediates: tuple[Certificate, ...],
        roots: tuple[Certificate, ...],
        at: datetime,
        relax: frozenset[Relaxation],
    ) -> None:
        self.intermediates = intermediates
        self.roots = roots
        self.at = at
        self.relax = relax
        self.problems: list[str] = []
        self.signatures = 0

    def up(self, chain: tuple[Certificate, ...]) -> tuple[Certificate, ...]:
        """Extend a chain upwards to a root; the empty tuple if that cannot be done."""
        top = chain[-1]
        # 1. The certificate itself is in order, seen from its place in the chain.
        if problem := self.problem(chain):
            self.problems.append(f"{top.common_name or top.subject}: {problem}")
            return ()
        # 2. It is an anchor: done.
        if top in self.roots:
            return chain
        if len(chain) == MAX_CERTIFICATES:
            self.problems.append(f"no root within {MAX_CERTIFICATES} certificates")
            return ()
        # 3. Somebody of the issuer's name signed it; anchors are tried first. No certificate stands in a path twice.
        for parent in (*self.roots, *self.intermediates):
            if parent in chain or parent.raw.subject != top.raw.issuer:
                continue
            if not self.signed(top, parent):
                self.problems.append(f"{top.common_name}: signature is not by {parent.common_name}'s key")
            elif found := self.up((*chain, parent)):
                return found
        if not self.problems:
            self.problems.append(f"nobody known by the name {top.issuer!r} (issuer of {top.common_name!r})")
        return ()

    def signed(self, child: Certificate, parent: Certificate) -> bool:
        self.signatures += 1
        if self.signatures > _MAX_SIGNATURES:
            self.problems.append(f"more than {_MAX_SIGNATURES} signatures to check")
            return False
        if child.aki and parent.ski and child.aki != parent.ski:
            return False  # RFC 5280 section 4.2.1.1: it names another key
        return child.signed_by(parent)

    def problem(self, chain: tuple[Certificate, ...]) -> str:
        """What is wrong with the chain's topmost certificate as a CA above the others; empty if nothing is."""
        top, below = chain[-1], chain[:-1]
        if not top.valid_at(self.at):
            return f"valid from {top.not_before:%F %T}Z to {top.not_after:%F %T}Z, not at {self.at:%F %T}Z"
        if not top.is_ca:
            return "not a CA"
        usage = top.extension(x509.KeyUsage)
        if usage is None and Relaxation.KEY_USAGE_ABSENT not in self.relax:
            return "key usage is absent"
        if usage is not None and not usage.value.key_cert_sign:
            return "key usage lacks keyCertSign"
        eku = top.extension(x509.ExtendedKeyUsage)
        if missing := missing_usages(eku.value if eku else None, Purpose.SERVER):
            return f"extended key usage lacks {missing} (Go verifies issuers for it)"
        if unknown := [e.oid.dotted_string for e in top.raw.extensions if e.critical and e.oid not in KNOWN_CRITICAL]:
            return f"critical extension {unknown[0]} is not understood"
        # The target is the last certificate of this path and not an intermediate (RFC 5280 section 4.2.1.9).
        between = sum(not each.self_issued for each in below[1:])
        if top.path_length is not None and below and between > top.path_length:
            return f"path length {top.path_length} is exceeded: {between} CAs below"
        constraints = top.extension(x509.NameConstraints)
        if constraints and (kinds := _constrained(constraints.value, below)):
            return f"name constraints on {kinds}, which this verifier does not evaluate"
        return ""


def _constrained(constraints: x509.NameConstraints, below: tuple[Certificate, ...]) -> str:
    """Kinds of names that are constrained and that a certificate below carries."""
    subtrees = (*(constraints.permitted_subtrees or ()), *(constraints.excluded_subtrees or ()))
    carried: set[type[x509.GeneralName]] = set()
    for certificate in below:
        names = certificate.extension(x509.SubjectAlternativeName)
        carried.update(type(name) for name in (names.value if names else ()))
        if len(certificate.raw.subject.rdns):
            carried.add(x509.DirectoryName)
    return ", ".join(sorted({type(tree).__name__ for tree in subtrees if type(tree) in carried}))
