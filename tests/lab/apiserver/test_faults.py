"""Faults on demand hit the requests they name, before or after the commit, and nothing else."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time

import httpx
import pytest

CONFIGMAPS = "/api/v1/namespaces/default/configmaps"
_names = (f"cm{number}" for number in itertools.count())


def body(name: str) -> dict:
    return {"metadata": {"name": name}, "data": {"a": "1"}}


def add(http: httpx.Client, **rule: object) -> None:
    answer = http.post("/lab/faults", json=rule)
    assert answer.status_code == 201, answer.text


def test_only_the_nth_matching_request_is_refused_with_the_status_and_retry_after_asked_for(http: httpx.Client) -> None:
    add(http, method="POST", path="/configmaps$", nth=2, action={"status": 429, "retryAfter": 7})
    answers = [http.post(CONFIGMAPS, json=body(next(_names))) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 429, 201]
    assert answers[1].headers["retry-after"] == "7"
    assert answers[1].json()["reason"] == "TooManyRequests"


def test_a_rule_for_one_user_agent_leaves_the_others_alone(http: httpx.Client) -> None:
    add(http, path="/configmaps", userAgent="^capstan/", times=0, action={"status": 503})
    assert http.get(CONFIGMAPS).status_code == 200
    for _ in range(2):
        assert http.get(CONFIGMAPS, headers={"user-agent": "capstan/1"}).status_code == 503


def test_a_connection_dropped_before_the_commit_leaves_nothing_behind(http: httpx.Client) -> None:
    name = next(_names)
    add(http, method="POST", path="/configmaps$", action={"drop": "before"})
    with pytest.raises(httpx.TransportError):
        http.post(CONFIGMAPS, json=body(name))
    assert http.get(f"{CONFIGMAPS}/{name}").status_code == 404


def test_a_connection_dropped_after_the_commit_hides_a_write_that_happened(http: httpx.Client) -> None:
    name = next(_names)
    add(http, method="POST", path="/configmaps$", action={"drop": "after"})
    with pytest.raises(httpx.TransportError):
        http.post(CONFIGMAPS, json=body(name))
    assert http.get(f"{CONFIGMAPS}/{name}").json()["data"] == {"a": "1"}


@pytest.mark.parametrize(("when", "written"), [("before", 404), ("after", 200)])
def test_a_process_is_killed_around_the_commit_of_its_request(http: httpx.Client, when: str, written: int) -> None:
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    name = next(_names)
    add(http, method="POST", path="/configmaps$", action={"kill": victim.pid, "when": when})
    if when == "before":
        # the write itself goes on: in life the killed process was the client, whose connection died with it
        add(http, method="POST", path="/configmaps$", action={"drop": "before"})
        with pytest.raises(httpx.TransportError):
            http.post(CONFIGMAPS, json=body(name))
    else:
        assert http.post(CONFIGMAPS, json=body(name)).status_code == 201
    assert victim.wait(5) == -9
    assert http.get(f"{CONFIGMAPS}/{name}").status_code == written


def test_a_delay_holds_the_answer_back(http: httpx.Client) -> None:
    add(http, path="/configmaps", action={"delay": 0.3})
    start = time.monotonic()
    assert http.get(CONFIGMAPS).status_code == 200
    assert time.monotonic() - start >= 0.3


def test_an_expired_history_ends_a_watch_with_410(http: httpx.Client) -> None:
    version = http.get(CONFIGMAPS).json()["metadata"]["resourceVersion"]
    http.post(CONFIGMAPS, json=body(next(_names)))
    add(http, path="watch=true", action={"expire": "configmaps"})
    answer = http.get(f"{CONFIGMAPS}?watch=true&timeoutSeconds=1&resourceVersion={version}")
    event = json.loads(answer.text)
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")


def test_a_stalled_watch_stays_open_and_silent(http: httpx.Client) -> None:
    version = http.get(CONFIGMAPS).json()["metadata"]["resourceVersion"]
    add(http, path="watch=true", action={"stall": True})
    with http.stream("GET", f"{CONFIGMAPS}?watch=true&resourceVersion={version}", timeout=0.5) as stream:
        http.post(CONFIGMAPS, json=body(next(_names)))
        with pytest.raises(httpx.ReadTimeout):
            next(stream.iter_lines())


def test_requests_are_counted_by_user_agent_and_method(http: httpx.Client) -> None:
    for _ in range(3):
        http.get(CONFIGMAPS, headers={"user-agent": "counted/1"})
    http.post(CONFIGMAPS, json=body(next(_names)), headers={"user-agent": "counted/1"})
    assert http.get("/lab/stats").json()["requests"]["counted/1"] == {"GET": 3, "POST": 1}


def test_the_rights_that_somebody_asks_for_are_counted_granted_or_not(http: httpx.Client) -> None:
    jane = {"impersonate-user": "jane", "impersonate-group": "system:authenticated"}
    for _ in range(2):
        assert http.get(f"{CONFIGMAPS}/absent", headers=jane).status_code == 403
    assert http.get("/version", headers=jane).status_code == 200
    rights = [entry for entry in http.get("/lab/stats").json()["rights"] if entry["user"] == "jane"]
    common = {"user": "jane", "verb": "get", "group": ""}
    where = {"resource": "configmaps", "namespace": "default", "name": "absent", "path": ""}
    nowhere = {"resource": "", "namespace": "", "name": "", "path": "/version"}
    assert rights == [
        {**common, **where, "allowed": False, "count": 2},
        {**common, **nowhere, "allowed": True, "count": 1},
    ]


@pytest.mark.parametrize(
    "rule",
    [
        {},
        {"action": {}},
        {"action": {"statos": 1}},
        {"action": {"status": 500}, "wat": 1},
        {"action": {"status": 1}, "path": "("},
    ],
)
def test_a_rule_nobody_could_mean_is_refused(http: httpx.Client, rule: dict) -> None:
    assert http.post("/lab/faults", json=rule).status_code == 400


def test_only_administrators_may_cause_faults(http: httpx.Client) -> None:
    headers = {"impersonate-user": "jane", "impersonate-group": "system:authenticated"}
    assert http.get("/lab/faults", headers=headers).status_code == 403
    assert http.post("/lab/faults", headers=headers, json={"action": {"status": 500}}).status_code == 403
