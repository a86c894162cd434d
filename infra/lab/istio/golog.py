"""How Istio's programs print: log lines of its `log` package, distinguished names, PEM in their words."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cryptography.x509.oid import NameOID

from infra.lab.linkerd.gotext import quote, rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography import x509

# Go's pkix.Name.String(): the attribute types it has names for.
_NAMES = {
    NameOID.COMMON_NAME: "CN",
    NameOID.SERIAL_NUMBER: "SERIALNUMBER",
    NameOID.COUNTRY_NAME: "C",
    NameOID.LOCALITY_NAME: "L",
    NameOID.STATE_OR_PROVINCE_NAME: "ST",
    NameOID.STREET_ADDRESS: "STREET",
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    NameOID.POSTAL_CODE: "POSTALCODE",
}
# The order in which pkix.Name.ToRDNSequence puts what it has parsed; String() then prints it from the end.
_ORDER = ("C", "O", "OU", "L", "ST", "STREET", "POSTALCODE", "CN", "SERIALNUMBER")


def line(moment: datetime, level: str, message: str, scope: str = "") -> str:
    """One line: time, level, scope (none for the default one) and message, tabs between."""
    stamp = moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return "\t".join(part for part in (stamp, level, scope, message) if part)


class Log:
    """Writes such lines.

    Args:
        write: Where whole lines go.
        clock: What time it is.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], datetime]) -> None:
        self._write = write
        self._clock = clock

    def info(self, message: str, scope: str = "") -> None:
        """An `info` line."""
        self._write(line(self._clock(), "info", message, scope))

    def warn(self, message: str, scope: str = "") -> None:
        """A `warn` line."""
        self._write(line(self._clock(), "warn", message, scope))

    def error(self, message: str, scope: str = "") -> None:
        """An `error` line."""
        self._write(line(self._clock(), "error", message, scope))


def name(value: x509.Name) -> str:
    """A distinguished name as Go's pkix.Name prints it: `CN=Root CA,O=A`."""
    parts = [(_NAMES[a.oid], str(a.value)) for a in value if a.oid in _NAMES]
    parts.sort(key=lambda part: _ORDER.index(part[0]))
    return ",".join(f"{kind}={text}" for kind, text in reversed(parts))


def certificate_line(certificate: x509.Certificate) -> str:
    """What istiod prints of each certificate that it serves with."""
    return (
        f"x509 cert - Issuer: {quote(name(certificate.issuer))}, Subject: {quote(name(certificate.subject))}, "
        f"SN: {certificate.serial_number:x}, NotBefore: {quote(rfc3339(certificate.not_valid_before_utc))}, "
        f"NotAfter: {quote(rfc3339(certificate.not_valid_after_utc))}"
    )
