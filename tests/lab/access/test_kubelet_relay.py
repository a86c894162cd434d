"""Logs and streams through the API server, with a kubelet's end played by a plain TLS socket."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import os
import select
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import pytest
from access_lab import Lab, make_pair
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Kubelet:
    """Accepts TLS with the cluster's client certificates, reads a request head, lets `handler` do the rest."""

    def __init__(self, directory: Path, ca_pem: str) -> None:
        names = (x509.IPAddress(ipaddress.ip_address("127.0.0.1")),)
        pair = make_pair(directory, "kubelet", "kubelet", usages=(ExtendedKeyUsageOID.SERVER_AUTH,), names=names)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(pair.certificate_file, pair.key_file)
        self.context.load_verify_locations(cadata=ca_pem)
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.handler: Callable[[ssl.SSLSocket, bytes], None] = lambda _s, _h: None
        self.heads: list[bytes] = []
        self.subjects: list[str] = []
        self.closed = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(raw,), daemon=True).start()

    def _serve(self, raw: socket.socket) -> None:
        try:
            with self.context.wrap_socket(raw, server_side=True) as tls:
                presented = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
                self.subjects.append(str(presented.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value))
                data = b""
                while b"\r\n\r\n" not in data:
                    data += tls.recv(65536)
                head, _, rest = data.partition(b"\r\n\r\n")
                self.heads.append(head)
                self.handler(tls, rest)
        except OSError:
            pass
        finally:
            self.closed.set()


@pytest.fixture(scope="module")
def node(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubelet]:
    """A node with pod `run` (containers main and side) of namespace `relay` on it, and pod `pend` on none."""
    kubelet = Kubelet(tmp_path_factory.mktemp("kubelet"), lab.server.ca_pem)
    addresses = [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "127.0.0.1"}]
    status = {"addresses": addresses, "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet.port}}}
    lab.create("/api/v1/nodes", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "status": status})
    lab.namespace("relay")
    pod: dict[str, Any] = {"apiVersion": "v1", "kind": "Pod"}
    two = [{"name": "main", "image": "i"}, {"name": "side", "image": "i"}]
    spec = {"nodeName": "n1", "containers": two, "initContainers": [{"name": "init", "image": "i"}]}
    lab.create("/api/v1/namespaces/relay/pods", {**pod, "metadata": {"name": "run"}, "spec": spec})
    lab.create("/api/v1/namespaces/relay/pods", {**pod, "metadata": {"name": "pend"}, "spec": {"containers": two[:1]}})
    yield kubelet
    kubelet.listener.close()


@pytest.fixture
def kubelet(node: Kubelet) -> Kubelet:
    node.heads.clear()
    node.subjects.clear()
    node.closed.clear()
    return node


LOG = "/api/v1/namespaces/relay/pods/run/log"


def reply(answer: bytes) -> Callable[[ssl.SSLSocket, bytes], None]:
    def handler(tls: ssl.SSLSocket, _rest: bytes) -> None:
        tls.sendall(answer)

    return handler


def test_a_log_is_the_kubelets_answer_and_the_server_shows_its_own_certificate(lab: Lab, kubelet: Kubelet) -> None:
    kubelet.handler = reply(OK + chunk(b"one\n") + chunk(b"two\n") + b"0\r\n\r\n")
    answer = lab.admin.get(f"{LOG}?container=main&tailLines=2&timestamps=true&previous=false&limitBytes=9")
    assert (answer.status_code, answer.text) == (200, "one\ntwo\n")
    assert answer.headers["content-type"] == "text/plain"
    assert kubelet.subjects == ["kube-apiserver-kubelet-client"]
    target = kubelet.heads[0].split(b" ")[1]
    assert target == b"/containerLogs/relay/run/main?limitBytes=9&tailLines=2&timestamps=true"


def test_a_followed_log_arrives_as_it_is_written_and_the_kubelet_learns_that_the_client_left(
    lab: Lab, kubelet: Kubelet
) -> None:
    gone = threading.Event()

    def follow(tls: ssl.SSLSocket, _rest: bytes) -> None:
        tls.sendall(OK + chunk(b"first\n"))
        tls.settimeout(5)
        assert tls.recv(1) == b""
        gone.set()

    kubelet.handler = follow
    with lab.admin.stream("GET", f"{LOG}?container=main&follow=true") as answer:
        assert next(answer.iter_raw()) == b"first\n"
        assert not gone.is_set()
    assert gone.wait(5)


