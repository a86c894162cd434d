"""A small-step model of an Istio mesh: what may happen to it, by itself or by a procedure.

What differs from `capstan.trust.model`, and breaks real meshes:

    istiod   has several replicas. Each takes the bundle and the issuer, which come to it as separate files (a torn
             read of Key Vault's secrets), at its own time, and only such as fit together: else it keeps what it has.
             What was written in between may still be on its way: a replica can take an earlier version after a later
             one was written. One that starts anew reads what is at the source, with nothing on its way any more.
    proxy    takes roots and leaf together, from any replica, whenever it renews or starts.

The domain is broken when some live proxy refuses the leaf of another (or of its own like), or when an istiod cannot
start. `explore` plays procedures on it as on the other model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from capstan.trust.model import LIFETIME, NOW, OLD, Broken, PeerState, Root
from capstan.trust.observation import ClusterObservation, Issuer, Leaf, Observation, Owner, Peer, Role, Signer

if TYPE_CHECKING:
    from collections.abc import Iterator

_BEHIND = 2
"""Writes that may be on their way to a replica at once; a kubelet or driver further behind skips the oldest."""


class ReplicaState(NamedTuple):
    """One istiod.

    Attributes:
        bundle: Roots that it hands out.
        issuer: Root of the issuer that it signs with.
        bundles: Bundles that were written since and are on their way, oldest first.
        issuers: The same of issuers.
    """

    bundle: frozenset[Root]
    issuer: Root
    bundles: tuple[frozenset[Root], ...] = ()
    issuers: tuple[Root, ...] = ()


class MeshState(NamedTuple):
    """One cluster.

    Attributes:
        bundle: Roots at the source.
        issuer: Root of the issuer at the source.
        peers: The proxies.
    """

    bundle: frozenset[Root]
    issuer: Root
    replicas: tuple[ReplicaState, ...]
    peers: tuple[PeerState, ...]


State = tuple[MeshState, ...]


@dataclass(frozen=True, slots=True)
class IstioDomain:
    """A mesh to explore.

    Attributes:
        clusters: Names, with the number of proxies in each.
        replicas: Istiods of each cluster.
        before: Roots that everybody trusts at the start.
        issuers: Root of each cluster's issuer at the start; `OLD` for those not given.
        asks_signers: Whether each istiod is asked. If not, what is at the source is taken for what each of them has.
        fences: Whether, after a turn, every istiod is started anew before its answers are believed.
    """

    clusters: tuple[tuple[str, int], ...]
    replicas: int = 2
    before: frozenset[Root] = frozenset({OLD})
    issuers: tuple[Root, ...] = ()
    asks_signers: bool = True
    fences: bool = True

    def start(self) -> State:
        """Everybody trusts all that there is before, and presents what the cluster's issuer signs."""
        return tuple(
            MeshState(
                self.before, self.issuer_before(c),
                (ReplicaState(self.before, self.issuer_before(c)),) * self.replicas,
                (PeerState(self.before, self.issuer_before(c)),) * proxies,
            )
            for c, (_, proxies) in enumerate(self.clusters)
        )  # fmt: skip

    def issuer_before(self, cluster: int) -> Root:
        """Root of a cluster's issuer at the start."""
        return self.issuers[cluster] if cluster < len(self.issuers) else OLD

    def canonical(self, state: State, *, replicas: bool) -> State:
        """The same with interchangeable proxies (and replicas) in one order: it halves what is to be explored."""
        return tuple(
            mesh._replace(
                peers=tuple(sorted(mesh.peers, key=_order)),
                replicas=tuple(sorted(mesh.replicas, key=_order)) if replicas else mesh.replicas,
            )
            for mesh in state
        )

    def broken(self, state: State) -> Broken | None:
        """Two live proxies, one of which refuses the other's leaf."""
        for c, mesh in enumerate(state):
            for p, peer in enumerate(mesh.peers):
                for d, other in enumerate(state):
                    for q, presenter in enumerate(other.peers):
                        if presenter.leaf not in peer.trusts:
                            holds = "+".join(sorted(peer.trusts))
                            who, whom = self._web(c, p), self._web(d, q)
                            return Broken(f"{who} trusts {holds} and refuses {whom}, whose leaf is {presenter.leaf}")
        return None

    def happens(self, state: State) -> Iterator[tuple[str, State | Broken]]:
        """Everything that may happen without anybody's doing."""
        for c, mesh in enumerate(state):
            for r, replica in enumerate(mesh.replicas):
                for taken in _takes(replica):
                    holds = "+".join(sorted(taken.bundle))
                    yield (
                        f"{self._istiod(c, r)} takes {holds} and the {taken.issuer} issuer",
                        _with_replica(state, c, r, taken),
                    )
                yield f"{self._istiod(c, r)} is restarted by somebody", self.restart_replica(state, c, r)
            for p in range(len(mesh.peers)):
                for r in _distinct(mesh.replicas):
                    given = PeerState(mesh.replicas[r].bundle, mesh.replicas[r].issuer)
                    if given != mesh.peers[p]:
                        peers = (*mesh.peers[:p], given, *mesh.peers[p + 1 :])
                        yield (
                            f"{self._web(c, p)} renews its leaf at {self._istiod(c, r)}",
                            _with(state, c, mesh._replace(peers=peers)),
                        )

    def restart_replica(self, state: State, c: int, r: int) -> State | Broken:
        """An istiod starts anew, from what is at the source."""
        mesh = state[c]
        if mesh.issuer not in mesh.bundle:
            return Broken(
                f"{self._istiod(c, r)} cannot start: its issuer is {mesh.issuer}, the bundle does not hold that root"
            )
        return _with_replica(state, c, r, ReplicaState(mesh.bundle, mesh.issuer))

    def control_plane(self, c: int) -> range:
        """Numbers of the replicas that a control-plane step acts on."""
        del c
        return range(self.replicas)

    def workloads(self, c: int) -> range:
        """Numbers of the proxies that a data-plane step acts on."""
        return range(self.clusters[c][1])

    def settle(self, state: State, c: int, r: int, *, afresh: bool) -> Iterator[tuple[str, State | Broken]]:
        """The ways in which a control-plane step ends with one replica: restarted, or seen to hold what is wanted."""
        mesh, replica = state[c], state[c].replicas[r]
        yield f"restarts {self._istiod(c, r)}", self.restart_replica(state, c, r)
        if not afresh and (replica.bundle, replica.issuer) == (mesh.bundle, mesh.issuer):
            yield f"sees {self._istiod(c, r)} hold it", state

    def restart_workload(self, state: State, c: int, p: int) -> Iterator[tuple[str, State | Broken]]:
        """A proxy starts anew: with what any replica gives it."""
        mesh = state[c]
        for r in _distinct(mesh.replicas):
            given = PeerState(mesh.replicas[r].bundle, mesh.replicas[r].issuer)
            peers = (*mesh.peers[:p], given, *mesh.peers[p + 1 :])
            yield f"restarts {self._web(c, p)}", _with(state, c, mesh._replace(peers=peers))

    def write_bundle(self, state: State, c: int, roots: frozenset[Root]) -> State:
        """A bundle is written; no istiod has seen it yet."""
        mesh = state[c]
        if roots == mesh.bundle:
            return state
        replicas = tuple(r._replace(bundles=(*r.bundles, roots)[-_BEHIND:]) for r in mesh.replicas)
        return _with(state, c, mesh._replace(bundle=roots, replicas=replicas))

    def write_issuer(self, state: State, c: int, root: Root) -> State:
        """An issuer is written; no istiod has seen it yet."""
        mesh = state[c]
        if root == mesh.issuer:
            return state
        replicas = tuple(r._replace(issuers=(*r.issuers, root)[-_BEHIND:]) for r in mesh.replicas)
        return _with(state, c, mesh._replace(issuer=root, replicas=replicas))

    def settled(self, state: State, roots: frozenset[Root], issuer: Root) -> bool:
        """Whether everybody has exactly these roots and leaves of this issuer, with nothing on its way."""
        only = ReplicaState(roots, issuer)
        return all(
            mesh.bundle == roots
            and all(replica == only for replica in mesh.replicas)
            and all(peer == PeerState(roots, issuer) for peer in mesh.peers)
            for mesh in state
        )

    def observe(self, state: State) -> Observation:
        """The state as an adapter would report it."""
        return Observation(
            NOW,
            tuple(
                ClusterObservation(
                    name=name,
                    bundle=mesh.bundle,
                    declared=(),
                    issuer=Issuer(f"issuer of {mesh.issuer}", frozenset({mesh.issuer}), NOW + 30 * LIFETIME),
                    peers=tuple(self._peer(name, p, peer) for p, peer in enumerate(mesh.peers)),
                    leaf_lifetime=LIFETIME.total_seconds(),
                    signers=tuple(self._signer(r, mesh) for r in range(self.replicas)),
                    roots_with_leaf=True,
                )
                for (name, _), mesh in zip(self.clusters, state, strict=True)
            ),
        )

    def _signer(self, r: int, mesh: MeshState) -> Signer:
        seen = mesh.replicas[r] if self.asks_signers else ReplicaState(mesh.bundle, mesh.issuer)
        return Signer(f"istiod-{r + 1}", f"issuer of {seen.issuer}", frozenset({seen.issuer}), seen.bundle)

    @staticmethod
    def _peer(cluster: str, p: int, peer: PeerState) -> Peer:
        pod = f"web-{p + 1}"
        leaf = Leaf(pod, pod, f"issuer of {peer.leaf}", frozenset({peer.leaf}), NOW, NOW + LIFETIME)
        return Peer(cluster, "app", pod, Role.WORKLOAD, Owner("Deployment", "app", pod), peer.trusts, leaf)

    def _istiod(self, c: int, r: int) -> str:
        return f"{self.clusters[c][0]}/istiod-{r + 1}"

    def _web(self, c: int, p: int) -> str:
        return f"{self.clusters[c][0]}/web-{p + 1}"


