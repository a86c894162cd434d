"""A request proves its key, and what answers it is an issuing CA of its root's making."""

from __future__ import annotations

import dataclasses
import datetime as dt
import subprocess
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from capstan.errors import InvalidCertificate, InvalidInput, InvalidPem
from capstan.pki.csr import make_request, parse_request, sign_request
from capstan.pki.keys import KeyAlgorithm, PrivateKey
from capstan.pki.mint import IssuerPolicy, RootPolicy, mint_issuer, mint_root
from capstan.pki.verify import STRICT, verify_issuer

if TYPE_CHECKING:
    from pathlib import Path

NOW = dt.datetime(2026, 11, 22, 5, 0, 0, tzinfo=dt.UTC)
ROOT = mint_root(RootPolicy(common_name="root.east", path_length=1), 2, NOW)
POLICY = IssuerPolicy(validity=dt.timedelta(days=365))
KEY = PrivateKey.generate()


def asked(name: str = "istiod.east", *extensions: x509.ExtensionType, key: object = None) -> str:
    signing = key or ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(attributes))
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    algorithm = None if isinstance(signing, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(signing, algorithm).public_bytes(Encoding.PEM).decode()  # type: ignore[arg-type]  # any of three kinds


def test_a_signed_request_is_an_issuer_that_both_verifiers_accept() -> None:
    request = parse_request(make_request(KEY, "istiod.east", organization="Example").pem(), "r.csr")
    issuer = sign_request(ROOT, request, POLICY, NOW)
    assert verify_issuer(issuer, [ROOT.certificate], NOW, relax=STRICT).anchor == ROOT.certificate
    assert issuer.key_matches(KEY)
    assert request.answered_by(issuer)
    assert issuer.path_length == 0
    assert issuer.aki == ROOT.certificate.ski
    assert issuer.raw.subject == request.raw.subject
    assert issuer.not_after == NOW + dt.timedelta(days=365)


def test_the_answer_is_what_minting_beside_the_root_would_have_made() -> None:
    minted = mint_issuer(dataclasses.replace(POLICY, common_name="istiod.east"), ROOT, NOW, key=KEY, serial=9)
    signed = sign_request(ROOT, make_request(KEY, "istiod.east"), POLICY, NOW, serial=9)
    assert [e.oid for e in signed.raw.extensions] == [e.oid for e in minted.certificate.raw.extensions]
    assert [e.value for e in signed.raw.extensions] == [e.value for e in minted.certificate.raw.extensions]
    assert signed.raw.subject == minted.certificate.raw.subject


def test_the_subject_keeps_its_asn1_string_types() -> None:
    attribute = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "cluster.local", x509.name._ASN1Type.PrintableString)
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([attribute]))
    raw = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    request = parse_request(raw.public_bytes(Encoding.PEM), "r.csr")
    issuer = sign_request(ROOT, request, POLICY, NOW)
    assert issuer.raw.subject.public_bytes() == raw.subject.public_bytes()


@pytest.mark.parametrize(
    "key",
    [
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["Ed25519", "P-384", "RSA 2048"],
)
def test_requests_of_every_common_kind_of_key_are_read_and_answered(key: object) -> None:
    request = parse_request(asked(key=key), "r.csr")
    assert sign_request(ROOT, request, POLICY, NOW).spki_sha256 == request.spki_sha256


def test_an_rsa_root_signs_too() -> None:
    root = mint_root(RootPolicy(common_name="rsa", algorithm=KeyAlgorithm.RSA2048), 1, NOW)
    issuer = sign_request(root, make_request(KEY, "istiod"), POLICY, NOW)
    assert verify_issuer(issuer, [root.certificate], NOW).anchor == root.certificate


def test_a_request_whose_signature_was_altered_proves_nothing() -> None:
    der = bytearray(x509.load_pem_x509_csr(asked().encode()).public_bytes(Encoding.DER))
    place = bytes(der).index(b"istiod.east")
    der[place : place + 6] = b"mallet"
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)
    with pytest.raises(InvalidInput, match="not signed by the key that it is for"):
        parse_request(forged, "r.csr")


