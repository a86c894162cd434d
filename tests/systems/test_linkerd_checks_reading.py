"""What the checks are judged on is read from a Kubernetes API, by real names; and what may not be read is said."""

from __future__ import annotations

import ssl
from datetime import timedelta

import httpx
import pytest

from capstan.cluster.resources import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    EVENTS,
    MUTATING_WEBHOOKS,
    NAMESPACES,
    SECRETS,
    VALIDATING_WEBHOOKS,
)
from capstan.pki.bundle import Bundle
from capstan.systems.base import Status
from capstan.systems.linkerd.checks import checks
from capstan.systems.linkerd.checks_evidence import gather
from capstan.systems.linkerd.checks_hooks import HOOKS, read_hook
from capstan.systems.linkerd.observe import observe
from tests.pki.ca import NOW
from tests.support.apiserver import Running
from tests.systems.linkerd_evidence import BUNDLE, ISSUER, encoded, key_pem, pod, secret, serving

INJECTOR = serving("linkerd-proxy-injector.linkerd.svc")
VALIDATOR = serving("linkerd-sp-validator.linkerd.svc")
VALUES = """\
linkerdVersion: edge-26.8.3
highAvailability: false
identityTrustAnchorsPEM: |
{anchors}
identity:
  issuer:
    scheme: linkerd.io/tls
"""


def tls_secret(name, pair, *, keys=("tls.crt", "tls.key")):
    data = {keys[0]: encoded(pair.certificate.pem()), keys[1]: encoded(key_pem(pair))}
    return {"metadata": {"name": name, "namespace": "linkerd"}, "data": data}


def webhook_configuration(name, pair, service, *, annotations=None, copies=1):
    client = {"service": {"name": service, "namespace": "linkerd", "path": "/"}}
    if pair is not None:
        client["caBundle"] = encoded(pair.certificate.pem())
    rule = {"operations": ["CREATE"], "apiGroups": ["nowhere.io"], "apiVersions": ["v1"], "resources": ["things"]}
    hooks = [
        {
            "name": f"w{index}.linkerd.io", "clientConfig": client, "rules": [rule], "sideEffects": "None",
            "admissionReviewVersions": ["v1"], "failurePolicy": "Ignore",
        }
        for index in range(copies)
    ]  # fmt: skip
    return {"metadata": {"name": name, "annotations": annotations or {}}, "webhooks": hooks}


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """A Kubernetes API with Linkerd's objects, and no node: nothing runs."""
    running = Running(tmp_path_factory.mktemp("api"))
    cluster = running.connect()
    for name, labels in (("linkerd", {}), ("linkerd-viz", {"linkerd.io/extension": "viz"})):
        cluster.create(
            NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        )
    indented = "\n".join(f"  {line}" for line in BUNDLE.pem().splitlines())
    for resource, item in (
        (CONFIG_MAPS, {"metadata": {"name": "linkerd-identity-trust-roots"}, "data": {"ca-bundle.crt": BUNDLE.pem()}}),
        (CONFIG_MAPS, {"metadata": {"name": "linkerd-config"}, "data": {"values": VALUES.format(anchors=indented)}}),
        (SECRETS, secret(ISSUER)),
        (SECRETS, tls_secret("linkerd-proxy-injector-k8s-tls", INJECTOR)),
        (SECRETS, tls_secret("linkerd-sp-validator-tls", VALIDATOR, keys=("crt.pem", "key.pem"))),
        (DEPLOYMENTS, deployment()),
        (EVENTS, event()),
    ):
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **item}
        body["metadata"]["namespace"] = "linkerd"
        cluster.create(resource, body)
    for resource, item in (
        (
            MUTATING_WEBHOOKS,
            webhook_configuration("linkerd-proxy-injector-webhook-config", INJECTOR, "linkerd-proxy-injector"),
        ),
        (
            VALIDATING_WEBHOOKS,
            webhook_configuration("linkerd-sp-validator-webhook-config", VALIDATOR, "linkerd-sp-validator"),
        ),
    ):
        cluster.create(resource, {"apiVersion": resource.api_version, "kind": resource.kind, **item})
    yield cluster
    cluster.close()
    running.stop()


