"""A value inside YAML text is changed, and nothing else of the text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from capstan.errors import InvalidInput
from capstan.systems.linkerd.values import get_value, set_value

PEM = "-----BEGIN CERTIFICATE-----\nAAAA\nBBBB==\n-----END CERTIFICATE-----"
NEW = PEM + "\n" + PEM.replace("AAAA", "CCCC")
ANCHORS = ("identityTrustAnchorsPEM",)

HELM = f"""\
clusterDomain: cluster.local   # kept
identity:
  issuer:
    scheme: linkerd.io/tls
    tls:
      crtPEM: |
        {PEM.replace(chr(10), chr(10) + "        ")}

identityTrustAnchorsPEM: |-
  {PEM.replace(chr(10), chr(10) + "  ")}

# about the proxy
proxy:
    cores: "2"
    image: {{name: proxy,   version: edge}}
"""


def load(text):
    return YAML(typ="safe").load(text)


def test_the_value_changes_and_every_other_line_stays_byte_for_byte():
    changed = set_value(HELM, ANCHORS, NEW, "x")
    assert get_value(changed, ANCHORS, "x") == NEW
    before, after = HELM.splitlines(), changed.splitlines()
    assert [line for line in before if line not in after] == []
    assert [line for line in after if line not in before] == ["  CCCC"]


def test_a_nested_value_keeps_its_final_newline():
    path = ("identity", "issuer", "tls", "crtPEM")
    assert get_value(HELM, path, "x") == PEM + "\n"
    changed = set_value(HELM, path, NEW + "\n", "x")
    assert get_value(changed, path, "x") == NEW + "\n"
    assert get_value(changed, ANCHORS, "x") == PEM


def test_setting_the_same_value_changes_no_byte():
    assert set_value(HELM, ANCHORS, PEM, "x") == HELM


@pytest.mark.parametrize(
    "text",
    [
        "identityTrustAnchorsPEM: ''\n",
        'identityTrustAnchorsPEM: "one\\ntwo"\n',
        "identityTrustAnchorsPEM: plain\nb: 1\n",
        "identityTrustAnchorsPEM: |+\n  a\n\n\nb: 1\n",
        "identityTrustAnchorsPEM: >-\n  folded\n  text\nb: 1",
        '{"identityTrustAnchorsPEM": "one", "b": 1}',
        "identityTrustAnchorsPEM: |-\n  a",
    ],
)
def test_every_way_of_writing_a_string_can_be_replaced(text):
    changed = set_value(text, ANCHORS, NEW, "x")
    assert load(changed) == load(text) | {"identityTrustAnchorsPEM": NEW}


scalars = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), max_size=20)
documents = st.dictionaries(
    st.from_regex(r"[a-z]{1,8}", fullmatch=True), scalars | st.integers() | st.booleans(), max_size=5
)


@settings(max_examples=20)
@given(documents, st.sampled_from([PEM, NEW, PEM + "\n", "short"]))
def test_whatever_stands_around_it_is_the_same_afterwards(rest, value):
    import io

    document = {**rest, "identityTrustAnchorsPEM": "old", "zz": "end"}
    out = io.StringIO()
    YAML(typ="rt").dump(document, out)
    assert load(set_value(out.getvalue(), ANCHORS, value, "x")) == document | {"identityTrustAnchorsPEM": value}


def test_a_path_that_is_not_there_is_not_made():
    with pytest.raises(InvalidInput):
        set_value("a: 1\n", ANCHORS, PEM, "x")
    assert get_value("a: 1\n", ANCHORS, "x") is None


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "just text"])
def test_what_is_no_mapping_is_refused_without_quoting_it(text):
    with pytest.raises(InvalidInput) as caught:
        set_value(text, ANCHORS, PEM, "secret x/y")
    assert "just text" not in str(caught.value)
