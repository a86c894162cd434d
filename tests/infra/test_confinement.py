"""The admission policies that confine the rotator, evaluated: what a rotation does passes, and nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.support.manifests import KUBERNETES, resources

celpy = pytest.importorskip(
    "celpy", reason="cel-python is not installed: the policies' expressions cannot be evaluated"
)

Json = dict[str, Any]
ROTATOR = "system:serviceaccount:capstan:capstan-rotator"
POLICIES = {
    item["metadata"]["name"]: item["spec"]
    for item in resources(KUBERNETES / "confinement")
    if item["kind"] == "ValidatingAdmissionPolicy"
}
WORKLOAD: Json = {
    "spec": {
        "replicas": 2,
        "template": {
            "metadata": {"labels": {"app": "web"}, "annotations": {"linkerd.io/inject": "enabled"}},
            "spec": {"serviceAccountName": "web", "containers": [{"name": "app", "image": "web:1"}]},
        },
    }
}
STAMP = {"capstan.dev/restarted-for": "r-1/trust/abc", "kubectl.kubernetes.io/restartedAt": "2026-11-22T00:00:00Z"}


def evaluate(expression: str, values: Json) -> Any:
    environment = celpy.Environment()
    program = environment.program(environment.compile(expression))
    return program.evaluate({name: celpy.json_to_cel(value) for name, value in values.items()})


def refusals(policy: str, request: Json, new: Json, old: Json | None = None) -> list[str]:
    """The messages of the validations that fail, as an API server evaluates them; none if the policy does not match."""
    spec = POLICIES[policy]
    values: Json = {"request": request, "object": new, "oldObject": old}
    if not all(evaluate(condition["expression"], values) for condition in spec["matchConditions"]):
        return []
    values["variables"] = {}
    for variable in spec.get("variables", []):
        values["variables"] |= {variable["name"]: _plain(evaluate(variable["expression"], values))}
    return [rule["message"] for rule in spec["validations"] if not evaluate(rule["expression"], values)]


def _plain(value: Any) -> Any:
    return {str(key): str(item) for key, item in value.items()}


def restarted(**changes: Any) -> Json:
    """The workload as a restart by Capstan leaves it, with changes to its pod template: spec, labels, annotations."""
    new = copy.deepcopy(WORKLOAD)
    template = new["spec"]["template"]
    template["metadata"]["annotations"] |= STAMP | changes.get("annotations", {})
    template["metadata"]["labels"] |= changes.get("labels", {})
    template["spec"] |= changes.get("spec", {})
    return new


def by(user: str = ROTATOR, **more: Any) -> Json:
    return {"userInfo": {"username": user}, **more}


def test_the_rotator_rehearses_births_and_starts_nothing() -> None:
    pod: Json = {"spec": {"containers": []}}
    policy = "capstan-rotator-starts-no-pods"
    assert refusals(policy, by(dryRun=True), pod) == []
    for request in (by(dryRun=False), by()):
        assert len(refusals(policy, request, pod)) == 1
    assert refusals(policy, by("system:serviceaccount:kube-system:replicaset-controller"), pod) == []


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, []),
        ({"spec": {"serviceAccountName": "cluster-admin"}}, ["what their pods run"]),
        ({"spec": {"containers": [{"name": "app", "image": "evil:1"}]}}, ["what their pods run"]),
        ({"labels": {"app": "other"}}, ["labels of pods"]),
        ({"annotations": {"config.linkerd.io/proxy-image": "evil"}}, ["of a pod template the rotator writes"]),
        ({"annotations": {"linkerd.io/inject": "disabled"}}, ["of a pod template the rotator writes"]),
    ],
)
def test_the_rotator_restarts_and_changes_nothing_else(changes: Json, refused: list[str]) -> None:
    found = refusals("capstan-rotator-only-restarts", by(), restarted(**changes), WORKLOAD)
    assert len(found) == len(refused)
    assert all(words in message for words, message in zip(refused, found, strict=True))


def test_an_annotation_may_not_be_taken_away_either() -> None:
    new = restarted()
    del new["spec"]["template"]["metadata"]["annotations"]["linkerd.io/inject"]
    assert len(refusals("capstan-rotator-only-restarts", by(), new, WORKLOAD)) == 1


def test_a_second_restart_of_a_template_that_had_no_metadata_passes() -> None:
    bare = copy.deepcopy(WORKLOAD)
    del bare["spec"]["template"]["metadata"]
    first = copy.deepcopy(bare)
    first["spec"]["template"]["metadata"] = {"annotations": dict(STAMP)}
    second = copy.deepcopy(first)
    second["spec"]["template"]["metadata"]["annotations"]["capstan.dev/restarted-for"] = "r-1/distrust/def"
    for old, new in ((bare, first), (first, second)):
        assert refusals("capstan-rotator-only-restarts", by(), new, old) == []


def test_other_users_are_not_confined() -> None:
    changed = restarted(spec={"serviceAccountName": "other"})
    assert refusals("capstan-rotator-only-restarts", by("ada"), changed, WORKLOAD) == []
