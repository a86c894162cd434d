"""An API server of the lab in a thread of its own, for tests that read a mesh through it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.apiserver import Running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from capstan.cluster.client import Cluster


@pytest.fixture
def fresh_api(tmp_path: Path) -> Iterator[Running]:
    """One that nobody else has written to."""
    running = Running(tmp_path)
    yield running
    running.stop()


@pytest.fixture
def cluster(fresh_api: Running) -> Iterator[Cluster]:
    cluster = fresh_api.connect(sleep=lambda _seconds: None)
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One for all tests that write into namespaces of their own."""
    running = Running(tmp_path_factory.mktemp("apiserver"))
    yield running
    running.stop()
