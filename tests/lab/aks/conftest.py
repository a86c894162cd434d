"""One cluster with a secrets-store driver for all tests of this folder: every test uses names of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.aks.csi_lab import POLL_SECONDS, CsiLab

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def shared_csi_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CsiLab]:
    """The cluster."""
    with CsiLab(tmp_path_factory.mktemp("csi")) as lab:
        yield lab


@pytest.fixture
def csi_lab(shared_csi_lab: CsiLab) -> CsiLab:
    """The cluster with the settings of a fresh one."""
    shared_csi_lab.rotation.enabled, shared_csi_lab.rotation.poll_seconds = True, POLL_SECONDS
    shared_csi_lab.delays.between_objects = 0.0
    shared_csi_lab.vault.faults.clear()
    return shared_csi_lab
