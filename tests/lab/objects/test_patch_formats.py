"""JSON patch, merge patch and strategic merge patch."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.lab.apiserver import patch
from infra.lab.apiserver.kinds import KindInfo
from infra.lab.apiserver.status import ApiStatusError

CONFIG_MAP = KindInfo("", "v1", "ConfigMap", "configmaps", namespaced=True)
DEPLOYMENT = KindInfo("apps", "v1", "Deployment", "deployments", namespaced=True)
SERVICE = KindInfo("", "v1", "Service", "services", namespaced=True)
WIDGET = KindInfo("example.com", "v1", "Widget", "widgets", namespaced=True, custom=True)
HOOKS = KindInfo(
    "admissionregistration.k8s.io",
    "v1",
    "MutatingWebhookConfiguration",
    "mutatingwebhookconfigurations",
    namespaced=False,
)

JSON_PATCH, MERGE, STRATEGIC = patch.JSON_PATCH, patch.MERGE_PATCH, patch.STRATEGIC_PATCH


def _apply(kind: KindInfo, current: dict[str, Any], media: str, change: object, mode: str = "Warn") -> dict[str, Any]:
    return patch.apply_patch(kind, current, media, json.dumps(change).encode(), mode)[0]


def _config_map(**data: str) -> dict[str, Any]:
    return {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "c", "namespace": "n"}, "data": data}


def _pod_change(**fields: object) -> dict[str, Any]:
    return {"spec": {"template": {"spec": fields}}}


def _deployment(**fields: object) -> dict[str, Any]:
    return {"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "d"}, **_pod_change(**fields)}


def _pod(deployment: dict[str, Any]) -> dict[str, Any]:
    return deployment["spec"]["template"]["spec"]


def test_the_object_patched_is_left_alone() -> None:
    for media, change in (
        (JSON_PATCH, [{"op": "add", "path": "/data/b", "value": "2"}]),
        (MERGE, {"data": {"a": None}}),
        (STRATEGIC, {"data": {"a": None}}),
    ):
        current = _config_map(a="1")
        before = copy.deepcopy(current)
        _apply(CONFIG_MAP, current, media, change)
        assert current == before


@pytest.mark.parametrize(
    ("operations", "data"),
    [
        ([{"op": "replace", "path": "/data/new", "value": "x"}], {"a": "1", "new": "x"}),
        ([{"op": "test", "path": "/data/missing", "value": None}], {"a": "1"}),
        ([{"op": "move", "from": "/data/a", "path": "/data/b"}], {"b": "1"}),
        ([{"op": "add", "path": "/data/x~1y~0z", "value": "v"}], {"a": "1", "x/y~z": "v"}),
        ([], {"a": "1"}),
    ],
)
def test_json_patch_operations(operations: list[Any], data: dict[str, str]) -> None:
    assert _apply(CONFIG_MAP, _config_map(a="1"), JSON_PATCH, operations)["data"] == data


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/data/a", "value": "2"},
        {"op": "remove", "path": "/data/b"},
        {"op": "add", "path": "/nothing/b", "value": "2"},
        {"op": "replace", "path": "", "value": {}},
        {"op": "copy", "from": "/data/none", "path": "/data/x"},
        {"op": "dance", "path": "/data/a"},
        {"path": "/data/a"},
    ],
)
def test_a_json_patch_that_does_not_apply_is_422_with_fixed_words(operation: dict[str, Any]) -> None:
    with pytest.raises(ApiStatusError) as caught:
        _apply(CONFIG_MAP, _config_map(a="1"), JSON_PATCH, [operation])
    assert (caught.value.code, caught.value.details) == (422, {})


def test_json_patch_counts_list_positions_from_both_ends() -> None:
    current = _deployment(containers=[{"name": "a", "image": "1", "args": ["x", "y"]}])
    at = "/spec/template/spec/containers/0/args"
    operations = [
        {"op": "add", "path": f"{at}/-", "value": "z"},
        {"op": "replace", "path": f"{at}/-1", "value": "last"},
        {"op": "add", "path": f"{at}/0", "value": "first"},
        {"op": "remove", "path": f"{at}/1"},
    ]
    changed = _apply(DEPLOYMENT, current, JSON_PATCH, operations)
    assert _pod(changed)["containers"][0]["args"] == ["first", "y", "last"]


def test_the_number_one_is_not_the_value_true_to_a_json_patch_test() -> None:
    current = {"spec": {"replicas": 1}}
    with pytest.raises(ApiStatusError):
        _apply(DEPLOYMENT, current, JSON_PATCH, [{"op": "test", "path": "/spec/replicas", "value": True}])


def test_members_a_json_patch_operation_does_not_have_are_complained_about() -> None:
    body = b'[{"op": "add", "path": "/data/b", "value": "2", "why": "x"}]'
    obj, warnings = patch.apply_patch(CONFIG_MAP, _config_map(a="1"), JSON_PATCH, body, "Warn")
    assert (obj["data"], warnings) == ({"a": "1", "b": "2"}, ['json patch unknown field "[0].why"'])
    with pytest.raises(ApiStatusError) as caught:
        _apply(CONFIG_MAP, _config_map(), JSON_PATCH, [{"op": 1}])
    assert caught.value.message == (
        "error decoding patch: json: cannot unmarshal number into Go struct field jsonPatchOp.op of type string"
    )


def test_more_operations_than_a_json_patch_may_have_are_413() -> None:
    operations = [{"op": "test", "path": "/data/a", "value": "1"}] * 10_001
    with pytest.raises(ApiStatusError) as caught:
        _apply(CONFIG_MAP, _config_map(a="1"), JSON_PATCH, operations)
    assert caught.value.code == 413


def test_a_merge_patch_whose_result_has_a_wrong_type_shows_the_whole_result() -> None:
    with pytest.raises(ApiStatusError) as caught:
        _apply(CONFIG_MAP, _config_map(a="1"), MERGE, {"data": {"n": 5}})
    assert caught.value.code == 422
    assert (
        r'Invalid value: "{\"apiVersion\":\"v1\",\"data\":{\"a\":\"1\",\"n\":5},\"kind\":\"ConfigMap\",'
        r'\"metadata\":{\"name\":\"c\",\"namespace\":\"n\"}}"'
    ) in caught.value.message


def test_doubled_and_unknown_fields_of_a_patch_are_warned_about_or_refused() -> None:
    body = b'{"data": {"a": "1", "a": "2"}, "oops": 1}'
    _, warnings = patch.apply_patch(CONFIG_MAP, _config_map(), MERGE, body, "Warn")
    assert warnings == ['duplicate field "data.a"', 'unknown field "oops"']
    with pytest.raises(ApiStatusError) as caught:
        patch.apply_patch(CONFIG_MAP, _config_map(), MERGE, body, "Strict")
    assert caught.value.code == 422


def test_custom_resources_take_no_strategic_merge_patch() -> None:
    with pytest.raises(ApiStatusError) as caught:
        _apply(WIDGET, {"spec": {}}, STRATEGIC, {"spec": {}})
    assert caught.value.code == 415


def test_strategic_merge_matches_containers_by_name_and_keeps_the_rest() -> None:
    current = _deployment(containers=[{"name": "a", "image": "1"}, {"name": "b", "image": "1", "args": ["x"]}])
    changed = _apply(DEPLOYMENT, current, STRATEGIC, _pod_change(containers=[{"name": "b", "image": "2"}]))
    assert [(c["name"], c["image"], c.get("args")) for c in _pod(changed)["containers"]] == [
        ("a", "1", None),
        ("b", "2", ["x"]),
    ]


def test_strategic_merge_uses_each_lists_own_key() -> None:
    current = _deployment(
        containers=[
            {
                "name": "a",
                "ports": [{"containerPort": 80, "name": "http"}],
                "volumeMounts": [{"name": "v", "mountPath": "/a"}],
                "env": [{"name": "A", "value": "1"}],
            }
        ],
        imagePullSecrets=[{"name": "one"}],
        hostAliases=[{"ip": "10.0.0.1", "hostnames": ["a"]}],
    )
    change = _pod_change(
        containers=[
            {
                "name": "a",
                "ports": [{"containerPort": 80, "hostPort": 8080}],
                "volumeMounts": [{"mountPath": "/a", "readOnly": True}],
                "env": [{"name": "B", "value": "2"}],
            }
        ],
        imagePullSecrets=[{"name": "two"}],
        hostAliases=[{"ip": "10.0.0.1", "hostnames": ["b"]}],
    )
    pod = _pod(_apply(DEPLOYMENT, current, STRATEGIC, change))
    container = pod["containers"][0]
    assert container["ports"] == [{"name": "http", "hostPort": 8080, "containerPort": 80}]
    assert container["volumeMounts"] == [{"name": "v", "readOnly": True, "mountPath": "/a"}]
    assert {variable["name"] for variable in container["env"]} == {"A", "B"}
    assert {secret["name"] for secret in pod["imagePullSecrets"]} == {"one", "two"}
    assert pod["hostAliases"] == [{"ip": "10.0.0.1", "hostnames": ["b"]}]


def test_strategic_merge_knows_service_ports_webhooks_and_primitive_sets() -> None:
    ports = {"spec": {"ports": [{"port": 80, "name": "a"}]}}
    changed = _apply(SERVICE, ports, STRATEGIC, {"spec": {"ports": [{"port": 80, "targetPort": 8080}]}})
    assert changed["spec"]["ports"] == [{"name": "a", "port": 80, "targetPort": 8080}]

    hooks = {"webhooks": [{"name": "a.b.c", "clientConfig": {"url": "https://x"}}]}
    bundle = {"webhooks": [{"name": "a.b.c", "clientConfig": {"caBundle": "eA=="}}]}
    changed = _apply(HOOKS, hooks, STRATEGIC, bundle)
    assert changed["webhooks"][0]["clientConfig"] == {"url": "https://x", "caBundle": "eA=="}

    held = {"metadata": {"finalizers": ["a/1", "a/2"]}}
    assert _apply(CONFIG_MAP, held, STRATEGIC, {"metadata": {"finalizers": ["a/3"]}})["metadata"]["finalizers"] == [
        "a/3",
        "a/1",
        "a/2",
    ]
    gone = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/1"]}}
    assert _apply(CONFIG_MAP, held, STRATEGIC, gone)["metadata"]["finalizers"] == ["a/2"]


def test_strategic_merge_directives_replace_and_delete() -> None:
    current = _deployment(
        containers=[{"name": "a"}, {"name": "b"}], nodeSelector={"x": "1"}, securityContext={"runAsUser": 1}
    )
    gone = _apply(DEPLOYMENT, current, STRATEGIC, _pod_change(containers=[{"name": "a", "$patch": "delete"}]))
    assert [c["name"] for c in _pod(gone)["containers"]] == ["b"]
    replaced = _apply(DEPLOYMENT, current, STRATEGIC, _pod_change(containers=[{"$patch": "replace"}, {"name": "z"}]))
    assert [c["name"] for c in _pod(replaced)["containers"]] == ["z"]
    fresh = _apply(DEPLOYMENT, current, STRATEGIC, _pod_change(nodeSelector={"$patch": "replace", "y": "2"}))
    assert _pod(fresh)["nodeSelector"] == {"y": "2"}
    empty = _apply(DEPLOYMENT, current, STRATEGIC, _pod_change(securityContext={"$patch": "delete"}))
    assert _pod(empty)["securityContext"] == {}


def test_strategic_merge_orders_a_list_as_stated_and_puts_unnamed_items_before_what_they_preceded() -> None:
    current = _deployment(containers=[{"name": name} for name in ("a", "server", "b")])
    change = _pod_change(
        **{
            "$setElementOrder/containers": [{"name": "b"}, {"name": "new"}, {"name": "a"}],
            "containers": [{"name": "new", "image": "1"}],
        }
    )
    changed = _apply(DEPLOYMENT, current, STRATEGIC, change)
    assert [c["name"] for c in _pod(changed)["containers"]] == ["server", "b", "new", "a"]


def test_retained_keys_drop_the_other_source_of_a_volume() -> None:
    current = _deployment(volumes=[{"name": "v", "configMap": {"name": "c"}}])
    change = _pod_change(volumes=[{"name": "v", "$retainKeys": ["name", "emptyDir"], "emptyDir": {}}])
    assert _pod(_apply(DEPLOYMENT, current, STRATEGIC, change))["volumes"] == [{"name": "v", "emptyDir": {}}]


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (
            _pod_change(containers=[{"image": "x"}]),
            500,
            "map: map[image:x] does not contain declared merge key: name",
        ),
        ({"metadata": {"$patch": "sing"}}, 500, "unknown patch type: sing in map: map[$patch:sing]"),
        (_pod_change(**{"$retainKeys": ["nodeName"], "hostname": "x"}), 400, "invalid patch format of retainKeys"),
        ([], 400, "json: cannot unmarshal array into Go value of type map[string]interface {}"),
    ],
)
def test_a_malformed_strategic_patch_is_refused(change: object, code: int, message: str) -> None:
    with pytest.raises(ApiStatusError) as caught:
        _apply(DEPLOYMENT, _deployment(containers=[{"name": "a"}]), STRATEGIC, change)
    assert (caught.value.code, caught.value.message) == (code, message)


_KEYS = st.sampled_from(["a", "b", "c"])
_DATA = st.dictionaries(_KEYS, st.text("xyz", max_size=2), max_size=3)
_CHANGE = st.dictionaries(_KEYS, st.none() | st.text("xyz", max_size=2), max_size=3)


@settings(max_examples=60, deadline=None)
@given(_DATA, _CHANGE)
def test_merge_patches_are_idempotent_and_agree_with_strategic_ones_on_plain_maps(
    data: dict[str, str], change: dict[str, str | None]
) -> None:
    once = _apply(CONFIG_MAP, _config_map(**data), MERGE, {"data": change})
    assert _apply(CONFIG_MAP, once, MERGE, {"data": change}) == once
    assert _apply(CONFIG_MAP, _config_map(**data), STRATEGIC, {"data": change}) == once
    expected = {k: v for k, v in {**data, **change}.items() if v is not None}
    assert (once.get("data") or {}) == expected
