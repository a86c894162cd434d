"""Every exception of the Kubernetes client, urllib3 and websocket-client, mapped onto `capstan.errors`.

The table below names each exception class of those libraries one by one. `tests/cluster/test_error_mapping.py` fails
when a library brings a class the table does not name, so a new one is a decision and not an accident; at run time an
unnamed subclass is treated as its nearest named parent.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import urllib3.exceptions as u
import websocket as w
import yaml  # type: ignore[import-untyped]  # PyYAML ships no types; only its error class is used
from kubernetes.client import exceptions as k
from kubernetes.config.config_exception import ConfigException

from capstan.errors import (
    CapstanError,
    Conflict,
    Denied,
    InvalidInput,
    NotFound,
    ServerFault,
    Throttled,
    Unreachable,
)

_KEY_TEXT = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|$)"  # PEM
    r"|LS0tLS1CRUdJTi[A-Za-z0-9+/=]+",  # base64 of `-----BEGIN`, as in a Secret's data
    re.DOTALL,
)

READ_LOGS: Final = "read the logs of"


@dataclass(frozen=True, slots=True)
class Call:
    """What was being asked of the API when something failed; the words of every message.

    Attributes:
        verb: `get`, `list`, `create`, `patch`, `replace`, `delete`, `watch`, `evict`, `port-forward`.
        resource: Plural resource name, `pods`.
        namespace: Empty for cluster-scoped objects and whole-cluster lists.
        name: Empty for collections.
        cluster: The cluster's name in the trust domain.
    """

    verb: str
    resource: str
    namespace: str = ""
    name: str = ""
    cluster: str = ""

    @property
    def where(self) -> str:
        """`pods linkerd/linkerd-identity-1 in cluster east`."""
        path = "/".join(part for part in (self.namespace, self.name) if part)
        text = f"{self.resource} {path}" if path else self.resource
        return f"{text} in cluster {self.cluster}" if self.cluster else text

    @property
    def what(self) -> str:
        """`cannot patch configmaps`."""
        return f"cannot {self.verb} {self.resource}"

    @property
    def kubectl(self) -> str:
        """A kubectl command that shows the object (or collection) to a person."""
        command = f"kubectl get {self.resource}"
        if self.name:
            command += f" {self.name}"
        if self.namespace:
            command += f" -n {self.namespace}"
        elif not self.name:
            command += " -A"
        return command

    @property
    def can_i(self) -> str:
        """The kubectl command that asks whether this call is permitted."""
        verb = {"replace": "update"}.get(self.verb, self.verb)
        subresource = {"evict": "eviction", "port-forward": "portforward", "create token of": "token"}.get(self.verb)
        verb = "create" if subresource else verb
        if self.verb == READ_LOGS:
            verb, subresource = "get", "log"
        # A right may be given by name; an object that is yet to be created, or a collection, has none in a request.
        name = f"/{self.name}" if self.name and (subresource or verb != "create") else ""
        part = f" --subresource={subresource}" if subresource else ""
        scope = f" -n {self.namespace}" if self.namespace else ""
        return f"kubectl auth can-i {verb} {self.resource}{name}{part}{scope}"


def redact(text: str) -> str:
    """The text without any private key or PEM-in-base64 that a server may have quoted back at us."""
    return _KEY_TEXT.sub("[redacted]", text)


def from_status(
    code: int, body: bytes | str | None, headers: Mapping[str, str] | None, call: Call, cause: str = ""
) -> CapstanError:
    """The error for an HTTP answer outside 2xx.

    Args:
        code: HTTP status.
        body: The answer's body: a `Status` object as JSON, or text.
        headers: The answer's headers; Retry-After is read (RFC 9110 section 10.2.3, the seconds form; where it is
            missing, `details.retryAfterSeconds` of the Status), and whether API priority and fairness refused.
        call: What was asked.
        cause: Text used when the body has none.
    """
    message, reason = _message(body)
    observed = redact(f"HTTP {code} {reason}: {message or cause}".replace("  ", " "))
    delay = _retry_after(headers)
    if delay is None:
        delay = _retry_after_seconds(body)
    if delay is not None and (code in (408, 409, 429) or code >= 500):
        observed += f" (the server asks to wait {delay:g} s)"
    if code == 401:
        return Denied(
            call.what, where=call.where, observed=observed, expected="credentials the API server accepts",
            next_command="kubectl auth whoami",
        )  # fmt: skip
    if code == 403:
        return Denied(
            call.what, where=call.where, observed=observed, expected="permission for this verb",
            next_command=call.can_i,
        )  # fmt: skip
    if code == 404:
        return NotFound(
            call.what, where=call.where, observed=observed, expected="the object to exist", next_command=call.kubectl
        )
    if code in (409, 410):
        return Conflict(
            call.what, where=call.where, observed=observed, expected="the object as it was last read",
            next_command=f"run the same command again; it observes first ({call.kubectl})", delay=delay,
        )  # fmt: skip
    if code == 429 and (level := _priority_level(headers, body)):
        return Throttled(
            call.what, where=call.where,
            observed=f"{observed}; refused by API priority and fairness, priority level {level}",
            expected="the request to be let in: the API server is busy, or this user's share of it is used up",
            next_command="kubectl get --raw /debug/api_priority_and_fairness/dump_priority_levels", delay=delay,
        )  # fmt: skip
    if code == 429:
        return Throttled(
            call.what, where=call.where, observed=observed, expected="the request to be let in",
            next_command="wait, then run the same command again", delay=delay,
        )  # fmt: skip
    if code == 408 or code >= 500:
        return ServerFault(
            call.what, where=call.where, observed=observed, expected="an answer without a server error",
            next_command="kubectl get --raw '/readyz?verbose'", delay=delay,
        )  # fmt: skip
    return InvalidInput(
        call.what, where=call.where, observed=observed, expected="a request the API server takes",
        next_command=call.kubectl,
    )  # fmt: skip


def translate(error: BaseException, call: Call) -> CapstanError:
    """The error of our tree for an exception of one of the libraries (or of the sockets under them).

    An error that is ours already comes back as it is. Only exceptions that `handles` accepts may be given.
    """
    if isinstance(error, CapstanError):
        return error
    for cls in type(error).__mro__:
        make = TABLE.get(cls)
        if make is not None:
            return make(error, call)
    raise TypeError(f"no mapping for {type(error).__name__}") from error


def handles(error: BaseException) -> bool:
    """Whether `translate` knows the exception."""
    return isinstance(error, (CapstanError, *TABLE))


def _message(body: bytes | str | None) -> tuple[str, str]:
    if not body:
        return "", ""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else body
    try:
        status = json.loads(text)
    except ValueError:
        return text.strip()[:300], ""
    if not isinstance(status, dict):
        return text.strip()[:300], ""
    return str(status.get("message", "")), str(status.get("reason", ""))


def _retry_after(headers: Mapping[str, str] | None) -> float | None:
    for key, value in (headers or {}).items():
        if key.lower() == "retry-after" and str(value).strip().isdigit():
            return float(value)
    return None


def _retry_after_seconds(body: bytes | str | None) -> float | None:
    """What a Status says in its details: an error inside a watch has no headers."""
    try:
        status = json.loads(body or "")
    except ValueError:
        return None
    details = status.get("details") if isinstance(status, dict) else None
    seconds = details.get("retryAfterSeconds") if isinstance(details, dict) else None
    return float(seconds) if isinstance(seconds, int) and seconds > 0 else None


def _priority_level(headers: Mapping[str, str] | None, body: bytes | str | None) -> str:
    """The UID of the priority level that refused, or "".

    An API server names the level on every answer; its own refusal is plain text, while a handler's 429 (an eviction
    that a budget forbids) is a Status (kubernetes.io/docs/concepts/cluster-administration/flow-control).
    """
    if (body or b"")[:1] in (b"{", "{"):
        return ""
    return next((v for k, v in (headers or {}).items() if k.lower() == "x-kubernetes-pf-prioritylevel-uid"), "")


def _text(error: BaseException) -> str:
    return redact(f"{type(error).__name__}: {error}")


def _unreachable(error: BaseException, call: Call) -> CapstanError:
    if _certificate_refused(error):
        return _untrusted(error, call)
    return Unreachable(
        call.what, where=call.where, observed=_text(error), expected="an answer from the API server",
        next_command="kubectl cluster-info",
    )  # fmt: skip


def _certificate_refused(error: BaseException) -> bool:
    """TLS said no: with the same certificates it will say no again, so repeating is useless."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return True
        inner = seen.args[0] if seen.args and isinstance(seen.args[0], BaseException) else None
        seen = inner or seen.__cause__ or seen.__context__
    return False


