"""Admission webhooks over real TLS: what they may change, how they deny, and what happens when they cannot be asked."""

from __future__ import annotations

import base64
import http.server
import ipaddress
import json
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from access_lab import Lab, Pair, make_pair
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Json = dict[str, Any]
CONFIGURATIONS = "/apis/admissionregistration.k8s.io/v1"
LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


class Hook:
    """An HTTPS server that answers AdmissionReviews with whatever `answer` makes of the request."""

    def __init__(self, pair: Pair) -> None:
        self.seen: list[Json] = []
        self.answer: Callable[[Json], Json] = lambda _request: {"allowed": True}
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                review = json.loads(self.rfile.read(int(self.headers["content-length"])))
                hook.seen.append(review["request"])
                response = {"uid": review["request"]["uid"], **hook.answer(review["request"])}
                body = json.dumps({**review, "request": None, "response": response}).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Keep the test's output clean."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.certificate_file, pair.key_file)
        # The handshake happens in the handler's thread, so that a failed one hurts nobody else.
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True, do_handshake_on_connect=False)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]  # refused handshakes are the point
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self.server.server_address[1])

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/hook"


@pytest.fixture(scope="module")
def hook_ca(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("hook-ca"), "ca", "hook-ca", ca=True)


@pytest.fixture
def hook(hook_ca: Pair, tmp_path: Path) -> Iterator[Hook]:
    names = (LOOPBACK, x509.DNSName("injector.mesh.svc"))
    pair = make_pair(tmp_path, "hook", "hook", issuer=hook_ca, usages=(ExtendedKeyUsageOID.SERVER_AUTH,), names=names)
    hook = Hook(pair)
    yield hook
    hook.server.shutdown()
    hook.server.server_close()


def bundle(pair: Pair) -> str:
    return base64.b64encode(pair.pem.encode()).decode()


@pytest.fixture
def configure(lab: Lab, hook: Hook, hook_ca: Pair) -> Iterator[Callable[..., None]]:
    """Registers a webhook for ConfigMaps and pods in namespaces labelled hooked=<name>; removed after the test."""
    made: list[str] = []

    def register(name: str, mutating: bool = True, **changes: Any) -> None:
        kind = "MutatingWebhookConfiguration" if mutating else "ValidatingWebhookConfiguration"
        spec = {
            "name": f"{name}.example.com",
            "clientConfig": {"url": hook.url, "caBundle": bundle(hook_ca)},
            "rules": [
                {
                    "operations": ["CREATE"],
                    "apiGroups": [""],
                    "apiVersions": ["v1"],
                    "resources": ["configmaps", "pods"],
                }
            ],
            "namespaceSelector": {"matchLabels": {"hooked": name}},
            "sideEffects": "None",
            "admissionReviewVersions": ["v1"],
            "failurePolicy": "Fail",
            **changes,
        }
        path = f"{CONFIGURATIONS}/{kind.lower()}s"
        metadata = {"name": name}
        api_version = "admissionregistration.k8s.io/v1"
        lab.create(path, {"apiVersion": api_version, "kind": kind, "metadata": metadata, "webhooks": [spec]})
        made.append(f"{path}/{name}")

    yield register
    for path in made:
        lab.admin.delete(path)


def patch(*operations: Json) -> Json:
    return {
        "allowed": True,
        "patchType": "JSONPatch",
        "patch": base64.b64encode(json.dumps(operations).encode()).decode(),
    }


def post(lab: Lab, namespace: str, name: str = "x", query: str = "") -> Any:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}}
    return lab.admin.post(f"/api/v1/namespaces/{namespace}/configmaps{query}", json=body)


def test_a_json_patch_of_a_mutating_webhook_is_stored(lab: Lab, hook: Hook, configure: Callable[..., None]) -> None:
    configure("mutate")
    lab.namespace("mutate", hooked="mutate")
    hook.answer = lambda _request: patch({"op": "add", "path": "/data/b", "value": "2"})
    assert post(lab, "mutate").status_code == 201
    assert lab.admin.get("/api/v1/namespaces/mutate/configmaps/x").json()["data"] == {"a": "1", "b": "2"}
    seen = next(r for r in hook.seen if r["name"] == "x")
    assert seen["operation"] == "CREATE"
    assert seen["resource"] == {"group": "", "version": "v1", "resource": "configmaps"}
    assert seen["kind"] == {"group": "", "version": "v1", "kind": "ConfigMap"}
    assert (seen["namespace"], seen["oldObject"], seen["dryRun"]) == ("mutate", None, False)
    assert seen["userInfo"]["username"] == "kubernetes-admin"
    assert "system:masters" in seen["userInfo"]["groups"]


