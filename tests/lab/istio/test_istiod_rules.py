"""The lab's istiod where no recorded trace looks: each rule is one of its source (istio 1.14.3, security/pkg and
pilot/pkg/bootstrap; other versions where a test says so).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from infra.lab.istio.istiod import bundle as bundles
from infra.lab.istio.istiod import leaves
from tests.lab.istio import istiod_replay as lab

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.istio.istiod_replay import Istiod

WEB = "spiffe://cluster.local/ns/app/sa/web"
PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER
EC_PARAMETERS = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"


def csr(common_name: str = "", key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | None = None) -> bytes:
    """A request in DER."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else [])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()).public_bytes(DER)


def armored(der: bytes) -> str:
    return x509.load_der_x509_csr(der).public_bytes(PEM).decode()


def broken(der: bytes) -> bytes:
    """The same with a signature that does not fit."""
    return der[:-1] + bytes([der[-1] ^ 1])


# --- CreateCertificate ----------------------------------------------------------------------------------------------


def test_what_a_request_may_be_is_judged_as_istiod_does(tmp_path: Path) -> None:
    async def script(istiod: Istiod) -> None:
        istiod.start()
        await istiod.ready()
        # (1) A common name of any kind asks for the identity as a common name; names stay critical.
        dual = (await istiod.create_certificate(request=armored(csr("anything")))).leaf
        assert [(a.value, a._type.name) for a in dual.subject] == [(WEB, "PrintableString")]
        names = dual.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        assert (names.critical, names.value.get_values_for_type(x509.UniformResourceIdentifier)) == (True, [WEB])
        # (2) No one looks at the request's signature, nor at the kind of its key.
        assert (await istiod.create_certificate(request=armored(broken(csr())))).code == "OK"
        other = await istiod.create_certificate(request=armored(csr(key=ed25519.Ed25519PrivateKey.generate())))
        assert isinstance(other.leaf.public_key(), ed25519.Ed25519PublicKey)
        # (3) What is no request is refused in one of two ways.
        for text, why in (
            ("garbage", "certificate signing request is not properly encoded"),
            (lab.root("A").pem, "failed to parse X.509 certificate signing request"),
        ):
            answer = await istiod.create_certificate(request=text)
            assert (answer.code, answer.details) == ("INVALID_ARGUMENT", f"CSR signing error ({why})")
        # (4) A validity that is none is the default.
        life = (await istiod.create_certificate(seconds=0)).leaf
        assert (life.not_valid_after_utc - life.not_valid_before_utc).total_seconds() == 86400 + 120

    lab.run(tmp_path, script)


def test_from_1_17_on_a_request_has_to_be_signed_with_its_own_key(tmp_path: Path) -> None:
    async def script(istiod: Istiod) -> None:
        istiod.start()
        await istiod.ready()
        answer = await istiod.create_certificate(request=armored(broken(csr())))
        assert (answer.code, answer.details) == (
            "INVALID_ARGUMENT",
            "CSR signing error (x509: ECDSA verification failure)",
        )

    lab.run(tmp_path, script, "1.17.0")


def test_a_common_name_that_is_too_long_is_left_out_and_told(tmp_path: Path) -> None:
    account = "w" * 60

    async def script(istiod: Istiod) -> None:
        istiod.start()
        await istiod.ready()
        await istiod.client.create(
            "/api/v1/namespaces/app/serviceaccounts",
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": "app"}},
        )
        token = await istiod.token(account=account)
        answer = await istiod.create_certificate(request=armored(csr("x")), token=token)
        assert list(answer.leaf.subject) == []
        identity = f"spiffe://cluster.local/ns/app/sa/{account}"
        why = f"certificate CN upper bound exceeded ({len(identity)}>64): {identity}"
        assert any(f"dual-use failed for cert template - omitting CN ({why})" in line for line in istiod.log())

    lab.run(tmp_path, script)


