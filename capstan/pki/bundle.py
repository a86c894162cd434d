"""Trust bundles: ordered sets of certificates with one exact text form.

Rule of the writer: user text never passes through. What goes into a cluster is re-encoded from the parsed
certificates, joined by a newline, without a trailing newline (the form of Linkerd's chart and of trust-manager), so
that equal bundles have equal bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from capstan.errors import InvalidCertificate, InvalidInput, InvalidPem
from capstan.pki import pem as pem_text
from capstan.pki.inspect import Certificate
from capstan.pki.pem import CERTIFICATE, Finding, Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Bundle", "Finding", "Reading", "lint"]


def lint(data: bytes | str) -> tuple[Finding, ...]:
    """Say how Linkerd's strict reader treats the raw text of a bundle, certificates' own encoding included."""
    text = _bytes(data)
    findings = list(pem_text.lint(text))
    seen: set[bytes] = set()
    for block in pem_text.blocks(text):
        if block.label != CERTIFICATE or block.data is None:
            continue
        line = pem_text.line_of(text, block.start)
        try:
            Certificate.from_der(block.data)
        except InvalidCertificate as e:
            findings.append(Finding(Reading.FATAL, line, f"not an X.509 certificate: {e.observed}"))
        if block.data in seen:
            findings.append(Finding(Reading.OK, line, "certificate repeated"))
        seen.add(block.data)
    return tuple(findings)


@dataclass(frozen=True)
class Bundle:
    """Certificates in order, each once. Equality is of sequence; compare `fingerprints` to compare as sets."""

    certificates: tuple[Certificate, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "certificates", tuple(dict.fromkeys(self.certificates)))

    @classmethod
    def of(cls, *certificates: Certificate) -> Bundle:
        """A bundle of these certificates."""
        return cls(certificates)

    @classmethod
    def parse(cls, data: bytes | str, where: str) -> Bundle:
        """Read a bundle as Linkerd's identity controller and checks do, and refuse what they refuse or cut.

        Raises:
            InvalidPem: The strict reader would fail on the text or silently drop a part of it.
        """
        bad = [finding for finding in lint(data) if finding.reading is not Reading.OK]
        if bad:
            raise InvalidPem(
                "trust bundle is not clean PEM",
                where=where,
                observed="; ".join(str(finding) for finding in bad),
                expected="certificates only, one after the other, at most one newline at the end",
                next_command="write the bundle again from its certificates: `capstan check` shows which there are",
            )
        return cls._collect(data, where)

    @classmethod
    def parse_lenient(cls, data: bytes | str, where: str) -> Bundle:
        """Read a bundle as the proxy does (rustls): every certificate section; other text and sections are skipped.

        For what a live proxy says about itself, where the question is what it trusts, not whether the text is clean.

        Raises:
            InvalidPem: A certificate section does not decode, or there is none.
        """
        return cls._collect(data, where)

    @classmethod
    def _collect(cls, data: bytes | str, where: str) -> Bundle:
        certificates: list[Certificate] = []
        for block in pem_text.blocks(_bytes(data)):
            if block.label != CERTIFICATE:
                continue
            if block.data is None:
                raise InvalidPem(
                    "certificate section does not decode", where=where,
                    observed=f"certificate {len(certificates) + 1} is cut off or damaged",
                    expected="base64 and an END line", next_command="write it again from good certificates",
                )  # fmt: skip
            certificates.append(Certificate.from_der(block.data, where))
        if not certificates:
            raise InvalidPem(
                "no certificates found", where=where, observed="no PEM block of CERTIFICATE",
                expected="at least one PEM certificate", next_command="write it again from good certificates",
            )  # fmt: skip
        return cls(tuple(certificates))

    def pem(self, *, trailing_newline: bool = False) -> str:
        """The one text form of this bundle.

        Raises:
            InvalidInput: The bundle is empty; an empty trust store is never what anybody means to write.
        """
        if not self.certificates:
            raise InvalidInput("an empty trust bundle is never written", expected="at least one certificate")
        return "\n".join(certificate.pem() for certificate in self) + ("\n" if trailing_newline else "")

    @property
    def sha256(self) -> str:
        """SHA-256 of the text form, lower-case hex (Linkerd's annotation `linkerd.io/trust-root-sha256`)."""
        return hashlib.sha256(self.pem().encode()).hexdigest()

    @property
    def fingerprints(self) -> frozenset[str]:
        """The bundle as a set."""
        return frozenset(certificate.fingerprint for certificate in self)

    def union(self, other: Bundle | Iterable[Certificate]) -> Bundle:
        """This bundle, then what `other` adds."""
        return Bundle((*self, *other))

    def without(self, fingerprints: Iterable[str]) -> Bundle:
        """This bundle less the certificates of these fingerprints."""
        gone = frozenset(fingerprints)
        return Bundle(tuple(certificate for certificate in self if certificate.fingerprint not in gone))

    def only(self, fingerprints: Iterable[str]) -> Bundle:
        """The certificates of these fingerprints, in this bundle's order."""
        return self.without(self.fingerprints - frozenset(fingerprints))

    def get(self, fingerprint: str) -> Certificate | None:
        """The certificate of this fingerprint, or None."""
        return next((certificate for certificate in self if certificate.fingerprint == fingerprint), None)

    def __iter__(self) -> Iterator[Certificate]:
        return iter(self.certificates)

    def __len__(self) -> int:
        return len(self.certificates)

    def __contains__(self, item: object) -> bool:
        return item in self.certificates or item in self.fingerprints


def _bytes(data: bytes | str) -> bytes:
    return data.encode("utf-8") if isinstance(data, str) else data
