"""The prober: new mTLS connections between random live pods, all the time; what it counts is the only verdict.

Each attempt takes one meshed pod as client, with exactly the roots and the leaf its proxy holds at that instant, and
dials the real inbound listener of another one, the way the mesh does it: no resumption, the server's name verified. One
byte is echoed, because in TLS 1.3 a server's refusal of the client certificate shows only after the client's handshake
is done.

Kubernetes sends no new traffic to a pod that is not Ready or is being deleted, so such pods are not chosen; an attempt
during which either end begins to go away is not counted at all. Every other failure is counted and kept.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from cryptography.exceptions import InvalidSignature

from infra.lab import pki
from infra.lab.services import is_ready

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cryptography import x509

    from infra.lab.client import Informer
    from infra.lab.kubelet.runtime import Container

DEFAULT_RATE = 60.0
TIMEOUT_SECONDS = 20.0
MAX_IN_FLIGHT = 16
MAX_KEPT_FAILURES = 20_000


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Material(Protocol):
    """What a proxy presents: everything but its key, which is the mesh's business."""

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate presented."""

    @property
    def chain(self) -> Sequence[x509.Certificate]:
        """Leaf first, then what it sends along."""


class Proxy(Protocol):
    """A proxy of whatever mesh, as far as the prober is concerned."""

    @property
    def container(self) -> Container:
        """Its container: pod, address, node."""

    @property
    def name(self) -> str:
        """Its mesh identity."""

    @property
    def uid(self) -> str:
        """The pod's uid."""

    @property
    def kind(self) -> str:
        """What it is: linkerd-proxy; light, envoy or gateway."""

    @property
    def serves(self) -> bool:
        """Whether other proxies connect to it."""

    @property
    def stopping(self) -> bool:
        """Whether it has been asked to end."""

    @property
    def roots(self) -> Sequence[x509.Certificate]:
        """What it trusts now."""

    @property
    def material(self) -> Material | None:
        """What it presents now; None before its first leaf."""


class Mesh(Protocol):
    """All proxies of a lab, and how two of them shake hands."""

    @property
    def proxies(self) -> Mapping[str, Proxy]:
        """Running proxies by pod uid."""

    async def handshake(self, material: Any, server: Any) -> None:
        """A new connection from whoever holds `material` to `server` (a Material and a Proxy of this mesh).

        Raises:
            OSError, EOFError: It failed.
        """

    def others(self) -> list[dict[str, Any]]:
        """What holds certificates without being a pod's own proxy, as GET /pods shows it."""


@dataclass(frozen=True)
class Party:
    """Who took part in a failed handshake, and what it held. Fingerprints are the first 12 digits of SHA-256."""

    pod: str
    roots: list[str]
    leaf: str
    leaf_issuer: str
    leaf_not_after: str


@dataclass(frozen=True)
class Failure:
    """One handshake that failed between two pods that should have been able to talk."""

    time: str
    client: Party
    server: Party
    error: str


@dataclass
class Counts:
    """What happened since the last reset.

    Attributes:
        attempted: Handshakes that count: completed or failed.
        failed: Those that failed.
        discarded: Attempts not counted because an end was going away.
        max_lag: Longest time, in seconds, that the lab's event loop was late. Seconds of it mean that the machine is
            too busy for leaves that live for seconds: proxies may then miss their renewal for want of CPU time.
    """

    since: str = field(default_factory=_now)
    attempted: int = 0
    failed: int = 0
    discarded: int = 0
    max_lag: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    pairs: Counter[tuple[str, str]] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """As served on GET /prober."""
        return {
            "since": self.since,
            "attempted": self.attempted,
            "failed": self.failed,
            "discarded": self.discarded,
            "pairs": len(self.pairs),
            "max_lag_seconds": round(self.max_lag, 3),
            "failures": [asdict(failure) for failure in self.failures],
        }


