"""The memory store: objects of all resources under one counter of versions, with the history watches start from.

Everything happens on one event loop, so a call either commits as a whole or not at all. A resource (``pods``,
``deployments.apps``) holds objects by (namespace, name); every write takes the next resourceVersion, as with etcd's
revision. Objects handed in and out are not copied: whoever changes one takes a copy first.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Key = tuple[str, str]
EventType = Literal["ADDED", "MODIFIED", "DELETED"]


class ConflictError(Exception):
    """The object is not at the version the writer saw."""


class TooOldError(Exception):
    """The history no longer reaches back to the version asked for; `oldest` is the first one that works."""

    def __init__(self, asked: int, oldest: int) -> None:
        super().__init__(f"too old resource version: {asked} ({oldest})")
        self.asked = asked
        self.oldest = oldest


def dumps(obj: object) -> bytes:
    """JSON as the server writes it: compact, UTF-8."""
    return json.dumps(obj, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


class Stored:
    """One version of one object. `raw` is its JSON, made at most once and joined into lists and watch events."""

    __slots__ = ("_raw", "_variants", "key", "obj", "rv")

    def __init__(self, key: Key, obj: dict[str, Any], rv: int) -> None:
        self.key = key
        self.obj = obj
        self.rv = rv
        self._raw: bytes | None = None
        self._variants: dict[str, bytes] | None = None

    @property
    def raw(self) -> bytes:
        if self._raw is None:
            self._raw = dumps(self.obj)
        return self._raw

    def variant(self, name: str, make: Callable[[dict[str, Any]], object]) -> bytes:
        """JSON of another representation (partial metadata, table row), also made once."""
        if self._variants is None:
            self._variants = {}
        if name not in self._variants:
            self._variants[name] = dumps(make(self.obj))
        return self._variants[name]

    @property
    def labels(self) -> dict[str, str]:
        labels: dict[str, str] = self.obj["metadata"].get("labels") or {}
        return labels

    @property
    def uid(self) -> str:
        uid: str = self.obj["metadata"].get("uid", "")
        return uid


@dataclass(frozen=True)
class Event:
    """One commit. `new` is the object after it (for DELETED: its last state, carrying the deletion's version)."""

    type: EventType
    rv: int
    new: Stored
    old: Stored | None
    at: float


@dataclass(eq=False)
class Subscription:
    """A watcher's mailbox. `events` holds what was committed since it was opened; `wake` is set when that changes."""

    resource: str
    events: deque[Event] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False

    def push(self, event: Event) -> None:
        self.events.append(event)
        self.wake.set()

    def close(self) -> None:
        self.closed = True
        self.wake.set()


class Resource:
    """The objects of one resource, sorted by key as etcd sorts them, and the events that led to them."""

    def __init__(self) -> None:
        self.objects: dict[Key, Stored] = {}
        self.keys: list[Key] = []
        self.history: deque[Event] = deque()
        # events at and below this version are forgotten
        self.floor = 0
        self.subscriptions: set[Subscription] = set()

    def put(self, stored: Stored) -> None:
        if stored.key not in self.objects:
            bisect.insort(self.keys, stored.key)
        self.objects[stored.key] = stored

    def drop(self, key: Key) -> None:
        del self.objects[key]
        del self.keys[bisect.bisect_left(self.keys, key)]

    def in_namespace(self, namespace: str) -> Iterator[Stored]:
        """All objects ("" = of every namespace) in key order."""
        if not namespace:
            for key in self.keys:
                yield self.objects[key]
            return
        for index in range(bisect.bisect_left(self.keys, (namespace, "")), len(self.keys)):
            key = self.keys[index]
            if key[0] != namespace:
                return
            yield self.objects[key]


class Store:
    """All resources. `history_events` and `history_seconds` bound what watches and paged lists can go back to."""

    def __init__(
        self,
        history_events: int = 50_000,
        history_seconds: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.rv = 0
        self.compacted = 0
        self._resources: dict[str, Resource] = {}
        self._history_events = history_events
        self._history_seconds = history_seconds
        self._clock = clock
        self._listeners: list[tuple[frozenset[str], Callable[[str, Event], None]]] = []

    def resource(self, resource: str) -> Resource:
        return self._resources.setdefault(resource, Resource())

    @property
    def resources(self) -> Iterable[str]:
        return self._resources.keys()

    def on_commit(self, resources: Iterable[str], callback: Callable[[str, Event], None]) -> None:
        """Call `callback(resource, event)` right after each commit to one of `resources` (empty = all)."""
        self._listeners.append((frozenset(resources), callback))

    # Reading

    def get(self, resource: str, namespace: str, name: str) -> Stored | None:
        found = self._resources.get(resource)
        return found.objects.get((namespace, name)) if found else None

    def objects(self, resource: str, namespace: str = "") -> list[Stored]:
        """Current objects in key order; `namespace` "" means all of them."""
        return list(self.resource(resource).in_namespace(namespace))

    def compact(self) -> None:
        """Forget every version before now, for ever: lists and watches from there get 410 (etcd compaction)."""
        self.compacted = self.rv
        self.forget_all()

    def objects_at(self, resource: str, namespace: str, rv: int) -> list[Stored]:
        """The objects as they were at version `rv`.

        Raises TooOldError when the history does not reach back that far.
        """
        found = self.resource(resource)
        if rv < self.compacted:
            raise TooOldError(rv, self.compacted)
        if rv >= self.rv or not found.history or found.history[-1].rv <= rv:
            return self.objects(resource, namespace)
        if rv < found.floor:
            raise TooOldError(rv, found.floor)
        state = {stored.key: stored for stored in found.in_namespace(namespace)}
        for event in reversed(found.history):
            if event.rv <= rv:
                break
            if namespace and event.new.key[0] != namespace:
                continue
            if event.old is None:
                state.pop(event.new.key, None)
            else:
                state[event.old.key] = event.old
        return [state[key] for key in sorted(state)]

    def count(self, resource: str) -> int:
        return len(self.resource(resource).objects)

    # Writing

    def create(self, resource: str, key: Key, obj: dict[str, Any]) -> Stored:
        """Raises ConflictError when the key is taken."""
        if key in self.resource(resource).objects:
            raise ConflictError
        return self._commit(resource, "ADDED", key, obj, None)

    def update(self, resource: str, key: Key, obj: dict[str, Any], expected_rv: int) -> Stored:
        """Replace the object if it is still at `expected_rv`; raises ConflictError otherwise (also when it is gone)."""
        old = self.resource(resource).objects.get(key)
        if old is None or old.rv != expected_rv:
            raise ConflictError
        return self._commit(resource, "MODIFIED", key, obj, old)

    def delete(self, resource: str, key: Key, expected_rv: int, last: dict[str, Any] | None = None) -> Stored:
        """Remove the object if it is still at `expected_rv`.

        The DELETED event and the answer carry `last` (default: the stored state) with the version of the deletion.
        """
        old = self.resource(resource).objects.get(key)
        if old is None or old.rv != expected_rv:
            raise ConflictError
        obj = dict(last if last is not None else old.obj)
        obj["metadata"] = dict(obj["metadata"])
        return self._commit(resource, "DELETED", key, obj, old)

    def _commit(self, resource: str, kind: EventType, key: Key, obj: dict[str, Any], old: Stored | None) -> Stored:
        self.rv += 1
        obj["metadata"]["resourceVersion"] = str(self.rv)
        new = Stored(key, obj, self.rv)
        found = self.resource(resource)
        if kind == "DELETED":
            found.drop(key)
        else:
            found.put(new)
        event = Event(kind, self.rv, new, old, self._clock())
        found.history.append(event)
        self._forget(found)
        for subscription in found.subscriptions:
            subscription.push(event)
        for resources, callback in self._listeners:
            if not resources or resource in resources:
                callback(resource, event)
        return new

    def _forget(self, found: Resource) -> None:
        oldest = self._clock() - self._history_seconds
        history = found.history
        while history and (len(history) > self._history_events or history[0].at < oldest):
            found.floor = history.popleft().rv

    # Watching

    def forget_all(self, resource: str = "") -> None:
        """Compact: watches and lists from before now get 410 (of one resource or of all)."""
        for name, found in self._resources.items():
            if resource in ("", name):
                found.history.clear()
                found.floor = self.rv

    def subscribe(self, resource: str, since: int | None) -> Subscription:
        """Events after version `since` (None = from now on), then live ones.

        Raises TooOldError when events after `since` have been forgotten.
        """
        found = self.resource(resource)
        subscription = Subscription(resource)
        if since is not None:
            if since < max(found.floor, self.compacted):
                raise TooOldError(since, max(found.floor, self.compacted))
            start = len(found.history)
            while start and found.history[start - 1].rv > since:
                start -= 1
            subscription.events.extend(list(found.history)[start:])
            if subscription.events:
                subscription.wake.set()
        found.subscriptions.add(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self.resource(subscription.resource).subscriptions.discard(subscription)

    def close_watches(self) -> None:
        for found in self._resources.values():
            for subscription in found.subscriptions:
                subscription.close()
