"""Which handler serves a subresource, or a resource that is only ever answered and never stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import pods, reading, scale, status, writing
from .kinds import KindInfo
from .request import Response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .api import Api
    from .request import Request

Handler = "Callable[[Api, Request], Awaitable[Response | None]]"

# (resource, subresource) -> handler; "" as subresource: the resource itself
HANDLERS: dict[tuple[str, str], Callable[[Api, Request], Awaitable[Response | None]]] = {
    ("pods", "binding"): pods.bind,
    ("bindings", ""): pods.bind,
    ("pods", "eviction"): pods.evict,
}
# Subresources which are the object itself under other rules.
_OBJECT_VIEWS = ("status", "finalize", "approval", "ephemeralcontainers", "resize")


async def handle(api: Api, request: Request) -> Response | None:
    """None when the handler took the connection over. 404 and 405 for what is not there."""
    kind, info = request.kind, request.info
    if info.subresource:
        found = kind.subresource(info.subresource)
        if found is None:
            raise status.resource_not_found()
        allowed = found.verbs
    else:
        allowed = kind.verbs
    if info.verb not in allowed:
        raise status.method_not_allowed()
    if api.access is not None and api.access.handles(request):
        return await api.access.handle(request, lambda: writing.decode(request, _body_kind(request)))
    handler = HANDLERS.get((kind.resource, info.subresource))
    if handler is not None:
        return await handler(api, request)
    if info.subresource == "scale":
        return await scale.handle(api, request)
    if info.subresource in _OBJECT_VIEWS:
        return await _view(api, request)
    if kind.resource == "componentstatuses" and info.verb == "list":
        return Response.json({"kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": []})
    raise status.resource_not_found()


def _body_kind(request: Request) -> KindInfo:
    """The kind of the body: a subresource may take another one than its resource (TokenRequest)."""
    sub = request.kind.subresource(request.info.subresource) if request.info.subresource else None
    if sub is None or not sub.group:
        return request.kind
    return KindInfo(sub.group, sub.version, sub.kind, request.kind.plural, request.kind.namespaced, virtual=True)


async def _view(api: Api, request: Request) -> Response:
    if request.method in ("GET", "HEAD"):
        return await reading.get(api, request)
    if request.method == "PUT":
        return await writing.update(api, request, request.info.subresource)
    return await writing.patch_object(api, request, request.info.subresource)
