"""The troubleshooting cases of Istio's root transition page, as checks.

    why workloads get no new certificates      sidecars too old to load a changed root; workload Secrets of an old root
    why Pilot logs "handshake error"           a Pilot (and Galley) without a sidecar keeps the roots of its start
    how to tell whether Pilot has a sidecar    1/1 containers, or 2/2
    why no new workload can be deployed        the injector presents a certificate that the API server does not trust

The page speaks of the versions before istiod; the last case is as frequent with istiod (istio#60774, #46612), and is
read there from the events of those who wanted to create pods.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from capstan.cluster.resources import EVENTS, PODS
from capstan.errors import CapstanError
from capstan.systems.base import CheckResult, Severity
from capstan.systems.istio.citadel import outdated, workload_secrets
from capstan.systems.istio.layout import PROXY, find_container, has_ended
from capstan.systems.istio.reporting import INJECTION_PAGE, TRANSITION_PAGE, TROUBLES, listed, result, skipped
from capstan.systems.istio.source import Mode
from capstan.systems.istio.versions import follows_changed_roots, image_version

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object
    from capstan.systems.istio.observe import View
    from capstan.systems.istio.versions import Version

RECENT: Final = timedelta(minutes=15)  # an event outlives its cause by an hour; a stuck controller repeats it sooner
HOT_RESTART_BROKEN: Final = ((1, 1, 3), (1, 1, 7))
INJECTOR: Final = "sidecar-injector"
INJECTION_HOOK: Final = "sidecar-injector.istio.io"  # the end of every injection webhook's name, in every version
UNTRUSTED: Final = ("x509:", "certificate signed by unknown authority", "certificate has expired")


def trouble_checks(cluster: Cluster, view: View, now: datetime) -> Iterable[CheckResult]:
    """What breaks around a transition of the root, by its known causes."""
    yield _sidecars(view)
    yield _secrets(cluster, view)
    try:
        own = [pod for pod in cluster.list(PODS, view.layout.namespace).items if not has_ended(pod)]
    except CapstanError as error:
        about = TROUBLES, "the control plane's pods can be listed", TRANSITION_PAGE, Severity.ERROR
        yield result(*about, f"{error.what}: {error.observed}")
    else:
        pilots = [pod for pod in own if _component(pod) in ("pilot", "galley")]
        yield _pilot_sidecar(pilots)
        yield _handshakes(view, pilots)
        yield _injector(view, [pod for pod in own if _component(pod) == INJECTOR])
    yield _injections(cluster, now)


def _sidecars(view: View) -> CheckResult:
    """check-version: older ones do not load a changed root, and 1.1.3 to 1.1.7 may not hot-restart for a new leaf."""
    about = TROUBLES, "sidecars load a changed root by themselves", TRANSITION_PAGE, Severity.ERROR
    old = [
        f"{proxy.peer.name}: {proxy.version}"
        for proxy in view.proxies
        if proxy.version is not None and proxy.kind not in ("ztunnel", "unknown") and _too_old(proxy.version)
    ]
    unknown = [
        f"{proxy.peer.name}: unknown version"
        for proxy in view.proxies
        if proxy.version is None and proxy.kind not in ("ztunnel", "unknown") and view.layout.mode is Mode.CITADEL
    ]
    return result(*about, listed("Upgrade these to 1.0.8, 1.1.8 or later before the root changes:", old + unknown))


def _too_old(version: Version) -> bool:
    first, last = HOT_RESTART_BROKEN
    broken = first <= (version.major, version.minor, version.patch) <= last
    return broken or not follows_changed_roots(version)


def _secrets(cluster: Cluster, view: View) -> CheckResult:
    """verify-certs, which passes where there are no such Secrets at all: here that is said."""
    about = TROUBLES, "every workload Secret holds the CA's root", TRANSITION_PAGE, Severity.ERROR
    if view.layout.mode is not Mode.CITADEL or view.issuer is None:
        return skipped(*about, "workloads get their certificates from istiod, not from Secrets")
    try:
        secrets = workload_secrets(cluster)
    except CapstanError as error:
        return result(*about, f"{error.what}: {error.observed}")
    if not secrets:
        return result(*about, "there is no Secret of type istio.io/key-and-cert: nothing was checked")
    old = outdated(secrets, view.issuer.fingerprint)
    return result(
        *about, listed(f"The CA is {view.issuer.fingerprint[:8]}; Citadel rewrites within a minute:", list(old)),
        note=f"{len(secrets)} Secrets",
    )  # fmt: skip


def _pilot_sidecar(pilots: list[Object]) -> CheckResult:
    about = TROUBLES, "Pilot has a sidecar", TRANSITION_PAGE, Severity.WARNING
    if not pilots:
        return skipped(*about, "there is no Pilot: istiod needs none")
    bare = [_name(pod) for pod in pilots if find_container(pod["spec"], PROXY) is None and _component(pod) == "pilot"]
    return result(*about, listed("Restart these, and Galley, after the root has changed:", bare))


def _handshakes(view: View, pilots: list[Object]) -> CheckResult:
    """A Pilot or Galley that is older than the root it should verify by."""
    about = TROUBLES, "Pilot and Galley have started since the root was made", TRANSITION_PAGE, Severity.ERROR
    if not pilots:
        return skipped(*about, "there is no Pilot and no Galley: istiod takes changed roots as its checks say")
    if view.issuer is None:
        return result(*about, "the CA's certificate could not be read")
    older = [
        f"{_name(pod)} started {started:%F %T}Z, the root was made {view.issuer.not_before:%F %T}Z"
        for pod in pilots
        if find_container(pod["spec"], PROXY) is None
        and (started := _started(pod)) is not None
        and started < view.issuer.not_before
    ]
    return result(*about, listed("These verify by an older root, and log `handshake error`; restart them:", older))


def _injector(view: View, injectors: list[Object]) -> CheckResult:
    """An injector of those versions reads its certificate once."""
    about = TROUBLES, "the sidecar injector has the CA's certificate", TRANSITION_PAGE, Severity.ERROR
    if not injectors:
        return skipped(*about, "there is no sidecar injector of its own: istiod injects")
    if view.issuer is None:
        return result(*about, "the CA's certificate could not be read")
    stuck = []
    for pod in injectors:
        container: Object = next(iter(pod["spec"].get("containers") or ()), {})
        version, started = image_version(str(container.get("image", ""))), _started(pod)
        reads_once = version is None or _too_old(version)
        if reads_once and started is not None and started < view.issuer.not_before:
            stuck.append(
                f"{_name(pod)} ({version or 'unknown version'}) started {started:%F %T}Z, before the CA was made"
            )
    return result(*about, listed("New workloads cannot be deployed until these are restarted:", stuck))


def _injections(cluster: Cluster, now: datetime) -> CheckResult:
    """Pods that nobody could create because the injector's certificate was not trusted."""
    about = TROUBLES, "new workloads can be deployed with a sidecar", INJECTION_PAGE, Severity.ERROR
    try:
        events = cluster.list(EVENTS, field_selector="reason=FailedCreate").items
    except CapstanError as error:
        return result(*about, f"{error.what}: {error.observed}")
    failed: dict[str, str] = {}
    for event in events:
        message = str(event.get("message", ""))
        about_injection = "failed calling webhook" in message and INJECTION_HOOK in message
        if about_injection and any(sign in message for sign in UNTRUSTED) and _seen(event) > now - RECENT:
            thing = event.get("involvedObject") or {}
            name = f"{str(thing.get('kind', '')).lower()} {thing.get('namespace', '')}/{thing.get('name', '')}"
            failed[name] = message
    lines = [": ".join(pair) for pair in sorted(failed.items())]
    return result(*about, listed("The API server did not trust the injector:", lines))


def _seen(event: Object) -> datetime:
    """When an event last happened; long ago, where it does not say."""
    series = event.get("series") or {}
    text = series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime")
    return datetime.fromisoformat(str(text)).astimezone(UTC) if text else datetime.min.replace(tzinfo=UTC)


def _component(pod: Object) -> str:
    """`pilot`, `galley`, ... of the versions before istiod; istiod's own pods carry `istio: pilot` for their sake."""
    labels = pod["metadata"].get("labels") or {}
    return "" if labels.get("app") == "istiod" else str(labels.get("istio", ""))


def _name(pod: Object) -> str:
    return f"pod {pod['metadata']['namespace']}/{pod['metadata']['name']}"


def _started(pod: Object) -> datetime | None:
    """When the pod's first container of its own last started; the pod's start where that is not said."""
    status = pod.get("status") or {}
    times = [
        str(state["startedAt"])
        for item in status.get("containerStatuses") or []
        if item.get("name") != PROXY and (state := (item.get("state") or {}).get("running"))
    ]
    text = max(times, default=str(status.get("startTime") or ""))
    return datetime.fromisoformat(text).astimezone(UTC) if text else None
