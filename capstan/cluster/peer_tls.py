"""One TLS handshake with a pod's port, to see what it presents and whom it lets in.

Nothing is verified here: the bytes go to `capstan.pki`. A private key is used from memory and never written to a file
(which is why this is pyOpenSSL and not the `ssl` module, whose client certificates must be files).

In TLS 1.3 the client is done before the server has looked at the client's certificate (RFC 8446 section 4.4.4 and
appendix E.1.2): a refusal is an alert on the first read afterwards. So a caller with a certificate is `Answered` only
once the server has sent application data.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL

from capstan.cluster.portforward import PodStream
from capstan.errors import InvalidInput, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    from capstan.cluster.client import Cluster

PING: Final = b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
CHUNK: Final = 65536
HEAR_SECONDS: Final = 0.5


class ClientCertificate:
    """What we present ourselves with: leaf first, then intermediates, and the leaf's key.

    Args:
        chain_pem: Certificates, leaf first.
        key_pem: The leaf's private key, PKCS#8 or SEC1, unencrypted.

    The key appears in no repr and cannot be pickled.
    """

    __slots__ = ("_key", "chain")

    def __init__(self, chain_pem: bytes, key_pem: bytes) -> None:
        try:
            self.chain = tuple(x509.load_pem_x509_certificates(chain_pem))
            key = serialization.load_pem_private_key(key_pem, None)
        except (ValueError, TypeError):
            # `from None`: the parser's message may quote its input
            raise InvalidInput(
                "cannot use this client certificate", expected="PEM certificates, leaf first, and an unencrypted key"
            ) from None
        self._key: EllipticCurvePrivateKey | RSAPrivateKey = key  # type: ignore[assignment]  # TLS takes these two

    def __repr__(self) -> str:
        return f"ClientCertificate({self.chain[0].subject.rfc4514_string()!r})"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a private key is not pickled")

    def use(self, context: Any) -> None:
        """Install certificate and key into an OpenSSL context."""
        context.use_certificate(self.chain[0])
        context.use_privatekey(self._key)
        for certificate in self.chain[1:]:
            context.add_extra_chain_cert(certificate)


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """The handshake was completed (and, with a client certificate, answered).

    Attributes:
        chain: DER certificates as the peer sent them, leaf first.
        protocol: `TLSv1.3`.
    """

    chain: tuple[bytes, ...]
    protocol: str

    @property
    def leaf(self) -> bytes:
        """DER of the peer's own certificate."""
        return self.chain[0]


@dataclass(frozen=True, slots=True)
class TlsRefused:
    """The peer ended the handshake by an alert.

    Attributes:
        alert: OpenSSL's name of it, such as `tlsv1 alert unknown ca`.
        chain: What the peer had presented by then, leaf first; empty if nothing.
    """

    alert: str
    chain: tuple[bytes, ...] = ()


class SpeaksNoTls(Unreachable):
    """The peer took the connection and closed it without a single byte: whatever is there, it is no TLS server."""


def tls_peer(
    cluster: Cluster,
    namespace: str,
    pod: str,
    port: int,
    sni: str,
    *,
    client_certificate: ClientCertificate | None = None,
    alpn: Sequence[bytes] = (),
    ping: bytes = PING,
    timeout: float = 10.0,
) -> PeerCertificate | TlsRefused:
    """Handshake with a pod's port.

    Args:
        sni: Server name to ask for.
        client_certificate: Presented if the server asks; then the server's verdict on it is waited for.
        alpn: Protocols to offer, the preferred one first; none if empty.
        ping: What to send, so that a server which accepts the certificate has something to answer.
        timeout: Seconds for all of it.

    Raises:
        Unreachable: No verdict: the stream broke, ended without an alert, or time ran out. Never proof of a refusal.
        SpeaksNoTls: Nor was there any sign of TLS.
    """
    context: Any = SSL.Context(SSL.TLS_CLIENT_METHOD)  # its published types are older than its methods
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_verify(SSL.VERIFY_NONE, _accept)
    context.set_cipher_list(b"DEFAULT:@SECLEVEL=0")  # a weak certificate is to be seen, not hidden by an error
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    if alpn:
        context.set_alpn_protos(list(alpn))
    if client_certificate is not None:
        client_certificate.use(context)
    deadline = cluster.clock() + timeout
    with PodStream(cluster, namespace, pod, port, timeout=timeout) as stream:
        session = _Session(SSL.Connection(context, None), stream, cluster, deadline)
        return session.run(sni, ping=ping if client_certificate is not None else b"")


