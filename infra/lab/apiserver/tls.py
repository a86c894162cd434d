"""TLS below the HTTP protocol, by pyOpenSSL.

The standard library ends the handshake when a client certificate does not verify. kube-apiserver asks for a
certificate, accepts whatever comes, and answers 401 to a stranger's one after the handshake (Go's
``tls.RequestClientCert``); a verify callback is needed for that and the ``ssl`` module has none. So the handshake runs
over memory BIOs here; the inner asyncio protocol (uvicorn's HTTP protocol) sees plain bytes and learns by
``get_extra_info("peer_chain")`` who presented what.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from typing import TYPE_CHECKING, Any, cast

from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
_CHUNK = 256 * 1024


def server_context(certificate: Path, key: Path, client_ca: Path | None = None) -> SSL.Context:
    """A context which presents ``certificate`` and asks for, but never insists on or checks, a client certificate.

    ``client_ca`` only fills the list of acceptable authorities in the CertificateRequest: Go clients send no
    certificate when none of theirs is from one of these. Whether a presented certificate counts is decided by `authn`.
    """
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.use_certificate_chain_file(str(certificate))
    context.use_privatekey_file(str(key))
    context.check_privatekey()
    context.set_verify(SSL.VERIFY_PEER, lambda *_: True)
    if client_ca is not None:
        context.load_client_ca(str(client_ca).encode())
    # A resumed session would carry its peer certificate along; a full handshake each time keeps the lab honest.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(b"capstan-lab")
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION)
    context.set_alpn_select_callback(_choose_http_1)
    return context


def _choose_http_1(_connection: SSL.Connection, offered: list[bytes]) -> bytes:
    # The sentinel for "none of these" is an object; the type stubs know only bytes.
    return b"http/1.1" if b"http/1.1" in offered else cast("bytes", SSL.NO_OVERLAPPING_PROTOCOLS)


class TlsTransport(asyncio.Transport):
    """What the inner protocol writes to: encrypts and passes on to the socket's transport."""

    def __init__(self, outer: TlsProtocol, raw: asyncio.Transport) -> None:
        super().__init__()
        self._outer = outer
        self._raw = raw

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """``sslcontext`` and ``peer_chain`` (tuple of DER, leaf first; empty: no certificate), else the socket's."""
        if name == "sslcontext":
            return self._outer.context
        if name == "peer_chain":
            return self._outer.peer_chain
        return self._raw.get_extra_info(name, default)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._outer.write(bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self._outer.write(b"".join(list_of_data))

    def close(self) -> None:
        self._outer.close()

    def abort(self) -> None:
        self._raw.abort()

    def is_closing(self) -> bool:
        return self._raw.is_closing()

    def pause_reading(self) -> None:
        if not self._raw.is_closing():
            self._raw.pause_reading()

    def resume_reading(self) -> None:
        if not self._raw.is_closing():
            self._raw.resume_reading()

    def is_reading(self) -> bool:
        return self._raw.is_reading()

    def can_write_eof(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return self._raw.get_write_buffer_size()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._raw.set_write_buffer_limits(high, low)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._outer.inner

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._outer.inner = cast("asyncio.Protocol", protocol)


class TlsProtocol(asyncio.Protocol):
    """One TLS connection: bytes of the socket on one side, ``inner`` on the other.

    ``connections`` holds those that are open, from the first byte of the handshake on.
    """

    def __init__(self, context: SSL.Context, inner: asyncio.Protocol, connections: set[TlsProtocol]) -> None:
        self.context = context
        self.inner = inner
        self._connections = connections
        self.peer_chain: tuple[bytes, ...] = ()
        self._tls = SSL.Connection(context, None)
        self._tls.set_accept_state()
        self._established = False
        self._flushing = False
        self._raw: asyncio.Transport  # from connection_made on
        self._timer: asyncio.TimerHandle | None = None

    # From the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast("asyncio.Transport", transport)
        self._connections.add(self)
        accepted = transport.get_extra_info("socket")
        if accepted is not None:
            # asyncio does this only for sockets made with an explicit protocol number.
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._timer = asyncio.get_running_loop().call_later(HANDSHAKE_SECONDS, self._raw.abort)

    def data_received(self, data: bytes) -> None:
        self._tls.bio_write(data)
        try:
            if not self._established and not self._handshake():
                return
            self._deliver()
        except SSL.Error as error:
            log.debug("TLS error from %s: %s", self._peername(), error)
            self._flush()
            self._raw.close()

    def eof_received(self) -> bool | None:
        return self.inner.eof_received() if self._established else None

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._disarm()
        if self._established:
            self.inner.connection_lost(exc)

    def pause_writing(self) -> None:
        if self._established:
            self.inner.pause_writing()

    def resume_writing(self) -> None:
        if self._established:
            self.inner.resume_writing()

    # From the inner protocol

    def write(self, data: bytes) -> None:
        """Encrypt and send; silently dropped on a connection that is closing, as transports do."""
        if self._raw.is_closing() or not data:
            return
        try:
            self._tls.sendall(data)
        except SSL.Error as error:
            log.debug("TLS write to %s failed: %s", self._peername(), error)
            self._raw.abort()
            return
        if not self._flushing:
            # Head and body of an answer are written one after the other: send them together.
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def close(self) -> None:
        """close_notify, then close after what is buffered has been sent."""
        if self._raw.is_closing():
            return
        try:
            self._tls.shutdown()
        except SSL.Error:
            log.debug("no clean TLS shutdown with %s", self._peername())
        self._flush()
        self._raw.close()

    def reset(self) -> None:
        """RST instead of FIN, whatever is still buffered: what the kernel sends for a process that is killed."""
        accepted = self._raw.get_extra_info("socket")
        if accepted is not None and not self._raw.is_closing():
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._raw.abort()

    # Machinery

    def _handshake(self) -> bool:
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            self._flush()
            return False
        self._flush()
        self._established = True
        self._disarm()
        leaf = self._tls.get_peer_certificate()
        if leaf is not None:
            rest = self._tls.get_peer_cert_chain() or []
            certificates = (c.to_cryptography().public_bytes(Encoding.DER) for c in (leaf, *rest))
            self.peer_chain = tuple(dict.fromkeys(certificates))
        self.inner.connection_made(TlsTransport(self, self._raw))
        return True

    def _deliver(self) -> None:
        while not self._raw.is_closing():
            try:
                plain = self._tls.recv(_CHUNK)
            except SSL.WantReadError:
                break
            except SSL.ZeroReturnError:
                if not self.inner.eof_received():
                    self.close()
                break
            self.inner.data_received(plain)
        self._flush()

    def _flush(self) -> None:
        self._flushing = False
        while not self._raw.is_closing():
            try:
                self._raw.write(self._tls.bio_read(_CHUNK))
            except SSL.WantReadError:
                return

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _peername(self) -> object:
        return self._raw.get_extra_info("peername")


def over_tls(
    context: SSL.Context, inner: Callable[..., asyncio.Protocol], connections: set[TlsProtocol] | None = None
) -> Callable[..., asyncio.Protocol]:
    """A factory like ``inner`` (same arguments) whose protocols speak TLS; fits ``uvicorn.Config(http=...)``.

    ``connections`` is kept as the set of those that are open.
    """
    opened: set[TlsProtocol] = set() if connections is None else connections

    def factory(*args: Any, **kwargs: Any) -> asyncio.Protocol:
        return TlsProtocol(context, inner(*args, **kwargs), opened)

    return factory
