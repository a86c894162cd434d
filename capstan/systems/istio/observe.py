"""One look at a live Istio: what its CA is configured with, what every istiod signs with, what every proxy holds.

Declared places and live processes are never taken for each other. What cannot be read is reported as unreadable, with
the reason. A connection that is kept alive proves nothing here: only certificates that were seen count.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

from capstan.cluster.parallel import map_bounded
from capstan.cluster.resources import PODS
from capstan.cluster.workloads import Owners, PodRef, is_ready
from capstan.errors import CapstanError, Retryable
from capstan.pki.bundle import Bundle
from capstan.systems.asking import SECOND_TRY
from capstan.systems.istio.connections import read_connections
from capstan.systems.istio.istiods import istiod_of, read_istiods
from capstan.systems.istio.layout import PROXY, find_container, has_ended, read_layout
from capstan.systems.istio.places import Places, read_places
from capstan.systems.istio.pods import is_ztunnel, proxy_container, revision_of, role_of
from capstan.systems.istio.proxies import Proxy, ProxyReading, read_proxy
from capstan.systems.istio.versions import image_version
from capstan.systems.istio.ztunnels import read_ztunnel
from capstan.systems.known import Known
from capstan.trust.observation import ClusterObservation, Owner, Peer, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object
    from capstan.pki.inspect import Certificate
    from capstan.systems.istio.connections import Connected
    from capstan.systems.istio.istiods import Istiod
    from capstan.systems.istio.layout import Layout
    from capstan.systems.istio.memory import Memory
    from capstan.systems.istio.source import CaFiles, CaSource
    from capstan.trust.observation import Fingerprint

CONCURRENCY: Final = 16
PEER_TIMEOUT: Final = 10.0
BACKDATED: Final = 120.0  # seconds by which istiod dates a leaf back (security/pkg/pki/util, GenCertFromCSR)
DEFAULT_LIFE: Final = 24 * 3600.0  # SECRET_TTL of a proxy that does not set it


@dataclass(frozen=True, slots=True)
class View:
    """Everything that one look at a cluster brought.

    Attributes:
        files: The public texts at the CA's source; None if there is no source to read, or it could not be read.
        bundle: The roots at the source; where there is none, those of the control plane's own ConfigMap.
        issuer: The configured signing CA's certificate; None if it cannot be read.
        istiods: Every live replica of every revision.
        proxies: Every sidecar, gateway and waypoint, one entry per certificate of every ztunnel, and what is connected
            to an istiod and is none of these.
        certificates: Every root and issuer met, and the `known` ones.
        troubles: What could not be read of the declared places, for a person.
        places: The objects that repeat the roots.
        recalled: How many proxies were taken from memory instead of being read.
    """

    layout: Layout
    files: CaFiles | None
    bundle: Bundle
    issuer: Certificate | None
    istiods: tuple[Istiod, ...]
    proxies: tuple[Proxy, ...]
    certificates: dict[Fingerprint, Certificate]
    observation: ClusterObservation
    troubles: tuple[str, ...] = ()
    places: Places = field(default_factory=lambda: Places((), ()))
    recalled: int = 0


def observe(
    cluster: Cluster,
    namespace: str,
    source: CaSource | None,
    known: Iterable[Certificate] = (),
    *,
    concurrency: int = CONCURRENCY,
    timeout: float = PEER_TIMEOUT,
    control_plane_only: bool = False,
    memory: Memory | None = None,
    glance: bool = False,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> View:
    """Read one cluster's Istio.

    Args:
        source: Where its CA is kept; None if that is not to be read.
        known: Roots and issuers to recognise besides those found.
        concurrency: Proxies read at a time.
        timeout: Seconds for each question to a proxy or an istiod.
        control_plane_only: Leave all proxies out: for waits on istiod, of which there are few.
        memory: What proxies held when they were last read; brought up to date.
        glance: Take from memory whoever cannot have changed since; else everybody is read.

    Raises:
        NotFound: No Istio in that namespace. Other CapstanErrors: the API cannot be read at all.
    """
    began = now()
    layout = read_layout(cluster, namespace)
    certificates = Known()
    known = tuple(known)
    certificates.add(known)
    # 1. What is declared: the CA's source, and the places that repeat its roots.
    troubles: list[str] = []
    files = _read_source(source, troubles)
    places = read_places(cluster, layout)
    troubles += places.troubles
    bundle = _bundle(files, places, layout)
    certificates.add(bundle)
    certificates.trust(bundle)
    for place in places.all():
        certificates.add(place.roots or ())
    issuer_chain = _issuer_chain(files, source, troubles)
    certificates.add(issuer_chain)
    # 2. Who is there: one paged list.
    pods = () if control_plane_only else cluster.list(PODS).items
    meshed = [pod for pod in pods if not has_ended(pod) and _is_meshed(pod)]
    listed = {_key(pod) for pod in pods}
    # 3. What each istiod signs with, and what each proxy holds.
    signers = read_istiods(cluster, layout, timeout=timeout, concurrency=concurrency)
    known_still = [memory.recall(pod, began) if memory is not None and glance else None for pod in meshed]
    recalled = [reading for reading in known_still if reading is not None]
    to_read = [pod for pod, reading in zip(meshed, known_still, strict=True) if reading is None]
    readings = _read_all(cluster, to_read, timeout, concurrency)
    if memory is not None:
        memory.only(meshed)
        memory.keep(readings, began)
    readings += recalled
    who = partial(
        read_connections, cluster, [_ref(signer.pod) for signer in signers], timeout=timeout, concurrency=concurrency
    )
    strangers: frozenset[tuple[str, str]] = frozenset()
    if not control_plane_only:
        connected = who()
        troubles += connected.troubles
        born, strangers = _unlisted(cluster, connected.proxies, meshed, who)
        readings += _read_all(cluster, born, timeout, concurrency)
    # 4. Who issued what, and where it leads, now that every root is known.
    for signer in signers:
        certificates.add((*signer.chain, *(signer.roots or ())))
    for reading in readings:
        certificates.add((*(reading.trusts or ()), *reading.chain[1:]))
    # What the mesh configuration adds is nobody's to turn here, unless it is a root that is looked for.
    beside = layout.added_roots.fingerprints - bundle.fingerprints - {each.fingerprint for each in known}
    at = now()
    istiods = tuple(istiod_of(signer, certificates, at) for signer in signers)
    proxies = (
        *(_proxy(cluster.name, namespace, reading, certificates, at, beside) for reading in readings),
        *(_stranger(cluster.name, *stranger, here=stranger in listed) for stranger in sorted(strangers)),
    )
    observation = ClusterObservation(
        name=cluster.name,
        bundle=bundle.fingerprints,
        declared=places.declared(layout.config_map, bundle),
        issuer=certificates.issuer(issuer_chain, at),
        peers=tuple(proxy.peer for proxy in proxies),
        leaf_lifetime=_leaf_lifetime(proxies),
        signers=tuple(istiod.signer for istiod in istiods),
        roots_with_leaf=True,
    )
    issuer = issuer_chain[0] if issuer_chain else None
    return View(
        layout, files, bundle, issuer, istiods, proxies, certificates.all(), observation, tuple(troubles), places,
        recalled=len(recalled),
    )  # fmt: skip


def _read_source(source: CaSource | None, troubles: list[str]) -> CaFiles | None:
    if source is None:
        return None
    try:
        return source.read()
    except Retryable:
        raise
    except CapstanError as error:
        troubles.append(str(error))
        return None


def _bundle(files: CaFiles | None, places: Places, layout: Layout) -> Bundle:
    """The roots at the source. Without one, those that istiod published in its own namespace.

    Raises:
        InvalidPem: There are none, or none that can be read.
    """
    if files is not None:
        return Bundle.parse_lenient(files.root_cert, f"roots of the CA in namespace {layout.namespace}")
    place = places.of_namespace(layout.namespace)
    if place is not None and place.roots is not None:
        return place.roots
    return Bundle.parse_lenient("", f"configmap {layout.namespace}/{layout.config_map}")


def _issuer_chain(files: CaFiles | None, source: CaSource | None, troubles: list[str]) -> tuple[Certificate, ...]:
    """The configured signing CA, then what stands above it; empty if that cannot be read."""
    if files is None:
        return ()
    where = source.where if source is not None else "CA"
    try:
        signing = Bundle.parse_lenient(files.ca_cert, f"{where}, ca-cert.pem").certificates[0]
        above = Bundle.parse_lenient(files.cert_chain, f"{where}, cert-chain.pem") if files.cert_chain.strip() else ()
    except CapstanError as error:
        troubles.append(str(error))
        return ()
    return (signing, *(item for item in above if item != signing))


def _is_meshed(pod: Object) -> bool:
    return proxy_container(pod["spec"]) is not None or is_ztunnel(pod)


def _read_all(
    cluster: Cluster, pods: Sequence[Object], timeout: float, concurrency: int
) -> list[ProxyReading]:  # fmt: skip
    owners = Owners(cluster)

    def read(pod: Object) -> tuple[ProxyReading, ...]:
        if is_ztunnel(pod):
            return read_ztunnel(cluster, pod, owners.of(pod), timeout)
        reading = read_proxy(cluster, pod, owners.of(pod), timeout)
        return (reading,) if reading is not None else ()

    return [reading for readings in map_bounded(read, pods, limit=concurrency) for reading in readings]


def _unlisted(
    cluster: Cluster,
    connected: frozenset[tuple[str, str]],
    listed: Iterable[Object],
    ask_again: Callable[[], Connected],
) -> tuple[list[Object], frozenset[tuple[str, str]]]:
    """Those who are connected to an istiod and were not in the list: pods that came since, and strangers to this
    cluster. Whoever is no longer connected a moment later was a pod that has gone."""
    missing = connected - {_key(pod) for pod in listed}
    if not missing:
        return [], frozenset()
    cluster.sleep(SECOND_TRY)
    since = {_key(pod): pod for pod in cluster.list(PODS).items}
    born = [since[key] for key in sorted(missing) if key in since]
    born = [pod for pod in born if not has_ended(pod) and _is_meshed(pod)]
    strangers = missing - {_key(pod) for pod in born} - {key for key, pod in since.items() if has_ended(pod)}
    return born, strangers & ask_again().proxies if strangers else strangers


def _key(pod: Object) -> tuple[str, str]:
    return str(pod["metadata"].get("namespace", "")), str(pod["metadata"]["name"])


def _ref(pod: Object) -> PodRef:
    return PodRef(*_key(pod), str(pod["metadata"].get("uid", "")))


def _proxy(
    cluster: str,
    namespace: str,
    reading: ProxyReading,
    certificates: Known,
    at: datetime,
    beside: frozenset[Fingerprint],
) -> Proxy:
    """One proxy, without the roots that it trusts beside those of the CA."""
    pod = reading.pod
    metadata = pod["metadata"]
    started = (pod.get("status") or {}).get("startTime")
    leaving = "deletionTimestamp" in metadata
    peer = Peer(
        cluster=cluster,
        namespace=str(metadata["namespace"]),
        pod=reading.name,
        role=role_of(pod, namespace),
        owner=reading.owner,
        trusts=reading.trusts.fingerprints - beside if reading.trusts is not None else None,
        leaf=certificates.leaf(reading.chain, at),
        unreadable=reading.unreadable,
        ready=is_ready(pod) and not leaving,
        started=datetime.fromisoformat(started) if started else None,
    )
    container = find_container(pod["spec"], PROXY) or next(iter(pod["spec"].get("containers") or ()), {})
    return Proxy(
        peer=peer,
        ref=_ref(pod),
        kind=reading.kind,
        revision=revision_of(pod),
        version=image_version(str(container.get("image", ""))),
        env=reading.env,
        updated=reading.updated,
        leaving=leaving,
    )


def _stranger(cluster: str, namespace: str, name: str, *, here: bool) -> Proxy:
    """A proxy that an istiod serves and that cannot be read: a virtual machine, another cluster's pod, or one of this
    cluster without an Envoy or ztunnel of Istio's (agentgateway, a client of one's own)."""
    why = (
        "its pod has no container istio-proxy"
        if here
        else "it is no pod of this cluster (a virtual machine, or of another cluster)"
    )
    peer = Peer(
        cluster=cluster,
        namespace=namespace,
        pod=name,
        role=Role.WORKLOAD,
        owner=Owner("Proxy", namespace, name),
        trusts=None,
        leaf=None,
        unreadable=f"it is connected to an istiod, but {why}: what it holds cannot be read from here",
    )
    return Proxy(peer, PodRef(namespace, name, ""), "unknown", "", None, {}, None, leaving=False)


def _leaf_lifetime(proxies: Iterable[Proxy]) -> float:
    """Seconds from a leaf's notBefore to its notAfter: the longest that was seen; what istiod gives by default, if none
    was."""
    lives = [
        (proxy.peer.leaf.not_after - proxy.peer.leaf.not_before).total_seconds()
        for proxy in proxies
        if proxy.peer.leaf is not None
    ]
    return max(lives, default=DEFAULT_LIFE + BACKDATED)
