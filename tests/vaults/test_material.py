"""Claims about the wrapper around keys: it parses strictly and never shows what it holds."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import pickle
import pprint
import traceback
from datetime import UTC, datetime

import cloudpickle
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from capstan.errors import InvalidInput, InvalidPem
from capstan.evidence.signer import Signer, mint_signing_key
from capstan.pki.mint import IssuerPolicy, RootPolicy, mint_issuer, mint_root
from capstan.vaults import Material

NOW = datetime(2026, 3, 1, tzinfo=UTC)
ROOT = mint_root(RootPolicy(), 1, NOW)
ISSUER = mint_issuer(IssuerPolicy(), ROOT, NOW)


def secret_lines(material: Material) -> list[str]:
    """The lines of the key's PEM that are the key."""
    return [line for line in material.unsafe_private_key_pem().splitlines() if "-----" not in line]


@dataclasses.dataclass
class Carrier:
    """Something that carries a key inside."""

    material: Material


def test_no_text_form_shows_the_key(caplog: pytest.LogCaptureFixture) -> None:
    material = Material.of(ROOT)
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("x").info("made %s and %r: %s", material, [material], Carrier(material))
    try:
        raise RuntimeError(material)
    except RuntimeError as error:
        trace = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    texts = [repr(material), str(material), f"{material}", f"{material!r:>300}", repr(Carrier(material))]
    texts += [pprint.pformat({"a": (material,)}), repr(dataclasses.asdict(Carrier(material))), caplog.text, trace]
    texts += [json.dumps({"m": material}, default=str)]
    for text in texts:
        assert "not shown" in text
        assert not any(line in text for line in secret_lines(material))


def test_it_has_no_attribute_dictionary() -> None:
    with pytest.raises(TypeError):
        vars(Material.of(ROOT))


@pytest.mark.parametrize("secret", [Material.of(ROOT), Signer(mint_signing_key())], ids=["material", "signer"])
def test_it_is_never_pickled(secret: object) -> None:
    for dumps in (pickle.dumps, cloudpickle.dumps):
        with pytest.raises(InvalidInput, match="never pickled"):
            dumps({"inside": [secret]})


def test_a_copy_is_the_same_object() -> None:
    material = Material.of(ROOT)
    assert copy.copy(material) is copy.deepcopy(material) is material


def test_it_is_not_json() -> None:
    with pytest.raises(TypeError):
        json.dumps(Material.of(ROOT))


def test_an_issuer_is_kept_with_its_root_and_comes_back_to_sign() -> None:
    material = Material.of(ISSUER, ROOT.certificate)
    back = Material.parse(material.unsafe_text(), "test")
    assert back == material
    assert back.fingerprint == ISSUER.certificate.fingerprint
    assert back.minted("test").certificate.fingerprint == ISSUER.certificate.fingerprint
    assert back.minted("test").key.spki_sha256 == ISSUER.key.spki_sha256


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-256", "RSA", "Ed25519"],
)
def test_every_usual_form_of_a_key_round_trips(key: ec.EllipticCurvePrivateKey) -> None:
    forms = [PrivateFormat.PKCS8]
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        forms.append(PrivateFormat.TraditionalOpenSSL)
    for form in forms:
        pem = key.private_bytes(Encoding.PEM, form, NoEncryption()).decode()
        assert Material.parse(pem, "test").unsafe_private_key_pem() == pem


def test_a_key_that_belongs_to_another_certificate_is_refused() -> None:
    with pytest.raises(InvalidPem, match="does not belong"):
        Material(ROOT.certificate.pem(), ISSUER.key.pem().decode())


def _bad_texts() -> dict[str, str]:
    certificate, key = ROOT.certificate.pem() + "\n", ROOT.key.pem().decode()
    locked = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pass")
    )
    return {
        "nothing": "",
        "prose": "hello",
        "prose after": certificate + key + "hello",
        "prose between": certificate + "hello\n" + key,
        "key first": key + certificate,
        "two keys": key + key,
        "encrypted key": locked.decode(),
        "cut off": (certificate + key)[:-30],
        "broken key": key.replace("\n", "\nAAAA", 1),
        "broken certificate": certificate.replace("\nMII", "\nAAA", 1),
        "another kind of block": "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
    }


@pytest.mark.parametrize("text", _bad_texts().values(), ids=_bad_texts().keys())
def test_anything_else_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(InvalidPem) as caught:
        Material.parse(text, "the test's file")
    assert "the test's file" in str(caught.value)
    quoted = [
        line
        for line in text.splitlines()
        if len(line) > 20 and not line.startswith("-----") and line in str(caught.value)
    ]
    assert quoted == []
    assert caught.value.__cause__ is None
