"""The lab's linkerd-identity where no recorded trace looks: each rule is one of its source (linkerd2 stable-2.14.10,
pkg/identity, controller/identity, pkg/tls, pkg/admin; later versions where a test says so).
"""

from __future__ import annotations

import asyncio
import re
import shutil
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from infra.lab import pki
from infra.lab.linkerd import issuer, tokens, versions, wire
from tests.lab.linkerd import identity_replay as lab

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.lab.linkerd.identity_replay import Replay

NOW = datetime.now(UTC)
ROOT, ROOT_B = pki.mint_root(now=NOW), pki.mint_root(now=NOW, name="root-b")
ISSUER = pki.mint_issuer(ROOT, now=NOW)
ROLE = "/apis/rbac.authorization.k8s.io/v1/clusterroles/linkerd-linkerd-identity"


def run(directory: Path, script: Callable[[Replay], Awaitable[None]], version: str = "dev-undefined") -> None:
    async def main() -> None:
        async with lab.replay(directory, version) as session:
            session.give_roots(ROOT)
            session.give_pair(ISSUER)
            await script(session)

    asyncio.run(main())


def messages(session: Replay) -> list[str]:
    found = (re.search(r'level=(\w+) msg="(.*)"$', line) for line in session.log())
    return [f"{match[1]}: {match[2]}" for match in found if match]


async def last_words(session: Replay, code: int = 1) -> str:
    """The last line of a process that ends by itself, with `code`."""
    assert await session.exit_code() == code
    return messages(session)[-1]


# --- Certify --------------------------------------------------------------------------------------------------------


def test_an_issuer_that_has_ended_is_told_before_names_and_token_of_a_request_are_looked_at(tmp_path: Path) -> None:
    async def script(session: Replay) -> None:
        session.start()
        await session.wait_ready()
        assert session.identity is not None
        session.identity.clock_ahead = timedelta(days=400)
        for answer in (
            await session.certify(request=lab.csr(sans=("a", "b"))),
            await session.certify(token="garbage"),
        ):
            assert answer[0] == "UNKNOWN"
            assert answer[1].startswith("x509: certificate has expired or is not yet valid: current time ")
        # What is missing is found before.
        assert (await session.certify(token=""))[:2] == ("INVALID_ARGUMENT", "missing token")
        assert sum("CA cert validation failure" in line for line in session.log()) == 2

    run(tmp_path, script)


def test_a_request_that_is_no_csr_is_refused_in_the_words_of_gos_asn1(tmp_path: Path) -> None:
    pem = b"-----BEGIN CERTIFICATE REQUEST-----\n"
    parameters = (
        "{optional:false explicit:false application:false private:false defaultValue:<nil> tag:<nil>"
        " stringType:0 timeType:0 set:false omitEmpty:false} certificateRequest @2"
    )

    async def script(session: Replay) -> None:
        session.start()
        await session.wait_ready()
        for request, why in (
            (pem, "asn1: structure error: tags don't match (16 vs {class:0 tag:13 length:45 isCompound:true}) "),
            (lab.csr()[:-20], "asn1: syntax error: data truncated"),
            (lab.csr() + b"more", "asn1: syntax error: trailing data"),
        ):
            wanted = why + parameters if why.endswith(" ") else why
            assert (await session.certify(request=request))[:2] == ("INVALID_ARGUMENT", wanted)

    run(tmp_path, script)


def test_a_csr_whose_signature_is_wrong_gets_a_leaf_because_identity_never_checks_it(tmp_path: Path) -> None:
    broken = bytearray(lab.csr())
    broken[-1] ^= 1

    async def script(session: Replay) -> None:
        session.start()
        await session.wait_ready()
        assert (await session.certify(request=bytes(broken)))[0] == "OK"

    run(tmp_path, script)


def test_a_message_that_is_no_protobuf_is_an_internal_error_that_no_metric_counts(tmp_path: Path) -> None:
    async def script(session: Replay) -> None:
        session.start()
        await session.wait_ready()
        async with grpc.aio.insecure_channel(f"{session.ip}:8080") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary(wire.CERTIFY)(b"\x0a\xff", timeout=5)
        assert refused.value.code() is grpc.StatusCode.INTERNAL
        assert "error unmarshalling request" in (refused.value.details() or "")
        assert (await session.get("/metrics"))[1] == ""

    run(tmp_path, script)


@pytest.mark.parametrize(
    ("version", "logged"), [("stable-2.14.10", False), ("edge-24.3.1", False), ("edge-24.3.2", True), ("2.18.0", True)]
)
def test_later_versions_log_the_tokens_that_they_refuse(version: str, logged: bool) -> None:
    assert versions.logs_refusals(version) is logged


