"""What the server refuses to store: causes in order, with their paths and words."""

from __future__ import annotations

import base64
import copy
from typing import Any

import pytest

from infra.lab.apiserver import defaults, validation
from infra.lab.apiserver.kinds import KindInfo, Registry
from infra.lab.apiserver.schedule import schedule_error
from infra.lab.apiserver.status import ApiStatusError

Object = dict[str, Any]
KINDS = {kind.resource: kind for kind in Registry()}
NAMED: Object = {"name": "x", "namespace": "n", "uid": "u", "resourceVersion": "1"}


def _full(kind: KindInfo, obj: Object) -> Object:
    metadata = {**NAMED, **obj.get("metadata", {})}
    if not kind.namespaced:
        metadata.pop("namespace")
    out = copy.deepcopy({**obj, "metadata": metadata})
    defaults.apply_defaults(kind, out)
    return out


def _causes(resource: str, obj: Object, old: Object | None = None) -> list[tuple[str, str]]:
    """(field, message) of what is wrong with an object of this resource; empty when it is fine."""
    kind = KINDS[resource]
    try:
        validation.validate(kind, _full(kind, obj), None if old is None else _full(kind, old))
    except ApiStatusError as error:
        if error.code != 422 or error.details is None:
            raise
        return [(cause.get("field", ""), cause["message"]) for cause in error.details["causes"]]
    return []


def _template(**spec: Any) -> Object:
    spec.setdefault("containers", [{"name": "c", "image": "i"}])
    return {"metadata": {"labels": {"app": "x"}}, "spec": spec}


def _workload(**spec: Any) -> Object:
    return {"spec": {"selector": {"matchLabels": {"app": "x"}}, "template": _template(), **spec}}


@pytest.mark.parametrize("resource", ["deployments.apps", "replicasets.apps", "daemonsets.apps", "statefulsets.apps"])
def test_a_workload_with_matching_selector_and_one_container_is_fine(resource: str) -> None:
    assert _causes(resource, _workload()) == []


@pytest.mark.parametrize(
    ("resource", "word"),
    [("deployments.apps", "deployment"), ("daemonsets.apps", "daemonset"), ("statefulsets.apps", "statefulset")],
)
def test_an_empty_selector_is_refused(resource: str, word: str) -> None:
    assert (
        "spec.selector",
        f"Invalid value: {{}}: empty selector is invalid for {word}",
    ) in _causes(resource, _workload(selector={}))


@pytest.mark.parametrize("resource", ["deployments.apps", "replicasets.apps", "daemonsets.apps"])
def test_a_selector_never_changes(resource: str) -> None:
    old = _workload()
    new = {
        "spec": {
            "selector": {"matchLabels": {"app": "y"}},
            "template": {**_template(), "metadata": {"labels": {"app": "y"}}},
        }
    }
    assert _causes(resource, new, old) == [
        ("spec.selector", 'Invalid value: {"matchLabels":{"app":"y"}}: field is immutable')
    ]


def test_a_stateful_set_changes_only_in_the_fields_that_may() -> None:
    assert _causes("statefulsets.apps", _workload(replicas=3), _workload(replicas=1)) == []
    fields = [field for field, _ in _causes("statefulsets.apps", _workload(serviceName="b"), _workload())]
    assert fields == ["spec"]


def test_every_fault_of_a_container_is_a_cause() -> None:
    container = {
        "name": "Bad_",
        "ports": [{"containerPort": 0}, {"containerPort": 70000, "protocol": "TCQ"}],
        "env": [{"name": "", "value": "1"}, {"name": "E", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}],
        "volumeMounts": [{"name": "nowhere", "mountPath": "/a"}],
        "imagePullPolicy": "Sometimes",
        "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}},
    }
    found = _causes("deployments.apps", _workload(template=_template(containers=[container])))
    at = "spec.template.spec.containers[0]"
    assert [field for field, _ in found] == [
        f"{at}.name",
        f"{at}.image",
        f"{at}.ports[0].containerPort",
        f"{at}.ports[1].containerPort",
        f"{at}.ports[1].protocol",
        f"{at}.env[0].name",
        f"{at}.env[1].valueFrom",
        f"{at}.volumeMounts[0].name",
        f"{at}.imagePullPolicy",
        f"{at}.resources.requests",
    ]
    messages = dict(found)
    assert messages[f"{at}.ports[1].protocol"] == 'Unsupported value: "TCQ": supported values: "SCTP", "TCP", "UDP"'
    assert messages[f"{at}.volumeMounts[0].name"] == 'Not found: "nowhere"'
    assert messages[f"{at}.resources.requests"] == 'Invalid value: "2": must be less than or equal to cpu limit of 1'


def test_a_mounted_claim_of_a_stateful_set_counts_as_a_volume() -> None:
    mounted = [{"name": "c", "image": "i", "volumeMounts": [{"name": "data", "mountPath": "/d"}]}]
    claims = [{"metadata": {"name": "data"}, "spec": {}}]
    spec = _workload(template=_template(containers=mounted), volumeClaimTemplates=claims)
    assert _causes("statefulsets.apps", spec) == []
    assert _causes("deployments.apps", _workload(template=_template(containers=mounted))) != []


