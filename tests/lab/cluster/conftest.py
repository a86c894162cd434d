"""One cluster for all tests of this folder: every test uses names of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.cluster.cluster_lab import ClusterLab

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterLab]:
    """A running cluster."""
    with ClusterLab(tmp_path_factory.mktemp("cluster")) as lab:
        yield lab
