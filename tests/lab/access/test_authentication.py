"""Who a request comes from: certificates, tokens, nobody, and somebody else's name."""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from access_lab import Lab, Pair, make_pair
from cryptography.x509.oid import ExtendedKeyUsageOID

if TYPE_CHECKING:
    from pathlib import Path

WHO = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
WHO_BODY = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}


def who(client: httpx.Client, **headers: str) -> httpx.Response:
    return client.post(WHO, json=WHO_BODY, headers=headers)


def user(answer: httpx.Response) -> dict[str, object]:
    assert answer.status_code == 201, answer.text
    return dict(answer.json()["status"]["userInfo"])


def test_a_request_without_credentials_is_anonymous_and_forbidden(lab: Lab) -> None:
    answer = lab.client().get("/api/v1/pods")
    assert answer.status_code == 403
    assert 'User "system:anonymous" cannot list resource "pods"' in answer.json()["message"]


@pytest.mark.parametrize("path", ["/version", "/livez", "/readyz", "/healthz"])
def test_health_and_version_are_open_to_everybody(lab: Lab, path: str) -> None:
    assert lab.client().get(path).status_code == 200


def test_a_bad_token_is_401_even_where_anonymous_may_go(lab: Lab) -> None:
    assert lab.client(token="a.b.c").get("/version").status_code == 401


def test_a_certificate_of_the_cluster_ca_is_its_common_name_and_organizations(
    lab: Lab, cluster_ca: Pair, tmp_path: Path
) -> None:
    pair = make_pair(tmp_path, "jane", "jane", organizations=("devs", "ops"), issuer=cluster_ca)
    info = user(who(lab.client((pair.certificate_file, pair.key_file))))
    assert (info["username"], info["groups"]) == ("jane", ["devs", "ops", "system:authenticated"])


def test_a_certificate_of_an_unknown_ca_is_401_after_a_completed_handshake(lab: Lab, tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "stranger", "admin", organizations=("system:masters",))
    assert lab.client((pair.certificate_file, pair.key_file)).get("/version").status_code == 401


def test_an_expired_client_certificate_is_401(lab: Lab, cluster_ca: Pair, tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "late", "late", issuer=cluster_ca, days=-1)
    assert lab.client((pair.certificate_file, pair.key_file)).get("/version").status_code == 401


def test_a_serving_certificate_of_the_cluster_ca_is_no_login(lab: Lab, cluster_ca: Pair, tmp_path: Path) -> None:
    pair = make_pair(tmp_path, "web", "web", issuer=cluster_ca, usages=(ExtendedKeyUsageOID.SERVER_AUTH,))
    assert lab.client((pair.certificate_file, pair.key_file)).get("/version").status_code == 401


def test_a_good_token_helps_a_certificate_nobody_trusts(lab: Lab, tmp_path: Path) -> None:
    lab.namespace("both")
    pair = make_pair(tmp_path, "stranger", "stranger")
    client = lab.client((pair.certificate_file, pair.key_file), token=lab.token("both", "default"))
    assert user(who(client))["username"] == "system:serviceaccount:both:default"


def test_a_ca_appended_to_the_bundle_is_trusted_without_a_restart(lab: Lab, tmp_path: Path) -> None:
    other = make_pair(tmp_path, "other-ca", "other", ca=True)
    pair = make_pair(tmp_path, "new", "new", issuer=other)
    client = lab.client((pair.certificate_file, pair.key_file))
    bundle = lab.server.pki.ca_certificate
    before = bundle.read_text()
    assert client.get("/version").status_code == 401
    try:
        bundle.write_text(before + other.pem)
        assert user(who(client))["username"] == "new"
    finally:
        bundle.write_text(before)
    assert client.get("/version").status_code == 401


def test_of_two_cas_of_one_name_the_right_one_is_found(lab: Lab, cluster_ca: Pair, tmp_path: Path) -> None:
    name = cluster_ca.certificate.subject.rfc4514_string().removeprefix("CN=")
    twin = make_pair(tmp_path, "twin", name, ca=True)
    old = make_pair(tmp_path, "old", "old", issuer=cluster_ca)
    new = make_pair(tmp_path, "new", "new", issuer=twin)
    bundle = lab.server.pki.ca_certificate
    before = bundle.read_text()
    for text in (before + twin.pem, twin.pem + before):
        try:
            bundle.write_text(text)
            for pair in (old, new):
                client = lab.client((pair.certificate_file, pair.key_file))
                assert user(who(client))["username"] == pair.certificate_file.stem
        finally:
            bundle.write_text(before)


def test_a_pod_bound_token_dies_with_its_pod(lab: Lab) -> None:
    lab.namespace("bound")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
    made = lab.create("/api/v1/namespaces/bound/pods", {**pod, "spec": {"containers": [{"name": "c", "image": "i"}]}})
    reference = {"kind": "Pod", "apiVersion": "v1", "name": "p"}
    client = lab.client(token=lab.token("bound", "default", boundObjectRef=reference))
    extra = user(who(client))["extra"]
    assert extra["authentication.kubernetes.io/pod-name"] == ["p"]  # type: ignore[index]  # JSON
    assert extra["authentication.kubernetes.io/pod-uid"] == [made["metadata"]["uid"]]  # type: ignore[index]  # JSON
    assert lab.admin.delete("/api/v1/namespaces/bound/pods/p?gracePeriodSeconds=0").status_code == 200
    assert who(client).status_code == 401


