"""kubectl, unmodified, against the lab's API server with its controllers."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.lab.apiserver.lab_server import LabServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on PATH"),
    pytest.mark.slow,
    pytest.mark.timeout(120),
]

DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web", "labels": {"app": "web"}},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "main", "image": "registry.example/web:1"}]},
        },
    },
}


@pytest.fixture(scope="module")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    directory = tmp_path_factory.mktemp("kubectl")
    with LabServer(directory / "lab", nodes=2, controllers=True) as lab:

        def run(*arguments: str, stdin: Any = None, check: bool = True) -> str:
            answer = subprocess.run(
                ["kubectl", f"--kubeconfig={lab.server.kubeconfig}", f"--cache-dir={directory}/cache", *arguments],
                input=json.dumps(stdin) if stdin is not None else None,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            if check:
                assert answer.returncode == 0, answer.stderr
            return answer.stdout + answer.stderr

        yield run


@pytest.fixture
def namespace(kubectl: Callable[..., str], request: pytest.FixtureRequest) -> Iterator[str]:
    name = "t-" + request.node.name.removeprefix("test_")[:40].strip("_").replace("_", "-").strip("-")
    kubectl("create", "namespace", name)
    kubectl("wait", "--for=create", "serviceaccount/default", "-n", name, "--timeout=20s")
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


def test_create_get_label_annotate_patch_and_delete_a_secret(kubectl: Callable[..., str], namespace: str) -> None:
    n = f"-n={namespace}"
    assert "secret/s created" in kubectl("create", "secret", "generic", "s", "--from-literal=a=b", n)
    assert "labeled" in kubectl("label", "secret", "s", "x=y", n)
    assert "annotated" in kubectl("annotate", "secret", "s", "note=1", n)
    kubectl("patch", "secret", "s", "-p", '{"stringData":{"c":"d"}}', n)
    found = json.loads(kubectl("get", "secret", "s", "-o", "json", n))
    assert found["data"] == {"a": "Yg==", "c": "ZA=="}
    assert found["metadata"]["labels"] == {"x": "y"}
    table = kubectl("get", "secrets", "-l", "x=y", n).splitlines()
    assert table[0].split() == ["NAME", "TYPE", "DATA", "AGE"]
    assert table[1].split()[:3] == ["s", "Opaque", "2"]
    assert "Name:         s" in kubectl("describe", "secret", "s", n)
    assert "deleted" in kubectl("delete", "secret", "s", n)
    assert "NotFound" in kubectl("get", "secret", "s", n, check=False)


def test_apply_changes_and_prunes_only_what_it_owned(kubectl: Callable[..., str], namespace: str) -> None:
    n = f"-n={namespace}"
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1", "b": "2"}}
    assert "created" in kubectl("apply", "-f", "-", n, stdin=config)
    kubectl("patch", "configmap", "c", "--type=merge", "-p", '{"data":{"foreign":"x"}}', n)
    config["data"] = {"a": "9"}
    assert "configured" in kubectl("apply", "-f", "-", n, stdin=config)
    assert "unchanged" in kubectl("apply", "-f", "-", n, stdin=config)
    found = json.loads(kubectl("get", "configmap", "c", "-o", "json", n))
    assert found["data"] == {"a": "9", "foreign": "x"}


def test_server_side_apply_reports_a_conflict_and_force_takes_the_field(
    kubectl: Callable[..., str], namespace: str
) -> None:
    n = f"-n={namespace}"
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}}
    kubectl("apply", "--server-side", "--field-manager=one", "-f", "-", n, stdin=config)
    config["data"] = {"a": "2"}
    refused = kubectl("apply", "--server-side", "--field-manager=two", "-f", "-", n, stdin=config, check=False)
    assert 'conflict with "one"' in refused
    kubectl("apply", "--server-side", "--field-manager=two", "--force-conflicts", "-f", "-", n, stdin=config)
    assert kubectl("get", "configmap", "c", "-o", "jsonpath={.data.a}", n) == "2"


def test_a_typo_in_a_manifest_is_refused_by_strict_validation(kubectl: Callable[..., str], namespace: str) -> None:
    config = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "dota": {"a": "1"}}
    assert 'unknown field "dota"' in kubectl("apply", "-f", "-", f"-n={namespace}", stdin=config, check=False)


def test_a_deployment_rolls_out_restarts_scales_and_keeps_its_history(
    kubectl: Callable[..., str], namespace: str
) -> None:
    n = f"-n={namespace}"
    kubectl("apply", "-f", "-", n, stdin=DEPLOYMENT)
    assert "successfully rolled out" in kubectl("rollout", "status", "deployment/web", "--timeout=30s", n)
    before = kubectl("get", "pods", "-o", "jsonpath={.items[*].metadata.name}", n).split()
    kubectl("rollout", "restart", "deployment/web", n)
    assert "successfully rolled out" in kubectl("rollout", "status", "deployment/web", "--timeout=30s", n)
    kubectl("scale", "deployment/web", "--replicas=3", n)
    kubectl("wait", "--for=jsonpath={.status.availableReplicas}=3", "deployment/web", "--timeout=30s", n)
    pods = json.loads(kubectl("get", "pods", "-o", "json", n))["items"]
    running = [pod["metadata"]["name"] for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    assert len(running) == 3
    assert not set(running) & set(before)
    assert "2" in kubectl("rollout", "history", "deployment/web", n)
    assert kubectl("get", "deployment", "web", n).splitlines()[1].split()[:4] == ["web", "3/3", "3", "3"]
    assert "(3/3 replicas created)" in kubectl("describe", "deployment", "web", n)


def test_logs_and_waiting_for_a_pod_to_be_ready(kubectl: Callable[..., str], namespace: str) -> None:
    n = f"-n={namespace}"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "main", "image": "registry.example/web:1"}]},
    }
    kubectl("apply", "-f", "-", n, stdin=pod)
    kubectl("wait", "--for=condition=Ready", "pod/p", "--timeout=30s", n)
    kubectl("logs", "p", n)
    assert "not found" in kubectl("logs", "none", n, check=False)
    assert kubectl("get", "pod", "p", n).splitlines()[1].split()[:3] == ["p", "1/1", "Running"]


def test_auth_can_i_and_tokens_of_service_accounts(kubectl: Callable[..., str], namespace: str) -> None:
    n = f"-n={namespace}"
    kubectl("create", "serviceaccount", "reader", n)
    kubectl("create", "role", "r", "--verb=get,list", "--resource=secrets", n)
    kubectl("create", "rolebinding", "rb", "--role=r", f"--serviceaccount={namespace}:reader", n)
    who = f"--as=system:serviceaccount:{namespace}:reader"
    assert kubectl("auth", "can-i", "list", "secrets", who, n).strip() == "yes"
    assert kubectl("auth", "can-i", "delete", "secrets", who, n, check=False).strip() == "no"
    assert len(kubectl("create", "token", "reader", n).split(".")) == 3
    assert "kubernetes-admin" in kubectl("auth", "whoami")


def test_the_resources_of_the_server_are_listed_with_their_short_names(kubectl: Callable[..., str]) -> None:
    lines = {tuple(line.split()) for line in kubectl("api-resources").splitlines()}
    assert ("deployments", "deploy", "apps/v1", "true", "Deployment") in lines
    assert (
        "customresourcedefinitions",
        "crd,crds",
        "apiextensions.k8s.io/v1",
        "false",
        "CustomResourceDefinition",
    ) in lines


def test_a_custom_resource_is_created_and_shown_with_its_columns(
    kubectl: Callable[..., str], namespace: str, tmp_path: Path
) -> None:
    n = f"-n={namespace}"
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "bundles.trust.example.com"},
        "spec": {
            "group": "trust.example.com",
            "scope": "Namespaced",
            "names": {"plural": "bundles", "kind": "Bundle", "shortNames": ["bd"]},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [{"name": "Roots", "type": "integer", "jsonPath": ".spec.roots"}],
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "properties": {
                                "spec": {"type": "object", "properties": {"roots": {"type": "integer", "default": 1}}}
                            },
                        }
                    },
                }
            ],
        },
    }
    kubectl("apply", "-f", "-", stdin=definition)
    kubectl("wait", "--for=condition=Established", "crd/bundles.trust.example.com", "--timeout=10s")
    bundle = {"apiVersion": "trust.example.com/v1", "kind": "Bundle", "metadata": {"name": "b"}, "spec": {}}
    kubectl("apply", "-f", "-", n, stdin=bundle)
    assert kubectl("get", "bd", n).split() == ["NAME", "ROOTS", "b", "1"]
    kubectl("delete", "crd", "bundles.trust.example.com", "--timeout=20s")
    # with or without kubectl's cached discovery, which may still know the resource
    gone = kubectl("get", "bundles", n, check=False)
    assert "doesn't have a resource type" in gone or "could not find the requested resource" in gone