def test_a_container_injected_by_a_webhook_gets_the_service_account_token_too(
    lab: Lab, hook: Hook, configure: Callable[..., None]
) -> None:
    configure("inject")
    lab.namespace("inject", hooked="inject")

    def inject(request: Json) -> Json:
        if request["kind"]["kind"] != "Pod":
            return {"allowed": True}
        # what the built-in plugins added is there already
        assert request["object"]["spec"]["serviceAccountName"] == "default"
        return patch({"op": "add", "path": "/spec/containers/-", "value": {"name": "proxy", "image": "proxy:1"}})

    hook.answer = inject
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
    made = lab.create("/api/v1/namespaces/inject/pods", {**pod, "spec": {"containers": [{"name": "c", "image": "i"}]}})
    first, second = made["spec"]["containers"]
    assert second["name"] == "proxy"
    assert second["volumeMounts"] == first["volumeMounts"]
    assert second["imagePullPolicy"] == "IfNotPresent"  # defaults reach it as well
    assert len(made["spec"]["volumes"]) == 1


def test_a_denial_carries_the_webhooks_name_message_and_code(
    lab: Lab, hook: Hook, configure: Callable[..., None]
) -> None:
    configure("deny", mutating=False)
    lab.namespace("deny", hooked="deny")
    hook.answer = lambda _request: {"allowed": False, "status": {"message": "not today", "code": 403}}
    answer = post(lab, "deny")
    assert answer.status_code == 403
    assert answer.json()["message"] == 'admission webhook "deny.example.com" denied the request: not today'
    assert lab.admin.get("/api/v1/namespaces/deny/configmaps/x").status_code == 404


def test_a_denial_without_code_or_words_is_400_without_explanation(
    lab: Lab, hook: Hook, configure: Callable[..., None]
) -> None:
    configure("mute", mutating=False)
    lab.namespace("mute", hooked="mute")
    hook.answer = lambda _request: {"allowed": False}
    answer = post(lab, "mute")
    assert answer.status_code == 400
    assert answer.json()["message"] == 'admission webhook "mute.example.com" denied the request without explanation'


def test_a_webhook_whose_certificate_the_bundle_does_not_cover_stops_the_write_when_it_must_be_asked(
    lab: Lab, hook: Hook, configure: Callable[..., None], tmp_path: Path
) -> None:
    stranger = make_pair(tmp_path, "other-ca", "hook-ca", ca=True)
    configure("untrusted", clientConfig={"url": hook.url, "caBundle": bundle(stranger)})
    lab.namespace("untrusted", hooked="untrusted")
    answer = post(lab, "untrusted")
    assert answer.status_code == 500
    assert answer.json()["reason"] == "InternalError"
    assert answer.json()["message"] == (
        'Internal error occurred: failed calling webhook "untrusted.example.com": failed to call webhook: '
        f'Post "{hook.url}?timeout=10s": tls: failed to verify certificate: '
        "x509: certificate signed by unknown authority"
    )
    assert hook.seen == []


def test_with_failure_policy_ignore_the_object_is_stored_as_if_there_were_no_webhook(
    lab: Lab, hook: Hook, configure: Callable[..., None], tmp_path: Path
) -> None:
    stranger = make_pair(tmp_path, "other-ca", "hook-ca", ca=True)
    configure("ignored", clientConfig={"url": hook.url, "caBundle": bundle(stranger)}, failurePolicy="Ignore")
    lab.namespace("ignored", hooked="ignored")
    hook.answer = lambda _request: patch({"op": "add", "path": "/data/b", "value": "2"})
    assert post(lab, "ignored").json()["data"] == {"a": "1"}


def test_a_corrected_ca_bundle_works_for_the_next_write(
    lab: Lab, hook: Hook, hook_ca: Pair, configure: Callable[..., None], tmp_path: Path
) -> None:
    stranger = make_pair(tmp_path, "other-ca", "hook-ca", ca=True)
    configure("corrected", clientConfig={"url": hook.url, "caBundle": bundle(stranger)})
    lab.namespace("corrected", hooked="corrected")
    assert post(lab, "corrected").status_code == 500
    both = base64.b64encode((stranger.pem + hook_ca.pem).encode()).decode()
    change = [{"op": "replace", "path": "/webhooks/0/clientConfig/caBundle", "value": both}]
    path = f"{CONFIGURATIONS}/mutatingwebhookconfigurations/corrected"
    changed = lab.admin.patch(path, json=change, headers={"content-type": "application/json-patch+json"})
    assert changed.status_code == 200, changed.text
    assert post(lab, "corrected").status_code == 201


def test_a_certificate_for_another_name_is_refused(
    lab: Lab, hook: Hook, hook_ca: Pair, configure: Callable[..., None]
) -> None:
    url = f"https://localhost:{hook.port}/hook"
    configure("name", clientConfig={"url": url, "caBundle": bundle(hook_ca)})
    lab.namespace("name", hooked="name")
    assert "x509: certificate is not valid for localhost" in post(lab, "name").json()["message"]


