"""Server-side apply and the record of who manages which field."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.lab.apiserver import apply, defaults, managed_fields
from infra.lab.apiserver.kinds import KindInfo, Subresource
from infra.lab.apiserver.status import ApiStatusError

STATUS = (Subresource("status", "Deployment", ("get", "patch", "update")),)
CONFIG_MAP = KindInfo("", "v1", "ConfigMap", "configmaps", namespaced=True)
DEPLOYMENT = KindInfo("apps", "v1", "Deployment", "deployments", namespaced=True, subresources=STATUS)
WIDGET = KindInfo("example.com", "v1", "Widget", "widgets", namespaced=True, custom=True)
NOW = datetime(2026, 1, 1, tzinfo=UTC)

Object = dict[str, Any]


def _config_map(**data: str) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data}


def _deployment(*containers: Object, **spec: Any) -> Object:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d"},
        "spec": {**spec, "template": {"spec": {"containers": list(containers)}}},
    }


def _applied(
    kind: KindInfo, current: Object | None, body: Object, manager: str, *, force: bool = False, at: datetime = NOW
) -> Object:
    out = apply.server_side_apply(kind, current, body, manager, force, at)
    defaults.apply_defaults(kind, out)
    return out


def _updated(kind: KindInfo, old: Object | None, new: Object, manager: str, *, at: datetime = NOW) -> Object:
    new = copy.deepcopy(new)
    defaults.apply_defaults(kind, new)
    apply.track_update(kind, old, new, manager, "Update", "", at)
    return new


def _managers(obj: Object) -> dict[tuple[str, str], Object]:
    entries = obj["metadata"].get("managedFields") or []
    return {(entry["manager"], entry["operation"]): entry["fieldsV1"] for entry in entries}


def _containers(obj: Object) -> list[Object]:
    containers: list[Object] = obj["spec"]["template"]["spec"]["containers"]
    return containers


def test_applying_the_same_again_changes_nothing_not_even_the_time() -> None:
    first = _applied(CONFIG_MAP, None, _config_map(a="1"), "one")
    again = _applied(CONFIG_MAP, first, _config_map(a="1"), "one", at=NOW + timedelta(hours=1))
    assert again == first


@pytest.mark.parametrize("write", [_applied, _updated])
def test_a_new_value_in_a_field_one_holds_already_is_a_change_and_gets_its_time(write: Any) -> None:
    first = write(CONFIG_MAP, None, _config_map(a="1"), "one")
    body = _config_map(a="2") if write is _applied else {**first, "data": {"a": "2"}}
    arguments = (CONFIG_MAP, first, body, "one")
    (entry,) = write(*arguments, at=NOW + timedelta(hours=1))["metadata"]["managedFields"]
    assert entry["time"] == "2026-01-01T01:00:00Z"


def test_a_field_another_manager_applied_is_a_conflict_that_names_it() -> None:
    current = _applied(CONFIG_MAP, None, _config_map(a="1", b="1"), "one")
    with pytest.raises(ApiStatusError) as caught:
        _applied(CONFIG_MAP, current, _config_map(a="2", b="2"), "two")
    assert caught.value.code == 409
    assert caught.value.message == 'Apply failed with 2 conflicts: conflicts with "one":\n- .data.a\n- .data.b'
    assert caught.value.details == {
        "causes": [
            {"reason": "FieldManagerConflict", "message": 'conflict with "one"', "field": ".data.a"},
            {"reason": "FieldManagerConflict", "message": 'conflict with "one"', "field": ".data.b"},
        ]
    }


def test_an_equal_value_is_shared_and_survives_until_its_last_owner_drops_it() -> None:
    shared = _applied(CONFIG_MAP, None, _config_map(a="1"), "one")
    shared = _applied(CONFIG_MAP, shared, _config_map(a="1"), "two")
    without_one = _applied(CONFIG_MAP, shared, _config_map(z="1"), "one")
    assert without_one["data"] == {"a": "1", "z": "1"}
    without_both = _applied(CONFIG_MAP, without_one, _config_map(y="1"), "two")
    assert without_both["data"] == {"y": "1", "z": "1"}


def test_force_takes_the_field_from_its_owner() -> None:
    current = _applied(CONFIG_MAP, None, _config_map(a="1", b="1"), "one")
    forced = _applied(CONFIG_MAP, current, _config_map(a="2"), "two", force=True)
    assert forced["data"] == {"a": "2", "b": "1"}
    assert _managers(forced) == {
        ("one", "Apply"): {"f:data": {"f:b": {}}},
        ("two", "Apply"): {"f:data": {"f:a": {}}},
    }


def test_an_update_takes_what_it_changes_and_the_conflict_says_by_which_version() -> None:
    current = _applied(CONFIG_MAP, None, _config_map(a="1", b="1"), "one")
    edited = copy.deepcopy(current)
    edited["data"]["a"] = "9"
    edited = _updated(CONFIG_MAP, current, edited, "editor")
    assert _managers(edited)[("editor", "Update")] == {"f:data": {"f:a": {}}}
    with pytest.raises(ApiStatusError) as caught:
        _applied(CONFIG_MAP, edited, _config_map(a="1"), "one")
    assert caught.value.message == 'Apply failed with 1 conflict: conflict with "editor" using v1: .data.a'


def test_containers_are_owned_one_by_one_and_removed_whole_with_their_defaults() -> None:
    current = _applied(DEPLOYMENT, None, _deployment({"name": "main", "image": "a"}), "tool")
    both = _applied(DEPLOYMENT, current, _deployment({"name": "side", "image": "b"}), "other")
    assert [c["name"] for c in _containers(both)] == ["main", "side"]
    gone = _applied(DEPLOYMENT, both, _deployment({"name": "extra", "image": "c"}), "other")
    assert [c["name"] for c in _containers(gone)] == ["main", "extra"]


def test_a_conflict_inside_a_list_shows_the_key_of_the_element() -> None:
    current = _applied(DEPLOYMENT, None, _deployment({"name": "main", "image": "a"}), "tool")
    with pytest.raises(ApiStatusError) as caught:
        _applied(DEPLOYMENT, current, _deployment({"name": "main", "image": "b"}), "other")
    assert caught.value.message.endswith('.spec.template.spec.containers[name="main"].image')


def test_elements_with_a_defaulted_key_are_matched() -> None:
    one = {"name": "main", "image": "a", "ports": [{"containerPort": 80}]}
    two = {"name": "main", "image": "a", "ports": [{"containerPort": 80, "protocol": "TCP", "name": "http"}]}
    current = _applied(DEPLOYMENT, None, _deployment(one), "tool")
    changed = _applied(DEPLOYMENT, current, _deployment(two), "other")
    assert _containers(changed)[0]["ports"] == [{"name": "http", "containerPort": 80, "protocol": "TCP"}]


def test_a_field_that_was_applied_and_is_left_out_goes_back_to_its_default() -> None:
    current = _applied(DEPLOYMENT, None, _deployment({"name": "m", "image": "a"}, replicas=5), "tool")
    assert current["spec"]["replicas"] == 5
    changed = _applied(DEPLOYMENT, current, _deployment({"name": "m", "image": "a"}), "tool")
    assert changed["spec"]["replicas"] == 1


def test_a_label_selector_is_one_field() -> None:
    body = _deployment({"name": "m", "image": "a"}, selector={"matchLabels": {"app": "d"}})
    fields = _managers(_applied(DEPLOYMENT, None, body, "tool"))[("tool", "Apply")]
    assert fields["f:spec"]["f:selector"] == {}
    container = fields["f:spec"]["f:template"]["f:spec"]["f:containers"]['k:{"name":"m"}']
    assert container == {".": {}, "f:image": {}, "f:name": {}}


def test_a_created_object_is_managed_field_by_field_without_its_identity() -> None:
    created = _updated(CONFIG_MAP, None, {**_config_map(a="1"), "metadata": {"name": "c", "labels": {"x": "y"}}}, "me")
    assert created["metadata"]["managedFields"] == [
        {
            "manager": "me",
            "operation": "Update",
            "apiVersion": "v1",
            "time": "2026-01-01T00:00:00Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": {"f:data": {".": {}, "f:a": {}}, "f:metadata": {"f:labels": {".": {}, "f:x": {}}}},
        }
    ]


def test_status_is_managed_only_where_it_is_written() -> None:
    created = _updated(DEPLOYMENT, None, {**_deployment({"name": "m"}), "status": {"replicas": 3}}, "me")
    assert "f:status" not in _managers(created)[("me", "Update")]
    changed = copy.deepcopy(created)
    changed["status"] = {"replicas": 1}
    apply.track_update(DEPLOYMENT, created, changed, "controller", "Update", "status", NOW)
    entry = next(e for e in changed["metadata"]["managedFields"] if e["manager"] == "controller")
    assert (entry["subresource"], entry["fieldsV1"]) == ("status", {"f:status": {"f:replicas": {}}})


def test_an_update_that_changes_nothing_leaves_the_record_alone() -> None:
    created = _updated(CONFIG_MAP, None, _config_map(a="1"), "me")
    again = _updated(CONFIG_MAP, created, created, "somebody else", at=NOW + timedelta(hours=1))
    assert again == created


def test_a_client_can_clear_the_record() -> None:
    created = _updated(CONFIG_MAP, None, _config_map(a="1"), "me")
    cleared = copy.deepcopy(created)
    cleared["metadata"]["managedFields"] = [{}]
    apply.track_update(CONFIG_MAP, created, cleared, "me", "Update", "", NOW)
    assert "managedFields" not in cleared["metadata"]


def test_no_more_than_ten_updaters_are_remembered() -> None:
    obj = _updated(CONFIG_MAP, None, _config_map(a="0"), "m0")
    for number in range(1, 15):
        new = copy.deepcopy(obj)
        new["data"][f"k{number}"] = "1"
        obj = _updated(CONFIG_MAP, obj, new, f"m{number}", at=NOW + timedelta(minutes=number))
    names = {entry["manager"] for entry in obj["metadata"]["managedFields"]}
    assert len(names) == 10
    assert "ancient-changes" in names
    assert "m14" in names


def test_a_configuration_that_does_not_fit_the_type_is_500_in_the_real_words() -> None:
    body = {**_config_map(a="1"), "dota": {}}
    with pytest.raises(ApiStatusError) as caught:
        _applied(CONFIG_MAP, None, body, "me")
    assert (caught.value.code, caught.value.reason) == (500, "")
    assert caught.value.message == (
        "failed to create typed patch object (/c; /v1, Kind=ConfigMap): .dota: field not declared in schema"
    )


def test_a_list_element_without_its_key_is_refused() -> None:
    with pytest.raises(ApiStatusError) as caught:
        _applied(DEPLOYMENT, None, _deployment({"image": "a"}), "me")
    assert (
        ".spec.template.spec.containers: element 0: associative list with keys has an element that omits key field "
        '"name" (and doesn\'t have default value)'
    ) in caught.value.message


def test_custom_resources_are_owned_key_by_key_and_their_lists_whole() -> None:
    body = {
        "apiVersion": "example.com/v1",
        "kind": "Widget",
        "metadata": {"name": "w"},
        "spec": {"a": {"b": 1}, "list": [{"x": 1}, {"x": 2}]},
    }
    fields = _managers(_applied(WIDGET, None, body, "me"))[("me", "Apply")]
    assert fields == {"f:spec": {"f:a": {"f:b": {}}, "f:list": {}}}


def test_kubectl_takes_over_what_it_applied_on_the_clients_side() -> None:
    annotations = {apply.LAST_APPLIED: '{"data":{"a":"1"}}'}
    created = _config_map(a="1")
    created["metadata"]["annotations"] = annotations
    created = _updated(CONFIG_MAP, None, created, "kubectl-client-side-apply")
    taken = _applied(CONFIG_MAP, created, _config_map(a="2"), "kubectl")
    assert taken["data"] == {"a": "2"}
    assert '"a":"2"' in taken["metadata"]["annotations"][apply.LAST_APPLIED]
    with pytest.raises(ApiStatusError):
        _applied(CONFIG_MAP, created, _config_map(a="2"), "another tool")
    edited = _updated(CONFIG_MAP, created, {**created, "data": {"a": "9"}}, "editor")
    with pytest.raises(ApiStatusError):
        _applied(CONFIG_MAP, edited, _config_map(a="2"), "kubectl")


_VALUES = st.dictionaries(st.sampled_from("abcd"), st.sampled_from("12"), max_size=4)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["one", "two", "three"]), _VALUES), min_size=1, max_size=6))
def test_after_a_forced_apply_the_object_has_what_was_applied_and_nothing_unowned(
    steps: list[tuple[str, dict[str, str]]],
) -> None:
    obj: Object | None = None
    for manager, data in steps:
        obj = _applied(CONFIG_MAP, obj, _config_map(**data), manager, force=True)
        held = obj.get("data") or {}
        assert {key: held.get(key) for key in data} == data
        owned = {
            name.removeprefix("f:")
            for fields in _managers(obj).values()
            for name in fields.get("f:data", {})
            if name != "."
        }
        assert set(held) == owned


_SETS = st.frozensets(
    st.lists(st.sampled_from(["f:a", "f:b", 'k:{"name":"x"}', 'v:"y"']), min_size=1, max_size=3).map(tuple), max_size=6
)


@settings(max_examples=80, deadline=None)
@given(_SETS)
def test_field_sets_survive_being_written_and_read(fields: managed_fields.FieldSet) -> None:
    assert managed_fields.decode(managed_fields.encode(fields)) == fields


def test_the_first_apply_to_an_object_without_a_record_respects_what_is_there() -> None:
    unrecorded = _config_map(a="1")
    with pytest.raises(ApiStatusError) as caught:
        _applied(CONFIG_MAP, unrecorded, _config_map(a="2"), "me")
    assert caught.value.message.startswith('Apply failed with 1 conflict: conflict with "before-first-apply" using v1')


def test_list_elements_that_cannot_be_told_apart_leave_the_record_as_it_was() -> None:
    account = KindInfo("", "v1", "ServiceAccount", "serviceaccounts", namespaced=True)
    body = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}, "secrets": [{"namespace": "n"}]}
    created = _updated(account, None, body, "me")
    assert "managedFields" not in created["metadata"]
    with pytest.raises(ApiStatusError) as caught:
        _applied(account, created, {**body, "secrets": []}, "me")
    assert caught.value.message.startswith("failed to create typed live object (/a; /v1, Kind=ServiceAccount): ")
