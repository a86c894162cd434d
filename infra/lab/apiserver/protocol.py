"""The HTTP protocol of the API server: uvicorn's, plus who is at the other end and a way to take the connection over.

The application finds in ``scope["state"]``:

``peer_chain``  tuple of DER certificates the client presented in the handshake, leaf first (empty: none)
``take_over``   for a request with ``Connection: Upgrade``: ends HTTP on this connection and hands back its raw bytes,
                so that a WebSocket or SPDY stream can be relayed verbatim (`kubelet_proxy`)
``abort``       drops the connection without an answer (`faults`)

Upgrades are never interpreted here: a WebSocket request reaches the application as an ordinary HTTP request and passes
the same authentication and authorization.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from .tls import over_tls

if TYPE_CHECKING:
    from collections.abc import Callable

    from OpenSSL import SSL

    from .tls import TlsProtocol


class RawStream:
    """The client's side of a connection that left HTTP: a reader and a writer of bytes."""

    def __init__(self, protocol: ApiHttpProtocol, transport: asyncio.Transport, early: bytes) -> None:
        self.reader = asyncio.StreamReader(limit=256 * 1024)
        self.reader.set_transport(transport)
        if early:
            self.reader.feed_data(early)
        self._protocol = protocol
        self._transport = transport

    async def write(self, data: bytes) -> None:
        """Send and wait while the client is slow; raises ConnectionResetError when it is gone."""
        if self._transport.is_closing():
            raise ConnectionResetError("the client closed the connection")
        self._transport.write(data)
        if self._protocol.flow.write_paused:
            await self._protocol.flow.drain()

    def close(self) -> None:
        """Close after what was written has been sent."""
        self._transport.close()


class ApiHttpProtocol(H11Protocol):
    """uvicorn's h11 protocol with ``peer_chain`` and ``take_over`` in the scope's state."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._raw: RawStream | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self.app_state = {
            **self.app_state,
            "peer_chain": transport.get_extra_info("peer_chain") or (),
            "take_over": self._take_over,
            "abort": transport.abort,
        }

    def _take_over(self) -> RawStream:
        """End HTTP here. Only for a request that asked for an upgrade and has not been answered; call it once."""
        if self.cycle.response_started:
            raise RuntimeError("the request has been answered already")
        self._unset_keepalive_if_required()
        self.cycle.disconnected = True  # uvicorn must neither answer nor complain that nobody did
        self._raw = RawStream(self, self.transport, self.conn.trailing_data[0])
        self.flow.resume_reading()
        return self._raw

    def _should_upgrade(self) -> bool:
        return False

    def data_received(self, data: bytes) -> None:
        if self._raw is not None:
            self._raw.reader.feed_data(data)
        else:
            super().data_received(data)

    def eof_received(self) -> None:
        if self._raw is not None:
            self._raw.reader.feed_eof()
        super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._raw is not None:
            self._raw.reader.feed_eof()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._raw is not None:
            self._raw.close()
        else:
            super().shutdown()


def https_protocol(
    context: SSL.Context, connections: set[TlsProtocol] | None = None
) -> Callable[..., asyncio.Protocol]:
    """The factory for ``uvicorn.Config(http=https_protocol(context))``; give uvicorn itself no ``ssl_*`` options.

    ``connections`` is kept as the set of those that are open.
    """
    return over_tls(context, ApiHttpProtocol, connections)
