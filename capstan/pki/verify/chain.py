"""Verification by two independent verifiers that must agree."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from capstan.errors import InvalidInput, VerificationFailed, VerifiersDisagree
from capstan.pki.clock import SKEW, require_aware
from capstan.pki.verify import openssl, path, pyca, shape
from capstan.pki.verify.answer import IN_THE_FIELD, Answer, Purpose, Relaxation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from datetime import datetime

    from capstan.pki.inspect import Certificate


@dataclass(frozen=True, slots=True)
class Verified:
    """A chain that both verifiers accepted.

    Attributes:
        chain: The verified certificate first, the trust anchor last.
    """

    chain: tuple[Certificate, ...]

    @property
    def anchor(self) -> Certificate:
        """The root it ends in."""
        return self.chain[-1]


def verify_leaf(
    leaf: Certificate,
    intermediates: Sequence[Certificate],
    roots: Iterable[Certificate],
    at: datetime,
    identity: str | None = None,
    *,
    purpose: Purpose = Purpose.PEER,
    relax: frozenset[Relaxation] = IN_THE_FIELD,
) -> Verified:
    """Verify what a peer presents.

    Args:
        leaf: The end-entity certificate.
        intermediates: What the peer sent along, in any order; none of it is trusted.
        roots: The trust anchors.
        at: Aware time to verify for.
        identity: DNS name, URI or IP address that the leaf must carry exactly; None accepts any.
        purpose: What the leaf is used for.
        relax: Named relaxations; `STRICT` allows none.

    Raises:
        VerificationFailed: The chain does not verify; both verifiers say so, or a rule beside them does.
        VerifiersDisagree: One accepts, the other refuses; both messages are in the error.
    """
    where = f"leaf {leaf.identity or leaf.fingerprint}"
    # 1. There is a moment and something to trust.
    moment = require_aware(at)
    anchors = _anchors(roots, where)
    # 2. The leaf is an end entity and carries the identity that was asked for.
    if leaf.is_ca:
        raise _failed("a CA certificate was presented as a leaf", where, leaf.subject, "an end-entity certificate")
    if identity is not None and (problem := shape.identity_problem(leaf, identity)):
        raise _failed("leaf carries another identity", where, problem, identity)
    # 3. Each verifier answers for itself.
    first = pyca.judge_leaf(leaf, intermediates, anchors, moment, identity=identity, purpose=purpose, relax=relax)
    second = openssl.judge(leaf, intermediates, anchors, moment, relax=relax)
    # 4. They agree, and 5. the chains they found keep the rules that neither checks.
    return _agree(first, second, where, purpose, relax)


def verify_issuer(
    issuer: Certificate,
    roots: Iterable[Certificate],
    at: datetime,
    intermediates: Sequence[Certificate] = (),
    *,
    relax: frozenset[Relaxation] = IN_THE_FIELD,
) -> Verified:
    """Verify an issuing CA: a leaf that it signs from now on will verify against `roots`.

    An issuer that is itself one of the roots (the default of `linkerd install`) verifies.

    Raises:
        VerificationFailed: The chain does not verify, or leaves no room for a leaf below.
        VerifiersDisagree: One accepts, the other refuses; both messages are in the error.
    """
    where = f"issuer {issuer.common_name or issuer.fingerprint}"
    # 1. There is a moment and something to trust.
    moment = require_aware(at)
    anchors = _anchors(roots, where)
    # 2. Each verifier answers for itself.
    first = path.judge_issuer(issuer, intermediates, anchors, moment, relax=relax)
    second = openssl.judge(issuer, intermediates, anchors, moment, relax=relax)
    # 3. They agree, and 4. the chains they found keep the rules that neither checks.
    return _agree(first, second, where, Purpose.SERVER, relax)


def anchors_of_leaf(
    leaf: Certificate, intermediates: Sequence[Certificate], roots: Iterable[Certificate], at: datetime
) -> frozenset[str]:
    """Fingerprints of the roots, of all these, to which a leaf verifies when each root stands alone.

    An expired leaf keeps its anchors (it is judged for its last valid second): whether it has expired is another
    question than whose it is. So does one made by a clock a little ahead of ours (it is judged for its first). A root
    on which the verifiers disagree is not an anchor.
    """
    found = set()
    for root in roots:
        for moment in _moments(leaf, intermediates, root, at):
            with contextlib.suppress(VerificationFailed):
                verify_leaf(leaf, intermediates, [root], moment)
                found.add(root.fingerprint)
    return frozenset(found)


def anchors_of_issuer(
    issuer: Certificate, roots: Iterable[Certificate], at: datetime, intermediates: Sequence[Certificate] = ()
) -> frozenset[str]:
    """As `anchors_of_leaf`, for an issuing CA: the roots to which what it signs now will verify.

    Of an issuer that is a root itself, that is also every root of its name and key: one that only got other dates
    verifies the same leaves, though a verifier refuses the issuer's own certificate below it (it is self-signed).
    """
    found = set()
    for root in roots:
        target = root if _same_issuer(issuer, root) else issuer
        for moment in _moments(issuer, intermediates, root, at):
            with contextlib.suppress(VerificationFailed):
                verify_issuer(target, [root], moment, intermediates)
                found.add(root.fingerprint)
    return frozenset(found)


def _moments(
    target: Certificate, intermediates: Sequence[Certificate], root: Certificate, at: datetime
) -> Iterator[datetime]:
    """When to judge whose a certificate is: now, and where a part of its chain is about to begin, then."""
    now = require_aware(at)
    yield min(now, target.not_after)
    begins = [each.not_before for each in (target, *intermediates, root) if now < each.not_before <= now + SKEW]
    if begins:
        yield min(max(begins), target.not_after)


def _same_issuer(one: Certificate, other: Certificate) -> bool:
    """Whether nobody can tell which of two self-signed certificates signed a leaf: name, key and identifier agree."""
    names = one.self_issued and other.self_issued and one.raw.subject == other.raw.subject
    identifiers = one.ski == other.ski or one.ski is None or other.ski is None
    return names and identifiers and one.spki_sha256 == other.spki_sha256


def _anchors(roots: Iterable[Certificate], where: str) -> tuple[Certificate, ...]:
    anchors = tuple(dict.fromkeys(roots))
    if not anchors:
        raise InvalidInput("nothing to verify against", where=where, observed="no roots", expected="at least one root")
    return anchors


def _agree(first: Answer, second: Answer, where: str, purpose: Purpose, relax: frozenset[Relaxation]) -> Verified:
    both = f"{first}; {second}"
    if first.accepted != second.accepted:
        raise VerifiersDisagree(
            "two verifiers disagree about a chain",
            where=where,
            observed=both,
            expected="the same answer from both",
            next_command="look at names, key identifiers and extensions of the chain; neither answer is believed",
        )
    if not first.accepted:
        raise _failed("chain does not verify", where, both, "a path of valid CAs to one of the roots")
    for chain in dict.fromkeys((first.chain, second.chain)):
        found = tuple(shape.problems(chain, purpose, relax))
        if found:
            raise _failed(
                "chain verifies but breaks a rule", where, "; ".join(found), "RFC 5280 and `pki.verify.shape`"
            )
    return Verified(first.chain)


def _failed(what: str, where: str, observed: str, expected: str) -> VerificationFailed:
    return VerificationFailed(what, where=where, observed=observed, expected=expected)
