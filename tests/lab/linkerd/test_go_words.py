"""Go's own judgement and words where no trace looked: verification, keys, durations, quoting, retried events."""

from __future__ import annotations

import asyncio
import contextlib
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from infra.lab.client import ApiError
from infra.lab.linkerd import goasn1, gopem, gox509
from infra.lab.linkerd.events import Recorder, Reference
from infra.lab.linkerd.flags import parse_duration, parse_flags
from infra.lab.linkerd.gotext import log_line, quote

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
ELLIPTIC, OTHER = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)
EDWARDS = ed25519.Ed25519PrivateKey.generate()
PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER
PLAIN = serialization.NoEncryption()


def made(name: str, key: Any, issuer: str = "", signer: Any = None, *extra: Any) -> x509.Certificate:
    """A CA certificate, self-signed unless `issuer` and `signer` are given; `extra` are critical extensions."""
    signer = signer or key
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer or name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
    )
    for extension in extra:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(signer, None if isinstance(signer, ed25519.Ed25519PrivateKey) else hashes.SHA256())


def refusal(certificate: x509.Certificate, *roots: x509.Certificate, others: tuple[x509.Certificate, ...] = ()) -> str:
    with pytest.raises(gox509.VerifyError) as refused:
        gox509.verify(certificate, roots=roots, intermediates=others, now=NOW)
    return str(refused.value)


# --- verification ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signer", "root", "why"),
    [
        (
            RSA,
            ELLIPTIC,
            "signature algorithm specifies an RSA public key, but have public key of type *ecdsa.PublicKey",
        ),
        (
            ELLIPTIC,
            RSA,
            "signature algorithm specifies an ECDSA public key, but have public key of type *rsa.PublicKey",
        ),
        (
            ELLIPTIC,
            EDWARDS,
            "signature algorithm specifies an ECDSA public key, but have public key of type ed25519.PublicKey",
        ),
        (EDWARDS, ed25519.Ed25519PrivateKey.generate(), "Ed25519 verification failure"),
        (ELLIPTIC, OTHER, "ECDSA verification failure"),
    ],
)
def test_why_a_root_of_the_same_name_is_not_the_signer_is_told(signer: Any, root: Any, why: str) -> None:
    issuer = made("issuer", OTHER, "root", signer)
    assert refusal(issuer, made("root", root)) == (
        f'x509: certificate signed by unknown authority (possibly because of "x509: {why}" while trying to verify'
        ' candidate authority certificate "root")'
    )


@pytest.mark.parametrize(("last", "name"), [(0x05, "SHA1-RSA"), (0x04, "MD5-RSA")])
def test_a_signature_with_an_old_digest_counts_for_nothing(last: int, name: str) -> None:
    # Nobody makes such signatures any more: the name of a good one's algorithm is changed.
    good, old = (bytes.fromhex("2a864886f70d0101") + bytes([end]) for end in (0x0B, last))
    der = made("issuer", OTHER, "root", RSA).public_bytes(DER).replace(good, old)
    root = made("root", RSA)
    text = refusal(x509.load_der_x509_certificate(der), root)
    assert f'"x509: cannot verify signature: insecure algorithm {name}"' in text


def test_a_critical_extension_that_go_does_not_know_makes_a_certificate_unusable() -> None:
    strange = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    issuer = made("issuer", OTHER, "root", ELLIPTIC, strange)
    assert refusal(issuer, made("root", ELLIPTIC)) == "x509: unhandled critical extension"
    issuer = made("issuer", OTHER, "root", ELLIPTIC)
    assert refusal(issuer, made("root", ELLIPTIC, "", None, strange)) == "x509: unhandled critical extension"


def test_a_chain_goes_through_no_subject_and_key_twice() -> None:
    issuer = made("issuer", OTHER, "a", ELLIPTIC)
    one, again = made("a", ELLIPTIC, "b", RSA), made("a", ELLIPTIC, "b", RSA)
    two = made("b", RSA, "a", ELLIPTIC)
    assert refusal(issuer, made("root", EDWARDS), others=(one, two, again)) == (
        "x509: certificate signed by unknown authority"
    )
    chains = gox509.verify(issuer, roots=[made("b", RSA)], intermediates=[one, two, again], now=NOW)
    assert sorted(len(chain) for chain in chains) == [3, 3]


# --- keys -----------------------------------------------------------------------------------------------------------


def relabelled(key: Any, form: serialization.PrivateFormat, label: str) -> bytes:
    pem: bytes = key.private_bytes(PEM, form, PLAIN)
    return re.sub(rb"(BEGIN|END) [A-Z ]*PRIVATE KEY", rb"\1 " + label.encode(), pem)


SEC1 = PKCS1 = serialization.PrivateFormat.TraditionalOpenSSL
PKCS8 = serialization.PrivateFormat.PKCS8


