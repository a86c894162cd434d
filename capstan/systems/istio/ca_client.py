"""Asking an istiod for a certificate, as a workload does: the proof of what it signs with and which roots it hands out.

The key is made for the one question, lives in memory, and is dropped; the certificate is for Capstan's own service
account and ends after minutes. istiod takes the identity from the token, never from the request (recorded from 1.14).

Protocol: gRPC over HTTP/2 (grpc.io, "gRPC over HTTP2"), method istio.v1.auth.IstioCertificateService/CreateCertificate,
request {string csr = 1; int64 validity_duration = 3}, response {repeated string cert_chain = 1}: the leaf, what stands
between it and its root, and as the last element the text of all roots (istio/api security/v1alpha1/ca.proto).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from capstan.cluster.client import user_agent
from capstan.cluster.portforward import PodStream
from capstan.cluster.tls_stream import TlsStream
from capstan.errors import Denied, InvalidInput, InvalidPem, ServerFault, Unreachable, VerificationFailed
from capstan.pki.bundle import Bundle
from capstan.pki.inspect import Certificate
from capstan.systems.istio.layout import GRPC_TLS_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

    from capstan.cluster.client import Cluster

METHOD: Final = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
LIFETIME: Final = 300  # seconds; what is asked for proves what is signed with, and is thrown away
MAX_ANSWER: Final = 1024 * 1024
UNAUTHENTICATED: Final = (7, 16)  # gRPC codes PERMISSION_DENIED, UNAUTHENTICATED


@dataclass(frozen=True, slots=True)
class Signed:
    """What one istiod answered.

    Attributes:
        leaf: The certificate it made for us.
        chain: What it signs with: the issuer first, then what it sends along above it; of a self-signed CA, the root.
        roots: The roots it hands out.
        serving: The certificates that its port presents, leaf first.
    """

    leaf: Certificate
    chain: tuple[Certificate, ...]
    roots: Bundle
    serving: tuple[Certificate, ...]


def serving_chain(
    cluster: Cluster, namespace: str, pod: str, port: int = GRPC_TLS_PORT, *, timeout: float = 10.0
) -> tuple[Certificate, ...]:
    """The certificates that an istiod presents on one of its ports, leaf first.

    Raises:
        Unreachable, Denied, NotFound: It could not be asked.
    """
    with PodStream(cluster, namespace, pod, port, timeout=timeout) as stream:
        tls = TlsStream(cluster, stream, server_name(namespace), alpn=(b"h2",), seconds=timeout)
        return _certificates(tls, stream.call.where)


def ask(cluster: Cluster, namespace: str, pod: str, token: str, *, timeout: float = 10.0) -> Signed:
    """Have one istiod sign a throw-away key, and say what came back.

    Args:
        token: A service account's token for the audience that istiod expects; sent to that pod alone, inside TLS.

    Raises:
        Unreachable: No whole answer came in time. Denied: It did not accept the token.
        ServerFault: It answered with another gRPC error, or with nothing that is a certificate of our key.
        VerificationFailed: What it signed was not signed by anything that it sent along.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    with PodStream(cluster, namespace, pod, GRPC_TLS_PORT, timeout=timeout) as stream:
        where = stream.call.where
        tls = TlsStream(cluster, stream, server_name(namespace), alpn=(b"h2",), seconds=timeout)
        serving = _certificates(tls, where)
        message = encode_request(request.public_bytes(Encoding.PEM).decode(), LIFETIME)
        elements = decode_response(_call(tls, where, token, message), where)
    return read_answer(elements, spki=key.public_key(), serving=serving, where=where)


def server_name(namespace: str) -> str:
    """What a proxy asks for by SNI: the default revision's Service, which every istiod's certificate names."""
    return f"istiod.{namespace}.svc"


def read_answer(
    elements: tuple[str, ...], *, spki: PublicKeyTypes, serving: tuple[Certificate, ...], where: str
) -> Signed:
    """Make sense of a response's elements.

    Raises:
        ServerFault: They are not a certificate of our key, what stands above it, and roots.
        VerificationFailed: The issuer of the certificate is not among them.
    """
    try:
        if len(elements) < 2:
            raise InvalidPem("too few elements", where=where, observed=str(len(elements)), expected="leaf and roots")
        leaf = Certificate.from_pem(elements[0], where)
        above = [item for text in elements[1:-1] if text.strip() for item in Bundle.parse_lenient(text, where)]
        roots = Bundle.parse_lenient(elements[-1], where)
    except InvalidInput as error:
        raise ServerFault(
            "istiod's answer is no certificate chain", where=where, observed=f"{error.what}: {error.observed}",
            expected="the leaf, its chain, and the roots",
        ) from error  # fmt: skip
    if leaf.public_key != spki:
        raise ServerFault(
            "istiod signed another key than ours", where=where, observed=leaf.fingerprint[:16], expected="our key"
        )
    issuer = next((item for item in (*above, *roots) if leaf.signed_by(item)), None)
    if issuer is None:
        raise VerificationFailed(
            "istiod does not send along what it signs with", where=where,
            observed=f"issuer {leaf.issuer}; sent along: {', '.join(item.subject for item in (*above, *roots))}",
            expected="the issuer's certificate",
            next_command="compare ca-cert.pem with cert-chain.pem: the chain must begin with the signing CA",
        )  # fmt: skip
    rest = tuple(item for item in above if item != issuer and item not in roots)
    return Signed(leaf, (issuer, *rest), roots, serving)


