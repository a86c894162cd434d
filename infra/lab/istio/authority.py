"""The agent's connections to its CA: one for CSRs, one that stands for xDS.

The CSR client is built once and rebuilt only after a failed CSR; only then does it read the roots that it verifies
istiod with anew (/var/run/secrets/istio/root-cert.pem, a ConfigMap that a kubelet refreshes when it gets to it). The
xDS connection reads them whenever it connects. (security/pkg/nodeagent/caclient/providers/citadel.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import grpc.aio
from cryptography import x509

from infra.lab.istio import wire
from infra.lab.istio.material import without_equal_names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

TIMEOUT_SECONDS = 10.0


class CsrError(Exception):
    """No usable leaf came back, or the connection to istiod is lost."""


class Authority:
    """Where a CA is, and how to prove who asks.

    Args:
        address: host:port as in CA_ADDR; the host is the name istiod must prove.
        resolve: Turns it into an address that can be dialled from here; raises LookupError.
        roots: The mounted bundle.
        token: The mounted token, read for every call.
    """

    def __init__(self, address: str, resolve: Callable[[str], str], *, roots: Path, token: Path) -> None:
        self._address = address
        self._resolve = resolve
        self._roots = roots
        self._token = token
        self._channel: grpc.aio.Channel | None = None
        self._csr_turn = self._xds_turn = 0

    async def sign(self, csr_pem: str, seconds: float, metadata: Mapping[str, str]) -> tuple[str, ...]:
        """`cert_chain` of the answer to a CSR: leaf, chain, and last the root bundle.

        Raises:
            CsrError: The CA cannot be reached or verified, refuses, or answers with less than leaf and roots.
        """
        if self._channel is None:
            self._channel = self._connect(self._csr_turn)
        request = wire.CertificateRequest(csr_pem, round(seconds), metadata).encode()
        try:
            answer = await self._channel.unary_unary(wire.CREATE_CERTIFICATE)(
                request, timeout=TIMEOUT_SECONDS, metadata=self._credentials(metadata.get("ClusterID", "Kubernetes"))
            )
            chain = wire.CertificateResponse.decode(answer).cert_chain
        except grpc.aio.AioRpcError as error:
            await self.close()
            raise CsrError(f"rpc error: code = {error.code().name} desc = {error.details()}") from error
        except wire.WireError as error:
            raise CsrError(f"unusable answer: {error}") from error
        if len(chain) < 2:
            raise CsrError(f"invalid empty CertChain: {len(chain)} elements, expected leaf and roots")
        return chain

    async def trust_bundles(self, node: str) -> AsyncIterator[str]:
        """What istiod pushes to the proxy `node`, until the connection ends.

        Raises:
            CsrError: It cannot be made, or is lost.
        """
        channel = self._connect(self._xds_turn)
        try:
            metadata = (*self._credentials("Kubernetes"), ("node", node))
            async for message in channel.unary_stream(wire.TRUST_BUNDLES)(b"", metadata=metadata):
                yield wire.TrustBundle.decode(message).pem
        except grpc.aio.AioRpcError as error:
            self._xds_turn += 1
            raise CsrError(f"rpc error: code = {error.code().name} desc = {error.details()}") from error
        except wire.WireError as error:
            raise CsrError(f"unusable push: {error}") from error
        finally:
            await channel.close()

    async def close(self) -> None:
        """Drop the CSR client; the next CSR builds another, with the roots of then."""
        self._csr_turn += 1
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.close()

    def _connect(self, turn: int) -> grpc.aio.Channel:
        try:
            roots = x509.load_pem_x509_certificates(self._roots.read_bytes())
            target = self._resolve(self._address)
        except (OSError, ValueError, LookupError) as error:
            raise CsrError(f"failed to connect to {self._address}: {error}") from error
        pools = without_equal_names(roots)
        credentials = grpc.ssl_channel_credentials(root_certificates=pools[turn % len(pools)].encode())
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            ("grpc.ssl_target_name_override", self._address.rpartition(":")[0]),
        ]
        return grpc.aio.secure_channel(target, credentials, options=options)

    def _credentials(self, cluster: str) -> tuple[tuple[str, str], ...]:
        try:
            token = self._token.read_text().strip()
        except OSError as error:
            raise CsrError(f"failed to fetch token from file: {error.strerror}") from error
        return (("authorization", f"Bearer {token}"), ("clusterid", cluster))
