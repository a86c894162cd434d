"""Making every istiod, and every place that declares roots, hold what the CA's source holds.

In this order, each wait bounded and told with its reason:

1. What is at the source is what istiod would start with.
2. The add-on: the vault's versions have come to every istiod pod (`capstan.systems.istio.delivery`).
3. One revision after another: where version and flags allow it, the reload is waited for; where they do not, or where
   it does not come, the Deployment is restarted, rolling. Done is only what each replica itself has shown by signing.
4. After roots were taken away, and where machines outside the cluster are connected also after some were added,
   every istiod is restarted once, whatever it says: whom it lets in by certificate it has known since its start.
5. The ConfigMaps of all namespaces and the webhooks' caBundles, which istiod writes.
6. ztunnels that keep the roots of their start for asking istiod are restarted while both roots are trusted.

Source: istio/istio pilot/pkg/bootstrap (istio_ca.go, server.go); the version table in `capstan.systems.istio.versions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from capstan.cluster.restart import Restarted, RestartReport, Skipped, Step, restart_workloads
from capstan.errors import GateRefused, GateTimedOut
from capstan.systems.istio import delivery, preflight
from capstan.systems.istio.data_plane import outdated_ztunnels
from capstan.systems.istio.key_vault import KeyVaultSource
from capstan.systems.istio.layout import read_layout, short
from capstan.systems.istio.predicting import predict
from capstan.systems.istio.versions import Taken
from capstan.trust.observation import Fingerprint, Owner

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from capstan.cluster.client import Cluster
    from capstan.systems.istio.layout import Revision
    from capstan.systems.istio.observe import View
    from capstan.systems.istio.source import CaSource

ROUNDS: Final = 3  # restarts of one revision: a pod may be born before its node has the new files
POLL: Final = 1.0
SLOWEST_POLL: Final = 5.0
RELOAD: Final = 180.0
"""Seconds that a reload may take: a kubelet renews mounted Secrets within its sync period and its cache's life, a
minute each by default (Kubernetes documentation, "Secrets"); istiod itself waits 100 ms."""
DELIVERY: Final = 600.0
"""Seconds that the CSI driver may take; it looks every two minutes by default, and at the kubelet's own pace."""
AFTER_RESTART: Final = 30.0
CHAIN: Final = 300.0
"""Seconds that a chain is waited for before the certificate that needs it is written: two of the driver's looks."""


@dataclass(frozen=True, slots=True)
class Want:
    """What every istiod has to show."""

    roots: frozenset[Fingerprint] | None
    issuer: Fingerprint | None

    def __str__(self) -> str:
        parts = [f"roots {short(self.roots)}"] if self.roots is not None else []
        return " and ".join([*parts, *([f"leaves of issuer {self.issuer[:8]}"] if self.issuer else [])])


class _Settling:
    """One call of `settle`."""

    def __init__(
        self,
        cluster: Cluster,
        source: CaSource,
        look: Callable[[], View],
        want: Want,
        stamp: str,
        *,
        seconds: float,
        on_progress: Callable[[Step], None] | None,
        now: Callable[[], datetime],
    ) -> None:
        self.cluster = cluster
        self.source = source
        self.look = look
        self.want = want
        self.stamp = stamp
        self.until = cluster.clock() + seconds
        self.on_progress = on_progress
        self.now = now
        self.restarted: list[Restarted] = []
        self.skipped: list[Skipped] = []

    @property
    def left(self) -> float:
        """Seconds left for all of it."""
        return max(self.until - self.cluster.clock(), 1.0)

    def say(self, owner: Owner, message: str, *, done: bool = False) -> None:
        if self.on_progress is not None:
            self.on_progress(Step(owner, message, done=done))

    def restart(self, owner: Owner, stamp: str) -> None:
        report = restart_workloads(
            self.cluster, [owner], stamp, seconds=self.left, on_progress=self.on_progress, now=self.now
        )
        self.restarted += report.restarted
        if report.skipped:
            raise GateRefused(
                "an istiod that has to be restarted cannot be", where=f"{owner} in cluster {self.cluster.name}",
                observed=report.skipped[0].reason, expected="a rollout of the Deployment",
                next_command=f"kubectl rollout resume deployment/{owner.name} -n {owner.namespace}",
            )  # fmt: skip

    def wait(self, owner: Owner, wrong: Callable[[], tuple[str, ...]], seconds: float, why: str) -> tuple[str, ...]:
        """Ask until nothing is wrong any more, or the time is up; what is wrong then."""
        end = min(self.until, self.cluster.clock() + seconds)
        pause, told = POLL, ""
        while found := wrong():
            if self.cluster.clock() >= end:
                return found
            text = f"{why}: {'; '.join(found[:3])}"
            if text != told:
                self.say(owner, text)
                told = text
            self.cluster.sleep(min(pause, max(end - self.cluster.clock(), 0.05)))
            pause = min(pause * 1.5, SLOWEST_POLL)
        return ()


