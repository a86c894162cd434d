"""A small-step model of a Linkerd domain: what may happen to it, by itself or by a procedure.

Small enough to explore every interleaving, true enough to find the ways in which meshes really break:

    Linkerd   a pod takes its roots at start and keeps them; identity takes roots and issuer at start, and a new issuer
              at any later time, but only if its roots at start verify it; a leaf is renewed at any time, from the
              issuer identity has in memory; the injector sees a new bundle some time after it was written.

Istio's is `capstan.trust.model_istio`.

The domain is broken when some live peer refuses the leaf of another (or of its own like), when a pod that starts gets
no leaf it trusts, or when identity cannot start.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from capstan.trust.observation import ClusterObservation, Issuer, Leaf, Observation, Owner, Peer, Role

if TYPE_CHECKING:
    from collections.abc import Iterator

Root = str
OLD: Root = "old"
NEW: Root = "new"
OLDER: Root = "older"
"""A second root that is trusted at the start beside `OLD`, where a domain has one."""
NOW = datetime(2026, 1, 1, tzinfo=UTC)
"""The model's only moment: time enters as the order of events."""

LIFETIME = timedelta(hours=24)


class PeerState(NamedTuple):
    """A live proxy: the roots it holds, the root its leaf chains to."""

    trusts: frozenset[Root]
    leaf: Root


class ClusterState(NamedTuple):
    """One cluster.

    Attributes:
        bundle: Roots as written.
        injected: Roots that the injector gives to a workload started now; lags behind `bundle`.
        issuer: Root of the issuer as written.
        active: Root of the issuer that identity has in memory.
        peers: Identity's own proxy first, then the workloads.
    """

    bundle: frozenset[Root]
    injected: frozenset[Root]
    issuer: Root
    active: Root
    peers: tuple[PeerState, ...]


State = tuple[ClusterState, ...]