def test_a_rolling_update_that_can_move_nothing_is_refused() -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "0%"}}
    assert _causes("deployments.apps", _workload(strategy=strategy)) == [
        ("spec.strategy.rollingUpdate.maxUnavailable", "Invalid value: 0: may not be 0 when `maxSurge` is 0")
    ]


def _pod(**spec: Any) -> Object:
    return {"spec": {"containers": [{"name": "c", "image": "i"}], **spec}}


def test_a_running_pod_takes_a_new_image_and_more_tolerations_and_nothing_else() -> None:
    old = _pod(tolerations=[{"key": "a", "operator": "Exists"}])
    allowed = _pod(
        containers=[{"name": "c", "image": "other"}],
        tolerations=[{"key": "a", "operator": "Exists"}, {"key": "b", "operator": "Exists"}],
        activeDeadlineSeconds=30,
    )
    assert _causes("pods", allowed, old) == []
    assert [field for field, _ in _causes("pods", _pod(tolerations=[]), old)] == ["spec.tolerations"]
    forbidden = _causes("pods", _pod(hostname="h", tolerations=old["spec"]["tolerations"]), old)
    assert [field for field, _ in forbidden] == ["spec"]
    two = _pod(containers=[{"name": "c", "image": "i"}, {"name": "d", "image": "i"}])
    assert _causes("pods", two, _pod()) == [
        ("spec.containers", "Forbidden: pod updates may not add or remove containers")
    ]


def test_a_job_may_not_restart_always_nor_change_its_template() -> None:
    labels = {"metadata": {"labels": {"app": "x"}}}
    mine = {"selector": {"matchLabels": {"app": "x"}}, "manualSelector": True}
    job = {"spec": {**mine, "template": {**labels, **_only_pod("Never")}}}
    always = {"spec": {**mine, "template": {**labels, **_only_pod("Always")}}}
    retry = {"spec": {**mine, "template": {**labels, **_only_pod("OnFailure")}}}
    assert _causes("jobs.batch", job) == []
    assert _causes("jobs.batch", always) == [
        ("spec.template.spec.restartPolicy", 'Required value: valid values: "OnFailure", "Never"')
    ]
    assert [field for field, _ in _causes("jobs.batch", retry, job)] == ["spec.template"]


def _only_pod(policy: str) -> Object:
    return {"spec": {"restartPolicy": policy, "containers": [{"name": "c", "image": "i"}]}}


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        ("*/10 * * * *", ""),
        ("0 0 1 jan mon-fri", ""),
        ("@hourly", ""),
        ("TZ=Europe/Berlin 5 4 * * *", ""),
        ("often", "expected exactly 5 fields, found 1: [often]"),
        ("61 * * * *", "end of range (61) above maximum (59): 61"),
        ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
        ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
        ("*/0 * * * *", "step of range should be a positive number: */0"),
        ("x * * * *", 'failed to parse int from x: strconv.Atoi: parsing "x": invalid syntax'),
        ("@never", "unrecognized descriptor: @never"),
    ],
)
def test_schedules(schedule: str, problem: str) -> None:
    assert schedule_error(schedule) == problem


def test_a_secret_of_a_type_has_the_keys_of_that_type() -> None:
    assert _causes("secrets", {"type": "kubernetes.io/tls", "data": {"tls.crt": ""}}) == [
        ("data[tls.key]", "Required value")
    ]
    assert [field for field, _ in _causes("secrets", {"type": "kubernetes.io/basic-auth"})] == [
        "data[username]",
        "data[password]",
    ]
    assert [field for field, _ in _causes("secrets", {"type": "kubernetes.io/ssh-auth"})] == ["data[ssh-privatekey]"]
    assert _causes("secrets", {"type": "example.com/own"}) == []


def test_an_object_larger_than_a_mebibyte_is_refused() -> None:
    large = base64.b64encode(b"x" * (1024 * 1024 + 1)).decode()
    assert _causes("secrets", {"data": {"k": large}}) == [("data", "Too long: may not be more than 1048576 bytes")]


def test_immutable_data_keeps_its_mark_and_its_values() -> None:
    old = {"immutable": True, "data": {"k": "1"}}
    assert [field for field, _ in _causes("configmaps", {"data": {"k": "2"}}, old)] == ["immutable", "data"]
    assert _causes("configmaps", {**old, "metadata": {"labels": {"a": "b"}}}, old) == []


def test_metadata_faults_are_found_with_every_look_an_update_takes() -> None:
    assert [field for field, _ in _causes("configmaps", {"metadata": {"uid": "other"}}, {})] == ["metadata.uid"] * 2
    labels = {"metadata": {"labels": {"bad key!": "v"}}}
    assert [f for f, _ in _causes("deployments.apps", {**labels, **_workload()}, _workload())] == [
        "metadata.labels"
    ] * 3


