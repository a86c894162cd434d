"""The roles in infra/kubernetes are enough to read an Istio, and every right of the Istio reader is needed for it."""

from __future__ import annotations

import copy
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from kubernetes import client as kubernetes_client

from capstan.cluster.client import Cluster
from capstan.cluster.resources import Resource
from capstan.errors import Denied
from capstan.systems.base import Status
from capstan.systems.istio.adapter import Istio
from tests.support.apiserver import Running
from tests.support.istio_mesh import IstioMesh
from tests.support.manifests import KUBERNETES, documents, resources

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP = "rbac.authorization.k8s.io"
RBAC = {
    "ClusterRole": Resource(GROUP, "v1", "clusterroles", "ClusterRole", namespaced=False),
    "ClusterRoleBinding": Resource(GROUP, "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False),
    "Role": Resource(GROUP, "v1", "roles", "Role"),
    "RoleBinding": Resource(GROUP, "v1", "rolebindings", "RoleBinding"),
}
READER = documents(KUBERNETES / "istio" / "reader.yaml")
RULES = [
    pytest.param(item, index, id=f"{item['kind']} {item['metadata'].get('namespace', '')} {rule['resources'][0]}")
    for item in READER
    for index, rule in enumerate(item.get("rules", ()))
]


class World:
    """A mesh in order, and a reader of it with the rights of the manifests."""

    def __init__(self, running: Running) -> None:
        self.admin = running.connect(sleep=lambda _seconds: None)
        self.mesh = IstioMesh(running, self.admin)
        self.mesh.standard()
        for namespace in ("linkerd", "capstan"):
            self.mesh.mesh.namespace(namespace)
        for item in [*resources(KUBERNETES / "cluster"), *resources(KUBERNETES / "istio")]:
            if item["kind"] == "ServiceAccount":
                self.mesh.mesh.account(item["metadata"]["namespace"], item["metadata"]["name"])
            elif item["kind"] in RBAC:
                self.admin.create(RBAC[item["kind"]], item)
        self.reader = self._as("capstan-reader")

    def _as(self, account: str) -> Cluster:
        token = self.admin.request_token(account, "capstan", "https://kubernetes.default.svc.cluster.local")
        trusted = self.admin.configuration
        configuration = kubernetes_client.Configuration(
            host=trusted.host, api_key={"authorization": token}, api_key_prefix={"authorization": "Bearer"}
        )
        configuration.ssl_ca_cert = trusted.ssl_ca_cert
        return Cluster("reader", configuration, sleep=lambda _seconds: None)

    def replace(self, item: dict[str, Any], rules: list[dict[str, Any]]) -> None:
        resource = RBAC[item["kind"]]
        held = self.admin.get(resource, item["metadata"]["name"], item["metadata"].get("namespace", ""))
        self.admin.replace(resource, {**held, "apiVersion": f"{GROUP}/v1", "kind": item["kind"], "rules": rules})

    def look(self) -> tuple[list[str], list[Status]]:
        """What the reader could not read, and how its checks came out.

        Raises:
            Denied: It could not read at all.
        """
        istio = Istio(self.reader)
        view = istio.view()
        unread = [item.signer.unreadable for item in view.istiods] + [item.peer.unreadable for item in view.proxies]
        return [*view.troubles, *filter(None, unread)], [item.status for item in istio.checks(now=datetime.now(UTC))]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    running = Running(tmp_path_factory.mktemp("apiserver"))
    world = World(running)
    yield world
    world.mesh.close()
    world.reader.close()
    world.admin.close()
    running.stop()


def test_the_reader_reads_all_of_a_mesh(world):
    unread, statuses = world.look()
    assert unread == []
    assert set(statuses) <= {Status.OK, Status.SKIPPED}


@pytest.mark.parametrize(("item", "index"), RULES)
def test_without_any_one_of_its_rights_something_stays_unread(world, item, index):
    rules = copy.deepcopy(item["rules"])
    del rules[index]
    world.replace(item, rules)
    try:
        unread, statuses = world.look()
    except Denied:
        unread, statuses = ["all of it"], []
    finally:
        world.replace(item, item["rules"])
    assert unread or Status.ERROR in statuses


def test_the_reader_of_istio_can_change_nothing(world):
    verbs = {verb for item in READER for rule in item.get("rules", ()) for verb in rule["verbs"]}
    created = {
        name
        for item in READER
        for rule in item.get("rules", ())
        if "create" in rule["verbs"]
        for name in rule["resources"]
    }
    assert verbs == {"get", "list", "create"}
    assert created == {"serviceaccounts/token"}


def test_the_reader_gets_a_token_of_no_other_account(world):
    with pytest.raises(Denied):
        world.reader.request_token("default", "capstan-system", "istio-ca")
