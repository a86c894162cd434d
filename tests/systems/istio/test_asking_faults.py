"""An istiod whose port answers with something else than a certificate: each has one clear error, none is believed."""

from __future__ import annotations

import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.events
import pytest

from capstan.errors import Denied, ServerFault, Unreachable
from capstan.systems.istio.ca_client import ask
from tests.support.mesh import Mesh, SigningService, encode_elements, intermediate, pem, root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from capstan.cluster.client import Cluster
    from tests.support.apiserver import Running

SPEC = {"containers": [{"name": "discovery", "image": "docker.io/istio/pilot:1.30.1"}]}
ROOT = root("old")
ISSUER = intermediate("Intermediate CA", ROOT)


class Port:
    """istiod's port 15012, answering each connection by a script."""

    def __init__(self, address: str, directory: Path) -> None:
        chain, key = SigningService(ISSUER, chain=pem(ISSUER), roots=pem(ROOT)).serving()
        (directory / "serving.pem").write_bytes(key + chain)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(directory / "serving.pem")
        self.context.set_alpn_protocols(["h2"])
        self.script: Callable[[ssl.SSLSocket], None] = lambda _tls: None
        self._listening = socket.create_server((address, 15012))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listening.accept()
            except OSError:
                return
            try:
                with self.context.wrap_socket(plain, server_side=True) as tls:
                    self.script(tls)
            except OSError:
                plain.close()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)  # closing alone leaves it listening while its thread is in accept(2)
        self._listening.close()


@pytest.fixture
def port(fresh_api: Running, cluster: Cluster, tmp_path: Path) -> Iterator[Port]:
    mesh = Mesh(fresh_api, cluster)
    made = Port(mesh.pod("istio-system", "istiod-1", SPEC), tmp_path)
    yield made
    made.close()
    mesh.close()


def answering(
    body: bytes, *, status: str = "200", grpc_status: str = "0", again: bool = False, reset: bool = False
) -> Callable[[ssl.SSLSocket], None]:
    """A gRPC answer of these bytes, once the request is there."""

    def script(tls: ssl.SSLSocket) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        connection.initiate_connection()
        tls.sendall(connection.data_to_send())
        while True:
            ended = [
                event for event in connection.receive_data(tls.recv(65536)) if isinstance(event, h2.events.StreamEnded)
            ]
            tls.sendall(connection.data_to_send())
            if ended:
                break
        number: Any = ended[0].stream_id
        if reset:
            connection.reset_stream(number, error_code=7)
            tls.sendall(connection.data_to_send())
            return
        connection.send_headers(number, [(":status", status), ("content-type", "application/grpc")])
        while again:
            room = min(connection.local_flow_control_window(number), connection.max_outbound_frame_size)
            if room:
                connection.send_data(number, body[:room])
            else:
                connection.receive_data(tls.recv(65536))
            tls.sendall(connection.data_to_send())
        connection.send_data(number, body)
        connection.send_headers(number, [("grpc-status", grpc_status), ("grpc-message", "no%20more")], end_stream=True)
        tls.sendall(connection.data_to_send())
        tls.recv(65536)

    return script


def framed(message: bytes) -> bytes:
    return b"\x00" + len(message).to_bytes(4, "big") + message


def asked(cluster: Cluster) -> object:
    return ask(cluster, "istio-system", "istiod-1", "a-token", timeout=5)


@pytest.mark.parametrize(
    ("script", "error", "what"),
    [
        pytest.param(
            lambda tls: tls.unwrap(), Unreachable, "istiod ended the connection before it answered", id="ends"
        ),
        pytest.param(
            # (a DATA frame of stream 0, which belongs to no request)
            lambda tls: (tls.sendall(bytes(9)), tls.recv(65536), tls.recv(65536)),
            ServerFault, "istiod's answer is no HTTP/2", id="no HTTP/2",
        ),
        pytest.param(answering(b"", reset=True), Unreachable, "istiod broke the call off", id="reset"),
        pytest.param(answering(b"x" * 65536, again=True), ServerFault, "istiod's answer does not end", id="endless"),
        pytest.param(answering(b"\x00\x00"), ServerFault, "istiod's answer is no gRPC message", id="short"),
        pytest.param(
            answering(b"\x01" + framed(b"zip")[1:]), ServerFault, "istiod's answer is no gRPC message", id="compressed"
        ),
        pytest.param(
            answering(framed(b"\x0a\xff")), ServerFault, "istiod's answer is no IstioCertificateResponse", id="cut off"
        ),
        pytest.param(
            answering(framed(encode_elements("one"))), ServerFault, "istiod's answer is no certificate chain", id="text"
        ),
        pytest.param(answering(b"", grpc_status="14"), ServerFault, "istiod refused to sign", id="unavailable"),
        pytest.param(
            answering(b"", grpc_status="7"), Denied, "istiod did not accept Capstan's service account", id="denied"
        ),
        pytest.param(answering(b"", status="503", grpc_status="0"), ServerFault, "istiod refused to sign", id="503"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_has_an_error_of_its_own(cluster, port, script, error, what):
    port.script = script
    with pytest.raises(error) as caught:
        asked(cluster)
    assert caught.value.what == what
    assert "istiod-1" in caught.value.where
    assert "a-token" not in f"{caught.value!r} {caught.value}"


def test_a_port_without_http_2_is_said_to_be_one(cluster, port):
    port.context.set_alpn_protocols(["http/1.1"])
    with pytest.raises(Unreachable, match="istiod does not speak HTTP/2"):
        asked(cluster)
