"""A re-dated root keeps its key and the bytes of its name, and only one entry of one Secret changes."""

from __future__ import annotations

import base64
import datetime as dt
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID

from capstan.cluster.resources import DEPLOYMENTS, SECRETS
from capstan.errors import GateRefused, InvalidCertificate, InvalidInput, OwnedElsewhere
from capstan.pki.inspect import Certificate
from capstan.pki.keys import PrivateKey
from capstan.pki.verify import verify_leaf
from capstan.systems.base import IssuerMaterial
from capstan.systems.istio import redate
from capstan.systems.istio.citadel import CitadelSource, outdated, workload_secrets
from tests.pki.ca import DAY, NOW, Pair, make
from tests.systems.istio.writing import clock, entries_of, make_secret, new_namespace, pem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.cluster.client import Cluster
    from tests.support.apiserver import Running

YEARS = 3650 * DAY


def istiods_root(kind: _ASN1Type = _ASN1Type.PrintableString, key=None) -> Pair:
    """As istiod makes it: O=cluster.local in a PrintableString, RSA, no identifiers but what Go adds."""
    key = key or rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "cluster.local", kind)])
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(NOW - DAY).not_valid_after(NOW + 20 * DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(False, False, False, False, False, True, False, False, False), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )  # fmt: skip
    return Pair(Certificate(builder.sign(key, hashes.SHA256())), key)


def material(root: Pair) -> IssuerMaterial:
    return IssuerMaterial((root.certificate,), PrivateKey(root.key))


@pytest.mark.parametrize("kind", [_ASN1Type.PrintableString, _ASN1Type.UTF8String])
def test_the_name_is_kept_byte_for_byte_whatever_string_type_it_has(kind: _ASN1Type) -> None:
    """`openssl req -subj` writes another type, and Go compares bytes: root-transition.sh's known trouble."""
    old = istiods_root(kind)
    new = redate.redated(material(old), YEARS, NOW)
    assert new.raw.subject.public_bytes() == old.certificate.raw.subject.public_bytes()
    assert new.raw.issuer.public_bytes() == old.certificate.raw.subject.public_bytes()
    assert (new.spki_sha256, new.ski) == (old.certificate.spki_sha256, old.certificate.ski)
    assert new.serial_number != old.certificate.serial_number
    assert new.not_after == NOW + YEARS


def test_leaves_of_the_old_root_verify_under_the_new_and_the_other_way_round() -> None:
    old = istiods_root()
    new = Pair(redate.redated(material(old), YEARS, NOW), old.key)
    uri = x509.UniformResourceIdentifier("spiffe://cluster.local/ns/a/sa/b")
    usages = [x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH]
    for signer, trusted in ((old, new), (new, old)):
        leaf = make("", signer, ca=False, san=[uri], eku=usages, end=NOW + DAY)
        assert verify_leaf(leaf.certificate, [], [trusted.certificate], NOW).anchor == trusted.certificate


def test_a_root_with_other_bytes_in_its_name_or_another_key_is_no_redate() -> None:
    old = istiods_root()
    utf8 = istiods_root(_ASN1Type.UTF8String, key=old.key)
    with pytest.raises(InvalidCertificate, match="its name, byte for byte"):
        redate.require_redate(old.certificate, utf8.certificate, "x")
    with pytest.raises(InvalidCertificate, match="its key"):
        redate.require_redate(old.certificate, istiods_root().certificate, "x")


@pytest.mark.parametrize("validity", [dt.timedelta(0), -DAY, 19 * DAY])
def test_a_life_that_is_not_longer_is_refused(validity: dt.timedelta) -> None:
    with pytest.raises(InvalidInput, match="later"):
        redate.redated(material(istiods_root()), validity, NOW)


# --- in the cluster ----------------------------------------------------------------------------------------------


@pytest.fixture
def shared(api: Running) -> Iterator[Cluster]:
    cluster = api.connect(sleep=lambda _seconds: None)
    yield cluster
    cluster.close()


def control_plane(cluster: Cluster, namespace: str, container: str = "discovery") -> None:
    name = "istiod" if container == "discovery" else "istio-citadel"
    labels = {"app": name}
    image = "docker.io/istio/pilot:1.30.1" if container == "discovery" else "docker.io/istio/citadel:1.3.0"
    mounts = [{"name": "cacerts", "mountPath": "/etc/cacerts", "readOnly": True}]
    cluster.create(DEPLOYMENTS, {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "replicas": 0, "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "containers": [{"name": container, "image": image, "volumeMounts": mounts}],
                    "volumes": [{"name": "cacerts", "secret": {"secretName": "cacerts", "optional": True}}],
                },
            },
        },
    })  # fmt: skip


@pytest.fixture
def namespace(shared: Cluster) -> str:
    name = new_namespace(shared)
    control_plane(shared, name)
    return name


def put_root(cluster: Cluster, namespace: str, root: Pair, **marks) -> None:
    key = PrivateKey(root.key).pem().decode()
    entries = {"ca-cert.pem": pem(root.certificate), "ca-key.pem": key, "root-cert.pem": "", "cert-chain.pem": ""}
    make_secret(cluster, namespace, entries, name="istio-ca-secret", kind="istio.io/ca-root", **marks)


