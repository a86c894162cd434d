"""JSON Web Signatures of listed certificates: by the book, and nothing that only looks like one."""

from __future__ import annotations

import base64
import hmac
import itertools
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from capstan.approvals import jws
from capstan.approvals.keys import thumbprint
from capstan.errors import VerificationFailed
from tests.approvals.people import MINUTE, NOW, QUESTION, certificate, person

if TYPE_CHECKING:
    from capstan.approvals.sshsig import PrivateKey
    from capstan.pki.inspect import Certificate

ADA = person("ada", "x509", ec.generate_private_key(ec.SECP256R1()))
STATEMENT = QUESTION.statement(ADA.answer(ticket="CHG-1", comment="Zoë says “go”"))
PAYLOAD = {**STATEMENT.fields(), "iat": int(NOW.timestamp())}


def verify(compact: str, found: Certificate = ADA.certificate) -> None:
    jws.verify(STATEMENT, compact, found, asked=NOW - MINUTE, given=NOW)


def made(
    payload: Any = PAYLOAD, *, key: Any = ADA.key, algorithm: str | None = "ES256", drop: str = "", **header: Any
) -> str:
    """A JWS of ADA with one thing wrong."""
    headers = {"typ": jws.TYP, "x5t#S256": thumbprint(ADA.certificate), **header}
    headers.pop(drop, None)
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return jwt.PyJWS().encode(raw, key, algorithm, headers)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa-256", "ecdsa-384", "ecdsa-521", "rsa-2048"])
def test_what_we_sign_we_verify(kind: str, every_key: dict[str, PrivateKey]) -> None:
    key = every_key[kind]
    found = certificate(key, "ada")
    compact = jws.sign(STATEMENT, key, found, NOW)
    verify(compact, found)
    verify(compact[:70] + "\n " + compact[70:] + "\n", found)  # as a form may have folded it
    assert jws.signer(compact) == f"x5t#S256:{thumbprint(found)}"


def test_a_signature_made_by_any_other_tool_verifies() -> None:
    verify(made())
    verify(made(json.dumps(PAYLOAD, indent=4, sort_keys=True).encode()))  # the fields count, not how they are laid out


def test_rsa_may_sign_either_way(every_key: dict[str, PrivateKey]) -> None:
    key = every_key["rsa-2048"]
    found = certificate(key, "ada")
    for algorithm in ("RS256", "PS256"):
        verify(made(key=key, algorithm=algorithm, **{"x5t#S256": thumbprint(found)}), found)


def test_no_algorithm_but_the_keys_own_counts() -> None:
    none = made(key="", algorithm="none")
    public = ADA.certificate.public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    # The classic confusion: the public key, known to all, used as an HMAC secret (RFC 8725 section 2.1).
    _, payload, _ = made().split(".")
    header = {"alg": "HS256", "typ": jws.TYP, "x5t#S256": thumbprint(ADA.certificate)}
    head = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    mac = hmac.digest(public, f"{head}.{payload}".encode(), "sha256")
    confused = f"{head}.{payload}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"
    assert jwt.get_unverified_header(confused)["alg"] == "HS256"
    for compact in (none, confused, none.rsplit(".", 1)[0] + "."):
        with pytest.raises(VerificationFailed, match="cannot count"):
            verify(compact)


def test_a_header_with_a_key_of_its_own_changes_nothing() -> None:
    eve = person("eve", "x509", ec.generate_private_key(ec.SECP256R1()))
    point = eve.key.public_key().public_numbers()
    number = lambda n: base64.urlsafe_b64encode(n.to_bytes(32, "big")).rstrip(b"=").decode()  # noqa: E731  # said once
    own = {"kty": "EC", "crv": "P-256", "x": number(point.x), "y": number(point.y)}
    der = base64.b64encode(eve.certificate.der).decode()
    with pytest.raises(VerificationFailed, match="cannot count"):
        verify(made(key=eve.key, jwk=own, x5c=[der]))


@pytest.mark.parametrize(
    ("compact", "observed"),
    [
        (made(typ="JWT"), "typ: 'JWT'"),
        (made(drop="typ", typ=None), "typ: "),
        (made(drop="x5t#S256"), "x5t#S256: None"),
        (made(**{"x5t#S256": "AAAA"}), "x5t#S256: 'AAAA'"),
        (made({**PAYLOAD, "decision": "reject"}), "another decision"),
        (made({**PAYLOAD, "request": "ffffffffffff", "turn": 2}), "another turn, request"),
        (made({k: v for k, v in PAYLOAD.items() if k != "comment"}), "another comment"),
        (made({**PAYLOAD, "more": 1}), "another set of fields"),
        (made({**PAYLOAD, "turn": True}), "another set of fields"),
        (made([1]), "another type"),
        (made({k: v for k, v in PAYLOAD.items() if k != "iat"}), "iat: None"),
        (made({**PAYLOAD, "iat": "now"}), "iat: 'now'"),
        (made({**PAYLOAD, "iat": True}), "iat: True"),
        (made({**PAYLOAD, "iat": 10**30}), "iat: 1000"),
        (made(b"no json"), "Expecting value"),
        (made(b"[" * 100_000), "recursion"),
        (made(crit=["b64"], b64=False), ""),
        ("", "Not enough segments"),
        ("a.b.c", ""),
        ("ünïcode", ""),
    ],
    ids=itertools.count(1),
)
def test_a_signature_with_one_thing_wrong_does_not_count(compact: str, observed: str) -> None:
    with pytest.raises(VerificationFailed) as raised:
        verify(compact)
    assert observed in raised.value.observed


def test_somebody_elses_certificate_does_not_count() -> None:
    eve = person("eve", "x509", ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(VerificationFailed):
        verify(jws.sign(STATEMENT, eve.key, eve.certificate, NOW))
    with pytest.raises(VerificationFailed):
        verify(jws.sign(replace(STATEMENT, name="eve"), ADA.key, ADA.certificate, NOW))


def test_text_that_is_no_signature_names_no_signer() -> None:
    with pytest.raises(VerificationFailed, match="no signature"):
        jws.signer("yes, approved")
