"""Byte streams to a pod's port, through the API server's `pods/portforward`.

The official client's own PortForward starts a thread per stream, waits without a bound and dies in that thread on a
broken connection; so the few frames of the protocol are spoken here, on its WebSocket library and its configuration.

Protocol (v4.channel.k8s.io, the one every kubelet speaks): the first byte of a frame is the channel; for the one port
asked for, 0 is data and 1 is its error text; the first frame on each channel repeats the port, little endian.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import urlparse

import h11
import websocket

from capstan.cluster.errors import HANDLED, Call, redact, translate
from capstan.cluster.resources import PODS
from capstan.errors import ServerFault, Unreachable

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from capstan.cluster.client import Cluster

DATA: Final = 0
ERROR: Final = 1
MAX_ANSWER: Final = 4 * 1024 * 1024


class PodStream:
    """One connection to one port of one pod; a context manager.

    Args:
        timeout: Seconds that connecting, and later each wait for bytes, may take at most.

    Raises:
        NotFound: No such pod. Denied: no permission for pods/portforward.
        InvalidInput: The pod is not running on a node yet.
        Unreachable: Nobody answered, or nothing listens on that port.
    """

    def __init__(self, cluster: Cluster, namespace: str, pod: str, port: int, *, timeout: float = 10.0) -> None:
        self.call = Call("port-forward", PODS.plural, namespace, pod, cluster.name)
        self.port = port
        self._timeout = timeout
        self._opened = {DATA: False, ERROR: False}
        self._failure = ""
        self._ended = False
        try:
            self._socket = _connect(cluster, PODS.path(namespace, pod, "portforward") + f"?ports={port}", timeout)
        except HANDLED as error:
            raise translate(error, self.call) from error

    def __enter__(self) -> PodStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop the connection at once; nobody waits for a farewell."""
        self._ended = True
        self._socket.shutdown()

    def send(self, data: bytes) -> None:
        """Send bytes to the port."""
        try:
            self._socket.send_binary(bytes([DATA]) + data)
        except HANDLED as error:
            raise translate(error, self.call) from error

    def receive(self, timeout: float | None = None) -> bytes:
        """The next bytes from the port; empty when the other side has closed.

        Args:
            timeout: Seconds to wait; the stream's own if None.

        Raises:
            Unreachable: Nothing came in time, or the kubelet reported that the port cannot be reached.
        """
        while not self._ended:
            try:
                self._socket.settimeout(max(self._timeout if timeout is None else timeout, 0.01))
                opcode, frame = self._socket.recv_data(control_frame=True)
            except websocket.WebSocketConnectionClosedException:
                break
            except HANDLED as error:
                raise translate(error, self.call) from error
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                break
            if opcode not in (websocket.ABNF.OPCODE_BINARY, websocket.ABNF.OPCODE_TEXT) or not frame:
                continue
            channel, data = frame[0], bytes(frame[1:])
            if channel not in self._opened:
                raise self._broken(f"a frame on channel {channel}")
            if not self._opened[channel]:
                self._opened[channel] = True
                if int.from_bytes(data, "little") != self.port:
                    raise self._broken(f"a stream to port {int.from_bytes(data, 'little')}")
            elif channel == ERROR:
                self._failure += data.decode("utf-8", "replace")
                break
            elif data:
                return data
        self._ended = True
        if self._failure:
            raise self._unreachable(self._failure)
        return b""

    def _broken(self, observed: str) -> ServerFault:
        return ServerFault(
            self.call.what, where=self.call.where, observed=observed, expected=f"the two channels of port {self.port}"
        )

    def _unreachable(self, observed: str) -> Unreachable:
        return Unreachable(
            f"cannot reach port {self.port} of the pod",
            where=self.call.where,
            observed=redact(observed.strip()),
            expected="a process that listens there",
            next_command=f"kubectl describe pod {self.call.name} -n {self.call.namespace}",
        )


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A pod's answer to a GET.

    Attributes:
        headers: By their names in lower case; the last one of a name.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


def http_get(
    cluster: Cluster,
    namespace: str,
    pod: str,
    port: int,
    path: str,
    *,
    timeout: float = 10.0,
    limit: int = MAX_ANSWER,
) -> tuple[int, bytes]:
    """One plain-HTTP GET to a pod's port; the status and the body. Args, Raises: as `http_fetch`."""
    answer = http_fetch(cluster, namespace, pod, port, path, timeout=timeout, limit=limit)
    return answer.status, answer.body


