"""What every istiod signs with, asked of each replica of each revision.

A Deployment's replicas take a change at their own time (each has its own kubelet), so one answer through a Service
would prove nothing. Who is asked as: a service account of Capstan's own namespace. Where there is none, the certificate
that the replica serves its ports with still tells its issuer (istiod signs that one itself, at every reload), but not
which roots it hands out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from capstan.cluster.parallel import map_bounded
from capstan.cluster.record import NAMESPACE
from capstan.cluster.workloads import PodRef, is_ready
from capstan.errors import CapstanError, NotFound
from capstan.systems.asking import ask_twice, is_gone
from capstan.systems.istio.ca_client import ask, serving_chain
from capstan.systems.istio.layout import DISCOVERY, find_container, literal_env
from capstan.systems.istio.pods import container_runs
from capstan.systems.istio.versions import Version, image_version
from capstan.trust.observation import Signer

if TYPE_CHECKING:
    from datetime import datetime

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object
    from capstan.pki.bundle import Bundle
    from capstan.pki.inspect import Certificate
    from capstan.systems.istio.layout import Layout, Revision
    from capstan.systems.known import Known

ACCOUNTS: Final = ("capstan", "default")
"""Service accounts of Capstan's namespace to ask as; the second is there as soon as the namespace is. Before that, a
reader who may speak for the `default` account of the control plane's namespace asks as that one."""
AUDIENCE: Final = "istio-ca"


@dataclass(frozen=True, slots=True)
class Istiod:
    """One live replica.

    Attributes:
        revision: Name of its revision.
        version: Of the pod's own image; None where the tag says nothing.
        env: Literal environment of the pod's container (a pod may be older than its Deployment's template).
        ready: Whether Kubernetes sends it traffic.
        chain: What it signs with: the issuer first, then what it sends along; empty if that could not be read.
        roots: The roots that it hands out with a leaf; None if that could not be read.
        serving: The certificates that it serves its own port 15012 with, leaf first.
        signer: The same as the core of Capstan judges it.
        leaving: Whether the pod is being deleted.
    """

    ref: PodRef
    revision: str
    version: Version | None
    env: dict[str, str]
    ready: bool
    chain: tuple[Certificate, ...]
    roots: Bundle | None
    serving: tuple[Certificate, ...]
    signer: Signer
    leaving: bool


@dataclass(frozen=True, slots=True)
class IstiodReading:
    """What one replica said, before it is known which roots there are in the whole mesh."""

    pod: Object
    revision: Revision
    chain: tuple[Certificate, ...]
    roots: Bundle | None
    serving: tuple[Certificate, ...]
    unreadable: str


@dataclass(frozen=True, slots=True)
class _Tokens:
    """Tokens by audience; without them, why there is none."""

    by_audience: dict[str, str]
    why_not: str


def read_istiods(
    cluster: Cluster, layout: Layout, *, timeout: float, concurrency: int
) -> tuple[IstiodReading, ...]:  # fmt: skip
    """Ask every live istiod, of every revision, ready or not. Citadel is not asked: it signs Secrets, not requests."""
    running = [
        (revision, pod)
        for revision in layout.revisions
        if revision.container == DISCOVERY
        for pod in revision.pods
        if container_runs(pod, DISCOVERY)
    ]
    if not running:
        return ()
    tokens = _tokens(cluster, layout.namespace, {audience(_pod_env(pod)) for _, pod in running})
    readings = map_bounded(
        lambda pair: _read(cluster, layout.namespace, *pair, tokens, timeout), running, limit=concurrency
    )
    return tuple(reading for reading in readings if reading is not None)


def audience(env: dict[str, str]) -> str:
    """The first audience that an istiod accepts in tokens (variable TOKEN_AUDIENCES, `istio-ca` unless set)."""
    return env.get("TOKEN_AUDIENCES", "").split(",")[0].strip() or AUDIENCE


def istiod_of(reading: IstiodReading, known: Known, at: datetime) -> Istiod:
    """The replica as it is to be judged, now that every root of the mesh is known."""
    metadata = reading.pod["metadata"]
    namespace, name = str(metadata["namespace"]), str(metadata["name"])
    issuer = known.issuer(reading.chain, at)
    signer = Signer(
        name=f"pod {namespace}/{name}",
        issuer=issuer.fingerprint if issuer else None,
        anchors=issuer.anchors if issuer else frozenset(),
        roots=reading.roots.fingerprints if reading.roots is not None else None,
        unreadable=reading.unreadable,
    )
    return Istiod(
        ref=PodRef(namespace, name, str(metadata.get("uid", ""))),
        revision=reading.revision.name,
        version=image_version(str(_container(reading.pod).get("image", ""))) or reading.revision.version,
        env=_pod_env(reading.pod),
        ready=is_ready(reading.pod) and "deletionTimestamp" not in metadata,
        chain=reading.chain,
        roots=reading.roots,
        serving=reading.serving,
        signer=signer,
        leaving="deletionTimestamp" in metadata,
    )


def _tokens(cluster: Cluster, control_plane: str, audiences: set[str]) -> _Tokens:
    """One token per audience, of the first account that exists and that we may speak for."""
    problem = ""
    for namespace, account in (*((NAMESPACE, account) for account in ACCOUNTS), (control_plane, "default")):
        try:
            found = {name: cluster.request_token(account, namespace, name) for name in audiences}
        except CapstanError as error:
            if not problem or not isinstance(error, NotFound):
                problem = f"{error.what} {account}: {error.observed}"
            continue
        return _Tokens(found, "")
    return _Tokens({}, f"nobody to ask as (service account {NAMESPACE}/{ACCOUNTS[0]}): {problem}")


def _read(
    cluster: Cluster, namespace: str, revision: Revision, pod: Object, tokens: _Tokens, timeout: float
) -> IstiodReading | None:
    name = str(pod["metadata"]["name"])
    token = tokens.by_audience.get(audience(_pod_env(pod)))
    problem = tokens.why_not
    if token is not None:
        try:
            signed = ask_twice(cluster, partial(ask, cluster, namespace, name, token, timeout=timeout))
        except CapstanError as error:
            problem = f"{error.what}: {error.observed}"
        else:
            return IstiodReading(pod, revision, signed.chain, signed.roots, signed.serving, "")
    try:
        serving = ask_twice(cluster, partial(serving_chain, cluster, namespace, name, timeout=timeout))
    except CapstanError as error:
        if is_gone(cluster, pod):
            return None
        problem = f"{problem}; {error.what}: {error.observed}"
        return IstiodReading(pod, revision, (), None, (), f"issuer and roots: {problem}")
    return IstiodReading(pod, revision, _issuers(serving), None, serving, f"roots: {problem}")


def _issuers(serving: tuple[Certificate, ...]) -> tuple[Certificate, ...]:
    """The signing CA first, then the rest of what stands above a serving certificate."""
    if not serving:
        return ()
    issuer = next((item for item in serving[1:] if serving[0].signed_by(item)), None)
    if issuer is None:
        return ()
    return (issuer, *(item for item in serving[1:] if item != issuer))


def _container(pod: Object) -> Object:
    return find_container(pod["spec"], DISCOVERY) or {}


def _pod_env(pod: Object) -> dict[str, str]:
    return literal_env(_container(pod))