@pytest.mark.parametrize(
    ("query", "code", "message"),
    [
        ("", 400, "a container name must be specified for pod run, choose one of: [main side] or one of the init "),
        ("?container=nope", 400, "container nope is not valid for pod run"),
        ("?container=main&tailLines=x", 400, 'parsing "x": invalid syntax'),
        ("?container=main&sinceSeconds=0", 422, "sinceSeconds: Invalid value: 0: must be greater than 0"),
        ("?container=main&limitBytes=0", 422, "limitBytes: Invalid value: 0: must be greater than 0"),
    ],
)
def test_bad_log_options_are_refused_before_any_kubelet_is_asked(
    lab: Lab, kubelet: Kubelet, query: str, code: int, message: str
) -> None:
    answer = lab.admin.get(LOG + query)
    assert answer.status_code == code
    assert message in answer.json()["message"]
    assert kubelet.heads == []


def test_a_kubelets_refusal_becomes_a_status(lab: Lab, kubelet: Kubelet) -> None:
    text = b'container "main" in pod "run" is waiting to start: ContainerCreating'
    kubelet.handler = reply(b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text))
    answer = lab.admin.get(f"{LOG}?container=main")
    assert (answer.status_code, answer.json()["reason"]) == (400, "BadRequest")
    assert answer.json()["message"] == text.decode()


def test_the_log_of_a_pod_without_a_node_is_204(lab: Lab, node: Kubelet) -> None:
    assert lab.admin.get("/api/v1/namespaces/relay/pods/pend/log").status_code == 204


