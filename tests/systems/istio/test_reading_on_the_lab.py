"""What is read of a whole lab (a real Envoy, light proxies, a gateway, ztunnels) is what these say they hold."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import httpx
import pytest

from capstan.cluster.client import Cluster
from capstan.systems.base import Status
from capstan.systems.istio.adapter import Istio
from tests.support.labs import start_lab

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.labs import RunningLab

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ARGUMENTS = (
    "--system", "istio", "--ca", "plugin", "--istio-version", "1.30.1", "--multiroot", "--ambient", "--envoys", "1",
    "--size", "small", "--leaf-seconds", "900",
)  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    lab = start_lab(tmp_path_factory.mktemp("lab"), *ARGUMENTS, program=("infra.lab",))
    yield lab
    lab.stop()


@pytest.fixture(scope="module")
def istio(lab: RunningLab) -> Iterator[Istio]:
    cluster = Cluster.connect(kubeconfig=lab.kubeconfig, name="lab")
    yield Istio(cluster)
    cluster.close()


def test_every_proxy_holds_what_the_lab_knows_it_to_hold(lab, istio):
    view = istio.view()
    read = {f"{item.peer.namespace}/{item.peer.pod}": item.peer for item in view.proxies if item.kind != "ztunnel"}
    said = {
        f"{item['namespace']}/{item['pod']}": item
        for item in httpx.get(f"{lab.facts['control']}/pods", timeout=10).json()
        if f"{item['namespace']}/{item['pod']}" in read or item["kind"] in ("light", "envoy", "gateway")
    }
    assert {item.kind for item in view.proxies} == {"sidecar", "gateway", "ztunnel"}
    assert {item["kind"] for item in said.values()} >= {"light", "envoy", "gateway"}
    assert set(read) >= {name for name, item in said.items() if item["namespace"] != "ambient"}
    for name, peer in read.items():
        assert peer.unreadable == "", name
        assert peer.trusts == set(said[name]["roots"]), name
        assert peer.leaf.fingerprint == said[name]["leaf"]["fingerprint"], name
        assert peer.leaf.issuer == said[name]["leaf"]["issuer"], name
        assert peer.leaf.anchors == peer.trusts, name
    assert len(view.istiods) == 2
    for istiod in view.istiods:
        assert istiod.signer.roots == view.observation.bundle
        assert istiod.signer.issuer == view.issuer.fingerprint


def test_a_healthy_lab_fails_no_check(istio):
    found = istio.checks(now=datetime.now(UTC))
    assert [item for item in found if item.status not in (Status.OK, Status.SKIPPED)] == []
