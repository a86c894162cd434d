"""WATCH: a stream of events from a version on, with selectors, bookmarks and a clean end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from . import options, status, table
from .negotiation import Accepted, negotiate
from .objects import partial, render
from .reading import Selection
from .request import Response
from .store import Stored, Subscription, TooOldError, dumps

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from .api import Api
    from .kinds import KindInfo
    from .request import Request
    from .store import Event

# Without timeoutSeconds the real server picks 30 to 60 minutes at random.
DEFAULT_MINUTES = (30, 60)
# A bookmark goes out this long before the end of a watch, and once a minute.
BOOKMARK_BEFORE_END = 2.0
BOOKMARK_EVERY = 60.0


class Watch:
    """One open watch."""

    def __init__(self, api: Api, request: Request) -> None:
        self.api = api
        self.request = request
        self.kind: KindInfo = request.kind
        self.accepted: Accepted = negotiate(request.headers.get("accept", ""))
        options.check_list(request, watching=True)
        self.selection = Selection.of(request)
        self.namespace = request.info.namespace if self.kind.namespaced else ""
        self.bookmarks = request.query.flag("allowWatchBookmarks")
        seconds = request.query.integer("timeoutSeconds")
        low, high = DEFAULT_MINUTES
        self.seconds = float(seconds) if seconds else api.rng.uniform(low * 60, high * 60)
        version = request.query.get("resourceVersion")
        try:
            self.since = options.unsigned(version) if version else 0
        except ValueError as error:
            raise status.plain_error(f'resourceVersion: Invalid value: "{version}": {error}') from None
        self.initial = self.since == 0 or request.query.flag("sendInitialEvents")
        if request.query.get("sendInitialEvents") in ("false", "0"):
            self.initial = False
        self.columns_sent = False

    def open(self) -> Response:
        """Subscribe at once, so that nothing committed from now on is missed, and answer the stream."""
        store, resource = self.api.store, self.kind.storage
        too_old: TooOldError | None = None
        subscription = Subscription(resource)
        try:
            subscription = store.subscribe(resource, None if self.initial else self.since)
        except TooOldError as error:
            too_old = error
        initial = store.objects(resource, self.namespace) if self.initial else []
        return Response(stream=self._stream(subscription, initial, store.rv, too_old))

    async def _stream(
        self, subscription: Subscription, initial: list[Stored], at: int, too_old: TooOldError | None
    ) -> AsyncIterator[bytes]:
        if too_old is not None:
            error = status.gone_expired(str(too_old))
            yield self._line("ERROR", dumps(error.body()))
            return
        try:
            # An empty first chunk sends the headers: clients wait for them before they make changes.
            yield b""
            lines = [self._line("ADDED", self._body(stored)) for stored in initial if self._matches(stored)]
            if self.initial and self.bookmarks:
                lines.append(self._bookmark(at, {"k8s.io/initial-events-end": "true"}))
            if lines:
                yield b"".join(lines)
            async for chunk in self._live(subscription, max(at, self.since)):
                yield chunk
        finally:
            self.api.store.unsubscribe(subscription)

    async def _live(self, subscription: Subscription, at: int) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        end = loop.time() + self.seconds
        next_bookmark = min(end - BOOKMARK_BEFORE_END, loop.time() + BOOKMARK_EVERY)
        # A version of the future: events up to it are none of this watch's business.
        floor = self.since
        while not subscription.closed:
            chunk = []
            while subscription.events:
                event = subscription.events.popleft()
                at = event.rv
                if event.rv > floor and (line := self._event(event)):
                    chunk.append(line)
            subscription.wake.clear()
            if chunk:
                yield b"".join(chunk)
            now = loop.time()
            if now >= end:
                return
            if self.bookmarks and now >= next_bookmark:
                yield self._bookmark(max(at, self.api.store.rv))
                next_bookmark = (
                    end if now >= end - BOOKMARK_BEFORE_END else min(end - BOOKMARK_BEFORE_END, now + BOOKMARK_EVERY)
                )
            wait = (min(end, next_bookmark) if self.bookmarks else end) - now
            try:
                async with asyncio.timeout(max(wait, 0.001)):
                    await subscription.wake.wait()
            except TimeoutError:
                continue

    def _matches(self, stored: Stored) -> bool:
        if self.namespace and stored.key[0] != self.namespace:
            return False
        return self.selection.matches(stored)

    def _event(self, event: Event) -> bytes:
        """The line for a commit; empty when the selectors leave it out both before and after."""
        if self.namespace and event.new.key[0] != self.namespace:
            return b""
        if not self.selection:
            return self._line(event.type, self._body(event.new))
        before = event.old is not None and self.selection.matches(event.old)
        after = event.type != "DELETED" and self.selection.matches(event.new)
        if after:
            return self._line("MODIFIED" if before else "ADDED", self._body(event.new))
        if not before:
            return b""
        if event.type == "DELETED":
            return self._line("DELETED", self._body(event.new))
        # It stopped matching: the last state that did, with the version of the change.
        assert event.old is not None  # noqa: S101 - `before` says so; for the type checker
        last = dict(event.old.obj)
        last["metadata"] = {**last["metadata"], "resourceVersion": str(event.rv)}
        return self._line("DELETED", self._body(Stored(event.old.key, last, event.rv)))

    def _body(self, stored: Stored) -> bytes:
        if self.accepted.transform == "Table":
            return self._table(stored)
        if self.accepted.transform:
            version = self.accepted.version
            return stored.variant(f"partial/{version}", lambda obj: partial(obj, version))
        return render(stored, self.kind)

    def _table(self, stored: Stored) -> bytes:
        version = stored.obj["metadata"].get("resourceVersion", "")
        metadata = {"resourceVersion": version}
        body = table.render([stored], self.kind, metadata, self.request.query, self.api.now(), not self.columns_sent)
        self.columns_sent = True
        return body

    def _line(self, kind: str, body: bytes) -> bytes:
        return b'{"type":"' + kind.encode() + b'","object":' + body + b"}\n"

    def _bookmark(self, version: int, annotations: dict[str, str] | None = None) -> bytes:
        metadata: dict[str, object] = {"resourceVersion": str(version)}
        if annotations:
            metadata["annotations"] = annotations
        if self.accepted.transform == "PartialObjectMetadata":
            obj: dict[str, object] = partial({"metadata": metadata}, self.accepted.version)
        else:
            obj = {"kind": self.kind.kind, "apiVersion": self.kind.api_version, "metadata": metadata}
        return self._line("BOOKMARK", dumps(obj))
