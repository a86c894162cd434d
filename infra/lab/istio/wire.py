"""Istio's certificate protocol on the wire: its protobuf messages, encoded by hand.

Service `istio.v1.auth.IstioCertificateService` (istio/api, security/v1alpha1/ca.proto):

    IstioCertificateRequest  { string csr = 1 (PEM); int64 validity_duration = 3 (seconds);
                               google.protobuf.Struct metadata = 4; }
    IstioCertificateResponse { repeated string cert_chain = 1; }

and the lab's own `lab.capstan.dev.TrustBundles/Watch`, which stands for istiod's trust-bundle pushes over xDS
(type.googleapis.com/istio.mesh.v1alpha1.ProxyConfig): request empty, a stream of {string pem = 1}, with the same
authorization as a request for a certificate.

The encoding is that of https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SERVICE = "istio.v1.auth.IstioCertificateService"
CREATE_CERTIFICATE = f"/{SERVICE}/CreateCertificate"
TRUST_BUNDLES = "/lab.capstan.dev.TrustBundles/Watch"

_INT64_BITS = 64
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """Bytes that are no such message."""


@dataclass(frozen=True)
class CertificateRequest:
    """An agent's request for a leaf.

    Attributes:
        csr: PEM, "CERTIFICATE REQUEST".
        validity_seconds: The life it asks for.
        metadata: Text values only, e.g. {"ClusterID": "Kubernetes"}; an agent sends these.
    """

    csr: str = ""
    validity_seconds: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The message's bytes; empty fields are left out, as proto3 does."""
        body = _text(1, self.csr) + _integer(3, self.validity_seconds)
        if not self.metadata:
            return body
        # A map entry is {key = 1, value = 2}, a Value's text is its field 3, a Struct's map its field 1.
        entries = [_text(1, key) + _bytes(2, _tagged(3, value.encode())) for key, value in self.metadata.items()]
        return body + _tagged(4, b"".join(_tagged(1, entry) for entry in entries))

    @classmethod
    def decode(cls, data: bytes) -> CertificateRequest:
        """Parse the message; raises WireError."""
        csr, validity, metadata = "", 0, {}
        for number, value in _fields(data):
            if number == 1 and isinstance(value, bytes):
                csr = _utf8(value)
            elif number == 3 and isinstance(value, int):
                validity = value - (1 << _INT64_BITS) if value >> (_INT64_BITS - 1) else value
            elif number == 4 and isinstance(value, bytes):
                metadata.update(_struct(value))
        return cls(csr, validity, metadata)


@dataclass(frozen=True)
class CertificateResponse:
    """`cert_chain`: the leaf, what stands between it and its root, and last the root bundle.

    How texts become elements depends on the version: up to 1.24.3 and 1.25.0 cert-chain.pem is one element; from
    1.24.5, 1.25.2 and 1.26.0 on each of its certificates is one, and only the bundle stays whole; 1.24.4 and 1.25.1
    split the bundle too, so that its last certificate passes for all of it.
    """

    cert_chain: tuple[str, ...]

    def encode(self) -> bytes:
        """The message's bytes."""
        return b"".join(_tagged(1, element.encode()) for element in self.cert_chain)

    @classmethod
    def decode(cls, data: bytes) -> CertificateResponse:
        """Parse the message; raises WireError."""
        found = [_utf8(value) for number, value in _fields(data) if number == 1 and isinstance(value, bytes)]
        return cls(tuple(found))


@dataclass(frozen=True)
class TrustBundle:
    """One push: the text of the whole root bundle."""

    pem: str

    def encode(self) -> bytes:
        """The message's bytes."""
        return _text(1, self.pem)

    @classmethod
    def decode(cls, data: bytes) -> TrustBundle:
        """Parse the message; raises WireError."""
        found = [_utf8(value) for number, value in _fields(data) if number == 1 and isinstance(value, bytes)]
        return cls(found[-1] if found else "")


def _struct(data: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, entry in _fields(data):
        if number != 1 or not isinstance(entry, bytes):
            continue
        parts = {n: v for n, v in _fields(entry) if isinstance(v, bytes)}
        texts = {n: v for n, v in _fields(parts.get(2, b"")) if isinstance(v, bytes)}
        if 3 in texts:
            found[_utf8(parts.get(1, b""))] = _utf8(texts[3])
    return found


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise WireError("a text field is not UTF-8") from error


def _varint(value: int) -> bytes:
    encoded = bytearray()
    value &= (1 << _INT64_BITS) - 1  # negative numbers are their two's complement
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _integer(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value) if value else b""


def _text(number: int, value: str) -> bytes:
    return _bytes(number, value.encode())


def _bytes(number: int, value: bytes) -> bytes:
    return _tagged(number, value) if value else b""


def _tagged(number: int, value: bytes) -> bytes:
    """A length-delimited field, written even if empty: elements of repeated fields are."""
    return _varint(number << 3 | _BYTES) + _varint(len(value)) + value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) pairs in order."""
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        kind = tag & 7
        if kind == _VARINT:
            value, position = _read_varint(data, position)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, position = _read_varint(data, position)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise WireError(f"unknown wire type {kind}")
        if position + length > len(data):
            raise WireError("message is cut off")
        yield tag >> 3, data[position : position + length]
        position += length


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift >= 70:
            raise WireError("varint is cut off or too long")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
