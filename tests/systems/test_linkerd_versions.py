"""Linkerd 2.12 to 2.20: the objects as each version has them, and that each is read for what it is.

The lab renders them by the charts at the tags stable-2.12.0, ..., version-2.20 (`infra/lab/linkerd/versions.py` says
what differs).
"""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from capstan.cluster.resources import CONFIG_MAPS, DEPLOYMENTS, NAMESPACES
from capstan.systems.linkerd.identity import admin_port as identity_port
from capstan.systems.linkerd.identity_texts import certificates_signed, issuer_end
from capstan.systems.linkerd.layout import CONTROL_PLANE, Scheme, read_layout
from capstan.systems.linkerd.pods import admin_port, literal_anchors, local_name, proxy_container, role_of
from capstan.trust.observation import Role
from infra.lab.linkerd import inject, install, manifests
from infra.lab.linkerd.identity import Identity
from infra.lab.linkerd.metrics import proxy_metrics
from infra.lab.services import ServiceAddresses
from tests.lab.linkerd.test_injection import apply
from tests.pki.ca import NOW
from tests.support.apiserver import Running

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.cluster.client import Cluster

LINES = {
    "2.12": "stable-2.12.4",
    "2.13": "stable-2.13.7",
    "2.14": "stable-2.14.10",
    "2.15": "edge-24.2.4",
    "2.16": "edge-24.8.2",
    "2.17": "edge-24.11.8",
    "2.18": "edge-25.4.4",
    "2.19": "edge-25.10.7",
    "2.20": "edge-26.8.3",
}
NATIVE_SINCE, OWN_PORT_NAMES_SINCE, METRIC_SINCE = "2.20", "2.19", "2.18"


def each(what: str) -> Any:
    """One case for each version line."""
    return pytest.mark.parametrize(
        ("line", "version"),
        [
            pytest.param(*item, id=item[0], marks=pytest.mark.proves("versions", item[0], what))
            for item in LINES.items()
        ],
    )


def rendered(version: str, **options: Any) -> tuple[manifests.Options, list[dict[str, Any]], str]:
    """The objects of an installation, and its bundle."""
    chosen = manifests.Options(version=version, **options)
    addresses = ServiceAddresses()
    try:
        material = install.mint(addresses, chosen)
        return chosen, manifests.objects(chosen, material), material.bundle
    finally:
        addresses.close()


