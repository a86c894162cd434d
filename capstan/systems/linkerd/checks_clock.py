"""Category `pre-kubernetes-setup`: the nodes' clocks.

Linkerd takes the heartbeat of a node's Ready condition, which a kubelet writes every five minutes, so it can see no
skew below that. A leaf is valid from `clock skew allowance` (20 s) before it was signed: a node's Lease, which its
kubelet renews every ten seconds by its own clock, shows such a skew.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from capstan.systems.base import CheckResult, Severity
from capstan.systems.linkerd.checks_report import PRE_SETUP, listed, result, skipped, theirs

if TYPE_CHECKING:
    from capstan.cluster.values import Object
    from capstan.systems.linkerd.checks_evidence import Evidence

ALLOWED: Final = timedelta(minutes=5, seconds=10)
"""Linkerd's AllowedClockSkew: the heartbeat's interval, and Go's default allowance."""
LEASE_LIFE: Final = timedelta(seconds=40)
"""kubelet's default `nodeLeaseDurationSeconds`."""


def clock_check(evidence: Evidence) -> CheckResult:
    """Whether a node's clock is far from ours."""
    about = PRE_SETUP, "no clock skew detected", "pre-k8s-clock-skew", Severity.WARNING
    if evidence.nodes.problem:
        return result(*about, f"the nodes cannot be read: {evidence.nodes.problem}")
    now = evidence.clocks_read
    leases = {item["metadata"]["name"]: item for item in evidence.leases.value}
    allowance = timedelta(seconds=max(evidence.view.layout.clock_skew, 1.0))
    found, by_their_rule, judged = [], [], 0
    for node in evidence.nodes.value:
        name = str(node["metadata"]["name"])
        heartbeat = _heartbeat(node)
        if heartbeat is None:
            continue  # a node that is not ready says nothing by its silence
        judged += 1
        if abs(now - heartbeat) > ALLOWED:
            by_their_rule.append(name)
        renewed = _renewed(leases.get(name))
        if renewed is None:
            if abs(now - heartbeat) > ALLOWED:
                found.append(f"{name}: its last heartbeat is {_apart(heartbeat, now)}")
        elif renewed - now > allowance or now - renewed > _life(leases[name]) + allowance:
            found.append(f"{name}: it renewed its Lease {_apart(renewed, now)}")
    if not judged:
        return skipped(*about, "no node is ready")
    note = ""
    if bool(found) != bool(by_their_rule):
        verdict = f"‼ clock skew detected for node(s): {', '.join(by_their_rule)}" if by_their_rule else "√"
        note = theirs(
            verdict, "it takes the heartbeat, of every five minutes; this takes the Lease, of every ten seconds"
        )
    if evidence.leases.problem:
        note = "\n".join(part for part in (note, f"heartbeats only; the Leases: {evidence.leases.problem}") if part)
    head = "A leaf that identity signs is not valid yet, or no longer, on such a node:"
    return result(*about, listed(head, found), note=note)


def _heartbeat(node: Object) -> datetime | None:
    for condition in (node.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "Ready" and condition.get("status") == "True":
            text = condition.get("lastHeartbeatTime")
            return datetime.fromisoformat(text) if text else None
    return None


def _renewed(lease: Object | None) -> datetime | None:
    text = ((lease or {}).get("spec") or {}).get("renewTime")
    return datetime.fromisoformat(text) if text else None


def _life(lease: Object) -> timedelta:
    seconds = (lease.get("spec") or {}).get("leaseDurationSeconds")
    return timedelta(seconds=int(seconds)) if seconds else LEASE_LIFE


def _apart(then: datetime, now: datetime) -> str:
    seconds = round((now - then).total_seconds())
    return f"{seconds} s ago" if seconds >= 0 else f"{-seconds} s in the future"