@pytest.mark.parametrize(
    "text",
    ["", "hello", asked() + asked(), asked().replace("-----END", "-----ENDE"), ROOT.certificate.pem()],
    ids=["nothing", "no PEM", "two of them", "a broken end", "a certificate"],
)
def test_what_is_no_single_request_is_refused(text: str) -> None:
    with pytest.raises(InvalidPem, match="no certificate request can be read"):
        parse_request(text, "r.csr")


def test_extensions_that_are_asked_for_are_the_roots_to_decide() -> None:
    greedy = parse_request(
        asked("x", x509.BasicConstraints(ca=True, path_length=5), x509.SubjectAlternativeName([x509.DNSName("a.b")])),
        "r.csr",
    )
    issuer = sign_request(ROOT, greedy, POLICY, NOW)
    assert issuer.path_length == 0
    assert issuer.dns_names == ()


def test_a_request_for_an_end_entity_is_refused() -> None:
    request = parse_request(asked("x", x509.BasicConstraints(ca=False, path_length=None)), "r.csr")
    with pytest.raises(InvalidInput, match="end entity"):
        sign_request(ROOT, request, POLICY, NOW)


def test_an_empty_name_and_the_roots_own_name_are_refused() -> None:
    with pytest.raises(InvalidInput, match="needs a name"):
        sign_request(ROOT, parse_request(asked(""), "r.csr"), POLICY, NOW)
    same = parse_request(asked(ROOT.certificate.common_name), "r.csr")
    with pytest.raises(InvalidInput, match="its root's name"):
        sign_request(ROOT, same, POLICY, NOW)


def test_a_short_rsa_key_is_refused() -> None:
    weak = rsa.generate_private_key(65537, 1024)
    with pytest.raises(InvalidInput, match="key cannot be used") as refused:
        sign_request(ROOT, parse_request(asked(key=weak), "r.csr"), POLICY, NOW)
    assert refused.value.observed == "RSA 1024"


def test_nothing_is_signed_past_the_roots_end() -> None:
    late = ROOT.certificate.not_after - dt.timedelta(days=10)
    with pytest.raises(InvalidInput, match="outlive its issuer"):
        sign_request(ROOT, make_request(KEY, "x"), POLICY, late)


def test_a_ca_that_may_only_sign_leaves_signs_no_request() -> None:
    issuer = mint_issuer(POLICY, ROOT, NOW)
    with pytest.raises(InvalidCertificate, match="cannot issue"):
        sign_request(issuer, make_request(KEY, "x"), POLICY, NOW)


@pytest.mark.parametrize("name", ["", "x" * 65])
def test_a_request_needs_a_name_that_x509_allows(name: str) -> None:
    with pytest.raises(InvalidInput, match="common name"):
        make_request(KEY, name)


def test_openssl_reads_and_verifies_our_request(tmp_path: Path) -> None:
    file = tmp_path / "r.csr"
    file.write_text(make_request(KEY, "istiod.east").pem())
    done = subprocess.run(
        ["openssl", "req", "-in", str(file), "-noout", "-verify", "-text"], capture_output=True, text=True, check=True
    )
    assert "CA:TRUE, pathlen:0" in done.stdout
    assert "verify OK" in done.stdout + done.stderr


def test_a_sealed_key_opens_with_its_passphrase_alone_and_in_openssl_too(tmp_path: Path) -> None:
    sealed = KEY.sealed_pem("a long one")
    assert PrivateKey.unseal(sealed, "a long one", "k.pem") == KEY
    for wrong in ("another", ""):
        with pytest.raises(InvalidPem) as refused:
            PrivateKey.unseal(sealed, wrong, "k.pem")
        assert "another" not in str(refused.value)
    with pytest.raises(InvalidPem):
        PrivateKey.parse(sealed, "k.pem")
    file = tmp_path / "k.pem"
    file.write_bytes(sealed)
    subprocess.run(
        ["openssl", "pkey", "-in", str(file), "-passin", "pass:a long one", "-noout", "-check"],
        capture_output=True, check=True,
    )  # fmt: skip