def deployments(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {item["metadata"]["name"]: item for item in objects if item["kind"] == "Deployment"}


def born(template: dict[str, Any], namespace: str, name: str) -> dict[str, Any]:
    """A pod of a template."""
    metadata = {**template["metadata"], "namespace": namespace, "name": name}
    return {"metadata": metadata, "spec": template["spec"], "status": {}}


def injected(version: str, options: manifests.Options, objects: list[dict[str, Any]], bundle: str) -> dict[str, Any]:
    """A pod as this version's injector makes it, by the values of this version's chart."""
    (config,) = [item for item in objects if item["metadata"]["name"] == "linkerd-config"]
    template = {"metadata": {}, "spec": {"serviceAccountName": "web", "containers": [{"name": "app", "image": "x"}]}}
    patch = inject.patch(
        template, namespace="shop", roots_pem=bundle,
        config=inject.config_from_values(config["data"]["values"], options.namespace), owner=("Deployment", "web"),
    )  # fmt: skip
    assert version in config["data"]["values"]
    return born(apply(template, patch), "shop", "web-1")


@each("where the proxy is, and where its roots come from: written in, or by reference to the ConfigMap")
def test_the_proxy_and_its_roots_are_found_wherever_the_version_has_them(line: str, version: str) -> None:
    options, objects, bundle = rendered(version)
    for name, item in deployments(objects).items():
        pod = born(item["spec"]["template"], "linkerd", f"{name}-1")
        container = proxy_container(pod["spec"])
        assert container is not None
        group = "initContainers" if line >= NATIVE_SINCE and name != "linkerd-identity" else "containers"
        assert container in pod["spec"][group]
        assert literal_anchors(container) is None
        (entry,) = [e for e in container["env"] if e["name"] == "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS"]
        reference = {"name": "linkerd-identity-trust-roots", "key": "ca-bundle.crt"}
        assert entry["valueFrom"] == {"configMapKeyRef": reference}
        assert admin_port(container) == 4191
        assert local_name(pod, container) == f"{name}.linkerd.serviceaccount.identity.linkerd.cluster.local"
        assert (role_of(pod, "linkerd") is Role.CONTROL_PLANE) is (name in CONTROL_PLANE)
    pod = injected(version, options, objects, bundle)
    container = proxy_container(pod["spec"])
    assert container is not None
    assert container in pod["spec"]["initContainers" if line >= NATIVE_SINCE else "containers"]
    assert literal_anchors(container) == bundle
    assert local_name(pod, container) == "web.shop.serviceaccount.identity.linkerd.cluster.local"
    assert role_of(pod, "linkerd") is Role.WORKLOAD


@pytest.mark.parametrize("line", ["2.15", "2.16", "2.17", "2.18", "2.19"])
def test_a_native_sidecar_by_choice_is_found_too(line: str) -> None:
    options, objects, bundle = rendered(LINES[line], native_sidecar=True)
    pod = injected(LINES[line], options, objects, bundle)
    assert proxy_container(pod["spec"]) in pod["spec"]["initContainers"]


@pytest.mark.proves("versions", "2.12", "charts before 2.15 know no native sidecars, whatever they are told")
@pytest.mark.parametrize("line", ["2.12", "2.13", "2.14"])
def test_older_charts_know_no_native_sidecars(line: str) -> None:
    options, objects, bundle = rendered(LINES[line], native_sidecar=True)
    pod = injected(LINES[line], options, objects, bundle)
    assert proxy_container(pod["spec"]) in pod["spec"]["containers"]


@each("the annotation with the roots' hash: over the raw bundle where injected, over the value in the control plane")
def test_the_annotations_have_the_hashes_of_their_texts(line: str, version: str) -> None:
    options, objects, bundle = rendered(version)
    name = "linkerd.io/trust-root-sha256"
    (roots,) = [item for item in objects if item["metadata"]["name"] == "linkerd-identity-trust-roots"]
    raw = hashlib.sha256(roots["data"]["ca-bundle.crt"].encode()).hexdigest()
    assert injected(version, options, objects, bundle)["metadata"]["annotations"][name] == raw
    for item in deployments(objects).values():
        annotations = item["spec"]["template"]["metadata"]["annotations"]
        # Of the value, which ends with a newline: other bytes, another hash, the same roots.
        assert annotations[name] == hashlib.sha256((bundle + "\n").encode()).hexdigest() != raw
        assert annotations["linkerd.io/proxy-version"] == version
    del line


@pytest.mark.proves("versions", "2.12", "2.12.0 does not note the roots' hash on the pods it injects; 2.12.1 does")
def test_the_first_of_2_12_does_not_hash_what_it_injects() -> None:
    options, objects, bundle = rendered("stable-2.12.0")
    annotations = injected("stable-2.12.0", options, objects, bundle)["metadata"]["annotations"]
    assert "linkerd.io/trust-root-sha256" not in annotations


@each("identity's HTTP port by the name it has: admin-http, ident-admin since 2.19")
def test_identitys_own_port_is_found_by_the_name_that_the_version_gives_it(line: str, version: str) -> None:
    _, objects, _ = rendered(version)
    spec = deployments(objects)["linkerd-identity"]["spec"]["template"]["spec"]
    (identity,) = [container for container in spec["containers"] if container["name"] == "identity"]
    names = [port["name"] for port in identity["ports"]]
    assert names == (["ident-grpc", "ident-admin"] if line >= OWN_PORT_NAMES_SINCE else ["grpc", "admin-http"])
    moved = [{**port, "containerPort": 19990} if port["containerPort"] == 9990 else port for port in identity["ports"]]
    assert identity_port({"spec": spec}) == 9990
    assert identity_port({"spec": {"containers": [{**identity, "ports": moved}]}}) == 19990


@each("what identity says of its issuer in its metrics: nothing before 2.18, when it ends since")
def test_identitys_word_of_its_issuer_is_read_where_the_version_has_it(line: str, version: str) -> None:
    container = SimpleNamespace(
        args=["identity"], image=f"cr.l5d.io/linkerd/controller:{version}", pod={"metadata": {}}, node="node-1"
    )
    identity = Identity(container)  # type: ignore[arg-type]  # what its metrics need of a container
    end = NOW.replace(year=NOW.year + 1)
    identity._issuer = SimpleNamespace(certificate=SimpleNamespace(not_valid_after_utc=end))  # type: ignore[assignment]
    text = "\n".join(identity._metric_lines())
    found = issuer_end(text, identity._now())
    if line >= METRIC_SINCE:
        assert found is not None
        assert abs((found - end).total_seconds()) < 5
    else:
        assert found is None
    assert certificates_signed(text) == (None, 0)


FAMILIES = {
    "2.12": "identity_cert_refresh_count",
    "2.13": "identity_cert_refresh_count",
    "2.14": "identity_cert_refresh_count",
    "2.15": 'identity_cert_refreshes_total{result="ok"}',
}


@each("the proxy's certificate metrics by the version's names; no gate of ours is built on them")
def test_the_lab_has_the_proxys_metrics_under_the_names_of_the_version(line: str, version: str) -> None:
    names = [sample.rpartition(" ")[0] for sample in proxy_metrics(version, expires=1, refreshed=1, ok=1, failed=0)]
    assert FAMILIES.get(line, 'control_identity_cert_refreshes_total{result="ok"}') in names
    assert all(name.startswith("control_") is (line >= "2.16") for name in names)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    running = Running(tmp_path_factory.mktemp("apiserver"))
    cluster = running.connect()
    yield cluster
    cluster.close()
    running.stop()


@each("how it is installed: flags, scheme, version string, trust domain, as an API server keeps the objects")
@pytest.mark.parametrize("scheme", list(Scheme), ids=lambda scheme: scheme.name.lower())
def test_an_installation_of_each_version_is_read_from_its_objects(
    cluster: Cluster, line: str, version: str, scheme: Scheme
) -> None:
    namespace = f"linkerd-{line.replace('.', '-')}-{scheme.name.lower()}"
    _, objects, _ = rendered(version, namespace=namespace, scheme=str(scheme), leaf_seconds=86400, skew_seconds=20)
    cluster.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    for item in objects:
        name = item["metadata"]["name"]
        if name in ("linkerd-config", "linkerd-identity"):
            resource = {"ConfigMap": CONFIG_MAPS, "Deployment": DEPLOYMENTS}.get(item["kind"])
            if resource is not None:
                cluster.create(resource, item)
    layout = read_layout(cluster, namespace)
    assert (layout.version, layout.scheme, layout.trust_domain) == (version, scheme, "cluster.local")
    assert layout.leaf_lifetime == 24 * 3600 + 40
    assert layout.identity_name == f"identity.{namespace}.cluster.local"
    assert not layout.external_ca