def _certificates(tls: TlsStream, where: str) -> tuple[Certificate, ...]:
    return tuple(Certificate.from_der(der, where) for der in tls.chain)


# --- gRPC: one unary call ------------------------------------------------------------------------------------------


def _call(tls: TlsStream, where: str, token: str, message: bytes) -> bytes:
    """The response message of one unary call."""
    if tls.protocol != b"h2":
        raise Unreachable(
            "istiod does not speak HTTP/2", where=where, observed=repr(tls.protocol), expected="ALPN h2"
        )  # fmt: skip
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    connection.initiate_connection()
    stream_id = connection.get_next_available_stream_id()
    connection.send_headers(stream_id, _headers(token))
    connection.send_data(stream_id, b"\x00" + len(message).to_bytes(4, "big") + message, end_stream=True)
    tls.send(connection.data_to_send())
    body = bytearray()
    headers: dict[str, str] = {}
    while True:
        data = tls.receive()
        if not data:
            raise Unreachable(
                "istiod ended the connection before it answered", where=where, observed=_status(headers) or "nothing",
                expected="an answer",
            )  # fmt: skip
        try:
            events = connection.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            raise ServerFault(
                "istiod's answer is no HTTP/2", where=where, observed=str(error), expected="HTTP/2"
            ) from error
        for event in events:
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
                headers.update((str(name), str(value)) for name, value in event.headers or ())
            elif isinstance(event, h2.events.DataReceived):
                body += event.data or b""
                connection.acknowledge_received_data(event.flow_controlled_length or 0, stream_id)
            elif isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                raise Unreachable(
                    "istiod broke the call off", where=where, observed=f"HTTP/2 error {event.error_code}",
                    expected="an answer",
                )  # fmt: skip
            elif isinstance(event, h2.events.StreamEnded):
                return _message(bytes(body), headers, where)
        if len(body) > MAX_ANSWER:
            raise ServerFault(
                "istiod's answer does not end", where=where, observed=f"{len(body)} bytes", expected="a chain"
            )
        if pending := connection.data_to_send():
            tls.send(pending)


def _headers(token: str) -> list[tuple[str, str]]:
    return [
        (":method", "POST"),
        (":scheme", "https"),
        (":authority", "istiod"),
        (":path", METHOD),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", user_agent()),
        ("authorization", f"Bearer {token}"),
    ]


def _status(headers: dict[str, str]) -> str:
    message = unquote(headers.get("grpc-message", ""))
    code = headers.get("grpc-status", "")
    return f"gRPC status {code}: {message}" if code else ""


def _message(body: bytes, headers: dict[str, str], where: str) -> bytes:
    code = headers.get("grpc-status", "")
    if headers.get(":status") != "200" or code != "0":
        observed = _status(headers) or f"HTTP {headers.get(':status', 'without a status')}"
        if code.isdigit() and int(code) in UNAUTHENTICATED:
            raise Denied(
                "istiod did not accept Capstan's service account", where=where, observed=observed,
                expected="a token for the audience that istiod expects",
                next_command="look into istiod's log, and at its variables TOKEN_AUDIENCES and JWT_POLICY",
            )  # fmt: skip
        raise ServerFault("istiod refused to sign", where=where, observed=observed, expected="a certificate")
    if len(body) < 5 or body[0] != 0 or int.from_bytes(body[1:5], "big") != len(body) - 5:
        raise ServerFault(
            "istiod's answer is no gRPC message", where=where, observed=f"{len(body)} bytes",
            expected="one message, not compressed",
        )  # fmt: skip
    return body[5:]


# --- protobuf: the two messages -------------------------------------------------------------------------------------


def encode_request(csr_pem: str, seconds: int) -> bytes:
    """IstioCertificateRequest: field 1 is the CSR's text, field 3 the wanted life in seconds."""
    text = csr_pem.encode()
    return b"\x0a" + _varint(len(text)) + text + b"\x18" + _varint(seconds)


def decode_response(message: bytes, where: str) -> tuple[str, ...]:
    """IstioCertificateResponse: the strings of field 1, in order; other fields are skipped.

    Raises:
        ServerFault: The bytes are no such message.
    """
    try:
        return tuple(value.decode("utf-8") for number, value in _fields(message) if number == 1)
    except (IndexError, ValueError) as error:
        raise ServerFault(
            "istiod's answer is no IstioCertificateResponse", where=where, observed=f"{len(message)} bytes",
            expected="repeated string cert_chain = 1",
        ) from error  # fmt: skip


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a protobuf message; those of other wire types are stepped over."""
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        kind = tag & 7
        if kind == 0:
            _, position = _read_varint(message, position)
        elif kind == 2:
            length, position = _read_varint(message, position)
            if position + length > len(message):
                raise IndexError(length)
            yield tag >> 3, message[position : position + length]
            position += length
        elif kind in (1, 5):
            position += 8 if kind == 1 else 4
        else:
            raise ValueError(kind)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a varint of more than ten bytes")
