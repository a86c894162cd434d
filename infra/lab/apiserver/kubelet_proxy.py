"""Pod logs, and exec, attach and port-forward streams: the API server as the kubelet's client.

The pod's Node says where its kubelet listens (``status.addresses``, ``status.daemonEndpoints.kubeletEndpoint``); the
server shows its own client certificate there and, as kube-apiserver without ``--kubelet-certificate-authority``, does
not verify the kubelet's. Streams are relayed verbatim, whatever protocol the two ends agree on.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import httpx

from .relay import relay_upgrade
from .request import Response
from .status import (
    ApiStatusError,
    Cause,
    bad_request,
    forbidden_field,
    internal_error,
    invalid,
    invalid_value,
    not_found,
    plain_error,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from .request import Query, Request
    from .store import Store

DEFAULT_PORT = 10250
# In kube-apiserver's order of preference (--kubelet-preferred-address-types)
_ADDRESS_TYPES = ("Hostname", "InternalDNS", "InternalIP", "ExternalDNS", "ExternalIP")
_CONNECT_SECONDS = 10.0
_ERROR_BYTES = 2048
STREAMS = {"exec": "exec", "attach": "attach", "portforward": "portForward"}
PROXIES = ("pods", "services", "nodes")


class KubeletProxy:
    """Everything below ``pods/NAME`` that a kubelet answers."""

    def __init__(self, store: Store, certificate: Path, key: Path) -> None:
        self._store = store
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.load_cert_chain(certificate, key)
        self._context = context
        self._http: httpx.AsyncClient | None = None

    async def close(self) -> None:
        """Close kept connections; the next log opens new ones."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    @property
    def _client(self) -> httpx.AsyncClient:
        if self._http is None:
            timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
            self._http = httpx.AsyncClient(verify=self._context, trust_env=False, timeout=timeout)
        return self._http

    def handles(self, request: Request) -> bool:
        info = request.info
        if info.group:
            return False
        return (info.resource == "pods" and info.subresource in ("log", *STREAMS)) or (
            info.resource in PROXIES and info.subresource == "proxy"
        )

    async def handle(self, request: Request) -> Response | None:
        """The answer; None when the connection was handed to a stream and is finished.

        Raises ApiStatusError with the words of kube-apiserver.
        """
        info = request.info
        if info.subresource == "log":
            return await self._log(request)
        if info.subresource in STREAMS:
            return await self._stream(request)
        if self._store.get(info.resource, info.namespace if info.resource != "nodes" else "", info.name) is None:
            raise not_found(info.resource, info.name)
        # Real servers refuse to proxy to loopback addresses, and the lab has no others.
        raise bad_request("address not allowed")

    # Logs

    async def _log(self, request: Request) -> Response:
        query = request.query
        options = _log_options(request.info.name, query)
        pod = self._pod(request)
        container = _container(pod, query.get("container"))
        node = pod["spec"].get("nodeName")
        if not node:
            return Response(204, content_type="text/plain")
        base = self._kubelet(node)
        path = f"/containerLogs/{request.info.namespace}/{request.info.name}/{container}"
        url = f"{base}{quote(path)}" + (f"?{urlencode(options)}" if options else "")
        try:
            answer = await self._client.send(self._client.build_request("GET", url), stream=True)
        except httpx.HTTPError as error:
            raise plain_error(f'Get "{url}": {_dial_error(error, base)}') from error
        if not 200 <= answer.status_code <= 206:
            text = (await answer.aread())[:_ERROR_BYTES].decode("utf-8", "replace")
            await answer.aclose()
            raise _kubelet_refusal(answer.status_code, text, request.info.name)
        return Response(200, content_type="text/plain", stream=_body(answer))

    # Streams

    async def _stream(self, request: Request) -> Response | None:
        info, query = request.info, request.query
        pod = self._pod(request)
        path = f"/{STREAMS[info.subresource]}/{info.namespace}/{info.name}"
        if info.subresource != "portforward":
            path += f"/{_container(pod, query.get('container'))}"
        node = pod["spec"].get("nodeName")
        if not node:
            raise bad_request(f"pod {info.name} does not have a host assigned")
        if "upgrade" not in request.headers.get("connection", "").lower() or not request.headers.get("upgrade"):
            raise bad_request("Upgrade request required")
        pairs = _stream_options(info.subresource, query)
        target = quote(path) + (f"?{urlencode(pairs)}" if pairs else "")
        base = self._kubelet(node)
        try:
            return await relay_upgrade(request, base, target, self._context)
        except OSError as error:
            raise internal_error(f"error dialing backend: {_dial_error(error, base)}") from error

    # Finding things

    def _pod(self, request: Request) -> dict[str, Any]:
        stored = self._store.get("pods", request.info.namespace, request.info.name)
        if stored is None:
            raise not_found("pods", request.info.name)
        return stored.obj

    def _kubelet(self, node: str) -> str:
        """``https://ADDRESS:PORT`` of a node's kubelet."""
        stored = self._store.get("nodes", "", node)
        if stored is None:
            raise not_found("nodes", node)
        status = stored.obj.get("status") or {}
        addresses = {a.get("type"): a.get("address") for a in reversed(status.get("addresses") or [])}
        # A lab node's host name resolves to nothing; only an address can be dialled. Real servers prefer the name.
        address = addresses.get("InternalIP") or next((addresses[t] for t in _ADDRESS_TYPES if addresses.get(t)), None)
        if address is None:
            raise plain_error("no preferred addresses found; known addresses: []")
        port = ((status.get("daemonEndpoints") or {}).get("kubeletEndpoint") or {}).get("Port") or DEFAULT_PORT
        host = f"[{address}]" if ":" in address else address
        return f"https://{host}:{port}"


