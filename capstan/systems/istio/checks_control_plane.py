"""Checks of every live istiod, and of every place that repeats the roots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstan.pki.verify import anchors_of_issuer
from capstan.systems.base import CheckResult, Severity
from capstan.systems.istio.layout import short
from capstan.systems.istio.places import TRUST_BUNDLE_FLAG
from capstan.systems.istio.reporting import (
    CANARY_PAGE,
    CONTROL_PLANE,
    DISTRIBUTION,
    INJECTION_PAGE,
    ISSUE,
    ISTIOD_PAGE,
    PLUG_IN_PAGE,
    PROXY_PAGE,
    SECURITY_PAGE,
    SKEW_PAGE,
    held_instead,
    listed,
    result,
    skipped,
)
from capstan.systems.istio.source import Mode
from capstan.systems.istio.versions import CaChange, Taken, flag, how_taken, refused_version

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from capstan.pki.bundle import Bundle
    from capstan.pki.inspect import Certificate
    from capstan.systems.istio.observe import View
    from capstan.systems.istio.places import Place


def control_plane_checks(view: View) -> Iterable[CheckResult]:
    """Versions, rollouts, flags, and what every replica signs with."""
    yield _refused(view)
    yield _known_versions(view)
    yield _rollouts(view)
    yield _one_revision(view)
    unreadable = [f"{item.signer.name}: {item.signer.unreadable}" for item in view.istiods if item.signer.unreadable]
    answering = CONTROL_PLANE, "every istiod says what it signs with and which roots it hands out"
    if view.layout.mode is Mode.CITADEL:
        yield skipped(*answering, PROXY_PAGE, Severity.ERROR, "Citadel writes Secrets; the proxies show what it signs")
    else:
        none = [] if view.istiods else ["no istiod runs"]
        yield result(*answering, SECURITY_PAGE, Severity.ERROR, listed("", none + unreadable))
    yield _signs_as_configured(view)
    yield _hands_out_the_roots(view)
    yield _hot_reload(view)


def distribution_checks(view: View, now: datetime) -> Iterable[CheckResult]:
    """ConfigMaps, webhooks, ClusterTrustBundle."""
    bundle = view.bundle.fingerprints
    stale = [place for place in view.places.config_maps if place.fingerprints != bundle]
    yield result(
        DISTRIBUTION, f"every ConfigMap {view.layout.config_map} holds the CA's roots", SECURITY_PAGE, Severity.ERROR,
        listed(f"The CA has {short(bundle)}:", _held(stale)), lagging=held_instead(stale),
    )  # fmt: skip
    namespaces = {place.namespace for place in view.places.config_maps}
    proxies = [item for item in view.proxies if item.kind in ("sidecar", "gateway", "waypoint") and item.ref.uid]
    without = sorted({item.peer.namespace for item in proxies} - namespaces)
    about = DISTRIBUTION, f"every namespace with proxies has the ConfigMap {view.layout.config_map}"
    if view.layout.mode is Mode.CITADEL:
        yield skipped(*about, INJECTION_PAGE, Severity.ERROR, "certificates come as Secrets before 1.5")
    elif all(flag(revision.env, TRUST_BUNDLE_FLAG, False) for revision in view.layout.revisions):
        yield skipped(*about, INJECTION_PAGE, Severity.ERROR, "pods get the roots from a ClusterTrustBundle")
    else:
        yield result(
            *about, INJECTION_PAGE, Severity.ERROR, listed("New pods there will not start:", without)
        )  # fmt: skip
    hooks = [place for place in view.places.others if place.fingerprints != bundle]
    yield result(
        DISTRIBUTION, "every webhook configuration trusts the CA's roots", INJECTION_PAGE, Severity.ERROR,
        listed(f"The CA has {short(bundle)}:", _held(hooks)), lagging=held_instead(hooks),
    )  # fmt: skip
    yield result(
        DISTRIBUTION, "the API server can verify every istiod that it calls", ISSUE + "60774", Severity.FATAL,
        listed("Calls of the injector and the validator fail with x509 errors:", _unverifiable(view, now)),
    )  # fmt: skip
    yield result(
        DISTRIBUTION, "all that declares the roots could be read", SECURITY_PAGE, Severity.WARNING,
        listed("", [*view.troubles, *view.places.abandoned]),
    )  # fmt: skip


def _held(places: Iterable[Place]) -> list[str]:
    return [f"{place.name}: {place.problem or 'holds ' + short(place.fingerprints)}" for place in places]


def _refused(view: View) -> CheckResult:
    versions = {item.version for item in view.layout.revisions} | {item.version for item in view.istiods}
    problems = sorted(why for version in versions if version is not None and (why := refused_version(version)))
    return result(
        CONTROL_PLANE, "no istiod has a version that breaks a bundle of roots", ISSUE + "55793", Severity.FATAL,
        listed("", problems),
    )  # fmt: skip


def _known_versions(view: View) -> CheckResult:
    unknown = [f"deployment {item.deployment_name}" for item in view.layout.revisions if item.version is None]
    return result(
        CONTROL_PLANE, "every istiod's version is known", SKEW_PAGE, Severity.WARNING,
        listed("The image's tag says nothing, so a changed CA is taken to need a restart:", unknown),
    )  # fmt: skip


def _rollouts(view: View) -> CheckResult:
    running = [
        f"deployment {item.deployment_name}: {item.rollout.message}"
        for item in view.layout.revisions
        if not item.rollout.done
    ]
    return result(
        CONTROL_PLANE, "no rollout of a control plane is under way", CANARY_PAGE, Severity.ERROR, listed("", running)
    )  # fmt: skip


def _one_revision(view: View) -> CheckResult:
    names = [f"{item.name} ({item.version or 'unknown version'})" for item in view.layout.revisions]
    return result(
        CONTROL_PLANE, "one revision of the control plane is installed", CANARY_PAGE, Severity.WARNING,
        listed("All of these take part in a rotation; an upgrade must not go on during one:", names)
        if len(names) > 1
        else "",
    )  # fmt: skip


def _signs_as_configured(view: View) -> CheckResult:
    about = CONTROL_PLANE, "every istiod signs with the configured CA", PLUG_IN_PAGE, Severity.ERROR
    if view.issuer is None:
        return skipped(*about, "the configured CA was not read")
    wrong = [
        f"{item.signer.name} signs with {item.signer.issuer[:8]}"
        for item in view.istiods
        if item.signer.issuer is not None and item.signer.issuer != view.issuer.fingerprint
    ]
    lagging = frozenset(item.signer.issuer for item in view.istiods if item.signer.issuer is not None)
    return result(
        *about, listed(f"The configured CA is {view.issuer.fingerprint[:8]}:", wrong),
        lagging=lagging - {view.issuer.fingerprint},
    )  # fmt: skip


def _hands_out_the_roots(view: View) -> CheckResult:
    bundle = view.bundle.fingerprints
    held = {item.signer.name: roots for item in view.istiods if (roots := item.signer.roots) not in (None, bundle)}
    wrong = [f"{name} hands out {short(roots)}" for name, roots in held.items() if roots is not None]
    return result(
        CONTROL_PLANE, "every istiod hands out the CA's roots", PLUG_IN_PAGE, Severity.ERROR,
        listed(f"The CA has {short(bundle)}:", wrong),
        lagging=frozenset().union(*(roots for roots in held.values() if roots is not None)),
    )  # fmt: skip


def _hot_reload(view: View) -> CheckResult:
    """By what each istiod would do with a root appended to its present ones."""
    about = CONTROL_PLANE, "a changed root is taken without a restart of istiod", ISTIOD_PAGE, Severity.WARNING
    if view.layout.mode in (Mode.SELF_SIGNED, Mode.CITADEL):
        return skipped(*about, f"the CA's mode is {view.layout.mode}")
    if view.files is None:
        return skipped(*about, "the CA's source was not read")
    text = view.files.root_cert
    change = CaChange(text, text + view.bundle.pem(trailing_newline=True), signer=True)
    cold = [
        f"deployment {item.deployment_name}: {prediction.why}"
        for item in view.layout.revisions
        if (prediction := how_taken(item.version, item.env, change)).taken is not Taken.HOT
    ]
    return result(*about, listed("A rotation will restart these, one replica at a time:", cold))


def _unverifiable(view: View, now: datetime) -> list[str]:
    """Per webhook configuration: the replicas of its revision whose serving certificate it does not verify."""
    return [
        f"{place.name} does not trust the certificate that {istiod.signer.name} serves"
        for place in view.places.others
        for istiod in view.istiods
        if place.roots is not None
        and istiod.revision == place.revision
        and istiod.serving
        and not _verifies(istiod.serving, place.roots, now)
    ]


def _verifies(serving: tuple[Certificate, ...], roots: Bundle, now: datetime) -> bool:
    """Whether the CA that made a serving certificate leads to one of the roots."""
    issuer = next((item for item in (*serving[1:], *roots) if serving[0].signed_by(item)), None)
    return issuer is not None and bool(anchors_of_issuer(issuer, roots, now, serving[1:]))
