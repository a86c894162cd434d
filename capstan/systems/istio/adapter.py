"""Istio as a `TrustSystem`: one mesh's control plane in one cluster, all its revisions."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

from capstan.cluster.peer_tls import ClientCertificate
from capstan.config import System
from capstan.errors import InvalidInput
from capstan.systems.base import RECENT
from capstan.systems.istio import changing, data_plane, probe, settle
from capstan.systems.istio import checks as checking
from capstan.systems.istio.key_vault import KeyVaultSource
from capstan.systems.istio.layout import read_layout
from capstan.systems.istio.memory import Memory
from capstan.systems.istio.observe import CONCURRENCY, PEER_TIMEOUT, View, observe
from capstan.systems.istio.opening import open_source

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from datetime import timedelta

    from capstan.cluster.client import Cluster
    from capstan.cluster.restart import RestartReport, Step
    from capstan.config import ClusterRef, PluginCa, TrustDomain
    from capstan.pki.bundle import Bundle
    from capstan.pki.inspect import Certificate
    from capstan.pki.keys import PrivateKey
    from capstan.systems.base import Change, CheckResult, IssuerMaterial, ProbeReport
    from capstan.systems.istio.owners import Tool
    from capstan.systems.istio.source import CaSource
    from capstan.trust.observation import ClusterObservation, Fingerprint


class Istio:
    """See `TrustSystem` for what each method promises.

    Args:
        namespace: The control plane's: `istio-system`, or the AKS add-on's `aks-istio-system`.
        plugin_ca: AKS add-on: which Key Vault secrets its CA comes from; None for upstream Istio.
        accept: Tools whose objects may be written because somebody made sure that the source says the same.
        concurrency: Proxies read at a time.
        timeout: Seconds for each question to a proxy.
        now: The wall clock, aware UTC.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        namespace: str = "istio-system",
        plugin_ca: PluginCa | None = None,
        accept: Collection[Tool] = (),
        concurrency: int = CONCURRENCY,
        timeout: float = PEER_TIMEOUT,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.plugin_ca = plugin_ca
        self.accept = frozenset(accept)
        self._concurrency = concurrency
        self._timeout = timeout
        self._now = now
        self._certificates: dict[Fingerprint, Certificate] = {}
        self._memory = Memory()
        self._glances = False
        self._from_memory = 0
        self._vault_source: CaSource | None = None
        self._tags: dict[str, str] = {}

    @property
    def cluster_name(self) -> str:
        """The cluster's name in the trust domain."""
        return self.cluster.name

    def source(self) -> CaSource:
        """Where this mesh's CA is kept; looked up anew, since a self-signed mesh may have moved to `cacerts`.

        Raises:
            NotFound: There is no istiod here, or no CA of its.
        """
        if self.plugin_ca is None:
            return open_source(self.cluster, self.namespace, None, accept=self.accept, now=self._now)
        if self._vault_source is None:  # a credential and its token are used for the whole run
            source = open_source(self.cluster, self.namespace, self.plugin_ca, accept=self.accept, now=self._now)
            if isinstance(source, KeyVaultSource):
                source.tags = dict(self._tags)
                source.before_switch = partial(settle.await_chain, self.cluster, self.namespace, source)
            self._vault_source = source
        return self._vault_source

    def tag(self, tags: Mapping[str, str]) -> None:
        """See `KeepsTags`: the Key Vault versions of a rotation carry its id."""
        self._tags = dict(tags)
        if isinstance(self._vault_source, KeyVaultSource):
            self._vault_source.tags = dict(tags)

    def view(self, known: Iterable[Certificate] = ()) -> View:
        """A fresh look, with everything Istio-specific in it."""
        view = observe(
            self.cluster, self.namespace, self.source(), known,
            concurrency=self._concurrency, timeout=self._timeout, memory=self._memory, glance=self._glances,
            now=self._now,
        )  # fmt: skip
        self._certificates = dict(view.certificates)
        self._from_memory = view.recalled
        return view

    def observe(self, known: Iterable[Certificate] = ()) -> ClusterObservation:
        """Read who trusts, issues and presents what, now."""
        return self.view(known).observation

    @property
    def from_memory(self) -> int:
        """Proxies of the last look that were not asked for it."""
        return self._from_memory

    @contextmanager
    def glancing(self) -> Iterator[None]:
        """See `capstan.systems.glancing`: who cannot have renewed yet is not asked again."""
        self._glances = True
        try:
            yield
        finally:
            self._glances = False

    def certificates(self) -> dict[Fingerprint, Certificate]:
        """Every root and issuer met by the last look."""
        return dict(self._certificates)

    def ensure_bundle(self, roots: Bundle) -> tuple[Change, ...]:
        """Make the CA's source hold exactly these roots, unless somebody still needs another."""
        return changing.ensure_bundle(self.source(), roots, look=lambda: self.view(roots))

    def ensure_issuer(self, material: IssuerMaterial) -> tuple[Change, ...]:
        """Make the configured signing CA this one, if every live proxy and every istiod trusts its root."""
        return changing.ensure_issuer(self.source(), material, view=self.view(material.chain), now=self._now())

    def read_issuer(self) -> IssuerMaterial:
        """The configured signing CA with its key."""
        return self.source().read_issuer()

    def restart_control_plane(
        self,
        roots: frozenset[Fingerprint],
        stamp: str,
        *,
        seconds: float,
        issuer: Fingerprint | None = None,
        afresh: bool = False,
        on_progress: Callable[[Step], None] | None = None,
    ) -> RestartReport:
        """Every istiod of every revision hands out exactly these roots (and signs by this issuer); so do the places.

        A replica takes them hot where its version and flags allow it, and is restarted where they do not.
        """
        return settle.settle(
            self.cluster, self.source(), self._control_plane, stamp,
            roots=roots, issuer=issuer, seconds=seconds, afresh=afresh,
            look_at_proxies=self.view, on_progress=on_progress, now=self._now,
        )  # fmt: skip

    def restart_signers(
        self,
        stamp: str,
        *,
        seconds: float,
        issuer: Fingerprint,
        afresh: bool = False,
        on_progress: Callable[[Step], None] | None = None,
    ) -> RestartReport:
        """Every istiod of every revision signs by this issuer, proven by asking each for a leaf.

        Unlike where a signer's memory cannot be read, one that signs by the new issuer need not be started anew.
        """
        return settle.settle(
            self.cluster, self.source(), self._control_plane, stamp,
            roots=None, issuer=issuer, seconds=seconds, afresh=afresh,
            look_at_proxies=self.view, on_progress=on_progress, now=self._now,
        )  # fmt: skip

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
        """Every workload with a sidecar, every gateway and ztunnel that does not hold exactly these roots (or a leaf of
        this issuer)."""
        return data_plane.restart_data_plane(
            self.cluster, self.view, roots, stamp, seconds=seconds,
            issuer=issuer, parallel=parallel, on_progress=on_progress, now=self._now,
        )  # fmt: skip

    def probe_identity(self, domain: str) -> str:
        """A SPIFFE id in the mesh's own trust domain: proxies refuse any other, whatever the root."""
        return f"spiffe://{read_layout(self.cluster, self.namespace).trust_domain}/ns/capstan/sa/probe-{domain}"

    def probe(
        self, chain_pem: bytes, key: PrivateKey, *, limit: int | None = None, wanted: frozenset[str] = frozenset()
    ) -> ProbeReport:
        """Present a client certificate to the inbound mTLS port of the live proxies."""
        if limit is not None and limit < 1:
            raise InvalidInput("a probe of nobody proves nothing", observed=f"limit {limit}", expected="1 or more")
        return probe.probe(
            self.cluster, self.view(), ClientCertificate(chain_pem, key.pem()),
            limit=limit, wanted=wanted, concurrency=self._concurrency, timeout=self._timeout,
        )  # fmt: skip

    def checks(
        self,
        *,
        now: datetime,
        since: timedelta = RECENT,  # noqa: ARG002  # no check of Istio looks back
    ) -> tuple[CheckResult, ...]:
        """What `capstan check` says about this cluster."""
        found = checking.checks(self.cluster, self.view(), now=now)
        if self.plugin_ca is None:
            return found
        # Imported here: upstream Istio needs no Azure.
        from capstan.systems.aks.checks import checks as of_managed_cluster

        return (*found, *of_managed_cluster(self.plugin_ca.cluster_id))

    def _control_plane(self) -> View:
        """A fresh look at istiods and declared places alone."""
        return observe(
            self.cluster, self.namespace, self.source(), tuple(self._certificates.values()), control_plane_only=True,
            concurrency=self._concurrency, timeout=self._timeout, now=self._now,
        )  # fmt: skip


def open_istio(domain: TrustDomain, reference: ClusterRef, cluster: Cluster) -> Istio:
    """The adapter of one cluster of a domain.

    Raises:
        InvalidInput: An AKS add-on whose Key Vault is named by nothing.
    """
    plugin_ca = reference.plugin_ca if domain.system is System.AKS_ISTIO else None
    if domain.system is System.AKS_ISTIO and (plugin_ca is None or not (plugin_ca.key_vault or plugin_ca.cluster_id)):
        raise InvalidInput(
            "nothing says where the add-on's CA is kept", where=f"cluster {reference.name}",
            observed="plugin_ca without key_vault and cluster_id" if plugin_ca else "no plugin_ca",
            expected="the managed cluster's ARM id (plugin_ca.cluster_id), or the vault's URL (plugin_ca.key_vault)",
            next_command="az aks show --resource-group GROUP --name NAME --query id",
        )  # fmt: skip
    return Istio(cluster, namespace=domain.control_plane_namespace, plugin_ca=plugin_ca)
