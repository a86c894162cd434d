"""Which trust system is meant where nobody says so: what runs in the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from capstan.cli.detecting import detect
from capstan.cli.options import DomainOptions
from capstan.cluster.resources import DEPLOYMENTS, NAMESPACES
from capstan.config import ClusterRef, System
from capstan.errors import InvalidInput, Unreachable
from tests.support.apiserver import Running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from capstan.cluster.client import Cluster

CONTROL_PLANES = {
    System.LINKERD: ("linkerd", "linkerd-identity", {"linkerd.io/control-plane-component": "identity"}),
    System.ISTIO: ("istio-system", "istiod", {"app": "istiod"}),
    System.AKS_ISTIO: ("aks-istio-system", "istiod-asm-1-30", {"app": "istiod"}),
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    running = Running(tmp_path_factory.mktemp("apiserver"))
    yield running
    running.stop()


@pytest.fixture
def cluster(running: Running) -> Iterator[Cluster]:
    cluster = running.connect()
    for system in System:
        if cluster.find(NAMESPACES, system.namespace) is None:
            cluster.create(
                NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": system.namespace}}
            )
    yield cluster
    for namespace, _, _ in CONTROL_PLANES.values():
        for item in cluster.list(DEPLOYMENTS, namespace).items:
            cluster.delete(DEPLOYMENTS, item["metadata"]["name"], namespace)
    cluster.close()


@pytest.fixture
def install(cluster: Cluster) -> Callable[..., None]:
    def install(*systems: System, namespace: str = "", labels: dict[str, str] | None = None) -> None:
        for system in systems:
            place, name, own = CONTROL_PLANES[system]
            pod = {"metadata": {"labels": {"x": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
            body: dict[str, Any] = {
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": name, "namespace": namespace or place, "labels": labels or own},
                "spec": {"selector": {"matchLabels": {"x": name}}, "template": pod},
            }  # fmt: skip
            cluster.create(DEPLOYMENTS, body)

    return install


def options(running: Running, **more: Any) -> DomainOptions:
    return DomainOptions(kubeconfig=running.server.kubeconfig, **more)


@pytest.mark.parametrize("system", list(System))
def test_the_control_plane_that_runs_says_what_system_it_is_and_its_names_follow(
    running: Running, install: Callable[..., None], system: System
) -> None:
    install(system)
    domain = options(running, key_vault="https://v.example" if system is System.AKS_ISTIO else "").resolve()
    assert (domain.system, domain.name) == (system, system.value)
    assert domain.control_plane_namespace == CONTROL_PLANES[system][0]


def test_citadel_is_an_istio_too(running: Running, install: Callable[..., None]) -> None:
    install(System.ISTIO, labels={"istio": "citadel"})
    assert options(running).resolve().system is System.ISTIO


def test_where_nothing_is_found_it_is_linkerd(running: Running, cluster: Cluster) -> None:
    assert options(running).resolve().system is System.LINKERD


def test_two_systems_in_one_cluster_have_to_be_told_apart_by_a_person(
    running: Running, install: Callable[..., None]
) -> None:
    install(System.LINKERD, System.ISTIO)
    with pytest.raises(InvalidInput, match="more than one trust system") as refused:
        options(running).resolve()
    assert refused.value.observed == "linkerd, istio"
    assert options(running, system=System.ISTIO).resolve().name == "istio"


def test_an_istio_command_looks_for_istio_alone(running: Running, install: Callable[..., None]) -> None:
    install(System.LINKERD, System.ISTIO)
    assert options(running).resolve((System.ISTIO, System.AKS_ISTIO)).system is System.ISTIO
    with pytest.raises(InvalidInput, match="other trust systems"):
        options(running, system=System.LINKERD).resolve((System.ISTIO, System.AKS_ISTIO))


def test_a_namespace_that_is_named_is_the_only_one_looked_into(
    running: Running, cluster: Cluster, install: Callable[..., None]
) -> None:
    cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "mesh"}})
    install(System.LINKERD)
    install(System.ISTIO, namespace="mesh")
    found = options(running, namespace="mesh").resolve()
    assert (found.system, found.control_plane_namespace) == (System.ISTIO, "mesh")
    cluster.delete(DEPLOYMENTS, "istiod", "mesh")


def test_the_namespace_of_the_add_on_holds_the_add_on(running: Running, install: Callable[..., None]) -> None:
    install(System.AKS_ISTIO)
    reference = ClusterRef(kubeconfig=str(running.server.kubeconfig))
    assert detect(reference, "aks-istio-system") is System.AKS_ISTIO


def test_a_cluster_that_does_not_answer_is_no_linkerd(tmp_path: Path) -> None:
    file = tmp_path / "kubeconfig"
    file.write_text(
        """{"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {}}]}"""
    )
    with pytest.raises(Unreachable):
        DomainOptions(kubeconfig=file).resolve()


def test_options_of_the_add_on_are_refused_elsewhere_and_ids_go_with_contexts(running: Running) -> None:
    with pytest.raises(InvalidInput, match="add-on's alone"):
        options(running, system=System.ISTIO, key_vault="https://v.example").resolve()
    with pytest.raises(InvalidInput, match="its own id"):
        options(running, system=System.AKS_ISTIO, cluster_id=("/a", "/b")).resolve()
    (cluster,) = (
        options(running, system=System.AKS_ISTIO, cluster_id=("/a",), ca_key_object_name="k").resolve().clusters
    )
    assert cluster.plugin_ca is not None
    assert (cluster.plugin_ca.cluster_id, cluster.plugin_ca.ca_key) == ("/a", "k")
