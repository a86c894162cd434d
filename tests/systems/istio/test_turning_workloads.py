"""Workloads restarted by choice, and the wait for a re-dated root: who has not followed is named, never passed over."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from capstan.cluster.resources import PODS
from capstan.errors import GateRefused, GateTimedOut
from capstan.systems.istio.data_plane import restart_data_plane
from capstan.systems.istio.redate import await_redated, has_citadel, restart_signers
from tests.support.istio_mesh import SYSTEM, sidecar_spec
from tests.support.mesh import envoy, pem
from tests.systems.istio.turning import TurningMesh, now

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.cluster.restart import RestartReport, Step
    from tests.support.apiserver import Running

STAMP = "r-1/trust/leaves"


class Workloads(TurningMesh):
    """Deployments with a sidecar each; a restart gives their proxies what is handed out.

    Attributes:
        deaf: Workloads whose proxies hold after a restart what they held before.
        bare: Workloads whose pods come back without a proxy.
    """

    def __init__(self, running: Running) -> None:
        super().__init__(running, env={"ISTIO_MULTIROOT_MESH": "true"})
        self.deaf: set[str] = set()
        self.bare: set[str] = set()
        self._owners: dict[str, dict[str, Any]] = {}

    def workload(self, name: str, *, replicas: int = 1) -> None:
        labels = {"app": name}
        spec = sidecar_spec()
        self._owners[name] = self.mesh.mesh.deployment("shop", name, {"metadata": {"labels": labels}, "spec": spec})
        for index in range(replicas):
            self.mesh.proxy(
                "shop", f"{name}-abc-{index}", spec=spec, labels={**labels, "pod-template-hash": "abc"},
                owner=self._owners[name],
            )  # fmt: skip

    def hold(self, name: str, roots: str, index: int = 0) -> None:
        """What a workload's proxy answers from now on."""
        self.mesh.admin["shop", f"{name}-abc-{index}"] = envoy(self.mesh.leaf_chain(), roots)

    def progress(self, step: Step) -> None:
        super().progress(step)
        name = step.owner.name
        if step.message == "restarting" and name in self._owners:
            if name not in self.deaf:
                self.hold(name, pem(self.mesh.old, self.mesh.new))
            if name in self.bare:
                self.end_pod("shop", f"{name}-abc-0")
                containers = [{"name": "app", "image": "app:1"}]
                labels = {"app": name, "pod-template-hash": "abc"}
                owner = self._owners[name]
                self.mesh.mesh.pod("shop", f"{name}-abc-9", {"containers": containers}, labels=labels, owner=owner)

    def restart(self, seconds: float = 3600.0) -> RestartReport:
        return restart_data_plane(
            self.cluster, self.look_at_all, frozenset({self.old, self.new}), STAMP, seconds=seconds, issuer=None,
            parallel=2, on_progress=self.progress, now=now,
        )  # fmt: skip


@pytest.fixture
def mesh(fresh_api: Running) -> Iterator[Workloads]:
    made = Workloads(fresh_api)
    made.write_secret(made.mesh.issuer, made.mesh.old, made.mesh.new)
    made.take()
    yield made
    made.close()


def test_only_workloads_that_are_not_as_wanted_are_restarted(mesh):
    mesh.workload("web")
    mesh.workload("cart")
    mesh.hold("cart", pem(mesh.mesh.old, mesh.mesh.new))
    report = mesh.restart()
    assert [entry.owner.name for entry in report.restarted] == ["web"]
    assert mesh.stamps("web", "shop") == STAMP
    assert mesh.stamps("cart", "shop") == ""
    assert mesh.restart().restarted == (), "a second run finds nothing to do"


def test_one_lost_answer_restarts_nobody(mesh):
    mesh.workload("web")
    mesh.hold("web", pem(mesh.mesh.old, mesh.mesh.new))
    answers = mesh.mesh.admin["shop", "web-abc-0"]
    mesh.mesh.admin["shop", "web-abc-0"] = {}
    mesh.while_waiting = lambda _seconds: mesh.mesh.admin.update({("shop", "web-abc-0"): answers})
    assert mesh.restart().restarted == ()