def settle(
    cluster: Cluster,
    source: CaSource,
    look: Callable[[], View],
    stamp: str,
    *,
    roots: frozenset[Fingerprint] | None,
    issuer: Fingerprint | None,
    seconds: float,
    afresh: bool = False,
    look_at_proxies: Callable[[], View],
    on_progress: Callable[[Step], None] | None = None,
    now: Callable[[], datetime],
) -> RestartReport:
    """Wait, and restart where needed, until every istiod of every revision shows what is wanted.

    Args:
        look: A fresh look at the control plane; proxies may be left out of it.
        roots: What each must hand out, exactly; None to leave roots and places out of account.
        issuer: What each must sign with; None for any. With roots and issuer both given, the roots have become fewer,
            and every istiod is restarted once for this stamp.
        seconds: How long all of it may take.
        afresh: Restart every istiod once for this stamp even where it shows what is wanted: it may have shown the same
            before, and what was written in between may still be on its way to it.
        look_at_proxies: A fresh look at everything.

    Returns:
        What was restarted; what took the change without a restart is among the skipped, and says so.

    Raises:
        GateRefused: The source holds something that no istiod would start with, or one of a version that must not be
            given it. GateTimedOut: Somebody did not get there in time; names them.
    """
    settling = _Settling(
        cluster, source, look, Want(roots, issuer), stamp, seconds=seconds, on_progress=on_progress, now=now
    )
    if issuer is None and isinstance(source, KeyVaultSource) and source.half_switched():
        return _left_to_the_switch(settling)
    _require_startable(settling)
    view = look()
    way = _await_delivery(settling, view)
    growing = look_at_proxies() if roots is not None and issuer is None else None
    # Whom an istiod lets in by certificate it has known since its start: machines outside the cluster have to be let in
    # by a leaf of the new root before they have one, and by none of the old root once that is gone.
    renew = afresh or (roots is not None and issuer is not None) or (growing is not None and has_strangers(growing))
    for revision in view.layout.revisions:
        _settle_revision(settling, revision, way, renew=renew)
    if roots is not None:
        _await_places(settling, roots)
    for owner in outdated_ztunnels(growing) if growing is not None else ():
        settling.say(owner, "keeps the roots of its start for asking istiod")
        settling.restart(owner, stamp)
    return RestartReport(tuple(settling.restarted), tuple(settling.skipped))


def await_chain(cluster: Cluster, namespace: str, source: KeyVaultSource, *, seconds: float = CHAIN) -> None:
    """Wait until what the vault keeps now has come to every istiod, as far as that can be seen.

    To be called between the chain and the certificate of a new signer. Where no driver brings new versions to running
    pods the patience runs out; they then take nothing new before they are restarted, and then all of it.
    """
    layout = read_layout(cluster, namespace)
    found, kept, end = delivery.detect(cluster, layout), source.kept(), cluster.clock() + seconds
    while delivery.outstanding(cluster, layout, kept, found.way) and cluster.clock() < end:
        cluster.sleep(POLL)
        layout = read_layout(cluster, namespace)


def has_strangers(view: View) -> bool:
    """Whether proxies are connected to an istiod that are no pods of this cluster."""
    return any(proxy.kind == "unknown" for proxy in view.proxies)


