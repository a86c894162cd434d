"""What admission adds to pods and refuses: service accounts, priorities, namespaces, escalation, signing requests."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

if TYPE_CHECKING:
    import httpx
    from access_lab import Lab

Json = dict[str, Any]
CSRS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
MERGE = {"content-type": "application/merge-patch+json"}


def pod(name: str, **spec: Any) -> Json:
    containers = [{"name": "main", "image": "web:1"}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": containers, **spec}}


def test_a_pod_gets_its_service_accounts_token_and_pull_secrets_once(lab: Lab) -> None:
    lab.namespace("tokens")
    body = {"imagePullSecrets": [{"name": "pull"}]}
    lab.admin.patch("/api/v1/namespaces/tokens/serviceaccounts/default", json=body, headers=MERGE)
    spec = lab.create("/api/v1/namespaces/tokens/pods", pod("p", initContainers=[{"name": "i", "image": "i:1"}]))[
        "spec"
    ]
    (volume,) = spec["volumes"]
    assert volume["name"].startswith("kube-api-access-")
    assert [next(iter(source)) for source in volume["projected"]["sources"]] == [
        "serviceAccountToken",
        "configMap",
        "downwardAPI",
    ]
    for container in (*spec["containers"], *spec["initContainers"]):
        assert [m["name"] for m in container["volumeMounts"]] == [volume["name"]]
    assert spec["imagePullSecrets"] == [{"name": "pull"}]


@pytest.mark.parametrize("where", ["pod", "account"])
def test_no_token_is_mounted_where_pod_or_account_say_so(lab: Lab, where: str) -> None:
    namespace = lab.namespace(f"silent-{where}")
    off = {"automountServiceAccountToken": False}
    if where == "account":
        lab.admin.patch(f"/api/v1/namespaces/{namespace}/serviceaccounts/default", json=off, headers=MERGE)
    made = lab.create(f"/api/v1/namespaces/{namespace}/pods", pod("p", **(off if where == "pod" else {})))
    assert "volumes" not in made["spec"]
    assert "volumeMounts" not in made["spec"]["containers"][0]


def test_a_container_with_its_own_token_mount_keeps_it(lab: Lab) -> None:
    lab.namespace("own")
    mount = {"name": "mine", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
    body = pod("p", volumes=[{"name": "mine", "emptyDir": {}}])
    body["spec"]["containers"][0]["volumeMounts"] = [mount]
    made = lab.create("/api/v1/namespaces/own/pods", body)
    assert [v["name"] for v in made["spec"]["volumes"]] == ["mine"]


def test_priority_classes_set_the_priority_and_unknown_ones_are_refused(lab: Lab) -> None:
    lab.namespace("prio")
    made = lab.create("/api/v1/namespaces/prio/pods", pod("p", priorityClassName="system-node-critical"))
    assert made["spec"]["priority"] == 2000001000
    answer = lab.admin.post("/api/v1/namespaces/prio/pods", json=pod("q", priorityClassName="nope"))
    assert (answer.status_code, answer.json()["message"]) == (
        403,
        'pods "q" is forbidden: no PriorityClass with name nope was found',
    )


def test_a_toleration_of_everything_needs_no_others(lab: Lab) -> None:
    lab.namespace("tolerant")
    made = lab.create("/api/v1/namespaces/tolerant/pods", pod("p", tolerations=[{"operator": "Exists"}]))
    assert made["spec"]["tolerations"] == [{"operator": "Exists"}]


def test_objects_need_an_existing_namespace(lab: Lab) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}
    answer = lab.admin.post("/api/v1/namespaces/nowhere/configmaps", json=body)
    assert (answer.status_code, answer.json()["message"]) == (404, 'namespaces "nowhere" not found')


@pytest.mark.parametrize("name", ["default", "kube-system", "kube-public"])
def test_the_systems_namespaces_cannot_be_deleted(lab: Lab, name: str) -> None:
    answer = lab.admin.delete(f"/api/v1/namespaces/{name}")
    assert (answer.status_code, answer.json()["message"]) == (
        403,
        f'namespaces "{name}" is forbidden: this namespace may not be deleted',
    )


# Escalation


def granted(lab: Lab, namespace: str, *rules: Json) -> httpx.Client:
    """A client whose ServiceAccount holds `rules` and may write roles and bindings in its namespace."""
    lab.namespace(namespace)
    writing = {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"], "verbs": ["*"]}
    plain = {k: v for k, v in writing.items() if k != "verbs"}
    verbs = {**plain, "verbs": ["create", "update", "patch", "get", "list"]}
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "own"}}
    lab.create(f"{RBAC}/namespaces/{namespace}/roles", {**role, "rules": [verbs, *rules]})
    lab.create(f"{RBAC}/namespaces/{namespace}/rolebindings", binding("own", "own", namespace))
    return lab.client(token=lab.token(namespace, "default"))


def binding(name: str, role: str, namespace: str) -> Json:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
    }


def role(name: str, *rules: Json) -> Json:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": name},
        "rules": list(rules),
    }


SECRETS = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}
PODS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}


def test_one_may_grant_what_one_holds_and_nothing_more(lab: Lab) -> None:
    client = granted(lab, "grants", PODS)
    roles = f"{RBAC}/namespaces/grants/roles"
    assert client.post(roles, json=role("fine", {**PODS, "verbs": ["get"]})).status_code == 201
    refused = client.post(roles, json=role("more", SECRETS, PODS))
    assert refused.status_code == 403
    assert refused.json()["message"].endswith('{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}')
    grown = client.patch(f"{roles}/fine", json={"rules": [SECRETS]}, headers=MERGE)
    assert grown.status_code == 403


def test_an_update_that_leaves_the_rules_alone_is_no_escalation(lab: Lab) -> None:
    client = granted(lab, "labels")
    lab.create(f"{RBAC}/namespaces/labels/roles", role("big", SECRETS))
    change = {"metadata": {"labels": {"a": "b"}}}
    assert client.patch(f"{RBAC}/namespaces/labels/roles/big", json=change, headers=MERGE).status_code == 200


def test_the_verb_escalate_lifts_the_bar(lab: Lab) -> None:
    escalate = {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["escalate"]}
    client = granted(lab, "escalate", escalate)
    assert client.post(f"{RBAC}/namespaces/escalate/roles", json=role("big", SECRETS)).status_code == 201


def test_binding_a_role_needs_its_rights_or_the_verb_bind_on_it(lab: Lab) -> None:
    bind = {
        "apiGroups": ["rbac.authorization.k8s.io"],
        "resources": ["roles"],
        "verbs": ["bind"],
        "resourceNames": ["b"],
    }
    client = granted(lab, "binds", bind)
    bindings = f"{RBAC}/namespaces/binds/rolebindings"
    for name in ("a", "b"):
        lab.create(f"{RBAC}/namespaces/binds/roles", role(name, SECRETS))
    assert client.post(bindings, json=binding("x", "a", "binds")).status_code == 403
    assert client.post(bindings, json=binding("x", "b", "binds")).status_code == 201
    missing = client.post(bindings, json=binding("y", "none", "binds"))
    assert (missing.status_code, missing.json()["details"]["kind"]) == (404, "roles")


# Signing requests


def request_for(common_name: str, *organizations: str) -> str:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, o) for o in organizations]
    subject = x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    key = ec.generate_private_key(ec.SECP256R1())
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return base64.b64encode(made.public_bytes(serialization.Encoding.PEM)).decode()


def signing_request(name: str, **spec: Any) -> Json:
    standard = {"request": request_for(name), "signerName": "example.com/mesh", "usages": ["client auth"]}
    metadata = {"name": name}
    api_version = "certificates.k8s.io/v1"
    kind = "CertificateSigningRequest"
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": {**standard, **spec}}


def test_the_requester_is_recorded_whatever_the_client_claims(lab: Lab) -> None:
    body = signing_request("claims", username="somebody-else", groups=["system:masters-not"])
    body["status"] = {"certificate": "eA==", "conditions": [{"type": "Approved", "status": "True"}]}
    made = lab.create(CSRS, body)
    assert made["spec"]["username"] == "kubernetes-admin"
    assert made["spec"]["groups"] == ["system:masters", "system:authenticated"]
    assert made["status"] == {}


def test_nobody_asks_the_api_server_signer_for_the_administrators_group(lab: Lab) -> None:
    signer = "kubernetes.io/kube-apiserver-client"
    body = signing_request("masters", request=request_for("me", "system:masters"), signerName=signer)
    answer = lab.admin.post(CSRS, json=body)
    assert answer.status_code == 403
    assert "signer with system:masters group is not allowed" in answer.json()["message"]


@pytest.mark.parametrize(
    ("spec", "cause"),
    [
        ({"usages": ["client auth", "client auth"]}, 'spec.usages[1]: Duplicate value: "client auth"'),
        ({"usages": ["juggling"]}, 'spec.usages[0]: Unsupported value: "juggling"'),
        ({"signerName": "nodots/x"}, "should be a domain with at least two segments separated by dots"),
        ({"signerName": "kubernetes.io/legacy-unknown"}, "the legacy signerName is not allowed via this API version"),
        ({"signerName": ""}, "spec.signerName: Required value"),
    ],
)
def test_malformed_signing_requests_are_invalid(lab: Lab, spec: Json, cause: str) -> None:
    answer = lab.admin.post(CSRS, json=signing_request("malformed", **spec))
    assert answer.status_code == 422
    assert cause in answer.json()["message"]


def cluster_role(lab: Lab, name: str, *rules: Json) -> None:
    body = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}}
    lab.create(f"{RBAC}/clusterroles", {**body, "rules": list(rules)})
    bound = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "subjects": [{"kind": "User", "name": name}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
    }
    lab.create(f"{RBAC}/clusterrolebindings", bound)


WRITE_CSRS = {
    "apiGroups": ["certificates.k8s.io"],
    "resources": ["certificatesigningrequests/approval", "certificatesigningrequests/status"],
    "verbs": ["get", "update", "patch"],
}


def signer_rule(verb: str, name: str) -> Json:
    return {"apiGroups": ["certificates.k8s.io"], "resources": ["signers"], "verbs": [verb], "resourceNames": [name]}


def approve(lab: Lab, name: str, user: str, condition: str = "Approved") -> httpx.Response:
    change = {"status": {"conditions": [{"type": condition, "status": "True", "reason": "R"}]}}
    headers = {**MERGE, "impersonate-user": user}
    return lab.admin.patch(f"{CSRS}/{name}/approval", json=change, headers=headers)


def test_approving_needs_the_right_on_the_signer_or_its_whole_domain(lab: Lab) -> None:
    cluster_role(lab, "writer", WRITE_CSRS)
    cluster_role(lab, "approver", WRITE_CSRS, signer_rule("approve", "example.com/mesh"))
    cluster_role(lab, "domain", WRITE_CSRS, signer_rule("approve", "example.com/*"))
    for name in ("one", "two"):
        lab.create(CSRS, signing_request(name))
    refused = approve(lab, "one", "writer")
    assert refused.status_code == 403
    assert 'user not permitted to approve requests with signerName "example.com/mesh"' in refused.json()["message"]
    assert approve(lab, "one", "approver").status_code == 200
    assert approve(lab, "two", "domain", "Denied").status_code == 200


def test_an_issued_certificate_stays_and_approvals_do_not_come_through_status(lab: Lab) -> None:
    lab.create(CSRS, signing_request("issued"))
    sneaky = {"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "R"}]}}
    answer = lab.admin.patch(f"{CSRS}/issued/status", json=sneaky, headers=MERGE)
    assert answer.json().get("status", {}) == {}
    assert approve(lab, "issued", "kubernetes-admin").status_code == 403  # impersonated: without its groups
    change = {"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "R"}]}}
    assert lab.admin.patch(f"{CSRS}/issued/approval", json=change, headers=MERGE).status_code == 200
    pem = base64.b64encode(lab.server.ca_pem.encode()).decode()
    signed = lab.admin.patch(f"{CSRS}/issued/status", json={"status": {"certificate": pem}}, headers=MERGE)
    assert signed.status_code == 200, signed.text
    assert [c["type"] for c in signed.json()["status"]["conditions"]] == ["Approved"]
    again = base64.b64encode(lab.server.ca_pem.encode() * 2).decode()
    changed = lab.admin.patch(f"{CSRS}/issued/status", json={"status": {"certificate": again}}, headers=MERGE)
    assert changed.status_code == 422
    assert "may not change an already issued certificate" in changed.json()["message"]


def test_signing_needs_the_right_on_the_signer(lab: Lab) -> None:
    cluster_role(lab, "status-writer", WRITE_CSRS)
    cluster_role(lab, "signer", WRITE_CSRS, signer_rule("sign", "example.com/mesh"))
    lab.create(CSRS, signing_request("tosign"))
    change = {"status": {"certificate": base64.b64encode(lab.server.ca_pem.encode()).decode()}}
    for user, code in (("status-writer", 403), ("signer", 200)):
        headers = {**MERGE, "impersonate-user": user}
        assert lab.admin.patch(f"{CSRS}/tosign/status", json=change, headers=headers).status_code == code
