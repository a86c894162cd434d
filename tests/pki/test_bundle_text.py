"""PEM hygiene: the cases of Linkerd's strict reader, and the one text form Capstan writes."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan.errors import InvalidCertificate, InvalidInput, InvalidPem
from capstan.pki.bundle import Bundle, Reading, lint
from capstan.pki.inspect import Certificate
from capstan.pki.keys import PrivateKey
from capstan.pki.mint import RootPolicy, mint_root

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
KEY = PrivateKey.generate()
ROOTS = tuple(mint_root(RootPolicy(), generation, NOW, key=KEY).certificate for generation in range(1, 6))
A, B, C = (root.pem() for root in ROOTS[:3])
KEY_PEM = KEY.pem().decode().strip()

READABLE = {
    "no newline at the end": f"{A}\n{B}",
    "one newline at the end": f"{A}\n{B}\n",
    "a blank line between": f"{A}\n\n{B}",
    "a comment between": f"{A}\n# the old one\n{B}",
    "a comment before": f"# roots\n{A}\n{B}",
    "carriage returns": f"{A}\n{B}\n".replace("\n", "\r\n"),
    "a duplicate": f"{A}\n{B}\n{A}",
}
FATAL = {
    "a trailing blank line": f"{A}\n{B}\n\n",
    "a trailing comment": f"{A}\n{B}\n# end",
    "trailing spaces": f"{A}\n{B}\n  ",
    "spaces after the last END line": f"{A}\n{B}  ",
    "a truncated last certificate": f"{A}\n{B[:-40]}",
    "a last certificate without END line": f"{A}\n" + B.rsplit("\n", 1)[0],
    "an END line glued to the base64": A.replace("\n-----END", "-----END"),
    "nothing at all": "",
    "only a newline": "\n",
    "only a comment": "# nothing here",
    "base64 that is no certificate": "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----",
    "headers inside": A.replace("-----BEGIN CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----\nProc-Type: 4\n\n"),
}
CUT = {
    "a key between": f"{A}\n{KEY_PEM}\n{B}",
    "a key first": f"{KEY_PEM}\n{A}",
    "a key last": f"{A}\n{KEY_PEM}",
    "a request between": f"{A}\n{B.replace('CERTIFICATE', 'CERTIFICATE REQUEST')}\n{C}",
    "a broken certificate before a good one": f"{A[:-40]}\n{B}",
    "a byte order mark": f"\ufeff{A}\n{B}",
}


@pytest.mark.parametrize("text", READABLE.values(), ids=READABLE.keys())
def test_a_text_that_both_readers_read_whole_is_accepted_and_written_in_the_one_form(text: str) -> None:
    bundle = Bundle.parse(text, "here")
    assert bundle.certificates == ROOTS[:2]
    assert bundle.pem() == f"{A}\n{B}"
    assert not [finding for finding in lint(text) if finding.reading is not Reading.OK]


@pytest.mark.parametrize("text", FATAL.values(), ids=FATAL.keys())
def test_a_text_that_kills_the_strict_reader_is_refused(text: str) -> None:
    assert Reading.FATAL in {finding.reading for finding in lint(text)}
    with pytest.raises(InvalidPem):
        Bundle.parse(text, "configmap linkerd/linkerd-identity-trust-roots")


@pytest.mark.parametrize("text", CUT.values(), ids=CUT.keys())
def test_a_text_of_which_the_strict_reader_drops_a_part_is_refused(text: str) -> None:
    assert Reading.SILENTLY_CUT in {finding.reading for finding in lint(text)}
    with pytest.raises(InvalidPem):
        Bundle.parse(text, "here")


def test_a_refusal_names_the_place_the_line_and_what_follows() -> None:
    with pytest.raises(InvalidPem) as caught:
        Bundle.parse(f"{A}\n\n", "configmap linkerd/roots")
    assert "configmap linkerd/roots" in str(caught.value)
    lines = A.count("\n") + 1
    assert f"line {lines + 1}: trailing blank line (fatal)" in caught.value.observed


def test_a_refusal_never_quotes_a_key_that_stood_in_the_bundle() -> None:
    with pytest.raises(InvalidPem) as caught:
        Bundle.parse(CUT["a key between"], "here")
    assert not any(line in str(caught.value) for line in KEY_PEM.splitlines())


def test_the_proxys_reader_takes_every_certificate_from_a_text_the_strict_one_refuses() -> None:
    for name in ("a trailing blank line", "a trailing comment", "trailing spaces"):
        assert Bundle.parse_lenient(FATAL[name], "pod").certificates == ROOTS[:2]
    assert Bundle.parse_lenient(CUT["a key between"], "pod").certificates == ROOTS[:2]
    with pytest.raises(InvalidPem):
        Bundle.parse_lenient(FATAL["a truncated last certificate"], "pod")
    with pytest.raises(InvalidPem):
        Bundle.parse_lenient("", "pod")


def test_an_empty_bundle_is_a_value_but_is_never_written() -> None:
    assert len(Bundle()) == 0
    with pytest.raises(InvalidInput):
        Bundle().pem()


def test_one_certificate_is_read_only_from_a_text_that_holds_one() -> None:
    assert Certificate.from_pem(A) == ROOTS[0]
    with pytest.raises(InvalidPem):
        Certificate.from_pem(f"{A}\n{B}")
    with pytest.raises(InvalidCertificate):
        Certificate.from_der(b"no certificate")


def test_the_hash_of_a_bundle_is_of_its_text_form_and_so_depends_on_the_order() -> None:
    assert Bundle.of(*ROOTS[:2]).sha256 == Bundle.parse(READABLE["carriage returns"], "x").sha256
    assert Bundle.of(*ROOTS[:2]).sha256 != Bundle.of(*reversed(ROOTS[:2])).sha256
    assert Bundle.of(*ROOTS[:2]).fingerprints == Bundle.of(*reversed(ROOTS[:2])).fingerprints


roots = st.lists(st.sampled_from(ROOTS), min_size=1, max_size=8)


@given(roots)
def test_a_bundle_read_back_from_its_text_is_the_same_bundle(some: list[Certificate]) -> None:
    bundle = Bundle(tuple(some))
    assert Bundle.parse(bundle.pem(), "x") == bundle
    assert Bundle.parse(bundle.pem(trailing_newline=True), "x") == bundle
    assert Bundle.parse_lenient(bundle.pem(), "x") == bundle
    assert lint(bundle.pem()) == ()


@given(roots, roots)
def test_bundles_are_sets_in_an_order(some: list[Certificate], more: list[Certificate]) -> None:
    one, other = Bundle(tuple(some)), Bundle(tuple(more))
    both = one.union(other)
    assert both.fingerprints == one.fingerprints | other.fingerprints
    assert both.certificates[: len(one)] == one.certificates
    assert both.union(other) == both
    assert both.without(other.fingerprints).fingerprints == one.fingerprints - other.fingerprints
    assert both.only(one.fingerprints) == one
    assert len(both) == len(both.fingerprints)


junk = st.sampled_from(
    [A, B, KEY_PEM, "# x", "", " ", "\n", "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"]
)


@settings(max_examples=200)
@given(st.lists(junk, max_size=7), st.sampled_from(["\n", "\r\n", ""]))
def test_whatever_the_strict_parser_accepts_both_readers_read_alike(parts: list[str], separator: str) -> None:
    text = separator.join(parts)
    try:
        strict = Bundle.parse(text, "x")
    except (InvalidPem, InvalidCertificate):
        return
    assert strict == Bundle.parse_lenient(text, "x")
    assert "PRIVATE KEY" not in text
    assert not text.endswith("\n\n")
