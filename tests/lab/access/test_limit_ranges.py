"""LimitRanges: containers that do not say get what the namespace gives, those that ask too much are refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from access_lab import Lab


def _range(lab: Lab, namespace: str, **limits: Any) -> str:
    lab.namespace(namespace)
    body = {"metadata": {"name": "r"}, "spec": {"limits": [{"type": "Container", **limits}]}}
    assert lab.admin.post(f"/api/v1/namespaces/{namespace}/limitranges", json=body).status_code == 201
    return f"/api/v1/namespaces/{namespace}/pods"


def _pod(name: str, **resources: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i", "resources": resources}]}}


@pytest.mark.proves("api", "admission", "limit ranges of containers")
def test_a_container_that_does_not_say_gets_what_the_namespace_gives(lab: Lab) -> None:
    pods = _range(lab, "given", default={"cpu": "200m"}, defaultRequest={"cpu": "100m", "memory": "64Mi"})
    made = lab.admin.post(pods, json=_pod("p")).json()
    resources = made["spec"]["containers"][0]["resources"]
    assert resources == {"limits": {"cpu": "200m"}, "requests": {"cpu": "100m", "memory": "64Mi"}}
    assert made["metadata"]["annotations"]["kubernetes.io/limit-ranger"] == (
        "LimitRanger plugin set: cpu, memory request for container c; cpu limit for container c"
    )


def test_a_container_that_asks_for_too_much_or_too_little_is_refused(lab: Lab) -> None:
    pods = _range(lab, "bounded", min={"cpu": "100m"}, max={"cpu": "1"})
    refused = lab.admin.post(pods, json=_pod("p", limits={"cpu": "2"}, requests={"cpu": "50m"}))
    assert refused.status_code == 403
    assert refused.json()["message"] == (
        'pods "p" is forbidden: [minimum cpu usage per Container is 100m, but request is 50m, maximum cpu usage per '
        "Container is 1, but limit is 2]"
    )
    assert lab.admin.post(pods, json=_pod("q", limits={"cpu": "500m"})).status_code == 201
