"""The OpenAPI v3 documents hold the schemas of every kind, as kubectl explain and generators read them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

    from tests.lab.apiserver.lab_server import LabServer

BUNDLES = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "bundles.explain.example.com"},
    "spec": {
        "group": "explain.example.com",
        "scope": "Cluster",
        "names": {"plural": "bundles", "kind": "Bundle"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "description": "Roots for everybody.",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {"roots": {"type": "integer", "description": "How many."}},
                            }
                        },
                    }
                },
            }
        ],
    },
}


def schemas_of(http: httpx.Client, path: str) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"/openapi/v3/{path}").raise_for_status().json()["components"]["schemas"]
    return found


def test_every_document_has_all_the_schemas_it_refers_to(http: httpx.Client) -> None:
    for path in http.get("/openapi/v3").json()["paths"]:
        text = http.get(f"/openapi/v3/{path}").text
        schemas = json.loads(text)["components"]["schemas"]
        assert set(re.findall(r'"#/components/schemas/([^"]+)"', text)) <= set(schemas), path


def test_every_stored_kind_of_a_group_has_a_schema_that_names_it(http: httpx.Client) -> None:
    for path, group, version in (
        ("api/v1", "", "v1"),
        ("apis/apps/v1", "apps", "v1"),
        ("apis/batch/v1", "batch", "v1"),
    ):
        resources = http.get(f"/{path}").json()["resources"]
        kinds = {r["kind"] for r in resources if "/" not in r["name"] and "watch" in r["verbs"]}
        named = {
            each["kind"]
            for schema in schemas_of(http, path).values()
            for each in schema.get("x-kubernetes-group-version-kind", [])
            if (each["group"], each["version"]) == (group, version)
        }
        assert kinds <= named


def test_fields_carry_types_and_the_rules_of_merging(http: httpx.Client) -> None:
    properties = schemas_of(http, "apis/apps/v1")["io.k8s.api.core.v1.PodSpec"]["properties"]
    assert properties["terminationGracePeriodSeconds"] == {"type": "integer", "format": "int64"}
    containers = properties["containers"]
    assert containers["items"] == {"allOf": [{"$ref": "#/components/schemas/io.k8s.api.core.v1.Container"}]}
    assert (containers["x-kubernetes-patch-strategy"], containers["x-kubernetes-patch-merge-key"]) == ("merge", "name")


def test_the_hash_of_a_group_changes_with_the_schema_of_its_custom_resource(http: httpx.Client) -> None:
    def digest() -> str | None:
        entry = http.get("/openapi/v3").json()["paths"].get("apis/explain.example.com/v1")
        return entry and entry["serverRelativeURL"]

    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    assert digest() is None
    http.post(crds, json=BUNDLES).raise_for_status()
    first = digest()
    changed = json.loads(json.dumps(BUNDLES).replace("How many.", "How many there are."))
    name = f"{crds}/{BUNDLES['metadata']['name']}"  # type: ignore[index]
    version = http.get(name).json()["metadata"]["resourceVersion"]
    changed["metadata"]["resourceVersion"] = version
    http.put(name, json=changed).raise_for_status()
    second = digest()
    http.delete(name).raise_for_status()
    assert first is not None
    assert second is not None
    assert first != second


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on PATH")
@pytest.mark.slow
@pytest.mark.proves("api", "explain", "kubectl explain of built-in and custom kinds")
def test_kubectl_explains_built_in_and_custom_kinds(http: httpx.Client, lab: LabServer, tmp_path: Path) -> None:
    def explain(path: str) -> str:
        done = subprocess.run(
            ["kubectl", f"--kubeconfig={lab.server.kubeconfig}", f"--cache-dir={tmp_path}", "explain", path],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    http.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=BUNDLES).raise_for_status()
    strategy = explain("deployment.spec.strategy")
    assert "FIELD: strategy <DeploymentStrategy>" in strategy
    assert re.search(r"rollingUpdate\s+<RollingUpdateDeployment>", strategy)
    assert re.search(r"containers\s+<\[\]Container>", explain("pod.spec"))
    custom = explain("bundles.spec")
    assert re.search(r"roots\s+<integer>", custom)
    assert "How many." in custom