def wrong_istiods(view: View, revision: str, want: Want) -> tuple[str, ...]:
    """Replicas of a revision that do not show what is wanted, each with the reason; unreadable ones count, those on
    their way out do not."""
    found = [istiod for istiod in view.istiods if istiod.revision == revision and not istiod.leaving]
    layout = view.layout.revision(revision)
    if not found and layout is not None and int(layout.deployment["spec"].get("replicas", 1)) > 0:
        return (f"revision {revision}: no running pod",)
    wrong = []
    for istiod in found:
        signer, reason = istiod.signer, ""
        if want.roots is not None and signer.roots is None:
            reason = f"its roots could not be read ({signer.unreadable})"
        elif want.roots is not None and signer.roots != want.roots:
            reason = f"hands out roots {short(signer.roots or ())}"
        elif want.issuer is not None and signer.issuer is None:
            reason = f"what it signs with could not be read ({signer.unreadable})"
        elif want.issuer is not None and signer.issuer != want.issuer:
            reason = f"signs by issuer {(signer.issuer or 'unknown')[:8]}"
        if reason:
            wrong.append(f"{istiod.ref.name}: {reason}")
    return tuple(wrong)


def _left_to_the_switch(settling: _Settling) -> RestartReport:
    """Nothing, where the roots are to be settled again and a run died in the midst of the switch that follows.

    A switch begins when every istiod hands out, and every proxy holds, the roots that it needs; so this was done. It
    is for the switch to go on: until then whatever is started here dies of a key that is not its certificate's.
    """
    view = settling.look()
    reason = "the switch to another issuer is half written: nothing is started before it is whole"
    owners = [Owner("Deployment", view.layout.namespace, each.deployment_name) for each in view.layout.revisions]
    for owner in owners:
        settling.say(owner, reason)
    return RestartReport((), tuple(Skipped(owner, reason) for owner in owners))


def _require_startable(settling: _Settling) -> None:
    """An istiod that starts with files it cannot use does not come up: a latent fault becomes an outage.

    Raises:
        GateRefused: It would not start, or the source holds other roots or another issuer than are waited for.
    """
    source, want = settling.source, settling.want
    material = source.read_issuer()
    files = source.read()
    if files.cert_chain.strip():
        why = preflight.try_verify(files, material.key, source.where, now=settling.now())
        if why:
            raise GateRefused(
                "istiod would not start with what its source holds", where=source.where, observed=why,
                expected="a set of files that istiod takes", next_command="capstan check",
            )  # fmt: skip
    held = preflight.roots_of(files, source.where)
    if want.roots is not None and held != want.roots:
        raise GateRefused(
            "the source does not hold the roots that are waited for", where=source.where, observed=short(held),
            expected=short(want.roots), next_command="capstan status",
        )  # fmt: skip
    if want.issuer is not None and material.certificate.fingerprint != want.issuer:
        raise GateRefused(
            "the source does not hold the issuer that is waited for", where=source.where,
            observed=material.certificate.fingerprint[:16], expected=want.issuer[:16], next_command="capstan status",
        )  # fmt: skip


def _await_delivery(settling: _Settling, view: View) -> delivery.Delivery | None:
    """Wait until the vault's latest versions have come to the pods; None where the source is in the cluster itself.

    A volume is filled anew whenever a pod starts, so of the CSI way only the patience runs out here, and the restart
    that follows brings the rest. A synced Secret is renewed by the driver alone.

    Raises:
        GateTimedOut: The driver does not renew the Secret `cacerts`.
    """
    source, cluster = settling.source, settling.cluster
    if not isinstance(source, KeyVaultSource):
        return None
    found, kept = delivery.detect(cluster, view.layout), source.kept()
    namespace = view.layout.namespace
    behind = settling.wait(
        Owner("Deployment", namespace, view.layout.revisions[0].deployment_name),
        lambda: delivery.outstanding(cluster, read_layout(cluster, namespace), kept, found.way),
        min(DELIVERY, settling.left / 2), "waiting for the secrets-store CSI driver",
    )  # fmt: skip
    if behind and found.way is delivery.Way.CACERTS:
        raise GateTimedOut(
            "the vault's secrets do not come to the cluster", stragglers=behind,
            where=f"namespace {view.layout.namespace} of cluster {cluster.name}", observed="; ".join(behind),
            expected=f"the versions in {source.vault.url}",
            next_command="az aks addon update --addon azure-keyvault-secrets-provider --enable-secret-rotation "
            "--rotation-poll-interval 2m",
        )  # fmt: skip
    return found


