"""Services: what the server gives them by their type, and takes back when the type changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx

SERVICES = "/api/v1/namespaces/default/services"
MERGE = {"content-type": "application/merge-patch+json"}


def _create(http: httpx.Client, name: str, **spec: Any) -> dict[str, Any]:
    answer = http.post(SERVICES, json={"metadata": {"name": name}, "spec": spec})
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()["spec"]
    return found


def _patch(http: httpx.Client, name: str, **spec: Any) -> dict[str, Any]:
    answer = http.patch(f"{SERVICES}/{name}", json={"spec": spec}, headers=MERGE)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["spec"]
    return found


@pytest.mark.proves("api", "defaults", "Services: node ports, families, what goes with a type")
def test_a_service_that_is_reached_from_outside_has_node_ports(http: httpx.Client) -> None:
    ports = _create(http, "outside", type="NodePort", ports=[{"name": n, "port": p} for n, p in (("a", 80), ("b", 81))])
    numbers = [port["nodePort"] for port in ports["ports"]]
    assert len(set(numbers)) == 2
    assert all(30000 <= number <= 32767 for number in numbers)
    renumbered = _patch(http, "outside", ports=[{"name": "a", "port": 8080}, {"name": "b", "port": 81}])
    assert [port["nodePort"] for port in renumbered["ports"]] == numbers
    without = _create(http, "no-ports", type="LoadBalancer", allocateLoadBalancerNodePorts=False, ports=[{"port": 80}])
    assert "nodePort" not in without["ports"][0]


def test_a_type_takes_with_it_what_only_it_needs(http: httpx.Client) -> None:
    before = _create(http, "moves", ports=[{"port": 80}])
    assert "nodePort" in _patch(http, "moves", type="NodePort")["ports"][0]
    back = _patch(http, "moves", type="ClusterIP")
    assert back == before
    named = _patch(http, "moves", type="ExternalName", externalName="example.com")
    assert not {"clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"} & set(named)
    again = _patch(http, "moves", type="ClusterIP")
    assert again["clusterIP"]
    assert "externalName" not in again


def test_a_headless_service_without_a_selector_may_have_any_family(http: httpx.Client) -> None:
    open_ended = _create(http, "headless", clusterIP="None")
    assert (open_ended["ipFamilyPolicy"], open_ended["ipFamilies"]) == ("RequireDualStack", ["IPv4", "IPv6"])
    selecting = _create(http, "headless-selects", clusterIP="None", selector={"a": "b"})
    assert (selecting["ipFamilyPolicy"], selecting["ipFamilies"]) == ("SingleStack", ["IPv4"])


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"ports": [{"port": 80, "nodePort": 30001}]},
         "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"),
        ({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]},
         "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports "
         "is 30000-32767"),
        ({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 80}]},
         "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services"),
        ({"type": "LoadBalancer", "ports": [{"port": 10250}]},
         "spec.ports[0]: Invalid value: 10250: may not expose port 10250 externally since it is used by kubelet"),
        ({"ports": [{"name": "a", "port": 80}, {"name": "b", "port": 80}]},
         'spec.ports[1]: Duplicate value: {"Name":"","Protocol":"TCP","AppProtocol":null,"Port":80,"TargetPort":0,'
         '"NodePort":0}'),
    ],
    ids=["node port of a cluster address", "out of range", "headless", "the kubelet's port", "one port twice"],
)  # fmt: skip
def test_a_service_is_refused_what_its_type_cannot_have(http: httpx.Client, spec: dict[str, Any], words: str) -> None:
    answer = http.post(SERVICES, json={"metadata": {"name": "refused"}, "spec": spec})
    assert answer.status_code == 422
    assert answer.json()["message"] == f'Service "refused" is invalid: {words}'


def test_a_node_port_is_given_once(http: httpx.Client) -> None:
    _create(http, "holder", type="NodePort", ports=[{"port": 80, "nodePort": 30123}])
    body = {"metadata": {"name": "late"}, "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30123}]}}
    answer = http.post(SERVICES, json=body)
    assert answer.json()["details"]["causes"] == [
        {
            "reason": "FieldValueInvalid",
            "message": "Invalid value: 30123: provided port is already allocated",
            "field": "spec.ports[0].nodePort",
        }
    ]