def http_fetch(
    cluster: Cluster,
    namespace: str,
    pod: str,
    port: int,
    path: str,
    *,
    timeout: float = 10.0,
    limit: int = MAX_ANSWER,
) -> HttpAnswer:
    """One plain-HTTP GET to a pod's port.

    Args:
        limit: Bytes that the body may have.

    Raises:
        Unreachable: No whole answer came in time. ServerFault: The body is longer than `limit`.
        Others: see `PodStream`.
    """
    deadline = cluster.clock() + timeout
    connection = h11.Connection(our_role=h11.CLIENT)
    request = h11.Request(method="GET", target=path, headers=[("Host", "localhost"), ("Connection", "close")])
    opening = (connection.send(request) or b"") + (connection.send(h11.EndOfMessage()) or b"")
    with PodStream(cluster, namespace, pod, port, timeout=timeout) as stream:
        stream.send(opening)
        status, body = 0, b""
        headers: dict[str, str] = {}
        try:
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(stream.receive(deadline - cluster.clock()))
                elif isinstance(event, h11.Response):
                    status = event.status_code
                    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
                elif isinstance(event, h11.Data):
                    body += event.data
                    if len(body) > limit:
                        raise ServerFault(
                            f"the pod's answer to GET {path} does not end", where=stream.call.where,
                            observed=f"more than {limit} bytes", expected="a short answer",
                        )  # fmt: skip
                elif isinstance(event, h11.EndOfMessage):
                    return HttpAnswer(status, headers, body)
        except h11.RemoteProtocolError as error:
            raise Unreachable(
                f"no whole HTTP answer to GET {path}", where=stream.call.where, observed=str(error),
                expected=f"an HTTP server on port {port}",
            ) from error  # fmt: skip


def _connect(cluster: Cluster, path: str, timeout: float) -> Any:  # websocket.WebSocket, which is only partly annotated
    configuration = cluster.configuration
    url = urlparse(cluster.host)
    headers = [f"{key}: {value}" for key, value in cluster.auth_headers().items()]
    proxy = urlparse(configuration.proxy) if configuration.proxy else None
    stream = cast("Any", websocket.WebSocket(sslopt=_tls_options(cluster) if url.scheme == "https" else None))
    cluster.count_request()
    stream.connect(
        f"{'wss' if url.scheme == 'https' else 'ws'}://{url.netloc}{url.path}{path}",
        timeout=timeout,
        header=headers,
        subprotocols=["v4.channel.k8s.io"],
        suppress_origin=True,
        redirect_limit=0,
        http_proxy_host=proxy.hostname if proxy else None,
        http_proxy_port=proxy.port if proxy else 0,
        # Without a proxy in the configuration none from the environment may slip in either.
        http_no_proxy=(configuration.no_proxy or "").split(",") if proxy else [url.hostname],
    )
    return stream


def _tls_options(cluster: Cluster) -> dict[str, object]:
    """How to reach the API server; one context for all streams of a cluster, because making one costs more than a
    handshake."""
    configuration = cluster.configuration
    options: dict[str, object] = {"context": _context(_Identity.of(configuration))}
    if not configuration.verify_ssl or configuration.assert_hostname is False:
        options["check_hostname"] = False
    if configuration.tls_server_name:
        options["server_hostname"] = configuration.tls_server_name
    return options


@dataclass(frozen=True, slots=True)
class _Identity:
    """The parts of a client's configuration that a TLS context is made of."""

    verify: bool
    check_hostname: bool
    ca_file: str | None
    certificate_file: str | None
    key_file: str | None
    changed: tuple[int, ...]
    """When the files were last written: a pod's own CA file is replaced under it while it runs."""

    @classmethod
    def of(cls, configuration: Any) -> _Identity:
        files = (configuration.ssl_ca_cert, configuration.cert_file, configuration.key_file)
        return cls(
            bool(configuration.verify_ssl),
            bool(configuration.verify_ssl) and configuration.assert_hostname is not False,
            *files,
            tuple(Path(file).stat().st_mtime_ns for file in files if file),
        )


@lru_cache(maxsize=64)
def _context(identity: _Identity) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=identity.ca_file)  # without a file: the system's roots, as urllib3
    context.check_hostname = identity.check_hostname
    context.verify_mode = ssl.CERT_REQUIRED if identity.verify else ssl.CERT_NONE
    if identity.certificate_file:
        context.load_cert_chain(identity.certificate_file, identity.key_file)
    return context
