"""Kubernetes Events as client-go writes them: aggregated, counted, rate-limited, and therefore sometimes lost.

Rules (k8s.io/client-go tools/record, defaults; golden traces 04, 09 and 12):
- From the 10th different message of one kind (source, object, type, reason) within 10 minutes on, the message gets
  the prefix "(combined from similar events): " and all such events share one object.
- An event equal to an earlier one raises the count of that object (a PATCH) instead of creating another.
- What the API server could not be asked is tried again; what it refused is not.
- Each (source, object) may write 25 Events, plus one every five minutes; the others are dropped without a trace.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError, KubeClient
from infra.lab.linkerd.gotext import rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_DIFFERENT_MESSAGES = 10
AGGREGATION_WINDOW_SECONDS = 600.0
BURST = 25
SECONDS_PER_TOKEN = 300.0
TRIES, RETRY_SECONDS = 12, 10.0
COMBINED = "(combined from similar events): "

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """The object that an Event is about."""

    kind: str
    api_version: str
    namespace: str
    name: str

    def to_json(self) -> dict[str, str]:
        """As `involvedObject`."""
        return {"kind": self.kind, "namespace": self.namespace, "name": self.name, "apiVersion": self.api_version}


@dataclass(frozen=True)
class Write:
    """One write to the API: a new Event object, or a patch that raises an existing one's count."""

    namespace: str
    name: str
    body: dict[str, Any]
    is_patch: bool


@dataclass
class _Seen:
    name: str
    count: int
    first: str


class Correlator:
    """Decides what becomes of each event; pure but for the clocks it is given."""

    def __init__(
        self,
        component: str,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._component = component
        self._clock = clock
        self._monotonic = monotonic
        self._messages: dict[tuple[object, ...], tuple[set[str], float]] = {}
        self._seen: dict[tuple[object, ...], _Seen] = {}
        self._budget: dict[Reference, tuple[float, float]] = {}
        self._last_stamp = 0

    def correlate(self, about: Reference, kind: str, reason: str, message: str) -> Write | None:
        """The write this event leads to, or None if it is dropped."""
        key: tuple[object, ...]
        message, key = self._aggregate(about, kind, reason, message)
        now = rfc3339(self._clock())
        seen = self._seen.get(key)
        if seen is None:
            seen = self._seen[key] = _Seen(f"{about.name}.{self._stamp():x}", 0, now)
        seen.count += 1
        if not self._take_token(about):
            return None
        if seen.count > 1:
            patch = {"count": seen.count, "lastTimestamp": now, "message": message}
            return Write(about.namespace, seen.name, patch, is_patch=True)
        return Write(about.namespace, seen.name, self._event(about, seen.name, kind, reason, message, now), False)

    def renew(self, write: Write, about: Reference, kind: str, reason: str, message: str) -> Write:
        """A creation in place of a patch whose object has gone meanwhile."""
        body = self._event(about, write.name, kind, reason, message, write.body["lastTimestamp"])
        body["count"] = write.body["count"]
        return Write(write.namespace, write.name, body, is_patch=False)

    def _aggregate(self, about: Reference, kind: str, reason: str, message: str) -> tuple[str, tuple[object, ...]]:
        group = (about, kind, reason)
        messages, last = self._messages.get(group, (set(), 0.0))
        now = self._monotonic()
        if now - last > AGGREGATION_WINDOW_SECONDS:
            messages = set()
        messages.add(message)
        self._messages[group] = (messages, now)
        if len(messages) < MAX_DIFFERENT_MESSAGES:
            return message, (*group, message)
        messages.pop()
        return COMBINED + message, group

    def _take_token(self, about: Reference) -> bool:
        now = self._monotonic()
        tokens, last = self._budget.get(about, (float(BURST), now))
        tokens = min(float(BURST), tokens + (now - last) / SECONDS_PER_TOKEN)
        allowed = tokens >= 1
        self._budget[about] = (tokens - 1 if allowed else tokens, now)
        return allowed

    def _stamp(self) -> int:
        self._last_stamp = max(self._last_stamp + 1, time.time_ns())
        return self._last_stamp

    def _event(self, about: Reference, name: str, kind: str, reason: str, message: str, now: str) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": about.namespace},
            "involvedObject": about.to_json(),
            "reason": reason,
            "message": message,
            "source": {"component": self._component},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
            "type": kind,
            "eventTime": None,
            "reportingComponent": "",
            "reportingInstance": "",
        }


class Recorder:
    """Writes events in the background, in order.

    What the API server refuses is lost; while it cannot be reached an event is tried twelve times, and the others wait.

    Args:
        pause: Seconds between two tries.
    """

    def __init__(self, client: KubeClient, component: str, pause: float = RETRY_SECONDS) -> None:
        self._pause = pause
        self._client = client
        self._correlator = Correlator(component)
        self._queue: asyncio.Queue[tuple[Reference, str, str, str]] = asyncio.Queue(maxsize=1000)

    def record(self, about: Reference, kind: str, reason: str, message: str) -> None:
        """Queue an event of type `kind` (Normal or Warning); a full queue drops it."""
        try:
            self._queue.put_nowait((about, kind, reason, message))
        except asyncio.QueueFull:
            log.debug("event dropped: %s %s", reason, message)

    async def run(self) -> None:
        """Write queued events until cancelled."""
        while True:
            about, kind, reason, message = await self._queue.get()
            write = self._correlator.correlate(about, kind, reason, message)
            if write is None:
                continue
            for _ in range(TRIES):
                try:
                    await self._send(write)
                except ApiError as error:
                    log.debug("event not written: %s", error)
                    if write.is_patch and error.status == 404:
                        write = self._correlator.renew(write, about, kind, reason, message)
                    elif error.status:
                        break
                    else:
                        await asyncio.sleep(self._pause)
                else:
                    break

    async def _send(self, write: Write) -> None:
        path = f"/api/v1/namespaces/{write.namespace}/events"
        if write.is_patch:
            await self._client.patch(f"{path}/{write.name}", write.body, kind="strategic")
        else:
            await self._client.create(path, write.body)
