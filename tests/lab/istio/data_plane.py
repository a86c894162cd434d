"""What the data-plane tests share: a hierarchy, leaves, containers with an address of their own, a CA that answers."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from infra.lab import pki
from infra.lab.istio import hierarchy, wire
from infra.lab.istio.material import Key, Material
from infra.lab.kubelet.runtime import Container

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from infra.lab.pki import KeyPair

CA_HOST = "istiod.istio-system.svc"
WEB, DB = "spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/db"


def address() -> str:
    """A loopback address that no other test uses."""
    return f"127.{random.randint(2, 249)}.{random.randint(1, 254)}.{random.randint(2, 254)}"


@dataclass
class Ca:
    """A root with an intermediate that signs leaves."""

    root: KeyPair
    intermediate: KeyPair

    @classmethod
    def mint(cls, name: str = "Root CA", *, identifiers: bool = True) -> Ca:
        now = datetime.now(UTC)
        root = hierarchy.mint_root(now=now, common_name=name, identifiers=identifiers)
        return cls(root, hierarchy.mint_intermediate(root, now=now, identifiers=identifiers))

    @property
    def roots_pem(self) -> str:
        return self.root.certificate_pem

    def leaf(
        self, csr_or_key: x509.CertificateSigningRequest | ec.EllipticCurvePublicKey, identity: str, seconds: float = 60
    ) -> x509.Certificate:
        """As istiod makes them: no subject, the identity as critical URI, both usages."""
        now = datetime.now(UTC)
        key = csr_or_key.public_key() if isinstance(csr_or_key, x509.CertificateSigningRequest) else csr_or_key
        signer = self.intermediate
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(signer.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=120))
            .not_valid_after(now + timedelta(seconds=seconds))
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)]), critical=True)
        )
        if authority := pki.subject_key(signer.certificate):
            builder = builder.add_extension(x509.AuthorityKeyIdentifier(authority, None, None), critical=False)
        return builder.sign(signer.key, hashes.SHA256())

    def material(self, identity: str, directory: Path, *, roots_pem: str = "", seconds: float = 60) -> Material:
        """What a proxy of this CA holds."""
        key = Key.generate(identity, elliptic=True)
        public = key.private.public_key()
        assert isinstance(public, ec.EllipticCurvePublicKey)
        chain = pki.to_pem(self.leaf(public, identity, seconds)) + self.intermediate.certificate_pem
        now = datetime.now(UTC)
        directory.mkdir(exist_ok=True, parents=True)
        return Material(
            identity=identity,
            trust_domain=identity.split("/")[2],
            key_pem=key.pem,
            chain_pem=chain,
            roots_pem=roots_pem or self.roots_pem,
            leaf_updated=now,
            roots_updated=now,
            scratch=directory,
        ).load()


def container(directory: Path, *, account: str = "web", env: dict[str, str] | None = None, **pod: Any) -> Container:
    """A container istio-proxy with an address of its own."""
    defaults = {
        "CA_ADDR": f"{CA_HOST}:15012",
        "SERVICE_ACCOUNT": account,
        "TRUST_DOMAIN": "cluster.local",
        "SECRET_TTL": "60s",
        "ECC_SIGNATURE_ALGORITHM": "ECDSA",
    }
    metadata = {"name": f"{account}-0", "namespace": "shop", "uid": f"uid-{account}", **pod}
    return Container(
        pod={"metadata": metadata},
        name="istio-proxy",
        image="docker.io/istio/proxyv2:1.30.1",
        root=directory,
        args=["proxy", "sidecar"],
        env=defaults | (env or {}),
        ip=address(),
    )


@dataclass
class SigningServer:
    """A CA at 15012's protocol: signs what it is sent, and pushes what it is told to.

    Attributes:
        ca: Whose leaves it makes; may be another one later.
        roots_pem: Last element of its answers.
        requests: (request, metadata) of every CSR.
    """

    ca: Ca
    identity: str = WEB
    seconds: float = 60
    roots_pem: str = ""
    chain: tuple[str, ...] | None = None
    requests: list[tuple[wire.CertificateRequest, dict[str, str]]] = field(default_factory=list)
    bundles: list[asyncio.Queue[str]] = field(default_factory=list)
    port: int = 0
    signed: asyncio.Event = field(default_factory=asyncio.Event)

    def push(self, pem: str) -> None:
        for queue in self.bundles:
            queue.put_nowait(pem)

    @contextlib.asynccontextmanager
    async def running(self, serving: Ca | None = None, port: int = 0) -> AsyncIterator[SigningServer]:
        """Serve with a certificate of `serving`."""
        by = serving or self.ca
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(by.intermediate.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=120))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(CA_HOST)]), critical=True)
            .sign(by.intermediate.key, hashes.SHA256())
        )
        pair = pki.KeyPair(certificate, key)
        chain = pair.certificate_pem + by.intermediate.certificate_pem
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    wire.SERVICE, {"CreateCertificate": grpc.unary_unary_rpc_method_handler(self._sign)}
                ),
                grpc.method_handlers_generic_handler(
                    wire.TRUST_BUNDLES.split("/")[1], {"Watch": grpc.unary_stream_rpc_method_handler(self._watch)}
                ),
            )
        )
        credentials = grpc.ssl_server_credentials([(pair.key_pem.encode(), chain.encode())])
        self.port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
        await server.start()
        try:
            yield self
        finally:
            await server.stop(grace=0)

    def resolve(self, _: str) -> str:
        return f"127.0.0.1:{self.port}"

    async def _sign(self, data: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        request = wire.CertificateRequest.decode(data)
        self.requests.append((request, {key: str(value) for key, value in context.invocation_metadata() or ()}))
        csr = x509.load_pem_x509_csr(request.csr.encode())
        leaf = pki.to_pem(self.ca.leaf(csr, self.identity, self.seconds))
        chain = self.chain or (leaf, self.ca.intermediate.certificate_pem, self.roots_pem or self.ca.roots_pem)
        self.signed.set()
        return wire.CertificateResponse(chain).encode()

    async def _watch(self, _: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        del context
        queue: asyncio.Queue[str] = asyncio.Queue()
        self.bundles.append(queue)
        while True:
            yield wire.TrustBundle(await queue.get()).encode()


async def until(condition: Any, seconds: float = 5.0) -> None:
    """Return when it holds; TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def log_of(target: Container) -> str:
    """What its program has logged."""
    return "\n".join(line.text for line in target.logs.lines())
