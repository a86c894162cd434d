"""Request bodies: what is malformed, unknown or doubled."""

from __future__ import annotations

import pytest

from infra.lab.apiserver import fieldvalidation
from infra.lab.apiserver.kinds import KindInfo
from infra.lab.apiserver.status import ApiStatusError

CONFIG_MAP = KindInfo("", "v1", "ConfigMap", "configmaps", namespaced=True)
DEPLOYMENT = KindInfo("apps", "v1", "Deployment", "deployments", namespaced=True)
WIDGET = KindInfo("example.com", "v1", "Widget", "widgets", namespaced=True, custom=True)


def test_kind_and_version_may_be_left_out() -> None:
    obj, warnings = fieldvalidation.check(CONFIG_MAP, b'{"metadata": {"name": "x"}}', "Strict")
    assert obj == {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "x"}}
    assert warnings == []


def test_unknown_and_doubled_fields_are_named_with_their_place() -> None:
    body = b"""{"spec": {"template": {"spec": {"containers": [{"name": "a", "oops": 1}, {"name": "b", "image": "x",
        "image": "y"}]}}}, "dota": {}}"""
    _, warnings = fieldvalidation.check(DEPLOYMENT, body, "Warn")
    assert warnings == [
        'unknown field "spec.template.spec.containers[0].oops"',
        'duplicate field "spec.template.spec.containers[1].image"',
        'unknown field "dota"',
    ]


def test_ignoring_is_silent_and_still_drops_what_is_unknown() -> None:
    obj, warnings = fieldvalidation.check(CONFIG_MAP, b'{"data": {"a": "1", "a": "2"}, "oops": 1}', "Ignore")
    assert (obj["data"], warnings) == ({"a": "2"}, [])
    assert "oops" not in obj


def test_strict_refuses_with_every_complaint() -> None:
    with pytest.raises(ApiStatusError) as caught:
        fieldvalidation.check(CONFIG_MAP, b'{"a": 1, "data": {"k": "1", "k": "2"}}', "Strict")
    assert caught.value.code == 400
    assert caught.value.message == (
        'ConfigMap in version "v1" cannot be handled as a ConfigMap: '
        'strict decoding error: unknown field "a", duplicate field "data.k"'
    )


WIDGET_HEAD = f'{{"apiVersion": "{WIDGET.api_version}", "kind": "{WIDGET.kind}",'.encode()


def test_doubled_keys_of_custom_resources_are_seen_too() -> None:
    _, warnings = fieldvalidation.check(WIDGET, WIDGET_HEAD + b' "spec": {"a": 1, "a": 2}}', "Warn")
    assert warnings == ['duplicate field "spec.a"']


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "unexpected end of JSON input"),
        ("{", "unexpected end of JSON input"),
        ('{"a" 1}', "invalid character '1' after object key"),
        ('{"a": 1 "b": 2}', "invalid character '\"' after object key:value pair"),
        ("[1 2]", "invalid character '2' after array element"),
        ("{a: 1}", "invalid character 'a' looking for beginning of object key string"),
        ("nope", "invalid character 'o' in literal null (expecting 'u')"),
        ("{} x", "invalid character 'x' after top-level value"),
        ("-x", "invalid character 'x' in numeric literal"),
        ('{"a": }', "invalid character '}' looking for beginning of value"),
    ],
)
def test_malformed_json_is_described_as_the_real_decoder_does(text: str, complaint: str) -> None:
    with pytest.raises(ApiStatusError) as caught:
        fieldvalidation.check(CONFIG_MAP, text.encode(), "Warn")
    assert f"json parse error: {complaint} (" in caught.value.message


def test_another_kind_is_refused_by_name() -> None:
    with pytest.raises(ApiStatusError) as caught:
        fieldvalidation.check(CONFIG_MAP, b'{"apiVersion": "apps/v1", "kind": "Deployment"}', "Warn")
    assert caught.value.message == (
        'Deployment in version "v1" cannot be handled as a ConfigMap: '
        "converting (v1.Deployment) to (core.ConfigMap): unknown conversion"
    )


def test_an_applied_body_is_yaml_1_1_as_on_a_real_server() -> None:
    body = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  y: '1'\n"
    assert fieldvalidation.check_applied(CONFIG_MAP, body, "Strict")["data"] == {"true": "1"}


def test_an_applied_body_keeps_exactly_what_the_client_wrote() -> None:
    body = b'{"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"paused": false}}'
    assert fieldvalidation.check_applied(DEPLOYMENT, body, "Strict")["spec"] == {"paused": False}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"data": {}}', "invalid object type: /, Kind="),
        (
            b'{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"managedFields": []}}',
            "metadata.managedFields must be nil",
        ),
    ],
)
def test_an_applied_body_without_a_kind_or_with_managed_fields_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(ApiStatusError) as caught:
        fieldvalidation.check_applied(CONFIG_MAP, body, "Strict")
    assert (caught.value.code, caught.value.message) == (400, message)
