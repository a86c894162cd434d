"""Reading a live Linkerd: what is declared, and what every proxy holds and presents at this moment.

Declared places and live processes are never taken for each other. A proxy's roots are asked of the proxy itself
(`/env.json` on its admin port, in every version since 2.12), its leaf is seen in a TLS handshake with that port (as
`linkerd identity` does). What cannot be read is reported as unreadable, with the reason.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from capstan.cluster.parallel import map_bounded
from capstan.cluster.peer_tls import TlsRefused, tls_peer
from capstan.cluster.portforward import http_get
from capstan.cluster.resources import CONFIG_MAPS, PODS, SECRETS
from capstan.cluster.workloads import Owners, PodRef, is_ready
from capstan.errors import CapstanError, InvalidInput, NotFound
from capstan.pki.bundle import Bundle
from capstan.pki.inspect import Certificate
from capstan.systems.asking import ask_twice, is_gone
from capstan.systems.known import Known
from capstan.systems.linkerd.identity import why_apart, writer_of, written_at
from capstan.systems.linkerd.identity_judging import signing_faults
from capstan.systems.linkerd.layout import (
    ANCHORS,
    ANCHORS_ENV,
    COMPONENT_LABEL,
    CONFIG,
    CONFIG_KEY,
    IDENTITY,
    ISSUER,
    MESH_LABEL,
    OVERRIDES,
    TRUST_ROOTS,
    TRUST_ROOTS_KEY,
    Layout,
    overrides_text,
    read_layout,
)
from capstan.systems.linkerd.pods import (
    admin_port,
    has_ended,
    literal_anchors,
    local_name,
    proxy_container,
    proxy_is_over,
    proxy_runs,
    role_of,
)
from capstan.systems.linkerd.secrets import decoded
from capstan.systems.linkerd.values import get_value
from capstan.trust.observation import ClusterObservation, Fingerprint, Owner, Peer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object

CONCURRENCY: Final = 16
PEER_TIMEOUT: Final = 10.0


@dataclass(frozen=True, slots=True)
class Proxy:
    """One meshed pod, as Kubernetes describes it and as its proxy was read.

    Attributes:
        component: Value of the control-plane component label; empty for workloads.
        sni: The proxy's own identity, by which it is to be addressed.
        port: Its admin port.
        leaving: Whether the pod is being deleted; it may still serve for a while.
        apart: Beside an identity process: why that may hold other roots than this proxy; empty if it does not.
    """

    peer: Peer
    ref: PodRef
    component: str
    sni: str
    port: int
    leaving: bool
    apart: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """Everything that one look at a cluster brought.

    Attributes:
        bundle: The trust roots as proxies and identity will read them at their next start.
        issuer: The configured issuer's certificate; None if the Secret cannot be read.
        certificates: Every root and issuer met, and the `known` ones.
        troubles: What could not be read of the declared places, for a person.
    """

    layout: Layout
    bundle: Bundle
    issuer: Certificate | None
    proxies: tuple[Proxy, ...]
    certificates: dict[Fingerprint, Certificate]
    observation: ClusterObservation
    troubles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Reading:
    """What one proxy said, before it is known which roots there are in the whole cluster."""

    pod: Object
    owner: Owner
    sni: str
    port: int
    trusts: Bundle | None
    chain: tuple[Certificate, ...]
    unreadable: str


def observe(
    cluster: Cluster,
    namespace: str,
    known: Iterable[Certificate] = (),
    *,
    concurrency: int = CONCURRENCY,
    timeout: float = PEER_TIMEOUT,
    within: str = "",
    only: Callable[[Object], bool] = lambda _pod: True,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> View:
    """Read one cluster's Linkerd.

    Args:
        known: Roots and issuers to recognise besides those found.
        concurrency: Proxies read at a time.
        timeout: Seconds for each question to a proxy.
        within: List the pods of this namespace only; empty lists all.
        only: Which meshed pods to read; the others are left out of the view.

    Raises:
        NotFound: No Linkerd in that namespace. Other CapstanErrors: the API cannot be read at all.
    """
    layout = read_layout(cluster, namespace)
    certificates = Known()
    certificates.add(known)
    # 1. What is declared.
    troubles: list[str] = []
    bundle, roots_written = _read_bundle(cluster, namespace)
    certificates.add(bundle)
    declared = _read_declared(cluster, layout, certificates, troubles)
    chain, faults = _read_issuer(cluster, layout, troubles)
    certificates.add(chain)
    # 2. Who is there: one paged list.
    pods = cluster.list(PODS, within, label_selector=f"{MESH_LABEL}={namespace}").items
    owners = Owners(cluster, within)
    wanted = [pod for pod in pods if only(pod) and not has_ended(pod) and proxy_container(pod["spec"]) is not None]
    # 3. What each of them holds and presents.
    readings = [
        reading
        for reading in map_bounded(
            lambda pod: _read_pod(cluster, pod, owners.of(pod), bundle, timeout), wanted, limit=concurrency
        )
        if reading is not None
    ]
    for reading in readings:
        certificates.add(reading.trusts or ())
        certificates.add(reading.chain[1:])
    # 4. Who issued what, and where it leads, now that every root is known.
    at = now()
    proxies = tuple(_proxy(cluster.name, namespace, reading, certificates, at, roots_written) for reading in readings)
    observation = ClusterObservation(
        name=cluster.name,
        bundle=bundle.fingerprints,
        declared=declared,
        issuer=certificates.issuer(chain, at),
        peers=tuple(proxy.peer for proxy in proxies),
        leaf_lifetime=layout.leaf_lifetime,
        signing_faults=faults,
    )
    issuer = chain[0] if chain else None
    return View(layout, bundle, issuer, proxies, certificates.all(), observation, tuple(troubles))


def _read_bundle(cluster: Cluster, namespace: str) -> tuple[Bundle, datetime | None]:
    """The declared trust roots, and when they were written."""
    item = cluster.get(CONFIG_MAPS, TRUST_ROOTS, namespace)
    text = (item.get("data") or {}).get(TRUST_ROOTS_KEY, "")
    where = f"configmap {namespace}/{TRUST_ROOTS} in cluster {cluster.name}"
    try:
        return Bundle.parse_lenient(text, where), written_at(item)
    except InvalidInput as error:
        # Nobody but its owner knows what belongs there: identity would not start with it, and nothing is guessed.
        error.next_command = (
            f"put back the roots that the proxies hold (kubectl edit configmap {TRUST_ROOTS} -n {namespace}), "
            "then run the same command again"
        )
        raise


def _read_declared(
    cluster: Cluster, layout: Layout, certificates: Known, troubles: list[str]
) -> tuple[tuple[str, frozenset[Fingerprint]], ...]:
    """The roots as `linkerd-config` and the CLI's overrides have them; a place without a value declares nothing."""
    namespace = layout.namespace
    config = cluster.find(CONFIG_MAPS, CONFIG, namespace)
    texts = {CONFIG: str(((config or {}).get("data") or {}).get(CONFIG_KEY, ""))}
    texts[OVERRIDES] = overrides_text(cluster.find(SECRETS, OVERRIDES, namespace))
    declared = []
    for place, text in texts.items():
        if not text:
            continue
        where = f"{place} in namespace {namespace} of cluster {cluster.name}"
        try:
            value = get_value(text, (ANCHORS,), where)
            if not value:
                continue
            found = Bundle.parse_lenient(value, where)
        except CapstanError as error:
            troubles.append(str(error))
            declared.append((place, frozenset[Fingerprint]()))
            continue
        certificates.add(found)
        declared.append((place, found.fingerprints))
    return tuple(declared)


