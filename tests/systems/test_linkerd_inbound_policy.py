"""A proxy under a policy that lets nobody in is read all the same: from inside its pod, where a port-forward ends."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import secrets as random

import pytest
from cryptography import x509

from capstan.cluster.resources import CONFIG_MAPS
from capstan.errors import NotFound
from capstan.pki.bundle import Bundle
from capstan.systems.linkerd.observe import live_chain, live_roots, observe
from infra.lab.kubelet.runtime import Container
from infra.lab.linkerd import inject, proxy, sidecar
from infra.lab.linkerd.material import Key, Material
from tests.pki.ca import CLIENT, DAY, NOW, SERVER, make
from tests.support.apiserver import Running
from tests.support.mesh import Mesh

ROOT = make("root.linkerd.cluster.local", start=NOW - 365 * DAY, end=NOW + 3650 * DAY)
ISSUER = make("identity.linkerd.cluster.local", ROOT, path_length=0, start=NOW - 365 * DAY, end=NOW + 3650 * DAY)
ROOTS = Bundle.of(ROOT.certificate)
NAME = "default.shop.serviceaccount.identity.linkerd.cluster.local"
PORT = 4191
ROW = pytest.mark.proves(
    "faults", "deny policy on the admin port", "port-forward comes from the pod itself, and is let in"
)


class Meshed(Mesh):
    """Pods that run the lab's proxy, each under a policy of its own."""

    def __init__(self, running, cluster, directory):
        super().__init__(running, cluster)
        self.running, self.directory = running, directory
        self.tasks = []
        self.containers = []

    def proxy(self, policy, *, certified=True):
        """Its pod's name, and its address."""
        name = f"web-{random.token_hex(3)}"
        config = sidecar.SidecarConfig("linkerd", "edge-26.8.3", "cluster.local", native=True)
        pod = {
            "metadata": {"name": name, "annotations": {inject.INBOUND_POLICY: policy}},
            "spec": {"containers": [{"name": "app", "image": "app:1"}], "serviceAccountName": "default"},
        }
        roots = sidecar.literal_roots(ROOTS.pem())
        container = sidecar.proxy_container(config, roots, native=True, inbound_policy=policy)
        spec = {**pod["spec"], "initContainers": [container], "volumes": sidecar.volumes()}
        address = self.pod("shop", name, spec, labels={"linkerd.io/control-plane-ns": "linkerd"})
        directory = self.directory / name
        directory.mkdir()
        env = {each["name"]: each["value"] for each in container["env"] if "value" in each}
        running = Container(
            pod={"metadata": {"uid": name}}, name="linkerd-proxy", image="cr.l5d.io/linkerd/proxy:edge-26.8.3",
            root=directory, ip=address, env={**env, proxy.LOCAL_NAME: NAME},
            mounts={sidecar.END_ENTITY_MOUNT: directory / "end-entity", sidecar.TOKEN_MOUNT: directory / "token"},
        )  # fmt: skip
        process = proxy.Proxy(running, lambda _: "127.0.0.1:1")  # there is no identity to ask: it is given its leaf
        if certified:
            process.material = self.material(directory)
        self.containers.append(running)
        self.tasks.append(self.running.call(begin(process)))
        self.running.call(listening(address))
        return name, address

    def material(self, directory):
        pair = make(NAME, ISSUER, ca=False, eku=[SERVER, CLIENT], san=[x509.DNSName(NAME)], end=NOW + 365 * DAY)
        return Material(NAME, ROOTS.pem(), Key(pair.key, b""), (pair.certificate.raw,), directory).load()

    def close(self):
        for container in self.containers:
            self.running.loop.call_soon_threadsafe(container.stopping.set)
        self.running.call(ended(self.tasks))
        super().close()


async def begin(process):
    return asyncio.create_task(process.run())


async def listening(address):
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(address, PORT)
                writer.close()
                return
            await asyncio.sleep(0.01)


