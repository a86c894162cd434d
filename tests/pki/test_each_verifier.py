"""What each verifier, and the rules beside them, refuse on their own: agreement is only worth what each is worth."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509

from capstan.pki.verify import STRICT, Purpose
from capstan.pki.verify.answer import IN_THE_FIELD, Answer
from capstan.pki.verify.openssl import judge
from capstan.pki.verify.path import judge_issuer
from capstan.pki.verify.pyca import judge_leaf
from capstan.pki.verify.shape import problems
from tests.pki.ca import CLIENT, DAY, NOW, SERVER, Pair, dns_leaf, make

NAME = "web.ns.serviceaccount.identity.linkerd.cluster.local"
ODD = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")
SECOND = dt.timedelta(seconds=1)


def path(issuer: Pair, *above: Pair, at: dt.datetime = NOW) -> Answer:
    """The path search's answer; the last of `above` is the root."""
    *between, root = [pair.certificate for pair in above]
    return judge_issuer(issuer.certificate, between, [root], at, relax=IN_THE_FIELD)


ROOT = make("root")


def test_the_path_search_accepts_a_plain_chain_and_returns_it() -> None:
    middle = make("m", ROOT)
    issuer = make("i", middle)
    answer = path(issuer, middle, ROOT)
    assert answer.accepted
    assert answer.chain == (issuer.certificate, middle.certificate, ROOT.certificate)


@pytest.mark.parametrize(
    ("issuer", "above", "at", "reason"),
    [
        (make("i", ROOT, end=NOW), (ROOT,), NOW + SECOND, "not at"),
        (make("i", ROOT, start=NOW), (ROOT,), NOW - SECOND, "not at"),
        (dns_leaf(ROOT), (ROOT,), NOW, "not a CA"),
        (make("i", ROOT, cert_sign=False), (ROOT,), NOW, "lacks keyCertSign"),
        (make("i", ROOT, eku=(CLIENT,)), (ROOT,), NOW, "lacks serverAuth"),
        (make("i", ROOT, extra=[(ODD, True)]), (ROOT,), NOW, "1.2.3.4.5 is not understood"),
        (make("i", make("root")), (ROOT,), NOW, "signature is not by"),
        (make("i", make("another")), (ROOT,), NOW, "nobody known by the name"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_path_search_refuses_an_issuer_that_breaks_a_rule(
    issuer: Pair, above: tuple[Pair, ...], at: dt.datetime, reason: str
) -> None:
    answer = path(issuer, *above, at=at)
    assert not answer.accepted
    assert reason in answer.reason


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"end": NOW - SECOND}, "not at"),
        ({"cert_sign": False}, "lacks keyCertSign"),
        ({"eku": (CLIENT,)}, "lacks serverAuth"),
        ({"extra": [(ODD, True)]}, "is not understood"),
        ({"path_length": 0}, "path length 0 is exceeded"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_path_search_holds_a_ca_above_the_issuer_to_the_same_rules(shape: dict[str, object], reason: str) -> None:
    top = make("top", **shape)  # type: ignore[arg-type]  # shapes by name
    middle = make("m", top)
    answer = path(make("i", middle), middle, top)
    assert not answer.accepted
    assert reason in answer.reason


def test_the_path_search_does_not_count_self_issued_cas_against_a_path_length() -> None:
    old = make("root", path_length=1)
    rolled = make("root", old)  # same name, new key: a key roll-over certificate (RFC 5280 section 6.1)
    middle = make("m", rolled)
    assert path(make("i", middle), middle, rolled, old).accepted


def test_the_path_search_takes_another_way_up_when_the_first_one_fails() -> None:
    dead = make("m", ROOT, end=NOW - SECOND)
    alive = make("m", ROOT, key=dead.key)
    assert path(make("i", dead), dead, alive, ROOT).accepted


def test_the_path_search_refuses_what_it_cannot_decide_about_name_constraints() -> None:
    bound = make("r", extra=[(x509.NameConstraints([x509.DNSName("cluster.local")], None), True)])
    assert path(make("i", bound), bound).accepted
    named = make("i", bound, san=[x509.DNSName("identity.cluster.local")])
    answer = path(named, bound)
    assert not answer.accepted
    assert "does not evaluate" in answer.reason
    by_directory = x509.NameConstraints([x509.DirectoryName(x509.Name([]))], None)
    directory = make("r", extra=[(by_directory, True)])
    assert not path(make("i", directory), directory).accepted


def test_openssl_applies_its_strict_rules_only_when_nothing_is_relaxed() -> None:
    bare = make("i", ROOT, aki=False).certificate
    assert judge(bare, [], [ROOT.certificate], NOW, relax=IN_THE_FIELD).accepted
    strict = judge(bare, [], [ROOT.certificate], NOW, relax=STRICT)
    assert not strict.accepted
    assert strict.reason == "Missing Authority Key Identifier"


def test_openssl_judges_for_the_moment_it_is_asked_about() -> None:
    issuer = make("i", ROOT, end=NOW + DAY).certificate
    assert judge(issuer, [], [ROOT.certificate], NOW + DAY, relax=STRICT).accepted
    assert not judge(issuer, [], [ROOT.certificate], NOW + DAY + SECOND, relax=STRICT).accepted
    elsewhere = (NOW + DAY).astimezone(dt.timezone(dt.timedelta(hours=14)))
    assert judge(issuer, [], [ROOT.certificate], elsewhere, relax=STRICT).accepted


@pytest.mark.parametrize(("eku", "good"), [((SERVER, CLIENT), True), ((SERVER,), False), ((CLIENT,), False)])
def test_cryptography_demands_both_usages_of_a_peer(eku: tuple[x509.ObjectIdentifier, ...], good: bool) -> None:
    leaf = dns_leaf(ROOT, eku=eku).certificate
    roots = [ROOT.certificate]
    answer = judge_leaf(leaf, [], roots, NOW, identity=NAME, purpose=Purpose.PEER, relax=STRICT)
    assert answer.accepted is good


def test_the_rules_beside_the_verifiers_find_each_fault_by_themselves() -> None:
    issuer = make("i", ROOT)
    client_only = (dns_leaf(issuer, eku=(CLIENT,)).certificate, issuer.certificate, ROOT.certificate)
    assert ["lacks serverAuth" in problem for problem in problems(client_only, Purpose.PEER, STRICT)] == [True]
    tight = make("r", path_length=0)
    crowded = (dns_leaf(issuer).certificate, make("i", tight).certificate, tight.certificate)
    assert ["no room" in problem for problem in problems(crowded, Purpose.PEER, STRICT)] == [True]
    loose = x509.NameConstraints([x509.DNSName("x")], None)
    bound = make("r", extra=[(loose, False)])
    assert ["not critical" in p for p in problems((bound.certificate,), Purpose.PEER, STRICT)] == [True]
    sound = (dns_leaf(issuer).certificate, issuer.certificate, ROOT.certificate)
    assert list(problems(sound, Purpose.PEER, STRICT)) == []
