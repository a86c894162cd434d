"""What istiod would not start with, or not take, is refused before it is written."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from capstan.errors import CapstanError, GateRefused, InvalidCertificate, InvalidInput, InvalidPem, VerificationFailed
from capstan.systems.istio import preflight
from capstan.systems.istio.versions import parse_version
from tests.pki.ca import DAY, NOW, Pair, make
from tests.systems.istio.writing import Ca, pem

OLD, NEW = Ca.of("A"), Ca.of("B")


def verify(files, key=None, **more):
    return preflight.verify_files(files, key or OLD.key, "secret x", now=NOW, **more)


def test_a_whole_set_passes_and_says_which_root_it_verifies_to() -> None:
    both = pem(OLD.root.certificate, NEW.root.certificate)
    assert verify(OLD.files(both)).anchor == OLD.root.certificate


@pytest.mark.parametrize("part", ["root_cert", "ca_cert", "cert_chain"])
def test_an_incomplete_set_is_refused_and_says_what_istiod_would_do(part: str) -> None:
    with pytest.raises(InvalidPem, match=r"refuses to start, or .before 1\.26\.1, without ca-key\.pem."):
        verify(replace(OLD.files(), **{part: ""}))


def test_another_certificates_key_is_refused_in_istiods_own_words() -> None:
    with pytest.raises(InvalidCertificate, match="the cert does not match the key"):
        verify(OLD.files(), NEW.key)


def test_a_signing_ca_below_a_root_that_is_not_there_is_refused() -> None:
    with pytest.raises(VerificationFailed):
        verify(OLD.files(pem(NEW.root.certificate)))


def test_a_signing_ca_two_levels_below_its_root_needs_its_chain() -> None:
    middle = make("Middle", OLD.root)
    deep = make("Deep", middle, path_length=0)
    ca = Ca(OLD.root, deep)
    with pytest.raises(VerificationFailed):
        verify(ca.files(), ca.key)
    whole = pem(deep.certificate, middle.certificate, OLD.root.certificate)
    assert verify(replace(ca.files(), cert_chain=whole), ca.key).anchor == OLD.root.certificate


def test_an_expired_signing_ca_and_one_that_is_no_ca_are_refused() -> None:
    for issuer in (make("late", OLD.root, end=NOW - dt.timedelta(hours=1)), make("leaf", OLD.root, ca=False)):
        ca = Ca(OLD.root, issuer)
        with pytest.raises(VerificationFailed):
            verify(ca.files(), ca.key)


def test_only_the_first_certificate_of_ca_cert_counts() -> None:
    two = replace(OLD.files(), ca_cert=pem(OLD.issuer.certificate, NEW.issuer.certificate))
    assert verify(two).anchor == OLD.root.certificate
    with pytest.raises(CapstanError):
        verify(replace(two, ca_cert=pem(NEW.issuer.certificate, OLD.issuer.certificate)))


def test_a_key_among_the_public_texts_is_refused_and_not_quoted() -> None:
    secret = OLD.key.pem().decode()
    with pytest.raises(InvalidPem, match="private key stands among") as caught:
        verify(replace(OLD.files(), cert_chain=OLD.files().cert_chain + secret))
    assert secret.splitlines()[1] not in str(caught.value)


def test_two_roots_of_one_name_are_refused_where_anything_lacks_its_identifiers() -> None:
    """Executed on two Envoys: BoringSSL takes the first root of the name, and every new connection fails."""
    twin = make("Root A", key=NEW.root.key)
    assert verify(OLD.files(pem(OLD.root.certificate, twin.certificate)))
    bare = Ca.of("A", ski=False, aki=False)
    for first, second in ((bare, OLD), (OLD, bare)):
        roots = pem(first.root.certificate, second.root.certificate)
        with pytest.raises(InvalidCertificate, match="could not tell these roots apart"):
            verify(first.files(roots), first.key)


def test_a_redated_root_beside_the_old_one_is_no_second_root_of_the_name() -> None:
    again = make("Root A", key=OLD.root.key, end=NOW + 900 * DAY)
    assert verify(OLD.files(pem(OLD.root.certificate, again.certificate)))


def crl(by: Pair) -> str:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(by.certificate.raw.subject)
        .last_update(NOW - DAY)
        .next_update(NOW + DAY)
    )
    return builder.sign(by.key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def test_lists_of_revocations_must_cover_every_ca_of_the_chain() -> None:
    assert verify(OLD.files(), crl=crl(OLD.root) + crl(OLD.issuer))
    with pytest.raises(InvalidInput, match="Intermediate A"):
        verify(OLD.files(), crl=crl(OLD.root))
    impostor = make("Intermediate A", NEW.root)
    with pytest.raises(InvalidInput, match="says nothing about it"):
        verify(OLD.files(), crl=crl(OLD.root) + crl(impostor))


@pytest.mark.parametrize("text", ["nonsense", "-----BEGIN X509 CRL-----\nAAAA\n"])
def test_lists_of_revocations_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"ca-crl.pem cannot be read"):
        verify(OLD.files(), crl=text)


@pytest.mark.parametrize(("tag", "fixed"), [("1.24.4", "1.24.5"), ("1.25.1-distroless", "1.25.2")])
def test_the_two_versions_that_lose_roots_are_refused_and_the_way_out_is_named(tag: str, fixed: str) -> None:
    with pytest.raises(GateRefused, match=fixed):
        preflight.require_version(parse_version(tag), "deployment istio-system/istiod")
    preflight.require_version(parse_version(fixed), "deployment istio-system/istiod")
    preflight.require_version(None, "deployment istio-system/istiod")


def test_more_than_a_secret_can_hold_is_refused() -> None:
    with pytest.raises(InvalidInput, match="1048576"):
        preflight.require_secret_size(["x" * (1024 * 1024), "y"], "secret x")
