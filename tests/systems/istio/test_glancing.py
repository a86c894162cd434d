"""Between two looks that count, a proxy is asked again only if it can hold anything else than when it was read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from capstan.cluster.resources import PODS
from capstan.pki.bundle import Bundle
from capstan.systems.glancing import Glances, everybody_read, glance
from capstan.systems.istio.adapter import Istio
from capstan.systems.istio.memory import WHOLE, Memory, process_of, renewal
from capstan.systems.istio.proxies import ProxyReading
from capstan.trust.observation import Owner
from tests.support.istio_mesh import SYSTEM, IstioMesh, sidecar_spec
from tests.support.mesh import envoy, intermediate, leaf, pem, root

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.cluster.client import Cluster
    from tests.support.apiserver import Running

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
ROOT = root("old", NOW - timedelta(days=9))
ISSUER = intermediate("Intermediate CA", ROOT, NOW - timedelta(days=9))
LEAF = leaf(ISSUER, now=NOW)  # of 24 hours, dated back by two minutes


def pod(uid: str = "u", *, started: str = "2026-11-22T11:00:00Z", container: str = "c1", **spec: Any) -> dict[str, Any]:
    state = {"running": {"startedAt": started}} if started else {"waiting": {}}
    status = {"containerStatuses": [{"name": "istio-proxy", "containerID": container, "state": state}]}
    return {
        "metadata": {"name": f"web-{uid}", "namespace": "shop", "uid": uid},
        "spec": {**sidecar_spec(), **spec}, "status": status,
    }  # fmt: skip


def reading(of: dict[str, Any] | None = None, *, env: dict[str, str] | None = None, **changes: Any) -> ProxyReading:
    values: dict[str, Any] = {
        "pod": of or pod(), "owner": Owner("Pod", "shop", "web"), "name": "web", "kind": "sidecar", "env": env or {},
        "trusts": Bundle.of(ROOT.certificate), "chain": (LEAF, ISSUER.certificate), "updated": None, "unreadable": "",
    }  # fmt: skip
    return ProxyReading(**{**values, **changes})


def recalled(read: ProxyReading, now: dict[str, Any], *, later: timedelta = timedelta(minutes=1)) -> bool:
    memory = Memory()
    memory.keep([read], NOW)
    return memory.recall(now, NOW + later) is not None


def test_a_proxy_is_taken_from_memory_as_it_was_read_with_its_pod_as_it_is_now() -> None:
    memory = Memory()
    memory.keep([reading()], NOW)
    leaving = pod()
    leaving["metadata"]["deletionTimestamp"] = "2026-11-22T12:00:30Z"
    found = memory.recall(leaving, NOW + timedelta(minutes=1))
    assert found is not None
    assert (found.chain, found.trusts, found.pod) == (reading().chain, reading().trusts, leaving)


def test_nobody_is_remembered_for_longer_than_ten_minutes() -> None:
    assert recalled(reading(), pod(), later=WHOLE - timedelta(seconds=1))
    assert not recalled(reading(), pod(), later=WHOLE)


@pytest.mark.parametrize(
    "now",
    [
        pytest.param(pod("v"), id="another pod of that name"),
        pytest.param(pod(container="c2"), id="another container"),
        pytest.param(pod(started="2026-11-22T12:00:30Z"), id="started again"),
        pytest.param(pod(started=""), id="not running"),
    ],
)
def test_another_process_is_asked_for_itself(now: dict[str, Any]) -> None:
    assert not recalled(reading(), now)


@pytest.mark.parametrize(
    "read",
    [
        pytest.param(reading(unreadable="no answer"), id="not read"),
        pytest.param(reading(trusts=None), id="no roots"),
        pytest.param(reading(chain=()), id="no leaf"),
        pytest.param(reading(env={"PROXY_CONFIG_XDS_AGENT": "true"}), id="is pushed changed roots"),
        pytest.param(reading(env={"SECRET_GRACE_PERIOD_RATIO": "half"}), id="renews by no rule we can read"),
        pytest.param(reading(env={"SECRET_GRACE_PERIOD_RATIO": "1"}), id="renews all the time"),
    ],
)
def test_who_may_change_at_any_time_is_asked_at_every_look(read: ProxyReading) -> None:
    assert not recalled(read, pod())


def test_files_of_citadels_and_ztunnels_are_no_case_of_the_rule() -> None:
    volumes = [{"name": "istio-certs", "secret": {"secretName": "istio.default"}}]
    assert renewal(reading(pod(volumes=volumes))) is None
    ztunnel = pod()
    ztunnel["metadata"]["labels"] = {"app": "ztunnel"}
    assert renewal(reading(ztunnel)) is None


@pytest.mark.parametrize(
    ("env", "hours"),
    [({}, 0.49), ({"SECRET_GRACE_PERIOD_RATIO": "0.2"}, 0.79), ({"SECRET_GRACE_PERIOD_RATIO_JITTER": "0.1"}, 0.4)],
)
def test_a_leaf_is_due_at_the_earliest_moment_at_which_an_agent_of_these_settings_renews(env, hours) -> None:
    due = renewal(reading(env=env))
    assert due is not None
    life = LEAF.not_after - LEAF.not_before
    assert abs((due - LEAF.not_before) / life - hours) < 0.001
    memory = Memory()
    memory.keep([reading(env=env)], due - timedelta(minutes=1))
    assert memory.recall(pod(), due - timedelta(seconds=1)) is not None
    assert memory.recall(pod(), due) is None


def test_who_is_gone_is_forgotten_and_a_process_has_no_name_where_its_container_does_not_run() -> None:
    memory = Memory()
    memory.keep([reading()], NOW)
    memory.only([pod("other")])
    assert memory.recall(pod(), NOW) is None
    assert process_of({"metadata": {}, "spec": {}}) == ""


# --- with a mesh ---------------------------------------------------------------------------------------------------


class Asked(IstioMesh):
    """A mesh that counts which proxies are asked."""

    def __init__(self, running: Running, cluster: Cluster) -> None:
        super().__init__(running, cluster)
        self.asked: list[str] = []

    def counted(self, name: str, **options: Any) -> None:
        self.proxy("shop", name, **options)
        answers = self.admin["shop", name]

        asked = self.asked

        class Counting(dict[str, Any]):
            def get(self, path: str, default: Any = None) -> Any:
                asked.append(name)
                return answers.get(path, default)

        self.admin["shop", name] = Counting()


@pytest.fixture
def mesh(fresh_api: Running, cluster: Cluster) -> Iterator[Asked]:
    made = Asked(fresh_api, cluster)
    made.cacerts({**made_files(made), "ca-key.pem": made.issuer.key.pem().decode()})
    made.control_plane()
    made.places(SYSTEM, "shop")
    for name in ("web-1", "cart-1"):
        made.counted(name)
    yield made
    made.close()


def made_files(mesh: IstioMesh) -> dict[str, str]:
    files = mesh.source.files
    return {"ca-cert.pem": files.ca_cert, "cert-chain.pem": files.cert_chain, "root-cert.pem": files.root_cert}


def test_a_glance_asks_those_who_came_since_and_a_look_asks_everybody(mesh: Asked, cluster: Cluster) -> None:
    istio = Istio(cluster)
    assert isinstance(istio, Glances)
    first = glance([istio], istio.observe)
    assert everybody_read([istio]), "nobody was remembered yet"
    assert sorted(mesh.asked) == ["cart-1", "web-1"]
    # 1. Nobody can have changed: nobody is asked, and everybody is there as before.
    mesh.asked.clear()
    second = glance([istio], istio.observe)
    assert (everybody_read([istio]), istio.from_memory, mesh.asked) == (False, 2, [])
    assert second.peers == first.peers
    # 2. Somebody new is asked.
    mesh.counted("new-1")
    third = glance([istio], istio.observe)
    assert (everybody_read([istio]), mesh.asked) == (False, ["new-1"])
    assert len(third.peers) == 3
    # 3. A look that counts asks everybody, and sees what a glance could not.
    mesh.asked.clear()
    mesh.admin["shop", "web-1"] = envoy(mesh.leaf_chain(), pem(mesh.old, mesh.new))
    assert {len(peer.trusts or ()) for peer in glance([istio], istio.observe).peers} == {1}
    fourth = istio.observe()
    assert everybody_read([istio])
    assert sorted({len(peer.trusts or ()) for peer in fourth.peers}) == [1, 2]
    # 4. Who is gone is no peer of a glance either.
    cluster.patch(PODS, "new-1", {"status": {"phase": "Succeeded"}}, "shop", subresource="status")
    mesh.connected.remove("new-1.shop")
    fifth = glance([istio], istio.observe)
    assert {peer.pod for peer in fifth.peers} == {"web-1", "cart-1"}


def test_a_system_that_cannot_glance_is_looked_at_whole() -> None:
    assert glance([object()], lambda: "seen") == "seen"
    assert everybody_read([object()])
