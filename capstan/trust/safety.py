"""The one invariant, judged exactly: every peer trusts every chain that any live peer may present.

What a peer *may* present is more than what it presents: it may renew its leaf, from its cluster's issuer, at any
moment. Whom it may *trust* is more than whom it trusts: it may be restarted, by anybody, and then trusts its cluster's
bundle. So the verdict is over two sets:

    believers   the trust store of every live peer, and the bundle of every cluster (the pod that starts next)
    chains      the leaf of every live peer, and the issuer of every cluster (the leaf that is renewed next)

Where the processes that sign leaves can be asked one by one (Istio), each of them takes bundle and issuer at its own
time: the roots it hands out are a believer more, and the issuer it signs with is a chain more.

Safe means that every believer shares a root with every chain. A Safe observation stays safe under any restart and any
renewal, because either only moves a peer to a believer and a chain that were in the sets already.

Peers are grouped by equal sets, so the cost is peers + groups squared, and there are rarely ten groups.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from capstan.errors import InvalidInput
from capstan.pki.clock import SKEW
from capstan.trust.observation import ClusterObservation, Fingerprint, Issuer, Leaf, Observation, Owner, Peer

Roots = frozenset[Fingerprint]


@dataclass(frozen=True, slots=True)
class Mistrust:
    """A group of believers that would refuse a group of chains.

    Attributes:
        who: Who does not trust: peers by `cluster/namespace/pod`, or `CLUSTER: a pod started now`.
        whom: Whose chain is refused: peers, or `CLUSTER: a leaf renewed now`.
        trusts: Roots that each of `who` holds.
        anchors: Roots to which each of `whom` chains.
    """

    who: tuple[str, ...]
    whom: tuple[str, ...]
    trusts: Roots
    anchors: Roots

    def __str__(self) -> str:
        return (
            f"{_some(self.who)} trusting {_roots(self.trusts)} would refuse "
            f"{_some(self.whom)} chaining to {_roots(self.anchors)}"
        )


@dataclass(frozen=True, slots=True)
class Safe:
    """The invariant holds.

    Attributes:
        peers: How many live peers were judged.
        trust_stores: How many different trust stores there are.
        chains: How many different sets of anchors are presented.
    """

    peers: int
    trust_stores: int
    chains: int

    @property
    def safe(self) -> bool:
        """True."""
        return True

    def __str__(self) -> str:
        return f"safe: each of {self.peers} peers trusts every chain any of them may present"


@dataclass(frozen=True, slots=True)
class Unsafe:
    """The invariant does not hold, or cannot be shown to.

    Attributes:
        pairs: Who does not trust whom.
        unreadable: `(name, why)` of peers and issuers that could not be read; unknown counts as unsafe.
        expired: `(name, when)` of peers whose leaf was no longer, or not yet, valid: nobody accepts it.
        signing_faults: Why nobody would get another leaf from a configured issuer.
    """

    pairs: tuple[Mistrust, ...]
    unreadable: tuple[tuple[str, str], ...] = ()
    expired: tuple[tuple[str, str], ...] = ()
    signing_faults: tuple[str, ...] = ()

    @property
    def safe(self) -> bool:
        """False."""
        return False

    def __str__(self) -> str:
        lines = [str(pair) for pair in self.pairs]
        lines += [f"{name} cannot be read: {why}" for name, why in self.unreadable]
        lines += [f"{name} presents a leaf {when}" for name, when in self.expired]
        lines += self.signing_faults
        return "unsafe: " + "; ".join(lines)


Verdict = Safe | Unsafe


def verdict(observation: Observation) -> Verdict:
    """Judge the invariant for a domain as observed.

    Raises:
        InvalidInput: There is no cluster in the observation; nothing observed is not the same as nothing wrong.
    """
    if not observation.clusters:
        raise InvalidInput("an observation of no cluster proves nothing", expected="at least one cluster")
    believers: defaultdict[Roots, list[str]] = defaultdict(list)
    chains: defaultdict[Roots, list[str]] = defaultdict(list)
    unreadable: list[tuple[str, str]] = []
    expired: list[tuple[str, str]] = []
    for cluster in observation.clusters:
        believers[cluster.bundle].append(f"{cluster.name}: a pod started now")
        if cluster.issuer is None:
            unreadable.append((f"{cluster.name}: issuer", "not read"))
        else:
            chains[cluster.issuer.anchors].append(f"{cluster.name}: a leaf renewed now")
        for signer in cluster.signers:
            name = f"{cluster.name}: {signer.name}"
            if signer.issuer is None or signer.roots is None:
                unreadable.append((name, signer.unreadable or "not read"))
            if signer.issuer is not None:
                chains[signer.anchors].append(f"{name}, a leaf it signs now")
            if signer.roots is not None:
                believers[signer.roots].append(f"{name}, a proxy it signs for now")
        for peer in cluster.peers:
            if peer.trusts is None or peer.leaf is None:
                unreadable.append((peer.name, peer.unreadable or "not read"))
            if peer.trusts is not None:
                believers[peer.trusts].append(peer.name)
            if peer.leaf is not None:
                chains[peer.leaf.anchors].append(peer.name)
                if not peer.leaf.not_before - SKEW <= observation.taken_at <= peer.leaf.not_after:
                    period = f"valid from {peer.leaf.not_before:%F %T}Z to {peer.leaf.not_after:%F %T}Z"
                    expired.append((peer.name, f"{period}, seen at {observation.taken_at:%F %T}Z"))
    pairs = tuple(
        Mistrust(tuple(who), tuple(whom), trusts, anchors)
        for trusts, who in believers.items()
        for anchors, whom in chains.items()
        if not trusts & anchors
    )
    faults = tuple(f"{cluster.name}: {fault}" for cluster in observation.clusters for fault in cluster.signing_faults)
    if pairs or unreadable or expired or faults:
        return Unsafe(pairs, tuple(unreadable), tuple(expired), faults)
    return Safe(len(observation.peers), len(believers), len(chains))


@dataclass(frozen=True, slots=True)
class SwitchIssuer:
    """A cluster's issuer becomes one that chains to `anchors`; leaves renew whenever they like."""

    cluster: str
    anchors: Roots


