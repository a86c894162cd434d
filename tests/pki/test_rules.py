"""The crypto table of Linkerd's checks, and the rules for roots that stand side by side."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from capstan.pki.rules import Level, bundle_findings, cross_sign_findings, issuer_findings, root_findings, same_key
from tests.pki.ca import CLIENT, DAY, NOW, SERVER, Key, Pair, dns_leaf, make

P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
RSA = {bits: rsa.generate_private_key(65537, bits) for bits in (1024, 2048, 3072)}
CRYPTO = "trust anchors are using supported crypto algorithm"


def fatal(findings: tuple[object, ...]) -> set[str]:
    return {f.rule for f in findings if f.level is Level.FATAL}  # type: ignore[attr-defined]  # RuleFinding


@pytest.mark.parametrize(
    ("key", "digest", "supported"),
    [
        (P256, hashes.SHA256(), True),
        (P256, hashes.SHA384(), False),
        (P384, hashes.SHA256(), False),
        (RSA[2048], hashes.SHA256(), True),
        (RSA[2048], hashes.SHA512(), False),
        (RSA[3072], hashes.SHA256(), False),
        (RSA[1024], hashes.SHA256(), False),
    ],
    ids=["P-256", "P-256 SHA-384", "P-384", "RSA 2048", "RSA 2048 SHA-512", "RSA 3072", "RSA 1024"],
)
def test_a_root_passes_exactly_when_linkerds_crypto_check_passes(
    key: Key, digest: hashes.HashAlgorithm, supported: bool
) -> None:
    root = make("r", key=key, hash_algorithm=digest).certificate
    assert (CRYPTO not in fatal(root_findings(root, NOW))) is supported


def test_only_the_name_of_the_signature_algorithm_counts_for_an_anchor_signed_by_another_curve() -> None:
    signer = make("p384", key=P384)
    assert CRYPTO not in fatal(root_findings(make("r", signer, key=P256).certificate, NOW))
    rsa_signer = make("rsa", key=RSA[2048])
    assert CRYPTO not in fatal(root_findings(make("r", rsa_signer, key=P256).certificate, NOW))


@pytest.mark.parametrize(("key", "supported"), [(P256, True), (P384, False), (RSA[2048], False)])
def test_an_issuer_is_p256_or_fatal(key: Key, supported: bool) -> None:
    found = fatal(issuer_findings(make("i", make("r"), key=key).certificate, NOW))
    assert ("issuer cert is using supported crypto algorithm" not in found) is supported


def test_validity_is_fatal_outside_and_a_warning_in_the_last_60_days() -> None:
    root = make("r", end=NOW + 61 * DAY).certificate
    assert root_findings(root, NOW) == ()
    soon = root_findings(root, NOW + 2 * DAY)
    assert [(f.level, f.rule) for f in soon] == [(Level.WARNING, "trust anchors valid for at least 60 days")]
    for moment in (NOW + 62 * DAY, NOW - 2 * DAY):
        assert fatal(root_findings(root, moment)) == {"trust anchors within the validity period"}


def test_a_root_needs_room_for_an_issuer_and_a_ca_bit() -> None:
    assert fatal(root_findings(make("r", path_length=0).certificate, NOW)) == {"root has room for an issuer"}
    assert "certificate is a CA" in fatal(root_findings(dns_leaf(make("r")).certificate, NOW))
    assert fatal(issuer_findings(make("i", cert_sign=False).certificate, NOW)) == {"CA may sign certificates"}
    assert fatal(issuer_findings(make("i", eku=(CLIENT,)).certificate, NOW)) == {"CA is good for server certificates"}
    assert fatal(issuer_findings(make("i", eku=(CLIENT, SERVER)).certificate, NOW)) == set()


def _twins(**shape: bool) -> tuple[Pair, Pair]:
    return make("root", **shape), make("root", **shape)  # type: ignore[arg-type]  # bools by name


def test_two_roots_of_one_name_need_identifiers_and_so_does_all_below() -> None:
    bare = _twins(ski=False)
    assert fatal(bundle_findings([pair.certificate for pair in bare]))
    told_apart = _twins()
    both = [pair.certificate for pair in told_apart]
    assert bundle_findings(both) == ()
    assert bundle_findings(both, [make("i", told_apart[1]).certificate]) == ()
    assert fatal(bundle_findings(both, [make("i", told_apart[1], aki=False).certificate]))
    distinct = make("root G1", ski=False, aki=False), make("root G2", ski=False, aki=False)
    assert bundle_findings([pair.certificate for pair in distinct]) == ()


def test_a_re_dated_root_is_told_from_a_re_keyed_one() -> None:
    first = make("root")
    redated = make("root", key=first.key, end=NOW + dt.timedelta(days=999))
    assert same_key(first.certificate, redated.certificate)
    assert not same_key(first.certificate, make("root").certificate)
    assert bundle_findings([first.certificate, redated.certificate]) == ()


@pytest.mark.parametrize(("room", "good"), [(0, False), (1, False), (2, True), (None, True)])
def test_a_root_can_cross_sign_only_with_path_length_two_or_none(room: int | None, good: bool) -> None:
    signer = make("old", path_length=room).certificate
    assert (cross_sign_findings(signer, make("new").certificate) == ()) is good
