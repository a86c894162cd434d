"""What flows and tasks may ask of any trust system.

An adapter stands for one cluster of a trust domain. Every `ensure_...` and `restart_...` observes first, acts only on a
difference, and may be repeated at will; waits take their bound in seconds. Judging is not an adapter's business: it
reports an Observation, and `capstan.trust` decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from capstan.cluster.parallel import map_bounded
from capstan.trust.observation import Fingerprint, Observation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from capstan.cluster.restart import RestartReport, Step
    from capstan.pki.bundle import Bundle
    from capstan.pki.inspect import Certificate
    from capstan.pki.keys import PrivateKey
    from capstan.pki.mint import Minted
    from capstan.trust.observation import ClusterObservation

RECENT: Final = timedelta(hours=1)
"""How far back checks look, unless told: the API server keeps an Event for an hour by default (--event-ttl)."""


@runtime_checkable
class KeepsTags(Protocol):
    """An adapter whose places can keep, beside what is written, whose it is: as the versions of a Key Vault can."""

    def tag(self, tags: Mapping[str, str]) -> None:
        """Keep these with everything that is written from now on, in place of those given before."""


@dataclass(frozen=True, slots=True)
class Change:
    """One object: what it held, what it holds now. Fingerprints only.

    Attributes:
        place: `configmap linkerd/linkerd-identity-trust-roots`.
        before: Fingerprints found there; what could not be parsed counts as none.
        after: Fingerprints there now.
        written: Whether this call wrote; False if all was in order already.
        version_before: The resourceVersion it was read with.
        version_after: The resourceVersion after the write (the same, if nothing was written).
        why: What was not in order; empty if nothing was written.
    """

    place: str
    before: tuple[Fingerprint, ...]
    after: tuple[Fingerprint, ...]
    written: bool
    version_before: str
    version_after: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class IssuerMaterial:
    """An issuing CA as a control plane needs it: certificate, intermediates below the root, key.

    Attributes:
        chain: The issuer first, then what stands between it and the root.
        key: The issuer's private key; never shown by repr, never pickled.
        source: Where the key is kept, for a person; empty where it is kept nowhere else.
    """

    chain: tuple[Certificate, ...]
    key: PrivateKey = field(repr=False)
    source: str = field(default="", compare=False)

    @classmethod
    def of(cls, minted: Minted, intermediates: Sequence[Certificate] = (), source: str = "") -> IssuerMaterial:
        """From a minted issuer."""
        return cls((minted.certificate, *intermediates), minted.key, source)

    @property
    def certificate(self) -> Certificate:
        """The issuer itself."""
        return self.chain[0]

    def chain_pem(self) -> str:
        """The chain as PEM, issuer first, without a trailing newline."""
        return "\n".join(certificate.pem() for certificate in self.chain)


class Verdict(StrEnum):
    """What a live peer did with a certificate that was presented to it."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    NO_ANSWER = "no answer"
    """Neither: never proof of a refusal."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One peer's answer to a certificate.

    Attributes:
        peer: `cluster/namespace/pod`.
        detail: The TLS alert, or why there was no answer.
    """

    peer: str
    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """All peers' answers to one certificate."""

    probes: tuple[Probe, ...]

    def of(self, verdict: Verdict) -> tuple[Probe, ...]:
        """The probes with this verdict."""
        return tuple(probe for probe in self.probes if probe.verdict is verdict)

    def unanimous(self, verdict: Verdict) -> bool:
        """Whether at least one peer was asked and all gave this answer."""
        return bool(self.probes) and all(probe.verdict is verdict for probe in self.probes)


