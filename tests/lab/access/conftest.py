"""Fixtures of the access tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from access_lab import Lab, Pair
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.stop()


@pytest.fixture(scope="module")
def cluster_ca(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The cluster's own CA, to sign client certificates with."""
    certificate = x509.load_pem_x509_certificate(lab.server.pki.ca_certificate.read_bytes())
    key = serialization.load_pem_private_key(lab.server.pki.ca_key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Pair(tmp_path_factory.mktemp("ca"), "ca", certificate, key)
