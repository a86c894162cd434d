"""The HTTP application: every request passes `App.pipeline`, whose numbered steps are those of kube-apiserver."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import unicodedata
import uuid
from typing import TYPE_CHECKING, Any

from . import (
    deleting,
    discovery,
    fairness,
    health,
    openapi,
    options,
    reading,
    status,
    subresources,
    writing,
    yaml_codec,
)
from . import request as requests
from .aggregation import forwarded, not_served
from .faults import ConnectionDroppedError
from .negotiation import negotiate
from .rbac import Attributes
from .request import Query, Request, Response
from .status import ApiStatusError
from .watching import Watch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from .api import Api
    from .authn import Authenticator
    from .authz import Authorizer
    from .faults import Faults

log = logging.getLogger(__name__)

MAX_BODY = 3 * 1024 * 1024  # as the real server's limit for JSON bodies


class App:
    """An ASGI 3 application."""

    def __init__(self, api: Api, authenticator: Authenticator, authorizer: Authorizer, faults: Faults) -> None:
        self.api = api
        self.authenticator = authenticator
        self.authorizer = authorizer
        self.faults = faults

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"no {scope['type']} here")
        # Requests are cancelled when the server is killed: nobody is left to answer.
        with contextlib.suppress(asyncio.CancelledError):
            await self._answer(scope, receive, send)

    async def _answer(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        query = Query(scope["query_string"])
        method, path = scope["method"], scope["path"]
        info = requests.parse(method, path, query, self.api.registry)
        if info.watch_path and info.selected:
            query = query.limited_to(info.selected)
        request = Request(method, path, query, headers, scope, info)
        try:
            response = await self.pipeline(request, receive)
        except ApiStatusError as error:
            response = self._refusal(error, request)
        except ConnectionDroppedError:
            scope["state"]["abort"]()
            return
        except Exception:
            log.exception("%s %s failed", method, path)
            response = self._refusal(status.internal_error("the lab's API server failed; see its log"))
        if response is None:
            return  # the connection was taken over
        await self._send(request, response, receive, send)

    async def pipeline(
        self, request: Request, receive: Callable[[], Awaitable[MutableMapping[str, Any]]]
    ) -> Response | None:
        """One request from credentials to answer; raises ApiStatusError to refuse. None: connection taken over."""
        options.check_timeout(request)
        # 1. Authentication: who is this?
        request.user = self.authenticator.authenticate(request.scope, _attributes(request))
        # 2. Authorization: may they? Asked before anything is looked up, so that a 403 tells nothing about existence.
        self.authorizer.authorize(_attributes(request))
        # 3. The body, and faults a test asked for.
        request.body = await _read_body(receive)
        await self.faults.before(request)
        # 4. Decoding, admission, validation and storage, by verb. Writes do these in `writing` and `deleting`.
        response = await self._route(request)
        # 5. Faults after the commit.
        if response is not None:
            response = await self.faults.after(request, response)
        return response

    async def _route(self, request: Request) -> Response | None:
        info, api = request.info, self.api
        if request.path.startswith("/apis/") and (passed_on := await forwarded(api, request)) is not None:
            return passed_on
        if not info.is_resource:
            return self._outside(request)
        if request.method == "HEAD":
            raise status.method_not_allowed()
        if info.group not in api.registry.groups():
            raise not_served(api, info.group, info.version)
        kind = request.kind
        if kind.deprecation:
            request.warnings.append(kind.deprecation)
        if info.too_deep:
            raise status.resource_not_found()
        in_namespace = bool(info.namespace) and kind.resource != "namespaces"
        if in_namespace and not kind.namespaced:
            raise status.resource_not_found()
        if kind.namespaced and not in_namespace and (info.name or info.verb not in ("list", "watch")):
            raise status.method_not_allowed() if not info.name else status.resource_not_found()
        if info.subresource or kind.virtual:
            return await subresources.handle(api, request)
        return await self._verb(request)

    async def _verb(self, request: Request) -> Response:
        api, info = self.api, request.info
        named = bool(info.name)
        if info.verb not in request.kind.verbs:
            raise status.method_not_allowed()
        match info.verb:
            case "get":
                return await reading.get(api, request)
            case "list":
                return await reading.list_objects(api, request)
            case "watch":
                return Watch(api, request).open()
            case "create" if not named:
                return await writing.create(api, request)
            case "update" if named:
                return await writing.update(api, request)
            case "patch" if named:
                return await writing.patch_object(api, request)
            case "delete":
                return await deleting.delete(api, request)
            case "deletecollection":
                return await deleting.delete_collection(api, request)
        raise status.method_not_allowed()

    def _outside(self, request: Request) -> Response:
        """Paths which are no resources: discovery, health, version, OpenAPI, and the lab's own."""
        first = request.path.strip("/").partition("/")[0]
        if first in ("api", "apis"):
            return discovery.answer(self.api, request)
        if first == "openapi":
            return openapi.answer(self.api.registry, request)
        if not first and request.method == "GET":
            return Response.json({"paths": sorted([*discovery.paths(self.api.registry), *health.paths()])})
        if first == "lab":
            return self.faults.answer(request)
        if self.api.access is not None and request.method == "GET":
            document = self.api.access.openid(request.path, f"https://{request.headers.get('host', '')}")
            if document is not None:
                return document
        return health.answer(request)

    @staticmethod
    def _refusal(error: ApiStatusError, request: Request | None = None) -> Response:
        response = Response.text(error.message, error.code) if error.plain else Response.json(error.body(), error.code)
        if not error.plain and request is not None and _prefers_yaml(request):
            response = Response(error.code, yaml_codec.dump(error.body()), "application/yaml")
        response.headers.update(error.headers)
        return response

    async def _send(
        self,
        request: Request,
        response: Response,
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        headers = [
            (b"audit-id", str(uuid.UUID(int=self.api.rng.getrandbits(128), version=4)).encode()),
            (b"cache-control", b"no-cache, private"),
            (b"content-type", response.content_type.encode()),
        ]
        named = fairness.headers(request.user) if request.user is not None else {}
        headers += [(name.lower().encode(), value.encode()) for name, value in {**named, **response.headers}.items()]
        for text in dict.fromkeys(request.warnings):
            if any(unicodedata.category(char) == "Cc" for char in text):
                continue  # a header cannot carry it; the real server leaves it out too
            quoted = text.replace("\\", "\\\\").replace('"', '\\"')
            headers.append((b"warning", f'299 - "{quoted}"'.encode()))
        if response.stream is None:
            headers.append((b"content-length", str(len(response.body)).encode()))
        await send({"type": "http.response.start", "status": response.code, "headers": headers})
        if response.stream is None:
            body = b"" if request.method == "HEAD" else response.body
            await send({"type": "http.response.body", "body": body})
            return
        await _stream(response, receive, send)


def _prefers_yaml(request: Request) -> bool:
    try:
        return negotiate(request.headers.get("accept", "")).media_type == "application/yaml"
    except ApiStatusError:
        return False  # what cannot be agreed upon is told in JSON


async def _stream(
    response: Response,
    receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
    send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
) -> None:
    """Send chunks until the stream ends or the client goes away."""

    async def produce() -> None:
        if response.stream is None:
            return
        async for chunk in response.stream:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(produce()), asyncio.create_task(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await task


def _attributes(request: Request) -> Attributes:
    info = request.info
    if not info.is_resource:
        return Attributes(request.user, request.method.lower(), path=request.path)
    return Attributes(
        request.user,
        info.verb,
        info.group,
        info.version,
        info.resource,
        info.subresource,
        info.namespace,
        info.name or info.selected,
    )


async def _read_body(receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise status.bad_request("unexpected EOF")
        chunk: bytes = message.get("body", b"")
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_BODY:
            text = f"Request entity too large: limit is {MAX_BODY}"
            raise status.ApiStatusError(413, text, "RequestEntityTooLarge")
        if not message.get("more_body"):
            return b"".join(chunks)