def test_a_proxy_that_cannot_be_read_is_restarted_like_one_that_holds_other_roots(mesh):
    mesh.workload("web")
    mesh.mesh.admin["shop", "web-abc-0"] = {}
    report = mesh.restart()
    assert [entry.owner.name for entry in report.restarted] == ["web"]


def test_workloads_that_are_restarted_in_vain_are_named(mesh):
    mesh.workload("web")
    mesh.deaf.add("web")
    with pytest.raises(GateTimedOut) as caught:
        mesh.restart()
    assert caught.value.what == "1 workloads are restarted and still not as wanted"
    assert "web" in str(caught.value.stragglers)
    assert mesh.stamps("web", "shop") == f"{STAMP}.3"


def test_pods_that_come_back_without_their_proxy_stop_it_at_once(mesh):
    mesh.workload("web")
    mesh.bare.add("web")
    with pytest.raises(GateRefused, match="1 restarted pods came back without their proxy") as caught:
        mesh.restart()
    assert caught.value.observed == "shop/web-abc-9"
    assert "injector" in caught.value.next_command


def test_what_nobody_can_restart_is_returned_with_its_reason(mesh):
    mesh.mesh.proxy("shop", "lonely", spec=sidecar_spec(), roots=pem(mesh.mesh.old))
    report = mesh.restart()
    assert report.restarted == ()
    assert [(entry.owner.name, entry.pods) for entry in report.skipped] == [("lonely", ("lonely",))]
    assert all(entry.reason for entry in report.skipped)


# --- a re-dated root -----------------------------------------------------------------------------------------------


def test_the_wait_for_a_redated_root_ends_when_the_last_proxy_has_it_and_names_who_has_not(mesh):
    mesh.workload("web")
    mesh.workload("cart")
    for name in ("web", "cart"):
        mesh.hold(name, pem(mesh.mesh.new))
    mesh.write_secret(mesh.second, mesh.mesh.new)
    mesh.take()
    told: list[str] = []
    mesh.hold("cart", pem(mesh.mesh.old))
    mesh.while_waiting = lambda seconds: mesh.hold("cart", pem(mesh.mesh.new)) if seconds > 3 else None
    view = await_redated(
        mesh.cluster, mesh.look_at_all, mesh.new, seconds=60, on_progress=lambda step: told.append(step.message)
    )
    assert {proxy.peer.trusts for proxy in view.proxies} == {frozenset({mesh.new})}
    assert "cart-abc-0 holds" in told[0]


def test_a_wait_for_a_redated_root_that_runs_out_names_istiods_places_and_proxies(mesh):
    mesh.workload("web")
    mesh.mesh.admin["shop", "web-abc-0"] = {
        "/config_dump?resource=dynamic_active_secrets": (200, json.dumps({}).encode())
    }
    mesh.pace = 20.0
    with pytest.raises(GateTimedOut, match="do not have the re-dated root yet") as caught:
        await_redated(mesh.cluster, mesh.look_at_all, mesh.new, seconds=30)
    told = "\n".join(caught.value.stragglers)
    assert "istiod-abc-0 hands out" in told
    assert "web-abc-0: its roots could not be read" in told
    assert "istio-ca-root-cert" in told
    assert "run the same command again" in caught.value.next_command


def test_signers_are_restarted_once_for_a_stamp(mesh):
    options = {"seconds": 60.0, "on_progress": mesh.progress, "now": now}
    first = restart_signers(mesh.cluster, SYSTEM, "r-1/redate", **options)
    assert [entry.changed for entry in first.restarted] == [True]
    again = restart_signers(mesh.cluster, SYSTEM, "r-1/redate", **options)
    assert [entry.changed for entry in again.restarted] == [False]


def test_a_citadel_is_known_by_its_container(mesh):
    assert not has_citadel(mesh.cluster, SYSTEM)
    labels = {"istio": "citadel"}
    containers = [{"name": "citadel", "image": "docker.io/istio/citadel:1.4.3"}]
    mesh.mesh.mesh.deployment(
        SYSTEM, "istio-citadel", {"metadata": {"labels": labels}, "spec": {"containers": containers}}
    )
    assert has_citadel(mesh.cluster, SYSTEM)
    assert mesh.cluster.list(PODS, SYSTEM).items
