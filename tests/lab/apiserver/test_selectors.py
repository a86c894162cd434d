"""Selectors: what matches, and what is refused with which words."""

from __future__ import annotations

import pytest

from infra.lab.apiserver import selectors
from infra.lab.apiserver.kinds import Registry
from infra.lab.apiserver.status import ApiStatusError

LABELS = {"app": "web", "tier": "front", "n": "5"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("app=web", True),
        ("app==web", True),
        ("app!=web", False),
        ("other!=web", True),
        ("app in (web, api)", True),
        ("app notin (web)", False),
        ("other notin (web)", True),
        ("app,tier", True),
        ("!app", False),
        ("!other", True),
        ("app=web,tier=back", False),
        ("n>4", True),
        ("n<5", False),
        ("other>1", False),
        ("in=x", False),
        ("app in ()", False),
    ],
)
def test_a_label_selector_matches_as_documented(text: str, expected: bool) -> None:
    assert selectors.parse_labels(text).matches(LABELS) is expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("==", "found '==', expected: !, identifier, or 'end of string'"),
        ("app in a", "unable to parse requirement: found 'a' expected: '('"),
        ("app=a,", "found '', expected: identifier after ','"),
        ("app=a b", "found 'b', expected: ',' or 'end of string'"),
        ("app ~ a", "unable to parse requirement: found '~', expected: in, notin, =, ==, !=, gt, lt"),
    ],
)
def test_a_malformed_label_selector_is_a_bad_request_in_the_servers_words(text: str, message: str) -> None:
    with pytest.raises(ApiStatusError) as caught:
        selectors.parse_labels(text)
    assert (caught.value.code, caught.value.message) == (400, message)


def test_a_selector_of_an_object_that_is_empty_matches_everything_and_none_matches_nothing() -> None:
    assert selectors.from_object({}).matches({})
    assert not selectors.from_object(None).matches({"a": "b"})


def test_the_text_form_of_a_selector_is_sorted_by_key() -> None:
    selector = {
        "matchLabels": {"z": "1", "a": "2"},
        "matchExpressions": [
            {"key": "m", "operator": "In", "values": ["y", "x"]},
            {"key": "k", "operator": "DoesNotExist"},
        ],
    }
    assert selectors.format_selector(selector) == "a=2,!k,m in (x,y),z=1"


def pod_kind():
    kind = Registry().by_resource("pods")
    assert kind
    return kind


def test_a_field_selector_compares_booleans_and_absent_fields_as_text() -> None:
    pod = {"metadata": {"name": "p"}, "spec": {"nodeName": "n1"}}
    for text, expected in (
        ("spec.nodeName=n1", True),
        ("spec.nodeName!=n1", False),
        ("status.phase=", True),
        ("spec.hostNetwork=false", True),
        ("metadata.name=p,spec.nodeName=other", False),
    ):
        assert selectors.parse_fields(text, pod_kind()).matches(pod) is expected, text


def test_a_field_selector_with_an_escaped_comma_is_one_term() -> None:
    selector = selectors.parse_fields(r"metadata.name=a\,b", pod_kind())
    assert [(term.path, term.value) for term in selector.terms] == [("metadata.name", "a,b")]


def test_an_unsupported_field_is_a_bad_request() -> None:
    with pytest.raises(ApiStatusError, match=r"field label not supported: spec\.containers"):
        selectors.parse_fields("spec.containers=1", pod_kind())
