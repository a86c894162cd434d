"""How checks are printed: marks, differences, 100 columns, only what is not ok; and what decides the exit code."""

from __future__ import annotations

import json

import pytest
from ruamel.yaml import YAML

from capstan.cli.check import _as_data, _fails, _print_cluster, check
from capstan.cli.options import DomainOptions
from capstan.cli.output import Output, print_data
from capstan.errors import InvalidInput
from capstan.systems.linkerd.checks import judge
from tests.systems.linkerd_evidence import OTHER, healthy, with_hook, with_peer


@pytest.fixture(scope="module")
def found():
    stale = with_peer(healthy(), "linkerd-identity-1", trusts=frozenset({OTHER.certificate.fingerprint}))
    return judge(with_hook(stale, "sp-validator", installed=False))


def printed(found, capsys, monkeypatch, *, short):
    monkeypatch.delenv("COLUMNS", raising=False)
    _print_cluster("", found, short=short)
    return capsys.readouterr().out


def test_a_table_shows_every_check_and_fits_100_columns(found, capsys, monkeypatch):
    text = printed(found, capsys, monkeypatch, short=False)
    assert max(map(len, text.splitlines())) <= 100
    joined = " ".join(text.split())
    assert all(" ".join(item.description.split()) in joined for item in found)
    assert "√ no clock skew detected" in text
    assert "× control plane proxies are healthy" in text
    assert "- sp-validator webhook has valid cert" in text
    assert "see https://linkerd.io/2/checks/#l5d-cp-proxy-healthy for hints" in text


def test_short_shows_only_what_is_not_ok(found, capsys, monkeypatch):
    text = printed(found, capsys, monkeypatch, short=True)
    assert "√" not in text.replace("linkerd check would say: √", "")
    assert "sp-validator" not in text
    assert "× control plane proxies are healthy" in text
    assert "‼ data plane proxies certificate match CA" in text


def test_short_says_nothing_about_a_healthy_mesh(capsys, monkeypatch):
    assert printed(judge(healthy()), capsys, monkeypatch, short=True) == ""


def test_a_pass_that_linkerd_would_not_give_says_so(capsys, monkeypatch):
    evidence = healthy(values={**healthy().values, "identityTrustAnchorsPEM": OTHER.certificate.pem()})
    text = printed(judge(evidence), capsys, monkeypatch, short=False)
    assert "√ issuer cert is issued by the trust anchor" in text
    assert "linkerd check would say: ×" in text


@pytest.mark.parametrize(("output", "load"), [(Output.JSON, json.loads), (Output.YAML, YAML(typ="safe").load)])
def test_programs_get_every_field_of_every_check(found, capsys, output, load):
    print_data(_as_data({"east": found}, failed=True), output)
    data = load(capsys.readouterr().out)
    assert (data["success"], data["clusters"][0]["name"]) == (False, "east")
    first = data["clusters"][0]["checks"][0]
    assert set(first) == {"category", "description", "hint", "level", "status", "message"}
    assert len(data["clusters"][0]["checks"]) == len(found)


def test_a_warning_fails_nothing_and_an_error_does(found):
    failing = {item.description for item in found if _fails(item)}
    assert "control plane proxies are healthy" in failing
    assert "data plane proxies certificate match CA" not in failing
    assert not any(_fails(item) for item in judge(healthy()))


def test_nothing_can_be_looked_back_on_for_no_time():
    from datetime import timedelta

    with pytest.raises(InvalidInput, match="nothing can be looked back on") as caught:
        check(DomainOptions(), since=timedelta(0))
    assert caught.value.next_command == "capstan check --since 24h"
