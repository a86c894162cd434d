"""Leader election between istiods: the lock is an annotation on a ConfigMap, as client-go's ConfigMapLock has it.

istiod elects the writer of istio-ca-root-cert this way in all versions (pilot/pkg/leaderelection; Leases are used for
other elections only).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.lab.client import KubeClient

JSON = dict[str, Any]
ANNOTATION = "control-plane.alpha.kubernetes.io/leader"


class Election:
    """One candidate.

    Args:
        name: The ConfigMap.
        identity: The pod's name.
        ttl: How long a silent leader is respected; renewed four times in that time.
        clock: What time it is.
    """

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        identity: str,
        ttl: timedelta,
        clock: Callable[[], datetime],
    ) -> None:
        self.leading = asyncio.Event()
        self.idle = asyncio.Event()  # the opposite, to wait for
        self.idle.set()
        self._client = client
        self._collection = f"/api/v1/namespaces/{namespace}/configmaps"
        self._namespace, self._name = namespace, name
        self._identity, self._ttl = identity, ttl
        self._clock = clock
        self._watched: tuple[str, datetime] | None = None
        """Another's record and when it was first seen: clocks of two machines are not compared."""

    async def run(self) -> None:
        """Try, and once leading renew, until cancelled; then give the lock back."""
        try:
            while True:
                with contextlib.suppress(ApiError):
                    self._set(leading=await self._try())
                await asyncio.sleep(self._ttl.total_seconds() / 4)
        finally:
            if self.leading.is_set():
                with contextlib.suppress(ApiError, TimeoutError):
                    async with asyncio.timeout(1):
                        await self._release()

    def _set(self, *, leading: bool) -> None:
        for event, wanted in ((self.leading, leading), (self.idle, not leading)):
            if wanted:
                event.set()
            else:
                event.clear()

    async def _try(self) -> bool:
        now = self._clock()
        try:
            item = await self._client.get(f"{self._collection}/{self._name}")
        except ApiError as error:
            if error.status != 404:
                raise
            body = {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {
                    "name": self._name,
                    "namespace": self._namespace,
                    "annotations": {ANNOTATION: self._record(now, now, 0)},
                },
            }
            await self._client.create(self._collection, body)
            return True
        text = (item["metadata"].get("annotations") or {}).get(ANNOTATION, "")
        record: JSON = json.loads(text) if text else {}
        holder = record.get("holderIdentity", "")
        if holder not in ("", self._identity) and not self._expired(text, now):
            return False
        mine = holder == self._identity
        since = _parse(record["acquireTime"]) if mine else now
        changes = int(record.get("leaderTransitions", 0)) + (0 if mine else 1)
        await self._write(item, self._record(since, now, changes))
        return True

    def _expired(self, text: str, now: datetime) -> bool:
        if self._watched is None or self._watched[0] != text:
            self._watched = (text, now)
        return now - self._watched[1] > self._ttl

    async def _release(self) -> None:
        item = await self._client.get(f"{self._collection}/{self._name}")
        record = json.loads((item["metadata"].get("annotations") or {}).get(ANNOTATION) or "{}")
        if record.get("holderIdentity") == self._identity:
            record |= {"holderIdentity": "", "leaseDurationSeconds": 1}
            await self._write(item, json.dumps(record))

    async def _write(self, item: JSON, text: str) -> None:
        annotations = {**(item["metadata"].get("annotations") or {}), ANNOTATION: text}
        body = {**item, "metadata": {**item["metadata"], "annotations": annotations}}
        await self._client.replace(f"{self._collection}/{self._name}", body)

    def _record(self, since: datetime, now: datetime, changes: int) -> str:
        record = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._ttl.total_seconds())),
            "acquireTime": f"{since.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "renewTime": f"{now.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
            "leaderTransitions": changes,
        }
        return json.dumps(record, separators=(",", ":"))


def _parse(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))