def _settle_revision(settling: _Settling, revision: Revision, way: delivery.Delivery | None, *, renew: bool) -> None:
    """Bring one revision to what is wanted, and prove it on each of its replicas."""
    namespace = revision.deployment["metadata"]["namespace"]
    owner = Owner("Deployment", str(namespace), revision.deployment_name)

    def wrong() -> tuple[str, ...]:
        return wrong_istiods(settling.look(), revision.name, settling.want)

    before = len(settling.restarted)
    view = settling.look()
    found = wrong_istiods(view, revision.name, settling.want)
    if found:
        prediction = predict(settling.cluster, settling.source, view, revision)
        if prediction.taken is Taken.REFUSED:
            raise GateRefused(
                "this istiod must not be given these files", where=str(owner), observed=prediction.why,
                expected="a version that takes them", next_command="upgrade istiod first",
            )  # fmt: skip
        if prediction.taken is Taken.HOT:
            found = settling.wait(owner, wrong, min(RELOAD, settling.left / 2), f"reloading ({prediction.why})")
        elif way is not None and way.validator_interval is not None:
            patience = min(way.validator_interval + 60.0, settling.left / 2)
            found = settling.wait(owner, wrong, patience, "waiting for the add-on's CronJob to restart istiod")
        if found:
            settling.say(owner, f"restarting: {prediction.why}")
            _restart_until_right(settling, owner, wrong)
    if renew and len(settling.restarted) == before:
        settling.restart(owner, settling.stamp)
        found = settling.wait(owner, wrong, AFTER_RESTART, "asking the new replicas")
        if found:
            _restart_until_right(settling, owner, wrong)
    if len(settling.restarted) == before:
        settling.skipped.append(Skipped(owner, "took the change without a restart, as each replica has shown"))
    settling.say(owner, "every replica shows it", done=True)


def _restart_until_right(settling: _Settling, owner: Owner, wrong: Callable[[], tuple[str, ...]]) -> None:
    """Restart, at most three times, until every replica shows what is wanted.

    Raises:
        GateTimedOut: It does not.
    """
    found: tuple[str, ...] = ()
    for attempt in range(1, ROUNDS + 1):
        settling.restart(owner, settling.stamp if attempt == 1 else f"{settling.stamp}.{attempt}")
        found = settling.wait(owner, wrong, AFTER_RESTART, "asking the new replicas")
        if not found or settling.cluster.clock() >= settling.until:
            break
    if found:
        raise GateTimedOut(
            f"{owner.name} does not come up as it has to", stragglers=found,
            where=f"{owner} in cluster {settling.cluster.name}", observed="; ".join(found[:10]),
            expected=str(settling.want), next_command=f"kubectl logs -n {owner.namespace} deployment/{owner.name}",
        )  # fmt: skip


def _await_places(settling: _Settling, roots: frozenset[Fingerprint]) -> None:
    """Wait until every ConfigMap and caBundle holds exactly these roots.

    Raises:
        GateTimedOut: Some do not; names them.
    """

    def behind() -> tuple[str, ...]:
        view = settling.look()
        found = [f"{place}: {short(held)}" for place, held in view.observation.declared if held != roots]
        return (*found, *view.troubles)

    owner = Owner("Deployment", settling.look().layout.namespace, "istiod")
    left = settling.wait(owner, behind, settling.left, "waiting for ConfigMaps and webhooks")
    if left:
        raise GateTimedOut(
            f"{len(left)} places do not declare the roots that istiod hands out", stragglers=left,
            where=f"cluster {settling.cluster.name}", observed="\n            ".join(left[:20]),
            expected=f"roots {short(roots)}",
            next_command="kubectl logs of the istiod that leads (two istiods of other roots fight over webhooks)",
        )  # fmt: skip
