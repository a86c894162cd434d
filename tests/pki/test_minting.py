"""What is minted keeps the rules of its role, and its key stays out of every text."""

from __future__ import annotations

import copy
import dataclasses
import datetime as dt
import logging
import pickle
import traceback

import pytest
from cryptography import x509

from capstan.errors import InvalidCertificate, InvalidInput, InvalidPem
from capstan.pki.keys import KeyAlgorithm, PrivateKey
from capstan.pki.mint import BACKDATE, IssuerPolicy, Minted, RootPolicy, mint_issuer, mint_leaf, mint_root
from capstan.pki.rules import bundle_findings, issuer_findings, require, root_findings
from capstan.pki.verify import STRICT, verify_issuer, verify_leaf

NOW = dt.datetime(2026, 11, 21, 12, 0, 0, 987654, tzinfo=dt.UTC)
NAME = "web.emojivoto.serviceaccount.identity.linkerd.cluster.local"
ROOT = mint_root(RootPolicy(), 3, NOW)
ISSUER = mint_issuer(IssuerPolicy(), ROOT, NOW)
LEAF = mint_leaf(ISSUER, NAME, NOW)


def test_a_minted_chain_passes_both_verifiers_with_nothing_relaxed() -> None:
    verified = verify_leaf(LEAF.certificate, [ISSUER.certificate], [ROOT.certificate], NOW, NAME, relax=STRICT)
    assert verified.anchor == ROOT.certificate
    assert verify_issuer(ISSUER.certificate, [ROOT.certificate], NOW, relax=STRICT).chain[0] == ISSUER.certificate


def test_a_minted_root_and_issuer_break_no_rule_of_linkerds_checks() -> None:
    assert root_findings(ROOT.certificate, NOW) == ()
    assert issuer_findings(ISSUER.certificate, NOW) == ()
    assert bundle_findings([ROOT.certificate], [ISSUER.certificate]) == ()


def test_cas_have_identifiers_critical_constraints_and_no_extended_key_usage() -> None:
    for minted, parent in ((ROOT, ROOT), (ISSUER, ROOT)):
        certificate = minted.certificate
        assert certificate.ski is not None
        assert certificate.aki == parent.certificate.ski
        constraints = certificate.extension(x509.BasicConstraints)
        usage = certificate.extension(x509.KeyUsage)
        assert constraints is not None
        assert constraints.critical
        assert usage is not None
        assert usage.critical
        assert usage.value.key_cert_sign
        assert certificate.extension(x509.ExtendedKeyUsage) is None
    assert (ROOT.certificate.path_length, ISSUER.certificate.path_length) == (2, 0)
    assert LEAF.certificate.aki == ISSUER.certificate.ski


def test_a_certificate_is_already_valid_on_a_clock_that_kubernetes_still_calls_healthy() -> None:
    slow = NOW - dt.timedelta(minutes=5, seconds=10)
    for minted in (ROOT, ISSUER, LEAF):
        assert minted.certificate.valid_at(slow)
    assert ROOT.certificate.not_before == NOW.replace(microsecond=0) - BACKDATE
    assert ROOT.certificate.not_after == NOW.replace(microsecond=0) + RootPolicy().validity


def test_the_generation_stands_in_the_name_and_follows_the_highest_one_known() -> None:
    policy = RootPolicy()
    assert ROOT.certificate.common_name == "root.linkerd.cluster.local G3"
    plain = mint_root(dataclasses.replace(policy, common_name="x"), 9, NOW).certificate
    assert policy.next_generation([]) == 1
    assert policy.next_generation([plain]) == 2  # another name counts as the first generation
    assert policy.next_generation([ROOT.certificate, plain]) == 4
    eleventh = mint_root(policy, 11, NOW).certificate
    assert policy.next_generation([eleventh, ROOT.certificate]) == 12


def test_serials_and_keys_are_random_unless_given() -> None:
    key = PrivateKey.generate()
    again = [mint_root(RootPolicy(), 1, NOW, key=key, serial=7).certificate for _ in range(2)]
    assert {root.serial_number for root in again} == {7}
    assert {root.spki_sha256 for root in again} == {key.spki_sha256}
    fresh = [mint_root(RootPolicy(), 1, NOW).certificate for _ in range(3)]
    assert len({root.serial_number for root in fresh}) == 3
    assert len({root.spki_sha256 for root in fresh}) == 3


def test_rsa_roots_are_made_where_asked_and_pass_the_same_checks() -> None:
    root = mint_root(RootPolicy(algorithm=KeyAlgorithm.RSA2048), 1, NOW)
    assert root.certificate.algorithm == "RSA 2048, signed with SHA256-RSA"
    assert root_findings(root.certificate, NOW) == ()
    issuer = mint_issuer(IssuerPolicy(), root, NOW)
    leaf = mint_leaf(issuer, NAME, NOW)
    verify_leaf(leaf.certificate, [issuer.certificate], [root.certificate], NOW, NAME, relax=STRICT)