def deployment():
    labels = {"linkerd.io/control-plane-component": "identity"}
    container = {"name": "identity", "image": "x", "args": ["identity", "-identity-scheme=linkerd.io/tls"]}
    return {
        "metadata": {"name": "linkerd-identity", "labels": {"app.kubernetes.io/version": "edge-26.8.3"}},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }


def event():
    at = f"{NOW - timedelta(minutes=5):%FT%TZ}"
    return {
        "metadata": {"name": "linkerd-identity.1"},
        "involvedObject": {
            "apiVersion": "apps/v1", "kind": "Deployment", "name": "linkerd-identity", "namespace": "linkerd"
        },
        "reason": "IssuerUpdateSkipped",
        "message": "Skipping issuer update as certs could not be read from disk",
        "type": "Warning",
        "source": {"component": "linkerd-identity"},
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }  # fmt: skip


@pytest.fixture
def read(api):
    def read(**options):
        return gather(api, observe(api, "linkerd"), now=NOW, **options)

    return read


@pytest.fixture
def forbidden(api):
    """Makes a kind of request be refused as RBAC refuses it; undone after the test."""
    configuration = api.configuration
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    context.load_cert_chain(configuration.cert_file, configuration.key_file)
    with httpx.Client(base_url=api.host, verify=context, trust_env=False) as admin:

        def add(path):
            admin.post(
                "/lab/faults", json={"path": f"{path}($|\\?)", "times": 0, "action": {"status": 403}}
            ).raise_for_status()

        yield add
        admin.delete("/lab/faults").raise_for_status()


def hook(evidence, name):
    (found,) = [item for item in evidence.hooks if item.hook.name == name]
    return found


def test_declared_texts_extensions_and_events_are_read(read):
    evidence = read()
    assert evidence.bundle_text == BUNDLE.pem()
    assert Bundle.parse(evidence.anchors_text, "x").fingerprints == BUNDLE.fingerprints
    assert [item["metadata"]["name"] for item in evidence.extensions.value] == ["linkerd-viz"]
    assert [item["reason"] for item in evidence.events.value] == ["IssuerUpdateSkipped"]
    assert (evidence.replicas, evidence.pods) == ((), ())


def test_webhooks_are_read_by_their_present_and_by_their_older_names(read):
    evidence = read()
    assert [item.hook.name for item in evidence.hooks] == [
        "proxy-injector", "sp-validator", "policy-validator", "tap", "tap-injector",
    ]  # fmt: skip
    injector, validator = hook(evidence, "proxy-injector"), hook(evidence, "sp-validator")
    assert (injector.chain, injector.problems) == ((INJECTOR.certificate,), ())
    assert (validator.chain, validator.problems) == ((VALIDATOR.certificate,), ())
    assert validator.anchors.certificates == (VALIDATOR.certificate,)
    assert not hook(evidence, "policy-validator").installed
    assert hook(evidence, "tap").namespace == "linkerd-viz"


