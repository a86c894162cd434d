"""Every check of a Linkerd: passes on a healthy mesh, fails under Linkerd's own words when its subject is broken."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from capstan.pki.bundle import Bundle
from capstan.systems.base import Severity, Status
from capstan.systems.linkerd.checks import judge
from capstan.systems.linkerd.checks_evidence import Answer, Replica
from capstan.systems.linkerd.checks_hooks import HOOKS, VIZ_HOOKS, Served
from tests.pki.ca import CLIENT, DAY, NOW, make
from tests.systems.linkerd_evidence import (
    BUNDLE,
    EXPIRED,
    ISSUER,
    OTHER,
    ROOT,
    YEAR,
    check,
    encoded,
    healthy,
    key_pem,
    leaf,
    lease,
    namespace,
    node,
    serving,
    with_hook,
    with_peer,
    with_pod,
    with_secret,
    with_view,
)

P384 = make("r", key=ec.generate_private_key(ec.SECP384R1()))
FATAL, ERROR, WARNING = Severity.FATAL, Severity.ERROR, Severity.WARNING
HINTS = "https://linkerd.io/2/checks/#"
TRUST_PAGE = "https://linkerd.io/2/tasks/manually-rotating-control-plane-tls-credentials/"
HOOK_PAGE = "https://linkerd.io/2/tasks/rotating_webhooks_certificates/"
EXPIRED_PAGE = "https://linkerd.io/2/tasks/replacing_expired_certificates/"


def case(category, description, anchor, level, broken, text):
    what = f"passes on a healthy mesh; fails ({level.value}) with: {text}"
    return pytest.param(
        category, description, anchor, level, broken, text, id=f"{category}: {description}",
        marks=pytest.mark.proves("checks", f"{category}: {description}", what),
    )  # fmt: skip


def issuer_that_ends(end, **annotations):
    return make("identity.linkerd.cluster.local", ROOT, path_length=0, end=end, **annotations)


def crt_removed():
    return with_secret(healthy(), lambda item: item["data"].pop("crt.pem"))


def not_ready(item):
    item["status"]["initContainerStatuses"][0]["ready"] = False


def down(name):
    def change(item):
        item["status"]["containerStatuses"][0]["ready"] = False

    return with_pod(with_pod(healthy(), f"{name}-1", change), f"{name}-2", change)


def other_version(item):
    item["metadata"]["annotations"]["linkerd.io/proxy-version"] = "stable-2.14.10"


def crashed(item):
    ended = {"exitCode": 1, "reason": "Error", "finishedAt": f"{NOW - timedelta(minutes=5):%FT%TZ}"}
    item["status"]["containerStatuses"][0]["lastState"] = {"terminated": ended}


def unscheduled(item):
    item["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes are available"}
    ]


def failing_replica_set():
    condition = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "exceeded quota"}
    return {"metadata": {"name": "linkerd-identity-7c"}, "status": {"conditions": [condition]}}


def skip_event():
    return {
        "metadata": {"name": "e", "namespace": "linkerd"},
        "reason": "IssuerUpdateSkipped",
        "message": "Skipping issuer update",
        "lastTimestamp": f"{NOW - timedelta(minutes=5):%FT%TZ}",
    }


def test_events_that_say_the_same_are_one_line_with_their_number():
    events = tuple({**skip_event(), "lastTimestamp": f"{NOW - timedelta(minutes=n):%FT%TZ}"} for n in range(1, 12))
    found = check(healthy(events=Answer(events)), "identity reports no trouble with its issuer")
    lines = found.message.splitlines()
    newest, oldest = NOW - timedelta(minutes=1), NOW - timedelta(minutes=11)
    assert lines == [
        f"* IssuerUpdateSkipped {newest:%F %T}Z: Skipping issuer update (and 10 more since {oldest:%F %T}Z)"
    ]


def hook_of_another(name):
    """The API server trusts another certificate than the one that is there."""
    return with_hook(healthy(), name, anchors=Bundle.of(serving("somebody.else.svc").certificate))


def ending_hook(name, service):
    certificate = serving(service, end=NOW + 10 * DAY).certificate
    return with_hook(
        healthy(), name, anchors=Bundle.of(certificate), chain=(certificate,), served=(Served("p", (certificate,)),)
    )


def hook_cases():
    for hook in (*HOOKS, *VIZ_HOOKS):
        viz = hook in VIZ_HOOKS
        service = f"{hook.service}.{'linkerd-viz' if viz else 'linkerd'}.svc"
        names = {
            "tap": ("linkerd-viz", "tap API server has valid cert", "l5d-tap-cert-valid",
                    "tap API server cert is valid for at least 60 days", "l5d-tap-cert-not-expiring-soon"),
            "tap-injector": ("capstan-trust", "tap-injector webhook has valid cert", HOOK_PAGE,
                             "tap-injector cert is valid for at least 60 days", HOOK_PAGE),
        }  # fmt: skip
        category, valid, valid_anchor, ends, ends_anchor = names.get(
            hook.name,
            (
                "linkerd-webhooks-and-apisvc-tls", f"{hook.name} webhook has valid cert",
                f"l5d-{hook.name}-webhook-cert-valid", f"{hook.name} cert is valid for at least 60 days",
                f"l5d-{hook.name}-webhook-cert-not-expiring-soon",
            ),
        )  # fmt: skip
        yield case(
            category, valid, valid_anchor, FATAL, lambda name=hook.name: hook_of_another(name), "chain does not verify"
        )
        yield case(
            category, ends, ends_anchor, WARNING,
            lambda name=hook.name, service=service: ending_hook(name, service), "will expire on 2026-12-01",
        )  # fmt: skip


CASES = [
    case(
        "pre-kubernetes-setup", "no clock skew detected", "pre-k8s-clock-skew", WARNING,
        lambda: healthy(leases=Answer((lease("a", NOW + timedelta(minutes=2)), lease("b", NOW)))),
        "a: it renewed its Lease 120 s in the future",
    ),
    case(
        "linkerd-existence", "'linkerd-config' config map exists", "l5d-existence-linkerd-config", FATAL,
        lambda: healthy(has_config=False, values={}), "there is none",
    ),
    case(
        "linkerd-existence", "control plane replica sets are ready", "l5d-existence-replicasets", FATAL,
        lambda: healthy(replica_sets=Answer((failing_replica_set(),))), "FailedCreate: exceeded quota",
    ),
    case(
        "linkerd-existence", "no unschedulable pods", "l5d-existence-unschedulable-pods", WARNING,
        lambda: with_pod(healthy(), "linkerd-identity-2", unscheduled), "0/2 nodes are available",
    ),
    case(
        "linkerd-existence", "control plane pods are ready", "l5d-api-control-ready", FATAL,
        lambda: down("linkerd-destination"), "pod/linkerd-destination-1 container destination is not ready",
    ),
    case(
        "linkerd-identity", "certificate config is valid", "l5d-identity-cert-config-valid", FATAL, crt_removed,
        "key crt.pem containing the issuer certificate needs to exist in secret linkerd-identity-issuer",
    ),
    case(
        "linkerd-identity", "trust anchors are using supported crypto algorithm",
        "l5d-identity-trustAnchors-use-supported-crypto", FATAL,
        lambda: healthy(bundle=Bundle.of(ROOT.certificate, P384.certificate)),
        "ECDSA P-384",
    ),
    case(
        "linkerd-identity", "trust anchors are within their validity period",
        "l5d-identity-trustAnchors-are-time-valid", FATAL, lambda: replace(healthy(), now=NOW + 11 * YEAR),
        "root.linkerd.cluster.local",
    ),
    case(
        "linkerd-identity", "trust anchors are valid for at least 60 days",
        "l5d-identity-trustAnchors-not-expiring-soon", WARNING,
        lambda: replace(healthy(), now=ROOT.certificate.not_after - 30 * DAY), "will expire on",
    ),
    case(
        "linkerd-identity", "issuer cert is using supported crypto algorithm",
        "l5d-identity-issuer-cert-uses-supported-crypto", FATAL,
        lambda: healthy(
            issuer=make("i", ROOT, key=rsa.generate_private_key(public_exponent=65537, key_size=2048), end=NOW + YEAR)
        ),
        "RSA 2048",
    ),
    case(
        "linkerd-identity", "issuer cert is within its validity period", "l5d-identity-issuer-cert-is-time-valid",
        FATAL, lambda: replace(healthy(), now=ISSUER.certificate.not_after + DAY), "expired on",
    ),
    case(
        "linkerd-identity", "issuer cert is valid for at least 60 days",
        "l5d-identity-issuer-cert-not-expiring-soon", WARNING, lambda: healthy(issuer=issuer_that_ends(NOW + 30 * DAY)),
        "will expire on 2026-12-21",
    ),
    case(
        "linkerd-identity", "issuer cert is issued by the trust anchor",
        "l5d-identity-issuer-cert-issued-by-trust-anchor", ERROR,
        lambda: healthy(issuer=make("identity.linkerd.cluster.local", OTHER, end=NOW + YEAR)), "chain does not verify",
    ),
    *hook_cases(),
    case(
        "linkerd-identity-data-plane", "data plane proxies certificate match CA",
        "l5d-identity-data-plane-proxies-certs-match-ca", WARNING,
        lambda: with_peer(healthy(), "web-1", trusts=frozenset({OTHER.certificate.fingerprint})),
        f"shop/web-1 holds {{{OTHER.certificate.fingerprint[:8]}}}",
    ),
    case(
        "control-plane-version", "can retrieve the control plane version", "l5d-version-control", FATAL,
        lambda: with_view(healthy(), layout=replace(healthy().view.layout, version="")), "linkerd-config",
    ),
    case(
        "linkerd-control-plane-proxy", "control plane proxies are healthy", "l5d-cp-proxy-healthy", FATAL,
        lambda: with_peer(healthy(), "linkerd-identity-1", trusts=frozenset({OTHER.certificate.fingerprint})),
        "none of the declared roots",
    ),
    case(
        "linkerd-control-plane-proxy", "control plane proxies are up-to-date", "l5d-cp-proxy-version", WARNING,
        lambda: with_pod(healthy(), "linkerd-destination-1", other_version),
        "linkerd/linkerd-destination-1 (stable-2.14.10)",
    ),
    case(
        "linkerd-data-plane", "data plane proxies are ready", "l5d-data-plane-ready", FATAL,
        lambda: with_pod(healthy(), "web-1", not_ready), 'container "linkerd-proxy" in pod shop/web-1 is not ready',
    ),
    case(
        "linkerd-data-plane", "data plane is up-to-date", "l5d-data-plane-version", WARNING,
        lambda: with_pod(healthy(), "web-1", other_version), "shop/web-1 (stable-2.14.10)",
    ),
    case(
        "linkerd-data-plane", "data plane pod labels are configured correctly", "l5d-data-plane-pod-labels", WARNING,
        lambda: with_pod(
            healthy(), "web-1",
            lambda item: item["metadata"]["labels"].update({"config.linkerd.io/skip-outbound-ports": "1"}),
        ),
        "shop/web-1: config.linkerd.io/skip-outbound-ports",
    ),
    case(
        "linkerd-ha-checks", "multiple replicas of control plane pods", "l5d-control-plane-replicas", WARNING,
        lambda: with_pod(healthy(), "linkerd-identity-2", lambda item: item["status"].update(phase="Pending")),
        "linkerd-identity",
    ),
    case(
        "linkerd-extension-checks", "namespace configuration for extensions", "l5d-extension-namespaces", WARNING,
        lambda: healthy(extensions=Answer((namespace("one", "jaeger"), namespace("two", "jaeger")))),
        "jaeger is the label of one, two",
    ),
    case(
        "linkerd-viz", "tap API service is running", "l5d-tap-api", WARNING,
        lambda: with_hook(healthy(), "tap", available="FailedDiscoveryCheck: no response"), "FailedDiscoveryCheck",
    ),
    case(
        "linkerd-viz", "linkerd-viz pods are injected", "l5d-viz-pods-injection", WARNING,
        lambda: with_pod(healthy(), "web-v1", lambda item: item["spec"].update(initContainers=[])),
        "linkerd-viz/web-v1",
    ),
    case(
        "linkerd-viz", "viz extension pods are running", "l5d-viz-pods-running", WARNING,
        lambda: with_pod(healthy(), "tap-injector-v1", lambda item: item["status"].update(phase="Failed")),
        "no pod of tap-injector",
    ),
    case(
        "linkerd-viz", "viz extension proxies are healthy", "l5d-viz-proxy-healthy", WARNING,
        lambda: with_pod(healthy(), "tap-v1", not_ready), "linkerd-viz/tap-v1",
    ),
    case(
        "linkerd-viz", "viz extension proxies are up-to-date", "l5d-viz-proxy-cp-version", WARNING,
        lambda: with_pod(healthy(), "tap-v1", other_version), "linkerd-viz/tap-v1 (stable-2.14.10)",
    ),
    case(
        "linkerd-multicluster", "multicluster extension proxies are healthy", "l5d-multicluster-proxy-healthy", WARNING,
        lambda: with_peer(healthy(), "linkerd-gateway-1", trusts=frozenset({OTHER.certificate.fingerprint})),
        "linkerd-multicluster/linkerd-gateway-1 holds",
    ),
    case(
        "linkerd-multicluster", "multicluster extension proxies are up-to-date", "l5d-multicluster-proxy-cp-version",
        WARNING, lambda: with_pod(healthy(), "linkerd-gateway-1", other_version), "stable-2.14.10",
    ),
    case(
        "capstan-trust", "every running proxy says its roots and shows its leaf", TRUST_PAGE, ERROR,
        lambda: with_peer(healthy(), "web-1", trusts=None, unreadable="roots: no answer"), "roots: no answer",
    ),
    case(
        "capstan-trust", "no proxy presents an expired leaf", TRUST_PAGE, FATAL,
        lambda: with_peer(healthy(), "web-1", leaf=leaf(start=NOW - 2 * DAY)), "only a restart heals",
    ),
    case(
        "capstan-trust", "every leaf is renewed in time", TRUST_PAGE, WARNING,
        lambda: with_peer(healthy(), "web-1", leaf=leaf(start=NOW - timedelta(hours=23))), "96% of its life is over",
    ),
    case(
        "capstan-trust", "every proxy trusts every other proxy's leaf", TRUST_PAGE, FATAL,
        lambda: with_peer(healthy(), "web-1", leaf=replace(leaf(), anchors=frozenset())),
        "east/shop/web-1 is not trusted by",
    ),
    case(
        "capstan-trust", "every leaf was signed by the configured issuer", TRUST_PAGE, WARNING,
        lambda: with_peer(healthy(), "web-1", leaf=leaf(OTHER.certificate)), OTHER.certificate.fingerprint[:8],
    ),
    case(
        "capstan-trust", "every identity holds the configured issuer in memory", EXPIRED_PAGE, ERROR,
        lambda: healthy(
            replicas=(Replica("linkerd-identity-1", ISSUER.certificate.not_after), Replica("linkerd-identity-2", NOW))
        ),
        "linkerd-identity-2: its issuer ends 2026-11-21",
    ),
    case(
        "capstan-trust", "every identity's clock agrees with ours", f"{HINTS}pre-k8s-clock-skew", ERROR,
        lambda: healthy(
            replicas=(
                Replica("linkerd-identity-1", ISSUER.certificate.not_after),
                Replica("linkerd-identity-2", ISSUER.certificate.not_after, node="b", ahead=timedelta(seconds=-90)),
            )
        ),
        "replica linkerd-identity-2 on node b: 90 s behind",
    ),
    case(
        "capstan-trust", "workloads outside the cluster are accounted for",
        "https://linkerd.io/2/tasks/adding-non-kubernetes-workloads/", ERROR,
        lambda: healthy(outside=Answer(({"metadata": {"name": "db-1", "namespace": "vms"}},))), "vms/db-1",
    ),
    case(
        "capstan-trust", "identity reports no trouble with its issuer", EXPIRED_PAGE, WARNING,
        lambda: healthy(events=Answer((skip_event(),))), "IssuerUpdateSkipped",
    ),
    case(
        "capstan-trust", "no control plane container has crashed", HINTS + "l5d-api-control-ready", WARNING,
        lambda: with_pod(healthy(), "linkerd-identity-1", crashed), "exit code 1",
    ),
    case(
        "capstan-trust", "all places that declare the trust anchors agree", TRUST_PAGE, WARNING,
        lambda: with_view(
            healthy(),
            observation=replace(
                healthy().view.observation, declared=(("linkerd-config", frozenset({OTHER.certificate.fingerprint})),)
            ),
        ),
        "linkerd-config declares",
    ),
    case(
        "capstan-trust", "the trust bundle is text that every reader understands", TRUST_PAGE, FATAL,
        lambda: healthy(bundle_text=BUNDLE.pem() + "\n\n"), "identity would crash",
    ),
    case(
        "capstan-trust", "trust anchors can be told apart", TRUST_PAGE, ERROR,
        lambda: healthy(
            bundle=Bundle.of(
                ROOT.certificate, make("root.linkerd.cluster.local", ski=False, end=NOW + YEAR).certificate
            )
        ),
        "same subject",
    ),
    case(
        "capstan-trust", "every webhook serves the certificate of its Secret", HOOK_PAGE, WARNING,
        lambda: with_hook(
            healthy(), "proxy-injector",
            served=(Served("linkerd-proxy-injector-1", (serving("linkerd-proxy-injector.linkerd.svc").certificate,)),),
        ),
        "proxy-injector of pod linkerd-proxy-injector-1 serves",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def green():
    return {item.description: item for item in judge(healthy())}


@pytest.mark.parametrize(("category", "description", "anchor", "level", "broken", "text"), CASES)
def test_a_check_passes_on_a_healthy_mesh_and_fails_on_a_broken_one(
    green, category, description, anchor, level, broken, text
):
    passed = green[description]
    hint = anchor if anchor.startswith("https://") else HINTS + anchor
    assert (passed.category, passed.hint, passed.level, passed.status) == (category, hint, level, Status.OK)
    failed = check(broken(), description)
    assert failed.status is (Status.WARNING if level is WARNING else Status.ERROR)
    assert text in failed.message


def test_every_check_that_judges_something_has_its_case(green):
    """A check without a test that makes it red could be one that cannot fail."""
    judged = {f"{item.category}: {item.description}" for item in green.values() if item.status is not Status.SKIPPED}
    assert judged == {str(item.id) for item in CASES}
    assert len(judged) == len(CASES)


def test_a_healthy_mesh_has_no_finding_at_all(green):
    assert [item for item in green.values() if item.status not in (Status.OK, Status.SKIPPED)] == []


@pytest.mark.parametrize("name", [item.name for item in HOOKS])
def test_a_webhook_that_is_not_installed_is_skipped(name):
    evidence = with_hook(healthy(), name, installed=False)
    assert check(evidence, f"{name} webhook has valid cert").status is Status.SKIPPED


@pytest.mark.parametrize(
    ("root", "supported"),
    [
        ({}, True),
        ({"key": rsa.generate_private_key(public_exponent=65537, key_size=2048)}, True),
        ({"key": rsa.generate_private_key(public_exponent=65537, key_size=3072)}, False),
        ({"hash_algorithm": hashes.SHA384()}, False),
        ({"key": ec.generate_private_key(ec.SECP384R1())}, False),
    ],
)
def test_anchors_algorithms_are_judged_by_linkerds_table(root, supported):
    evidence = healthy(bundle=Bundle.of(make("root", **root).certificate))
    found = check(evidence, "trust anchors are using supported crypto algorithm")
    assert (found.status is Status.OK) is supported


def test_an_issuer_with_usages_but_not_that_of_a_server_is_refused():
    issuer = make("identity.linkerd.cluster.local", ROOT, path_length=0, end=NOW + YEAR, eku=[CLIENT])
    found = check(healthy(issuer=issuer), "issuer cert is issued by the trust anchor")
    assert found.status is Status.ERROR


def test_what_could_not_be_read_never_passes():
    refused = Answer((), "cannot list nodes: forbidden (run: kubectl auth can-i list nodes)")
    evidence = healthy(nodes=refused, events=refused, extensions=refused, replica_sets=refused)
    for description in (
        "no clock skew detected",
        "control plane replica sets are ready",
        "namespace configuration for extensions",
        "identity reports no trouble with its issuer",
    ):
        found = check(evidence, description)
        assert found.status in (Status.WARNING, Status.ERROR)
        assert "kubectl auth can-i list nodes" in found.message
    found = check(healthy(issuer_secret=Answer({}, "cannot get secrets: forbidden")), "certificate config is valid")
    assert (found.status, found.message) == (Status.ERROR, "* cannot get secrets: forbidden")


def test_an_identity_that_cannot_be_asked_is_not_taken_for_one_that_is_right():
    evidence = healthy(replicas=(Replica("linkerd-identity-1", None, "no answer"),))
    assert "no answer" in check(evidence, "every identity holds the configured issuer in memory").message
    none_says = healthy(replicas=(Replica("linkerd-identity-1", None),))
    assert check(none_says, "every identity holds the configured issuer in memory").status is Status.SKIPPED
    assert check(healthy(replicas=()), "every identity holds the configured issuer in memory").status is Status.ERROR


def test_only_what_is_younger_than_since_counts():
    evidence = healthy(events=Answer((skip_event(),)), since=timedelta(minutes=1))
    assert check(evidence, "identity reports no trouble with its issuer").status is Status.OK
    evidence = replace(with_pod(healthy(), "linkerd-identity-1", crashed), since=timedelta(minutes=1))
    assert check(evidence, "no control plane container has crashed").status is Status.OK


def test_a_secret_with_the_key_of_another_certificate_is_no_issuer():
    swapped = with_secret(healthy(), lambda item: item["data"].update({"key.pem": encoded(key_pem(OTHER))}))
    found = check(swapped, "certificate config is valid")
    assert found.status is Status.ERROR
    assert "key.pem is not the key of the certificate in crt.pem" in found.message
    assert "PRIVATE KEY" not in found.message


def test_an_issuer_in_text_that_identity_cannot_read_is_named():
    text = encoded(ISSUER.certificate.pem() + "\n\n")
    found = check(
        with_secret(healthy(), lambda item: item["data"].update({"crt.pem": text})), "certificate config is valid"
    )
    assert found.status is Status.ERROR
    assert "crt.pem" in found.message


def test_an_expired_certificate_beside_a_good_one_in_a_bundle_is_no_skew_of_names():
    evidence = healthy(bundle=Bundle.of(ROOT.certificate, EXPIRED.certificate))
    assert check(evidence, "trust anchors can be told apart").status is Status.OK


def test_a_node_that_is_not_ready_says_nothing_about_clocks():
    silent = node("a")
    silent["status"]["conditions"][0]["status"] = "Unknown"
    assert check(healthy(nodes=Answer((silent,))), "no clock skew detected").status is Status.SKIPPED
