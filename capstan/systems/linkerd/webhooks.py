"""One of Linkerd's webhooks as a `TrustSystem` of its own: the API server trusts `caBundle`, each replica serves.

What a mesh calls bundle is here the `caBundle` of one configuration (or APIService), what it calls issuer is the
serving certificate in the Secret, and a peer is a process that serves, ready or not. No proxy or workload is concerned.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from capstan.cluster.resources import NAMESPACES, PODS, SECRETS
from capstan.cluster.restart import RestartReport, restart_workloads
from capstan.cluster.workloads import Owners
from capstan.errors import InvalidInput
from capstan.pki.bundle import Bundle
from capstan.systems.base import RECENT, CheckResult, Severity, Status
from capstan.systems.linkerd import webhooks_writing as writing
from capstan.systems.linkerd.checks_hooks import HOOKS, VIZ_HOOKS, Hook, HookReading, Served, read_hook
from capstan.systems.linkerd.checks_webhooks import serving_problem
from capstan.systems.linkerd.observe import PEER_TIMEOUT
from capstan.trust.observation import ClusterObservation, Issuer, Leaf, Owner, Peer, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence
    from datetime import timedelta

    from capstan.cluster.client import Cluster
    from capstan.cluster.restart import Step
    from capstan.pki.inspect import Certificate
    from capstan.pki.keys import PrivateKey
    from capstan.systems.base import Change, IssuerMaterial, ProbeReport
    from capstan.systems.linkerd.layout import Tool
    from capstan.trust.observation import Fingerprint

EXTENSION: Final = "linkerd.io/extension"
_PAGE: Final = "https://linkerd.io/2/tasks/rotating_webhooks_certificates/"


def installed(
    cluster: Cluster,
    namespace: str,
    *,
    timeout: float = PEER_TIMEOUT,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> tuple[LinkerdWebhook, ...]:
    """Every webhook of Linkerd that there is in a cluster; those of an extension that is not installed are not.

    Args:
        namespace: The control plane's; viz is found by its namespace's label.

    Raises:
        CapstanError: The cluster cannot be read: what could not be asked for is never taken for absent.
    """
    places = [(hook, namespace) for hook in HOOKS]
    for item in cluster.list(NAMESPACES, label_selector=f"{EXTENSION}=viz").items:
        places += [(hook, str(item["metadata"]["name"])) for hook in VIZ_HOOKS]
    return tuple(
        LinkerdWebhook(cluster, hook, where, timeout=timeout, now=now)
        for hook, where in places
        if cluster.find(hook.resource, hook.configuration) is not None
        or cluster.find(SECRETS, hook.secrets[0], where) is not None
    )


class LinkerdWebhook:
    """See `TrustSystem` for what each method promises.

    Args:
        namespace: Its server's.
        accept: Tools whose objects may be written all the same; Helm's always may be (see `webhooks_writing`).
        timeout: Seconds for each question to a process.
        now: The wall clock, aware UTC.
    """

    def __init__(
        self,
        cluster: Cluster,
        hook: Hook,
        namespace: str,
        *,
        accept: Collection[Tool] = (),
        timeout: float = PEER_TIMEOUT,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.cluster = cluster
        self.hook = hook
        self.namespace = namespace
        self.accept = frozenset(accept)
        self._timeout = timeout
        self._now = now
        self._certificates: dict[Fingerprint, Certificate] = {}

    @property
    def cluster_name(self) -> str:
        """`CLUSTER/HOOK`: its name in the rotation."""
        return f"{self.cluster.name}/{self.hook.name}"

    @property
    def dns_name(self) -> str:
        """The name that the API server asks for."""
        return f"{self.hook.service}.{self.namespace}.svc"

    def read(self) -> HookReading:
        """What is declared, and what every running process serves, now."""
        return self._read()[0]

    def _read(self) -> tuple[HookReading, dict[str, Owner]]:
        label, value = self.hook.label
        pods = self.cluster.list(PODS, self.namespace, label_selector=f"{label}={value}").items
        reading = read_hook(self.cluster, self.hook, self.namespace, pods, timeout=self._timeout, unready=True)
        owners = Owners(self.cluster, self.namespace)
        asked = {served.pod for served in reading.served}
        return reading, {
            str(pod["metadata"]["name"]): owners.of(pod) for pod in pods if pod["metadata"]["name"] in asked
        }

    def observe(self, known: Iterable[Certificate] = ()) -> ClusterObservation:
        """Read what the API server is told, what the Secret holds, and what each process serves, now."""
        reading, owners = self._read()
        met = {certificate.fingerprint: certificate for certificate in known}
        for certificate in (*reading.anchors, *reading.chain):
            met.setdefault(certificate.fingerprint, certificate)
        self._certificates = met
        # Of all that is known, what could be an anchor here: a certificate for another server verifies nothing.
        candidates = [each for each in met.values() if each in reading.anchors or self.dns_name in each.dns_names]
        bundle, now = reading.anchors.fingerprints, self._now()
        held = reading.chain
        return ClusterObservation(
            name=self.cluster_name,
            bundle=bundle,
            declared=(),
            issuer=Issuer(held[0].fingerprint, self._verified(held, candidates, now), held[0].not_after)
            if held
            else None,
            peers=tuple(self._peer(served, owners[served.pod], bundle, candidates, now) for served in reading.served),
            leaf_lifetime=0.0,
            troubles=tuple(each for each in (*reading.problems, reading.available) if each),
        )

    def _peer(
        self,
        served: Served,
        owner: Owner,
        bundle: frozenset[Fingerprint],
        candidates: Sequence[Certificate],
        now: datetime,
    ) -> Peer:
        leaf = None
        if served.chain:
            first = served.chain[0]
            anchors = self._verified(served.chain, candidates, now)
            name = first.dns_names[0] if first.dns_names else first.subject
            leaf = Leaf(first.fingerprint, name, None, anchors, first.not_before, first.not_after)
        return Peer(
            self.cluster_name, self.namespace, served.pod, Role.CONTROL_PLANE, owner, bundle, leaf, served.problem
        )

    def _verified(
        self, chain: Sequence[Certificate], candidates: Sequence[Certificate], now: datetime
    ) -> frozenset[Fingerprint]:
        return frozenset(
            each.fingerprint for each in candidates if not serving_problem(chain, self.dns_name, Bundle.of(each), now)
        )

    def certificates(self) -> dict[Fingerprint, Certificate]:
        """Everything met by the last look, and what it was given to know."""
        return dict(self._certificates)

    def require_writable(self) -> None:
        """Refuse what somebody else renews, or what cannot be read, before anything is made.

        Raises:
            OwnedElsewhere: cert-manager, Argo CD or Flux would undo the write; says what to do there.
            GateRefused: Configuration or Secret are not as Linkerd's charts make them.
        """
        writing.require_writable(self.cluster, self.read(), self.accept)

    def renders_anew(self) -> str:
        """Which Helm release makes another pair of its own at its next upgrade, for a person; empty if none does."""
        return writing.renders_anew(self.cluster, self.hook, self.namespace)

    def ensure_bundle(self, roots: Bundle) -> tuple[Change, ...]:
        """Make `caBundle` hold exactly these, unless a running process serves what they do not verify."""
        return (writing.ensure_ca_bundle(self.cluster, self.hook, roots, self.read, self._now()),)

    def ensure_issuer(self, material: IssuerMaterial) -> tuple[Change, ...]:
        """Make the serving Secret hold this pair, if the API server is told to accept it."""
        return (writing.ensure_secret(self.cluster, self.hook, self.namespace, material, self._now()),)

    def read_issuer(self) -> IssuerMaterial:
        """The serving certificate with its key, as the Secret has it."""
        return writing.read_pair(self.cluster, self.hook, self.namespace)

    def restart_control_plane(
        self,
        roots: frozenset[Fingerprint],  # noqa: ARG002  # a server has no roots
        stamp: str,
        *,
        seconds: float,
        issuer: Fingerprint | None = None,
        afresh: bool = False,
        on_progress: Callable[[Step], None] | None = None,
    ) -> RestartReport:
        """As `restart_signers`; nothing where no serving certificate is asked for."""
        if issuer is None:
            return RestartReport(())
        return self.restart_signers(stamp, seconds=seconds, issuer=issuer, afresh=afresh, on_progress=on_progress)

    def restart_signers(
        self,
        stamp: str,
        *,
        seconds: float,
        issuer: Fingerprint,
        afresh: bool = False,  # noqa: ARG002  # what a process serves is seen
        on_progress: Callable[[Step], None] | None = None,
    ) -> RestartReport:
        """Start those servers anew that were seen to serve another certificate: they did not read their Secret."""
        reading, owners = self._read()
        stale = {
            owners[served.pod] for served in reading.served if served.chain and served.chain[0].fingerprint != issuer
        }
        if not stale:
            return RestartReport(())
        return restart_workloads(self.cluster, stale, stamp, seconds=seconds, on_progress=on_progress, now=self._now)

    def restart_data_plane(
        self,
        roots: frozenset[Fingerprint],  # noqa: ARG002
        stamp: str,  # noqa: ARG002
        *,
        seconds: float,  # noqa: ARG002
        issuer: Fingerprint | None = None,  # noqa: ARG002
        parallel: int = 4,  # noqa: ARG002
        on_progress: Callable[[Step], None] | None = None,  # noqa: ARG002
    ) -> RestartReport:
        """Nothing: no workload is concerned."""
        return RestartReport(())

    def probe_identity(self, domain: str) -> str:  # noqa: ARG002
        """There is none: servers ask nobody for a certificate.

        Raises:
            InvalidInput: Always.
        """
        raise _nobody_to_probe(self.cluster_name)

    def probe(
        self,
        chain_pem: bytes,  # noqa: ARG002
        key: PrivateKey,  # noqa: ARG002
        *,
        limit: int | None = None,  # noqa: ARG002
        wanted: frozenset[str] = frozenset(),  # noqa: ARG002
    ) -> ProbeReport:
        """As `probe_identity`."""
        raise _nobody_to_probe(self.cluster_name)

    def checks(self, *, now: datetime, since: timedelta = RECENT) -> tuple[CheckResult, ...]:  # noqa: ARG002
        """Whether its configuration and Secret can be read; `capstan check` looks at all the rest."""
        problems = "\n".join(self.read().problems)
        status = Status.ERROR if problems else Status.OK
        said = f"{self.hook.name} is declared as Linkerd's charts do"
        return (CheckResult("linkerd-webhooks-and-apisvc-tls", said, _PAGE, Severity.FATAL, status, problems),)


def _nobody_to_probe(name: str) -> InvalidInput:
    return InvalidInput(
        "a webhook's server asks no client for a certificate", where=name, observed="a probe by a client certificate",
        expected="a trust system with proxies", next_command="capstan check",
    )  # fmt: skip