@pytest.mark.parametrize(
    ("pem", "why"),
    [
        (
            relabelled(ELLIPTIC, PKCS8, "EC PRIVATE KEY"),
            "x509: failed to parse private key (use ParsePKCS8PrivateKey instead for this key format)",
        ),
        (
            relabelled(RSA, PKCS1, "EC PRIVATE KEY"),
            "x509: failed to parse private key (use ParsePKCS1PrivateKey instead for this key format)",
        ),
        (
            relabelled(ELLIPTIC, SEC1, "PRIVATE KEY"),
            "x509: failed to parse private key (use ParseECPrivateKey instead for this key format)",
        ),
        (
            relabelled(RSA, PKCS8, "RSA PRIVATE KEY"),
            "x509: failed to parse private key (use ParsePKCS8PrivateKey instead for this key format)",
        ),
        (
            relabelled(EDWARDS, PKCS8, "PRIVATE KEY"),
            "unsupported PKCS#8 encoded private key type: 'ed25519.PrivateKey', linkerd2 only supports ECDSA and RSA"
            " private keys",
        ),
        (
            b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
            + relabelled(ELLIPTIC, SEC1, "EC PRIVATE KEY"),
            "unsupported block type: 'EC PARAMETERS'",
        ),
    ],
    ids=["PKCS 8 as EC", "PKCS 1 as EC", "SEC 1 as PKCS 8", "PKCS 8 as RSA", "Ed25519", "parameters first"],
)
def test_a_key_in_a_form_that_its_block_does_not_name_is_refused_with_the_one_that_it_is(pem: bytes, why: str) -> None:
    with pytest.raises(gopem.PemError) as refused:
        gopem.private_key(pem)
    assert str(refused.value) == why


@pytest.mark.parametrize(
    ("der", "why"),
    [
        (b"", "asn1: syntax error: sequence truncated"),
        (b"\x30", "asn1: syntax error: truncated tag or length"),
        (b"\x30\x80", "asn1: syntax error: indefinite length found (not DER)"),
        (b"\x30\x81\x05", "asn1: structure error: non-minimal length"),
        (b"\x30\x05\x02\x01\x01", "asn1: syntax error: data truncated"),
        (b"\x30\x00\x00", "asn1: syntax error: trailing data"),
        (b"\x30\x00", ""),
    ],
)
def test_bytes_that_are_no_sequence_are_named_as_go_names_them(der: bytes, why: str) -> None:
    assert goasn1.sequence_error(der, "name") == why


# --- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "quoted"),
    [("a b", '"a b"'), ('a"b\\', '"a\\"b\\\\"'), ("\x01\n\x7f\u200b", '"\\x01\\n\\x7f\\u200b"'), ("Ö€", '"Ö€"')],
)
def test_text_is_quoted_as_by_go(text: str, quoted: str) -> None:
    assert quote(text) == quoted


def test_a_log_line_quotes_what_needs_it_and_sorts_its_fields() -> None:
    assert log_line(NOW, "info", "two words", z="1", a="b c") == (
        'time="2026-11-21T12:00:00Z" level=info msg="two words" a="b c" z=1'
    )
    assert log_line(NOW, "info", "one").endswith("msg=one")


@pytest.mark.parametrize(
    ("text", "seconds"), [("24h0m0s", 86400), ("-1.5s", -1.5), ("0", 0), ("+2m", 120), (".5s", 0.5), ("3us", 3e-6)]
)
def test_durations_are_read_as_by_go(text: str, seconds: float) -> None:
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", 'time: invalid duration ""'),
        ("abc", 'time: invalid duration "abc"'),
        ("5", 'time: missing unit in duration "5"'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        ("1h 5m", 'time: unknown unit "h " in duration "1h 5m"'),
    ],
)
def test_what_is_no_duration_is_refused_in_gos_words(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(why)}$"):
        parse_duration(text)


def test_a_flag_may_be_empty_or_bare() -> None:
    assert parse_flags(["identity", "-a=", "--b", "-c=d=e"]) == {"a": "", "b": "true", "c": "d=e"}


# --- events ---------------------------------------------------------------------------------------------------------


class Api:
    """An API server that keeps Events, and answers a number of requests with an error first."""

    def __init__(self, *errors: ApiError) -> None:
        self.errors = list(errors)
        self.events: list[dict[str, Any]] = []
        self.asked = 0

    async def create(self, _: str, body: dict[str, Any]) -> dict[str, Any]:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        self.events.append(body)
        return body


@pytest.mark.parametrize(
    ("error", "asked", "written"),
    [(ApiError(0, "ConnectionError", "refused"), 4, ["one", "two"]), (ApiError(500, "Internal", "no"), 4, [])],
)
def test_an_event_is_tried_again_only_if_nobody_answered(error: ApiError, asked: int, written: list[str]) -> None:
    async def script() -> Api:
        api: Any = Api(error, error)
        recorder = Recorder(api, "linkerd-identity", pause=0)
        running = asyncio.create_task(recorder.run())
        for message in ("one", "two"):
            recorder.record(Reference("Deployment", "apps/v1", "linkerd", "x"), "Normal", "R", message)
        if error.status:
            recorder.record(Reference("Deployment", "apps/v1", "linkerd", "x"), "Normal", "R", "three")
            recorder.record(Reference("Deployment", "apps/v1", "linkerd", "x"), "Normal", "R", "four")
        for _ in range(100):
            await asyncio.sleep(0)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        found: Api = api
        return found

    api = asyncio.run(script())
    assert api.asked == asked
    assert [event["message"] for event in api.events] == (written or ["three", "four"])
