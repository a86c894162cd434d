"""What a busy API server asks for is honoured, within a bound, and told."""

from __future__ import annotations

import pytest

from capstan.cluster.errors import Call, from_status
from capstan.cluster.resources import CONFIG_MAPS, NAMESPACES
from capstan.errors import ServerFault, Throttled


@pytest.mark.proves("api", "429 of priority and fairness", "a read waits as long as Retry-After says, then succeeds")
def test_a_read_refused_by_priority_and_fairness_waits_as_asked(running, namespace, faults):
    slept = []
    cluster = running.connect(sleep=slept.append)
    faults(method="GET", path=f"/namespaces/{namespace}$", times=2, action={"fairness": 12})
    assert cluster.get(NAMESPACES, namespace)["metadata"]["name"] == namespace
    assert slept == [12.0, 12.0]


@pytest.mark.proves(
    "api", "429 of priority and fairness", "a write is not repeated; the error names the level and the wait"
)
def test_a_write_refused_by_priority_and_fairness_says_which_level_and_how_long(cluster, namespace, faults):
    faults(method="POST", path=f"/namespaces/{namespace}/configmaps$", action={"fairness": 3})
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "namespace": namespace}}
    before = cluster.requests
    with pytest.raises(Throttled) as caught:
        cluster.create(CONFIG_MAPS, body)
    assert cluster.requests - before == 1
    text = str(caught.value)
    assert caught.value.delay == 3.0
    assert "the server asks to wait 3 s" in text
    assert "API priority and fairness, priority level " in text
    assert "kubectl get --raw /debug/api_priority_and_fairness/dump_priority_levels" in text


@pytest.mark.proves("api", "Retry-After", "on a 503: waited for; longer than 30 s: an error at once that tells it")
def test_a_wait_longer_than_the_bound_is_an_error_that_tells_it(running, namespace, faults):
    slept = []
    cluster = running.connect(sleep=slept.append)
    faults(method="GET", path=f"/namespaces/{namespace}$", times=0, action={"status": 503, "retryAfter": 300})
    with pytest.raises(ServerFault) as caught:
        cluster.get(NAMESPACES, namespace)
    assert slept == []
    assert caught.value.delay == 300.0
    assert "the server asks to wait 300 s" in str(caught.value)


def test_without_the_header_the_seconds_of_the_status_count():
    body = '{"kind": "Status", "message": "busy", "details": {"retryAfterSeconds": 4}}'
    error = from_status(429, body, None, Call("get", "pods"))
    assert error.delay == 4.0


def test_a_handlers_own_429_is_not_blamed_on_priority_and_fairness():
    body = b'{"kind": "Status", "reason": "TooManyRequests", "message": "it would violate the budget"}'
    headers = {"X-Kubernetes-PF-PriorityLevel-UID": "a-uid", "Retry-After": "10"}
    error = from_status(429, body, headers, Call("evict", "pods", "shop", "web"))
    assert isinstance(error, Throttled)
    assert "fairness" not in str(error)
