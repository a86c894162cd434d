"""Linkerd's identity protocol on the wire: two protobuf messages, encoded by hand.

Service `io.linkerd.proxy.identity.Identity`, method `Certify` (linkerd2-proxy-api, proto/identity.proto):

    CertifyRequest  { string identity = 1; bytes token = 2; bytes certificate_signing_request = 3; }
    CertifyResponse { bytes leaf_certificate = 1; repeated bytes intermediate_certificates = 2;
                      google.protobuf.Timestamp valid_until = 3; }

The encoding is that of https://protobuf.dev/programming-guides/encoding/; only varints (wire type 0) and
length-delimited fields (wire type 2) are written, the fixed-width types are skipped when read.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE = "io.linkerd.proxy.identity.Identity"
CERTIFY = f"/{SERVICE}/Certify"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class WireError(ValueError):
    """Bytes that are no protobuf message."""


@dataclass(frozen=True)
class CertifyRequest:
    """A proxy's request for a leaf: its name, its service-account token, its CSR in DER."""

    identity: str = ""
    token: bytes = b""
    csr: bytes = b""

    def encode(self) -> bytes:
        """The message's bytes; empty fields are left out, as proto3 does."""
        return _bytes_field(1, self.identity.encode()) + _bytes_field(2, self.token) + _bytes_field(3, self.csr)

    @classmethod
    def decode(cls, data: bytes) -> CertifyRequest:
        """Parse the message; raises WireError."""
        values = {number: value for number, value in _fields(data) if isinstance(value, bytes)}
        try:
            identity = values.get(1, b"").decode()
        except UnicodeDecodeError as error:
            raise WireError("identity is not UTF-8") from error
        return cls(identity, values.get(2, b""), values.get(3, b""))


@dataclass(frozen=True)
class CertifyResponse:
    """The leaf (DER), every certificate of the issuer's file in file order (DER), and the leaf's end."""

    leaf: bytes
    intermediates: tuple[bytes, ...]
    valid_until: datetime

    def encode(self) -> bytes:
        """The message's bytes."""
        since = self.valid_until - _EPOCH
        seconds, nanos = since // timedelta(seconds=1), since.microseconds * 1000
        stamp = _varint_field(1, seconds) + _varint_field(2, nanos)
        middle = b"".join(_bytes_field(2, der) for der in self.intermediates)
        return _bytes_field(1, self.leaf) + middle + _bytes_field(3, stamp)

    @classmethod
    def decode(cls, data: bytes) -> CertifyResponse:
        """Parse the message; raises WireError."""
        leaf, stamp, intermediates = b"", b"", []
        for number, value in _fields(data):
            if not isinstance(value, bytes):
                continue
            if number == 1:
                leaf = value
            elif number == 2:
                intermediates.append(value)
            elif number == 3:
                stamp = value
        parts = {number: value for number, value in _fields(stamp) if isinstance(value, int)}
        valid_until = _EPOCH + timedelta(seconds=parts.get(1, 0), microseconds=parts.get(2, 0) // 1000)
        return cls(leaf, tuple(intermediates), valid_until)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _varint_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value) if value else b""


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value if value else b""


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) pairs in order."""
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        wire_type = tag & 7
        if wire_type == 0:
            value, position = _read_varint(data, position)
            yield tag >> 3, value
            continue
        if wire_type == 2:
            length, position = _read_varint(data, position)
        elif wire_type in (1, 5):
            length = 8 if wire_type == 1 else 4
        else:
            raise WireError(f"unknown wire type {wire_type}")
        if position + length > len(data):
            raise WireError("message is cut off")
        yield tag >> 3, data[position : position + length]
        position += length


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise WireError("varint is cut off or too long")
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
