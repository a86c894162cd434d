"""What every sidecar and gateway really holds, as its Envoy says itself.

Source of a proxy's leaf and roots, in this order:

    /config_dump?resource=dynamic_active_secrets   every Istio since 1.5: secrets come by SDS, and the dump has the PEM
    /config_dump                                   an Envoy that does not know the filter
    /certs and the Secret of the service account   before 1.5 (Citadel): certificates are files; serial numbers tell
                                                   whether what is mounted is what was loaded

A metric (`istio_agent_cert_expiry_seconds`) would tell when a leaf was made, but neither by whom nor what is trusted
beside it, so it is no substitute for any of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from capstan.cluster.portforward import MAX_ANSWER, http_get
from capstan.cluster.resources import SECRETS
from capstan.errors import CapstanError, NotFound, ServerFault
from capstan.pki.bundle import Bundle
from capstan.systems.asking import ask_twice, is_gone
from capstan.systems.istio.layout import CERT_CHAIN_KEY, PROXY, ROOT_CERT_KEY
from capstan.systems.istio.pods import admin_port, container_runs, kind_of, proxy_container, proxy_env, runs_envoy
from capstan.systems.istio.secrets_dump import Secrets, read_secrets, read_serials
from capstan.systems.linkerd.secrets import decoded

if TYPE_CHECKING:
    from datetime import datetime

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object
    from capstan.cluster.workloads import PodRef
    from capstan.pki.inspect import Certificate
    from capstan.systems.istio.versions import Version
    from capstan.trust.observation import Owner, Peer

ACTIVE: Final = "/config_dump?resource=dynamic_active_secrets"
WARMING: Final = "/config_dump?resource=dynamic_warming_secrets"
WHOLE: Final = "/config_dump"
CERTS: Final = "/certs"
MAX_DUMP: Final = 64 * 1024 * 1024  # a whole dump of a proxy that knows thousands of services
CERTS_VOLUME: Final = "istio-certs"


@dataclass(frozen=True, slots=True)
class Proxy:
    """One live proxy, as Kubernetes describes its pod and as it was read.

    Attributes:
        kind: `sidecar`, `gateway`, `waypoint`, `ztunnel`, or `unknown` (connected to an istiod, and no pod of ours).
        revision: The revision that it was injected by; empty where its pod does not say.
        version: Of its image; None where the tag says nothing.
        env: Literal environment of its container, ProxyConfig's proxyMetadata included.
        updated: When it last took a certificate or roots; None if it does not say.
        leaving: Whether the pod is being deleted; it may still serve for a while.
    """

    peer: Peer
    ref: PodRef
    kind: str
    revision: str
    version: Version | None
    env: dict[str, str]
    updated: datetime | None
    leaving: bool


@dataclass(frozen=True, slots=True)
class ProxyReading:
    """What one proxy said, before it is known which roots there are in the whole mesh.

    Attributes:
        name: How the peer is to be called: the pod's name, for a ztunnel with the identity.
        trusts: The roots it holds; None if that could not be read.
        chain: Its leaf, then what it sends along; empty if that could not be read.
    """

    pod: Object
    owner: Owner
    name: str
    kind: str
    env: dict[str, str]
    trusts: Bundle | None
    chain: tuple[Certificate, ...]
    updated: datetime | None
    unreadable: str


def read_proxy(cluster: Cluster, pod: Object, owner: Owner, timeout: float) -> ProxyReading | None:
    """Ask one pod's Envoy. None if the pod is no live peer: gone by now, or its proxy does not run (it takes roots and
    leaf from its istiod when it starts, so nothing stale can come of it)."""
    if not container_runs(pod, PROXY):
        return None
    name = str(pod["metadata"]["name"])
    env = proxy_env(proxy_container(pod["spec"]) or {})
    if runs_envoy(pod, env):
        secrets = read_envoy(cluster, pod, admin_port(env), timeout)
    else:
        secrets = Secrets(problems=("its agent hands certificates to the application itself (proxyless gRPC)",))
    if secrets.problems and is_gone(cluster, pod):
        return None
    unreadable = "; ".join(secrets.problems)
    return ProxyReading(
        pod, owner, name, kind_of(pod), env, secrets.roots, secrets.chain, secrets.updated, unreadable
    )  # fmt: skip


def read_envoy(cluster: Cluster, pod: Object, port: int, timeout: float) -> Secrets:
    """The workload secrets of a pod's Envoy; what could not be read is said in `problems`, nothing is raised."""
    metadata = pod["metadata"]
    where = f"proxy of pod {metadata['namespace']}/{metadata['name']} in cluster {cluster.name}"
    volume = certificate_volume(pod)
    try:
        if volume:
            return _from_files(cluster, pod, volume, port, timeout, where)
        secrets = read_secrets(_dump(cluster, pod, port, timeout), where=where)
        if not secrets.problems:
            return secrets
        status, warming = _get(cluster, pod, port, WARMING, timeout)
        return _reason(secrets, warming if status == 200 else b"", where)
    except CapstanError as error:
        return Secrets(problems=(f"{error.what}: {error.observed}",))