def _untrusted(error: BaseException, call: Call) -> CapstanError:
    return Denied(
        call.what, where=call.where, observed=_text(error),
        expected="an API server certificate that the kubeconfig's certificate-authority signed",
        next_command="kubectl config view --minify",
    )  # fmt: skip


def _tls(error: BaseException, call: Call) -> CapstanError:
    return _untrusted(error, call) if _certificate_refused(error) else _unreachable(error, call)


def _config(error: BaseException, call: Call) -> CapstanError:
    return InvalidInput(
        "the kubeconfig cannot be used", where=call.where, observed=_text(error),
        expected="a readable kubeconfig with the wanted context", next_command="kubectl config get-contexts",
    )  # fmt: skip


def _misuse(error: BaseException, call: Call) -> CapstanError:
    return InvalidInput(
        call.what, where=call.where, observed=_text(error), expected="arguments the client library takes",
        next_command=call.kubectl,
    )  # fmt: skip


def _api(error: BaseException, call: Call) -> CapstanError:
    status = getattr(error, "status", None)
    if not isinstance(status, int) or status == 0:  # the client's own wrapper around a transport error
        return _unreachable(error, call)
    body = getattr(error, "body", None)
    return from_status(status, body, getattr(error, "headers", None), call, cause=str(getattr(error, "reason", "")))


