"""No check of an Istio is without a test that makes it fail."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from capstan.systems.istio.checks import checks
from capstan.systems.istio.observe import observe
from tests.support.istio_mesh import SYSTEM, IstioMesh

if TYPE_CHECKING:
    from capstan.cluster.client import Cluster
    from tests.support.apiserver import Running

HERE = Path(__file__).parent
# Where each is made to fail, by its description.
MADE_TO_FAIL = HERE / "test_reading_checks.py"


def test_each_check_is_named_by_a_test_that_makes_it_fail(fresh_api: Running, cluster: Cluster) -> None:
    mesh = IstioMesh(fresh_api, cluster).standard()
    try:
        results = checks(cluster, observe(cluster, SYSTEM, mesh.source), now=datetime.now(UTC))
    finally:
        mesh.close()
    text = MADE_TO_FAIL.read_text()
    assert len(results) >= 35
    assert [result.description for result in results if result.description not in text] == []
