"""The sidecar injector: whom it injects, what it puts in, and where each version has it."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

from infra.lab.client import ApiError
from infra.lab.istio import injection, manifests, sidecar, webhooks
from infra.lab.workloads import SMALL, IstioInjection, objects
from tests.lab.istio.data_plane import container

if TYPE_CHECKING:
    from pathlib import Path

    from infra.lab.kubelet.runtime import Container

JSON = dict[str, Any]


def pod(**metadata: Any) -> JSON:
    base: JSON = {
        "generateName": "web-7d4b9-",
        "labels": {"app": "web", "pod-template-hash": "7d4b9", **metadata.pop("labels", {})},
        "ownerReferences": [{"kind": "ReplicaSet", "name": "web-7d4b9", "controller": True, "uid": "u"}],
    }
    ports = [{"containerPort": 8080, "name": "http"}]
    spec = {"serviceAccountName": "web", "containers": [{"name": "app", "image": "app:1", "ports": ports}]}
    return {"metadata": base | metadata, "spec": spec}


def injected(found: JSON, **options: Any) -> JSON:
    """The pod after the injector's patch."""
    settings = manifests.Options(**options).settings
    for operation in injection.patch(found, namespace="shop", settings=settings):
        assert operation["op"] == "add"
        *path, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        target: Any = found
        for part in path:
            target = target[part]
        if isinstance(target, list):
            target.insert(len(target) if last == "-" else int(last), operation["value"])
        else:
            target[last] = operation["value"]
    return found


def proxy_of(found: JSON) -> JSON:
    spec = found["spec"]
    (proxy,) = (c for c in [*spec["containers"], *spec.get("initContainers", [])] if c["name"] == "istio-proxy")
    return dict(proxy)


def env_of(container: JSON) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


@pytest.mark.parametrize(
    ("version", "annotations", "native"),
    [
        ("1.30.1", {}, True),
        ("1.27.0", {}, True),
        ("1.26.4", {}, False),
        ("1.30.1", {injection.NATIVE: "false"}, False),
        ("1.24.6", {injection.NATIVE: "true"}, True),
    ],
)
def test_the_proxy_is_a_native_sidecar_since_1_27_unless_the_pod_says_otherwise(
    version: str, annotations: dict[str, str], native: bool
) -> None:
    found = injected(pod(annotations=annotations), version=version, ca="plugin")
    names = [container["name"] for container in found["spec"]["initContainers"]]
    assert names == ["istio-init", "istio-proxy"] if native else ["istio-init"]
    assert proxy_of(found).get("restartPolicy") == ("Always" if native else None)
    status = json.loads(found["metadata"]["annotations"][injection.STATUS])
    assert (status["containers"] is None) == native
    assert status["revision"] == "default"
    assert status["volumes"] == [volume["name"] for volume in found["spec"]["volumes"]]


