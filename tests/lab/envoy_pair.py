"""Two real Envoys, one as the clients of many connections and one as their servers, and certificates for them.

Each connection has certificates of its own: a listener in plain text at the client Envoy, whose cluster is a listener
with mutual TLS at the server Envoy, which echoes. A byte that comes back means that both sides accepted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from cryptography.x509.oid import NameOID

from infra.lab.istio.envoy import program

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ADMIN, FIRST = 15000, 20000
START_SECONDS = 20.0
_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
_FILTER = "type.googleapis.com/envoy.extensions.filters.network"
BOTH = (Usage.SERVER_AUTH, Usage.CLIENT_AUTH)


def new_key(kind: str = "P-256") -> Any:
    """A private key: P-256, P-384 or RSA."""
    if kind == "RSA":
        return rsa.generate_private_key(65537, 2048)
    return ec.generate_private_key(ec.SECP384R1() if kind == "P-384" else ec.SECP256R1())


@dataclass(frozen=True)
class Ca:
    """A certificate authority, with what stands between it and its root."""

    certificate: x509.Certificate
    key: Any = field(repr=False)
    above: tuple[x509.Certificate, ...] = ()

    @property
    def pem(self) -> str:
        return pem(self.certificate)

    @classmethod
    def root(cls, name: str, *, kind: str = "P-256", path_length: int | None = 1, **options: Any) -> Ca:
        key = new_key(kind)
        return cls(_certificate(name, name, key, key, ca=True, path_length=path_length, **options), key)

    def below(self, name: str, *, kind: str = "P-256", path_length: int | None = 0, **options: Any) -> Ca:
        """A CA under this one."""
        key = new_key(kind)
        made = _certificate(name, self, key, self.key, ca=True, path_length=path_length, **options)
        return Ca(made, key, (self.certificate, *self.above))


@dataclass(frozen=True)
class Held:
    """What one end of a connection holds."""

    identity: str
    chain_pem: str
    key: Any = field(repr=False)
    roots_pem: str

    @property
    def key_pem(self) -> str:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def held(
    ca: Ca,
    identity: str,
    roots: Sequence[Ca],
    *,
    kind: str = "P-256",
    named: str = "",
    alone: bool = False,
    **leaf: Any,
) -> Held:
    """A leaf of a CA, with the CAs above it but the root, and the roots its holder trusts.

    Args:
        named: What the certificate says instead of `identity`.
        alone: Whether the leaf is sent without its intermediates.
        leaf: Of `_certificate`.
    """
    key = new_key(kind)
    made = _certificate("", ca, key, ca.key, san=named or identity, **leaf)
    between = (ca.certificate, *ca.above)[:-1]  # the last is the root
    chain = pem(made, *(() if alone else between))
    return Held(identity, chain, key, "".join(root.pem for root in roots))


def pem(*certificates: x509.Certificate) -> str:
    return "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in certificates)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def _certificate(
    subject: str,
    issuer: Ca | str,
    key: Any,
    signer: Any,
    *,
    ca: bool = False,
    path_length: int | None = None,
    san: str = "",
    usages: Sequence[x509.ObjectIdentifier] | None = None,
    key_usage: str = "",
    begins: timedelta = timedelta(minutes=-2),
    ends: timedelta = timedelta(hours=1),
    identifiers: bool = True,
) -> x509.Certificate:
    """A certificate.

    Args:
        san: A DNS name, or a URI.
        usages: The extended key usages; a leaf's are those of client and server unless told, empty means none at all.
        key_usage: The one key usage of a leaf, where it is not the signature.
        begins, ends: From now.
        identifiers: Whether it has key identifiers.
    """
    now = datetime.now(UTC).replace(microsecond=0)
    above = _name(issuer) if isinstance(issuer, str) else issuer.certificate.subject
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(above)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca, path_length if ca else None), critical=True)
    )
    kinds = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    kinds += ["key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]
    chosen = {"key_cert_sign", "crl_sign"} if ca else {key_usage or "digital_signature"}
    builder = builder.add_extension(x509.KeyUsage(**{kind: kind in chosen for kind in kinds}), critical=True)
    wanted = usages if usages is not None else (() if ca else BOTH)
    if wanted:
        builder = builder.add_extension(x509.ExtendedKeyUsage(wanted), critical=False)
    if san:
        general = x509.UniformResourceIdentifier(san) if san.startswith("spiffe:") else x509.DNSName(san)
        builder = builder.add_extension(x509.SubjectAlternativeName([general]), critical=not subject)
    if identifiers and ca:
        own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(own, critical=False)
    if identifiers and isinstance(issuer, Ca):
        with contextlib.suppress(x509.ExtensionNotFound):
            ski = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski)
            builder = builder.add_extension(authority, critical=False)
    return builder.sign(signer, hashes.SHA384() if _is_384(signer) else hashes.SHA256())


def _is_384(key: Any) -> bool:
    return isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.key_size == 384


@dataclass(frozen=True)
class Connection:
    """A client and a server, by the rules of a mesh.

    Attributes:
        sni: Server name that the client sends.
        clients_of: Prefix of the URI that the server demands of its clients; any client of a trusted root if empty.
    """

    client: Held
    server: Held
    sni: str
    clients_of: str = ""


class Pair:
    """Two Envoys on two addresses, with all the connections they are to make."""

    def __init__(self, directory: Path, client_ip: str, server_ip: str, connections: Sequence[Connection]) -> None:
        self._client_ip = client_ip
        self._processes: list[subprocess.Popen[bytes]] = []
        serving = [_serving(server_ip, FIRST + index, each) for index, each in enumerate(connections)]
        dialling = [_dialling(client_ip, FIRST + index) for index in range(len(connections))]
        clusters = [_cluster(server_ip, FIRST + index, each) for index, each in enumerate(connections)]
        self._configs = {
            server_ip: {"listeners": serving},
            client_ip: {"listeners": dialling, "clusters": clusters},
        }
        self._directory = directory

    def __enter__(self) -> Pair:
        try:
            for ip, resources in self._configs.items():
                self._start(ip, resources)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    async def accepts(self, index: int) -> bool:
        """Whether a byte sent through this connection comes back."""
        reader, writer = await asyncio.open_connection(self._client_ip, FIRST + index)
        try:
            writer.write(b"?")
            async with asyncio.timeout(10):
                return await reader.read(1) == b"?"
        except ConnectionError:
            return False
        finally:
            writer.close()

    def _start(self, ip: str, resources: dict[str, Any]) -> None:
        config = {"admin": {"address": _address(ip, ADMIN)}, "static_resources": resources}
        path, log = self._directory / f"{ip}.json", self._directory / f"{ip}.log"
        path.write_text(json.dumps(config))
        path.chmod(0o600)
        command = [str(program()), "--config-path", str(path), "--concurrency", "1", "--disable-hot-restart"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--log-level", "warn"], stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self._processes.append(process)
        deadline = time.monotonic() + START_SECONDS
        while not self._live(ip):
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"envoy did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.1)

    def _live(self, ip: str) -> bool:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{ip}:{ADMIN}/ready", timeout=2) as answer:
                return bool(answer.read().strip() == b"LIVE")
        except OSError:
            return False


def _address(ip: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": ip, "port_value": port}}


def _tls(own: Held, *, names: dict[str, Any] | None, at_least: str) -> dict[str, Any]:
    validation: dict[str, Any] = {"trusted_ca": {"inline_string": own.roots_pem}}
    if names is not None:
        validation["match_typed_subject_alt_names"] = [names]
    pair = {"certificate_chain": {"inline_string": own.chain_pem}, "private_key": {"inline_string": own.key_pem}}
    return {
        "tls_params": {"tls_minimum_protocol_version": at_least, "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [pair],
        "validation_context": validation,
    }


def _version(held: Held) -> str:
    return "TLSv1_2" if held.identity.startswith("spiffe:") else "TLSv1_3"


def _serving(ip: str, port: int, each: Connection) -> dict[str, Any]:
    names = {"san_type": "URI", "matcher": {"prefix": each.clients_of}} if each.clients_of else None
    tls = {
        "@type": f"{_TLS}.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": _tls(each.server, names=names, at_least=_version(each.server)),
        "disable_stateless_session_resumption": True,
    }
    echo = {"name": "envoy.filters.network.echo", "typed_config": {"@type": f"{_FILTER}.echo.v3.Echo"}}
    socket = {"name": "envoy.transport_sockets.tls", "typed_config": tls}
    return {
        "name": f"server-{port}",
        "address": _address(ip, port),
        "filter_chains": [{"filters": [echo], "transport_socket": socket}],
    }


def _dialling(ip: str, port: int) -> dict[str, Any]:
    proxy = {"@type": f"{_FILTER}.tcp_proxy.v3.TcpProxy", "stat_prefix": f"c{port}", "cluster": f"server-{port}"}
    filters = [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]
    return {"name": f"client-{port}", "address": _address(ip, port), "filter_chains": [{"filters": filters}]}


def _cluster(ip: str, port: int, each: Connection) -> dict[str, Any]:
    kind = "URI" if each.server.identity.startswith("spiffe:") else "DNS"
    names = {"san_type": kind, "matcher": {"exact": each.server.identity}}
    tls = {
        "@type": f"{_TLS}.UpstreamTlsContext",
        "sni": each.sni,
        "common_tls_context": _tls(each.client, names=names, at_least=_version(each.client)),
        "max_session_keys": 0,
    }
    endpoint = {"endpoint": {"address": _address(ip, port)}}
    return {
        "name": f"server-{port}",
        "type": "STATIC",
        "connect_timeout": "10s",
        "load_assignment": {"cluster_name": f"server-{port}", "endpoints": [{"lb_endpoints": [endpoint]}]},
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
    }
