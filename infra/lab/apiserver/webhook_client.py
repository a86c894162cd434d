"""How the API server reaches a webhook: by URL or by Service, over TLS that must verify against the caBundle.

Errors read as those of the Go client in kube-apiserver, so that what an operator would see in a real event or log
(``x509: certificate signed by unknown authority``) is what the lab shows. A Service is resolved to a ready endpoint
directly, since the lab has no service network.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import json
import random
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from .selectors import from_object

if TYPE_CHECKING:
    from .store import Store

MAX_SECONDS = 30.0  # the largest timeoutSeconds a configuration may have
_NONE_KEPT = httpx.Limits(max_keepalive_connections=0)
# OpenSSL's verification results (x509_vfy.h) in Go's words
_UNKNOWN_AUTHORITY = {2, 7, 18, 19, 20, 21, 24, 79}
_EXPIRED = {9, 10}
_WRONG_NAME = {62, 64}


class WebhookCallError(Exception):
    """The webhook could not be asked or did not answer properly."""


@dataclass(frozen=True)
class Target:
    """Where to connect (`url`), what to show in messages (`shown`), and the TLS name when it is not the URL's host."""

    url: str
    shown: str
    server_name: str = ""


class WebhookClient:
    """Posts AdmissionReviews, each on a connection of its own.

    A real server keeps connections, on which a certificate that no longer fits goes unnoticed until they end. The lab
    wants to notice at once.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._clients: dict[bytes, list[httpx.AsyncClient]] = {}

    async def close(self) -> None:
        for client in itertools.chain.from_iterable(self._clients.values()):
            await client.aclose()
        self._clients.clear()

    async def post(self, config: dict[str, Any], review: dict[str, Any], seconds: float) -> Any:
        """The decoded answer. `config` is a WebhookClientConfig. Raises WebhookCallError."""
        try:
            return await self._post(config, review, seconds)
        except WebhookCallError as error:
            raise WebhookCallError(f"failed to call webhook: {error}") from error

    async def _post(self, config: dict[str, Any], review: dict[str, Any], seconds: float) -> Any:
        target = self._target(config)
        clients = self._trusting(config.get("caBundle") or "")
        query = {"timeout": f"{int(seconds)}s"}
        separator = "&" if "?" in target.shown else "?"
        failed = f'Post "{target.shown}{separator}timeout={query["timeout"]}":'
        headers = {
            "accept": "application/json, */*",
            "content-type": "application/json",
            "user-agent": "kube-apiserver",
        }
        extensions = {}
        if target.server_name:
            headers["host"] = target.server_name
            extensions["sni_hostname"] = target.server_name
        content = json.dumps(review, separators=(",", ":")).encode()
        try:
            async with asyncio.timeout(seconds):
                url = httpx.URL(target.url).copy_merge_params(query)
                request = httpx.Request("POST", url, content=content, headers=headers, extensions=extensions)
                answer = await _send(clients, request)
        except TimeoutError as error:
            raise WebhookCallError(f"{failed} context deadline exceeded") from error
        except httpx.HTTPError as error:
            raise WebhookCallError(f"{failed} {in_gos_words(error, target)}") from error
        if answer.status_code != 200:
            raise WebhookCallError(_refused(answer))
        try:
            return answer.json()
        except ValueError as error:
            raise WebhookCallError(f"couldn't get version/kind; json parse error: {error}") from error

    async def forward(
        self, config: dict[str, Any], method: str, path: str, headers: dict[str, str], body: bytes, seconds: float
    ) -> httpx.Response:
        """A request passed on to an extension server behind a Service, as kube-aggregator does.

        `config` has `service` and `caBundle`, as the spec of an APIService. Raises WebhookCallError.
        """
        target = self._target(config)
        clients = self._trusting(config.get("caBundle") or "")
        headers = {**headers, "host": target.server_name}
        extensions = {"sni_hostname": target.server_name}
        url = httpx.URL(target.url).join(path)
        try:
            async with asyncio.timeout(seconds):
                return await _send(
                    clients, httpx.Request(method, url, content=body, headers=headers, extensions=extensions)
                )
        except TimeoutError as error:
            raise WebhookCallError("context deadline exceeded") from error
        except httpx.HTTPError as error:
            raise WebhookCallError(in_gos_words(error, target)) from error

    def has_endpoint(self, service: dict[str, Any]) -> bool:
        """Whether a ready pod stands behind a Service port."""
        try:
            self._endpoint(service["namespace"], service["name"], int(service.get("port") or 443))
        except WebhookCallError:
            return False
        return True

    def _trusting(self, bundle: str) -> list[httpx.AsyncClient]:
        key = hashlib.sha256(bundle.encode()).digest()
        if key not in self._clients:
            # The limit of a call is the webhook's own timeoutSeconds, set around it.
            self._clients[key] = [
                httpx.AsyncClient(verify=context, trust_env=False, timeout=MAX_SECONDS, limits=_NONE_KEPT)
                for context in _contexts(bundle)
            ]
        return self._clients[key]

    def _target(self, config: dict[str, Any]) -> Target:
        if config.get("url"):
            return Target(config["url"], config["url"])
        service = config.get("service") or {}
        namespace, name, port = service.get("namespace", ""), service.get("name", ""), int(service.get("port") or 443)
        host = f"{name}.{namespace}.svc"
        path = service.get("path") or "/"
        address, actual = self._endpoint(namespace, name, port)
        return Target(f"https://{address}:{actual}{path}", f"https://{host}:{port}{path}", host)

    def _endpoint(self, namespace: str, name: str, port: int) -> tuple[str, int]:
        """Address and port of a ready pod behind a Service port. Raises WebhookCallError."""
        stored = self._store.get("services", namespace, name)
        if stored is None:
            raise WebhookCallError(f'service "{name}" not found')
        spec = stored.obj.get("spec") or {}
        entry = next((p for p in spec.get("ports") or [] if p.get("port") == port), None)
        if entry is None:
            raise WebhookCallError(f'no service port {port} found for service "{name}"')
        selector = spec.get("selector")
        matches = from_object({"matchLabels": selector} if selector else None).matches
        found = []
        for pod in self._store.objects("pods", namespace):
            status = pod.obj.get("status") or {}
            ready = any(c.get("type") == "Ready" and c.get("status") == "True" for c in status.get("conditions") or [])
            if ready and status.get("podIP") and matches(pod.labels) and "deletionTimestamp" not in pod.obj["metadata"]:
                found.append(pod.obj)
        if not found:
            raise WebhookCallError(f'no endpoints available for service "{name}"')
        # As kube-aggregator's resolver: any of them, so that each replica is called sooner or later.
        called = random.choice(found)
        return called["status"]["podIP"], _target_port(called, entry)


def _target_port(pod: dict[str, Any], entry: dict[str, Any]) -> int:
    target = entry.get("targetPort") or entry["port"]
    if isinstance(target, int):
        return target
    for container in pod["spec"].get("containers") or []:
        for port in container.get("ports") or []:
            if port.get("name") == target:
                return int(port["containerPort"])
    raise WebhookCallError(f'no port named "{target}" in pod {pod["metadata"]["name"]}')


def _contexts(bundle: str) -> list[ssl.SSLContext]:
    """Contexts that trust the bundle alone, to be tried in turn; the system's roots when there is none.

    Go tries every anchor whose subject is the issuer's name; OpenSSL settles for the first when the certificate has no
    authority key identifier. Old and new roots often share their name, so then each anchor gets a context of its own.
    Raises WebhookCallError.
    """
    if not bundle:
        return [ssl.create_default_context(ssl.Purpose.SERVER_AUTH)]
    try:
        certificates = x509.load_pem_x509_certificates(base64.b64decode(bundle, validate=True))
    except ValueError as error:
        raise WebhookCallError("unable to load root certificates: unable to parse bytes as PEM block") from error
    groups = [certificates]
    if len({certificate.subject for certificate in certificates}) < len(certificates):
        groups = [[certificate] for certificate in certificates]
    contexts = []
    for group in groups:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Go takes any certificate of its pool as an anchor, self-signed or not.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=b"".join(certificate.public_bytes(Encoding.DER) for certificate in group))
        contexts.append(context)
    return contexts


async def _send(clients: list[httpx.AsyncClient], request: httpx.Request) -> httpx.Response:
    """The answer by the first client whose trust fits."""
    for client in clients[:-1]:
        try:
            return await client.send(request)
        except httpx.ConnectError as error:
            if not isinstance(_root_cause(error), ssl.SSLCertVerificationError):
                raise
    return await clients[-1].send(request)


def _root_cause(error: BaseException) -> BaseException:
    """The first TLS or socket error below httpx's and httpcore's own, or the error itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


