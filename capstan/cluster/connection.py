"""One connection to a Kubernetes API: configuration and credentials, and one request with its answer.

Configuration, credentials and connections are the official client's; objects stay plain dicts, because models cost more
than the network on large lists and refuse what a newer server sends. Every answer is read to its end, which is what
lets a connection be used again.
"""

from __future__ import annotations

import ipaddress
import json
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, NoReturn, Self
from urllib.parse import urlencode, urlparse

import urllib3
from kubernetes import client as kubernetes_client
from kubernetes import config as kubernetes_config_untyped
from yaml import YAMLError  # type: ignore[import-untyped]  # of the official client, which reads with it; no stubs

from capstan.cluster.errors import HANDLED, Call, from_status, translate
from capstan.cluster.values import Body, Expired, Object
from capstan.errors import InvalidInput, ServerFault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

kubernetes_config: Any = kubernetes_config_untyped  # it has no annotations


def user_agent() -> str:
    """`capstan/<version>`, by which our requests are told apart in audit logs."""
    try:
        return f"capstan/{version('capstan')}"
    except PackageNotFoundError:
        return "capstan/0"


class Connection:
    """How one Kubernetes API is reached.

    Args:
        name: Its name in the trust domain; only for messages.
        configuration: The official client's configuration: host, TLS, credentials.
        timeout: Seconds a single request may take.
        sleep: Waits, between tries of a read.
        clock: Monotonic seconds, for deadlines.

    Thread-safe: `map_bounded` calls it from many threads.
    """

    def __init__(
        self,
        name: str,
        configuration: kubernetes_client.Configuration,
        *,
        timeout: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        configuration.retries = False  # urllib3 would repeat PUT and DELETE by itself
        configuration.connection_pool_maxsize = 32
        if _is_loopback(str(configuration.host)):
            configuration.proxy = None  # as every Go client does (net/http ProxyFromEnvironment)
        self.name = name
        self.configuration = configuration
        self.timeout = timeout
        self.sleep = sleep
        self.clock = clock
        self._api: Any = kubernetes_client.ApiClient(configuration)
        self._pool = self._api.rest_client.pool_manager
        self._requests = 0
        self._lock = threading.Lock()

    @classmethod
    def connect(
        cls,
        *,
        kubeconfig: Path | str | None = None,
        context: str | None = None,
        name: str = "",
        in_cluster: bool = False,
        **options: Any,
    ) -> Self:
        """The cluster of a kubeconfig and context (kubectl's defaults if neither is given), or the one we run in.

        Raises:
            InvalidInput: The kubeconfig is missing, unreadable or lacks the context.
        """
        configuration = kubernetes_client.Configuration()
        where = "in-cluster service account" if in_cluster else str(kubeconfig or "default kubeconfig")
        try:
            if in_cluster:
                kubernetes_config.load_incluster_config(client_configuration=configuration)
            else:
                kubernetes_config.load_kube_config(
                    config_file=str(kubeconfig) if kubeconfig else None,
                    context=context,
                    client_configuration=configuration,
                )
        except HANDLED as error:
            raise InvalidInput(
                "cannot use this kubeconfig",
                where=f"{where}, context {context or '(current)'}",
                observed=str(error),
                expected="a readable kubeconfig with the wanted context",
                next_command="kubectl config get-contexts",
            ) from error
        except _NO_KUBECONFIG as error:
            raise InvalidInput(
                "this file is no kubeconfig",
                where=f"{where}, context {context or '(current)'}",
                observed=f"{type(error).__name__}: {error}",
                expected="YAML with clusters, users and contexts",
                next_command="kubectl config view",
            ) from None
        return cls(name or context or "cluster", configuration, **options)

    @property
    def requests(self) -> int:
        """How many requests were sent to the API server so far, port-forwards included."""
        return self._requests

    @property
    def host(self) -> str:
        """The API server's URL."""
        return str(self.configuration.host).rstrip("/")

    def count_request(self) -> None:
        """Note one more request; for transports that are not this class's own."""
        with self._lock:
            self._requests += 1

    def auth_headers(self) -> dict[str, str]:
        """User-Agent and, where the credentials are a token, Authorization (refreshed if it ran out)."""
        headers: dict[str, str] = {"User-Agent": user_agent()}
        self._api.update_params_for_auth(headers, [], ["BearerToken"], "", "GET", None)
        return headers

    def close(self) -> None:
        """Close the pooled connections."""
        self._api.close()

    def send(
        self,
        call: Call,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        *,
        body: Body | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Object:
        """One request, and its answer as a JSON object ({} for an empty one).

        Args:
            call: What it is, for errors.
            query: Parameters; empty ones are left out.

        Raises:
            CapstanError: As `capstan.cluster.errors` has it for the answer, or for none.
        """
        headers = {"Accept": accept}
        payload = None
        if body is not None:
            payload = json.dumps(body).encode()
            headers["Content-Type"] = content_type
        try:
            data = self._answer(call, method, path, query, headers, payload)
            decoded = json.loads(data) if data else {}
        except HANDLED as error:
            raise translate(error, call) from error
        if not isinstance(decoded, dict):
            raise ServerFault(
                call.what, where=call.where, observed=f"a JSON {type(decoded).__name__}", expected="a JSON object"
            )
        return decoded

    def send_for_text(self, call: Call, path: str, query: Mapping[str, str]) -> str:
        """A GET whose answer is plain text; what is no UTF-8 in it is replaced.

        Raises:
            CapstanError: As `send`.
        """
        try:
            # The server judges what it is asked to accept before it knows what it will answer with.
            data = self._answer(call, "GET", path, query, {"Accept": "application/json, */*"}, None)
        except HANDLED as error:
            raise translate(error, call) from error
        return data.decode("utf-8", "replace")

    def _answer(
        self,
        call: Call,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        headers: Mapping[str, str],
        payload: bytes | None,
    ) -> bytes:
        timeout = urllib3.Timeout(connect=min(10.0, self.timeout), read=self.timeout)
        response = self.request(method, path, query, headers=headers, body=payload, timeout=timeout)
        data: bytes = response.data
        if response.status >= 300:
            self.refuse(response.status, data, response.headers, call)
        return data

    def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout: urllib3.Timeout,
        preload_content: bool = True,
    ) -> Any:
        """One request, and urllib3's response whatever its status; its exceptions are not translated."""
        self.count_request()
        wanted = {key: value for key, value in (query or {}).items() if value}
        url = f"{self.host}{path}" + (f"?{urlencode(wanted)}" if wanted else "")
        return self._pool.request(
            method,
            url,
            body=body,
            headers={**self.auth_headers(), **(headers or {})},
            timeout=timeout,
            preload_content=preload_content,
            redirect=False,
        )

    def refuse(self, code: int, body: bytes | str, headers: Mapping[str, str] | None, call: Call) -> NoReturn:
        """Raise what an answer that is no success stands for; `Expired` where a watch's version is gone."""
        error = from_status(code, body, headers, call)
        if code == 410 and call.verb == "watch":
            raise Expired(
                error.what, where=error.where, observed=error.observed, expected=error.expected,
                next_command=error.next_command,
            )  # fmt: skip
        raise error


# What the official client raises on files of another shape: it reads them without looking.
_NO_KUBECONFIG = (AttributeError, KeyError, TypeError, ValueError, YAMLError)


def _is_loopback(url: str) -> bool:
    host = urlparse(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
