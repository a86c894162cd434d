"""What all controllers share: a queue of keys with retries, indexes over informers, owner references, small rules
about pods.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from infra.lab.client import ApiError, Informer, Key, KubeClient, SharedInformers, key_of

JSON = dict[str, Any]
Reconcile = Callable[[Key], Awaitable[float | None]]

log = logging.getLogger(__name__)


class Controller:
    """Runs `reconcile(key)` for every key added, one key at a time, several keys at once.

    Keys added while they are being worked on are worked on once more afterwards. `reconcile` may return seconds after
    which it wants the key again; when it raises ApiError the key is retried with a growing pause, as client-go's
    rate-limited work queue does.
    """

    def __init__(self, name: str, reconcile: Reconcile, workers: int = 8, settle: float = 0.0) -> None:
        self.name = name
        # seconds an added key waits, so that changes in quick succession share one reconciliation
        self._settle = settle
        self._reconcile = reconcile
        self._limit = asyncio.Semaphore(workers)
        self._waiting: set[Key] = set()  # to be worked on; a running one in here runs again
        self._running: set[Key] = set()
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: dict[Key, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    def add(self, key: Key) -> None:
        """Work on `key` soon."""
        if self._settle:
            self.add_after(key, self._settle)
        else:
            self._add(key)

    def _add(self, key: Key) -> None:
        if key not in self._waiting and not self._stopped:
            self._waiting.add(key)
            if key not in self._running:
                self._launch(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Work on `key` in some seconds; an earlier appointment stays."""
        loop = asyncio.get_running_loop()
        known = self._timers.get(key)
        if known is not None:
            if known.when() <= loop.time() + seconds:
                return
            known.cancel()
        if not self._stopped:
            self._timers[key] = loop.call_later(seconds, self._due, key)

    async def stop(self) -> None:
        """Stop; reconciliations in flight are cancelled."""
        self._stopped = True
        for timer in self._timers.values():
            timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self._add(key)

    def _launch(self, key: Key) -> None:
        self._running.add(key)
        task = asyncio.create_task(self._work(key), name=f"{self.name} {'/'.join(key)}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, key: Key) -> None:
        async with self._limit:
            self._waiting.discard(key)
            try:
                again = await self._reconcile(key)
            except ApiError as error:
                if not _namespace_ends(error):
                    self._retry(key, error)
            except Exception:
                log.exception("controller %s failed on %s", self.name, key)
                self._retry(key, None)
            else:
                self._failures.pop(key, None)
                if again is not None:
                    self.add_after(key, max(again, 0.0))
        self._running.discard(key)
        if key in self._waiting and not self._stopped:
            self._launch(key)

    def _retry(self, key: Key, error: ApiError | None) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        pause = min(0.005 * 2.0**failures, 30.0)
        if error is not None and error.status not in (404, 409):
            log.info("controller %s on %s: %s; again in %.2f s", self.name, "/".join(key), error, pause)
        self.add_after(key, pause)


def _namespace_ends(error: ApiError) -> bool:
    """Refused because the namespace is being deleted: what is wanted there no longer matters."""
    if error.status != 403 or not isinstance(error.body, dict):
        return False
    causes = (error.body.get("details") or {}).get("causes") or []
    return any(cause.get("reason") == "NamespaceTerminating" for cause in causes)


class Index:
    """Objects of an informer by a computed value, kept up to date."""

    def __init__(self, informer: Informer, values: Callable[[JSON], Iterable[Any]]) -> None:
        self._values = values
        self._found: dict[Any, dict[Key, JSON]] = {}
        informer.on_change(self._changed)

    def get(self, value: Any) -> list[JSON]:
        """All objects with this value."""
        return list(self._found.get(value, {}).values())

    def _changed(self, kind: str, old: JSON | None, new: JSON) -> None:
        key = key_of(new)
        if old is not None:
            for value in self._values(old):
                bucket = self._found.get(value)
                if bucket is not None:
                    bucket.pop(key, None)
                    if not bucket:
                        del self._found[value]
        if kind != "DELETED":
            for value in self._values(new):
                self._found.setdefault(value, {})[key] = new


class Context:
    """What a controller is given: a client, shared informers and shared indexes."""

    def __init__(self, client: KubeClient, informers: SharedInformers) -> None:
        self.client = client
        self.informers = informers
        self._by_owner: dict[str, Index] = {}
        self._orphans: dict[str, Index] = {}

    def informer(self, path: str) -> Informer:
        """The shared informer of a collection over all namespaces."""
        return self.informers.of(path)

    def by_owner(self, path: str) -> Index:
        """Objects by the uid of their controlling owner."""
        if path not in self._by_owner:
            self._by_owner[path] = Index(self.informer(path), lambda o: [r["uid"]] if (r := controller_of(o)) else [])
        return self._by_owner[path]

    def orphans(self, path: str) -> Index:
        """Objects without a controlling owner, by namespace."""
        if path not in self._orphans:
            self._orphans[path] = Index(
                self.informer(path), lambda o: [] if controller_of(o) else [o["metadata"].get("namespace", "")]
            )
        return self._orphans[path]

    async def write_status(self, collection: str, item: JSON, status: JSON) -> JSON:
        """PUT .../status if `status` differs; returns the newest object. Raises ApiError (409 when ours was stale)."""
        if item.get("status") == status:
            return item
        path = f"{path_of(collection, item)}/status"
        answer = await self.client.replace(path, {**item, "status": status})
        self.informer(collection).observe(answer)
        return answer


def path_of(collection: str, item: JSON) -> str:
    """The path of an object, given the path of its collection over all namespaces ("/apis/apps/v1/deployments")."""
    namespace, name = key_of(item)
    return object_path(collection, namespace, name)


def object_path(collection: str, namespace: str, name: str = "") -> str:
    """Insert the namespace (if any) and append the name (if any)."""
    root, _, plural = collection.rpartition("/")
    path = f"{root}/namespaces/{namespace}/{plural}" if namespace else collection
    return f"{path}/{name}" if name else path


def controller_of(item: JSON) -> JSON | None:
    """The owner reference with controller: true, or None."""
    for reference in item["metadata"].get("ownerReferences") or []:
        if reference.get("controller"):
            found: JSON = reference
            return found
    return None


def owner_reference(owner: JSON, api_version: str, kind: str) -> JSON:
    """A controlling reference, as controllers put it on what they create."""
    metadata = owner["metadata"]
    return {
        "apiVersion": api_version,
        "kind": kind,
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def selects(selector: JSON | None, labels: JSON | None) -> bool:
    """Whether a LabelSelector matches. None matches nothing, an empty selector everything (as in apps/v1 and
    policy/v1).
    """
    if selector is None:
        return False
    labels = labels or {}
    if any(labels.get(k) != v for k, v in (selector.get("matchLabels") or {}).items()):
        return False
    for rule in selector.get("matchExpressions") or []:
        key, values = rule["key"], rule.get("values") or []
        holds = {
            "In": key in labels and labels[key] in values,
            "NotIn": labels.get(key) not in values if key in labels else True,
            "Exists": key in labels,
            "DoesNotExist": key not in labels,
        }[rule["operator"]]
        if not holds:
            return False
    return True


def percent(value: Any, of: int, *, up: bool) -> int:
    """An IntOrString ("25%" or 3) of a number, rounded up or down."""
    if isinstance(value, int):
        return value
    share = int(str(value).rstrip("%")) * of
    return -(-share // 100) if up else share // 100


def compact(status: JSON, keep: Iterable[str] = ()) -> JSON:
    """Drop zero counters and empty lists, as Go's omitempty does, except those in `keep`."""
    return {k: v for k, v in status.items() if k in keep or v not in (None, 0, "", [])}
