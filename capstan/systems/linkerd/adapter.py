"""Linkerd as a `TrustSystem`: one control plane in one cluster."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from capstan.cluster.peer_tls import ClientCertificate
from capstan.errors import InvalidInput
from capstan.systems.base import RECENT
from capstan.systems.linkerd import anchors, control_plane, data_plane, issuer, probe
from capstan.systems.linkerd import checks as checking
from capstan.systems.linkerd.observe import CONCURRENCY, PEER_TIMEOUT, View, observe

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from datetime import timedelta

    from capstan.cluster.client import Cluster
    from capstan.cluster.restart import RestartReport, Step
    from capstan.pki.bundle import Bundle
    from capstan.pki.inspect import Certificate
    from capstan.pki.keys import PrivateKey
    from capstan.systems.base import Change, CheckResult, IssuerMaterial, ProbeReport
    from capstan.systems.linkerd.layout import Tool
    from capstan.trust.observation import ClusterObservation, Fingerprint


class Linkerd:
    """See `TrustSystem` for what each method promises.

    Args:
        namespace: The control plane's.
        accept: Tools whose objects may be written because somebody made sure that the source says the same.
        concurrency: Proxies read at a time.
        timeout: Seconds for each question to a proxy.
        now: The wall clock, aware UTC.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        namespace: str = "linkerd",
        accept: Collection[Tool] = (),
        concurrency: int = CONCURRENCY,
        timeout: float = PEER_TIMEOUT,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.accept = frozenset(accept)
        self._concurrency = concurrency
        self._timeout = timeout
        self._now = now
        self._certificates: dict[Fingerprint, Certificate] = {}

    @property
    def cluster_name(self) -> str:
        """The cluster's name in the trust domain."""
        return self.cluster.name

    def view(self, known: Iterable[Certificate] = ()) -> View:
        """A fresh look, with everything Linkerd-specific in it."""
        view = observe(
            self.cluster, self.namespace, known, concurrency=self._concurrency, timeout=self._timeout, now=self._now
        )
        self._certificates = view.certificates
        return view

    def observe(self, known: Iterable[Certificate] = ()) -> ClusterObservation:
        """Read who trusts, issues and presents what, now."""
        return self.view(known).observation

    def certificates(self) -> dict[Fingerprint, Certificate]:
        """Every root and issuer met by the last look."""
        return dict(self._certificates)

    def ensure_bundle(self, roots: Bundle) -> tuple[Change, ...]:
        """Make every place that declares the roots hold exactly these, unless somebody still needs another."""
        if anchors.removes_roots(self.cluster, self.namespace, roots):
            anchors.require_nobody_needs_others(self.view(roots), roots)
        return anchors.ensure_bundle(self.cluster, self.namespace, roots, accept=self.accept)

    def ensure_issuer(self, material: IssuerMaterial) -> tuple[Change, ...]:
        """Make the configured issuer this one, if every live proxy trusts it."""
        view = self.view(material.chain)
        return issuer.ensure_issuer(
            self.cluster, view, material, now=self._now(), accept=self.accept, clock=self._now
        )  # fmt: skip

    def read_issuer(self) -> IssuerMaterial:
        """The configured issuer with its key."""
        return issuer.read_issuer(self.cluster, self.namespace)

    def restart_control_plane(
        self,
        roots: frozenset[Fingerprint],
        stamp: str,
        *,
        seconds: float,
        issuer: Fingerprint | None = None,
        afresh: bool = False,  # noqa: ARG002  # a Linkerd proxy reads its roots at its start only
        on_progress: Callable[[Step], None] | None = None,
    ) -> RestartReport:
        """identity, destination, proxy-injector: each until its proxies hold exactly these roots."""
        return control_plane.restart_control_plane(
            self.cluster, self.namespace, roots, stamp,
            seconds=seconds, issuer=issuer, on_progress=on_progress, now=self._now,
        )  # fmt: skip

    def restart_signers(
        self,
        stamp: str,
        *,
        seconds: float,
        issuer: Fingerprint,
        afresh: bool = False,  # noqa: ARG002  # identity is started anew in any case
        on_progress: Callable[[Step], None] | None = None,
    ) -> RestartReport:
        """identity, once for this stamp, until its proxies present leaves of this issuer."""
        return control_plane.restart_identity(
            self.cluster, self.namespace, stamp, seconds=seconds, issuer=issuer, on_progress=on_progress, now=self._now
        )

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
        """Every workload with a proxy that does not hold exactly these roots (or a leaf of this issuer)."""
        return data_plane.restart_data_plane(
            self.cluster, self.namespace, roots, stamp, seconds=seconds,
            issuer=issuer, parallel=parallel, on_progress=on_progress, now=self._now,
        )  # fmt: skip

    def probe_identity(self, domain: str) -> str:
        """A DNS name that nobody has (RFC 2606)."""
        return f"capstan-probe.{domain}.invalid"

    def probe(
        self, chain_pem: bytes, key: PrivateKey, *, limit: int | None = None, wanted: frozenset[str] = frozenset()
    ) -> ProbeReport:
        """Present a client certificate to the live proxies."""
        if limit is not None and limit < 1:
            raise InvalidInput("a probe of nobody proves nothing", observed=f"limit {limit}", expected="1 or more")
        return probe.probe(
            self.cluster, self.view(), ClientCertificate(chain_pem, key.pem()),
            limit=limit, wanted=wanted, concurrency=self._concurrency, timeout=self._timeout,
        )  # fmt: skip

    def checks(self, *, now: datetime, since: timedelta = RECENT) -> tuple[CheckResult, ...]:
        """What `capstan check` says about this cluster."""
        return checking.checks(self.cluster, self.view(), now=now, since=since)