def _takes(replica: ReplicaState) -> Iterator[ReplicaState]:
    """What a replica may take next of what is on its way: files that fit together, roots that only grow or shrink.

    Source: istio/istio security/pkg/pki/util/keycertbundle.go (Verify) and pilot/pkg/bootstrap/istio_ca.go.
    """
    for i in range(-1, len(replica.bundles)):
        for j in range(-1, len(replica.issuers)):
            bundle = replica.bundles[i] if i >= 0 else replica.bundle
            issuer = replica.issuers[j] if j >= 0 else replica.issuer
            hot = bundle <= replica.bundle or bundle >= replica.bundle
            if (i, j) != (-1, -1) and issuer in bundle and hot:
                yield ReplicaState(bundle, issuer, replica.bundles[i + 1 :], replica.issuers[j + 1 :])


def _distinct(replicas: tuple[ReplicaState, ...]) -> list[int]:
    """Replicas that give different things to a proxy."""
    found = {(replica.bundle, replica.issuer): r for r, replica in reversed(list(enumerate(replicas)))}
    return sorted(found.values())


def _order(part: NamedTuple) -> tuple[object, ...]:
    return tuple(tuple(sorted(each)) if isinstance(each, frozenset) else _flat(each) for each in part)


def _flat(value: object) -> object:
    return (
        tuple(tuple(sorted(v)) if isinstance(v, frozenset) else v for v in value) if isinstance(value, tuple) else value
    )


def _with(state: State, c: int, mesh: MeshState) -> State:
    return (*state[:c], mesh, *state[c + 1 :])


def _with_replica(state: State, c: int, r: int, replica: ReplicaState) -> State:
    mesh = state[c]
    return _with(state, c, mesh._replace(replicas=(*mesh.replicas[:r], replica, *mesh.replicas[r + 1 :])))
