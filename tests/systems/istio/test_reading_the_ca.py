"""An istiod is asked for a certificate, by a gRPC server of Google's own library behind a real port-forward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest

from capstan.errors import Denied, ServerFault, Unreachable, VerificationFailed
from capstan.systems.istio.ca_client import LIFETIME, ask, decode_response, encode_request, serving_chain
from tests.support.mesh import Mesh, SigningService, encode_elements, intermediate, leaf, pem, root

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.cluster.client import Cluster
    from tests.support.apiserver import Running

SPEC = {"containers": [{"name": "discovery", "image": "docker.io/istio/pilot:1.30.1"}]}
ROOT, OTHER = root("old"), root("new")
ISSUER = intermediate("Intermediate CA", ROOT)


@pytest.fixture
def mesh(fresh_api: Running, cluster: Cluster) -> Iterator[Mesh]:
    mesh = Mesh(fresh_api, cluster)
    yield mesh
    mesh.close()


@pytest.fixture
def ca(mesh: Mesh) -> SigningService:
    service = SigningService(ISSUER, chain=pem(ISSUER, ROOT), roots=pem(ROOT, OTHER))
    mesh.ports.grpc_ca(mesh.pod("istio-system", "istiod-1", SPEC), service)
    return service


def test_an_istiod_says_what_it_signs_with_and_which_roots_it_hands_out(cluster, ca):
    signed = ask(cluster, "istio-system", "istiod-1", "a-token", timeout=5)
    assert signed.chain == (ISSUER.certificate,)
    assert signed.roots.certificates == (ROOT.certificate, OTHER.certificate)
    assert signed.serving[0].signed_by(ISSUER.certificate)
    assert ca.tokens == ["Bearer a-token"]
    assert ca.lifetimes == [LIFETIME]


def test_a_self_signed_ca_is_its_own_issuer(cluster, ca):
    ca.issuer, ca.chain, ca.roots = OTHER, "", pem(OTHER)
    signed = ask(cluster, "istio-system", "istiod-1", "a-token", timeout=5)
    assert signed.chain == (OTHER.certificate,)
    assert signed.roots.fingerprints == {OTHER.certificate.fingerprint}


def test_what_an_istiod_signs_with_is_what_it_signs_with_now_and_not_what_its_port_shows(cluster, ca):
    ca.issuer, ca.chain = (other := intermediate("Intermediate CA 2", OTHER)), pem(other, OTHER)
    signed = ask(cluster, "istio-system", "istiod-1", "a-token", timeout=5)
    assert signed.chain[0] == other.certificate
    assert not signed.serving[0].signed_by(other.certificate)


def test_the_serving_chain_tells_the_issuer_without_a_token(cluster, ca):
    chain = serving_chain(cluster, "istio-system", "istiod-1", timeout=5)
    assert chain[1] == ISSUER.certificate
    assert not ca.tokens


def test_a_token_that_is_not_accepted_is_a_denial_with_istiods_own_words(cluster, ca):
    ca.refuse = (grpc.StatusCode.UNAUTHENTICATED, "authentication failure: token audience")
    with pytest.raises(Denied) as caught:
        ask(cluster, "istio-system", "istiod-1", "a-token", timeout=5)
    assert "token audience" in caught.value.observed
    assert "a-token" not in str(caught.value)


def test_another_refusal_is_the_servers_fault(cluster, ca):
    ca.refuse = (grpc.StatusCode.INTERNAL, "CSR signing error (CA is not ready)")
    with pytest.raises(ServerFault) as caught:
        ask(cluster, "istio-system", "istiod-1", "a-token", timeout=5)
    assert "CA is not ready" in caught.value.observed


def test_a_signing_ca_that_is_not_sent_along_is_said_so(cluster, ca):
    ca.chain = ""
    with pytest.raises(VerificationFailed) as caught:
        ask(cluster, "istio-system", "istiod-1", "a-token", timeout=5)
    assert "cert-chain.pem" in caught.value.next_command


def test_a_certificate_of_another_key_is_not_believed(cluster, ca, monkeypatch):
    monkeypatch.setattr(ca, "_sign", lambda *_: encode_elements(pem(leaf(ISSUER)), pem(ISSUER), pem(ROOT)))
    with pytest.raises(ServerFault) as caught:
        ask(cluster, "istio-system", "istiod-1", "a-token", timeout=5)
    assert "another key" in caught.value.what


@pytest.mark.parametrize("elements", [(), ("no pem", "nor this"), (pem(leaf(ISSUER)),), (pem(leaf(ISSUER)), "")])
def test_what_is_no_chain_is_refused(cluster, ca, monkeypatch, elements):
    monkeypatch.setattr(ca, "_sign", lambda *_: encode_elements(*elements))
    with pytest.raises(ServerFault) as caught:
        ask(cluster, "istio-system", "istiod-1", "a-token", timeout=5)
    assert "no certificate chain" in caught.value.what


def test_a_port_where_nobody_listens_is_unreachable(cluster, mesh):
    mesh.pod("istio-system", "istiod-2", SPEC)
    with pytest.raises(Unreachable):
        ask(cluster, "istio-system", "istiod-2", "a-token", timeout=5)


def test_a_port_that_speaks_no_tls_is_unreachable_in_its_own_words(cluster, mesh):
    mesh.ports.http(mesh.pod("istio-system", "istiod-3", SPEC), 15012, {})
    with pytest.raises(Unreachable) as caught:
        ask(cluster, "istio-system", "istiod-3", "a-token", timeout=5)
    assert "TLS" in caught.value.what


def test_fields_that_a_later_version_adds_to_the_answer_are_skipped():
    answer = encode_elements("a", "b") + b"\x10\x96\x01" + b"\x1a\x02xy" + b"\x21" + b"\x00" * 8 + b"\x2d" + b"\x00" * 4
    assert decode_response(answer, "here") == ("a", "b")


@pytest.mark.parametrize("broken", [b"\x0a", b"\x0a\x05ab", b"\x0b", b"\x0a\x02\xff\xfe", b"\xff" * 12])
def test_bytes_that_are_no_message_are_refused(broken):
    with pytest.raises(ServerFault):
        decode_response(broken, "here")


def test_a_request_is_what_the_protocol_says():
    assert encode_request("csr", 300) == b"\x0a\x03csr\x18\xac\x02"
