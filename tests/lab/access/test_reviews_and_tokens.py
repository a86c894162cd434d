"""Questions about rights and tokens, and tokens on request."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

if TYPE_CHECKING:
    from access_lab import Lab

Json = dict[str, Any]
AUTHZ = "/apis/authorization.k8s.io/v1"
AUTHN = "/apis/authentication.k8s.io/v1"


def ask(lab: Lab, kind: str, spec: Json, path: str = "", **headers: str) -> Any:
    group = "authentication" if kind == "TokenReview" else "authorization"
    body = {"apiVersion": f"{group}.k8s.io/v1", "kind": kind, "spec": spec}
    base = AUTHN if kind == "TokenReview" else AUTHZ
    return lab.admin.post(path or f"{base}/{kind.lower()}s", json=body, headers=headers)


def decode(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def test_a_review_of_a_path_answers_for_paths(lab: Lab) -> None:
    spec = {"user": "jane", "groups": ["system:authenticated"]}
    for path, allowed in (("/version", True), ("/metrics", False)):
        attributes = {"path": path, "verb": "get"}
        answer = ask(lab, "SubjectAccessReview", {**spec, "nonResourceAttributes": attributes})
        assert answer.json()["status"]["allowed"] is allowed


def test_a_review_without_a_subject_is_invalid(lab: Lab) -> None:
    answer = ask(lab, "SubjectAccessReview", {"resourceAttributes": {"verb": "get", "resource": "pods"}})
    assert answer.status_code == 422
    assert "spec.user: Required value: at least one of user or group must be specified" in answer.json()["message"]


def test_a_local_review_speaks_of_its_own_namespace_only(lab: Lab) -> None:
    lab.namespace("local")
    attributes = {"verb": "get", "resource": "pods", "namespace": "local"}
    path = f"{AUTHZ}/namespaces/local/localsubjectaccessreviews"
    spec = {"user": "jane", "resourceAttributes": attributes}
    assert ask(lab, "LocalSubjectAccessReview", spec, path).json()["status"] == {"allowed": False}
    other = {"user": "jane", "resourceAttributes": {**attributes, "namespace": "elsewhere"}}
    assert ask(lab, "LocalSubjectAccessReview", other, path).status_code == 422


def test_reviews_need_rights_like_everything_else(lab: Lab) -> None:
    spec = {"user": "x", "resourceAttributes": {"verb": "get", "resource": "pods"}}
    assert ask(lab, "SubjectAccessReview", spec, **{"impersonate-user": "jane"}).status_code == 403
    mine = {"resourceAttributes": {"verb": "get", "resource": "pods"}}
    assert ask(lab, "SelfSubjectAccessReview", mine, **{"impersonate-user": "jane"}).status_code == 201


def test_a_token_review_names_the_audiences_that_fit(lab: Lab) -> None:
    lab.namespace("audience")
    token = lab.token("audience", "default", audiences=["vault", "mesh"])
    answer = ask(lab, "TokenReview", {"token": token, "audiences": ["mesh", "other"]}).json()["status"]
    assert (answer["authenticated"], answer["audiences"]) == (True, ["mesh"])
    refused = ask(lab, "TokenReview", {"token": token}).json()["status"]
    assert "authenticated" not in refused
    assert 'token audiences ["vault" "mesh"] is invalid' in refused["error"]


def test_a_pods_projected_token_lives_a_year_but_says_it_ends_in_an_hour(lab: Lab) -> None:
    lab.namespace("year")
    containers = [{"name": "c", "image": "i"}]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": containers}}
    lab.create("/api/v1/namespaces/year/pods", pod)
    reference = {"kind": "Pod", "apiVersion": "v1", "name": "p"}
    spec = {"expirationSeconds": 3607, "boundObjectRef": reference}
    claims = json.loads(decode(lab.token("year", "default", **spec).split(".")[1]))
    assert claims["exp"] - claims["iat"] == 365 * 24 * 3600
    assert claims["kubernetes.io"]["warnafter"] - claims["iat"] == 3607
    plain = json.loads(decode(lab.token("year", "default", expirationSeconds=3607).split(".")[1]))
    assert plain["exp"] - plain["iat"] == 3607


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        ({"kind": "Pod", "apiVersion": "v1", "name": "none"}, 404),
        ({"kind": "Deployment", "apiVersion": "v1", "name": "x"}, 422),
        ({"kind": "Secret", "apiVersion": "v1", "name": "s", "uid": "another"}, 409),
        ({"kind": "Pod", "apiVersion": "v1", "name": "other"}, 400),
    ],
)
def test_a_token_binds_only_to_what_is_there_and_belongs_to_the_account(lab: Lab, reference: Json, code: int) -> None:
    if lab.admin.get("/api/v1/namespaces/binding").status_code == 404:
        lab.namespace("binding")
        lab.service_account("binding", "other")
        metadata = {"name": "s"}
        lab.create("/api/v1/namespaces/binding/secrets", {"apiVersion": "v1", "kind": "Secret", "metadata": metadata})
        spec = {"serviceAccountName": "other", "containers": [{"name": "c", "image": "i"}]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "other"}, "spec": spec}
        lab.create("/api/v1/namespaces/binding/pods", pod)
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"boundObjectRef": reference}}
    answer = lab.admin.post("/api/v1/namespaces/binding/serviceaccounts/default/token", json=body)
    assert answer.status_code == code, answer.text


def test_tokens_verify_with_the_published_key(lab: Lab) -> None:
    lab.namespace("jwks")
    token = lab.token("jwks", "default")
    document = lab.admin.get("/.well-known/openid-configuration").json()
    (key,) = lab.admin.get(document["jwks_uri"].removeprefix(lab.server.url)).json()["keys"]
    head, payload, signature = token.split(".")
    assert json.loads(decode(head)) == {"alg": "RS256", "kid": key["kid"]}
    assert json.loads(decode(payload))["iss"] == document["issuer"]
    numbers = rsa.RSAPublicNumbers(int.from_bytes(decode(key["e"])), int.from_bytes(decode(key["n"])))
    signed = f"{head}.{payload}".encode()
    numbers.public_key().verify(decode(signature), signed, padding.PKCS1v15(), hashes.SHA256())


def test_the_signing_key_is_for_its_owner_alone_and_outlives_the_server(lab: Lab) -> None:
    from infra.lab.apiserver.tokens import SigningKey

    path = lab.server.pki.directory / "sa.key"
    assert path.stat().st_mode & 0o077 == 0
    assert SigningKey.load_or_create(path).key_id == lab.server.access.signing_key.key_id


def test_a_secret_held_token_works_until_its_secret_holds_another(lab: Lab) -> None:
    lab.namespace("legacy")
    account = lab.admin.get("/api/v1/namespaces/legacy/serviceaccounts/default").json()
    prefix = "kubernetes.io/serviceaccount/"
    payload = {
        "iss": "kubernetes/serviceaccount",
        f"{prefix}namespace": "legacy",
        f"{prefix}secret.name": "held",
        f"{prefix}service-account.name": "default",
        f"{prefix}service-account.uid": account["metadata"]["uid"],
        "sub": "system:serviceaccount:legacy:default",
    }
    token = lab.server.access.signing_key.sign(payload)
    client = lab.client(token=token)
    assert client.get("/version").status_code == 401
    metadata = {"name": "held", "annotations": {"kubernetes.io/service-account.name": "default"}}
    data = {"token": base64.b64encode(token.encode()).decode()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}
    lab.create("/api/v1/namespaces/legacy/secrets", {**secret, "type": "kubernetes.io/service-account-token"})
    assert client.get("/version").status_code == 200
    lab.admin.delete("/api/v1/namespaces/legacy/secrets/held")
    assert client.get("/version").status_code == 401
