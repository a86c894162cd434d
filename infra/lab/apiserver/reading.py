"""GET and LIST: selectors, resourceVersion semantics, paging, Tables and metadata-only answers."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import options, selectors, status, table, yaml_codec
from .negotiation import Accepted, negotiate
from .objects import item_prefix, list_item, partial, render
from .request import Response
from .store import Stored, TooOldError, dumps

if TYPE_CHECKING:
    from .api import Api
    from .kinds import KindInfo
    from .request import Request

EXPIRED_CONTINUE = (
    "The provided continue parameter is too old to display a consistent list result. You can start a new list without "
    "the continue parameter, or use the continue token in this response to retrieve the remainder of the results. "
    "Continuing with the provided token results in an inconsistent list - objects that were created, modified, or "
    "deleted between the time the first chunk was returned and now may show up in the list."
)
FUTURE_WAIT_SECONDS = 3.0


async def get(api: Api, request: Request) -> Response:
    """One object. ``resourceVersion`` says how fresh it must be: ours is, unless that asks for the future."""
    kind, info = request.kind, request.info
    accepted = negotiate(request.headers.get("accept", ""))
    version = request.query.get("resourceVersion")
    if version:
        try:
            await wait_for_version(api, options.unsigned(version))
        except ValueError as error:
            raise status.plain_error(f'resourceVersion: Invalid value: "{version}": {error}') from None
    stored = api.store.get(kind.storage, info.namespace if kind.namespaced else "", info.name)
    if stored is None:
        raise status.not_found(kind.plural, info.name, kind.group)
    return show(api, stored, kind, request, accepted)


def show(
    api: Api, stored: Stored, kind: KindInfo, request: Request, accepted: Accepted | None = None, code: int = 200
) -> Response:
    """A single object in the representation the client takes."""
    accepted = accepted or negotiate(request.headers.get("accept", ""))
    if accepted.transform == "PartialObjectMetadataList":
        raise _unfit(accepted.transform, "not a list type", kind, kind.kind)
    if accepted.transform == "Table":
        table.check_options(request.query)
        version = stored.obj["metadata"].get("resourceVersion", "")
        body = table.render([stored], kind, {"resourceVersion": version}, request.query, api.now())
    elif accepted.transform:
        body = stored.variant(f"partial/{accepted.version}", lambda obj: partial(obj, accepted.version))
    else:
        body = render(stored, kind)
    return encode(body, accepted, code)


def _unfit(asked: str, what: str, kind: KindInfo, go_type: str) -> status.ApiStatusError:
    """406: the representation asked for is one of the other thing, an object or a list."""
    package = "unstructured" if kind.custom else (kind.group.split(".")[0] or "core")
    name = ("UnstructuredList" if go_type == kind.listed_as else "Unstructured") if kind.custom else go_type
    text = f"you requested {asked}, but the requested object is {what} (*{package}.{name})"
    return status.ApiStatusError(406, text, "NotAcceptable")


def encode(body: bytes, accepted: Accepted, code: int = 200) -> Response:
    """JSON as it is, or turned into YAML when the client prefers that."""
    if accepted.media_type == "application/yaml":
        return Response(code, yaml_codec.dump(json.loads(body)), "application/yaml")
    return Response(code, body)


@dataclass
class Chunk:
    """What a continue token holds: the version of the list and the last key already sent."""

    rv: int
    after: tuple[str, str]

    def token(self) -> str:
        start = "/".join(part for part in self.after if part) + "\0"
        body = json.dumps({"v": "meta.k8s.io/v1", "rv": self.rv, "start": start}, separators=(",", ":"))
        return base64.urlsafe_b64encode(body.encode()).decode().rstrip("=")


def read_token(token: str, namespace: str, namespaced: bool) -> Chunk:
    """400 for garbage. Tokens are those of the server: URL-safe base64 of a small JSON document."""
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except ValueError:
        raise status.bad_request(
            f"invalid continue token: continue key is not valid: illegal base64 data: {token}"
        ) from None
    text = raw.decode("utf-8", "replace")
    try:
        found = json.loads(raw)
        version, start = found["rv"], found["start"]
    except UnicodeDecodeError:
        raise status.bad_request(
            _bad_token(f"invalid character '{_go_quoted(raw)}' looking for beginning of value")
        ) from None
    except ValueError:
        shown = text[0] if text else ""
        message = (
            f"invalid character '{shown}' looking for beginning of value" if shown else "unexpected end of JSON input"
        )
        raise status.bad_request(_bad_token(message)) from None
    except (KeyError, TypeError):
        raise status.bad_request(
            _bad_token("incorrect encoded start resourceVersion (version meta.k8s.io/v1)")
        ) from None
    name = start.removesuffix("\0")
    if not namespaced:
        return Chunk(version, ("", name))
    if namespace:
        return Chunk(version, (namespace, name.removeprefix(namespace + "/")))
    first, _, last = name.partition("/")
    return Chunk(version, (first, last))


def _bad_token(message: str) -> str:
    return f"invalid continue token: continue key is not valid: {message}"


def _go_quoted(raw: bytes) -> str:
    """The first byte as Go's json package shows it in an error."""
    first = raw[0]
    if first < 0x20 or 0x7F <= first < 0xA0:
        return f"\\u{first:04x}" if first >= 0x80 else f"\\x{first:02x}"
    return chr(first)