def certificate_volume(pod: Object) -> str:
    """The Secret whose files are this proxy's certificates (Citadel's `istio.SERVICE-ACCOUNT`); empty since SDS."""
    for volume in pod["spec"].get("volumes") or []:
        if volume.get("name") == CERTS_VOLUME and (volume.get("secret") or {}).get("secretName"):
            return str(volume["secret"]["secretName"])
    return ""


def _get(
    cluster: Cluster, pod: Object, port: int, path: str, timeout: float, limit: int = MAX_ANSWER
) -> tuple[int, bytes]:
    metadata = pod["metadata"]
    return ask_twice(
        cluster,
        lambda: http_get(
            cluster, metadata["namespace"], metadata["name"], port, path, timeout=timeout, limit=limit
        ),
    )  # fmt: skip


def _dump(cluster: Cluster, pod: Object, port: int, timeout: float) -> bytes:
    """The dynamic secrets; the whole dump of an Envoy that does not know how to filter it."""
    try:
        status, body = _get(cluster, pod, port, ACTIVE, timeout)
    except ServerFault:  # too long: the filter was ignored
        status, body = 0, b""
    if status != 200:
        status, body = _get(cluster, pod, port, WHOLE, timeout, MAX_DUMP)
    if status != 200:
        raise NotFound(
            "the proxy does not say what it holds", observed=f"HTTP {status} to GET {WHOLE}", expected="a config dump"
        )
    return body


def _reason(secrets: Secrets, warming: bytes, where: str) -> Secrets:
    """The same, with what is still warming said in the problems."""
    waiting = read_secrets(warming, where=where) if warming.strip() not in (b"", b"{}") else None
    if waiting is None:
        return secrets
    held = tuple(
        problem.replace("not in its config dump", "still warming")
        if any(kind in problem for kind in _present(waiting))
        else problem
        for problem in secrets.problems
    )
    return Secrets(secrets.chain, secrets.roots, secrets.updated, held)


def _present(secrets: Secrets) -> tuple[str, ...]:
    return (*(("leaf:",) if secrets.chain else ()), *(("roots:",) if secrets.roots is not None else ()))


def _from_files(
    cluster: Cluster, pod: Object, secret_name: str, port: int, timeout: float, where: str
) -> Secrets:  # fmt: skip
    """Certificates that came as files: what the Secret holds counts where Envoy lists the very serial numbers.

    Envoy lists only the first root of a file. Citadel writes leaf and roots in one update, so roots beside a leaf that
    was loaded are those that were loaded with it.
    """
    namespace = str(pod["metadata"]["namespace"])
    status, body = _get(cluster, pod, port, CERTS, timeout)
    if status != 200:
        raise NotFound("the proxy does not list its certificates", observed=f"HTTP {status} to GET {CERTS}")
    loaded = read_serials(body, where)
    secret = cluster.get(SECRETS, secret_name, namespace)
    place = f"secret {namespace}/{secret_name} in cluster {cluster.name}"
    chain = Bundle.parse_lenient(decoded(secret, CERT_CHAIN_KEY), place).certificates
    roots = Bundle.parse_lenient(decoded(secret, ROOT_CERT_KEY), place)
    if chain[0].serial_number not in loaded.leaves:
        return Secrets(problems=(f"leaf and roots: it has not loaded what is in its Secret {secret_name} now",))
    if roots.certificates[0].serial_number not in loaded.roots:
        return Secrets(chain, problems=(f"roots: it has not loaded those in its Secret {secret_name} now",))
    return Secrets(chain, roots)
