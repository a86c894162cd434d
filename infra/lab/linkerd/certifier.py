"""How a proxy gets its leaf: a CSR over mTLS to linkerd-identity, at start and at 70 % of what remains.

(linkerd2-proxy, linkerd/proxy/identity-client: certify; facts 3.) A proxy whose roots do not verify identity's own
proxy cannot renew, and neither can one whose leaf has expired, because it shows that leaf to identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from infra.lab.linkerd import gox509, wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infra.lab.linkerd.material import Key, Material

TIMEOUT_SECONDS = 10.0
REFRESH_AT = 0.7


class CertifyError(Exception):
    """No usable leaf came back."""


@dataclass(frozen=True)
class RefreshPolicy:
    """Bounds of the renewal interval (LINKERD2_PROXY_IDENTITY_MIN_REFRESH and …_MAX_REFRESH)."""

    minimum: timedelta = timedelta(seconds=10)
    maximum: timedelta = timedelta(hours=24)

    def wait(self, expiry: datetime | None, now: datetime) -> timedelta:
        """Until the next renewal: 70 % of what remains of the leaf, within the bounds; the minimum without a leaf."""
        left = timedelta() if expiry is None else max(expiry - now, timedelta())
        return min(max(left * REFRESH_AT, self.minimum), self.maximum)


@dataclass(frozen=True)
class Authority:
    """Where identity is.

    Attributes:
        address: host:port to dial.
        name: The mesh identity its proxy must prove; None to dial the program itself without TLS (identity's own
            proxy does, over its pod's loopback).
    """

    address: str
    name: str | None


async def certify(
    authority: Authority, *, name: str, token: bytes, key: Key, roots_pem: str, current: Material | None
) -> tuple[x509.Certificate, ...]:
    """One Certify call; the chain that came back, leaf first.

    Raises:
        CertifyError: If identity cannot be reached or verified, or refuses.
    """
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    if authority.name is None:
        channel = grpc.aio.insecure_channel(authority.address, options=options)
    else:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=roots_pem.encode(),
            private_key=None if current is None else current.key.pem,
            certificate_chain=None if current is None else current.chain_pem,
        )
        options.append(("grpc.ssl_target_name_override", authority.name))  # type: ignore[arg-type]  # a str is fine too
        channel = grpc.aio.secure_channel(authority.address, credentials, options=options)
    request = wire.CertifyRequest(name, token, key.csr_der).encode()
    try:
        answer = await channel.unary_unary(wire.CERTIFY)(request, timeout=TIMEOUT_SECONDS)
        response = wire.CertifyResponse.decode(answer)
        return tuple(x509.load_der_x509_certificate(der) for der in (response.leaf, *response.intermediates))
    except grpc.aio.AioRpcError as error:
        raise CertifyError(f"{error.code().name}: {error.details()}") from error
    except (wire.WireError, ValueError) as error:
        raise CertifyError(f"unusable answer: {error}") from error
    finally:
        await channel.close()


def check_chain(
    chain: Sequence[x509.Certificate], *, name: str, key: Key, roots: Sequence[x509.Certificate], now: datetime
) -> None:
    """Check a new chain against the proxy's own roots before it is used.

    Raises:
        CertifyError: If the leaf is not for this key and name, or does not verify with these roots.
    """
    leaf = chain[0]
    encoding = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if leaf.public_key().public_bytes(*encoding) != key.private.public_key().public_bytes(*encoding):
        raise CertifyError("leaf is for another key")
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    if names.get_values_for_type(x509.DNSName) != [name]:
        raise CertifyError("leaf is for another name")
    try:
        gox509.verify(leaf, roots=roots, intermediates=chain[1:], now=now, anchors_expire=False)
    except gox509.UnknownAuthorityError as error:
        raise CertifyError("invalid peer certificate: UnknownIssuer") from error
    except gox509.VerifyError as error:
        raise CertifyError(f"invalid peer certificate: {error}") from error


def now_utc() -> datetime:
    """The current time, aware."""
    return datetime.now(UTC)