async def ended(tasks):
    await asyncio.gather(*tasks)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    running = Running(tmp_path_factory.mktemp("apiserver"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def cluster(running):
    cluster = running.connect(sleep=lambda _seconds: None)
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def meshed(running, cluster, tmp_path_factory):
    meshed = Meshed(running, cluster, tmp_path_factory.mktemp("proxies"))
    yield meshed
    meshed.close()


def dialled(address, path):
    """Status of a GET from elsewhere than the pod, as the API server's pods/proxy and a scraper send it."""
    connection = http.client.HTTPConnection(address, PORT, timeout=5, source_address=("127.0.0.1", 0))
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


@ROW
@pytest.mark.parametrize("policy", ["deny", "all-authenticated", "cluster-authenticated"])
def test_a_policy_that_turns_everybody_else_away_is_no_hindrance_to_a_port_forward(meshed, cluster, policy):
    name, address = meshed.proxy(policy)
    assert dialled(address, f"/env.json?{proxy.TRUST_ANCHORS}") == 403
    assert dialled(address, "/metrics") == 403
    assert [dialled(address, path) for path in ("/live", "/ready")] == [200, 200]  # the kubelet's probes
    assert live_roots(cluster, "shop", name, PORT).fingerprints == ROOTS.fingerprints
    (leaf,) = live_chain(cluster, "shop", name, PORT, NAME)
    assert leaf.signed_by(ISSUER.certificate)


@ROW
def test_an_observation_sees_roots_and_leaf_of_a_pod_that_denies(meshed, cluster):
    name, _ = meshed.proxy("deny")
    meshed.namespace("linkerd")
    data = {"ca-bundle.crt": ROOTS.pem()}
    metadata = {"name": "linkerd-identity-trust-roots", "namespace": "linkerd"}
    cluster.create(CONFIG_MAPS, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data})
    template = {"metadata": {"labels": {"app": "i"}}, "spec": {"containers": [{"name": "identity", "image": "i:1"}]}}
    meshed.deployment("linkerd", "linkerd-identity", template)
    view = observe(
        cluster, "linkerd", [ISSUER.certificate], only=lambda pod: pod["metadata"]["name"] == name, now=lambda: NOW
    )
    (peer,) = view.observation.peers
    assert peer.unreadable == ""
    assert peer.trusts == ROOTS.fingerprints
    assert peer.leaf is not None
    assert peer.leaf.issuer == ISSUER.certificate.fingerprint


def test_an_open_policy_lets_anybody_read(meshed):
    for policy in ("all-unauthenticated", "audit"):
        _, address = meshed.proxy(policy)
        assert dialled(address, f"/env.json?{proxy.TRUST_ANCHORS}") == 200


@ROW
def test_a_proxy_that_never_reached_the_policy_controller_refuses_even_its_own_pod_and_is_said_to(meshed, cluster):
    name, address = meshed.proxy("deny", certified=False)
    assert dialled(address, "/ready") == 403
    with pytest.raises(NotFound) as caught:
        live_roots(cluster, "shop", name, PORT)
    assert "HTTP 403" in caught.value.observed
    assert "has not reached the policy controller" in caught.value.observed


@pytest.mark.parametrize(
    ("own", "theirs", "installed", "policy"),
    [
        ({}, {}, "all-unauthenticated", "all-unauthenticated"),
        ({}, {}, "deny", "deny"),
        ({}, {inject.INBOUND_POLICY: "deny"}, "all-unauthenticated", "deny"),
        ({inject.INBOUND_POLICY: "audit"}, {inject.INBOUND_POLICY: "deny"}, "deny", "audit"),
        ({inject.INBOUND_POLICY: "nobody"}, {}, "cluster-authenticated", "cluster-authenticated"),
    ],
)
def test_the_pods_annotation_comes_before_the_namespaces_and_that_before_the_installations(
    own, theirs, installed, policy
):
    config = inject.config_from_values(f"proxy: {{defaultInboundPolicy: {installed}}}", "linkerd")
    pod = {"metadata": {"annotations": own}, "spec": {"containers": [{"name": "app", "image": "app:1"}]}}
    patch = inject.patch(
        pod, namespace="shop", roots_pem="PEM", config=config, owner=("Pod", "x"), namespace_annotations=theirs
    )
    values = [
        {entry["name"]: entry.get("value") for entry in container["env"]}
        for operation in patch
        for container in (operation["value"] if isinstance(operation["value"], list) else [operation["value"]])
        if isinstance(container, dict) and container.get("name") == sidecar.CONTAINER
    ]
    assert [each[proxy.INBOUND_POLICY] for each in values] == [policy]


def test_a_policy_that_is_none_keeps_a_proxy_from_starting(meshed):
    directory = meshed.directory / "broken"
    container = Container(
        pod={"metadata": {"uid": "x"}}, name="linkerd-proxy", image="p:1", root=directory,
        env={proxy.LOCAL_NAME: NAME, proxy.TRUST_ANCHORS: ROOTS.pem(), proxy.INBOUND_POLICY: "nobody"},
    )  # fmt: skip
    assert meshed.running.call(proxy.Proxy(container, lambda _: "").run()) == 64