def _read_issuer(
    cluster: Cluster, layout: Layout, troubles: list[str]
) -> tuple[tuple[Certificate, ...], tuple[str, ...]]:
    """The certificates of the issuer Secret, issuer first, and why it could not sign. Its key stays in here."""
    where = f"secret {layout.namespace}/{ISSUER} in cluster {cluster.name}"
    try:
        secret = cluster.get(SECRETS, ISSUER, layout.namespace)
    except CapstanError as error:
        troubles.append(str(error))
        return (), ()
    writer = writer_of(secret)
    faults = tuple(f"{fault} ({writer})" if writer else fault for fault in signing_faults(secret, layout.scheme))
    try:
        return Bundle.parse_lenient(decoded(secret, layout.scheme.keys[0]), where).certificates, faults
    except CapstanError as error:
        troubles.append(str(error))
        return (), faults


def _read_pod(cluster: Cluster, pod: Object, owner: Owner, bundle: Bundle, timeout: float) -> _Reading | None:
    """Ask one proxy. None if the pod is no live peer: gone by now, its proxy ended for good, or not started and sure to
    start with the bundle."""
    metadata = pod["metadata"]
    namespace, name = str(metadata["namespace"]), str(metadata["name"])
    container = proxy_container(pod["spec"]) or {}
    sni, port = local_name(pod, container), admin_port(container)
    if not proxy_runs(pod):
        if proxy_is_over(pod):
            return None
        return _not_started(pod, owner, container, bundle, sni or "", port)
    trusts: Bundle | None = None
    chain: tuple[Certificate, ...] = ()
    problems = []
    try:
        trusts = ask_twice(cluster, lambda: live_roots(cluster, namespace, name, port, timeout))
    except CapstanError as error:
        problems.append(f"roots: {error.what}: {error.observed}")
    if not sni:
        problems.append("leaf: its pod does not say its identity")
    else:
        try:
            chain = ask_twice(cluster, lambda: live_chain(cluster, namespace, name, port, sni, timeout))
        except CapstanError as error:
            problems.append(f"leaf: {error.what}: {error.observed}")
    if problems and is_gone(cluster, pod):
        return None
    return _Reading(pod, owner, sni or "", port, trusts, chain, "; ".join(problems))