def in_gos_words(error: BaseException, target: Target) -> str:
    """What Go's HTTP client would have said."""
    parts = urlsplit(target.url)
    address = f"{parts.hostname}:{parts.port or 443}"
    cause = _root_cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"tls: failed to verify certificate: {_x509(cause, target)}"
    if isinstance(cause, ssl.SSLError):
        return f"remote error: tls: {cause.reason or cause}"
    if isinstance(cause, ConnectionResetError):
        return f"read tcp {address}: read: connection reset by peer"
    if isinstance(error, httpx.ConnectError):
        # httpcore hides the OSError of a refused connection behind "All connection attempts failed"
        return f"dial tcp {address}: connect: connection refused"
    return "EOF" if isinstance(error, httpx.RemoteProtocolError) else str(error) or type(error).__name__


def _x509(error: ssl.SSLCertVerificationError, target: Target) -> str:
    if error.verify_code in _UNKNOWN_AUTHORITY:
        return "x509: certificate signed by unknown authority"
    if error.verify_code in _EXPIRED:
        return "x509: certificate has expired or is not yet valid"
    if error.verify_code in _WRONG_NAME:
        return f"x509: certificate is not valid for {target.server_name or urlsplit(target.url).hostname}"
    return f"x509: {error.verify_message}"


def _refused(answer: httpx.Response) -> str:
    """Words of client-go for an answer that is not 200."""
    if answer.status_code == 404:
        return "the server could not find the requested resource"
    if answer.status_code >= 500:
        text = answer.text[:1024].strip()
        return f'an error on the server ("{text}") has prevented the request from succeeding'
    return "the server rejected our request for an unknown reason"
