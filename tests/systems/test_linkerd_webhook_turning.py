"""Webhook certificates turned on real TLS servers, which the API server calls and refuses as the caBundle says."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from capstan.cluster.resources import API_SERVICES, MUTATING_WEBHOOKS, SECRETS
from capstan.config import ClusterRef, RotationPolicy, TrustDomain
from capstan.errors import CapstanError, GateRefused, OwnedElsewhere
from capstan.rotation import hooks, open_rotation
from capstan.rotation.proving import finish
from capstan.rotation.turning import face_forward, recall, turn_back
from capstan.rotation.waiting import watch_gate
from capstan.systems.linkerd.webhooks import installed
from capstan.trust.phase import Phase
from infra.lab import pki
from tests.support.apiserver import Running
from tests.support.mesh import Mesh
from tests.support.webhook_servers import INJECTOR_SECRET, WebhookServers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from capstan.cluster.client import Cluster
    from capstan.rotation import Rotation

ALL = {f"test/{name}" for name in ("proxy-injector", "sp-validator", "policy-validator", "tap", "tap-injector")}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path / "apiserver")
    yield running
    running.stop()


@pytest.fixture
def cluster(running: Running) -> Iterator[Cluster]:
    cluster = running.connect()
    yield cluster
    cluster.close()


@pytest.fixture
def mesh(running: Running, cluster: Cluster) -> Iterator[Mesh]:
    mesh = Mesh(running, cluster)
    yield mesh
    mesh.close()


@pytest.fixture
def servers(mesh: Mesh, cluster: Cluster) -> Iterator[WebhookServers]:
    """All five, with a process each."""
    servers = WebhookServers(mesh, cluster, replicas=1)
    yield servers
    servers.close()


@pytest.fixture
def control_plane(mesh: Mesh, cluster: Cluster) -> Iterator[WebhookServers]:
    """The three of the control plane."""
    servers = WebhookServers(mesh, cluster, viz=False, replicas=1)
    yield servers
    servers.close()


class Clock:
    """Seconds pass when somebody sleeps; the servers read their Secrets meanwhile."""

    def __init__(self, servers: WebhookServers) -> None:
        self.ahead = timedelta()
        self.servers = servers

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def sleep(self, seconds: float) -> None:
        self.ahead += timedelta(seconds=seconds)
        self.servers.reload()


def domain(running: Running, home: Path) -> TrustDomain:
    reference = ClusterRef(name="test", kubeconfig=str(running.server.kubeconfig))
    policy = RotationPolicy(restart_deadline=timedelta(seconds=30), webhook_reload=timedelta(seconds=20))
    return TrustDomain(name="linkerd", clusters=(reference,), home=str(home), policy=policy)


def opened(running: Running, home: Path, clock: Clock) -> AbstractContextManager[Rotation]:
    return open_rotation(domain(running, home), "w1", kind="webhooks", now=clock.now, sleep=clock.sleep)


def begin(rotation: Rotation) -> None:
    face_forward(rotation)
    assert watch_gate(rotation, Phase.PREPARE).open
    hooks.guard(rotation)
    hooks.mint(rotation)


def widen(rotation: Rotation) -> None:
    for name in rotation.systems:
        hooks.widen(rotation, name)
    assert watch_gate(rotation, Phase.ISSUE).open


def switch(rotation: Rotation) -> None:
    for name in rotation.systems:
        hooks.back_up(rotation, name)
    hooks.settle(rotation)
    for name in rotation.systems:
        hooks.switch(rotation, name)
    hooks.reload(rotation)
    assert watch_gate(rotation, Phase.DISTRUST).open


def narrow(rotation: Rotation) -> None:
    for name in rotation.systems:
        hooks.narrow(rotation, name)
    assert watch_gate(rotation, Phase.DONE).open


@pytest.mark.slow
@pytest.mark.proves("faults", "webhook certificates near their end", "all five turned, no call of the API server fails")
def test_all_five_are_turned_and_no_call_fails_at_any_step(
    running: Running, servers: WebhookServers, tmp_path: Path
) -> None:
    clock = Clock(servers)
    before = servers.ca_bundles()
    assert set(before.values()) == {1}
    servers.call_each()
    with opened(running, tmp_path / "home", clock) as rotation:
        assert set(rotation.systems) == ALL
        begin(rotation)
        widen(rotation)
        assert set(servers.ca_bundles().values()) == {2}
        servers.call_each()
        switch(rotation)
        servers.call_each()
        narrow(rotation)
        assert set(servers.ca_bundles().values()) == {1}
        servers.call_each()
        finish(rotation)
        outcome = rotation.outcome()
    assert (outcome.kind, outcome.completed, outcome.peers) == ("webhooks", True, 5)
    assert len(outcome.issuers_after) == 5
    assert not set(outcome.roots_before) & set(outcome.roots_after)
    calls = running.server.access.calls.body()
    assert calls["failures"] == []


@pytest.mark.slow
def test_a_rotation_that_is_killed_goes_on_and_one_that_is_taken_back_ends_where_it_began(
    running: Running, control_plane: WebhookServers, cluster: Cluster, tmp_path: Path
) -> None:
    servers = control_plane
    clock = Clock(servers)
    secret = cluster.get(SECRETS, INJECTOR_SECRET, "linkerd")["data"]["tls.crt"]
    injector = cluster.get(MUTATING_WEBHOOKS, "linkerd-proxy-injector-webhook-config")["webhooks"][0]["clientConfig"]
    # 1. Left after some of the caBundles, and then after some of the Secrets.
    with opened(running, tmp_path / "home", clock) as rotation:
        begin(rotation)
        hooks.widen(rotation, "test/proxy-injector")
        assert rotation.locate() is Phase.TRUST
    with opened(running, tmp_path / "home", clock) as rotation:
        assert rotation.resumed
        begin(rotation)
        widen(rotation)
        hooks.back_up(rotation, "test/proxy-injector")
        hooks.switch(rotation, "test/proxy-injector")
        assert rotation.locate() is Phase.ISSUE
    # 2. Back from there: the one that was replaced gets its pair again, the others are left as they are.
    with opened(running, tmp_path / "home", clock) as rotation:
        recall(rotation)
        turn_back(rotation)
        widen(rotation)
        hooks.settle(rotation)
        for name in rotation.systems:
            hooks.switch(rotation, name)
        hooks.reload(rotation)
        assert watch_gate(rotation, Phase.DISTRUST).open
        narrow(rotation)
        finish(rotation)
        assert rotation.outcome().completed
    assert cluster.get(SECRETS, INJECTOR_SECRET, "linkerd")["data"]["tls.crt"] == secret
    after = cluster.get(MUTATING_WEBHOOKS, "linkerd-proxy-injector-webhook-config")["webhooks"][0]["clientConfig"]
    assert after == injector
    servers.call_each()
    assert running.server.access.calls.body()["failures"] == []


@pytest.mark.proves("faults", "webhook steps in the wrong order", "a Secret first, or a caBundle too early: refused")
def test_no_secret_is_replaced_before_its_ca_bundle_and_no_ca_bundle_narrowed_while_one_replica_serves_the_old(
    running: Running, mesh: Mesh, cluster: Cluster, tmp_path: Path
) -> None:
    servers = WebhookServers(mesh, cluster, viz=False, replicas=2)
    name, secret = "test/sp-validator", "linkerd-sp-validator-k8s-tls"
    try:
        with opened(running, tmp_path / "home", Clock(servers)) as rotation:
            begin(rotation)
            with pytest.raises(GateRefused, match="the API server would refuse this serving certificate"):
                hooks.switch(rotation, name)
            hooks.widen(rotation, name)
            hooks.switch(rotation, name)
            # One replica of two reads it: the other is named, and what it serves is still accepted.
            first = next(server for server in servers.servers if server.secret == secret)
            first.reloads = False
            servers.reload()
            far = rotation.aim.progress(rotation.observe(), Phase.ISSUE)
            behind = [why for why in far.waiting_for if why.startswith(f"{name}/")]
            assert [why.partition(":")[0] for why in behind] == [f"{name}/linkerd/linkerd-destination-1"]
            with pytest.raises(GateRefused, match="the API server would refuse what is still served") as caught:
                hooks.narrow(rotation, name)
            assert "pod linkerd-destination-1" in caught.value.observed
            servers.call_each()
    finally:
        servers.close()


def test_the_lab_judges_a_secret_that_is_replaced_first_is_refused_by_the_api_server(
    running: Running, servers: WebhookServers, cluster: Cluster
) -> None:
    taps = cluster.get(SECRETS, "tap-k8s-tls", "linkerd-viz")
    profiles = cluster.get(SECRETS, "linkerd-sp-validator-k8s-tls", "linkerd")
    for secret, name in ((taps, "tap.linkerd-viz.svc"), (profiles, "linkerd-sp-validator.linkerd.svc")):
        pair = pki.mint_serving([name], now=datetime.now(UTC))
        string = {"tls.crt": pair.certificate_pem, "tls.key": pair.key_pem}
        cluster.replace(SECRETS, {**secret, "stringData": string})
    servers.reload()
    with pytest.raises(CapstanError) as caught:
        servers.call_each()
    assert "certificate signed by unknown authority" in caught.value.observed
    with pytest.raises(CapstanError):
        cluster.get_path("/apis/tap.linkerd.io/v1alpha1")
    counted = running.server.access.calls.body()["calls"]
    assert counted["linkerd-sp-validator.linkerd.io"]["failed"] >= 1
    assert counted["v1alpha1.tap.linkerd.io"]["failed"] >= 1


def test_the_key_of_a_new_pair_is_written_as_every_server_reads_it(
    running: Running, control_plane: WebhookServers, cluster: Cluster, tmp_path: Path
) -> None:
    with opened(running, tmp_path / "home", Clock(control_plane)) as rotation:
        begin(rotation)
        widen(rotation)
        switch(rotation)
    key = base64.b64decode(cluster.get(SECRETS, "linkerd-policy-validator-k8s-tls", "linkerd")["data"]["tls.key"])
    assert key.startswith(b"-----BEGIN PRIVATE KEY-----")


def test_a_certificate_that_has_ended_is_no_reason_to_refuse(
    running: Running, mesh: Mesh, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pki.mint_serving
    ended = datetime.now(UTC) - timedelta(days=400)
    monkeypatch.setattr(pki, "mint_serving", lambda names, now: made(names, now=ended))
    servers = WebhookServers(mesh, cluster, viz=False, replicas=1)
    try:
        with pytest.raises(CapstanError):
            servers.call_each()
        with opened(running, tmp_path / "home", Clock(servers)) as rotation:
            begin(rotation)
            widen(rotation)
            switch(rotation)
            narrow(rotation)
        servers.call_each()
    finally:
        servers.close()


CERT_MANAGER = {"cert-manager.io/certificate-name": "linkerd-proxy-injector"}
INJECTED = {"cert-manager.io/inject-ca-from": "linkerd/linkerd-proxy-injector"}
ARGO = {"argocd.argoproj.io/tracking-id": "mesh:/Secret:linkerd/linkerd-proxy-injector-k8s-tls"}


@pytest.mark.proves("owners", "cert-manager", "a webhook's certificate: refused with `cmctl renew`")
@pytest.mark.parametrize(
    ("where", "marks", "command"),
    [
        ("secret", CERT_MANAGER, "cmctl renew -n linkerd linkerd-proxy-injector"),
        ("configuration", INJECTED, "cmctl renew -n linkerd linkerd-proxy-injector"),
        ("secret", ARGO, "Argo CD application mesh"),
    ],
    ids=["its Secret", "its caBundle", "Argo CD"],
)
def test_a_webhook_that_somebody_else_keeps_is_refused_before_a_record_is_made(
    running: Running, mesh: Mesh, cluster: Cluster, tmp_path: Path, where: str, marks: dict[str, str], command: str
) -> None:
    servers = WebhookServers(mesh, cluster, viz=False, replicas=1)
    try:
        name = "linkerd-proxy-injector-webhook-config"
        resource, found = (SECRETS, INJECTOR_SECRET) if where == "secret" else (MUTATING_WEBHOOKS, name)
        item = cluster.get(resource, found, "linkerd" if where == "secret" else "")
        item["metadata"]["annotations"] = marks
        cluster.replace(resource, item)
        with (
            pytest.raises(OwnedElsewhere) as caught,
            opened(running, tmp_path / "home", Clock(servers)),
        ):
            pass
        assert command in caught.value.next_command
    finally:
        servers.close()


def test_helm_is_told_of_and_not_refused(running: Running, mesh: Mesh, cluster: Cluster) -> None:
    servers = WebhookServers(mesh, cluster, viz=False, replicas=1)
    try:
        item = cluster.get(SECRETS, INJECTOR_SECRET, "linkerd")
        item["metadata"]["labels"] = {"app.kubernetes.io/managed-by": "Helm"}
        item["metadata"]["annotations"] = {
            "meta.helm.sh/release-name": "control-plane", "meta.helm.sh/release-namespace": "linkerd"
        }  # fmt: skip
        cluster.replace(SECRETS, item)
        (injector, *others) = installed(cluster, "linkerd")
        (told,) = hooks.preview(injector)
        assert "Helm release linkerd/control-plane renders another pair at its next upgrade" in told
        assert [hooks.preview(other) for other in others] == [(), ()]
    finally:
        servers.close()


def test_what_is_not_installed_is_not_in_the_rotation_and_what_goes_is_passed_over(
    running: Running, servers: WebhookServers, cluster: Cluster, tmp_path: Path
) -> None:
    clock = Clock(servers)
    with opened(running, tmp_path / "home", clock) as rotation:
        begin(rotation)
    cluster.delete(API_SERVICES, "v1alpha1.tap.linkerd.io")
    cluster.delete(SECRETS, "tap-k8s-tls", "linkerd-viz")
    with opened(running, tmp_path / "home", clock) as rotation:
        assert set(rotation.systems) == ALL - {"test/tap"}
        begin(rotation)
        widen(rotation)
        switch(rotation)
        narrow(rotation)
        finish(rotation)
        assert rotation.outcome().completed


def test_an_older_secret_is_found_and_written_under_its_own_names(
    running: Running, mesh: Mesh, cluster: Cluster, tmp_path: Path
) -> None:
    servers = WebhookServers(mesh, cluster, viz=False, replicas=1)
    try:
        present = cluster.get(SECRETS, INJECTOR_SECRET, "linkerd")
        data = {"crt.pem": present["data"]["tls.crt"], "key.pem": present["data"]["tls.key"]}
        older = {"name": "linkerd-proxy-injector-tls", "namespace": "linkerd"}
        cluster.create(SECRETS, {"apiVersion": "v1", "kind": "Secret", "metadata": older, "data": data})
        cluster.delete(SECRETS, INJECTOR_SECRET, "linkerd")
        (injector, *_) = installed(cluster, "linkerd")
        pair = injector.read_issuer()
        assert pair.certificate.dns_names == ("linkerd-proxy-injector.linkerd.svc",)
        (change,) = injector.ensure_issuer(pair)
        assert (change.place, change.written) == ("secret linkerd/linkerd-proxy-injector-tls", False)
    finally:
        servers.close()
