"""Checks of what every live proxy holds and presents."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from capstan.systems.base import CheckResult, Severity
from capstan.systems.istio.layout import short
from capstan.systems.istio.reporting import (
    AGENT_PAGE,
    AMBIENT_PAGE,
    DATA_PLANE,
    PLUG_IN_PAGE,
    PROXY_PAGE,
    SKEW_PAGE,
    listed,
    result,
    skipped,
)
from capstan.systems.istio.versions import XDS_AGENT, flag, pushes_roots, ztunnel_follows_changed_roots

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from capstan.systems.istio.observe import View
    from capstan.systems.istio.proxies import Proxy
    from capstan.trust.observation import Leaf

A_DAY: Final = 25 * 3600.0  # a leaf of the default life, dated back, and some slack


def data_plane_checks(view: View, now: datetime) -> Iterable[CheckResult]:
    """What every proxy holds and presents, and its version."""
    peers = [proxy.peer for proxy in view.proxies]
    bundle = view.bundle.fingerprints
    unreadable = [f"{peer.name}: {peer.unreadable}" for peer in peers if peer.unreadable]
    yield result(
        DATA_PLANE, "every proxy says its roots and its leaf", PROXY_PAGE, Severity.ERROR,
        listed("Some proxies could not be read:", unreadable), note=f"{len(peers)} proxies",
    )  # fmt: skip
    stale = [f"{peer.name} holds {short(peer.trusts)}" for peer in peers if peer.trusts not in (None, bundle)]
    yield result(
        DATA_PLANE, "every proxy holds the CA's roots", PROXY_PAGE, Severity.WARNING,
        listed(f"Until their next leaf, these hold others than {short(bundle)}:", stale),
    )  # fmt: skip
    expired = [
        f"{peer.name}: expired {peer.leaf.not_after:%F %T}Z"
        for peer in peers
        if peer.leaf and peer.leaf.not_after < now
    ]
    yield result(
        DATA_PLANE, "no proxy presents an expired leaf", PROXY_PAGE, Severity.FATAL,
        listed("Its agent gets no new one:", expired),
    )  # fmt: skip
    yield result(
        DATA_PLANE, "every proxy trusts every other proxy's leaf", PROXY_PAGE, Severity.FATAL,
        listed("New connections between these fail now:", _strangers(view)),
    )  # fmt: skip
    lagging = [
        f"{peer.name}: leaf of issuer {(peer.leaf.issuer or 'unknown')[:8]}"
        for peer in peers
        if peer.leaf and view.issuer is not None and peer.leaf.issuer != view.issuer.fingerprint
    ]
    yield result(
        DATA_PLANE, "every leaf was signed by the configured CA", PLUG_IN_PAGE, Severity.WARNING,
        listed("Normal for up to a leaf's lifetime after a switch:", lagging),
    )  # fmt: skip
    yield _lifetimes(view)
    yield _pushed(view)
    yield _skew(view)
    yield _ztunnels(view)


def _strangers(view: View) -> list[str]:
    believers: dict[frozenset[str], list[str]] = {}
    shown: list[tuple[str, Leaf]] = []
    for proxy in view.proxies:
        if proxy.peer.trusts is not None:
            believers.setdefault(proxy.peer.trusts, []).append(proxy.peer.name)
        if proxy.peer.leaf is not None:
            shown.append((proxy.peer.name, proxy.peer.leaf))
    problems = []
    for name, leaf in shown:
        against = [other for trusts, names in believers.items() if not trusts & leaf.anchors for other in names]
        if against:
            more = f" and {len(against) - 3} more" if len(against) > 3 else ""
            problems.append(f"{name} is not trusted by {', '.join(against[:3])}{more}")
    return problems


def _lifetimes(view: View) -> CheckResult:
    long = [
        f"{proxy.peer.name}: {life / 3600:.0f} hours"
        for proxy in view.proxies
        if proxy.peer.leaf is not None
        and (life := (proxy.peer.leaf.not_after - proxy.peer.leaf.not_before).total_seconds()) > A_DAY
    ]
    return result(
        DATA_PLANE, "no leaf lives longer than a day", AGENT_PAGE, Severity.WARNING,
        listed("Each phase of a rotation lasts until these are renewed (SECRET_TTL):", long),
        note=f"the longest lives {view.observation.leaf_lifetime / 3600:.1f} hours",
    )  # fmt: skip


def _pushed(view: View) -> CheckResult:
    """Whether changed roots reach proxies at once, or with their next leaf."""
    about = DATA_PLANE, "changed roots reach every proxy at once", AGENT_PAGE, Severity.WARNING
    sidecars = [proxy for proxy in view.proxies if proxy.kind in ("sidecar", "gateway", "waypoint")]
    with_agent = [proxy for proxy in sidecars if flag(proxy.env, XDS_AGENT, False)]
    if not with_agent:
        return skipped(*about, f"no proxy has {XDS_AGENT}=true: roots come with each leaf")
    revisions = {item.name: item for item in view.layout.revisions}
    default = view.layout.revisions[0]

    def told(proxy: Proxy) -> bool:
        control = revisions.get(proxy.revision, default)
        return pushes_roots(control.version, control.env, proxy.env)

    late = [proxy.peer.name for proxy in sidecars if not told(proxy)]
    return result(*about, listed("These get them with their next leaf only:", late))


def _skew(view: View) -> CheckResult:
    """A control plane may be one minor version ahead of its proxies, and never behind them."""
    revisions = {item.name: item for item in view.layout.revisions}
    default = view.layout.revisions[0]
    wrong: Counter[str] = Counter()
    for proxy in view.proxies:
        control = revisions.get(proxy.revision, default).version
        if control is None or proxy.version is None or proxy.kind == "unknown":
            continue
        ahead = (control.major - proxy.version.major) * 1000 + control.minor - proxy.version.minor
        if ahead not in (0, 1):
            wrong[f"{proxy.kind}s of {proxy.version} with an istiod of {control}"] += 1
    return result(
        DATA_PLANE, "proxies' versions fit their control plane's", SKEW_PAGE, Severity.WARNING,
        listed("", [f"{count} {text}" for text, count in sorted(wrong.items())]),
    )  # fmt: skip


def _ztunnels(view: View) -> CheckResult:
    about = DATA_PLANE, "every ztunnel takes a changed root without a restart", AMBIENT_PAGE, Severity.WARNING
    found = {proxy.ref.name: proxy.version for proxy in view.proxies if proxy.kind == "ztunnel"}
    if not found:
        return skipped(*about, "there is no ztunnel")
    old = [
        f"{name}: {version or 'unknown version'}"
        for name, version in sorted(found.items())
        if version is None or not ztunnel_follows_changed_roots(version)
    ]
    return result(*about, listed("Restart these after the roots have changed (1.28.6, 1.29.2, 1.30.0 need not):", old))
