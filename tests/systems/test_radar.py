"""The radar on a live mesh: it reads, judges and changes nothing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from capstan.cluster.lease import LeaseLock
from capstan.cluster.record import NAMESPACE, RecordStore, record_name
from capstan.cluster.resources import LEASES
from capstan.config import ClusterRef, TrustDomain
from capstan.rotation.expiry import Level, WarnBefore, worst
from flows.radar import look

pytestmark = pytest.mark.slow


@pytest.fixture
def domain(lab):
    return TrustDomain(clusters=(ClusterRef(name="lab", kubeconfig=lab.facts["kubeconfig"]),))


def test_a_healthy_mesh_has_nothing_urgent_but_what_really_ends_soon(domain, cluster):
    found = look(domain, WarnBefore(leaf_warning_share=0.01, leaf_critical_share=0.0), datetime.now(UTC))
    assert {item.kind for item in found} >= {"root", "issuer", "leaf"}
    assert worst(found).rank < Level.WARNING.rank, [item for item in found if item.level.rank >= Level.WARNING.rank]
    warned = look(domain, WarnBefore(root_warning=timedelta(days=36500)), datetime.now(UTC))
    assert [item.level for item in warned if item.kind == "root"] == [Level.WARNING]


def test_the_radar_works_beside_a_rotation_and_leaves_nothing_in_the_cluster(domain, cluster):
    assert RecordStore(cluster, domain.name).load() is None
    with LeaseLock(cluster, domain.name) as held:
        before = cluster.get(LEASES, record_name(domain.name), NAMESPACE)["spec"]["holderIdentity"]
        look(domain, WarnBefore(), datetime.now(UTC))
        assert cluster.get(LEASES, record_name(domain.name), NAMESPACE)["spec"]["holderIdentity"] == before
        held.check()
    assert RecordStore(cluster, domain.name).load() is None
