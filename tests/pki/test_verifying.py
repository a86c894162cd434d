"""Two verifiers that must agree, on the chains that meshes really have."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from capstan.errors import InvalidInput, VerificationFailed, VerifiersDisagree
from capstan.pki.verify import (
    STRICT,
    Purpose,
    Relaxation,
    anchors_of_issuer,
    anchors_of_leaf,
    verify_issuer,
    verify_leaf,
)
from tests.pki.ca import CLIENT, DAY, NOW, SERVER, Pair, dns_leaf, make

if TYPE_CHECKING:
    from capstan.pki.inspect import Certificate

NAME = "web.ns.serviceaccount.identity.linkerd.cluster.local"
OLD, NEW = make("root G1"), make("root G2")
ISSUER = make("identity.linkerd.cluster.local", NEW, path_length=0)
LEAF = dns_leaf(ISSUER)


def certificates(*pairs: Pair) -> list[Certificate]:
    return [pair.certificate for pair in pairs]


@pytest.mark.parametrize("order", [(OLD, NEW), (NEW, OLD)], ids=["old first", "new first"])
def test_a_leaf_verifies_against_a_bundle_that_holds_its_root_in_either_order(order: tuple[Pair, Pair]) -> None:
    verified = verify_leaf(LEAF.certificate, certificates(ISSUER), certificates(*order), NOW, NAME, relax=STRICT)
    assert verified.chain == tuple(certificates(LEAF, ISSUER, NEW))
    assert verify_issuer(ISSUER.certificate, certificates(*order), NOW, relax=STRICT).anchor == NEW.certificate


def test_a_leaf_of_another_root_is_refused_by_both_verifiers() -> None:
    with pytest.raises(VerificationFailed) as caught:
        verify_leaf(LEAF.certificate, certificates(ISSUER), certificates(OLD), NOW, NAME)
    assert not isinstance(caught.value, VerifiersDisagree)
    assert "cryptography: " in caught.value.observed
    assert "OpenSSL: unable to get" in caught.value.observed
    with pytest.raises(VerificationFailed):
        verify_issuer(ISSUER.certificate, certificates(OLD), NOW)


def test_a_leaf_without_the_issuer_between_is_refused() -> None:
    with pytest.raises(VerificationFailed):
        verify_leaf(LEAF.certificate, [], certificates(OLD, NEW), NOW, NAME)


def test_same_named_roots_without_identifiers_make_the_verifiers_disagree_and_that_is_refused() -> None:
    bare = {"ski": False, "aki": False}
    old, new = make("root", **bare), make("root", **bare)  # type: ignore[arg-type]  # one shape for both
    issuer = make("identity", new, aki=False)
    leaf = dns_leaf(issuer)
    with pytest.raises(VerifiersDisagree) as caught:
        verify_leaf(leaf.certificate, certificates(issuer), certificates(old, new), NOW, NAME)
    assert "cryptography: accepted" in caught.value.observed
    assert "OpenSSL: certificate signature failure" in caught.value.observed
    with pytest.raises(VerifiersDisagree):
        verify_issuer(issuer.certificate, certificates(old, new), NOW)


@pytest.mark.parametrize("turned", [False, True])
def test_same_named_roots_with_identifiers_verify_in_either_order(turned: bool) -> None:
    old, new = make("root"), make("root")
    issuer = make("identity", new)
    leaf = dns_leaf(issuer)
    roots = certificates(new, old) if turned else certificates(old, new)
    assert verify_leaf(leaf.certificate, certificates(issuer), roots, NOW, NAME).anchor == new.certificate
    assert verify_issuer(issuer.certificate, roots, NOW).anchor == new.certificate


def test_validity_is_judged_to_the_second_on_every_certificate_of_the_chain() -> None:
    second = dt.timedelta(seconds=1)
    root = make("r", end=NOW + 3 * DAY)
    issuer = make("i", root, end=NOW + 2 * DAY)
    leaf = dns_leaf(issuer, end=NOW + DAY)
    chain = leaf.certificate, certificates(issuer), certificates(root)
    verify_leaf(*chain, leaf.certificate.not_after, NAME)
    verify_leaf(*chain, leaf.certificate.not_before, NAME)
    for moment in (leaf.certificate.not_after + second, leaf.certificate.not_before - second, NOW + 4 * DAY):
        with pytest.raises(VerificationFailed):
            verify_leaf(*chain, moment, NAME)
    verify_issuer(issuer.certificate, certificates(root), issuer.certificate.not_after)
    for moment in (issuer.certificate.not_after + second, issuer.certificate.not_before - second):
        with pytest.raises(VerificationFailed):
            verify_issuer(issuer.certificate, certificates(root), moment)
    short_root = make("r", end=NOW)
    long_issuer = make("i", short_root)
    with pytest.raises(VerificationFailed):
        verify_issuer(long_issuer.certificate, certificates(short_root), NOW + second)


def test_an_expired_root_beside_a_good_one_harms_nobody() -> None:
    dead = make("root G0", start=NOW - 2 * DAY, end=NOW - DAY)
    verify_leaf(LEAF.certificate, certificates(ISSUER), certificates(dead, NEW), NOW, NAME)
    verify_issuer(ISSUER.certificate, certificates(dead, NEW), NOW)


@pytest.mark.parametrize(
    "identity",
    [
        "other.ns.serviceaccount.identity.linkerd.cluster.local",
        "*." + NAME.split(".", 1)[1],
        "spiffe://x/y",
        "127.0.0.1",
    ],
)
def test_a_leaf_is_refused_for_any_identity_but_its_own(identity: str) -> None:
    with pytest.raises(VerificationFailed) as caught:
        verify_leaf(LEAF.certificate, certificates(ISSUER), certificates(NEW), NOW, identity)
    assert NAME in caught.value.observed or "no such name" in caught.value.observed


def test_the_common_name_and_wildcards_are_no_identity() -> None:
    wild = make(NAME, ISSUER, ca=False, san=[x509.DNSName("*." + NAME.split(".", 1)[1])], eku=(SERVER, CLIENT))
    with pytest.raises(VerificationFailed):
        verify_leaf(wild.certificate, certificates(ISSUER), certificates(NEW), NOW, NAME)


def test_a_dns_identity_is_compared_without_regard_to_case() -> None:
    verify_leaf(LEAF.certificate, certificates(ISSUER), certificates(NEW), NOW, NAME.upper())


def test_a_spiffe_leaf_without_subject_verifies_for_its_id_and_no_other() -> None:
    spiffe = "spiffe://cluster.local/ns/foo/sa/bar"
    leaf = make("", ISSUER, ca=False, san=[x509.UniformResourceIdentifier(spiffe)], eku=(SERVER, CLIENT))
    chain = leaf.certificate, certificates(ISSUER), certificates(NEW), NOW
    assert leaf.certificate.identity == spiffe
    verify_leaf(*chain, spiffe, relax=STRICT)
    verify_leaf(*chain)
    with pytest.raises(VerificationFailed):
        verify_leaf(*chain, spiffe + "/x")


@pytest.mark.parametrize(
    ("eku", "purpose", "good"),
    [
        ((SERVER, CLIENT), Purpose.PEER, True),
        ((SERVER,), Purpose.PEER, False),
        ((CLIENT,), Purpose.PEER, False),
        ((SERVER,), Purpose.SERVER, True),
        ((CLIENT,), Purpose.SERVER, False),
        ((CLIENT,), Purpose.CLIENT, True),
        ((SERVER,), Purpose.CLIENT, False),
    ],
)
def test_a_leaf_serves_only_the_purposes_it_was_issued_for(
    eku: tuple[x509.ObjectIdentifier, ...], purpose: Purpose, good: bool
) -> None:
    leaf = dns_leaf(ISSUER, eku=eku)
    chain = leaf.certificate, certificates(ISSUER), certificates(NEW), NOW, NAME
    if good:
        verify_leaf(*chain, purpose=purpose)
    else:
        with pytest.raises(VerificationFailed):
            verify_leaf(*chain, purpose=purpose)


def test_an_issuer_with_an_extended_key_usage_needs_server_auth_as_go_demands() -> None:
    verify_issuer(make("i", NEW, eku=(SERVER, CLIENT)).certificate, certificates(NEW), NOW)
    with pytest.raises(VerificationFailed):
        verify_issuer(make("i", NEW, eku=(CLIENT,)).certificate, certificates(NEW), NOW)
    root = make("r", eku=(CLIENT,))
    with pytest.raises(VerificationFailed):
        verify_issuer(make("i", root).certificate, certificates(root), NOW)


def test_a_certificate_that_is_no_ca_is_no_issuer_and_a_ca_is_no_leaf() -> None:
    with pytest.raises(VerificationFailed):
        verify_issuer(LEAF.certificate, certificates(ISSUER, NEW), NOW)
    with pytest.raises(VerificationFailed):
        verify_leaf(ISSUER.certificate, [], certificates(NEW), NOW)
    mute = make("i", NEW, cert_sign=False)
    with pytest.raises(VerificationFailed):
        verify_issuer(mute.certificate, certificates(NEW), NOW)


def test_path_lengths_count_the_leaf_that_the_issuer_will_sign() -> None:
    tight = make("r", path_length=0)
    with pytest.raises(VerificationFailed) as caught:
        verify_issuer(make("i", tight).certificate, certificates(tight), NOW)
    assert "no room" in caught.value.observed
    one = make("r", path_length=1)
    middle = make("m", one)
    low = make("i", middle)
    verify_issuer(middle.certificate, certificates(one), NOW)
    with pytest.raises(VerificationFailed):
        verify_issuer(low.certificate, certificates(one), NOW, certificates(middle))
    two = make("r", path_length=2)
    middle = make("m", two)
    low = make("i", middle)
    assert len(verify_issuer(low.certificate, certificates(two), NOW, certificates(middle)).chain) == 3


def test_a_cross_signed_new_root_lets_a_new_leaf_verify_for_those_who_trust_only_the_old_root() -> None:
    crossed = make("root G2", OLD, key=NEW.key)
    chain = LEAF.certificate, certificates(ISSUER, crossed), certificates(OLD), NOW, NAME
    assert verify_leaf(*chain, relax=STRICT).anchor == OLD.certificate
    assert verify_issuer(ISSUER.certificate, certificates(OLD), NOW, certificates(crossed)).anchor == OLD.certificate
    roots = certificates(OLD, NEW)
    assert anchors_of_leaf(LEAF.certificate, certificates(ISSUER, crossed), roots, NOW) == {
        OLD.certificate.fingerprint,
        NEW.certificate.fingerprint,
    }


def test_an_unknown_critical_extension_is_refused_and_an_uncritical_one_is_not() -> None:
    odd = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")
    for critical in (True, False):
        issuer = make("i", NEW, extra=[(odd, critical)])
        leaf = dns_leaf(issuer)
        if critical:
            with pytest.raises(VerificationFailed):
                verify_issuer(issuer.certificate, certificates(NEW), NOW)
            with pytest.raises(VerificationFailed):
                verify_leaf(leaf.certificate, certificates(issuer), certificates(NEW), NOW, NAME)
        else:
            verify_issuer(issuer.certificate, certificates(NEW), NOW)
            verify_leaf(leaf.certificate, certificates(issuer), certificates(NEW), NOW, NAME)


def test_name_constraints_of_a_root_bind_the_leaves_below() -> None:
    inside = x509.NameConstraints([x509.DNSName("cluster.local")], None)
    outside = x509.NameConstraints([x509.DNSName("example.com")], None)
    for constraints, good in ((inside, True), (outside, False)):
        root = make("r", extra=[(constraints, True)])
        issuer = make("i", root)
        verify_issuer(issuer.certificate, certificates(root), NOW)  # an issuer without names is not constrained
        leaf = dns_leaf(issuer)
        if good:
            verify_leaf(leaf.certificate, certificates(issuer), certificates(root), NOW, NAME)
        else:
            with pytest.raises(VerificationFailed):
                verify_leaf(leaf.certificate, certificates(issuer), certificates(root), NOW, NAME)


def test_weak_and_foreign_keys_are_refused_wherever_they_stand() -> None:
    weak = rsa.generate_private_key(65537, 1024)
    curve = ec.generate_private_key(ec.SECP256K1())
    for key in (weak, curve):
        root = make("r", key=key)
        with pytest.raises(VerificationFailed):
            verify_issuer(make("i", root).certificate, certificates(root), NOW)
        leaf = dns_leaf(ISSUER, key=key)
        with pytest.raises(VerificationFailed):
            verify_leaf(leaf.certificate, certificates(ISSUER), certificates(NEW), NOW, NAME)


LACKING = {
    Relaxation.AKI_ABSENT: {"aki": False},
    Relaxation.SKI_ABSENT: {"ski": False},
    Relaxation.KEY_USAGE_ABSENT: {"key_usage": False},
    Relaxation.BASIC_CONSTRAINTS_NOT_CRITICAL: {"constraints_critical": False},
}


@pytest.mark.parametrize("relaxation", Relaxation)
def test_what_is_relaxed_is_accepted_only_when_it_is_named(relaxation: Relaxation) -> None:
    issuer = make("i", NEW, **LACKING[relaxation])  # type: ignore[arg-type]  # bools by name
    leaf = dns_leaf(issuer)
    others = frozenset(Relaxation) - {relaxation}
    leaf_chain = leaf.certificate, certificates(issuer), certificates(NEW), NOW, NAME
    verify_leaf(*leaf_chain, relax=frozenset({relaxation}))
    verify_issuer(issuer.certificate, certificates(NEW), NOW, relax=frozenset({relaxation}))
    for relax in (STRICT, others):
        with pytest.raises(VerificationFailed):
            verify_leaf(*leaf_chain, relax=relax)
        with pytest.raises(VerificationFailed):
            verify_issuer(issuer.certificate, certificates(NEW), NOW, relax=relax)


def test_the_default_install_whose_issuer_is_its_root_verifies() -> None:
    both = make("root.linkerd.cluster.local", eku=(SERVER, CLIENT), serial=1)
    leaf = dns_leaf(both)
    assert verify_issuer(both.certificate, certificates(both), NOW).chain == (both.certificate,)
    verify_leaf(leaf.certificate, [], certificates(both, NEW), NOW, NAME)
    verify_leaf(leaf.certificate, certificates(both), certificates(both, NEW), NOW, NAME)


def test_an_anchor_need_not_be_self_signed_as_rustls_and_go_see_it() -> None:
    middle = make("m", NEW)
    issuer = make("i", middle)
    leaf = dns_leaf(issuer)
    verify_issuer(issuer.certificate, certificates(middle), NOW)
    verify_leaf(leaf.certificate, certificates(issuer), certificates(middle), NOW, NAME)


def test_a_root_re_dated_with_its_old_key_still_anchors_old_leaves() -> None:
    redated = make("root G2", key=NEW.key, end=NOW + 900 * DAY)
    assert redated.certificate != NEW.certificate
    roots = certificates(redated, OLD)
    assert anchors_of_leaf(LEAF.certificate, certificates(ISSUER), roots, NOW) == {redated.certificate.fingerprint}
    assert anchors_of_issuer(ISSUER.certificate, roots, NOW) == {redated.certificate.fingerprint}


def test_an_expired_leaf_keeps_its_anchors() -> None:
    leaf = dns_leaf(ISSUER, end=NOW - dt.timedelta(hours=1), start=NOW - DAY)
    found = anchors_of_leaf(leaf.certificate, certificates(ISSUER), certificates(OLD, NEW), NOW)
    assert found == {NEW.certificate.fingerprint}
    assert anchors_of_leaf(LEAF.certificate, certificates(ISSUER), certificates(OLD), NOW) == frozenset()


@pytest.mark.parametrize("seconds", [1, 30, 300])
def test_what_was_made_by_a_clock_somewhat_ahead_of_ours_has_its_anchors(seconds: int) -> None:
    """cert-manager dates nothing back: what it has just signed begins in our future wherever our clock is behind."""
    ahead = NOW + dt.timedelta(seconds=seconds)
    issuer = make("identity", NEW, path_length=0, start=ahead)
    leaf = dns_leaf(issuer, start=ahead - dt.timedelta(seconds=20), end=NOW + DAY)  # as identity dates it back
    roots = certificates(OLD, NEW)
    assert anchors_of_leaf(leaf.certificate, certificates(issuer), roots, NOW) == {NEW.certificate.fingerprint}
    assert anchors_of_issuer(issuer.certificate, roots, NOW) == {NEW.certificate.fingerprint}
    fresh = make("root G3", start=ahead)
    below = make("identity", fresh, start=ahead)
    assert anchors_of_issuer(below.certificate, certificates(fresh, OLD), NOW) == {fresh.certificate.fingerprint}


def test_what_begins_later_than_any_healthy_clock_says_has_none() -> None:
    later = NOW + dt.timedelta(minutes=6)
    issuer = make("identity", NEW, path_length=0, start=later)
    leaf = dns_leaf(issuer, start=later, end=NOW + DAY)
    assert anchors_of_leaf(leaf.certificate, certificates(issuer), certificates(NEW), NOW) == frozenset()
    assert anchors_of_issuer(issuer.certificate, certificates(NEW), NOW) == frozenset()


def test_a_certificate_that_ends_within_the_skew_is_not_judged_beyond_its_end() -> None:
    soon = NOW + dt.timedelta(seconds=60)
    leaf = dns_leaf(ISSUER, end=soon)
    begins = make("next", NEW, path_length=0, start=soon + dt.timedelta(seconds=60))
    found = anchors_of_leaf(leaf.certificate, certificates(ISSUER, begins), certificates(NEW), NOW)
    assert found == {NEW.certificate.fingerprint}


def test_nothing_to_trust_and_a_naive_moment_are_refused() -> None:
    with pytest.raises(InvalidInput):
        verify_leaf(LEAF.certificate, certificates(ISSUER), [], NOW, NAME)
    with pytest.raises(InvalidInput):
        verify_issuer(ISSUER.certificate, certificates(NEW), NOW.replace(tzinfo=None))


def test_a_swarm_of_cross_signed_intermediates_costs_bounded_work() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    alone = make("lost root")
    first = make("m", alone, key=key)
    swarm = [make("m", Pair(first.certificate, key), key=key) for _ in range(40)]
    issuer = make("i", Pair(first.certificate, key))
    with pytest.raises(VerificationFailed) as caught:
        verify_issuer(issuer.certificate, certificates(NEW), NOW, certificates(*swarm))
    assert "signatures to check" in caught.value.observed


def test_a_root_that_got_other_dates_anchors_what_either_of_them_signs() -> None:
    old = make("root", end=NOW + 10 * DAY)
    new = make("root", key=old.key, end=NOW + 3650 * DAY)
    other = make("root")
    roots = [old.certificate, new.certificate, other.certificate]
    both = {old.certificate.fingerprint, new.certificate.fingerprint}
    for issuer in (old, new):
        leaf = make("leaf", issuer, ca=False, san=[x509.DNSName("leaf")], eku=[SERVER, CLIENT])
        assert anchors_of_leaf(leaf.certificate, [], roots, NOW) == both
        assert anchors_of_issuer(issuer.certificate, roots, NOW) == both
    expired = [make("root", key=old.key, end=NOW - DAY / 2).certificate]
    assert anchors_of_issuer(new.certificate, expired, NOW) == frozenset()
