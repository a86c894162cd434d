"""Approvers with real keys, their answers, and a request that they answer."""

from __future__ import annotations

import base64
import datetime as dt
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from capstan.approvals import jws, sshsig
from capstan.approvals.policy import ApproverPolicy, compiled
from capstan.approvals.signing import NAMESPACE
from capstan.approvals.statement import ANSWERS, Question, Statement
from capstan.cluster.record import Approval
from capstan.config import ApproverKey
from capstan.pki.inspect import Certificate

if TYPE_CHECKING:
    from capstan.approvals import Choice

NOW = dt.datetime(2026, 11, 21, 12, tzinfo=dt.UTC)
DAY = dt.timedelta(days=1)
MINUTE = dt.timedelta(minutes=1)
Kind = Literal["ssh", "x509"]

QUESTION = Question(
    domain="prod-eu", rotation="2026-11-21", turn=1, gate="issue", request="0d9f8f2c11aa", digest="d" * 64,
    asked=NOW - MINUTE,
)  # fmt: skip


def certificate(
    key: sshsig.PrivateKey, name: str, *, start: dt.datetime = NOW - DAY, end: dt.datetime = NOW + 90 * DAY
) -> Certificate:
    """A self-signed certificate, as an approver's smart card or CA would bring it."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)
    )  # fmt: skip
    return Certificate(builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()))


@dataclass(frozen=True)
class Person:
    """Somebody with one key."""

    name: str
    kind: Kind
    key: sshsig.PrivateKey = field(repr=False)
    certificate: Certificate

    @property
    def listed(self) -> ApproverKey:
        """As a trust domain lists it."""
        text = self.certificate.pem() if self.kind == "x509" else public_line(self.key)
        return ApproverKey(name=self.name, key=text)

    def sign(self, statement: Statement, at: dt.datetime = NOW) -> str:
        """A signature of this person's kind."""
        if self.kind == "x509":
            return jws.sign(statement, self.key, self.certificate, at)
        return sshsig.sign(statement.text().encode(), NAMESPACE, self.key)

    def answer(
        self, decision: Choice = "approved", question: Question = QUESTION, at: dt.datetime = NOW, **also: Any
    ) -> Approval:
        """An answer as the record holds it, signed for this question."""
        given = Approval(
            gate=question.gate, decision=decision, by=self.name, at=at, digest=question.digest,
            request=question.request, **also,
        )  # fmt: skip
        statement = Statement(
            question.domain, question.rotation, question.turn, question.gate, question.request, question.digest,
            ANSWERS[decision], self.name, given.ticket, given.comment,
        )  # fmt: skip
        return given.model_copy(update={"signature": self.sign(statement, at)})


def person(name: str = "ada", kind: Kind = "ssh", key: sshsig.PrivateKey | None = None) -> Person:
    """Somebody new."""
    key = key or ed25519.Ed25519PrivateKey.generate()
    return Person(name, kind, key, certificate(key, name))


def also_as(someone: Person, kind: Kind) -> Person:
    """The same person with another key, of this kind."""
    return replace(person(someone.name, kind), name=someone.name)


def listing(*people: Person, quorum: int = 1) -> ApproverPolicy:
    """These people are listed."""
    return compiled([someone.listed for someone in people], quorum, "policy of trust domain prod-eu")


def public_line(key: sshsig.PrivateKey) -> str:
    """One line of a `.pub` file."""
    public = sshsig.PublicKey.of(key.public_key())
    return f"{public.algorithm.decode()} {base64.b64encode(public.blob).decode()} somebody@example"


def keys() -> dict[str, sshsig.PrivateKey]:
    """One private key of each kind that may sign."""
    return {
        "ed25519": ed25519.Ed25519PrivateKey.generate(),
        "ecdsa-256": ec.generate_private_key(ec.SECP256R1()),
        "ecdsa-384": ec.generate_private_key(ec.SECP384R1()),
        "ecdsa-521": ec.generate_private_key(ec.SECP521R1()),
        "rsa-2048": rsa.generate_private_key(65537, 2048),
    }