def test_labels_annotations_environment_and_volumes_are_the_templates() -> None:
    found = injected(pod(), xds_agent=True, leaf_seconds=40)
    labels, annotations = found["metadata"]["labels"], found["metadata"]["annotations"]
    assert labels["security.istio.io/tlsMode"] == "istio"
    assert labels["service.istio.io/canonical-name"] == "web"
    assert annotations["istio.io/rev"] == "default"
    proxy = proxy_of(found)
    assert proxy["image"] == "docker.io/istio/proxyv2:1.30.1"
    env = env_of(proxy)
    assert env["CA_ADDR"] == "istiod.istio-system.svc:15012"
    assert json.loads(env["PROXY_CONFIG"])["proxyMetadata"]["PROXY_CONFIG_XDS_AGENT"] == "true"
    assert (env["PROXY_CONFIG_XDS_AGENT"], env["SECRET_TTL"]) == ("true", "40s")
    assert (env["TRUST_DOMAIN"], env["ISTIO_META_WORKLOAD_NAME"]) == ("cluster.local", "web")
    assert env["ISTIO_META_OWNER"] == "kubernetes://apis/apps/v1/namespaces/shop/deployments/web"
    volumes = {volume["name"]: volume for volume in found["spec"]["volumes"]}
    assert volumes["istiod-ca-cert"]["configMap"] == {"name": "istio-ca-root-cert"}
    (source,) = volumes["istio-token"]["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "istio-ca"
    mounts = {mount["name"]: mount["mountPath"] for mount in proxy["volumeMounts"]}
    assert mounts["istiod-ca-cert"] == "/var/run/secrets/istio"
    assert mounts.keys() == volumes.keys()


def test_a_revision_has_its_own_istiod_and_its_own_images() -> None:
    chosen = {"revision": "asm-1-30", "namespace": "aks-istio-system", "version": "1.30.2"}
    found = injected(pod(), hub="mcr.microsoft.com/oss/v2/istio", tag="v1.30.2-1", **chosen)
    assert proxy_of(found)["image"] == "mcr.microsoft.com/oss/v2/istio/proxyv2:v1.30.2-1"
    assert env_of(proxy_of(found))["CA_ADDR"] == "istiod-asm-1-30.aks-istio-system.svc:15012"
    assert found["metadata"]["annotations"]["istio.io/rev"] == "asm-1-30"


def test_before_1_5_certificates_come_from_the_secret_of_the_service_account() -> None:
    found = injected(pod(), version="1.4.3", ca="citadel")
    volumes = {volume["name"]: volume for volume in found["spec"]["volumes"]}
    assert volumes["istio-certs"]["secret"] == {"secretName": "istio.web", "optional": True}
    assert "CA_ADDR" not in env_of(proxy_of(found))
    assert not {"istio-token", "istiod-ca-cert", "workload-socket"} & volumes.keys()


@pytest.mark.parametrize(
    ("changes", "namespace", "skipped"),
    [
        ({}, "shop", False),
        ({"labels": {injection.INJECT: "true"}}, "shop", False),
        ({"labels": {injection.INJECT: "false"}}, "shop", True),
        ({"annotations": {injection.INJECT: "false"}}, "shop", True),
        ({"labels": {injection.INJECT: "true"}, "annotations": {injection.INJECT: "false"}}, "shop", False),
        ({"annotations": {injection.STATUS: "{}"}}, "shop", True),
        ({}, "kube-system", True),
    ],
)
def test_pods_are_left_alone_as_istio_leaves_them(changes: JSON, namespace: str, skipped: bool) -> None:
    assert bool(injection.skip_reason(pod(**changes), namespace)) == skipped


def test_pods_on_the_hosts_network_are_left_alone() -> None:
    found = pod()
    found["spec"]["hostNetwork"] = True
    assert injection.skip_reason(found, "shop")


class Configured:
    """What `mutate` asks of its istiod, with the ConfigMaps of an installation."""

    def __init__(self, options: manifests.Options, container: Container) -> None:
        self.container = container
        self.client: Any = self
        self._items = {item["metadata"]["name"]: item for item in manifests.configuration(options)}

    async def get(self, path: str) -> JSON:
        name = path.rpartition("/")[2]
        if name not in self._items:
            raise ApiError(404, "NotFound", f'configmaps "{name}" not found')
        return self._items[name]


def review(found: JSON) -> JSON:
    return {"request": {"uid": "7", "kind": {"kind": "Pod"}, "namespace": "shop", "object": found}}


def test_the_webhook_reads_its_configuration_and_answers_with_a_patch(tmp_path: Path) -> None:
    istiod = Configured(manifests.Options(leaf_seconds=77), container(tmp_path, env={"REVISION": "default"}))
    response = asyncio.run(injection.mutate(review(pod()), istiod))["response"]
    assert (response["uid"], response["allowed"], response["patchType"]) == ("7", True, "JSONPatch")
    assert "77s" in base64.b64decode(response["patch"]).decode()
    untouched = asyncio.run(injection.mutate(review(pod(labels={injection.INJECT: "false"})), istiod))["response"]
    assert untouched == {"uid": "7", "allowed": True}


def test_a_webhook_without_its_configuration_refuses_and_says_why(tmp_path: Path) -> None:
    istiod = Configured(manifests.Options(), container(tmp_path, env={"REVISION": "canary"}))
    response = asyncio.run(injection.mutate(review(pod()), istiod))["response"]
    assert response["allowed"] is False
    assert "istio-sidecar-injector-canary" in response["status"]["message"]


def test_webhooks_carry_the_names_and_labels_that_istiod_patches_by() -> None:
    default, canary = manifests.Options(), manifests.Options(revision="canary")
    assert webhooks.mutating(default)["metadata"]["name"] == "istio-sidecar-injector"
    assert webhooks.mutating(canary)["metadata"]["name"] == "istio-sidecar-injector-canary"
    assert webhooks.validating(default)["metadata"]["name"] == "istio-validator-istio-system"
    assert webhooks.validating(canary)["metadata"]["name"] == "istio-validator-canary-istio-system"
    for options in (default, canary):
        for found in (webhooks.mutating(options), webhooks.validating(options)):
            assert found["metadata"]["labels"]["istio.io/rev"] == options.revision
            assert not any("caBundle" in entry["clientConfig"] for entry in found["webhooks"])
    assert len(webhooks.mutating(default)["webhooks"]) == 4
    assert len(webhooks.mutating(canary)["webhooks"]) == 2


@pytest.mark.parametrize(("version", "ca"), [("1.4.3", "plugin"), ("1.30.1", "citadel"), ("1.30.1", "vault")])
def test_versions_and_authorities_that_do_not_go_together_are_refused(version: str, ca: str) -> None:
    with pytest.raises(ValueError, match=r"Istio|ca is one of"):
        manifests.Options(version=version, ca=ca)


def test_what_is_no_version_is_refused() -> None:
    with pytest.raises(ValueError, match="no version"):
        sidecar.minor("latest")


def test_workloads_are_marked_by_labels_and_spread_over_revisions() -> None:
    def labels(injected_by: IstioInjection) -> dict[tuple[str, str], dict[str, str]]:
        found = objects(SMALL, injected_by)
        marked = {}
        for item in found:
            template = (item.get("spec") or {}).get("template") or item
            marked[item["kind"], item["metadata"]["name"]] = template["metadata"].get("labels") or {}
        return marked

    default = labels(IstioInjection())
    assert default["Namespace", "shop"] == {"istio-injection": "enabled"}
    assert default["Namespace", "edge"] == {}
    assert default["Deployment", "gateway"]["sidecar.istio.io/inject"] == "true"
    two = labels(IstioInjection(("asm-1-29", "asm-1-30")))
    assert two["Namespace", "shop"] == {"istio.io/rev": "asm-1-29"}
    assert two["Deployment", "gateway"]["istio.io/rev"] == "asm-1-30"


def test_before_1_10_every_meshed_namespace_is_marked_and_others_pods_opt_out() -> None:
    estate = SMALL.marked_everywhere()
    assert estate.meshed_pods(3) == SMALL.meshed_pods(3)
    found = {item["metadata"]["name"]: item for item in objects(estate, IstioInjection(annotated=True))}
    template = found["static-files"]["spec"]["template"]
    assert template["metadata"]["annotations"] == {"sidecar.istio.io/inject": "false"}