@dataclass
class Selection:
    """The selectors of one request."""

    labels: selectors.LabelSelector
    fields: selectors.FieldSelector

    @classmethod
    def of(cls, request: Request) -> Selection:
        labels = selectors.parse_labels(request.query.get("labelSelector"))
        fields = selectors.parse_fields(request.query.get("fieldSelector"), request.kind)
        return cls(labels, fields)

    def __bool__(self) -> bool:
        return bool(self.labels or self.fields)

    def matches(self, stored: Stored) -> bool:
        return (not self.labels or self.labels.matches(stored.labels)) and (
            not self.fields or self.fields.matches(stored.obj)
        )


async def list_objects(api: Api, request: Request) -> Response:
    kind = request.kind
    accepted = negotiate(request.headers.get("accept", ""))
    options.check_list(request, watching=False)
    selection = Selection.of(request)
    if accepted.transform == "PartialObjectMetadata":
        raise _unfit(accepted.transform, "a list", kind, kind.listed_as)
    if accepted.transform == "Table":
        table.check_options(request.query)
    items, metadata = await select(api, request, selection)
    return show_list(api, items, kind, metadata, request, accepted)


def show_list(
    api: Api, items: list[Stored], kind: KindInfo, metadata: dict[str, Any], request: Request, accepted: Accepted
) -> Response:
    """Objects as a list, in the representation the client takes."""
    if accepted.transform == "Table":
        return encode(table.render(items, kind, metadata, request.query, api.now()), accepted)
    if accepted.transform:
        head = {"kind": "PartialObjectMetadataList", "apiVersion": f"meta.k8s.io/{accepted.version}"}
        name = f"partial/{accepted.version}"
        parts = [stored.variant(name, lambda obj: partial(obj, accepted.version)) for stored in items]
    else:
        head = {"kind": kind.listed_as, "apiVersion": kind.api_version}
        prefix = item_prefix(kind)
        parts = [list_item(stored, kind, prefix) for stored in items]
    return encode(join(head, metadata, parts), accepted)


def join(head: dict[str, str], metadata: dict[str, Any], parts: list[bytes]) -> bytes:
    """A list object from the JSON of its items."""
    start = dumps({**head, "metadata": metadata})[:-1]
    return start + b',"items":[' + b",".join(parts) + b"]}"


async def select(api: Api, request: Request, selection: Selection) -> tuple[list[Stored], dict[str, Any]]:
    """The objects a list answers and the list's metadata (Kubernetes API concepts, "Resource versions", "Paging")."""
    kind, query = request.kind, request.query
    namespace = request.info.namespace if kind.namespaced else ""
    limit = max(query.integer("limit") or 0, 0)
    token, version, match = query.get("continue"), query.get("resourceVersion"), query.get("resourceVersionMatch")
    after: tuple[str, str] | None = None
    if token:
        if version not in ("", "0"):
            raise status.bad_request("specifying resource version is not allowed when using continue")
        chunk = read_token(token, namespace, kind.namespaced)
        after, at = chunk.after, chunk.rv if chunk.rv > 0 else api.store.rv
        try:
            items = api.store.objects_at(kind.storage, namespace, at)
        except TooOldError:
            fresh = Chunk(-1, after).token()
            raise status.gone_expired(EXPIRED_CONTINUE, fresh) from None
    else:
        items, at = await _snapshot(api, kind, namespace, version, match)
        if version == "0" and match != "Exact":
            limit = 0  # answered from the watch cache, which ignores limit
    if namespace and selection.fields.required("metadata.namespace") not in (None, namespace):
        items = []
    start = 0
    if after is not None:
        start = next((i for i, stored in enumerate(items) if stored.key > after), len(items))
    metadata: dict[str, Any] = {"resourceVersion": str(at)}
    if kind.custom:
        metadata["continue"] = ""  # lists of custom resources spell it out
    chosen: list[Stored] = []
    if not selection:
        end = start + limit if limit else len(items)
        chosen = items[start:end]
        if end < len(items):
            metadata["continue"] = Chunk(at, chosen[-1].key).token()
            metadata["remainingItemCount"] = len(items) - end
        return chosen, metadata
    for index in range(start, len(items)):
        if not selection.matches(items[index]):
            continue
        if limit and len(chosen) == limit:
            metadata["continue"] = Chunk(at, chosen[-1].key).token()
            break
        chosen.append(items[index])
    return chosen, metadata


async def _snapshot(api: Api, kind: KindInfo, namespace: str, version: str, match: str) -> tuple[list[Stored], int]:
    store = api.store
    if version in ("", "0"):
        return store.objects(kind.storage, namespace), store.rv
    try:
        wanted = options.unsigned(version)
    except ValueError as error:
        text = f'invalid resource version: resourceVersion: Invalid value: "{version}": {error}'
        raise status.bad_request(text) from None
    await wait_for_version(api, wanted)
    if match != "Exact":
        return store.objects(kind.storage, namespace), store.rv
    try:
        return store.objects_at(kind.storage, namespace, wanted), wanted
    except TooOldError:
        raise status.gone_expired("The resourceVersion for the provided list is too old.") from None


async def wait_for_version(api: Api, wanted: int) -> None:
    """Wait up to three seconds for a version of the future, then 504 Timeout."""
    loop = asyncio.get_running_loop()
    end = loop.time() + FUTURE_WAIT_SECONDS
    while wanted > api.store.rv:
        if loop.time() >= end:
            message = f"Timeout: Too large resource version: {wanted}, current: {api.store.rv}"
            cause = status.Cause("ResourceVersionTooLarge", "Too large resource version")
            raise status.gateway_timeout(message, [cause], retry_after=1)
        await asyncio.sleep(0.05)