def test_a_token_of_a_recreated_service_account_is_refused(lab: Lab) -> None:
    lab.namespace("again")
    lab.service_account("again", "robot")
    client = lab.client(token=lab.token("again", "robot"))
    assert who(client).status_code == 201
    assert lab.admin.delete("/api/v1/namespaces/again/serviceaccounts/robot").status_code == 200
    lab.service_account("again", "robot")
    assert who(client).status_code == 401


def _with_times(lab: Lab, namespace: str, issued: float, expires: float) -> str:
    key = lab.server.access.signing_key
    payload = key.verified_payload(lab.token(namespace, "default"))
    return key.sign({**payload, "iat": int(issued), "nbf": int(issued), "exp": int(expires)})


def test_a_token_is_refused_after_its_end_and_before_its_start(lab: Lab) -> None:
    lab.namespace("times")
    now = time.time()
    assert who(lab.client(token=_with_times(lab, "times", now - 700, now - 100))).status_code == 401
    assert who(lab.client(token=_with_times(lab, "times", now + 100, now + 700))).status_code == 401
    # one minute of tolerance for clocks
    assert who(lab.client(token=_with_times(lab, "times", now + 30, now + 700))).status_code == 201


def test_a_token_with_a_changed_claim_is_refused(lab: Lab) -> None:
    lab.namespace("forged")
    head, _, signature = lab.token("forged", "default").split(".")
    other = lab.token("forged", "default", expirationSeconds=700).split(".")[1]
    assert who(lab.client(token=f"{head}.{other}.{signature}")).status_code == 401


def test_an_administrator_may_speak_for_a_service_account_with_its_groups(lab: Lab) -> None:
    info = user(who(lab.admin, **{"impersonate-user": "system:serviceaccount:x:y"}))
    assert info["groups"] == ["system:serviceaccounts", "system:serviceaccounts:x", "system:authenticated"]


def test_impersonation_needs_the_right_to_it(lab: Lab) -> None:
    lab.namespace("imp")
    answer = who(lab.client(token=lab.token("imp", "default")), **{"impersonate-user": "jane"})
    assert answer.status_code == 403
    # v1.36 names what constrained impersonation would have needed first
    assert answer.json()["message"] == (
        'selfsubjectreviews.authentication.k8s.io is forbidden: User "system:serviceaccount:imp:default" cannot '
        'impersonate-on:user-info:create resource "selfsubjectreviews" in API group "authentication.k8s.io" at the '
        "cluster scope"
    )


@pytest.mark.proves("api", "identity", "constrained impersonation: as whom, and what for, are granted apart")
def test_impersonation_may_be_granted_for_one_thing_alone(lab: Lab) -> None:
    lab.namespace("constrained")
    rules = [
        {"apiGroups": ["authentication.k8s.io"], "resources": ["users"], "verbs": ["impersonate:user-info"]},
        {
            "apiGroups": ["authentication.k8s.io"],
            "resources": ["selfsubjectreviews"],
            "verbs": ["impersonate-on:user-info:create"],
        },
    ]
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    lab.admin.post(f"{rbac}/clusterroles", json={"metadata": {"name": "as-jane"}, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": "constrained"}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "as-jane"}
    binding = {"metadata": {"name": "as-jane"}, "roleRef": reference, "subjects": [subject]}
    lab.admin.post(f"{rbac}/clusterrolebindings", json=binding)
    client = lab.client(token=lab.token("constrained", "default"))
    assert user(who(client, **{"impersonate-user": "jane"}))["username"] == "jane"
    listing = client.get("/api/v1/namespaces", headers={"impersonate-user": "jane"})
    assert 'cannot impersonate-on:user-info:list resource "namespaces"' in listing.json()["message"]


def test_groups_without_a_user_to_impersonate_are_a_bad_request(lab: Lab) -> None:
    answer = who(lab.admin, **{"impersonate-group": "devs"})
    assert answer.status_code == 400
    assert answer.json()["message"] == (
        'requested &user.DefaultInfo{Name:"", UID:"", Groups:[]string{"devs"}, Extra:map[string][]string(nil)} without '
        "impersonating a user name"
    )


def test_the_server_speaks_http_1_to_clients_which_offer_http_2(lab: Lab) -> None:
    context = lab.context()
    context.set_alpn_protocols(["h2", "http/1.1"])
    import socket

    with (
        socket.create_connection((lab.server.host, lab.server.port)) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        assert tls.selected_alpn_protocol() == "http/1.1"


def test_a_client_that_does_not_trust_the_server_leaves_it_unharmed(lab: Lab) -> None:
    with pytest.raises(httpx.ConnectError), httpx.Client(verify=ssl.create_default_context()) as client:
        client.get(f"{lab.server.url}/version")
    assert lab.client().get("/version").status_code == 200