def test_a_name_too_long_for_a_subject_stands_in_the_alternative_name_alone() -> None:
    long = "a" * 60 + ".emojivoto.serviceaccount.identity.linkerd.cluster.local"
    leaf = mint_leaf(ISSUER, long, NOW)
    assert leaf.certificate.common_name == ""
    verify_leaf(leaf.certificate, [ISSUER.certificate], [ROOT.certificate], NOW, long, relax=STRICT)


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: mint_issuer(IssuerPolicy(validity=dt.timedelta(days=9999)), ROOT, NOW),
        lambda: mint_leaf(ISSUER, NAME, NOW, validity=dt.timedelta(days=366)),
        lambda: mint_leaf(ISSUER, "", NOW),
        lambda: mint_root(RootPolicy(), 0, NOW),
        lambda: mint_root(RootPolicy(common_name="r" * 63), 1, NOW),
        lambda: mint_root(RootPolicy(validity=dt.timedelta(0)), 1, NOW),
        lambda: mint_root(RootPolicy(), 1, dt.datetime(2026, 1, 1)),  # noqa: DTZ001 - the missing zone is the point
    ],
    ids=["outlives root", "outlives issuer", "no name", "generation 0", "long name", "no validity", "naive time"],
)
def test_what_cannot_be_minted_soundly_is_refused(attempt: object) -> None:
    assert callable(attempt)
    with pytest.raises(InvalidInput):
        attempt()


def test_a_ca_without_room_cannot_issue_a_ca() -> None:
    with pytest.raises(InvalidCertificate):
        mint_issuer(IssuerPolicy(), ISSUER, NOW)
    with pytest.raises(InvalidCertificate):
        mint_issuer(IssuerPolicy(), LEAF, NOW)
    with pytest.raises(InvalidCertificate):
        mint_issuer(IssuerPolicy(path_length=2), ROOT, NOW)


def test_a_key_of_another_certificate_is_refused() -> None:
    with pytest.raises(InvalidCertificate):
        Minted(ROOT.certificate, ISSUER.key)
    with pytest.raises(InvalidCertificate):
        Minted.parse(ROOT.certificate.pem(), ISSUER.key.pem(), "vault")
    back = Minted.parse(ROOT.certificate.pem(), ROOT.key.pem(), "vault")
    assert back == ROOT


def _secrets(key: PrivateKey) -> list[str]:
    """Every way the key's secret number could stand in a text."""
    pem = key.pem().decode()
    number = key._key.private_numbers().private_value  # type: ignore[union-attr]  # P-256 keys only, in this test
    return [*pem.splitlines()[1:-1], str(number), f"{number:x}", repr(number.to_bytes(32, "big"))]


def test_no_text_form_of_a_key_shows_it(caplog: pytest.LogCaptureFixture) -> None:
    key = ROOT.key
    logging.getLogger("test").warning("minted %s %r", ROOT, key)
    texts = [
        repr(key),
        str(key),
        f"{key}",
        f"{key!r:>200}",
        repr(ROOT),
        str([ROOT]),
        str(dataclasses.asdict(ROOT)),
        caplog.text,
        repr(copy.deepcopy(ROOT)),
        repr(copy.copy(key)),
    ]
    for text in texts:
        assert not any(secret in text for secret in _secrets(key))
    assert any(secret in key.pem().decode() for secret in _secrets(key))  # the search itself finds what is there
    assert not hasattr(key, "__dict__")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_key_cannot_be_pickled_alone_or_inside_anything(protocol: int) -> None:
    for thing in (ROOT.key, ROOT, {"key": ROOT.key}, [ROOT]):
        with pytest.raises(InvalidInput) as caught:
            pickle.dumps(thing, protocol)
        assert not any(secret in str(caught.value) for secret in _secrets(ROOT.key))


def test_an_unreadable_key_is_refused_without_quoting_it() -> None:
    body = ROOT.key.pem().decode().replace("EC PRIVATE KEY", "PRIVATE KEY")
    with pytest.raises(InvalidPem) as caught:
        PrivateKey.parse(body, "vault")
    shown = "".join(traceback.format_exception(caught.value))
    assert not any(secret in shown for secret in _secrets(ROOT.key))
    assert caught.value.__cause__ is None


def test_a_fatal_finding_is_raised_and_a_warning_is_returned() -> None:
    later = ISSUER.certificate.not_after - dt.timedelta(days=10)
    warnings = require(issuer_findings(ISSUER.certificate, later), "issuer")
    assert [finding.rule for finding in warnings] == ["issuer cert valid for at least 60 days"]
    with pytest.raises(InvalidCertificate) as caught:
        require(issuer_findings(ISSUER.certificate, later + dt.timedelta(days=11)), "secret linkerd/issuer")
    assert "within the validity period" in str(caught.value)
