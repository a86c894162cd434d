"""What somebody else does to a cluster in the middle of a rotation, and how it is undone."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from tests.rotation.faulty import ISSUER, LEASE, ROOTS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.labs import RunningLab

MERGE = "application/merge-patch+json"
STOREFRONT = "/apis/apps/v1/namespaces/shop/deployments/storefront"

Calls = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Tampering:
    """A thing that is done through the API, by an administrator.

    Attributes:
        calls: The requests that do it, made from the lab's state at the beginning of the run.
        lift: The requests that undo it, made from the same state.
        stands: Whether it is still so: a rotation may have put it right by itself, with what there is by now.
    """

    calls: Callable[[RunningLab], Calls]
    lift: Callable[[RunningLab], Calls]
    stands: Callable[[RunningLab], bool] = lambda _lab: True


def workload(annotation: str, value: str) -> Tampering:
    """The lab's knobs are annotations of pods: set in the template of a Deployment."""

    def template(text: str | None) -> Calls:
        body = {"spec": {"template": {"metadata": {"annotations": {annotation: text}}}}}
        return [("PATCH", STOREFRONT, body, MERGE)]

    return Tampering(lambda _lab: template(value), lambda _lab: template(None))


def image(name: str) -> Tampering:
    """Another image for the application's own container."""

    def set_to(container: str, text: str) -> Calls:
        body = {"spec": {"template": {"spec": {"containers": [{"name": container, "image": text}]}}}}
        return [("PATCH", STOREFRONT, body, "application/strategic-merge-patch+json")]

    def present(lab: RunningLab) -> dict[str, str]:
        found: dict[str, str] = lab.call("GET", STOREFRONT)["spec"]["template"]["spec"]["containers"][0]
        return found

    return Tampering(
        lambda lab: set_to(present(lab)["name"], name), lambda lab: set_to(present(lab)["name"], present(lab)["image"])
    )


def held_by(holder: str) -> Tampering:
    """Somebody who took the Lease as if it had been free."""

    def spec(who: str, seconds: int) -> Calls:
        now = (datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        body = {"spec": {"holderIdentity": who, "leaseDurationSeconds": seconds, "acquireTime": now, "renewTime": now}}
        return [("PATCH", LEASE, body, MERGE)]

    return Tampering(lambda _lab: spec(holder, 3600), lambda _lab: spec("", 1))


def roots(change: Callable[[str], str]) -> Tampering:
    """The declared roots, written over."""

    def write(text: str) -> Calls:
        return [("PATCH", ROOTS, {"data": {"ca-bundle.crt": text}}, MERGE)]

    def present(lab: RunningLab) -> str:
        text: str = lab.call("GET", ROOTS)["data"]["ca-bundle.crt"]
        return text

    return Tampering(lambda lab: write(change(present(lab))), lambda lab: write(present(lab)))


def issuer(
    change: Callable[[dict[str, bytes]], dict[str, bytes]], stands: Callable[[RunningLab], bool] = lambda _lab: True
) -> Tampering:
    """Entries of the issuer's Secret, written over."""

    def write(data: dict[str, bytes]) -> Calls:
        return [("PATCH", ISSUER, {"data": {k: base64.b64encode(v).decode() for k, v in data.items()}}, MERGE)]

    def present(lab: RunningLab) -> dict[str, bytes]:
        return {k: base64.b64decode(v) for k, v in lab.call("GET", ISSUER)["data"].items()}

    return Tampering(lambda lab: write(change(present(lab))), lambda lab: write(present(lab)), stands)


def apart(lab: RunningLab) -> bool:
    """Whether key and certificate of the issuer's Secret do not belong together."""
    held = {k: base64.b64decode(v) for k, v in lab.call("GET", ISSUER)["data"].items()}
    key = load_pem_private_key(held["key.pem"], None).public_key()
    return x509.load_pem_x509_certificate(held["crt.pem"]).public_key() != key


def foreign_issuer() -> dict[str, bytes]:
    """An issuer of nobody here, with its key."""
    certificate, key = ca("CN=identity.of.somebody.else")
    return {"crt.pem": certificate.encode(), "key.pem": key}


def other_key() -> dict[str, bytes]:
    """A key that belongs to no certificate here."""
    return {"key.pem": ca("CN=unused")[1]}


def ca(subject: str) -> tuple[str, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name.from_rfc4514_string(subject), datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=365))
        .add_extension(x509.BasicConstraints(True, 1), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM).decode().strip(), private