class Status(StrEnum):
    """Outcome of one check."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"
    SKIPPED = "skipped"


class Severity(StrEnum):
    """What a failed check means: `fatal` and `error` fail the command, `warning` does not."""

    FATAL = "fatal"
    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class CheckResult:
    """One line of `capstan check`.

    Attributes:
        category: `linkerd-identity`.
        description: The sentence that is true when the check passes.
        hint: A URL that explains it.
        level: What a failure means.
        status: What came out.
        message: What was observed; may have several lines.
        lagging: Where all that was found are readers that hold something else than the source says: the fingerprints of
            what they hold (none where that cannot be told). None where anything else is wrong. It is what the middle of
            a rotation looks like, and what its own steps cure.
    """

    category: str
    description: str
    hint: str
    level: Severity
    status: Status
    message: str = ""
    lagging: frozenset[Fingerprint] | None = None


class TrustSystem(Protocol):
    """One cluster's trust system."""

    @property
    def cluster_name(self) -> str:
        """The cluster's name in the trust domain."""

    def observe(self, known: Iterable[Certificate] = ()) -> ClusterObservation:
        """Read who trusts, issues and presents what, now.

        Args:
            known: Roots and issuers to recognise besides those found in the cluster (the new ones, before they are
                anywhere).
        """

    def certificates(self) -> dict[Fingerprint, Certificate]:
        """Every root and issuer met by the last `observe` (and the `known` ones it was given)."""

    def ensure_bundle(self, roots: Bundle) -> tuple[Change, ...]:
        """Make every place that declares the roots hold exactly these.

        Raises:
            GateRefused: The configured issuer or a live leaf chains only to a root that would be taken away.
            OwnedElsewhere: A tool would revert the write; says what to commit there.
            Conflict: Somebody wrote in between; observe again.
        """

    def ensure_issuer(self, material: IssuerMaterial) -> tuple[Change, ...]:
        """Make the control plane's configured issuer this one.

        Raises:
            GateRefused: A live peer (or the control plane itself) does not trust it yet; nothing was written.
            OwnedElsewhere, Conflict: As `ensure_bundle`.
        """

    def read_issuer(self) -> IssuerMaterial:
        """The issuer as configured, with its key: the backup to make before it is replaced."""

    def restart_control_plane(
        self,
        roots: frozenset[Fingerprint],
        stamp: str,
        *,
        seconds: float,
        issuer: Fingerprint | None = None,
        afresh: bool = False,
        on_progress: Callable[[Step], None] | None = None,
    ) -> RestartReport:
        """Make every control-plane process hold exactly these roots (and sign by this issuer), proven live.

        Args:
            afresh: Start every process anew, once for this stamp, even where it looks right: it may have held the same
                before, and what was written in between may still be on its way to it (a rotation that was turned
                round). Of no consequence where processes read such things at their start only.

        Raises:
            GateRefused: Restarting now would break it. GateTimedOut: It did not come up so in time.
        """

    def restart_signers(
        self,
        stamp: str,
        *,
        seconds: float,
        issuer: Fingerprint,
        afresh: bool = False,
        on_progress: Callable[[Step], None] | None = None,
    ) -> RestartReport:
        """Make every process that signs leaves sign by this issuer. The roots are those declared now.

        Where what a signer has in memory cannot be read (a leaf proves only what it had when it signed), each is
        started anew, once for this stamp, even if it looks right. Where each can be asked, it is only proven.

        Args:
            issuer: Whose leaves the processes must present: the configured issuer.
            afresh: As `restart_control_plane`.

        Raises:
            GateRefused: Restarting now would break it. GateTimedOut: It did not come up so in time.
        """

    def restart_data_plane(
        self,
        roots: frozenset[Fingerprint],
        stamp: str,
        *,
        seconds: float,
        issuer: Fingerprint | None = None,
        parallel: int = 4,
        on_progress: Callable[[Step], None] | None = None,
    ) -> RestartReport:
        """Restart every workload with a proxy that does not hold exactly these roots (or a leaf of this issuer).

        Raises:
            GateTimedOut: Some did not end in time; names them.
        """

    def probe_identity(self, domain: str) -> str:
        """The name that a certificate for `probe` has to carry: one that proxies look at, and that is no workload's.

        Args:
            domain: Name of the trust domain in Capstan.
        """

    def probe(
        self, chain_pem: bytes, key: PrivateKey, *, limit: int | None = None, wanted: frozenset[str] = frozenset()
    ) -> ProbeReport:
        """Present a client certificate to the live peers and note what each does with it.

        Args:
            chain_pem: The leaf, then what stands between it and its root.
            key: The leaf's key; used in memory only.
            limit: Ask at most so many, spread over the namespaces; all if None.
            wanted: Ask only these peers, by name; all if empty.
        """

    def checks(self, *, now: datetime, since: timedelta = RECENT) -> tuple[CheckResult, ...]:
        """What `capstan check` says about this cluster.

        Args:
            now: The moment to judge for, aware UTC.
            since: How far back Events and crashes count, where a check looks at any.
        """


def observe_domain(
    systems: Sequence[TrustSystem],
    known: Iterable[Certificate] = (),
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Observation:
    """Observe all clusters of a trust domain, at the same time; every cluster learns the others' roots and issuers.

    A leaf of one cluster may chain to a root met only in another. So where one cluster met a certificate that another
    did not, all are read a second time with everything met so far; what is new even then stays unrecognised, which
    every judge takes as the worst case.
    """
    certificates = {certificate.fingerprint: certificate for certificate in known}
    for _ in range(2):
        taken_at = now()
        observe = partial(_observe, known=tuple(certificates.values()))
        clusters = map_bounded(observe, systems, limit=len(systems))
        for system in systems:
            certificates.update(system.certificates())
        if all(set(system.certificates()) == set(certificates) for system in systems):
            break
    return Observation(taken_at, tuple(clusters))


def _observe(system: TrustSystem, known: tuple[Certificate, ...]) -> ClusterObservation:
    return system.observe(known)