@dataclass(frozen=True, slots=True)
class RenewLeaf:
    """A peer (by `Peer.name`) takes a leaf from its cluster's issuer."""

    peer: str


@dataclass(frozen=True, slots=True)
class SetBundle:
    """A cluster's bundle becomes `roots`; who starts from now on trusts them."""

    cluster: str
    roots: Roots


@dataclass(frozen=True, slots=True)
class Restart:
    """A peer (by `Peer.name`) or every peer of an owner starts anew: bundle and issuer as they are now."""

    target: str | Owner


@dataclass(frozen=True, slots=True)
class Distrust:
    """These roots vanish from every bundle and every trust store at once, as if stolen and revoked."""

    roots: Roots


Action = SwitchIssuer | RenewLeaf | SetBundle | Restart | Distrust


def who_would_break(observation: Observation, action: Action) -> Verdict:
    """The verdict on the domain as it would be after `action`, all else being equal.

    Raises:
        InvalidInput: The action names a cluster or peer that is not in the observation.
    """
    return verdict(after(observation, action))


def after(observation: Observation, action: Action) -> Observation:
    """The observation as it would be after `action`.

    Raises:
        InvalidInput: The action names a cluster or peer that is not in the observation.
    """
    changed = tuple(_cluster_after(cluster, action, observation) for cluster in observation.clusters)
    if changed == observation.clusters and not _names_something(observation, action):
        raise InvalidInput("the action names nothing that was observed", observed=repr(action))
    return replace(observation, clusters=changed)


def _cluster_after(cluster: ClusterObservation, action: Action, observation: Observation) -> ClusterObservation:
    match action:
        case SwitchIssuer(name, anchors) if name == cluster.name:
            end = cluster.issuer.not_after if cluster.issuer else observation.taken_at
            issuer = Issuer(fingerprint="", anchors=anchors, not_after=end)
            return replace(cluster, issuer=issuer, signing_faults=())
        case SetBundle(name, roots) if name == cluster.name:
            return replace(cluster, bundle=roots)
        case RenewLeaf(name):
            peers = tuple(
                replace(peer, leaf=_renewed(peer, cluster, observation)) if peer.name == name else peer
                for peer in cluster.peers
            )
            return replace(cluster, peers=peers)
        case Restart(target):
            peers = tuple(
                replace(peer, trusts=cluster.bundle, leaf=_renewed(peer, cluster, observation))
                if target in (peer.name, peer.owner)
                else peer
                for peer in cluster.peers
            )
            return replace(cluster, peers=peers)
        case Distrust(roots):
            peers = tuple(
                peer if peer.trusts is None else replace(peer, trusts=peer.trusts - roots) for peer in cluster.peers
            )
            signers = tuple(
                signer if signer.roots is None else replace(signer, roots=signer.roots - roots)
                for signer in cluster.signers
            )
            return replace(cluster, bundle=cluster.bundle - roots, peers=peers, signers=signers)
        case _:
            return cluster


def _renewed(peer: Peer, cluster: ClusterObservation, observation: Observation) -> Leaf | None:
    """The leaf that the cluster's issuer would give now; None (unreadable, so unsafe) while the issuer is unknown."""
    if cluster.issuer is None:
        return None
    return Leaf(
        fingerprint="",
        identity=peer.leaf.identity if peer.leaf else "",
        issuer=cluster.issuer.fingerprint,
        anchors=cluster.issuer.anchors,
        not_before=observation.taken_at,
        not_after=cluster.issuer.not_after,
    )


def _names_something(observation: Observation, action: Action) -> bool:
    match action:
        case SwitchIssuer(name, _) | SetBundle(name, _):
            return any(cluster.name == name for cluster in observation.clusters)
        case RenewLeaf(name):
            return any(peer.name == name for peer in observation.peers)
        case Restart(target):
            return any(target in (peer.name, peer.owner) for peer in observation.peers)
        case Distrust(_):
            return True


def _some(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def _roots(roots: Roots) -> str:
    return "{" + ", ".join(sorted(root[:16] for root in roots)) + "}"
