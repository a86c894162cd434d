"""The roles in infra/kubernetes are enough to change an Istio's CA, and every right of the rotator is needed for it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
from kubernetes import client as kubernetes_client

from capstan.cluster.client import Cluster
from capstan.cluster.resources import NAMESPACES, SECRETS, SERVICE_ACCOUNTS, Resource
from capstan.errors import Denied
from capstan.systems.istio import delivery
from capstan.systems.istio.cacerts import CacertsSource
from capstan.systems.istio.layout import read_layout
from capstan.systems.istio.self_signed import SelfSignedSource
from tests.support.apiserver import Running
from tests.support.manifests import KUBERNETES, documents, resources
from tests.systems.istio.test_writing_redate import control_plane, istiods_root, put_root
from tests.systems.istio.writing import Ca, clock, pem

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP = "rbac.authorization.k8s.io"
RBAC = {
    "ClusterRole": Resource(GROUP, "v1", "clusterroles", "ClusterRole", namespaced=False),
    "ClusterRoleBinding": Resource(GROUP, "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False),
    "Role": Resource(GROUP, "v1", "roles", "Role"),
    "RoleBinding": Resource(GROUP, "v1", "rolebindings", "RoleBinding"),
}
(ROLE,) = (item for item in documents(KUBERNETES / "istio" / "rotator.yaml") if item["kind"] == "Role")
NEW = Ca.of("B")


class World:
    """A self-signed control plane, and a rotator with the rights of the manifests."""

    def __init__(self, running: Running) -> None:
        self.admin = running.connect(sleep=lambda _seconds: None)
        for name in ("istio-system", "linkerd", "capstan", "capstan-system"):
            self.admin.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        control_plane(self.admin, "istio-system")
        self.own = istiods_root()
        put_root(self.admin, "istio-system", self.own)
        for item in [*resources(KUBERNETES / "cluster"), *resources(KUBERNETES / "istio")]:
            if item["kind"] == "ServiceAccount":
                self.admin.create(SERVICE_ACCOUNTS, item)
            elif item["kind"] in RBAC:
                self.admin.create(RBAC[item["kind"]], item)
        token = self.admin.request_token("capstan-rotator", "capstan", "https://kubernetes.default.svc.cluster.local")
        trusted = self.admin.configuration
        configuration = kubernetes_client.Configuration(
            host=trusted.host, api_key={"authorization": token}, api_key_prefix={"authorization": "Bearer"}
        )
        configuration.ssl_ca_cert = trusted.ssl_ca_cert
        self.rotator = Cluster("rotator", configuration, sleep=lambda _seconds: None)

    def rights(self, rules: list[dict[str, Any]]) -> None:
        held = self.admin.get(RBAC["Role"], ROLE["metadata"]["name"], "istio-system")
        self.admin.replace(RBAC["Role"], {**held, "apiVersion": f"{GROUP}/v1", "kind": "Role", "rules": rules})

    def change(self) -> None:
        """Every kind of write, and every look that only a rotation takes."""
        self.admin.delete(SECRETS, "cacerts", "istio-system")
        roots = pem(self.own.certificate, NEW.root.certificate)
        SelfSignedSource(self.rotator, "istio-system", now=clock).ensure(root_cert=roots)
        CacertsSource(self.rotator, "istio-system", now=clock).ensure(issuer=NEW.material)
        delivery.detect(self.rotator, read_layout(self.rotator, "istio-system"))
        self.rotator.list(delivery.POD_STATUSES, "istio-system")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    running = Running(tmp_path_factory.mktemp("apiserver"))
    world = World(running)
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "secretproviderclasspodstatuses.secrets-store.csi.x-k8s.io"},
        "spec": {
            "group": "secrets-store.csi.x-k8s.io", "scope": "Namespaced",
            "names": {
                "kind": "SecretProviderClassPodStatus", "plural": "secretproviderclasspodstatuses",
                "listKind": "SecretProviderClassPodStatusList", "singular": "secretproviderclasspodstatus",
            },
            "versions": [{
                "name": "v1", "served": True, "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }],
        },
    }  # fmt: skip
    kind = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", False)
    world.admin.create(kind, definition)
    yield world
    world.rotator.close()
    world.admin.close()
    running.stop()


def test_the_rotator_can_change_a_ca(world: World) -> None:
    world.change()


@pytest.mark.parametrize("index", range(len(ROLE["rules"])))
def test_without_any_one_of_its_rights_it_cannot(world: World, index: int) -> None:
    rules = copy.deepcopy(ROLE["rules"])
    del rules[index]
    world.rights(rules)
    try:
        with pytest.raises(Denied):
            world.change()
    finally:
        world.rights(ROLE["rules"])


def test_it_can_write_no_other_secret_and_delete_none(world: World) -> None:
    verbs = {verb for rule in ROLE["rules"] for verb in rule["verbs"]}
    assert verbs == {"update", "create", "list"}
    with pytest.raises(Denied):
        world.rotator.delete(SECRETS, "cacerts", "istio-system")
