"""x509-limbo (C2SP, Apache-2.0): a public corpus of chains with the answers a careful verifier gives.

The corpus is not part of this repository: set CAPSTAN_X509_LIMBO to its limbo.json, or put it where the default looks.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from capstan.errors import CapstanError, VerificationFailed, VerifiersDisagree
from capstan.pki.inspect import Certificate
from capstan.pki.verify import IN_THE_FIELD, STRICT, Purpose, Relaxation, verify_issuer, verify_leaf

CORPUS = Path(os.environ.get("CAPSTAN_X509_LIMBO", Path(__file__).parents[2].parent / "shared/vectors/x509-limbo.json"))
pytestmark = pytest.mark.skipif(not CORPUS.is_file(), reason=f"no x509-limbo corpus at {CORPUS}")

# What Capstan does not judge, by the corpus' own features and namespaces. Everything else is a wrong answer.
OUTSIDE_FEATURES = {
    "has-crl": "no mesh it rotates reads revocation lists; roots are withdrawn from bundles instead",
    "max-chain-depth": "the corpus asks for a depth limit as a parameter; ours is fixed",
    "pedantic-webpki-eku": "browser rules (CA/B Forum BR 7.1) about EKU; Linkerd's own root has one",
}
OUTSIDE_NAMESPACES = {
    "webpki::cn::": "CA/B Forum rule that a common name repeats a SAN; the common name is never an identity here",
}
# What the named relaxations let through, each by the extension it is named after.
RELAXED = {
    "rfc5280::aki::leaf-missing-aki",
    "rfc5280::aki::intermediate-missing-aki",
    "rfc5280::aki::cross-signed-root-missing-aki",
    "rfc5280::ski::root-missing-ski",
    "rfc5280::ski::intermediate-missing-ski",
    "rfc5280::root-non-critical-basic-constraints",
    "webpki::aki::root-with-aki-missing-keyidentifier",
    "webpki::aki::root-with-aki-all-fields",
}
# Good chains that are refused, and why that is right for a mesh.
REFUSED_THOUGH_GOOD = {
    "crl::issuer-no-keyusage-extension": "a CA without key usage; accepted under KEY_USAGE_ABSENT",
    "cve::cve-2024-0567": "a cross-signed root without AKI; accepted under AKI_ABSENT",
    "pathlen::validation-ignores-pathlen-in-leaf": "a CA as leaf",
    "rfc5280::ca-as-leaf": "a CA as leaf",
    "pathlen::self-issued-certs-pathlen": "cryptography counts self-issued certificates; the verifiers disagree",
    "rfc5280::nc::permitted-dn-match": "cryptography does not evaluate directory names; the verifiers disagree",
    "rfc5280::nc::nc-forbids-alternate-chain-ica": "OpenSSL tries one path only; the verifiers disagree",
    "rfc5280::nc::nc-forbids-same-chain-ica": "OpenSSL tries one path only; the verifiers disagree",
    "webpki::nc::permitted-dns-match-noncritical": "name constraints that are not critical (RFC 5280 4.2.1.10)",
    "webpki::nc::nc-permits-dns-san-pattern": "a wildcard is no mesh identity",
    "webpki::san::leftmost-wildcard-san": "a wildcard is no mesh identity",
    "online::docs.python.org": "a wildcard is no mesh identity",
}


def _cases() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads(CORPUS.read_text())["testcases"]
    return cases


def _load(pem: str) -> Certificate:
    return Certificate(x509.load_pem_x509_certificate(pem.encode()))


def _moment(case: dict[str, Any]) -> dt.datetime:
    given = case["validation_time"]
    return dt.datetime.fromisoformat(given) if given else dt.datetime.now(dt.UTC)


def _outside(case: dict[str, Any]) -> bool:
    return bool(OUTSIDE_FEATURES.keys() & set(case["features"])) or case["id"].startswith(tuple(OUTSIDE_NAMESPACES))


def _answer(case: dict[str, Any], relax: frozenset[Relaxation]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cryptography warns about the malformed serials that the corpus is made of
        try:
            roots = [_load(pem) for pem in case["trusted_certs"]]
            between = [_load(pem) for pem in case["untrusted_intermediates"]]
            leaf = _load(case["peer_certificate"])
            name = case["expected_peer_name"]
            identity = name["value"] if name and name["kind"] in ("DNS", "IP") else None
            at = (
                dt.datetime.fromisoformat(case["validation_time"])
                if case["validation_time"]
                else dt.datetime.now(dt.UTC)
            )
            verify_leaf(leaf, between, roots, at, identity, purpose=Purpose[case["validation_kind"]], relax=relax)
        except VerifiersDisagree:
            return "DISAGREE"
        except (CapstanError, ValueError):  # ValueError: the library cannot even load the certificate
            return "FAILURE"
    return "SUCCESS"


@pytest.mark.parametrize("relax", [STRICT, IN_THE_FIELD], ids=["strict", "in the field"])
def test_no_chain_that_must_fail_is_accepted_but_for_rules_outside_a_mesh(relax: frozenset[Relaxation]) -> None:
    wrong = {
        case["id"]
        for case in _cases()
        if case["expected_result"] == "FAILURE" and not _outside(case) and _answer(case, relax) == "SUCCESS"
    }
    assert wrong == (RELAXED if relax else set())


def test_every_good_chain_is_accepted_but_for_an_argued_list() -> None:
    strict = {c["id"] for c in _cases() if c["expected_result"] == "SUCCESS" and _answer(c, STRICT) != "SUCCESS"}
    relaxed = {c["id"] for c in _cases() if c["expected_result"] == "SUCCESS" and _answer(c, IN_THE_FIELD) != "SUCCESS"}
    assert strict == set(REFUSED_THOUGH_GOOD)
    assert strict - relaxed == {"crl::issuer-no-keyusage-extension", "cve::cve-2024-0567"}


def test_the_counts_of_answers_may_only_get_better() -> None:
    counts = Counter((case["expected_result"], _answer(case, STRICT)) for case in _cases() if not _outside(case))
    right = counts["FAILURE", "FAILURE"] + counts["FAILURE", "DISAGREE"] + counts["SUCCESS", "SUCCESS"]
    assert right >= 170, counts
    assert counts["FAILURE", "SUCCESS"] == 0, counts


BROKEN_ABOVE_THE_LEAF = [
    "pathlen::intermediate-violates-pathlen-0",
    "pathlen::intermediate-pathlen-too-long",
    "pathological::intermediate-cycle-distinct-cas",
    "pathological::intermediate-cycle-same-logical-ca",
    "pathological::pathological-chain-distinct-subject-distinct-key",
    "pathological::pathological-chain-same-subject-same-key",
    "rfc5280::aki::intermediate-missing-aki",
    "rfc5280::chain-untrusted-root",
    "rfc5280::intermediate-ca-without-ca-bit",
    "rfc5280::pc::ica-noncritical-pc",
    "rfc5280::ski::intermediate-missing-ski",
    "rfc5280::unknown-critical-extension-intermediate",
    "rfc5280::validity::expired-intermediate",
    "rfc5280::validity::expired-root",
]


@pytest.mark.parametrize("name", BROKEN_ABOVE_THE_LEAF)
def test_an_issuer_is_refused_where_the_corpus_has_the_fault_above_the_leaf(name: str) -> None:
    case = next(case for case in _cases() if case["id"] == name)
    roots = [_load(pem) for pem in case["trusted_certs"]]
    between = [_load(pem) for pem in case["untrusted_intermediates"]]
    leaf = _load(case["peer_certificate"])
    issuers = [certificate for certificate in between if leaf.signed_by(certificate)]
    assert issuers
    for issuer in issuers[:3]:
        with pytest.raises(VerificationFailed):
            verify_issuer(issuer, roots, _moment(case), between, relax=STRICT)