def _not_started(pod: Object, owner: Owner, container: Object, bundle: Bundle, sni: str, port: int) -> _Reading | None:
    """A proxy that does not run yet. Its roots are fixed already if they were written into the pod: then it is a peer
    to come, and one that will start with stale roots must hold up whoever asks whether all is well."""
    text = literal_anchors(container)
    if text is None:
        return None
    where = f"pod {pod['metadata']['namespace']}/{pod['metadata']['name']}"
    try:
        trusts = Bundle.parse_lenient(text, where)
    except CapstanError as error:
        return _Reading(pod, owner, sni, port, None, (), f"has not started; roots written into it: {error.what}")
    if trusts.fingerprints == bundle.fingerprints:
        return None
    return _Reading(pod, owner, sni, port, trusts, (), "has not started, and will start with other roots than declared")


def live_roots(cluster: Cluster, namespace: str, pod: str, port: int, timeout: float = PEER_TIMEOUT) -> Bundle:
    """The roots a proxy holds in memory, as it says itself.

    Raises:
        Unreachable, NotFound, Denied: It could not be asked. InvalidPem: It holds no readable roots.
    """
    where = f"proxy of pod {namespace}/{pod} in cluster {cluster.name}"
    status, body = http_get(cluster, namespace, pod, port, f"/env.json?{ANCHORS_ENV}", timeout=timeout)
    try:
        value = json.loads(body).get(ANCHORS_ENV) if status == 200 else None
    except (ValueError, AttributeError):
        value = None
    if not isinstance(value, str):
        # A port-forward ends on the pod's own loopback, which every policy lets in that the controller has sent.
        why = ": its inbound policy is the one it started with, it has not reached the policy controller (destination)"
        raise NotFound(
            "the proxy does not say its roots", where=where, observed=f"HTTP {status}" + (why if status == 403 else ""),
            expected=f"{ANCHORS_ENV} in /env.json",
            next_command=f"kubectl port-forward -n {namespace} {pod} {port}, then curl 127.0.0.1:{port}/env.json",
        )  # fmt: skip
    return Bundle.parse_lenient(value, where)


def live_chain(
    cluster: Cluster, namespace: str, pod: str, port: int, sni: str, timeout: float = PEER_TIMEOUT
) -> tuple[Certificate, ...]:
    """The certificates a proxy presents now, leaf first.

    Raises:
        Unreachable, Denied: It could not be asked. NotFound: It ended the handshake without showing one.
    """
    where = f"proxy of pod {namespace}/{pod} in cluster {cluster.name}"
    answer = tls_peer(cluster, namespace, pod, port, sni, timeout=timeout)
    if isinstance(answer, TlsRefused) or not answer.chain:
        observed = answer.alert if isinstance(answer, TlsRefused) else "a handshake without certificates"
        raise NotFound("the proxy shows no leaf", where=where, observed=observed, expected=f"a leaf for {sni}")
    return tuple(Certificate.from_der(der, where) for der in answer.chain)


def _proxy(
    cluster: str,
    namespace: str,
    reading: _Reading,
    certificates: Known,
    at: datetime,
    roots_written: datetime | None,
) -> Proxy:
    metadata = reading.pod["metadata"]
    started = (reading.pod.get("status") or {}).get("startTime")
    role = role_of(reading.pod, namespace)
    peer = Peer(
        cluster=cluster,
        namespace=str(metadata["namespace"]),
        pod=str(metadata["name"]),
        role=role,
        owner=reading.owner,
        trusts=reading.trusts.fingerprints if reading.trusts is not None else None,
        leaf=certificates.leaf(reading.chain, at),
        unreadable=reading.unreadable,
        ready=is_ready(reading.pod) and "deletionTimestamp" not in metadata,
        started=datetime.fromisoformat(started) if started else None,
    )
    component = str((metadata.get("labels") or {}).get(COMPONENT_LABEL, ""))
    return Proxy(
        peer=peer,
        ref=PodRef(peer.namespace, peer.pod, str(metadata.get("uid", ""))),
        component=component,
        sni=reading.sni,
        port=reading.port,
        leaving="deletionTimestamp" in metadata,
        apart=why_apart(reading.pod, roots_written) if f"linkerd-{component}" == IDENTITY else "",
    )
