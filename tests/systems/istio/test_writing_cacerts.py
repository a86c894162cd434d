"""The Secrets of a CA in the cluster are replaced under their version, in one write, and never deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from capstan.cluster.resources import SECRETS
from capstan.errors import Conflict, GateRefused, InvalidInput, InvalidPem, NotFound, OwnedElsewhere
from capstan.systems.istio.cacerts import CacertsSource
from capstan.systems.istio.owners import Tool
from capstan.systems.istio.self_signed import SelfSignedSource
from tests.pki.ca import make
from tests.systems.istio.writing import Ca, clock, entries_of, make_secret, new_namespace, pem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.cluster.client import Cluster
    from tests.support.apiserver import Running

OLD, NEW = Ca.of("A"), Ca.of("B")
BOTH = pem(OLD.root.certificate, NEW.root.certificate)


@pytest.fixture
def shared(api: Running) -> Iterator[Cluster]:
    cluster = api.connect(sleep=lambda _seconds: None)
    yield cluster
    cluster.close()


@pytest.fixture
def namespace(shared: Cluster) -> str:
    return new_namespace(shared)


def source(cluster: Cluster, namespace: str, **options) -> CacertsSource:
    return CacertsSource(cluster, namespace, now=clock, **options)


def test_roots_are_written_byte_for_byte_and_a_second_time_nothing_is(shared: Cluster, namespace: str) -> None:
    make_secret(shared, namespace, OLD.entries())
    (first,) = source(shared, namespace).ensure(root_cert=BOTH)
    (second,) = source(shared, namespace).ensure(root_cert=BOTH)
    assert entries_of(shared, namespace) == OLD.entries(BOTH)
    assert (first.written, second.written) == (True, False)
    assert first.version_after == second.version_before != first.version_before


def test_issuer_key_chain_and_roots_change_in_one_write(shared: Cluster, namespace: str) -> None:
    make_secret(shared, namespace, OLD.entries(BOTH))
    twice = BOTH + pem(NEW.root.certificate)
    (change,) = source(shared, namespace).ensure(root_cert=twice, issuer=NEW.material)
    assert change.why == "it held other roots; it held another issuer"
    assert entries_of(shared, namespace) == NEW.entries(twice)
    assert source(shared, namespace).read_issuer().certificate == NEW.issuer.certificate


def test_the_same_issuer_with_its_key_in_another_format_is_left_as_it_is(shared: Cluster, namespace: str) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pkcs8 = OLD.issuer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    make_secret(shared, namespace, OLD.entries() | {"ca-key.pem": pkcs8})
    (change,) = source(shared, namespace).ensure(issuer=OLD.material)
    assert not change.written
    source(shared, namespace).ensure(root_cert=BOTH)
    assert entries_of(shared, namespace)["ca-key.pem"] == pkcs8


def test_what_else_is_in_the_secret_stays(shared: Cluster, namespace: str) -> None:
    make_secret(shared, namespace, OLD.entries() | {"note.txt": "ours"}, labels={"team": "mesh"})
    source(shared, namespace).ensure(root_cert=BOTH)
    assert entries_of(shared, namespace)["note.txt"] == "ours"
    assert shared.get(SECRETS, "cacerts", namespace)["metadata"]["labels"] == {"team": "mesh"}


def test_an_issuer_whose_root_is_not_there_yet_is_refused_and_nothing_is_written(
    shared: Cluster, namespace: str
) -> None:
    make_secret(shared, namespace, OLD.entries())
    with pytest.raises(GateRefused, match="does not verify against the roots at the source"):
        source(shared, namespace).ensure(issuer=NEW.material)
    assert entries_of(shared, namespace) == OLD.entries()


def test_the_root_of_the_present_issuer_cannot_be_taken_away(shared: Cluster, namespace: str) -> None:
    make_secret(shared, namespace, OLD.entries(BOTH))
    with pytest.raises(Exception, match="does not verify"):
        source(shared, namespace).ensure(root_cert=pem(NEW.root.certificate))
    assert entries_of(shared, namespace) == OLD.entries(BOTH)


def test_a_list_of_revocations_without_the_new_ca_stops_the_switch(shared: Cluster, namespace: str) -> None:
    make_secret(shared, namespace, OLD.entries(BOTH) | {"ca-crl.pem": "-----BEGIN X509 CRL-----\nx"})
    with pytest.raises(InvalidInput, match=r"ca-crl\.pem"):
        source(shared, namespace).ensure(issuer=NEW.material)


def test_a_write_in_between_is_a_conflict(shared: Cluster, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make_secret(shared, namespace, OLD.entries())
    replace = shared.replace

    def after_somebody_else(resource, body, **options):
        other = shared.get(SECRETS, "cacerts", namespace)
        other["metadata"]["labels"] = {"somebody": "else"}
        replace(resource, other)
        return replace(resource, body, **options)

    monkeypatch.setattr(shared, "replace", after_somebody_else)
    with pytest.raises(Conflict):
        source(shared, namespace).ensure(root_cert=BOTH)


@pytest.mark.parametrize(
    ("marks", "tool"),
    [
        ({"annotations": {"meta.helm.sh/release-name": "istio"}}, Tool.HELM),
        ({"annotations": {"argocd.argoproj.io/tracking-id": "x"}}, Tool.ARGO),
        ({"labels": {"kustomize.toolkit.fluxcd.io/name": "x"}}, Tool.FLUX),
        ({"annotations": {"cert-manager.io/certificate-name": "istio-ca"}}, Tool.CERT_MANAGER),
        ({"labels": {"reconcile.external-secrets.io/managed": "true"}}, Tool.EXTERNAL_SECRETS),
        ({"labels": {"secrets-store.csi.k8s.io/managed": "true"}}, Tool.SECRETS_STORE),
    ],
)
def test_a_secret_that_a_tool_would_write_again_is_left_to_it(
    shared: Cluster, namespace: str, marks: dict, tool: Tool
) -> None:
    make_secret(shared, namespace, OLD.entries(), **marks)
    with pytest.raises(OwnedElsewhere, match=tool.value) as caught:
        source(shared, namespace).ensure(root_cert=BOTH)
    assert NEW.root.certificate.pem().splitlines()[1] in caught.value.next_command
    assert "PRIVATE KEY" not in str(caught.value)
    (change,) = source(shared, namespace, accept=[tool]).ensure(root_cert=BOTH)
    assert change.written


def tls_entries(ca: Ca) -> dict[str, str]:
    return {"tls.crt": pem(ca.issuer.certificate), "tls.key": ca.key.pem().decode(), "ca.crt": pem(ca.root.certificate)}


def test_the_tls_form_is_read_as_istiod_reads_it_and_wins_over_the_other(shared: Cluster, namespace: str) -> None:
    make_secret(shared, namespace, tls_entries(OLD) | NEW.entries())
    assert source(shared, namespace).read().ca_cert == pem(OLD.issuer.certificate)
    assert source(shared, namespace).read_issuer().chain == (OLD.issuer.certificate,)


def test_an_opaque_secret_in_the_tls_form_becomes_the_istio_form_in_the_same_write(
    shared: Cluster, namespace: str
) -> None:
    make_secret(shared, namespace, tls_entries(OLD))
    (change,) = source(shared, namespace).ensure(root_cert=BOTH)
    assert change.written
    assert entries_of(shared, namespace) == OLD.entries(BOTH)


def test_a_secret_of_the_tls_type_cannot_hold_two_roots_and_the_way_out_is_told(
    shared: Cluster, namespace: str
) -> None:
    make_secret(shared, namespace, tls_entries(OLD), kind="kubernetes.io/tls")
    with pytest.raises(InvalidInput, match="cannot hold two roots") as caught:
        source(shared, namespace).ensure(root_cert=BOTH)
    assert "kubectl create secret generic cacerts" in caught.value.next_command
    assert entries_of(shared, namespace) == tls_entries(OLD)


def test_an_intermediate_under_the_same_root_fits_into_the_tls_type(shared: Cluster, namespace: str) -> None:
    make_secret(shared, namespace, tls_entries(OLD), kind="kubernetes.io/tls")
    next_one = Ca(OLD.root, make("Intermediate A2", OLD.root, path_length=0))
    source(shared, namespace).ensure(issuer=next_one.material)
    assert entries_of(shared, namespace) == tls_entries(next_one)


def test_a_missing_secret_and_a_missing_entry_are_told_apart(shared: Cluster, namespace: str) -> None:
    with pytest.raises(NotFound, match="secrets"):
        source(shared, namespace).read()
    entries = OLD.entries()
    del entries["root-cert.pem"]
    make_secret(shared, namespace, entries)
    with pytest.raises(NotFound, match="lacks an entry"):
        source(shared, namespace).read()


# --- self-signed -------------------------------------------------------------------------------------------------


def self_signed(cluster: Cluster, namespace: str) -> Ca:
    root = make("cluster.local")
    ca = Ca(root, root)
    entries = {"ca-cert.pem": pem(root.certificate), "ca-key.pem": ca.key.pem().decode(), "root-cert.pem": ""}
    entries |= {"cert-chain.pem": "", "key.pem": ""}
    make_secret(cluster, namespace, entries, name="istio-ca-secret", kind="istio.io/ca-root")
    return ca


def test_a_self_signed_ca_moves_to_cacerts_with_the_same_signer_and_one_root_more(
    shared: Cluster, namespace: str
) -> None:
    own = self_signed(shared, namespace)
    before = shared.get(SECRETS, "istio-ca-secret", namespace)
    roots = pem(own.root.certificate, NEW.root.certificate)
    (change,) = SelfSignedSource(shared, namespace, now=clock).ensure(root_cert=roots)
    made = entries_of(shared, namespace)
    assert made["root-cert.pem"] == roots
    assert made["ca-cert.pem"] == made["cert-chain.pem"] == pem(own.root.certificate)
    assert made["ca-key.pem"] == own.key.pem().decode()
    assert change.place == f"secret {namespace}/cacerts"
    assert shared.get(SECRETS, "istio-ca-secret", namespace) == before


def test_the_move_is_made_once_and_a_lost_answer_is_no_conflict(shared: Cluster, namespace: str) -> None:
    own = self_signed(shared, namespace)
    roots = pem(own.root.certificate, NEW.root.certificate)
    for _ in range(2):
        SelfSignedSource(shared, namespace, now=clock).ensure(root_cert=roots)
    with pytest.raises(Conflict):
        SelfSignedSource(shared, namespace, now=clock).ensure(root_cert=roots + pem(OLD.root.certificate))


def test_a_self_signed_istiod_is_never_given_another_key_at_once(shared: Cluster, namespace: str) -> None:
    own = self_signed(shared, namespace)
    roots = pem(own.root.certificate, NEW.root.certificate)
    with pytest.raises(GateRefused, match="after everybody trusts its root"):
        SelfSignedSource(shared, namespace, now=clock).ensure(root_cert=roots, issuer=NEW.material)
    assert shared.find(SECRETS, "cacerts", namespace) is None


def test_an_old_half_filled_cacerts_is_in_the_way_and_is_not_overwritten(shared: Cluster, namespace: str) -> None:
    own = self_signed(shared, namespace)
    make_secret(shared, namespace, {"root-cert.pem": pem(OLD.root.certificate)})
    with pytest.raises(Conflict):
        SelfSignedSource(shared, namespace, now=clock).ensure(root_cert=pem(own.root.certificate, NEW.root.certificate))


def test_what_stands_in_istio_ca_secret_beside_the_ca_is_no_truth(shared: Cluster, namespace: str) -> None:
    own = self_signed(shared, namespace)
    found = SelfSignedSource(shared, namespace, now=clock)
    assert found.read().root_cert == pem(own.root.certificate)
    assert found.read_issuer().certificate == own.root.certificate


def test_a_secret_with_a_broken_key_is_refused_without_quoting_it(shared: Cluster, namespace: str) -> None:
    make_secret(shared, namespace, OLD.entries() | {"ca-key.pem": "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n"})
    with pytest.raises(InvalidPem) as caught:
        source(shared, namespace).read_issuer()
    assert "c2VjcmV0" not in str(caught.value)
