"""A TLS client over a pod's stream: for what is asked of a pod in more than one handshake.

Nothing is verified here: what the pod presented is handed out, and goes to `capstan.pki`. The stream itself is the API
server's word for which pod it ends at.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL

from capstan.errors import Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from capstan.cluster.client import Cluster
    from capstan.cluster.portforward import PodStream

CHUNK: Final = 65536


class TlsStream:
    """TLS over a PodStream; the handshake is done by the constructor.

    Args:
        stream: The caller opens and closes it.
        sni: Server name to ask for.
        alpn: Protocols to offer, in order of preference.
        seconds: For everything on this stream together.

    Raises:
        Unreachable: No handshake: the stream broke, the peer sent an alert, or time ran out.
    """

    def __init__(
        self, cluster: Cluster, stream: PodStream, sni: str, *, alpn: Sequence[bytes] = (), seconds: float = 10.0
    ) -> None:
        context: Any = SSL.Context(SSL.TLS_CLIENT_METHOD)  # its published types are older than its methods
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_verify(SSL.VERIFY_NONE, lambda *_: True)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        if alpn:
            context.set_alpn_protos(list(alpn))
        self._connection: Any = SSL.Connection(context, None)
        self._stream = stream
        self._cluster = cluster
        self._deadline = cluster.clock() + seconds
        self._ended = False
        self._connection.set_tlsext_host_name(sni.encode("ascii"))
        self._connection.set_connect_state()
        self._pump(self._connection.do_handshake)

    @property
    def chain(self) -> tuple[bytes, ...]:
        """DER certificates as the pod sent them, leaf first."""
        chain = self._connection.get_peer_cert_chain(as_cryptography=True) or []
        return tuple(certificate.public_bytes(serialization.Encoding.DER) for certificate in chain)

    @property
    def protocol(self) -> bytes:
        """What ALPN agreed on; empty if nothing."""
        return bytes(self._connection.get_alpn_proto_negotiated())

    def send(self, data: bytes) -> None:
        """Send bytes."""
        while data:
            data = data[self._pump(partial(self._connection.send, data[:CHUNK])) :]

    def receive(self) -> bytes:
        """The next bytes; empty when the pod has ended the connection."""
        if self._ended:
            return b""
        try:
            return bytes(self._pump(lambda: self._connection.recv(CHUNK)))
        except _Ended:
            self._ended = True
            return b""

    def _pump(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                result = step()
            except SSL.WantReadError:
                self._flush()
                self._feed()
            except SSL.ZeroReturnError:
                raise _Ended(
                    self._what(), where=self._stream.call.where, observed="the connection was closed"
                ) from None
            except SSL.Error as error:
                reasons = [str(entry[2]) for entry in (error.args[0] if error.args else ()) if len(entry) > 2]
                raise self._broken("; ".join(reasons) or type(error).__name__) from error
            else:
                self._flush()
                return result

    def _flush(self) -> None:
        while True:
            try:
                self._stream.send(self._connection.bio_read(CHUNK))
            except SSL.WantReadError:
                return

    def _feed(self) -> None:
        left = self._deadline - self._cluster.clock()
        data = self._stream.receive(left) if left > 0 else b""
        if not data:
            raise self._broken("the time ran out" if left <= 0 else "the stream ended")
        self._connection.bio_write(data)

    def _what(self) -> str:
        return f"no whole TLS answer from port {self._stream.port} of the pod"

    def _broken(self, observed: str) -> Unreachable:
        call = self._stream.call
        return Unreachable(
            self._what(), where=call.where, observed=observed, expected="a TLS server",
            next_command=f"kubectl describe pod {call.name} -n {call.namespace}",
        )  # fmt: skip


class _Ended(Unreachable):
    """The peer closed the TLS connection in order."""