def _names(containers: list[dict[str, Any]] | None) -> list[str]:
    return [container["name"] for container in containers or []]


def _container(pod: dict[str, Any], asked: str) -> str:
    """The container meant: the one named, or the only one. Raises ApiStatusError 400."""
    spec, name = pod["spec"], pod["metadata"]["name"]
    main = _names(spec.get("containers"))
    initial, ephemeral = _names(spec.get("initContainers")), _names(spec.get("ephemeralContainers"))
    if asked:
        if asked not in (*main, *initial, *ephemeral):
            raise bad_request(f"container {asked} is not valid for pod {name}")
        return asked
    if len(main) == 1:
        return main[0]
    message = f"a container name must be specified for pod {name}, choose one of: [{' '.join(main)}]"
    if initial:
        message += f" or one of the init containers: [{' '.join(initial)}]"
    if ephemeral:
        message += f" or one of the ephemeral containers: [{' '.join(ephemeral)}]"
    raise bad_request(message)


def _truth(query: Query, parameter: str) -> bool:
    """A boolean query parameter: given without a value it is true; what is no boolean counts as not given."""
    return parameter in query and query.get(parameter).lower() in ("", "1", "t", "true")


def _log_options(name: str, query: Query) -> dict[str, str]:
    """The kubelet's query from a PodLogOptions query. Raises ApiStatusError 422 (values) or 400 (no numbers)."""
    causes: list[Cause] = []
    for parameter, least in (("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)):
        value = query.integer(parameter)
        if value is not None and value < least:
            bound = "greater than or equal to 0" if least == 0 else "greater than 0"
            causes.append(invalid_value(parameter, str(value), f"must be {bound}"))
    if query.get("sinceSeconds") and query.get("sinceTime"):
        causes.append(forbidden_field("", "at most one of `sinceTime` or `sinceSeconds` may be specified"))
    if causes:
        raise invalid("PodLogOptions", name, causes)
    out = {flag: "true" for flag in ("follow", "previous", "timestamps") if _truth(query, flag)}
    for parameter in ("sinceSeconds", "sinceTime", "tailLines", "limitBytes"):
        if query.get(parameter):
            out[parameter] = query.get(parameter)
    return dict(sorted(out.items()))


def _stream_options(subresource: str, query: Query) -> list[tuple[str, str]]:
    """The kubelet's query for a stream; its names differ from the API's (input, output, error, tty, command, port)."""
    if subresource == "portforward":
        ports = [port for value in query.all("ports") for port in value.split(",") if port]
        return [("port", ",".join(ports))] if ports else []
    out: list[tuple[str, str]] = []
    for ours, theirs in (("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")):
        if _truth(query, ours):
            out.append((theirs, "1"))
    if subresource == "exec":
        out += [("command", word) for word in query.all("command")]
    return sorted(out, key=lambda pair: pair[0])


async def _body(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    except httpx.HTTPError:
        return  # the kubelet went away in the middle: the log ends there
    finally:
        await answer.aclose()


def _kubelet_refusal(code: int, text: str, name: str) -> ApiStatusError:
    """What becomes of a kubelet's error (API machinery's generic response checker)."""
    if code == 500:
        return internal_error(text)
    if code == 400:
        return bad_request(text)
    reasons = {
        401: "Unauthorized",
        403: "Forbidden",
        404: "NotFound",
        405: "MethodNotAllowed",
        503: "ServiceUnavailable",
    }
    words = {
        401: "the server has asked for the client to provide credentials",
        403: text or "forbidden",
        404: "the server could not find the requested resource",
        405: "the server does not allow this method on the requested resource",
        503: text or "the server is currently unable to handle the request",
    }
    message = words.get(code, f"the server responded with the status code {code} but did not return more information")
    causes = [{"reason": "UnexpectedServerResponse", "message": text}] if text else []
    details: dict[str, Any] = {"name": name, "kind": "pods/log"}
    if causes:
        details["causes"] = causes
    message = f"{message} ( pods/log {name})"
    return ApiStatusError(code, message, reasons.get(code, "InternalError" if code >= 500 else ""), details)


def _dial_error(error: Exception, base: str) -> str:
    address = base.removeprefix("https://")
    if isinstance(error, httpx.ConnectTimeout | TimeoutError):
        return f"dial tcp {address}: i/o timeout"
    if isinstance(error, httpx.ConnectError | ConnectionRefusedError):
        return f"dial tcp {address}: connect: connection refused"
    return str(error) or type(error).__name__
