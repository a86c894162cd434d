"""What was read from the live clusters of one trust domain, as plain values.

Adapters (`capstan.systems`) fill these in; everything else in `capstan.trust` reasons about them. No I/O here.
An Observation never guesses: what could not be read is None, with the reason beside it, and every judge of an
Observation treats None as the worst case.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

Fingerprint = str
"""SHA-256 of a certificate's DER, lower-case hex."""


class Role(StrEnum):
    """What a peer is to its mesh; control-plane peers are restarted first."""

    CONTROL_PLANE = "control-plane"
    WORKLOAD = "workload"


@dataclass(frozen=True, slots=True)
class Owner:
    """The workload that would replace a pod: the thing a restart acts on."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind.lower()}/{self.name} -n {self.namespace}"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf certificate that a peer presented in a handshake.

    Attributes:
        fingerprint: SHA-256 of the leaf.
        identity: The first subject alternative name (DNS name or URI).
        issuer: Fingerprint of the issuer certificate that signed it; None if no known issuer did.
        anchors: Roots, of all known ones, to which its chain verifies.
        not_before: Start of validity, aware UTC.
        not_after: End of validity, aware UTC.
    """

    fingerprint: Fingerprint
    identity: str
    issuer: Fingerprint | None
    anchors: frozenset[Fingerprint]
    not_before: datetime
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Peer:
    """One live proxy (or client, kubelet, API server): whom it trusts and what it presents.

    Attributes:
        trusts: Roots it holds in memory; None if that could not be read.
        leaf: What it presents; None if that could not be read.
        unreadable: Why something could not be read, for a person; empty if all was.
        ready: Whether Kubernetes sends it traffic.
    """

    cluster: str
    namespace: str
    pod: str
    role: Role
    owner: Owner
    trusts: frozenset[Fingerprint] | None
    leaf: Leaf | None
    unreadable: str = ""
    ready: bool = True
    started: datetime | None = None

    @property
    def name(self) -> str:
        """`cluster/namespace/pod`, unique in the domain."""
        return f"{self.cluster}/{self.namespace}/{self.pod}"


@dataclass(frozen=True, slots=True)
class Issuer:
    """The issuing CA that the control plane is configured to sign with.

    Attributes:
        anchors: Roots, of all known ones, to which it verifies.
        not_after: End of validity, aware UTC.
    """

    fingerprint: Fingerprint
    anchors: frozenset[Fingerprint]
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Signer:
    """One live process that signs leaves, and what it signed with when it was asked.

    Where a control plane has several replicas, each of them takes new material at its own time: a mesh is as far as the
    last of them.

    Attributes:
        name: `pod istio-system/istiod-6c5d`.
        issuer: Fingerprint of the issuer it signs with now; None if that could not be read.
        anchors: Roots, of all known ones, to which that issuer verifies.
        roots: Roots that it hands out with a leaf; None if that could not be read, or if it hands out none.
        unreadable: Why something could not be read, for a person; empty if all was.
    """

    name: str
    issuer: Fingerprint | None
    anchors: frozenset[Fingerprint]
    roots: frozenset[Fingerprint] | None
    unreadable: str = ""


@dataclass(frozen=True, slots=True)
class ClusterObservation:
    """One cluster of the domain.

    Attributes:
        bundle: Roots that a peer started now would receive.
        declared: The same roots as other places declare them (for Linkerd: `linkerd-config`, the install's overrides,
            and what the proxy-injector puts into a pod on a dry run, which lags behind the bundle); keyed by place. A
            place that differs from `bundle` is drift, and gates wait for every place.
        issuer: The issuer as configured (not yet proof that anything signs with it); None if it could not be read.
        peers: Every live peer, ready or not.
        leaf_lifetime: Seconds that a leaf issued now lives, skew included.
        signers: Every live process that signs leaves, where each can be asked (Istio); empty where none can (Linkerd).
        roots_with_leaf: Whether a proxy takes the roots anew with every leaf (Istio), or at its start only (Linkerd).
        signing_faults: Why the configured issuer cannot sign, whoever takes it: its key is another's, or of a kind that
            does not do. Not that it has ended or chains to nothing; `issuer` says so.
        troubles: What else is not as it should be, for a person; only where webhooks are observed (`trust.hooks`).
    """

    name: str
    bundle: frozenset[Fingerprint]
    declared: tuple[tuple[str, frozenset[Fingerprint]], ...]
    issuer: Issuer | None
    peers: tuple[Peer, ...]
    leaf_lifetime: float
    signers: tuple[Signer, ...] = ()
    roots_with_leaf: bool = False
    signing_faults: tuple[str, ...] = ()
    troubles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Observation:
    """A trust domain: one or more clusters that share roots, read at one moment."""

    taken_at: datetime
    clusters: tuple[ClusterObservation, ...]

    @property
    def peers(self) -> tuple[Peer, ...]:
        """All peers of all clusters."""
        return tuple(peer for cluster in self.clusters for peer in cluster.peers)