@pytest.mark.parametrize(
    ("copies", "annotations", "problem"),
    [
        (0, {}, "has 0 webhooks, expected 1"),
        (1, {}, "is empty: the API server then trusts its host's roots"),
        (1, {"cert-manager.io/inject-ca-from": "linkerd/x"}, "is empty: cert-manager's cainjector has not filled it"),
    ],
)
@pytest.mark.proves("checks", "linkerd-webhooks-and-apisvc-tls: proxy-injector webhook has valid cert", "configuration")
def test_a_configuration_that_is_not_one_webhook_with_a_ca_bundle_is_a_problem(api, copies, annotations, problem):
    name = "linkerd-proxy-injector-webhook-config"
    kept = api.get(MUTATING_WEBHOOKS, name)
    webhooks = webhook_configuration(name, None, "x", copies=copies)["webhooks"]
    metadata = {**kept["metadata"], "annotations": annotations}
    api.replace(MUTATING_WEBHOOKS, {**kept, "metadata": metadata, "webhooks": webhooks})
    try:
        (found,) = read_hook(api, HOOKS[0], "linkerd", (), timeout=1).problems
        assert problem in found
    finally:
        version = api.get(MUTATING_WEBHOOKS, name)["metadata"]["resourceVersion"]
        api.replace(MUTATING_WEBHOOKS, {**kept, "metadata": {**kept["metadata"], "resourceVersion": version}})


@pytest.mark.proves("checks", "linkerd-webhooks-and-apisvc-tls: proxy-injector webhook has valid cert", "foreign key")
def test_a_webhooks_key_of_another_certificate_is_a_problem_and_is_not_shown(api, read):
    kept = api.get(SECRETS, "linkerd-proxy-injector-k8s-tls", "linkerd")["data"]["tls.key"]
    other = key_pem(VALIDATOR)
    api.patch(SECRETS, "linkerd-proxy-injector-k8s-tls", {"data": {"tls.key": encoded(other)}}, "linkerd")
    try:
        (problem,) = hook(read(), "proxy-injector").problems
    finally:
        api.patch(SECRETS, "linkerd-proxy-injector-k8s-tls", {"data": {"tls.key": kept}}, "linkerd")
    assert problem == "secret linkerd/linkerd-proxy-injector-k8s-tls: the key does not belong to the certificate"


@pytest.mark.parametrize(
    ("path", "description"),
    [
        ("/api/v1/nodes", "no clock skew detected"),
        ("/api/v1/namespaces/linkerd/events", "identity reports no trouble with its issuer"),
        ("/apis/apps/v1/namespaces/linkerd/replicasets", "control plane replica sets are ready"),
        ("/api/v1/namespaces/linkerd/secrets/linkerd-proxy-injector-k8s-tls", "proxy-injector webhook has valid cert"),
    ],
)
@pytest.mark.proves(
    "checks", "rights", "what may not be read fails its check, and names verb, resource and the next command"
)
def test_what_may_not_be_read_fails_its_own_check_and_no_other(api, forbidden, path, description):
    before = {item.description: item.status for item in checks(api, observe(api, "linkerd"), now=NOW)}
    forbidden(path)
    after = {item.description: item for item in checks(api, observe(api, "linkerd"), now=NOW)}
    found = after[description]
    assert found.status in (Status.WARNING, Status.ERROR)
    assert "kubectl auth can-i" in found.message
    worse = {name for name, item in after.items() if item.status is not before[name]}
    assert worse <= {description, "proxy-injector cert is valid for at least 60 days"}


@pytest.mark.parametrize(("ready", "asked"), [("True", 1), ("False", 0)])
def test_only_a_pod_that_gets_calls_is_asked_what_it_serves(api, ready, asked):
    item = pod("linkerd", "linkerd-proxy-injector-1", component="proxy-injector", containers=("proxy-injector",))
    item["status"]["conditions"] = [{"type": "Ready", "status": ready}]
    served = read_hook(api, HOOKS[0], "linkerd", (item,), timeout=1).served
    assert [(found.pod, found.chain) for found in served] == [("linkerd-proxy-injector-1", ())] * asked
    assert all(found.problem for found in served)


def test_events_older_than_asked_for_do_not_count(api):
    view = observe(api, "linkerd")
    name = "identity reports no trouble with its issuer"
    statuses = [
        next(item.status for item in checks(api, view, now=NOW, since=since) if item.description == name)
        for since in (timedelta(minutes=10), timedelta(minutes=1))
    ]
    assert statuses == [Status.WARNING, Status.OK]