def _bad_upgrade(error: BaseException, call: Call) -> CapstanError:
    code = int(getattr(error, "status_code", 0))
    if code < 400:
        return _unreachable(error, call)
    headers: Any = getattr(error, "resp_headers", None)
    return from_status(code, getattr(error, "resp_body", None), headers, call, cause=str(error))


Maker = Callable[[BaseException, Call], CapstanError]

TABLE: dict[type[BaseException], Maker] = {
    # urllib3: the transport
    u.HTTPError: _unreachable,
    u.PoolError: _unreachable,
    u.RequestError: _unreachable,
    u.SSLError: _tls,
    u.ProxyError: _unreachable,
    u.DecodeError: _unreachable,
    u.ProtocolError: _unreachable,
    u.MaxRetryError: _unreachable,
    u.HostChangedError: _misuse,
    u.TimeoutStateError: _misuse,
    u.TimeoutError: _unreachable,
    u.ReadTimeoutError: _unreachable,
    u.ConnectTimeoutError: _unreachable,
    u.NewConnectionError: _unreachable,
    u.NameResolutionError: _unreachable,
    u.EmptyPoolError: _unreachable,
    u.FullPoolError: _unreachable,
    u.ClosedPoolError: _unreachable,
    u.LocationValueError: _config,
    u.LocationParseError: _config,
    u.URLSchemeUnknown: _config,
    u.ResponseError: _unreachable,
    u.ResponseNotChunked: _unreachable,
    u.BodyNotHttplibCompatible: _misuse,
    u.IncompleteRead: _unreachable,
    u.InvalidChunkLength: _unreachable,
    u.InvalidHeader: _unreachable,
    u.ProxySchemeUnknown: _config,
    u.ProxySchemeUnsupported: _config,
    u.HeaderParsingError: _unreachable,
    u.UnrewindableBodyError: _misuse,
    # websocket-client: port-forward
    w.WebSocketException: _unreachable,
    w.WebSocketProtocolException: _unreachable,
    w.WebSocketPayloadException: _unreachable,
    w.WebSocketConnectionClosedException: _unreachable,
    w.WebSocketTimeoutException: _unreachable,
    w.WebSocketProxyException: _unreachable,
    w.WebSocketBadStatusException: _bad_upgrade,
    w.WebSocketAddressException: _unreachable,
    # the Kubernetes client
    k.OpenApiException: _misuse,
    k.ApiTypeError: _misuse,
    k.ApiValueError: _misuse,
    k.ApiAttributeError: _misuse,
    k.ApiKeyError: _misuse,
    k.ApiException: _api,
    k.BadRequestException: _api,
    k.NotFoundException: _api,
    k.UnauthorizedException: _api,
    k.ForbiddenException: _api,
    k.ServiceException: _api,
    k.ConflictException: _api,
    k.UnprocessableEntityException: _api,
    ConfigException: _config,
    yaml.YAMLError: _config,
    # under all of them
    ssl.SSLCertVerificationError: _untrusted,
    ssl.SSLError: _tls,
    http.client.HTTPException: _unreachable,
    OSError: _unreachable,
    json.JSONDecodeError: _unreachable,
}
"""One maker for every exception class the libraries raise."""

HANDLED: tuple[type[BaseException], ...] = tuple(TABLE)
"""For `except HANDLED as error: raise translate(error, call) from None`."""