@pytest.mark.parametrize(
    ("resource", "name", "fine"),
    [
        ("configmaps", "a.b-c", True),
        ("configmaps", "A", False),
        ("services", "1a", False),
        ("namespaces", "a.b", False),
        ("roles.rbac.authorization.k8s.io", "system:Any Thing", True),
        ("roles.rbac.authorization.k8s.io", "a/b", False),
    ],
)
def test_each_kind_has_its_rule_for_names(resource: str, name: str, fine: bool) -> None:
    obj: Object = {"metadata": {"name": name}}
    if resource == "services":
        obj["spec"] = {"ports": [{"port": 80}]}
    assert ("metadata.name" not in [field for field, _ in _causes(resource, obj)]) is fine


def test_two_owners_cannot_both_be_the_controller() -> None:
    owner = {"apiVersion": "v1", "kind": "Pod", "uid": "u", "controller": True}
    owners = [{**owner, "name": "a"}, {**owner, "name": "b"}]
    ((field, message),) = _causes("configmaps", {"metadata": {"ownerReferences": owners}})
    assert field == "metadata.ownerReferences"
    assert message.endswith(
        'Only one reference can have Controller set to true. Found "true" in references for Pod/a and Pod/b'
    )


def test_rbac_rules_and_bindings() -> None:
    roles, bindings = "roles.rbac.authorization.k8s.io", "rolebindings.rbac.authorization.k8s.io"
    assert _causes(roles, {"rules": [{"resources": ["pods"]}]}) == [
        ("rules[0].verbs", "Required value: verbs must contain at least one value"),
        ("rules[0].apiGroups", "Required value: resource rules must supply at least one api group"),
    ]
    assert [f for f, _ in _causes(roles, {"rules": [{"verbs": ["get"], "nonResourceURLs": ["/x"]}]})] == [
        "rules[0].nonResourceURLs"
    ]
    binding = {"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}]}
    assert _causes(bindings, binding) == []
    other = {**binding, "roleRef": {"kind": "Role", "name": "s"}}
    assert _causes(bindings, other, binding) == [
        (
            "roleRef",
            'Invalid value: {"APIGroup":"rbac.authorization.k8s.io","Kind":"Role","Name":"s"}: cannot change roleRef',
        )
    ]
    assert _causes(bindings, {**binding, "subjects": [{"kind": "Robot", "name": "u"}]}) == [
        (
            "subjects[0].kind",
            'Unsupported value: "Robot": supported values: "ServiceAccount", "User", "Group"',
        )
    ]


def test_webhook_configurations_say_where_they_call_and_what_they_understand() -> None:
    hooks = "validatingwebhookconfigurations.admissionregistration.k8s.io"
    hook = {
        "name": "a.example.com",
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://localhost/x", "caBundle": base64.b64encode(b"no pem").decode()},
    }
    assert _causes(hooks, {"webhooks": [hook]}) == []
    both = {**hook, "clientConfig": {"url": "https://a", "service": {"name": "s", "namespace": "n"}}}
    assert _causes(hooks, {"webhooks": [both]}) == [
        ("webhooks[0].clientConfig", "Required value: exactly one of url or service is required")
    ]
    short = {key: value for key, value in hook.items() if key not in ("sideEffects", "admissionReviewVersions")}
    assert [field for field, _ in _causes(hooks, {"webhooks": [{**short, "name": "a.b"}]})] == [
        "webhooks[0].name",
        "webhooks[0].sideEffects",
        "webhooks[0].admissionReviewVersions",
    ]
    assert [field for field, _ in _causes(hooks, {"webhooks": [hook, hook]})] == ["webhooks[1].name"]


def test_a_budget_has_one_bound() -> None:
    budgets = "poddisruptionbudgets.policy"
    assert _causes(budgets, {"spec": {"minAvailable": "50%"}}) == []
    assert [f for f, _ in _causes(budgets, {"spec": {"minAvailable": 1, "maxUnavailable": 1}})] == ["spec"]
    assert [f for f, _ in _causes(budgets, {"spec": {"maxUnavailable": "150%"}})] == ["spec.maxUnavailable"]


def test_services_need_ports_that_are_told_apart() -> None:
    assert _causes("services", {"spec": {}}) == [("spec.ports", "Required value")]
    assert _causes("services", {"spec": {"clusterIP": "None"}}) == []
    twice = {"spec": {"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}}
    # the server compares values of its internal type, whose JSON has Go's names
    shown = '{"Name":"","Protocol":"TCP","AppProtocol":null,"Port":80,"TargetPort":0,"NodePort":0}'
    assert _causes("services", twice) == [("spec.ports[1]", f"Duplicate value: {shown}")]
    assert [f for f, _ in _causes("services", {"spec": {"ports": [{"port": 1}, {"port": 2}]}})] == [
        "spec.ports[0].name",
        "spec.ports[1].name",
    ]
