"""Warnings about objects the server accepts."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from infra.lab.apiserver import remarks as server_remarks
from infra.lab.apiserver.kinds import Registry

KINDS = {kind.resource: kind for kind in Registry()}


def _deployment(name: str = "web", **container: Any) -> dict[str, Any]:
    spec = {"template": {"spec": {"containers": [{"name": "c", **container}]}}}
    return {"metadata": {"name": name}, "spec": spec}


def test_a_variable_defined_twice_is_remarked_on_unless_it_builds_on_the_first() -> None:
    twice = [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}, {"name": "A", "value": "$(A)x"}]
    assert server_remarks.about(KINDS["deployments.apps"], _deployment(env=twice)) == [
        "spec.template.spec.containers[0].env[1]: "
        'hides previous definition of "A", which may be dropped when using apply'
    ]


def test_a_port_defined_twice_is_remarked_on() -> None:
    ports = [{"containerPort": 80, "protocol": "TCP"}, {"containerPort": 80, "protocol": "TCP", "name": "b"}]
    at = "spec.template.spec.containers[0].ports"
    assert server_remarks.about(KINDS["deployments.apps"], _deployment(ports=ports)) == [
        f"{at}[1]: duplicate port definition with {at}[0]"
    ]


def test_a_name_that_makes_no_host_name_is_remarked_on_once_at_creation() -> None:
    dotted = _deployment("a.b")
    (remark,) = server_remarks.about(KINDS["deployments.apps"], dotted)
    assert remark.startswith("metadata.name: this is used in Pod names and hostnames")
    assert server_remarks.about(KINDS["deployments.apps"], dotted, dotted) == []


def test_the_server_remarks_on_a_certificate_and_key_that_do_not_fit() -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    now = datetime(2026, 1, 1, tzinfo=UTC)
    certificate = (
        x509.CertificateBuilder(name, name, keys[0].public_key(), 1, now, now + timedelta(days=1))
        .sign(keys[0], hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    pems = [
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        for key in keys
    ]

    def remarks(crt: bytes, key: bytes) -> list[str]:
        data = {"tls.crt": base64.b64encode(crt).decode(), "tls.key": base64.b64encode(key).decode()}
        return server_remarks.about(KINDS["secrets"], {"type": "kubernetes.io/tls", "data": data})

    assert remarks(certificate, pems[0]) == []
    assert remarks(certificate, pems[1]) == ["tls: private key does not match public key"]
    assert remarks(b"x", pems[0]) == ["tls: failed to find any PEM data in certificate input"]
    assert remarks(certificate, b"x") == ["tls: failed to find any PEM data in key input"]
