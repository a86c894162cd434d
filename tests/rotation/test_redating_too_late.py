"""A self-signed root that has ended is not re-dated: no handshake succeeds any more that a gate could look at."""

from __future__ import annotations

from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from capstan.cluster.record import RecordStore
from capstan.config import System, TrustDomain
from capstan.errors import GateRefused
from capstan.pki.mint import RootPolicy, mint_root
from capstan.rotation.claims import Unclaimed
from capstan.rotation.opening import begin_record
from tests.support.apiserver import Running
from tests.trust.domains import NOW, cluster, only

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from capstan.pki.inspect import Certificate
    from capstan.trust.observation import ClusterObservation

ROOT = mint_root(RootPolicy("cluster.local", validity=timedelta(days=30)), 1, NOW - timedelta(days=60)).certificate
DOMAIN = TrustDomain(name="late", system=System.ISTIO)


class Ended:
    """A mesh whose root has ended: of its issuer, no path to a root verifies."""

    cluster_name = "east"

    def observe(self, known: object = ()) -> ClusterObservation:
        del known
        return cluster([], name="east", bundle=only(ROOT.fingerprint))

    def certificates(self) -> Mapping[str, Certificate]:
        return {ROOT.fingerprint: ROOT}


def test_a_root_that_has_ended_is_named_with_the_way_out_and_no_rotation_is_begun(tmp_path: Path) -> None:
    api, systems = Running(tmp_path), {"east": Ended()}
    mesh: Any = systems
    with closing(api.connect()) as connection:
        store = RecordStore(connection, DOMAIN.name)
        with pytest.raises(GateRefused, match="the root has ended") as refused:
            begin_record(DOMAIN, None, mesh, {"east": store}, lambda: NOW, Unclaimed(), take_over=False, kind="re-date")
        assert store.load() is None
    api.stop()
    assert ROOT.fingerprint[:16] in refused.value.observed
    assert f"{ROOT.not_after:%F %T}Z" in refused.value.observed
    assert "istio-system/istio-ca-secret" in refused.value.next_command
