"""The lab's asynchronous Kubernetes client: plain requests, watches, informers.

Every part of the lab but the API server itself (controllers, kubelets, mesh parts) speaks to the cluster through this
module alone, so all of it runs against any API server for which there is a kubeconfig. Objects are plain dictionaries
as JSON brought them; an informer's objects are shared between all its readers and must not be modified (copy first).
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, urlencode

from infra.lab import kubeconfig
from infra.lab.http1 import Answer, NoAnswerError, Pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

JSON = dict[str, Any]
Key = tuple[str, str]  # (namespace, name); namespace "" for cluster-scoped objects

log = logging.getLogger(__name__)
_RANDOM = random.Random()

PATCH_TYPES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}
CONNECTIONS = 16  # requests in flight per client; more only makes the same server work on more at once
PAGE = 500  # items per LIST page, as kubectl and client-go's pager
RETRIES_WHEN_TOLD = 10  # client-go gives up after ten answers with Retry-After


class ApiError(Exception):
    """A request that the API server refused, or that never got an answer.

    `status` is the HTTP code, 0 when no answer arrived (then whether the request took effect is unknown). `reason` is
    the machine-readable reason of the Status ("NotFound", "Conflict", "AlreadyExists", ...; "ConnectionError" when
    status is 0), `message` its text, `body` the answer.
    """

    def __init__(self, status: int, reason: str, message: str, body: Any = None) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.body = body


class KubeClient:
    """One identity's connection pool to one API server.

    Paths are those of the REST API ("/api/v1/namespaces/default/pods"); keyword arguments become query parameters
    (bool as true/false). Every method raises ApiError.
    """

    def __init__(self, endpoint: kubeconfig.Endpoint, *, user_agent: str = "capstan-lab") -> None:
        self.endpoint = endpoint
        self.user_agent = user_agent
        self._token = endpoint.token
        self._token_stamp: float | None = None
        self._headers = {"user-agent": user_agent, "accept": "application/json"}
        secure = endpoint.server.startswith("https:")
        tls = endpoint.ssl_context() if secure else None
        self._pool = Pool(endpoint.server, tls, endpoint.tls_server_name, limit=CONNECTIONS)

    @classmethod
    def from_kubeconfig(cls, path: Path | str, *, user_agent: str = "capstan-lab", context: str | None = None) -> Self:
        """A client with the identity of the kubeconfig's current (or named) context."""
        return cls(kubeconfig.load(path, context), user_agent=user_agent)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; running watches end."""
        await self._pool.close()

    async def get(self, path: str, **params: Any) -> JSON:
        """One object (or whatever JSON the path answers with)."""
        return _json(await self._request("GET", path, params))

    async def get_text(self, path: str, **params: Any) -> str:
        """A text answer, such as a container's log."""
        return (await self._request("GET", path, params, headers={"accept": "*/*"})).body.decode(errors="replace")

    async def list(self, path: str, **params: Any) -> JSON:
        """The whole list object; pages are followed and joined in `items`. metadata.resourceVersion is the one to
        watch from.
        """
        params.setdefault("limit", PAGE)
        whole = await self.get(path, **params)
        items = whole["items"] = whole.get("items") or []
        token = whole["metadata"].get("continue")
        while token:
            page = await self.get(path, **{**params, "continue": token})
            items.extend(page.get("items") or [])
            token = page["metadata"].get("continue")
        whole["metadata"].pop("continue", None)
        whole["metadata"].pop("remainingItemCount", None)
        return whole

    async def create(self, path: str, body: JSON, **params: Any) -> JSON:
        """POST `body` to a collection or a subresource such as .../eviction."""
        return _json(await self._request("POST", path, params, body))

    async def replace(self, path: str, body: JSON, **params: Any) -> JSON:
        """PUT the whole object (also .../status)."""
        return _json(await self._request("PUT", path, params, body))

    async def patch(self, path: str, body: Any, kind: str = "merge", **params: Any) -> JSON:
        """PATCH with kind "merge", "strategic", "json" (body is a list) or "apply" (pass fieldManager=, force=)."""
        return _json(await self._request("PATCH", path, params, body, headers={"content-type": PATCH_TYPES[kind]}))

    async def delete(self, path: str, body: JSON | None = None, **params: Any) -> JSON:
        """DELETE with optional DeleteOptions; the answer is a Status or the object that is now terminating."""
        return _json(await self._request("DELETE", path, params, body))

    async def watch(self, path: str, **params: Any) -> AsyncIterator[JSON]:
        """Events {"type", "object"} until the server ends the stream (normal end) or it breaks (ApiError status 0).

        An ERROR event (410 "too old" among them) is raised as ApiError. Pass resourceVersion= to start from a list.
        """
        # Servers end a watch by themselves; one silent for longer than that is dead, however alive its socket looks.
        seconds = params.setdefault("timeoutSeconds", _RANDOM.randint(300, 600))
        target = _target(path, {**params, "watch": True})
        try:
            async with self._pool.stream("GET", target, self._headers | self._auth(), seconds + 15.0) as (
                status,
                parts,
            ):
                if status >= 300:
                    raise _refused(Answer(status, {}, b"".join([part async for part in parts])))
                async for event in _events(parts):
                    if event["type"] == "ERROR":
                        raise _refused(
                            Answer(event["object"].get("code") or 500, {}, json.dumps(event["object"]).encode())
                        )
                    yield event
        except NoAnswerError as error:
            raise _no_answer("GET", path, error) from error

    def _auth(self) -> dict[str, str]:
        if (path := self.endpoint.token_file) is not None:
            stamp = path.stat().st_mtime
            if stamp != self._token_stamp:
                self._token, self._token_stamp = path.read_text().strip(), stamp
        return {"authorization": f"Bearer {self._token}"} if self._token else {}

    async def _request(
        self, method: str, path: str, params: JSON, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        content = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        kind = {} if body is None else {"content-type": "application/json"}
        target = _target(path, params)
        attempt = 0
        while True:
            every = self._headers | kind | (headers or {}) | self._auth()
            try:
                answer = await self._pool.request(method, target, every, content)
            except NoAnswerError as error:
                raise _no_answer(method, path, error) from error
            if answer.status < 300:
                return answer
            # The server says when to come back on 429 and on 5xx that it knows to be passing: as client-go, obey.
            wait = answer.headers.get("retry-after", "")
            attempt += 1
            passing = answer.status in (429, 500, 503, 504) and wait.isdigit()
            if not passing or attempt > RETRIES_WHEN_TOLD:
                raise _refused(answer)
            await asyncio.sleep(int(wait))


class Informer:
    """A live copy of one collection: list, then watch, then list again whenever the watch cannot go on.

    `objects` maps (namespace, name) to the newest version seen. Handlers run synchronously, in order, as
    handler(type, old, new) with type ADDED, MODIFIED or DELETED; for DELETED, `new` is the last state. After a
    re-list, handlers get the differences only, so no change is lost and none is repeated.
    """

    def __init__(self, client: KubeClient, path: str, **params: Any) -> None:
        self.client = client
        self.path = path
        self.params = params
        self.objects: dict[Key, JSON] = {}
        self._handlers: list[Callable[[str, JSON | None, JSON], None]] = []
        self._seen = 0  # the newest version the watch has told of
        self._synced = asyncio.Event()
        self._waiters: set[asyncio.Future[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def on_change(self, handler: Callable[[str, JSON | None, JSON], None]) -> None:
        """Call `handler` for every change from now on, first as ADDED for all objects already known."""
        self._handlers.append(handler)
        for item in list(self.objects.values()):
            handler("ADDED", None, item)

    def start(self) -> Self:
        """Begin in the background; idempotent."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"informer {self.path}")
        return self

    async def synced(self) -> Self:
        """Start if need be, and return once the first list is in `objects`."""
        self.start()
        await self._synced.wait()
        return self

    async def stop(self) -> None:
        """End the watch; `objects` stays as it was."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def get(self, namespace: str, name: str) -> JSON | None:
        """The object, or None."""
        return self.objects.get((namespace, name))

    def observe(self, item: JSON) -> None:
        """Take the answer to one's own write into `objects` now, instead of acting on the past until the watch brings
        it.

        Resource versions are compared as numbers (documented since Kubernetes 1.35; true of every server before).
        """
        known = self.objects.get(key_of(item))
        newest = int(item["metadata"]["resourceVersion"])
        floor = int(known["metadata"]["resourceVersion"]) if known else self._seen
        if newest > floor:  # at or below `_seen` without being known: it has been deleted since
            self._apply("MODIFIED", item)

    async def changed(self) -> None:
        """Return at the next change of any object. Changes between two calls are not remembered: check, then wait,
        without awaiting between.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    async def wait_for(self, condition: Callable[[dict[Key, JSON]], bool], timeout: float | None = None) -> None:  # noqa: ASYNC109 - seconds
        """Return once `condition(objects)` holds; raises TimeoutError after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            await self.synced()
            while not condition(self.objects):
                await self.changed()

    async def _run(self) -> None:
        failures = 0
        version = ""
        while True:
            try:
                if not version:
                    version = await self._relist()
                began = asyncio.get_running_loop().time()
                async for event in self.client.watch(
                    self.path, resourceVersion=version, allowWatchBookmarks=True, **self.params
                ):
                    version = event["object"]["metadata"]["resourceVersion"]
                    self._seen = int(version)
                    failures = 0
                    if event["type"] != "BOOKMARK" and not self._stale(event):
                        self._apply(event["type"], event["object"])
                if asyncio.get_running_loop().time() - began < 1.0:
                    failures += 1  # a server that ends every watch at once must not be asked without pause
                    await asyncio.sleep(min(0.1 * 2**failures, 10.0))
            except ApiError as error:
                if error.status == 410 or error.reason == "Expired":
                    version = ""
                    if failures == 0:  # answered by a new list at once; a server that says so twice in a row must wait
                        failures = 1
                        continue
                elif error.status:
                    version = ""
                log.debug("watch %s: %s", self.path, error)
                failures += 1
                # client-go's reflector: 0.8 s doubling to 30 s, with jitter. A lab starts from less, its API server
                # restarts quickly.
                await asyncio.sleep(min(0.1 * 2**failures, 10.0) * _RANDOM.uniform(0.75, 1.25))

    async def _relist(self) -> str:
        whole = await self.client.list(self.path, **self.params)
        fresh = {key_of(item): item for item in whole["items"]}
        for key in [key for key in self.objects if key not in fresh]:
            self._apply("DELETED", self.objects[key])
        for key, item in fresh.items():
            item.setdefault("apiVersion", whole.get("apiVersion"))  # items of built-in lists carry neither
            item.setdefault("kind", (whole.get("kind") or "").removesuffix("List"))
            known = self.objects.get(key)
            if known is not None and known["metadata"]["uid"] != item["metadata"]["uid"]:
                self._apply("DELETED", known)
                known = None
            if known is None or known["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
                self._apply("ADDED" if known is None else "MODIFIED", item)
        version = str(whole["metadata"]["resourceVersion"])
        self._seen = int(version)
        self._synced.set()
        return version

    def _stale(self, event: JSON) -> bool:
        """True for an event about a version that `observe` has already brought, or overtaken."""
        known = self.objects.get(key_of(event["object"]))
        if known is None:
            return False
        ours, theirs = (int(item["metadata"]["resourceVersion"]) for item in (known, event["object"]))
        # What is newer than a deletion is another object of the same name.
        return ours > theirs if event["type"] == "DELETED" else ours >= theirs

    def _apply(self, kind: str, item: JSON) -> None:
        key = key_of(item)
        old = self.objects.get(key)
        if kind == "DELETED":
            self.objects.pop(key, None)
        else:
            self.objects[key] = item
            kind = "ADDED" if old is None else "MODIFIED"
        for handler in self._handlers:
            try:
                handler(kind, old, item)
            except Exception:
                log.exception("a handler of informer %s failed on %s %s", self.path, kind, key)
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


def key_of(item: JSON) -> Key:
    """(namespace, name) of an object; namespace "" when cluster-scoped."""
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


async def _events(parts: AsyncIterator[bytes]) -> AsyncIterator[JSON]:
    rest = b""
    async for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            if line:
                yield json.loads(line)


def _target(path: str, params: JSON) -> str:
    """Path and query as they go on the request line."""
    query = {k: str(v).lower() if isinstance(v, bool) else str(v) for k, v in params.items() if v is not None}
    quoted = quote(path, safe="/:@!$&'()*+,;=~")
    return f"{quoted}?{urlencode(query)}" if query else quoted


def _json(answer: Answer) -> JSON:
    parsed: JSON = json.loads(answer.body)
    return parsed


def _refused(answer: Answer) -> ApiError:
    try:
        body = json.loads(answer.body)
        return ApiError(answer.status, body.get("reason") or "", body.get("message") or "", body)
    except (ValueError, AttributeError):
        text = answer.body.decode(errors="replace")
        return ApiError(answer.status, "", text[:500].strip(), text)


def _no_answer(method: str, path: str, error: Exception) -> ApiError:
    return ApiError(0, "ConnectionError", f"{method} {path}: no answer: {error}")


class SharedInformers:
    """One informer per collection for a whole process, however many readers it has."""

    def __init__(self, client: KubeClient) -> None:
        self.client = client
        self._informers: dict[tuple[str, str], Informer] = {}

    def of(self, path: str, **params: Any) -> Informer:
        """The started informer of a collection; await its `synced()` before trusting an absence."""
        key = (path, json.dumps(params, sort_keys=True))
        if key not in self._informers:
            self._informers[key] = Informer(self.client, path, **params).start()
        return self._informers[key]

    async def stop(self) -> None:
        """Stop all of them."""
        await asyncio.gather(*(informer.stop() for informer in self._informers.values()))
