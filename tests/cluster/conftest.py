"""An API server of the lab in a thread of its own, and a Cluster connected to it."""

from __future__ import annotations

import secrets
import ssl
from typing import TYPE_CHECKING

import httpx
import pytest

from capstan.cluster.resources import NAMESPACES
from tests.support.apiserver import Running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.cluster.client import Cluster


@pytest.fixture(scope="session")
def running(tmp_path_factory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("apiserver"))
    yield running
    running.stop()


@pytest.fixture
def faults(running):
    """Adds fault rules; all are gone after the test."""
    cluster = running.connect()
    configuration = cluster.configuration
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    context.load_cert_chain(configuration.cert_file, configuration.key_file)
    with httpx.Client(base_url=running.server.url, verify=context) as admin:

        def add(**rule) -> None:
            admin.post("/lab/faults", json=rule).raise_for_status()

        yield add
        admin.delete("/lab/faults").raise_for_status()
    cluster.close()


@pytest.fixture
def cluster(running) -> Iterator[Cluster]:
    cluster = running.connect()
    yield cluster
    cluster.close()


@pytest.fixture
def namespace(cluster) -> str:
    name = f"t-{secrets.token_hex(4)}"
    cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name
