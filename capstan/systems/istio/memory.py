"""What proxies held when they were last read, for looks between two that count (`capstan.systems.glancing`).

A sidecar takes leaf and roots together, when it renews; its agent does that at half of the leaf's life, a hundredth
sooner or later, and not before unless it starts anew (istio/istio security/pkg/nodeagent/cache/secretcache.go,
rotateTime; pilot-agent's SECRET_GRACE_PERIOD_RATIO and ..._JITTER). Until then it holds what it held. Read again are:

    whoever is due, or renews by another rule: ztunnels, files of Citadel's, proxies that istiod pushes changed roots to
    whoever was not read then, or said anything but a leaf and roots
    whose process is another one than the one that was read
    everybody, at the latest after `WHOLE` seconds: no rule of ours is a reason not to look at all

A metric (`istio_agent_cert_expiry_seconds`) would save nothing: it costs the same connection to the same pod, its
answer is longer than the two secrets', and it tells when a leaf ends, but not by whom it was made or what is trusted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from capstan.systems.istio.layout import PROXY
from capstan.systems.istio.pods import is_ztunnel
from capstan.systems.istio.proxies import certificate_volume
from capstan.systems.istio.versions import XDS_AGENT, flag

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capstan.cluster.values import Object
    from capstan.systems.istio.proxies import ProxyReading

WHOLE: Final = timedelta(minutes=10)
RATIO, JITTER = 0.5, 0.01
"""Of a leaf's life: what is left of it when it is renewed, and by how much that varies."""


@dataclass(frozen=True, slots=True)
class _Remembered:
    reading: ProxyReading
    process: str
    at: datetime
    due: datetime


class Memory:
    """One cluster's proxies, by the uid of their pod."""

    def __init__(self) -> None:
        self._held: dict[str, _Remembered] = {}

    def keep(self, readings: Iterable[ProxyReading], at: datetime) -> None:
        """Remember what was read of proxies whose next change can be foretold; forget whoever else was read.

        Args:
            at: When reading them began, aware UTC.
        """
        for reading in readings:
            uid, due = str(reading.pod["metadata"].get("uid", "")), renewal(reading)
            process = process_of(reading.pod)
            if uid and process and due is not None:
                self._held[uid] = _Remembered(reading, process, at, due)
            else:
                self._held.pop(uid, None)

    def recall(self, pod: Object, at: datetime) -> ProxyReading | None:
        """What a pod's proxy holds, if it cannot hold anything else than when it was read; else None.

        Args:
            pod: As it is listed now.
            at: Now, aware UTC.
        """
        held = self._held.get(str(pod["metadata"].get("uid", "")))
        if held is None or held.process != process_of(pod) or at >= held.due or at - held.at >= WHOLE:
            return None
        return replace(held.reading, pod=pod)

    def only(self, pods: Iterable[Object]) -> None:
        """Forget all others: they are gone."""
        there = {str(pod["metadata"].get("uid", "")) for pod in pods}
        self._held = {uid: held for uid, held in self._held.items() if uid in there}


def renewal(reading: ProxyReading) -> datetime | None:
    """Before this no proxy takes another leaf or other roots than were read; None where no rule says so.

    The life is reckoned from notBefore, which is earlier than the moment that the agent reckons from.
    """
    by_rule = not is_ztunnel(reading.pod) and not certificate_volume(reading.pod)
    if not by_rule or reading.unreadable or reading.trusts is None or not reading.chain:
        return None
    if flag(reading.env, XDS_AGENT, False):
        return None
    leaf = reading.chain[0]
    left = _share(reading.env, "SECRET_GRACE_PERIOD_RATIO", RATIO) + _share(
        reading.env, "SECRET_GRACE_PERIOD_RATIO_JITTER", JITTER
    )
    return leaf.not_after - (leaf.not_after - leaf.not_before) * min(left, 1.0)


def process_of(pod: Object) -> str:
    """Names the running process of a pod's proxy; empty where its container does not run."""
    status = pod.get("status", {})
    for group in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(group) or []:
            if container.get("name") == PROXY:
                running = (container.get("state") or {}).get("running")
                return f"{container.get('containerID', '')} {running.get('startedAt', '')}" if running else ""
    return ""


def _share(env: dict[str, str], name: str, default: float) -> float:
    """A share of a leaf's life as an agent is told it; the whole of it where what it is told cannot be read."""
    try:
        return min(max(float(env.get(name, default)), 0.0), 1.0)
    except ValueError:
        return 1.0
