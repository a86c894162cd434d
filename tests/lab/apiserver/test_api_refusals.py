"""What the API server refuses, in the words of kube-apiserver v1.36 (apimachinery and apiserver, release-1.36)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

if TYPE_CHECKING:
    import httpx

CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"
MERGE = {"content-type": "application/merge-patch+json"}
APPLY = {"content-type": "application/apply-patch+yaml"}
VALUE_RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)


def _message(answer: httpx.Response, code: int) -> str:
    assert answer.status_code == code, answer.text
    return str(answer.json()["message"])


def _create(http: httpx.Client, name: str, **body: Any) -> dict[str, Any]:
    answer = http.post(CONFIG_MAPS, json={"metadata": {"name": name, **body.pop("metadata", {})}, **body})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.proves("api", "refusals", "label selectors: grammar and aggregate errors")
@pytest.mark.parametrize(
    ("selector", "complaint"),
    [
        ("a===b", "unable to parse requirement: found '=', expected: identifier"),
        ("a in ()", ""),
        ("a in (,)", ""),
        ("in in (x)", ""),
        ("a=in", ""),
        ("a in (=)", "unable to parse requirement: found '=', expected: ',', ')' or identifier"),
        ("a in (b,=)", "unable to parse requirement: found '=', expected: ',', or identifier"),
        ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
        ("a in (", "unable to parse requirement: found '', expected: ',', ')' or identifier"),
        ("a gt 1", "unable to parse requirement: found 'gt', expected: in, notin, =, ==, !=, gt, lt"),
        ("a>", "unable to parse requirement: values[0]: Invalid value: \"\": for 'Gt', 'Lt' operators, "
         "the value must be an integer"),
        ("/b=c", "unable to parse requirement: <nil>: Invalid value: \"/b\": prefix part must be non-empty"),
        ("a=-b", f'unable to parse requirement: values[0][a]: Invalid value: "-b": {VALUE_RULE}'),
        ("a in (-b,-c)", f'unable to parse requirement: [values[0][a]: Invalid value: "-b": {VALUE_RULE}, '
         f'values[1][a]: Invalid value: "-c": {VALUE_RULE}]'),
        (f"a={'b' * 64}", f'unable to parse requirement: values[0][a]: Invalid value: "{"b" * 64}": '
         "must be no more than 63 bytes"),
    ],
)  # fmt: skip
def test_a_label_selector_is_read_by_the_real_grammar(http: httpx.Client, selector: str, complaint: str) -> None:
    answer = http.get(f"{CONFIG_MAPS}?labelSelector={quote(selector)}")
    if complaint:
        assert _message(answer, 400) == complaint
    else:
        assert answer.status_code == 200


@pytest.mark.proves("api", "refusals", "field selectors: escapes")
@pytest.mark.parametrize(
    ("selector", "complaint"),
    [
        ("metadata.name=a\\,b", ""),
        ("metadata.name=a\\", "invalid field selector: invalid escape sequence: \\"),
        ("metadata.name=a\\b", "invalid field selector: invalid escape sequence: \\b"),
        ("metadata.name=a=b", "invalid field selector: unescaped character in value: 61"),
        ("metadata.name", "invalid selector: 'metadata.name'; can't understand 'metadata.name'"),
    ],
)
def test_a_field_selector_knows_its_escapes(http: httpx.Client, selector: str, complaint: str) -> None:
    answer = http.get(f"{CONFIG_MAPS}?fieldSelector={quote(selector)}")
    if complaint:
        assert _message(answer, 400) == complaint
    else:
        assert answer.status_code == 200


def test_an_update_ignores_the_creation_time_and_refuses_a_deletion_time(http: httpx.Client) -> None:
    before = _create(http, "times")
    early = {"metadata": {"creationTimestamp": "2020-01-01T00:00:00Z", "generation": 7}}
    after = http.patch(f"{CONFIG_MAPS}/times", json=early, headers=MERGE).json()
    assert after["metadata"]["creationTimestamp"] == before["metadata"]["creationTimestamp"]
    assert "generation" not in after["metadata"]
    refused = http.patch(
        f"{CONFIG_MAPS}/times", json={"metadata": {"deletionTimestamp": "2020-01-01T00:00:00Z"}}, headers=MERGE
    )
    words = 'metadata.deletionTimestamp: Invalid value: "2020-01-01T00:00:00Z": field is immutable'
    assert _message(refused, 422) == f'ConfigMap "times" is invalid: {words}'


@pytest.mark.proves("api", "refusals", "a patch that changes kind, apiVersion or resourceVersion")
def test_a_patch_cannot_make_another_thing_of_an_object(http: httpx.Client) -> None:
    _create(http, "kind")
    for change, words in (
        ({"kind": "Secret"}, "converting (v1.Secret) to (core.ConfigMap): unknown conversion"),
        ({"apiVersion": "v3"}, 'no kind "ConfigMap" is registered for version "v3" in scheme'),
    ):
        message = _message(http.patch(f"{CONFIG_MAPS}/kind", json=change, headers=MERGE), 422)
        assert message.startswith(' "" is invalid: patch: Invalid value: ')
        assert words in message
    malformed = http.patch(f"{CONFIG_MAPS}/kind", json={"metadata": {"resourceVersion": "abc"}}, headers=MERGE)
    assert _message(malformed, 500) == 'strconv.ParseUint: parsing "abc": invalid syntax'


def test_an_object_without_a_name_cannot_replace_one(http: httpx.Client) -> None:
    _create(http, "named")
    words = "the name of the object (named based on URL) was undeterminable: name must be provided"
    assert _message(http.put(f"{CONFIG_MAPS}/named", json={"metadata": {}}), 400) == words
    unnamed = http.patch(f"{CONFIG_MAPS}/named", json={"metadata": {"name": None}}, headers=MERGE)
    assert _message(unnamed, 400) == words


def test_a_field_manager_has_printable_characters_only(http: httpx.Client) -> None:
    answer = http.post(f"{CONFIG_MAPS}?fieldManager=a%01b&dryRun=x", json={"metadata": {"name": "manager"}})
    assert _message(answer, 422) == (
        'CreateOptions.meta.k8s.io "" is invalid: [fieldManager: Invalid value: "a\\x01b": invalid character U+0001 '
        '(at position 1), dryRun: Unsupported value: ["x"]: supported values: "All"]'
    )


@pytest.mark.proves("api", "refusals", "malformed and foreign DeleteOptions")
@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "couldn't get version/kind; json parse error: unexpected end of JSON input"),
        (
            b'{"kind": "Pod", "apiVersion": "v1"}',
            'no kind "Pod" is registered for version "v1" in scheme '
            '"k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:31"',
        ),
        (
            b'{"gracePeriodSeconds": "1"}',
            "json: cannot unmarshal string into Go struct field DeleteOptions.gracePeriodSeconds of type int64",
        ),
    ],
    ids=["malformed", "another kind", "wrong type"],
)
def test_the_options_of_a_deletion_are_decoded_before_anything_goes(
    http: httpx.Client, body: bytes, words: str
) -> None:
    http.post(CONFIG_MAPS, json={"metadata": {"name": "stays"}})
    answer = http.request("DELETE", f"{CONFIG_MAPS}/stays", content=body, headers={"content-type": "application/json"})
    assert _message(answer, 400) == words
    assert http.get(f"{CONFIG_MAPS}/stays").status_code == 200


def test_owners_given_twice_are_dropped_with_a_warning(http: httpx.Client) -> None:
    owner = {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u-1"}
    answer = http.post(CONFIG_MAPS, json={"metadata": {"name": "owned", "ownerReferences": [owner, owner]}})
    assert len(answer.json()["metadata"]["ownerReferences"]) == 1
    assert "contains duplicate entries; API server dedups owner references" in answer.headers["warning"]
    assert answer.headers["warning"].endswith('duplicate UID(s) observed: u-1"')


@pytest.mark.proves("api", "refusals", "server-side apply: YAML errors, doubled keys by line")
def test_apply_reads_yaml_and_names_keys_given_twice_by_line(http: httpx.Client) -> None:
    path = f"{CONFIG_MAPS}/applied?fieldManager=t"
    head = b"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: applied\ndata:\n  a: '1'\n  a: '2'\n"
    strict = http.patch(f"{path}&fieldValidation=Strict", content=head, headers=APPLY)
    assert _message(strict, 400) == (
        "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n"
        '  line 7: key "a" already set in map'
    )
    lenient = http.patch(path, content=head, headers=APPLY)
    assert lenient.json()["data"] == {"a": "2"}
    # a header cannot carry the line break of this warning, so there is none
    assert "warning" not in lenient.headers
    assert _message(http.patch(path, content=b"", headers=APPLY), 400) == "invalid object type: /, Kind="
    assert _message(http.patch(path, content=b"[]", headers=APPLY), 400) == (
        "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal array into Go value "
        "of type map[string]interface {}"
    )


@pytest.mark.proves("api", "refusals", "406 and 400 for Tables and metadata that do not fit")
@pytest.mark.parametrize(
    ("path", "accept", "code", "words"),
    [
        ("", "PartialObjectMetadata", 406,
         "you requested PartialObjectMetadata, but the requested object is a list (*core.ConfigMapList)"),
        ("/shown", "PartialObjectMetadataList", 406,
         "you requested PartialObjectMetadataList, but the requested object is not a list type (*core.ConfigMap)"),
        ("/shown?includeObject=X", "Table", 400,
         "Unable to convert to Table as requested: includeObject: Invalid value: \"X\": "
         "must be 'Metadata', 'Object', 'None', or empty"),
    ],
    ids=["metadata of a list", "metadata list of an object", "unknown includeObject"],
)  # fmt: skip
def test_a_representation_that_does_not_fit_is_refused(
    http: httpx.Client, path: str, accept: str, code: int, words: str
) -> None:
    http.post(CONFIG_MAPS, json={"metadata": {"name": "shown"}})
    answer = http.get(CONFIG_MAPS + path, headers={"accept": f"application/json;as={accept};v=v1;g=meta.k8s.io"})
    assert _message(answer, code) == words


def test_a_refusal_speaks_the_language_that_was_asked_for(http: httpx.Client) -> None:
    answer = http.get(f"{CONFIG_MAPS}/nowhere", headers={"accept": "application/yaml"})
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/yaml"
    assert "reason: NotFound" in answer.text


def test_edges_of_lists_and_methods(http: httpx.Client) -> None:
    whole = len(http.get(CONFIG_MAPS).json()["items"])
    assert len(http.get(f"{CONFIG_MAPS}?limit=-1").json()["items"]) == whole
    number = http.get(f"{CONFIG_MAPS}?timeoutSeconds=abc")
    assert _message(number, 400) == 'strconv.ParseInt: parsing "abc": invalid syntax'
    assert http.head(CONFIG_MAPS).status_code == 405
    assert _message(http.post("/version", json={}), 405) == (
        "the server does not allow this method on the requested resource"
    )
    both = http.get(f"{CONFIG_MAPS}?watch=1&resourceVersion=1&resourceVersionMatch=Exact")
    assert _message(both, 422) == (
        'ListOptions.meta.k8s.io "" is invalid: [resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden '
        'for watch unless sendInitialEvents is provided, resourceVersionMatch: Unsupported value: "Exact": supported '
        'values: "NotOlderThan"]'
    )


def _pod_template(**spec: Any) -> dict[str, Any]:
    container = {"name": "c", "image": "i"}
    return {"spec": {"containers": [container], "restartPolicy": "Never", **spec}}


@pytest.mark.proves("api", "refusals", "CronJobs, StatefulSets and Services that are wrong")
@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (
            "/apis/batch/v1/namespaces/default/cronjobs",
            {"schedule": "TZ=UTC * * * * *", "jobTemplate": {"spec": {"template": _pod_template()}}},
            'spec.schedule: Invalid value: "TZ=UTC * * * * *": cannot use TZ or CRON_TZ in schedule, use timeZone '
            "field instead",
        ),
        (
            "/apis/batch/v1/namespaces/default/cronjobs",
            {"schedule": "* * * * *", "timeZone": "Mars/X", "jobTemplate": {"spec": {"template": _pod_template()}}},
            'spec.timeZone: Invalid value: "Mars/X": unknown time zone Mars/X',
        ),
        (
            "/apis/apps/v1/namespaces/default/statefulsets",
            {
                "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}}, **_pod_template(restartPolicy="Always")},
                "updateStrategy": {"type": "OnDelete", "rollingUpdate": {"partition": 1}},
            },
            'spec.updateStrategy.rollingUpdate: Invalid value: {"Partition":1,"MaxUnavailable":null}: only allowed for '
            "updateStrategy 'RollingUpdate'",
        ),
        (
            "/api/v1/namespaces/default/services",
            {"clusterIP": "1.2.3", "clusterIPs": ["1.2.3"], "ports": [{"port": 80}]},
            'spec.clusterIPs[0]: Invalid value: "1.2.3": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)',
        ),
    ],
    ids=["TZ in a schedule", "unknown time zone", "rolling parameters of OnDelete", "half an address"],
)
def test_a_specification_is_refused_for_what_is_wrong_with_it(
    http: httpx.Client, path: str, body: dict[str, Any], words: str
) -> None:
    message = _message(http.post(path, json={"metadata": {"name": "x"}, "spec": body}), 422)
    assert message.partition(" is invalid: ")[2] == words


@pytest.mark.proves("api", "refusals", "Jobs: selectors and templates")
def test_a_job_generates_its_own_selector_and_keeps_its_template(http: httpx.Client) -> None:
    jobs = "/apis/batch/v1/namespaces/default/jobs"
    own = {"template": _pod_template(), "selector": {"matchLabels": {"a": "b"}}}
    message = _message(http.post(jobs, json={"metadata": {"name": "chooses"}, "spec": own}), 422)
    assert "`selector` not auto-generated" in message
    suspended = {"template": _pod_template(), "suspend": True}
    assert http.post(jobs, json={"metadata": {"name": "waits"}, "spec": suspended}).status_code == 201
    moved = {"spec": {"template": {"spec": {"nodeSelector": {"a": "b"}}}}}
    assert http.patch(f"{jobs}/waits", json=moved, headers=MERGE).status_code == 200
    other = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "other"}]}}}}
    message = _message(http.patch(f"{jobs}/waits", json=other, headers=MERGE), 422)
    assert message.startswith('Job.batch "waits" is invalid: spec.template: Invalid value: ')
    assert message.endswith(": field is immutable")


def test_an_eviction_and_a_token_request_name_whom_they_are_for(http: httpx.Client) -> None:
    eviction = http.post("/api/v1/namespaces/default/pods/p/eviction", json={})
    assert _message(eviction, 400) == "name in URL does not match name in Eviction object"
    http.post("/api/v1/namespaces/default/serviceaccounts", json={"metadata": {"name": "asked"}})
    token = http.post("/api/v1/namespaces/default/serviceaccounts/asked/token", json={"metadata": {"name": "other"}})
    assert _message(token, 422) == (
        'TokenRequest.authentication.k8s.io "asked" is invalid: metadata.name: Invalid value: "other": '
        "must match the service account name if specified"
    )


def test_a_namespace_has_a_label_for_a_name_and_full_names_for_finalizers(http: httpx.Client) -> None:
    dotted = http.post("/api/v1/namespaces", json={"metadata": {"name": "a.b"}})
    assert _message(dotted, 422).endswith('metadata.name: Invalid value: "a.b": must not contain dots')
    http.post("/api/v1/namespaces", json={"metadata": {"name": "finalized"}})
    body = {"metadata": {"name": "finalized"}, "spec": {"finalizers": ["kubernetes", "bad"]}}
    refused = http.put("/api/v1/namespaces/finalized/finalize", content=json.dumps(body))
    assert _message(refused, 422).endswith(
        'spec.finalizers[1]: Invalid value: "bad": name is neither a standard finalizer name nor is it fully qualified'
    )
