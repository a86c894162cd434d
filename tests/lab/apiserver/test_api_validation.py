"""What may not be stored, kind by kind, in the words of kube-apiserver v1.36."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import httpx

MERGE = {"content-type": "application/merge-patch+json"}
CORE = "/api/v1/namespaces/default"
APPS = "/apis/apps/v1/namespaces/default"
NET = "/apis/networking.k8s.io/v1/namespaces/default"
TEMPLATE = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}


@pytest.mark.proves("api", "refusals", "Endpoints, slices, Ingresses, policies, claims, classes, nodes, autoscalers")
@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (f"{CORE}/endpoints", {"subsets": [{"addresses": [{"ip": "x"}], "ports": [{"port": 1}]}, {}]},
         'Endpoints "x" is invalid: [subsets[0].addresses[0].ip: Invalid value: "x": must be a valid IP address, '
         "(e.g. 10.9.8.7 or 2001:db8::ffff), subsets[1]: Required value: must specify `addresses` or "
         "`notReadyAddresses`]"),
        ("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
         {"addressType": "X", "endpoints": [{"addresses": []}]},
         'EndpointSlice.discovery.k8s.io "x" is invalid: [addressType: Unsupported value: "X": supported values: '
         '"FQDN", "IPv4", "IPv6", endpoints[0].addresses: Required value: must contain at least 1 address]'),
        (f"{NET}/ingresses", {"spec": {}},
         'Ingress.networking.k8s.io "x" is invalid: spec: Invalid value: {"IngressClassName":null,"DefaultBackend":'
         'null,"TLS":null,"Rules":null}: either `defaultBackend` or `rules` must be specified'),
        (f"{NET}/ingresses", {"spec": {"rules": [{"http": {"paths": [{"path": "/"}]}}]}},
         'Ingress.networking.k8s.io "x" is invalid: spec.rules[0].http.paths[0].pathType: Required value: pathType '
         "must be specified"),
        (f"{NET}/networkpolicies", {"spec": {"podSelector": {}, "ingress": [{"from": [{}]}]}},
         'NetworkPolicy.networking.k8s.io "x" is invalid: spec.ingress[0].from[0]: Required value: must specify a '
         "peer"),
        (f"{CORE}/persistentvolumeclaims", {"spec": {}},
         'PersistentVolumeClaim "x" is invalid: [spec.accessModes: Required value: at least 1 access mode is required, '
         "spec.resources[storage]: Required value]"),
        ("/apis/storage.k8s.io/v1/storageclasses", {},
         'StorageClass.storage.k8s.io "x" is invalid: provisioner: Required value'),
        ("/apis/scheduling.k8s.io/v1/priorityclasses", {"value": 2_000_000_000},
         'PriorityClass.scheduling.k8s.io "x" is invalid: value: Forbidden: maximum allowed value of a user defined '
         "priority is 1000000000"),
        ("/api/v1/nodes", {"spec": {"taints": [{"key": "a", "value": "b"}]}},
         'Node "x" is invalid: spec.taints[0].effect: Required value'),
        ("/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers",
         {"spec": {"minReplicas": 5, "maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": ""}}},
         'HorizontalPodAutoscaler.autoscaling "x" is invalid: [spec.maxReplicas: Invalid value: 3: must be greater '
         "than or equal to `minReplicas`, spec.scaleTargetRef.name: Required value]"),
        (f"{CORE}/replicationcontrollers", {"spec": {}},
         'ReplicationController "x" is invalid: [spec.selector: Required value, spec.template: Required value]'),
        (f"{CORE}/podtemplates", {"template": {"spec": {"containers": []}}},
         'PodTemplate "x" is invalid: template.spec.containers: Required value'),
        (f"{APPS}/controllerrevisions", {"revision": -1},
         'ControllerRevision.apps "x" is invalid: [data: Required value: data is mandatory, revision: Invalid value: '
         "-1: must be greater than or equal to 0]"),
        ("/apis/rbac.authorization.k8s.io/v1/clusterroles", {"aggregationRule": {}},
         'ClusterRole.rbac.authorization.k8s.io "x" is invalid: aggregationRule.clusterRoleSelectors: Required value: '
         "at least one clusterRoleSelector required if aggregationRule is non-nil"),
    ],
    ids=lambda value: value.rsplit("/", 1)[1] if isinstance(value, str) and value.startswith("/") else "",
)  # fmt: skip
def test_an_object_is_refused_for_what_is_wrong_with_it(
    http: httpx.Client, path: str, body: dict[str, Any], words: str
) -> None:
    answer = http.post(path, json={"metadata": {"name": "x"}, **body})
    assert answer.status_code == 422, answer.text
    assert answer.json()["message"] == words


@pytest.mark.parametrize(
    ("path", "body", "change", "words"),
    [
        ("/api/v1/nodes", {"spec": {"podCIDR": "10.0.0.0/24"}}, {"spec": {"podCIDR": "10.0.1.0/24"}},
         'spec.podCIDRs: Forbidden: node updates may not change podCIDR except from "" to valid'),
        ("/apis/storage.k8s.io/v1/storageclasses", {"provisioner": "a/b"}, {"provisioner": "a/c"},
         "provisioner: Forbidden: updates to provisioner are forbidden."),
        ("/apis/scheduling.k8s.io/v1/priorityclasses", {"value": 1}, {"value": 2},
         "value: Forbidden: may not be changed in an update."),
        (f"{APPS}/controllerrevisions", {"revision": 1, "data": {"a": 1}}, {"data": {"a": 2}},
         'data: Invalid value: {"a":2}: field is immutable'),
        ("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices",
         {"addressType": "IPv4", "endpoints": []}, {"addressType": "IPv6"},
         'addressType: Invalid value: "IPv6": field is immutable'),
    ],
    ids=["node", "storage class", "priority class", "revision", "slice"],
)  # fmt: skip
def test_what_is_given_once_does_not_change(
    http: httpx.Client, path: str, body: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    assert http.post(path, json={"metadata": {"name": "fixed"}, **body}).status_code == 201
    answer = http.patch(f"{path}/fixed", json=change, headers=MERGE)
    assert answer.status_code == 422, answer.text
    assert answer.json()["message"].partition(" is invalid: ")[2] == words


@pytest.mark.proves("api", "refusals", "status: counts of workloads that cannot be")
def test_a_status_counts_no_more_parts_than_there_are(http: httpx.Client) -> None:
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": TEMPLATE}
    for plural, kind in (("deployments", "Deployment"), ("replicasets", "ReplicaSet")):
        assert http.post(f"{APPS}/{plural}", json={"metadata": {"name": "counted"}, "spec": spec}).status_code == 201
        wrong = {"status": {"replicas": 1, "readyReplicas": 2, "availableReplicas": 3, "observedGeneration": -1}}
        answer = http.patch(f"{APPS}/{plural}/counted/status", json=wrong, headers=MERGE)
        assert answer.status_code == 422
        assert answer.json()["message"] == (
            f'{kind}.apps "counted" is invalid: [status.observedGeneration: Invalid value: -1: must be greater than or '
            "equal to 0, status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas, "
            "status.availableReplicas: Invalid value: 3: cannot be greater than status.replicas, "
            "status.availableReplicas: Invalid value: 3: cannot be greater than readyReplicas]"
        )


def test_a_body_that_is_too_large_is_refused_without_details(http: httpx.Client) -> None:
    answer = http.post(f"{CORE}/configmaps", json={"metadata": {"name": "x"}, "data": {"a": "x" * 3_200_000}})
    assert answer.status_code == 413
    assert answer.json() == {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": "Request entity too large: limit is 3145728",
        "reason": "RequestEntityTooLarge",
        "code": 413,
    }