def test_a_ca_bundle_of_no_pem_is_an_error_at_the_call(lab: Lab, hook: Hook, configure: Callable[..., None]) -> None:
    configure("nopem", clientConfig={"url": hook.url, "caBundle": base64.b64encode(b"not a pem").decode()})
    lab.namespace("nopem", hooked="nopem")
    assert "unable to load root certificates" in post(lab, "nopem").json()["message"]


def test_a_slow_webhook_is_given_up_after_its_timeout(lab: Lab, hook: Hook, configure: Callable[..., None]) -> None:
    configure("slow", timeoutSeconds=1)
    lab.namespace("slow", hooked="slow")
    release = threading.Event()

    def dawdle(_request: Json) -> Json:
        release.wait(5)
        return {"allowed": True}

    hook.answer = dawdle
    started = time.monotonic()
    answer = post(lab, "slow")
    release.set()
    assert answer.json()["message"].endswith("context deadline exceeded")
    assert time.monotonic() - started < 3


def test_nobody_listening_is_a_refused_connection(lab: Lab, hook_ca: Pair, configure: Callable[..., None]) -> None:
    configure("nobody", clientConfig={"url": "https://127.0.0.1:9/hook", "caBundle": bundle(hook_ca)})
    lab.namespace("nobody", hooked="nobody")
    assert post(lab, "nobody").json()["message"].endswith("dial tcp 127.0.0.1:9: connect: connection refused")


def test_a_dry_run_reaches_webhooks_as_one_and_stores_nothing(
    lab: Lab, hook: Hook, configure: Callable[..., None]
) -> None:
    configure("dry")
    lab.namespace("dry", hooked="dry")
    assert post(lab, "dry", query="?dryRun=All").status_code == 201
    assert hook.seen[-1]["dryRun"] is True
    assert lab.admin.get("/api/v1/namespaces/dry/configmaps/x").status_code == 404


def test_namespaces_outside_the_selector_are_left_alone(lab: Lab, hook: Hook, configure: Callable[..., None]) -> None:
    configure("selective")
    lab.namespace("elsewhere")
    before = len(hook.seen)
    assert post(lab, "elsewhere").status_code == 201
    assert len(hook.seen) == before


def test_an_object_selector_looks_at_the_objects_labels(lab: Lab, hook: Hook, configure: Callable[..., None]) -> None:
    selector = {"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]}
    configure("objects", objectSelector=selector, mutating=False)
    lab.namespace("objects", hooked="objects")
    hook.answer = lambda _request: {"allowed": False}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "y", "labels": {"skip": "yes"}}}
    assert lab.admin.post("/api/v1/namespaces/objects/configmaps", json=body).status_code == 201
    assert post(lab, "objects").status_code == 400


def test_warnings_of_a_webhook_reach_the_client(lab: Lab, hook: Hook, configure: Callable[..., None]) -> None:
    configure("warn", mutating=False)
    lab.namespace("warn", hooked="warn")
    hook.answer = lambda _request: {"allowed": True, "warnings": ["mind the gap"]}
    assert post(lab, "warn").headers["warning"] == '299 - "mind the gap"'


def test_an_answer_to_another_question_is_an_invalid_response(
    lab: Lab, hook: Hook, configure: Callable[..., None]
) -> None:
    configure("uid", mutating=False)
    lab.namespace("uid", hooked="uid")
    hook.answer = lambda _request: {"allowed": True, "uid": "other"}
    assert 'received invalid webhook response: expected response.uid="' in post(lab, "uid").json()["message"]


def test_a_service_is_reached_at_a_ready_pod_under_its_cluster_name(
    lab: Lab, hook: Hook, hook_ca: Pair, configure: Callable[..., None]
) -> None:
    lab.namespace("mesh")
    service = {"name": "injector", "namespace": "mesh", "path": "/hook"}
    configure("service", clientConfig={"service": service, "caBundle": bundle(hook_ca)})
    lab.namespace("service", hooked="service")
    assert 'service "injector" not found' in post(lab, "service").json()["message"]
    spec: Json = {"selector": {"app": "injector"}, "ports": [{"port": 443, "targetPort": "https"}]}
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "injector"}, "spec": spec}
    lab.create("/api/v1/namespaces/mesh/services", body)
    assert 'no endpoints available for service "injector"' in post(lab, "service").json()["message"]
    container = {"name": "c", "image": "i", "ports": [{"name": "https", "containerPort": hook.port}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"app": "injector"}}}
    lab.create("/api/v1/namespaces/mesh/pods", {**pod, "spec": {"containers": [container]}})
    status = {"podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}
    path = "/api/v1/namespaces/mesh/pods/p/status"
    lab.admin.patch(path, json={"status": status}, headers={"content-type": "application/merge-patch+json"})
    assert post(lab, "service").status_code == 201
