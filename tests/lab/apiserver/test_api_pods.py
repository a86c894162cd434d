"""Pods that are refused, containers that are added to them, and what answers warn of."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx

CORE = "/api/v1/namespaces/default"
MERGE = {"content-type": "application/merge-patch+json"}
STRATEGIC = {"content-type": "application/strategic-merge-patch+json"}


def _pod(name: str, container: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    containers = [{"name": "c", "image": "i", **(container or {})}]
    return {"metadata": {"name": name}, "spec": {"containers": containers, **spec}}


@pytest.fixture
def account(http: httpx.Client) -> httpx.Client:
    http.post(f"{CORE}/serviceaccounts", json={"metadata": {"name": "default"}})
    return http


@pytest.mark.proves("api", "refusals", "pods: probes, hooks, DNS, gates, references, ephemeral containers")
@pytest.mark.parametrize(
    ("container", "spec", "words"),
    [
        ({"livenessProbe": {"httpGet": {"port": 0}}}, {},
         "spec.containers[0].livenessProbe.httpGet.port: Invalid value: 0: must be between 1 and 65535, inclusive"),
        ({"readinessProbe": {"exec": {}}}, {}, "spec.containers[0].readinessProbe.exec.command: Required value"),
        ({"lifecycle": {"preStop": {}}}, {},
         "spec.containers[0].lifecycle.preStop: Required value: must specify a handler type"),
        ({"envFrom": [{}]}, {},
         'spec.containers[0].envFrom[0]: Invalid value: "": must specify one of: `configMapRef` or `secretRef`'),
        ({}, {"dnsPolicy": "None"},
         "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"),
        ({}, {"schedulingGates": [{"name": "a"}], "nodeName": "n"},
         "spec.nodeName: Forbidden: nodeName cannot be set until all schedulingGates have been cleared"),
        ({"volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "../x"}]}, {"volumes": [{"name": "v"}]},
         "spec.containers[0].volumeMounts[0].subPath: Invalid value: \"../x\": must not contain '..'"),
    ],
    ids=["probe", "exec", "hook", "envFrom", "DNS", "gate", "subPath"],
)  # fmt: skip
def test_a_pod_is_refused_for_what_is_wrong_with_it(
    account: httpx.Client, container: dict[str, Any], spec: dict[str, Any], words: str
) -> None:
    answer = account.post(f"{CORE}/pods", json=_pod("refused", container, **spec))
    assert answer.status_code == 422, answer.text
    assert answer.json()["message"] == f'Pod "refused" is invalid: {words}'


def test_a_container_for_debugging_has_a_name_of_its_own_and_stays_as_it_is(account: httpx.Client) -> None:
    assert account.post(f"{CORE}/pods", json=_pod("debugged")).status_code == 201
    url = f"{CORE}/pods/debugged/ephemeralcontainers"

    def add(**container: Any) -> httpx.Response:
        body = {"spec": {"ephemeralContainers": [container]}}
        return account.patch(url, json=body, headers=STRATEGIC)

    twin = add(name="c", image="i")
    assert twin.json()["message"].endswith('spec.ephemeralContainers[0].name: Duplicate value: "c"')
    assert add(name="look", image="i", targetContainerName="c").status_code == 200
    changed = add(name="look", image="other")
    assert changed.status_code == 422
    assert 'existing ephemeral containers "look" may not be changed' in changed.json()["message"]


@pytest.mark.proves("api", "warnings", "deprecated kinds and versions")
def test_every_answer_about_a_deprecated_kind_warns(http: httpx.Client) -> None:
    warning = '299 - "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"'
    assert http.get(f"{CORE}/endpoints").headers["warning"] == warning
    body = {"metadata": {"name": "old"}, "subsets": []}
    assert http.post(f"{CORE}/endpoints", json=body).headers["warning"] == warning
    listed = http.get("/api/v1/componentstatuses")
    assert listed.headers["warning"] == '299 - "v1 ComponentStatus is deprecated in v1.19+"'
    assert "warning" not in http.get(f"{CORE}/configmaps").headers


def test_a_deprecated_version_of_a_definition_names_the_one_to_use(http: httpx.Client) -> None:
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    versions = [
        {"name": "v1beta1", "served": True, "storage": False, "deprecated": True, "schema": schema},
        {"name": "v1", "served": True, "storage": True, "schema": schema},
    ]
    names = {"plural": "relics", "kind": "Relic"}
    spec = {"group": "old.example.com", "scope": "Namespaced", "names": names, "versions": versions}
    definition = {"metadata": {"name": "relics.old.example.com"}, "spec": spec}
    assert http.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=definition).status_code == 201
    url = "/apis/old.example.com/v1beta1/namespaces/default/relics"
    end = time.monotonic() + 5
    while (answer := http.get(url)).status_code != 200:
        assert time.monotonic() < end, "the definition was not established"
        time.sleep(0.01)
    assert answer.headers["warning"] == (
        '299 - "old.example.com/v1beta1 Relic is deprecated; use old.example.com/v1 Relic"'
    )


def test_a_scale_is_patched_with_the_checks_of_any_patch(http: httpx.Client) -> None:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
    deployments = "/apis/apps/v1/namespaces/default/deployments"
    assert http.post(deployments, json={"metadata": {"name": "scaled"}, "spec": spec}).status_code == 201
    url = f"{deployments}/scaled/scale"
    warned = http.patch(url, json={"spec": {"replicas": 2, "nope": 1}}, headers=MERGE)
    assert warned.headers["warning"] == '299 - "unknown field \\"spec.nope\\""'
    assert http.patch(f"{url}?dryRun=x", json={"spec": {"replicas": 3}}, headers=MERGE).status_code == 422
    assert http.get(url).json()["spec"] == {"replicas": 2}


def test_nothing_lies_below_a_subresource(account: httpx.Client) -> None:
    account.post(f"{CORE}/pods", json=_pod("deep"))
    answer = account.get(f"{CORE}/pods/deep/status/more")
    assert answer.status_code == 404
    assert answer.json()["message"] == "the server could not find the requested resource"