class Prober:
    """Runs attempts at a steady rate and keeps count.

    Args:
        pods: An informer on all pods.
        rate: Attempts per second.
    """

    def __init__(
        self, mesh: Mesh, pods: Informer, *, rate: float = DEFAULT_RATE, rng: random.Random | None = None
    ) -> None:
        self._mesh = mesh
        self._pods = pods
        self._rate = rate
        self._rng = rng or random.Random()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._result = asyncio.Event()
        self.counts = Counts()

    async def run(self) -> None:
        """Probe until cancelled."""
        await self._pods.synced()
        try:
            due = time.monotonic()
            while True:
                # No catching up: when the machine is busy, fewer probes are better than bursts of them.
                due = max(due + 1 / self._rate, time.monotonic())
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                self.counts.max_lag = max(self.counts.max_lag, time.monotonic() - due)
                if len(self._in_flight) < MAX_IN_FLIGHT and (pair := self._choose()):
                    task = asyncio.create_task(self._attempt(*pair))
                    self._in_flight.add(task)
                    task.add_done_callback(self._in_flight.discard)
        finally:
            for task in self._in_flight:
                task.cancel()
            await asyncio.gather(*self._in_flight, return_exceptions=True)

    async def next_result(self) -> None:
        """Return when the next attempt has ended."""
        self._result.clear()
        await self._result.wait()

    def reset(self) -> None:
        """Begin to count anew; attempts still under way count towards the new period."""
        self.counts = Counts()

    # --- one attempt ------------------------------------------------------------------------------------------------

    def _choose(self) -> tuple[Proxy, Proxy] | None:
        """A client and a server that Kubernetes would send traffic between; None if two tries per pod found none."""
        candidates = list(self._mesh.proxies.values())
        client: Proxy | None = None
        for _ in range(2 * len(candidates)):
            proxy = self._rng.choice(candidates)
            if proxy is client or not self._takes_traffic(proxy):
                continue
            if client is None:
                client = proxy
            elif proxy.serves:
                return client, proxy
        return None

    def _takes_traffic(self, proxy: Proxy) -> bool:
        """Whether Kubernetes would send this pod new connections now."""
        if proxy.stopping or proxy.material is None or self._mesh.proxies.get(proxy.uid) is not proxy:
            return False
        pod = self._pods.get(proxy.container.namespace, proxy.container.pod_name)
        return pod is not None and pod["metadata"]["uid"] == proxy.uid and is_ready(pod)

    async def _attempt(self, client: Proxy, server: Proxy) -> None:
        material = client.material
        if material is None:
            return
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._mesh.handshake(material, server)
            error = ""
        except (OSError, TimeoutError, EOFError) as failure:  # ssl.SSLError is an OSError
            error = f"{type(failure).__name__}: {failure}"
        self._result.set()
        if error and not (self._takes_traffic(client) and self._takes_traffic(server)):
            self.counts.discarded += 1
            return
        self.counts.attempted += 1
        self.counts.pairs[_pod_name(client), _pod_name(server)] += 1
        if error:
            self.counts.failed += 1
            if len(self.counts.failures) < MAX_KEPT_FAILURES:
                known = issuers(self._mesh)
                self.counts.failures.append(
                    Failure(_now(), _party(client, material, known), _party(server, server.material, known), error)
                )


def _party(proxy: Proxy, material: Material | None, known: Sequence[x509.Certificate]) -> Party:
    roots = [pki.fingerprint(root)[:12] for root in proxy.roots]
    if material is None:
        return Party(_pod_name(proxy), roots, "", "", "")
    leaf = material.leaf
    issuer = issuer_fingerprint(leaf, known)[:12]
    return Party(_pod_name(proxy), roots, pki.fingerprint(leaf)[:12], issuer, leaf.not_valid_after_utc.isoformat())


def issuers(mesh: Mesh) -> list[x509.Certificate]:
    """The issuers in the proxies' chains, and their roots: one of them has signed each leaf."""
    found: dict[x509.Certificate, None] = {}
    for proxy in mesh.proxies.values():
        if proxy.material is not None:
            found |= dict.fromkeys(proxy.material.chain[1:])
        found |= dict.fromkeys(proxy.roots)
    return list(found)


def issuer_fingerprint(leaf: x509.Certificate, known: Sequence[x509.Certificate]) -> str:
    """Fingerprint of the certificate that has signed `leaf`, "" if it is not among them.

    By key identifiers where both have them; else names cannot tell two issuers apart, and the signature decides.
    """
    authority = pki.authority_key(leaf)
    for candidate in known:
        own = pki.subject_key(candidate)
        if authority and own:
            if authority == own:
                return pki.fingerprint(candidate)
            continue
        try:
            leaf.verify_directly_issued_by(candidate)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return pki.fingerprint(candidate)
    return ""


def _pod_name(proxy: Proxy) -> str:
    return f"{proxy.container.namespace}/{proxy.container.pod_name}"
