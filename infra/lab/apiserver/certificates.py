"""The cluster's certificates and the administrator's kubeconfig, laid out under the server's directory as kubeadm does.

``pki/ca.crt`` and ``pki/ca.key`` (0600) sign client and serving certificates; the certificate controller uses them too.
What exists is kept, so that a server started again on the same directory is the same cluster.
"""

from __future__ import annotations

import base64
import datetime as dt
import ipaddress
import json
import os
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from pathlib import Path

CLUSTER_NAMES = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
SERVICE_IP = "10.96.0.1"
_BACKDATE = dt.timedelta(minutes=5)
_CA_YEARS = 10


def write_private(path: Path, data: bytes) -> None:
    """Write a file only its owner can read; replaces an old one in one step."""
    temporary = path.with_suffix(path.suffix + ".new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
    temporary.replace(path)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _self_signed(common_name: str) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A new CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + dt.timedelta(days=365 * _CA_YEARS))
        .add_extension(x509.BasicConstraints(True, None), True)
        .add_extension(x509.KeyUsage(True, False, True, False, False, True, False, False, False), True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


class ClusterPki:
    """The certificates below ``directory/pki``."""

    def __init__(self, directory: Path, host: str) -> None:
        self.directory = directory / "pki"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.ca_certificate = self.directory / "ca.crt"
        self.ca_key = self.directory / "ca.key"
        self.front_proxy_ca = self.directory / "front-proxy-ca.crt"
        self._load_or_make_ca()
        self._make_front_proxy_ca()
        names = ["localhost", *CLUSTER_NAMES, "127.0.0.1", SERVICE_IP, host]
        self.serving = self._pair("apiserver", "kube-apiserver", [], names)
        self.kubelet_client = self._pair(
            "apiserver-kubelet-client", "kube-apiserver-kubelet-client", ["system:masters"]
        )
        self.admin = self._pair("admin", "kubernetes-admin", ["system:masters"])

    def _load_or_make_ca(self) -> None:
        if not (self.ca_certificate.exists() and self.ca_key.exists()):
            certificate, signer = _self_signed("kubernetes")
            write_private(self.ca_key, _key_pem(signer))
            self.ca_certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        self._ca = x509.load_pem_x509_certificate(self.ca_certificate.read_bytes())
        key = serialization.load_pem_private_key(self.ca_key.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{self.ca_key} holds no elliptic-curve key")
        self._key = key

    def _make_front_proxy_ca(self) -> None:
        """The CA whose clients may speak for others to extension servers; nobody here holds a certificate of it."""
        if self.front_proxy_ca.exists():
            return
        certificate, _key = _self_signed("front-proxy-ca")
        self.front_proxy_ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _pair(
        self, file: str, common_name: str, organizations: list[str], names: list[str] | None = None
    ) -> tuple[Path, Path]:
        """(certificate, key) paths: a serving certificate when `names` is given, else one for a client."""
        certificate_path, key_path = self.directory / f"{file}.crt", self.directory / f"{file}.key"
        if certificate_path.exists() and key_path.exists():
            return certificate_path, key_path
        certificate, key = self.issue(common_name, organizations, names)
        write_private(key_path, key)
        certificate_path.write_bytes(certificate)
        return certificate_path, key_path

    def issue(
        self, common_name: str, organizations: list[str], names: list[str] | None = None, days: int = 365
    ) -> tuple[bytes, bytes]:
        """A fresh (certificate PEM, key PEM) of the cluster's CA."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name(
            [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in organizations]
            + [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        )
        now = dt.datetime.now(dt.UTC)
        usage = ExtendedKeyUsageOID.SERVER_AUTH if names else ExtendedKeyUsageOID.CLIENT_AUTH
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._ca.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATE)
            .not_valid_after(now + dt.timedelta(days=days))
            .add_extension(x509.BasicConstraints(False, None), True)
            .add_extension(x509.KeyUsage(True, False, True, False, False, False, False, False, False), True)
            .add_extension(x509.ExtendedKeyUsage([usage]), False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False)
        )
        if names:
            general = [_general_name(name) for name in dict.fromkeys(names)]
            builder = builder.add_extension(x509.SubjectAlternativeName(general), False)
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key)

    @property
    def ca_pem(self) -> str:
        return self.ca_certificate.read_text()


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def write_kubeconfig(path: Path, url: str, pki: ClusterPki, pair: tuple[Path, Path], user: str) -> None:
    """A kubeconfig with everything embedded (JSON, which is YAML too), mode 0600."""

    def encoded(file: Path) -> str:
        return base64.b64encode(file.read_bytes()).decode()

    cluster = {"server": url, "certificate-authority-data": encoded(pki.ca_certificate)}
    certificate, key = pair
    identity = {"client-certificate-data": encoded(certificate), "client-key-data": encoded(key)}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": user, "user": identity}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
        "current-context": "lab",
    }
    write_private(path, json.dumps(config, indent=2).encode() + b"\n")
