"""A lab API server in a thread of its own, and clients of it."""

from __future__ import annotations

import asyncio
import datetime as dt
import ssl
import threading
from typing import TYPE_CHECKING, Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from infra.lab.apiserver.server import ApiServer

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path


class Pair:
    """A certificate and its key, on disk as ssl wants them."""

    def __init__(
        self, directory: Path, name: str, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
    ) -> None:
        self.certificate, self.key = certificate, key
        self.certificate_file, self.key_file = directory / f"{name}.crt", directory / f"{name}.key"
        self.certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self.key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    @property
    def pem(self) -> str:
        return self.certificate_file.read_text()


def make_pair(
    directory: Path,
    name: str,
    common_name: str,
    *,
    organizations: tuple[str, ...] = (),
    issuer: Pair | None = None,
    ca: bool = False,
    usages: tuple[x509.ObjectIdentifier, ...] = (ExtendedKeyUsageOID.CLIENT_AUTH,),
    names: tuple[x509.GeneralName, ...] = (),
    days: float = 1,
) -> Pair:
    """A certificate signed by `issuer` (itself without one); negative `days`: it ended that long ago."""
    key = ec.generate_private_key(ec.SECP256R1())
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, o) for o in organizations]
    subject = x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=30))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if not ca:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return Pair(directory, name, builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


class Lab:
    """The running server and ways to talk to it."""

    def __init__(self, directory: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self.directory = directory
        self.server: ApiServer = self.run(self._start(directory))
        self._clients: list[httpx.Client] = []
        self.admin = self.client(certificate=self.server.pki.admin)

    async def _start(self, directory: Path) -> ApiServer:
        server = ApiServer(directory)
        await server.start()
        return server

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def context(self, certificate: tuple[Path, Path] | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=self.server.ca_pem)
        if certificate:
            context.load_cert_chain(*certificate)
        return context

    def client(self, certificate: tuple[Path, Path] | None = None, token: str = "") -> httpx.Client:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        context = self.context(certificate)
        client = httpx.Client(base_url=self.server.url, verify=context, headers=headers, trust_env=False, timeout=30)
        self._clients.append(client)
        return client

    def namespace(self, name: str, **labels: str) -> str:
        """A namespace with its default ServiceAccount, as controllers would leave it."""
        metadata = {"name": name, "labels": labels}
        self.create("/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        self.service_account(name, "default")
        return name

    def service_account(self, namespace: str, name: str) -> None:
        body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}
        self.create(f"/api/v1/namespaces/{namespace}/serviceaccounts", body)

    def token(self, namespace: str, account: str, **spec: Any) -> str:
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        return str(self.create(path, body)["status"]["token"])

    def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.admin.post(path, json=body)
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        self.run(self.server.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()
