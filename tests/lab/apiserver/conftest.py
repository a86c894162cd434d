"""Fixtures of the API server's tests."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.lab.apiserver.lab_server import LabServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    """A bare API server."""
    with LabServer(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture
def http(lab: LabServer) -> Iterator[httpx.Client]:
    """The administrator's connection to it; faults and counts are cleared before and after."""
    context = ssl.create_default_context(cafile=str(lab.server.pki.ca_certificate))
    context.load_cert_chain(*map(str, lab.server.pki.admin))
    with httpx.Client(base_url=lab.server.url, verify=context, trust_env=False, timeout=10) as client:
        client.delete("/lab/faults")
        client.delete("/lab/stats")
        yield client
        client.delete("/lab/faults")