# --- material -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pem", "why"),
    [
        ("", "invalid PEM-encoded key"),
        ("no key", "invalid PEM-encoded key"),
        (EC_PARAMETERS, "unsupported PEM block type for a private key: EC PARAMETERS"),
        (lab.root("A").pem, "unsupported PEM block type for a private key: CERTIFICATE"),
        (
            "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n",
            "failed to parse the ECDSA private key",
        ),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n",
            "failed to parse the RSA private key",
        ),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "failed to parse the PKCS8 private key"),
    ],
    ids=["nothing", "no PEM", "parameters first", "a certificate", "SEC 1 cut off", "PKCS 1 cut off", "PKCS 8 cut off"],
)
def test_a_ca_key_is_refused_in_istiods_words(pem: str, why: str) -> None:
    with pytest.raises(bundles.BundleError) as refused:
        bundles.private_key(pem.encode())
    assert str(refused.value) == why


def test_a_key_in_a_block_of_another_name_is_no_key() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with pytest.raises(bundles.BundleError, match=r"^failed to parse the ECDSA private key$"):
        bundles.private_key(pem.replace(b"BEGIN ", b"BEGIN EC ").replace(b"END ", b"END EC "))


@pytest.mark.parametrize(
    ("curve", "p384", "name"),
    [
        (ec.SECP384R1(), False, "secp256r1"),
        (ec.SECP384R1(), True, "secp384r1"),
        (ec.SECP521R1(), True, "secp256r1"),
        (ec.SECP256R1(), False, "secp256r1"),
    ],
)
def test_an_elliptic_ca_serves_with_p256_and_from_1_18_on_with_p384_if_that_is_its_own(
    curve: ec.EllipticCurve, p384: bool, name: str
) -> None:
    made = leaves.new_key(ec.generate_private_key(curve), p384=p384)
    assert isinstance(made, ec.EllipticCurvePrivateKey)
    assert made.curve.name == name


# --- the self-signed CA's Secret ------------------------------------------------------------------------------------

FAST = {"CITADEL_SELF_SIGNED_ROOT_CERT_CHECK_INTERVAL": "0.2s", "CITADEL_ENABLE_JITTER_FOR_ROOT_CERT_ROTATOR": "false"}


def test_an_emptied_secret_is_taken_for_a_root_about_to_end_and_renews_nothing(tmp_path: Path) -> None:
    async def script(istiod: Istiod) -> None:
        istiod.start(env=FAST)
        await istiod.ready()
        before = await istiod.secret()
        await istiod.patch_secret(ca_cert="", ca_key="")
        await istiod.logged("unable to generate CA cert and key for self-signed CA")
        text = "\n".join(istiod.log())
        for line in (
            "Refresh root certificate, root cert is about to expire: invalid PEM encoded certificate",
            "Failed to generate cert options from existing root certificate (invalid PEM encoded certificate), new root"
            " certificate may not match old root certificate",
            "unable to generate CA cert and key for self-signed CA: skip cert generation. Citadel is not in self-signed"
            " mode or CA private key is not available",
        ):
            assert line in text
        # The memory goes on signing.
        assert (await istiod.create_certificate()).chain[-1] == before["ca-cert.pem"]
        await istiod.patch_secret(ca_key="no key")
        await istiod.logged("unrecogniazed CA private key, skip root cert rotation: invalid PEM-encoded key")

    lab.run(tmp_path, script)


def test_whoever_may_not_read_the_secret_tries_to_make_one_up_to_1_16(tmp_path: Path) -> None:
    async def script(istiod: Istiod) -> None:
        await istiod.client.delete("/apis/rbac.authorization.k8s.io/v1/clusterroles/istiod")
        istiod.start()
        assert await istiod.exit(terminate=False) == 255
        text = "\n".join(istiod.log())
        assert 'Failed to get secret (error: secrets "istio-ca-secret" is forbidden' in text
        assert "Failed to write secret to CA (error: secrets is forbidden" in text
        assert text.rstrip().endswith(
            "failed to create a self-signed istiod CA: failed to create CA due to secret write error"
        )

    lab.run(tmp_path, script)
