"""An API server that cannot be reached, or is not the right one: one clear error each, and no waiting for nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from kubernetes import client as kubernetes_client

from capstan.cluster.client import Cluster
from capstan.cluster.lease import LeaseLock
from capstan.cluster.portforward import PodStream
from capstan.cluster.record import RecordStore
from capstan.cluster.resources import CONFIG_MAPS, LEASES, NAMESPACES
from capstan.config import ClusterRef, request_timeout, retry_for
from capstan.errors import Conflict, Denied, InvalidInput, LockHeld, ServerFault, Unreachable
from capstan.systems.opening import connect
from infra.lab.apiserver.certificates import ClusterPki

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UNREACHABLE = "API unreachable"


def at(host: str, **options: object) -> Cluster:
    configuration = kubernetes_client.Configuration(host=host)
    configuration.verify_ssl = False
    return Cluster("east", configuration, sleep=lambda _seconds: None, **options)


@contextlib.contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server of plain TCP that does this with each connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def serve() -> None:
            server.settimeout(0.05)
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    connection, _ = server.accept()
                    with connection:
                        answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        stop.set()
        thread.join(5)


@pytest.mark.proves("faults", UNREACHABLE, "a refused connection: where, and the command that shows the cluster")
def test_a_refused_connection_says_where_and_what_to_look_at():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unreachable) as caught:
        at(f"https://127.0.0.1:{port}").get(NAMESPACES, "default")
    error = caught.value
    assert (error.what, error.where) == ("cannot get namespaces", "namespaces default in cluster east")
    assert "Connection refused" in error.observed
    assert error.next_command == "kubectl cluster-info"


@pytest.mark.proves("faults", UNREACHABLE, "a name that does not resolve is named")
def test_a_name_that_does_not_resolve_is_named():
    with pytest.raises(Unreachable) as caught:
        at("https://api.no-such-cluster.invalid:6443").get(NAMESPACES, "default")
    assert "api.no-such-cluster.invalid" in caught.value.observed
    assert "NameResolutionError" in caught.value.observed


@pytest.mark.proves("faults", "timeouts", "a silent server: as long as the user says, four times for a read")
def test_a_server_that_never_answers_costs_no_more_than_the_user_said():
    silent = threading.Event()
    with listening(lambda _connection: silent.wait(0.5) and None) as host:
        began = time.monotonic()
        with pytest.raises(Unreachable, match="cannot get namespaces") as caught:
            at(host, timeout=0.1).get(NAMESPACES, "default")
        assert time.monotonic() - began < 5
    assert "imed out" in caught.value.observed


def test_half_an_answer_is_no_answer():
    def half(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 400\r\n\r\n{"kind":')

    with listening(half) as host, pytest.raises(Unreachable):
        at(host).get(NAMESPACES, "default")


@pytest.mark.parametrize(
    "body", [b"<html>Sign in</html>", b"[]", b"", b'{"a": 1}'], ids=["html", "list", "empty", "other"]
)
def test_a_portal_in_front_of_the_api_server_is_no_cluster_without_objects(body):
    def portal(connection: socket.socket) -> None:
        connection.recv(4096)
        head = f"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        connection.sendall(head.encode() + body)

    with listening(portal) as host:
        for ask in (lambda: at(host).list(NAMESPACES), lambda: at(host).find(NAMESPACES, "default")):
            with pytest.raises((Unreachable, ServerFault), match=r"cannot (list|get) namespaces"):
                ask()


@pytest.mark.proves("faults", UNREACHABLE, "TLS of another CA: permanent, by requests and port-forwards alike")
def test_a_server_that_speaks_no_tls_is_unreachable_and_one_of_another_ca_denied(running, tmp_path):
    with listening(lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")) as host:
        with pytest.raises(Unreachable) as caught:
            at(host.replace("http:", "https:")).get(NAMESPACES, "default")
        assert "SSL" in caught.value.observed
    ca = tmp_path / "ca.pem"
    ca.write_text(ClusterPki(tmp_path, "127.0.0.1").ca_pem)
    configuration = running.connect().configuration
    configuration.ssl_ca_cert = str(ca)
    stranger = Cluster("east", configuration, sleep=lambda _seconds: None)
    for ask in (lambda: stranger.get(NAMESPACES, "default"), lambda: PodStream(stranger, "a", "b", 4191)):
        with pytest.raises(Denied) as denied:
            ask()
        assert "certificate-authority" in denied.value.expected
        assert denied.value.next_command == "kubectl config view --minify"


def test_credentials_that_the_server_does_not_know_are_denied_and_not_repeated(running):
    slept: list[float] = []
    configuration = kubernetes_client.Configuration(host=running.server.url, api_key={"authorization": "Bearer stale"})
    configuration.ssl_ca_cert = running.connect().configuration.ssl_ca_cert
    with pytest.raises(Denied) as caught:
        Cluster("east", configuration, sleep=slept.append).get(NAMESPACES, "default")
    assert "HTTP 401 Unauthorized" in caught.value.observed
    assert caught.value.next_command == "kubectl auth whoami"
    assert slept == []


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 30.0), ("2.5", 2.5), ("120", 120.0)], ids=["default", "short", "long"]
)
def test_how_long_a_request_may_take_is_the_users_to_say(running, monkeypatch, text, seconds):
    monkeypatch.setenv("CAPSTAN_REQUEST_TIMEOUT", text)
    cluster = connect(ClusterRef(kubeconfig=str(running.server.kubeconfig)))
    assert cluster.timeout == seconds
    cluster.close()


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf", "0x10"])
def test_a_duration_that_is_none_is_refused_by_name(monkeypatch, text):
    for variable, read in (("CAPSTAN_REQUEST_TIMEOUT", request_timeout), ("CAPSTAN_RETRY_FOR", retry_for)):
        monkeypatch.setenv(variable, text)
        with pytest.raises(InvalidInput) as caught:
            read()
        assert caught.value.where == f"${variable}"
        assert variable in caught.value.next_command


@pytest.mark.proves("faults", "409", "a lock that is written by somebody else each time: given up, and no busy loop")
def test_a_lease_that_conflicts_for_ever_is_given_up(running, faults):
    slept: list[float] = []
    cluster = running.connect(sleep=slept.append)
    lock = LeaseLock(cluster, "conflicting")
    faults(method="POST", path="/leases$", times=0, action={"status": 409})
    before = cluster.requests
    with pytest.raises(Conflict, match="cannot create leases"):
        lock.acquire()
    assert cluster.requests - before < 30
    assert slept == sorted(slept)
    assert sum(slept) > 1


def test_a_write_that_conflicts_says_to_run_again(running, namespace, faults):
    cluster = running.connect()
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": namespace}, "data": {}}
    made = cluster.create(CONFIG_MAPS, body)
    faults(method="PUT", path="/configmaps/a$", action={"status": 409})
    with pytest.raises(Conflict) as caught:
        cluster.replace(CONFIG_MAPS, made)
    assert caught.value.where == f"configmaps {namespace}/a in cluster test"
    assert caught.value.next_command.startswith("run the same command again; it observes first")


@pytest.mark.proves("faults", "Lease taken by somebody else", "the next step that would change the cluster is refused")
def test_a_lock_that_was_taken_over_is_noticed_before_the_next_change(running):
    cluster = running.connect()
    lock = LeaseLock(cluster, "taken-over")
    with lock:
        store = RecordStore(cluster, "taken-over", lease=lock)
        store.require_lock()
        thief = {"spec": {"holderIdentity": "ci-runner-7/4711/c0ffee"}}
        cluster.patch(LEASES, lock.name, thief, "capstan-system")
        with pytest.raises(LockHeld, match="no longer holds its lock") as caught:
            store.require_lock()
        assert "held by ci-runner-7/4711/c0ffee" in caught.value.observed
        assert caught.value.next_command.startswith("run the same command again")
    # Leaving does not give back what is another's.
    assert cluster.get(LEASES, lock.name, "capstan-system")["spec"]["holderIdentity"] == "ci-runner-7/4711/c0ffee"
    cluster.delete(LEASES, lock.name, "capstan-system")


def test_a_lock_that_was_deleted_is_no_lock(running):
    cluster = running.connect()
    with LeaseLock(cluster, "deleted") as lock:
        cluster.delete(LEASES, lock.name, "capstan-system")
        with pytest.raises(LockHeld) as caught:
            RecordStore(cluster, "deleted", lease=lock).require_lock()
    assert "it was deleted" in caught.value.observed