def test_a_refused_token_is_logged_by_a_later_version_with_whose_it_was(tmp_path: Path) -> None:
    async def script(session: Replay) -> None:
        session.start()
        await session.wait_ready()
        await session.certify(token="garbage")
        await session.certify(token=await session.token("linkerd", "linkerd-identity", "identity.l5d.io"))
        assert messages(session)[-2:] == [
            f"info: invalid token provided for {lab.WEB}: invalid bearer token",
            f"info: requested identity did not match provided token: requested={lab.WEB};"
            " found=linkerd-identity.linkerd.serviceaccount.identity.linkerd.cluster.local",
        ]

    run(tmp_path, script, version="edge-25.8.1")


class Reviews:
    """An API server's answers to TokenReviews, and the audiences it was asked for."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers = list(answers)
        self.audiences: list[Any] = []

    async def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert path == "/apis/authentication.k8s.io/v1/tokenreviews"
        self.audiences.append(body["spec"].get("audiences"))
        return {"status": self.answers.pop(0)}


@pytest.mark.parametrize(
    ("answers", "error", "text", "reviews"),
    [
        ([{"error": "expired"}], tokens.InvalidTokenError, "expired", 1),
        (
            [{"error": 'token audiences ["a"] is invalid'}, {"error": "still"}],
            tokens.InvalidTokenError,
            "still",
            2,
        ),
        ([{}], tokens.NotAuthenticatedError, "authentication token could not be authenticated", 1),
        (
            [{"authenticated": True, "user": {"username": "system:node:n1"}}],
            tokens.InvalidTokenError,
            "Username must be in form system:TYPE:NS:SA: system:node:n1",
            1,
        ),
        (
            [{"authenticated": True, "user": {"username": "system:serviceaccount:ns:a.b"}}],
            tokens.InvalidTokenError,
            "Not a label: a.b",
            1,
        ),
    ],
)
def test_a_token_is_reviewed_again_only_if_its_audiences_are_wrong(
    answers: list[dict[str, Any]], error: type[Exception], text: str, reviews: int
) -> None:
    api: Any = Reviews(*answers)
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        asyncio.run(tokens.identity_of(api, b"token", "identity.linkerd.cluster.local"))
    assert api.audiences == [["identity.l5d.io"], None][:reviews]


# --- leaves ---------------------------------------------------------------------------------------------------------

VALIDITY = issuer.Validity(timedelta(hours=24), timedelta(seconds=20))


def request(subject: x509.Name, names: list[x509.GeneralName], key: Any = None) -> x509.CertificateSigningRequest:
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
    key = key or ec.generate_private_key(ec.SECP256R1())
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())


def test_of_a_csr_only_what_gos_name_and_dns_names_hold_comes_into_the_leaf() -> None:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@b.c"),
            x509.NameAttribute(NameOID.COMMON_NAME, lab.WEB),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Ö"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "A&B"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"),
        ]
    )
    names = [x509.DNSName(lab.WEB), x509.RegisteredID(x509.ObjectIdentifier("1.2.3"))]
    ca = issuer.Issuer((ISSUER.certificate,), ISSUER.key)
    leaf = ca.issue(request(subject, names), VALIDITY, NOW)
    assert [
        sorted(f"{a.rfc4514_attribute_name}={a.value!s}:{a._type.name}" for a in rdn) for rdn in leaf.subject.rdns
    ] == [
        ["C=DE:PrintableString"],
        ["O=A&B:UTF8String", "O=Ö:UTF8String"],
        [f"CN={lab.WEB}:PrintableString"],
    ]
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert (list(found.value), found.critical) == ([x509.DNSName(lab.WEB)], False)
    with pytest.raises(x509.ExtensionNotFound):
        leaf.extensions.get_extension_for_class(x509.BasicConstraints)


def test_an_ed25519_csr_is_refused_with_its_bytes_and_takes_no_serial_number() -> None:
    ca = issuer.Issuer((ISSUER.certificate,), ISSUER.key)
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, lab.WEB)])
    numbers = " ".join(str(byte) for byte in key.public_key().public_bytes_raw())
    with pytest.raises(issuer.IssuerError) as refused:
        ca.issue(request(name, [x509.DNSName(lab.WEB)], key), VALIDITY, NOW)
    assert str(refused.value) == f"CSR must contain an ECDSA public key: [{numbers}]"
    assert ca.issue(request(name, [x509.DNSName(lab.WEB)]), VALIDITY, NOW).serial_number == 1


# --- the issuer on disk ---------------------------------------------------------------------------------------------


def test_every_swap_is_followed_however_fast_they_come(tmp_path: Path) -> None:
    async def script(session: Replay) -> None:
        session.start()
        await session.wait_ready()
        before = len(session.log())
        for _ in range(5):
            session.give_pair(ISSUER)
        await session.wait_lines(before + 5)
        await asyncio.sleep(0.1)
        assert messages(session)[-5:] == ["info: Updated identity issuer"] * 5
        assert len(session.log()) == before + 5

    run(tmp_path, script)


def test_an_issuer_of_an_unknown_root_is_taken_with_that_roots_cross_signature_in_its_file(tmp_path: Path) -> None:
    other = pki.mint_issuer(ROOT_B, now=NOW)
    crossed = (
        x509.CertificateBuilder()
        .subject_name(ROOT_B.certificate.subject)
        .issuer_name(ROOT.certificate.subject)
        .public_key(ROOT_B.certificate.public_key())
        .serial_number(7)
        .not_valid_before(NOW - timedelta(minutes=1))
        .not_valid_after(NOW + timedelta(hours=2))
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(ROOT.key, hashes.SHA256())
    )

    async def script(session: Replay) -> None:
        session.start()
        await session.wait_ready()
        await session.swap_and_wait(other.certificate_pem + pki.to_pem(crossed), other.key_pem)
        assert messages(session)[-1] == "info: Updated identity issuer"
        code, _, answer = await session.certify()
        assert code == "OK"
        assert answer is not None
        sent = [x509.load_der_x509_certificate(der) for der in answer.intermediates]
        assert sent == [other.certificate, crossed]
        # The leaf ends with whatever in the file ends first.
        assert answer.valid_until == crossed.not_valid_after_utc

    run(tmp_path, script)


def test_a_secret_without_its_files_is_skipped_key_first(tmp_path: Path) -> None:
    async def script(session: Replay) -> None:
        session.start()
        await session.wait_ready()
        for files, missing in (({}, "tls.key"), ({"tls.key": ISSUER.key_pem}, "tls.crt")):
            before = len(session.log())
            session.issuer.swap(files)
            await session.wait_lines(before + 1)
            assert messages(session)[-1] == (
                "warning: Skipping issuer update as certs could not be read from disk: failed to read CA from disk:"
                f" open /var/run/linkerd/identity/issuer/{missing}: no such file or directory"
            )

    run(tmp_path, script)


# --- start ----------------------------------------------------------------------------------------------------------


def test_a_start_that_cannot_succeed_says_why(tmp_path: Path) -> None:
    async def script(session: Replay) -> None:
        session.start(scheme="")
        assert await last_words(session, 0) == "info: Identity disabled in control plane configuration."
        role = await session.client.get(ROLE)
        await session.client.replace(ROLE, role | {"rules": []})
        session.start()
        denied = "fatal: Failed to initialize identity service: Unable to create kubernetes token reviews: "
        assert await last_words(session) == denied
        shutil.rmtree(session.issuer.path)
        session.start()
        assert await last_words(session) == "fatal: Failed to start creds watcher: no such file or directory"

    run(tmp_path, script)


def test_a_duration_that_is_none_is_warned_of_and_the_default_stands(tmp_path: Path) -> None:
    async def script(session: Replay) -> None:
        session.start(lifetime="1d", skew="5")
        await session.wait_ready()
        assert [line for line in messages(session) if line.startswith("warning")] == [
            'warning: Invalid clock skew allowance: time: missing unit in duration \\"5\\"',
            'warning: Invalid issuance lifetime: time: unknown unit \\"d\\" in duration \\"1d\\"',
        ]
        _, _, answer = await session.certify()
        assert answer is not None
        leaf = x509.load_der_x509_certificate(answer.leaf)
        assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(hours=24, seconds=20)

    run(tmp_path, script)


def test_a_scheme_that_is_not_linkerds_own_reads_the_files_of_kubernetes(tmp_path: Path) -> None:
    (tmp_path / "tls.crt").write_text(ISSUER.certificate_pem)
    (tmp_path / "tls.key").write_text(ISSUER.key_pem)
    assert issuer.load(tmp_path, "anything", "/mount").certificate == ISSUER.certificate
    with pytest.raises(issuer.IssuerError, match=r"open /mount/key\.pem: no such file"):
        issuer.load(tmp_path, "linkerd.io/tls", "/mount")


def test_the_admin_port_answers_other_paths_as_gos_http_server_does(tmp_path: Path) -> None:
    async def script(session: Replay) -> None:
        session.start()
        await session.wait_ready()
        assert await session.get("/elsewhere") == (404, "404 page not found\n")

    run(tmp_path, script)


def test_the_time_left_of_an_issuer_goes_below_zero_and_its_log_line_has_numbers(tmp_path: Path) -> None:
    async def script(session: Replay) -> None:
        session.start()
        await session.wait_ready()
        end = int(ISSUER.certificate.not_valid_after_utc.timestamp())
        line = next(line for line in session.log() if "Issuer cert loaded" in line)
        assert re.search(rf'msg="Issuer cert loaded" invalid_after={end} process_clock_time=\d+ ttl_seconds=\d+$', line)
        assert session.identity is not None
        session.identity.clock_ahead = timedelta(days=366)
        (metric,) = (await session.get("/metrics"))[1].splitlines()
        assert float(metric.removeprefix("issuer_cert_ttl_seconds ")) < -80000

    run(tmp_path, script, version="edge-25.2.1")


def test_a_key_is_pkcs8_as_well(tmp_path: Path) -> None:
    pem = ISSUER.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "tls.crt").write_text(ISSUER.certificate_pem)
    (tmp_path / "tls.key").write_bytes(pem)
    assert issuer.load(tmp_path, "kubernetes.io/tls", "/mount").chain == (ISSUER.certificate,)
