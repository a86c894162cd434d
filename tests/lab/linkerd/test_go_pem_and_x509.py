"""PEM hygiene and chain verification, against what the real controller was seen to do."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from infra.lab import pki
from infra.lab.linkerd import gopem, gox509

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
ROOT_A, ROOT_B = pki.mint_root(now=NOW), pki.mint_root(now=NOW)
A, B = ROOT_A.certificate_pem, ROOT_B.certificate_pem


@pytest.mark.parametrize(
    ("bundle", "count"),
    [
        (A, 1),
        (A.rstrip(), 1),
        (A + B, 2),
        (A + "\n\n" + B, 2),
        (A + "# the old one\n" + B, 2),
        ("# leading comment\n" + A, 1),
        (A.replace("\n", "\r\n"), 1),
        (A + A, 2),
        (A.rstrip() + "  \n" + B, 2),
        (A + ROOT_B.key_pem + B, 1),
    ],
    ids=[
        "one newline",
        "no newline",
        "two",
        "blank lines between",
        "comment between",
        "comment before",
        "CRLF",
        "twice the same",
        "spaces after END",
        "a key ends the parsing silently",
    ],
)
def test_a_bundle_is_read_as_the_real_identity_reads_it(bundle: str, count: int) -> None:
    assert len(gopem.trust_anchors(bundle.encode())) == count


@pytest.mark.parametrize(
    "bundle",
    [A + "\n", A + "# the end\n", A + "   ", A + B[: len(B) // 2], "hello"],
    ids=["trailing blank line", "trailing comment", "trailing spaces", "cut off", "no PEM at all"],
)
def test_anything_but_pem_after_the_last_certificate_is_refused(bundle: str) -> None:
    with pytest.raises(gopem.PemError, match=r"^not a PEM certificate$"):
        gopem.trust_anchors(bundle.encode())


def test_an_empty_bundle_and_one_that_begins_with_a_key_hold_no_certificates() -> None:
    for bundle in ("", ROOT_A.key_pem + A):
        with pytest.raises(gopem.PemError, match=r"^no certificates found$"):
            gopem.trust_anchors(bundle.encode())
    with pytest.raises(gopem.PemError, match=r"^No certificates found$"):
        gopem.issuer_chain(b"")


def test_keys_are_read_in_three_encodings_and_refused_in_others() -> None:
    for encoding in (serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL):
        pem = ROOT_A.key.private_bytes(serialization.Encoding.PEM, encoding, serialization.NoEncryption())
        assert isinstance(gopem.private_key(pem), ec.EllipticCurvePrivateKey)
    pkcs1 = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    assert isinstance(gopem.private_key(pkcs1), rsa.RSAPrivateKey)
    with pytest.raises(gopem.PemError, match=r"^not PEM-encoded$"):
        gopem.private_key(b"no key")
    other = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(gopem.PemError):
        gopem.private_key(other)


def _verify(certificate: x509.Certificate, *roots: pki.KeyPair, now: datetime = NOW, **more: object) -> str:
    """The error text, or "ok"."""
    try:
        gox509.verify(
            certificate,
            roots=[root.certificate for root in roots],
            intermediates=more.pop("intermediates", ()),  # type: ignore[arg-type]
            now=now,
            **more,  # type: ignore[arg-type]
        )
    except gox509.VerifyError as error:
        return str(error)
    return "ok"


def test_an_issuer_verifies_under_its_root_in_any_order_and_company() -> None:
    issuer = pki.mint_issuer(ROOT_A, now=NOW).certificate
    expired = pki.mint_root(now=NOW - timedelta(days=9), lifetime=timedelta(days=1))
    assert _verify(issuer, ROOT_A) == "ok"
    assert _verify(issuer, ROOT_B, ROOT_A) == _verify(issuer, ROOT_A, ROOT_B) == "ok"
    assert _verify(issuer, expired, ROOT_A, ROOT_A) == "ok"
    assert _verify(ROOT_A.certificate, ROOT_A) == "ok"


def test_an_unknown_root_of_the_same_name_is_named_as_the_failed_candidate() -> None:
    issuer = pki.mint_issuer(ROOT_B, now=NOW).certificate
    assert _verify(issuer, ROOT_A) == (
        "x509: certificate signed by unknown authority (possibly because of "
        '"x509: ECDSA verification failure" while trying to verify candidate authority certificate '
        '"root.linkerd.cluster.local")'
    )


def test_an_unknown_root_of_another_name_is_only_unknown() -> None:
    other = pki.mint_root(now=NOW, name="root-2.linkerd.cluster.local")
    issuer = pki.mint_issuer(other, now=NOW).certificate
    assert _verify(issuer, ROOT_A) == "x509: certificate signed by unknown authority"


def test_an_expired_issuer_and_an_expired_root_tell_the_time_that_was_passed() -> None:
    root = pki.mint_root(now=NOW, lifetime=timedelta(hours=1))
    issuer = pki.mint_issuer(root, now=NOW, lifetime=timedelta(hours=3)).certificate
    prefix = "x509: certificate has expired or is not yet valid: current time "
    late, later = NOW + timedelta(hours=2), NOW + timedelta(hours=4)
    assert _verify(issuer, root, now=late) == f"{prefix}2026-11-21T14:00:00Z is after 2026-11-21T13:00:00Z"
    assert _verify(issuer, root, now=later) == f"{prefix}2026-11-21T16:00:00Z is after 2026-11-21T15:00:00Z"
    early = NOW - timedelta(hours=1)
    assert _verify(issuer, root, now=early) == f"{prefix}2026-11-21T11:00:00Z is before 2026-11-21T11:59:00Z"
    assert _verify(issuer, root, now=late, anchors_expire=False) == "ok"


def _under(
    parent: pki.KeyPair, *, ca: bool, path_length: int | None, usages: list[x509.ObjectIdentifier] | None = None
) -> pki.KeyPair:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{key.private_numbers().private_value}"[:20])])
        )
        .issuer_name(parent.certificate.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - timedelta(hours=1))
        .not_valid_after(NOW + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca, path_length), critical=True)
    )
    if usages is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return pki.KeyPair(builder.sign(parent.key, hashes.SHA256()), key)


def test_path_length_and_ca_flag_are_enforced() -> None:
    middle = _under(ROOT_A, ca=True, path_length=0)
    low = _under(middle, ca=True, path_length=None)
    leaf = _under(low, ca=False, path_length=None)
    chain = [low.certificate, middle.certificate]
    assert _verify(leaf.certificate, ROOT_A, intermediates=chain) == (
        "x509: too many intermediates for path length constraint"
    )
    no_ca = _under(ROOT_A, ca=False, path_length=None)
    below = _under(no_ca, ca=False, path_length=None)
    assert "parent certificate cannot sign this kind of certificate" in _verify(
        below.certificate, ROOT_A, intermediates=[no_ca.certificate]
    )


def test_an_issuer_whose_extended_key_usage_lacks_server_auth_is_refused() -> None:
    client_only = _under(ROOT_A, ca=True, path_length=0, usages=[ExtendedKeyUsageOID.CLIENT_AUTH])
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    assert _verify(client_only.certificate, ROOT_A) == "x509: certificate specifies an incompatible key usage"
    assert _verify(_under(ROOT_A, ca=True, path_length=0, usages=both).certificate, ROOT_A) == "ok"
