"""What a request asks for: a path read as verb, resource, namespace, name and subresource, as authorization sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from . import status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, MutableMapping

    from .kinds import KindInfo, Registry


class Query:
    """Query parameters; the first value counts, as for the real server's options."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.pairs = parse_qsl(raw.decode("latin-1"), keep_blank_values=True) if raw else []
        self._first: dict[str, str] = {}
        for key, value in self.pairs:
            self._first.setdefault(key, value)

    def __contains__(self, key: str) -> bool:
        return key in self._first

    def get(self, key: str, default: str = "") -> str:
        return self._first.get(key, default)

    def all(self, key: str) -> list[str]:
        return [value for name, value in self.pairs if name == key]

    def flag(self, key: str) -> bool:
        """A boolean parameter: there, and neither ``false`` nor ``0`` (``?watch`` and ``?watch=yes`` are true)."""
        return key in self._first and self._first[key].lower() not in ("false", "0")

    def limited_to(self, name: str) -> Query:
        """These parameters with a field selector on one more name."""
        fields = f"metadata.name={name}"
        if self.get("fieldSelector"):
            fields += "," + self.get("fieldSelector")
        rest = [(key, value) for key, value in self.pairs if key not in ("fieldSelector", "watch")]
        return Query(urlencode([("fieldSelector", fields), ("watch", "true"), *rest]).encode())

    def integer(self, key: str) -> int | None:
        """None when absent or empty; 400 in the words of Go's strconv when it is no number."""
        value = self._first.get(key, "")
        if not value:
            return None
        try:
            return int(value)
        except ValueError:
            raise status.bad_request(f'strconv.ParseInt: parsing "{value}": invalid syntax') from None


@dataclass
class RequestInfo:
    """The attributes of a request. `resource` is empty for paths outside the resource API (``/version``).

    For ``/api/v1/namespaces/NAME`` both namespace and name are NAME, as authorization in Kubernetes sees it.
    """

    path: str
    verb: str
    group: str = ""
    version: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    # the single name a list's field selector asks for: what authorization by resourceNames goes by
    selected: str = ""
    kind: KindInfo | None = None
    # asked for by the old form of watches, ``/api/v1/watch/...``
    watch_path: bool = False
    # something follows the subresource; only proxies pass it on
    too_deep: bool = False

    @property
    def is_resource(self) -> bool:
        return bool(self.resource)


@dataclass
class Request:
    """One HTTP request on its way through the pipeline; `user` is set by authentication (authn.User)."""

    method: str
    path: str
    query: Query
    headers: dict[str, str]
    scope: MutableMapping[str, Any]
    info: RequestInfo
    body: bytes = b""
    user: Any = None
    warnings: list[str] = field(default_factory=list)

    @property
    def kind(self) -> KindInfo:
        """The resource's KindInfo; 404 when the server has no such resource."""
        if self.info.kind is None:
            raise status.resource_not_found()
        return self.info.kind

    @property
    def content_type(self) -> str:
        """Media type of the body without parameters; JSON when the client did not say."""
        return self.headers.get("content-type", "application/json").partition(";")[0].strip().lower()

    @property
    def dry_run(self) -> bool:
        return self.query.get("dryRun") == "All"


@dataclass
class Response:
    """An answer: `body` whole, or `stream` for watches and logs."""

    code: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    stream: AsyncIterator[bytes] | None = None

    @classmethod
    def json(cls, obj: object, code: int = 200) -> Response:
        return cls(code, json.dumps(obj, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))

    @classmethod
    def text(cls, text: str, code: int = 200) -> Response:
        return cls(code, text.encode(), "text/plain; charset=utf-8", {"X-Content-Type-Options": "nosniff"})


_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "GET": "get", "HEAD": "get", "DELETE": "delete"}
_NAMESPACE_SUBRESOURCES = ("status", "finalize")


def parse(method: str, path: str, query: Query, registry: Registry) -> RequestInfo:
    """Read a path as kube-apiserver's RequestInfo does (Kubernetes API reference, "Resource URIs").

    Never fails: what is not under ``/api/VERSION/...`` or ``/apis/GROUP/VERSION/...`` is a non-resource request.
    """
    parts = [part for part in path.split("/") if part]
    info = RequestInfo(path, method.lower())
    if not parts or parts[0] not in ("api", "apis"):
        return info
    prefix = 2 if parts[0] == "api" else 3
    if len(parts) <= prefix:
        return info
    if prefix == 3:
        info.group = parts[1]
    info.version = parts[prefix - 1]
    rest = parts[prefix:]
    info.verb = _VERBS.get(method, "")
    if rest[0] == "watch" and len(rest) > 1 and method == "GET":
        info.watch_path = True
        rest = rest[1:]
    if rest[0] == "namespaces" and len(rest) > 1:
        info.namespace = rest[1]
        if len(rest) > 2 and rest[2] not in _NAMESPACE_SUBRESOURCES:
            rest = rest[2:]
    info.resource = rest[0]
    info.name = rest[1] if len(rest) > 1 else ""
    info.subresource = rest[2] if len(rest) > 2 else ""
    info.too_deep = len(rest) > 3 and info.subresource != "proxy"
    info.kind = registry.find(info.group, info.version, info.resource)
    if info.watch_path:
        info.verb = "watch"
        info.name, info.selected = "", info.name
        return info
    if info.name:
        return info
    if info.verb == "get":
        info.verb = "watch" if query.flag("watch") else "list"
        selector = query.get("fieldSelector")
        if selector.startswith("metadata.name=") and "," not in selector:
            info.selected = selector.removeprefix("metadata.name=").removeprefix("=")
    elif info.verb == "delete":
        info.verb = "deletecollection"
    return info
