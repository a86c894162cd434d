"""A certificate is presented to sidecars and istiods: Python's own TLS servers stand behind the port-forward."""

from __future__ import annotations

import contextlib
import datetime as dt
import socket
import ssl
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from capstan.cluster.peer_tls import ClientCertificate
from capstan.cluster.workloads import PodRef
from capstan.pki.mint import Minted, mint_leaf
from capstan.systems.base import ProbeReport, Verdict
from capstan.systems.istio.probe import probe
from tests.support.mesh import Mesh, intermediate, leaf, pem, root
from tests.systems.istio.test_writing_judgements import istiod, proxy, signer, view
from tests.systems.istio.writing import real_now

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from capstan.cluster.client import Cluster
    from tests.support.apiserver import Running

SPEC = {"containers": [{"name": "istio-proxy", "image": "docker.io/istio/proxyv2:1.30.1"}]}
OLD, NEW = root("old"), root("new")
OLD_ISSUER, NEW_ISSUER = intermediate("Old CA", OLD), intermediate("New CA", NEW)
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


def certificate_of(issuer: Minted) -> ClientCertificate:
    made = mint_leaf(issuer, "spiffe://cluster.local/ns/capstan/sa/probe", real_now(), validity=dt.timedelta(minutes=9))
    return ClientCertificate((pem(made, issuer)).encode(), made.key.pem())


@pytest.fixture
def mesh(fresh_api: Running, cluster: Cluster) -> Iterator[Mesh]:
    mesh = Mesh(fresh_api, cluster)
    yield mesh
    mesh.close()


class Listener:
    """A port of a pod; `serve` is called with every connection."""

    def __init__(self, address: str, port: int, serve) -> None:
        self.listener = socket.create_server((address, port))
        self.serve = serve
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5)
                self.serve(connection)


@pytest.fixture
def listen(tmp_path: Path) -> Iterator:
    opened: list[Listener] = []

    def tls(address: str, port: int, *, trusts: Minted, alpn: str, answer: bytes, required: bool) -> None:
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        chain = pem(leaf(NEW_ISSUER, "spiffe://cluster.local/ns/shop/sa/web", key=key.public_key()), NEW_ISSUER)
        file = tmp_path / f"{address}-{port}.pem"
        file.write_text(chain + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        context.load_verify_locations(cadata=pem(trusts))
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
        context.set_alpn_protocols([alpn])

        def serve(connection: socket.socket) -> None:
            with context.wrap_socket(connection, server_side=True) as secured:
                if secured.selected_alpn_protocol() == alpn and secured.recv(4096):
                    secured.sendall(answer)

        opened.append(Listener(address, port, serve))

    def plain(address: str, port: int, serve) -> None:
        opened.append(Listener(address, port, serve))

    listeners = type("Listeners", (), {"tls": staticmethod(tls), "plain": staticmethod(plain)})
    yield listeners
    for each in opened:
        each.listener.shutdown(socket.SHUT_RDWR)  # closing alone leaves it listening while its thread is in accept(2)
        each.listener.close()


def asked(cluster: Cluster, issuer: Minted, sidecars: tuple[str, ...] = (), istiods: tuple[str, ...] = (), **more):
    found = tuple(replace(proxy(pod=name), ref=PodRef("shop", name, "uid")) for name in sidecars)
    signers = tuple(istiod(signer(name=name)) for name in istiods)
    return probe(cluster, view(signers, found), certificate_of(issuer), timeout=3, **more)


def verdicts(report: ProbeReport) -> dict[str, Verdict]:
    return {found.peer.rpartition("/")[2]: found.verdict for found in report.probes}


def test_sidecars_and_istiods_refuse_what_they_do_not_trust_and_accept_what_they_do(
    mesh: Mesh, cluster: Cluster, listen
) -> None:
    web, signing = mesh.pod("shop", "web-1", SPEC), mesh.pod("istio-system", "istiod-1", SPEC)
    listen.tls(web, 15006, trusts=NEW, alpn="istio", answer=b"HTTP/1.1 404 Not Found\r\n\r\n", required=True)
    listen.tls(signing, 15012, trusts=NEW, alpn="h2", answer=SETTINGS, required=False)
    old = asked(cluster, OLD_ISSUER, ("web-1",), ("istiod-1",))
    new = asked(cluster, NEW_ISSUER, ("web-1",), ("istiod-1",))
    assert verdicts(old) == {"web-1": Verdict.REFUSED, "istiod-1": Verdict.REFUSED}
    assert verdicts(new) == {"web-1": Verdict.ACCEPTED, "istiod-1": Verdict.ACCEPTED}
    assert "unknown ca" in old.probes[0].detail


def test_a_sidecar_that_closes_its_inbound_port_without_a_byte_is_not_in_the_report(
    mesh: Mesh, cluster: Cluster, listen
) -> None:
    """As Istio's own chain virtualInbound-blackhole does with connections made to 15006 itself."""
    listen.plain(mesh.pod("shop", "web-1", SPEC), 15006, lambda connection: connection.recv(4096))
    assert verdicts(asked(cluster, OLD_ISSUER, ("web-1",))) == {}


def test_an_istiod_that_closes_without_a_byte_gave_no_answer(mesh: Mesh, cluster: Cluster, listen) -> None:
    listen.plain(mesh.pod("istio-system", "istiod-1", SPEC), 15012, lambda connection: connection.recv(4096))
    assert verdicts(asked(cluster, OLD_ISSUER, (), ("istiod-1",))) == {"istiod-1": Verdict.NO_ANSWER}


def test_a_port_that_nobody_listens_on_and_half_an_answer_are_no_proof(mesh: Mesh, cluster: Cluster, listen) -> None:
    mesh.pod("shop", "web-1", SPEC)

    def half(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(b"\x16\x03\x03")

    listen.plain(mesh.pod("shop", "web-2", SPEC), 15006, half)
    found = verdicts(asked(cluster, OLD_ISSUER, ("web-1", "web-2")))
    assert found == {"web-1": Verdict.NO_ANSWER, "web-2": Verdict.NO_ANSWER}


def test_only_who_is_wanted_is_asked(mesh: Mesh, cluster: Cluster) -> None:
    report = asked(cluster, OLD_ISSUER, ("web-1", "web-2"), ("istiod-1",), wanted={"lab/shop/web-2"})
    assert list(verdicts(report)) == ["web-2"]
    assert len(asked(cluster, OLD_ISSUER, ("web-1", "web-2"), ("istiod-1",), limit=2).probes) == 2
