"""Waiting for the istiods: each replica is brought to what its source holds, hot or by a restart, and proven."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from capstan.cluster.resources import CONFIG_MAPS, DEPLOYMENTS, VALIDATING_WEBHOOKS
from capstan.errors import GateRefused, GateTimedOut
from tests.support.istio_mesh import SYSTEM, sidecar_spec
from tests.support.mesh import pem
from tests.systems.istio.turning import TurningMesh, now

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.apiserver import Running

MULTIROOT = {"ISTIO_MULTIROOT_MESH": "true"}


@pytest.fixture
def turning(fresh_api: Running) -> Iterator[Callable[..., TurningMesh]]:
    made: list[TurningMesh] = []

    def make(**options: Any) -> TurningMesh:
        made.append(TurningMesh(fresh_api, **options))
        return made[-1]

    yield make
    for mesh in made:
        mesh.close()


def reasons(report) -> list[str]:
    return [entry.reason for entry in report.skipped]


def test_roots_that_are_taken_hot_are_waited_for_replica_by_replica_and_nobody_is_restarted(turning):
    mesh = turning(env=MULTIROOT)
    mesh.pace = 5.0
    mesh.write_secret(mesh.mesh.issuer, mesh.mesh.old, mesh.mesh.new)

    def kubelets(seconds: float) -> None:
        if seconds > 20:
            mesh.take("istiod-abc-0")
        if seconds > 60:
            mesh.take("istiod-abc-1")

    mesh.while_waiting = kubelets
    report = mesh.settle(roots={mesh.old, mesh.new})
    assert report.restarted == ()
    assert reasons(report) == ["took the change without a restart, as each replica has shown"]
    assert mesh.slept > 60
    assert any("istiod-abc-1: hands out roots" in line for line in mesh.said)
    assert mesh.stamps() == ""


def test_without_multiroot_every_replica_is_restarted_once_and_then_asked(turning):
    mesh = turning()
    mesh.write_secret(mesh.mesh.issuer, mesh.mesh.old, mesh.mesh.new)
    report = mesh.settle(roots={mesh.old, mesh.new})
    assert [entry.owner.name for entry in report.restarted] == ["istiod"]
    assert mesh.stamps() == "r-1/trust"
    assert any("without ISTIO_MULTIROOT_MESH" in line for line in mesh.said)


def test_a_hot_reload_that_does_not_come_ends_in_a_restart(turning):
    mesh = turning(env=MULTIROOT)
    mesh.pace = 20.0
    mesh.write_secret(mesh.mesh.issuer, mesh.mesh.old, mesh.mesh.new)
    report = mesh.settle(roots={mesh.old, mesh.new})
    assert [entry.owner.name for entry in report.restarted] == ["istiod"]
    assert mesh.slept > 120, "it was not given the time that a kubelet takes"


def test_files_that_are_younger_than_the_process_are_not_watched_so_it_is_restarted_at_once(turning):
    mesh = turning(env=MULTIROOT)
    mesh.started(now() - timedelta(hours=1))
    mesh.write_secret(mesh.mesh.issuer, mesh.mesh.old, mesh.mesh.new)
    report = mesh.settle(roots={mesh.old, mesh.new})
    assert [entry.owner.name for entry in report.restarted] == ["istiod"]
    assert any("istio#57853" in line for line in mesh.said)


def test_an_issuer_that_is_taken_hot_is_proven_by_a_leaf_of_each_replica(turning):
    mesh = turning(env=MULTIROOT)
    mesh.write_secret(mesh.mesh.issuer, mesh.mesh.old, mesh.mesh.new)
    mesh.take()
    mesh.write_secret(mesh.second, mesh.mesh.old, mesh.mesh.new)
    mesh.while_waiting = lambda seconds: mesh.take() if seconds > 30 else None
    report = mesh.settle(issuer=mesh.second, stamp="r-1/issue")
    assert report.restarted == ()
    assert any("signs by issuer" in line for line in mesh.said)


def test_when_roots_become_fewer_every_istiod_is_restarted_once_whatever_it_shows(turning):
    mesh = turning(env=MULTIROOT)
    mesh.write_secret(mesh.second, mesh.mesh.new)
    mesh.take()
    first = mesh.settle(roots={mesh.new}, issuer=mesh.second, stamp="r-1/distrust")
    assert [entry.changed for entry in first.restarted] == [True]
    again = mesh.settle(roots={mesh.new}, issuer=mesh.second, stamp="r-1/distrust")
    assert [entry.changed for entry in again.restarted] == [False], "a second run restarts nobody again"


def test_a_run_that_cannot_trust_what_it_sees_restarts_afresh(turning):
    mesh = turning(env=MULTIROOT)
    report = mesh.settle(roots={mesh.old}, afresh=True)
    assert [entry.owner.name for entry in report.restarted] == ["istiod"]


def test_an_istiod_that_does_not_come_up_as_it_has_to_is_restarted_three_times_and_named(turning):
    mesh = turning()
    mesh.pace = 10.0
    mesh.write_secret(mesh.mesh.issuer, mesh.mesh.old, mesh.mesh.new)
    mesh.on_restart = lambda: None
    with pytest.raises(GateTimedOut) as caught:
        mesh.settle(roots={mesh.old, mesh.new})
    assert caught.value.what == "istiod does not come up as it has to"
    assert "istiod-abc-0: hands out roots" in caught.value.observed
    assert len(caught.value.stragglers) == 2
    assert mesh.stamps() == "r-1/trust.3"
    assert "kubectl logs" in caught.value.next_command


def test_an_istiod_that_comes_up_right_at_the_second_restart_is_enough(turning):
    mesh = turning()
    mesh.pace = 10.0
    mesh.write_secret(mesh.mesh.issuer, mesh.mesh.old, mesh.mesh.new)
    restarts: list[str] = []

    def late() -> None:
        restarts.append(mesh.stamps())
        if len(restarts) == 2:
            mesh.take()

    mesh.on_restart = late
    report = mesh.settle(roots={mesh.old, mesh.new})
    assert restarts == ["r-1/trust", "r-1/trust.2"]
    assert len(report.restarted) == 2


@pytest.mark.parametrize("version", ["1.24.4", "1.25.1"])
def test_a_version_that_breaks_a_bundle_of_roots_is_not_given_one(turning, version):
    mesh = turning(version=version, env=MULTIROOT)
    mesh.write_secret(mesh.mesh.issuer, mesh.mesh.old, mesh.mesh.new)
    with pytest.raises(GateRefused, match="this istiod must not be given these files") as caught:
        mesh.settle(roots={mesh.old, mesh.new})
    assert "istio#55793" in caught.value.observed
    assert mesh.stamps() == ""


def test_a_deployment_whose_rollout_is_paused_is_said_to_be(turning):
    mesh = turning()
    mesh.cluster.patch(DEPLOYMENTS, "istiod", {"spec": {"paused": True}}, SYSTEM)
    mesh.rolled_out(SYSTEM, "istiod")
    mesh.write_secret(mesh.mesh.issuer, mesh.mesh.old, mesh.mesh.new)
    with pytest.raises(GateRefused, match="an istiod that has to be restarted cannot be") as caught:
        mesh.settle(roots={mesh.old, mesh.new})
    assert "paused" in caught.value.observed
    assert caught.value.next_command == f"kubectl rollout resume deployment/istiod -n {SYSTEM}"


def test_no_istiod_is_restarted_into_files_it_would_not_start_with(turning):
    mesh = turning()
    mesh.write_secret(mesh.second, mesh.mesh.old)  # a signer of a root that is not among the roots
    with pytest.raises(GateRefused, match="istiod would not start with what its source holds") as caught:
        mesh.settle(roots={mesh.old})
    assert "chain does not verify" in caught.value.observed
    assert mesh.stamps() == ""


@pytest.mark.parametrize("what", ["roots", "issuer"])
def test_what_is_waited_for_must_be_what_the_source_holds(turning, what):
    mesh = turning()
    wanted: dict[str, Any] = {"roots": {mesh.new}} if what == "roots" else {"issuer": mesh.second}
    with pytest.raises(GateRefused, match=f"the source does not hold the {what} that (are|is) waited for"):
        mesh.settle(**wanted)
    assert mesh.stamps() == ""


def test_places_that_do_not_follow_are_named_and_nothing_is_passed(turning):
    mesh = turning(env=MULTIROOT)
    mesh.pace = 20.0
    mesh.write_secret(mesh.mesh.issuer, mesh.mesh.old, mesh.mesh.new)
    mesh.take()
    item = mesh.cluster.get(CONFIG_MAPS, "istio-ca-root-cert", "shop")
    mesh.cluster.replace(CONFIG_MAPS, {**item, "data": {"root-cert.pem": pem(mesh.mesh.old)}})
    with pytest.raises(GateTimedOut) as caught:
        mesh.settle(roots={mesh.old, mesh.new}, seconds=120)
    assert caught.value.what == "1 places do not declare the roots that istiod hands out"
    assert "shop" in caught.value.observed
    assert mesh.slept > 100


def test_a_revision_without_a_running_pod_is_no_revision_that_has_arrived(turning):
    mesh = turning(env=MULTIROOT)
    mesh.pace = 20.0
    mesh.write_secret(mesh.mesh.issuer, mesh.mesh.old, mesh.mesh.new)
    mesh.take()
    for name in mesh.mesh.signers:
        mesh.end_pod(SYSTEM, name)
    with pytest.raises(GateTimedOut) as caught:
        mesh.settle(roots={mesh.old, mesh.new}, seconds=300)
    assert "revision default: no running pod" in str(caught.value.stragglers)


def test_an_istiod_that_cannot_be_asked_counts_as_one_that_has_not_followed(turning):
    mesh = turning(env=MULTIROOT)
    mesh.pace = 20.0
    mesh.write_secret(mesh.mesh.issuer, mesh.mesh.old, mesh.mesh.new)
    mesh.take()
    for signer in mesh.mesh.signers.values():
        signer.refuse = (grpc.StatusCode.INTERNAL, "CA is not ready")
    mesh.on_restart = lambda: None
    with pytest.raises(GateTimedOut) as caught:
        mesh.settle(roots={mesh.old, mesh.new})
    assert "its roots could not be read" in caught.value.observed
    assert "CA is not ready" in caught.value.observed


def test_with_proxies_from_outside_the_cluster_istiod_is_restarted_when_roots_are_added(turning):
    # Whom it lets in by certificate it knows since its start: a virtual machine renews by one of the new root later on.
    mesh = turning(env=MULTIROOT)
    mesh.mesh.connected.append("vm-1.machines")
    mesh.write_secret(mesh.mesh.issuer, mesh.mesh.old, mesh.mesh.new)
    mesh.take()
    report = mesh.settle(roots={mesh.old, mesh.new})
    assert [entry.owner.name for entry in report.restarted] == ["istiod"]


def test_ztunnels_that_keep_the_roots_of_their_start_are_restarted_before_anything_is_signed(turning):
    mesh = turning(env=MULTIROOT)
    labels = {"app": "ztunnel"}
    container = {"name": "istio-proxy", "image": "docker.io/istio/ztunnel:1.28.5-distroless"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    owner = mesh.mesh.mesh.deployment(SYSTEM, "ztunnel", template)
    mesh.mesh.mesh.pod(
        SYSTEM, "ztunnel-abc-0", template["spec"], labels={**labels, "pod-template-hash": "abc"}, owner=owner
    )
    mesh.write_secret(mesh.mesh.issuer, mesh.mesh.old, mesh.mesh.new)
    mesh.take()
    report = mesh.settle(roots={mesh.old, mesh.new})
    assert [entry.owner.name for entry in report.restarted] == ["ztunnel"]
    assert mesh.stamps("ztunnel") == "r-1/trust"


def test_two_revisions_are_settled_each_in_its_own_way(turning):
    mesh = turning(env=MULTIROOT)
    mesh.mesh.control_plane(revision="asm-1-19", version="1.19.10", replicas=1)
    mesh.write_secret(mesh.mesh.issuer, mesh.mesh.old, mesh.mesh.new)
    mesh.while_waiting = lambda seconds: mesh.take("istiod-abc-0", "istiod-abc-1") if seconds > 10 else None
    mesh.started(now() + timedelta(minutes=1))
    report = mesh.settle(roots={mesh.old, mesh.new})
    assert [entry.owner.name for entry in report.restarted] == ["istiod-asm-1-19"]
    assert [entry.owner.name for entry in report.skipped] == ["istiod"]


def test_webhooks_of_a_revision_that_is_not_there_hold_nothing_up(turning):
    # The base chart makes istiod-default-validator for the revision `default`, also where every istiod has a name; what
    # a removed revision leaves behind is of the same kind.
    mesh = turning(env=MULTIROOT)
    mesh.mesh.webhooks("1-29-0", pem(mesh.mesh.old))
    mesh.write_secret(mesh.mesh.issuer, mesh.mesh.old, mesh.mesh.new)
    mesh.take()
    left_over = mesh.cluster.get(VALIDATING_WEBHOOKS, f"istio-validator-1-29-0-{SYSTEM}")
    for hook in left_over["webhooks"]:
        hook["clientConfig"].pop("caBundle")  # as the chart makes it
    kinds = {"apiVersion": VALIDATING_WEBHOOKS.api_version, "kind": VALIDATING_WEBHOOKS.kind}
    mesh.cluster.replace(VALIDATING_WEBHOOKS, {**left_over, **kinds})
    assert mesh.settle(roots={mesh.old, mesh.new}, seconds=60).restarted == ()


def test_sidecars_are_no_part_of_it(turning):
    mesh = turning(env=MULTIROOT)
    mesh.mesh.proxy("shop", "web-1", spec=sidecar_spec())
    mesh.write_secret(mesh.mesh.issuer, mesh.mesh.old, mesh.mesh.new)
    mesh.take()
    report = mesh.settle(roots={mesh.old, mesh.new})
    assert report.restarted == ()