def _accept(_connection: object, _certificate: object, _error: int, _depth: int, _ok: int) -> bool:
    return True  # verification is not ours: see the module's docstring


class _Session:
    """OpenSSL between two memory buffers, pumped through a pod's stream."""

    def __init__(self, connection: Any, stream: PodStream, cluster: Cluster, deadline: float) -> None:
        self.connection = connection
        self.stream = stream
        self.cluster = cluster
        self.deadline = deadline
        self._heard = False

    def run(self, sni: str, *, ping: bytes) -> PeerCertificate | TlsRefused:
        self.connection.set_tlsext_host_name(sni.encode("ascii"))
        self.connection.set_connect_state()
        try:
            self._pump(self.connection.do_handshake)
            if ping:
                self._hear_first()
                self.connection.send(ping)
                self._pump(lambda: self.connection.recv(CHUNK))
        except SSL.Error as error:
            return TlsRefused(self._alert(error), self._chain())
        return PeerCertificate(self._chain(), self.connection.get_protocol_version_name())

    def _hear_first(self) -> None:
        """Let the server say what it thinks of the certificate before anything is sent to it.

        A server that refuses sends its alert and closes; if it had unread bytes of ours then, its kernel would send a
        reset, and the alert be lost on its way (RFC 1122 section 4.2.2.13). One that accepts sends session tickets, as
        a rule; one that says nothing is spoken to after a moment.
        """
        if self.connection.get_protocol_version_name() != "TLSv1.3":
            return  # the server is done with the certificate before the client is
        try:
            data = self.stream.receive(min(HEAR_SECONDS, max(self.deadline - self.cluster.clock(), 0.0)))
        except Unreachable:
            return  # silence; a stream that is broken is found out by the next word
        if not data:
            raise self._no_verdict("the stream ended without a TLS alert")
        self.connection.bio_write(data)
        with contextlib.suppress(SSL.WantReadError):
            self.connection.recv(CHUNK)

    def _pump(self, step: Callable[[], object]) -> None:
        while True:
            try:
                step()
            except SSL.WantReadError:
                self._flush()
                self._feed()
            else:
                self._flush()
                return

    def _flush(self) -> None:
        while True:
            try:
                self.stream.send(self.connection.bio_read(CHUNK))
            except SSL.WantReadError:
                return

    def _feed(self) -> None:
        left = self.deadline - self.cluster.clock()
        data = self.stream.receive(left) if left > 0 else b""
        if not data:
            if left > 0 and not self._heard:
                raise self._no_verdict("the connection was closed without a byte", SpeaksNoTls)
            raise self._no_verdict("the time ran out" if left <= 0 else "the stream ended without a TLS alert")
        self._heard = True
        self.connection.bio_write(data)

    def _alert(self, error: SSL.Error) -> str:
        reasons = [entry[2] for entry in (error.args[0] if error.args else []) if len(entry) > 2]
        text = "; ".join(str(reason) for reason in reasons)
        if "alert" not in text:  # our own library's complaint, a reset, or an end: no verdict by the peer
            raise self._no_verdict(text or type(error).__name__) from error
        return text

    def _chain(self) -> tuple[bytes, ...]:
        chain = self.connection.get_peer_cert_chain(as_cryptography=True) or []
        return tuple(certificate.public_bytes(serialization.Encoding.DER) for certificate in chain)

    def _no_verdict(self, observed: str, kind: type[Unreachable] = Unreachable) -> Unreachable:
        call = self.stream.call
        return kind(
            f"no TLS answer from port {self.stream.port} of the pod",
            where=call.where,
            observed=observed,
            expected="a handshake or an alert",
            next_command=f"kubectl describe pod {call.name} -n {call.namespace}",
        )