def test_a_node_whose_kubelet_is_down_is_named_in_the_error(lab: Lab, node: Kubelet) -> None:
    body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "down"}}
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 9}},
    }
    lab.create("/api/v1/nodes", {**body, "status": status})
    spec = {"nodeName": "down", "containers": [{"name": "c", "image": "i"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lost"}, "spec": spec}
    lab.create("/api/v1/namespaces/relay/pods", pod)
    answer = lab.admin.get("/api/v1/namespaces/relay/pods/lost/log")
    assert answer.status_code == 500
    assert answer.json()["message"].endswith("dial tcp 127.0.0.1:9: connect: connection refused")


class Upgrade:
    """A raw client connection that asks for an upgrade."""

    def __init__(
        self, lab: Lab, path: str, upgrade: str, method: str = "POST", early: bytes = b"", **more: str
    ) -> None:
        raw = socket.create_connection((lab.server.host, lab.server.port), timeout=10)
        context = lab.context(lab.server.pki.admin)
        self.tls = context.wrap_socket(raw, server_hostname="localhost")
        headers = {"host": "localhost", "connection": "Upgrade", "upgrade": upgrade, **more}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.tls.sendall(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + early)
        data = b""
        while b"\r\n\r\n" not in data:
            data += self.tls.recv(65536)
        self.head, _, self.rest = data.partition(b"\r\n\r\n")

    def read(self, size: int) -> bytes:
        while len(self.rest) < size:
            data = self.tls.recv(65536)
            if not data:
                break
            self.rest += data
        out, self.rest = self.rest[:size], self.rest[size:]
        return out

    def exchange(self, data: bytes) -> bytes:
        """Send, and receive as much, at the same time; in one thread, for two at once corrupt an SSLSocket's state."""
        self.tls.setblocking(False)
        left, got = memoryview(data), bytearray(self.rest)
        self.rest = b""
        while len(got) < len(data):
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                while left:
                    left = left[self.tls.send(left[:16384]) :]
            try:
                chunk = self.tls.recv(65536)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                ready = select.select([self.tls], [self.tls] if left else [], [], 10)
                assert any(ready), f"nothing moves after {len(got)} of {len(data)} bytes"
                continue
            if not chunk:
                break
            got += chunk
        self.tls.setblocking(True)
        return bytes(got)


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"  # noqa: E501  # one head, as on the wire
FORWARD = "/api/v1/namespaces/relay/pods/run/portforward"


def echo(tls: ssl.SSLSocket, rest: bytes) -> None:
    tls.sendall(SWITCH + b"hello")
    data = rest or tls.recv(65536)
    while data:
        tls.sendall(data)
        data = tls.recv(65536)


def test_an_upgraded_stream_is_relayed_byte_for_byte_in_both_directions(lab: Lab, kubelet: Kubelet) -> None:
    kubelet.handler = echo
    payload = os.urandom(3_000_000)
    client = Upgrade(lab, FORWARD, "SPDY/3.1", early=b"early")
    assert client.head.startswith(b"HTTP/1.1 101 ")
    assert b"X-Stream-Protocol-Version: v4.channel.k8s.io" in client.head
    assert client.read(10) == b"helloearly"
    assert client.exchange(payload) == payload
    client.tls.close()
    assert kubelet.closed.wait(5)


def test_the_kubelet_sees_the_upgrade_headers_but_not_the_clients_credentials(lab: Lab, kubelet: Kubelet) -> None:
    kubelet.handler = echo
    key = base64.b64encode(os.urandom(16)).decode()
    more = {
        "sec-websocket-key": key,
        "sec-websocket-version": "13",
        "sec-websocket-protocol": "v4.channel.k8s.io",
        "authorization": "Bearer not-looked-at",
        "impersonate-user": "kubernetes-admin",
        "impersonate-group": "system:masters",
    }
    client = Upgrade(lab, f"{FORWARD}?ports=80&ports=81", "websocket", method="GET", **more)
    assert client.head.startswith(b"HTTP/1.1 101 ")
    client.tls.close()
    head = kubelet.heads[0].lower()
    assert head.startswith(b"get /portforward/relay/run?port=80%2c81 http/1.1")
    assert f"sec-websocket-key: {key}".lower().encode() in head
    assert b"sec-websocket-protocol: v4.channel.k8s.io" in head
    assert b"authorization" not in head
    assert b"impersonate" not in head


def test_a_kubelet_which_does_not_upgrade_has_the_last_word(lab: Lab, kubelet: Kubelet) -> None:
    kubelet.handler = reply(b"HTTP/1.1 404 Not Found\r\ncontent-type: text/plain\r\ncontent-length: 9\r\n\r\nnot found")
    client = Upgrade(lab, "/api/v1/namespaces/relay/pods/run/exec?command=ls&container=main&stdout=true", "SPDY/3.1")
    assert client.head.startswith(b"HTTP/1.1 404 ")
    assert client.read(9) == b"not found"
    assert kubelet.heads[0].split(b" ")[1] == b"/exec/relay/run/main?command=ls&output=1"


def test_the_kubelet_closing_a_stream_closes_the_clients_connection(lab: Lab, kubelet: Kubelet) -> None:
    kubelet.handler = reply(SWITCH + b"bye")
    client = Upgrade(lab, FORWARD, "SPDY/3.1")
    assert client.read(100) == b"bye"


def test_streams_need_an_upgrade_a_node_and_the_right_to_them(lab: Lab, kubelet: Kubelet) -> None:
    plain = lab.admin.post(FORWARD)
    assert (plain.status_code, plain.json()["message"]) == (400, "Upgrade request required")
    pending = lab.admin.post("/api/v1/namespaces/relay/pods/pend/portforward")
    assert pending.json()["message"] == "pod pend does not have a host assigned"
    client = Upgrade(lab, FORWARD, "SPDY/3.1", **{"impersonate-user": "jane"})
    assert client.head.startswith(b"HTTP/1.1 403 ")
    assert kubelet.heads == []


def test_a_websocket_needs_the_right_to_create_streams_not_only_to_get_them(lab: Lab, kubelet: Kubelet) -> None:
    kubelet.handler = echo
    lab.service_account("relay", "forwarder")
    rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/relay"
    rule = {"apiGroups": [""], "resources": ["pods/portforward"], "verbs": ["get"]}
    meta = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "forwarder"}}
    lab.create(f"{rbac}/roles", {**meta, "kind": "Role", "rules": [rule]})
    subject = {"kind": "ServiceAccount", "name": "forwarder", "namespace": "relay"}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "forwarder"}
    lab.create(f"{rbac}/rolebindings", {**meta, "kind": "RoleBinding", "subjects": [subject], "roleRef": reference})
    who = {"impersonate-user": "system:serviceaccount:relay:forwarder"}
    assert Upgrade(lab, FORWARD, "websocket", method="GET", **who).head.startswith(b"HTTP/1.1 403 ")
    change = {"rules": [{**rule, "verbs": ["get", "create"]}]}
    headers = {"content-type": "application/merge-patch+json"}
    assert lab.admin.patch(f"{rbac}/roles/forwarder", json=change, headers=headers).status_code == 200
    client = Upgrade(lab, FORWARD, "websocket", method="GET", **who)
    assert client.head.startswith(b"HTTP/1.1 101 ")
    client.tls.close()


def test_a_kubelet_that_cannot_be_dialled_is_an_internal_error(lab: Lab, node: Kubelet) -> None:
    client = Upgrade(lab, "/api/v1/namespaces/relay/pods/lost/portforward", "SPDY/3.1")
    assert client.head.startswith(b"HTTP/1.1 500 ")


def test_proxying_to_loopback_addresses_is_refused_as_real_servers_do(lab: Lab, node: Kubelet) -> None:
    answer = lab.admin.get("/api/v1/namespaces/relay/pods/run/proxy/metrics")
    assert (answer.status_code, answer.json()["message"]) == (400, "address not allowed")