def test_one_entry_of_the_secret_changes_and_a_second_time_nothing(shared: Cluster, namespace: str) -> None:
    old = istiods_root()
    put_root(shared, namespace, old)
    before = shared.get(SECRETS, "istio-ca-secret", namespace)
    new = redate.redated(redate.present(shared, namespace), YEARS, NOW)
    (first,) = redate.ensure_redated(shared, namespace, new, now=NOW)
    (second,) = redate.ensure_redated(shared, namespace, new, now=NOW)
    after = shared.get(SECRETS, "istio-ca-secret", namespace)
    assert (first.written, second.written) == (True, False)
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    expected = {**before["data"], "ca-cert.pem": base64.b64encode(pem(new).encode()).decode()}
    assert after["data"] == expected


def test_the_way_back_is_the_old_certificate_again(shared: Cluster, namespace: str) -> None:
    old = istiods_root()
    put_root(shared, namespace, old)
    entries = entries_of(shared, namespace, "istio-ca-secret")
    new = redate.redated(material(old), YEARS, NOW)
    redate.ensure_redated(shared, namespace, new, now=NOW)
    redate.ensure_redated(shared, namespace, old.certificate, now=NOW)
    assert entries_of(shared, namespace, "istio-ca-secret") == entries


def test_another_key_is_never_put_into_the_secret(shared: Cluster, namespace: str) -> None:
    put_root(shared, namespace, istiods_root())
    with pytest.raises(InvalidCertificate, match="its key"):
        redate.ensure_redated(shared, namespace, istiods_root().certificate, now=NOW)


def test_a_root_that_is_not_what_signs_is_left_alone(shared: Cluster, namespace: str) -> None:
    old = istiods_root()
    put_root(shared, namespace, old)
    make_secret(shared, namespace, {"ca-cert.pem": pem(old.certificate)})
    with pytest.raises(GateRefused, match="not what signs"):
        redate.ensure_redated(shared, namespace, redate.redated(material(old), YEARS, NOW), now=NOW)


def test_a_tools_secret_is_left_to_it(shared: Cluster, namespace: str) -> None:
    old = istiods_root()
    put_root(shared, namespace, old, annotations={"meta.helm.sh/release-name": "x"})
    with pytest.raises(OwnedElsewhere):
        redate.ensure_redated(shared, namespace, redate.redated(material(old), YEARS, NOW), now=NOW)


def test_a_ca_that_did_not_sign_itself_is_not_redated(shared: Cluster, namespace: str) -> None:
    root = make("Root")
    put_root(shared, namespace, make("Intermediate", root))
    with pytest.raises(InvalidCertificate, match="no self-signed root"):
        redate.present(shared, namespace)


# --- Citadel -----------------------------------------------------------------------------------------------------


def test_citadels_workload_secrets_are_all_read_and_each_that_is_behind_is_named(fresh_api: Running) -> None:
    cluster = fresh_api.connect()
    namespace = new_namespace(cluster)
    old = istiods_root(key=None)
    new = redate.redated(material(old), YEARS, NOW)
    leaf = make("leaf", old, ca=False, key=ec.generate_private_key(ec.SECP256R1()))
    for name, root in (("istio.default", new), ("istio.web", old.certificate)):
        entries = {"root-cert.pem": pem(root), "cert-chain.pem": pem(leaf.certificate), "key.pem": "k"}
        make_secret(cluster, namespace, entries, name=name, kind="istio.io/key-and-cert")
    make_secret(cluster, namespace, {"root-cert.pem": "x"}, name="istio.bad", kind="istio.io/key-and-cert")
    make_secret(cluster, namespace, {"root-cert.pem": pem(old.certificate)}, name="another")
    found = workload_secrets(cluster)
    assert [secret.name for secret in found] == [f"secret {namespace}/istio.{n}" for n in ("bad", "default", "web")]
    behind = outdated(found, new.fingerprint)
    assert [line.split(":")[0] for line in behind] == [f"secret {namespace}/istio.{n}" for n in ("bad", "web")]
    cluster.close()


def test_citadel_is_given_no_second_root_and_no_other_key(shared: Cluster) -> None:
    namespace = new_namespace(shared)
    control_plane(shared, namespace, "citadel")
    old, other = istiods_root(), istiods_root()
    put_root(shared, namespace, old)
    source = CitadelSource(shared, namespace, now=clock)
    with pytest.raises(GateRefused, match="without a gap"):
        source.ensure(root_cert=pem(old.certificate, other.certificate))
    with pytest.raises(GateRefused, match="without a gap"):
        source.ensure(issuer=material(other))
    (change,) = source.ensure(root_cert=pem(old.certificate), issuer=material(old))
    assert not change.written
    new = redate.redated(redate.present(shared, namespace), YEARS, NOW)
    assert redate.ensure_redated(shared, namespace, new, now=NOW)[0].written