class Broken(NamedTuple):
    """Why a state, or an event, is a failure."""

    reason: str


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain to explore.

    Attributes:
        clusters: Names, with the number of workload proxies in each; identity's proxy comes on top.
        before: Roots that everybody trusts at the start.
        issuers: Root of each cluster's issuer at the start; `OLD` for those not given.
    """

    clusters: tuple[tuple[str, int], ...]
    before: frozenset[Root] = frozenset({OLD})
    issuers: tuple[Root, ...] = ()

    def start(self) -> State:
        """Everybody trusts all that there is before, and presents what the cluster's issuer signs."""
        return tuple(
            ClusterState(
                self.before, self.before, self.issuer_before(c), self.issuer_before(c),
                (PeerState(self.before, self.issuer_before(c)),) * (1 + workloads),
            )
            for c, (_, workloads) in enumerate(self.clusters)
        )  # fmt: skip

    def issuer_before(self, cluster: int) -> Root:
        """Root of a cluster's issuer at the start."""
        return self.issuers[cluster] if cluster < len(self.issuers) else OLD

    def peer_name(self, cluster: int, peer: int) -> str:
        """`east/identity`, `east/web-1`, ..."""
        return f"{self.clusters[cluster][0]}/" + ("identity" if peer == 0 else f"web-{peer}")

    @property
    def fences(self) -> bool:
        """What identity has is never asked: it is started anew after every switch, turned or not."""
        return False

    def canonical(self, state: State, *, replicas: bool) -> State:
        """The same: no two parts are interchangeable here."""
        del replicas
        return state

    def broken(self, state: State) -> Broken | None:
        """Two live peers, one of which refuses the other's leaf."""
        leaves = {peer.leaf for cluster in state for peer in cluster.peers}
        if all(leaves <= peer.trusts for cluster in state for peer in cluster.peers):
            return None
        for c, cluster in enumerate(state):
            for p, peer in enumerate(cluster.peers):
                for d, other in enumerate(state):
                    for q, presenter in enumerate(other.peers):
                        if presenter.leaf not in peer.trusts:
                            who, whom = self.peer_name(c, p), self.peer_name(d, q)
                            holds = "+".join(sorted(peer.trusts))
                            return Broken(f"{who} trusts {holds} and refuses {whom}, whose leaf is {presenter.leaf}")
        return None

    def happens(self, state: State) -> Iterator[tuple[str, State | Broken]]:
        """Everything that may happen without anybody's doing."""
        for c, cluster in enumerate(state):
            name = self.clusters[c][0]
            if cluster.injected != cluster.bundle:
                seen = cluster._replace(injected=cluster.bundle)
                yield f"{name}: injector sees the bundle", _with(state, c, seen)
            identity = cluster.peers[0]
            if cluster.active != cluster.issuer and cluster.issuer in identity.trusts:
                loaded = cluster._replace(active=cluster.issuer)
                yield f"{name}: identity loads the {cluster.issuer} issuer", _with(state, c, loaded)
            for p in range(len(cluster.peers)):
                yield f"{self.peer_name(c, p)} renews its leaf", self.renew(state, c, p)
                yield f"{self.peer_name(c, p)} is restarted by somebody", self.restart(state, c, p)

    def renew(self, state: State, c: int, p: int) -> State | Broken:
        """A peer takes a new leaf; a proxy refuses one it does not trust itself, and then lives on to its expiry."""
        cluster = state[c]
        trusts = cluster.peers[p].trusts
        if cluster.active not in trusts:
            return Broken(
                f"{self.peer_name(c, p)} trusts {'+'.join(sorted(trusts))} and can take no {cluster.active} leaf"
            )
        return _with(state, c, _with_peer(cluster, p, PeerState(trusts, cluster.active)))

    def restart(self, state: State, c: int, p: int) -> State | Broken:
        """A peer starts anew. Identity reads the written bundle and issuer; a workload gets what the injector gives."""
        cluster = state[c]
        name = self.peer_name(c, p)
        if p == 0:
            if cluster.issuer not in cluster.bundle:
                return Broken(
                    f"{name} cannot start: its issuer is {cluster.issuer}, the bundle does not hold that root"
                )
            cluster = cluster._replace(active=cluster.issuer)
            return _with(state, c, _with_peer(cluster, p, PeerState(cluster.bundle, cluster.active)))
        if cluster.active not in cluster.injected:
            held = "+".join(sorted(cluster.injected))
            return Broken(f"{name} starts with {held} and can take no {cluster.active} leaf")
        return _with(state, c, _with_peer(cluster, p, PeerState(cluster.injected, cluster.active)))

    def control_plane(self, c: int) -> range:
        """Numbers of the peers that a control-plane step acts on."""
        del c
        return range(1)

    def workloads(self, c: int) -> range:
        """Numbers of the peers that a data-plane step acts on."""
        return range(1, 1 + self.clusters[c][1])

    def settle(self, state: State, c: int, p: int, *, afresh: bool) -> Iterator[tuple[str, State | Broken]]:
        """The one way in which a control-plane step ends with a peer."""
        del afresh
        yield from self.restart_workload(state, c, p)

    def restart_workload(self, state: State, c: int, p: int) -> Iterator[tuple[str, State | Broken]]:
        """The one way in which a peer starts anew."""
        yield f"restarts {self.peer_name(c, p)}", self.restart(state, c, p)

    def settled(self, state: State, roots: frozenset[Root], issuer: Root) -> bool:
        """Whether everybody trusts exactly these roots and presents a leaf of this issuer."""
        return all(
            cluster.bundle == roots and all(peer.trusts == roots and peer.leaf == issuer for peer in cluster.peers)
            for cluster in state
        )

    def write_bundle(self, state: State, c: int, roots: frozenset[Root]) -> State:
        """A bundle is written."""
        return _with(state, c, state[c]._replace(bundle=roots))

    def write_issuer(self, state: State, c: int, root: Root) -> State:
        """An issuer is written; identity has not seen it yet."""
        return _with(state, c, state[c]._replace(issuer=root))

    def observe(self, state: State) -> Observation:
        """The state as an adapter would report it, the injector's view among the declared roots."""
        return Observation(
            NOW,
            tuple(
                ClusterObservation(
                    name=name,
                    bundle=cluster.bundle,
                    declared=(("injector", cluster.injected),),
                    issuer=Issuer(f"issuer of {cluster.issuer}", frozenset({cluster.issuer}), NOW + 30 * LIFETIME),
                    peers=tuple(self._peer(name, p, peer) for p, peer in enumerate(cluster.peers)),
                    leaf_lifetime=LIFETIME.total_seconds(),
                )
                for (name, _), cluster in zip(self.clusters, state, strict=True)
            ),
        )

    @staticmethod
    def _peer(cluster: str, p: int, peer: PeerState) -> Peer:
        pod = "identity" if p == 0 else f"web-{p}"
        return Peer(
            cluster=cluster,
            namespace="linkerd" if p == 0 else "app",
            pod=pod,
            role=Role.CONTROL_PLANE if p == 0 else Role.WORKLOAD,
            owner=Owner("Deployment", "linkerd" if p == 0 else "app", pod),
            trusts=peer.trusts,
            leaf=Leaf(pod, pod, f"issuer of {peer.leaf}", frozenset({peer.leaf}), NOW, NOW + LIFETIME),
        )


def _with(state: State, c: int, cluster: ClusterState) -> State:
    return (*state[:c], cluster, *state[c + 1 :])


def _with_peer(cluster: ClusterState, p: int, peer: PeerState) -> ClusterState:
    return cluster._replace(peers=(*cluster.peers[:p], peer, *cluster.peers[p + 1 :]))
