"""Where `capstan check` and `linkerd check` come to different verdicts, the output says which, and why."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509

from capstan.pki.bundle import Bundle
from capstan.systems.base import Severity, Status
from capstan.systems.linkerd.checks_evidence import Answer
from capstan.systems.linkerd.checks_hooks import Served
from capstan.systems.linkerd.layout import Scheme
from tests.pki.ca import DAY, NOW, SERVER, make
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
    lease,
    node,
    secret,
    serving,
    with_hook,
    with_peer,
    with_pod,
    with_secret,
)

MATCH = "data plane proxies certificate match CA"
IN_TIME = "trust anchors are within their validity period"
READY = "data plane proxies are ready"
BOTH = Bundle.of(ROOT.certificate, OTHER.certificate)


def proves(what):
    return pytest.mark.proves("checks", "where linkerd check says otherwise", what)


def text_of_web(evidence, text):
    def change(item):
        item["spec"]["initContainers"][0]["env"][0] = {"name": "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS", "value": text}

    return with_pod(evidence, "web-1", change)


def in_every_pod(evidence, text):
    for name in ("web-1", "db-0", "web-v1", "tap-v1", "metrics-api-v1", "tap-injector-v1", "linkerd-gateway-1"):

        def change(item):
            item["spec"]["initContainers"][0]["env"][0]["value"] = text

        evidence = with_pod(evidence, name, change)
    return evidence


def holding(evidence, bundle):
    for proxy in evidence.view.proxies:
        evidence = with_peer(evidence, proxy.peer.pod, trusts=bundle.fingerprints)
    return evidence


@proves("a bundle in another order is the same bundle: linkerd check calls its proxies stale")
def test_a_reordered_bundle_is_not_stale():
    evidence = holding(healthy(bundle=BOTH), BOTH)
    reordered = Bundle.of(OTHER.certificate, ROOT.certificate).pem()
    found = check(text_of_web(in_every_pod(evidence, BOTH.pem()), reordered), MATCH)
    assert found.status is Status.OK
    assert "shop/web-1 is stale (the same roots, in another order or spacing)" in found.message
    assert "shop/db-0" not in found.message


@proves("leading comments and blank lines between certificates change nothing")
def test_other_spacing_is_not_stale():
    found = check(text_of_web(healthy(), "# roots\n" + BUNDLE.pem() + "\n"), MATCH)
    assert found.status is Status.OK
    assert "in another order or spacing" in found.message


@proves("white space around the bundle is ignored by both")
def test_white_space_around_the_text_is_no_difference():
    assert check(text_of_web(healthy(), "\n" + BUNDLE.pem() + "\n \n"), MATCH).message == ""


@proves("a Job's finished pod has no process left: linkerd check reports it for ever")
@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_is_not_stale(phase):
    def ended(item):
        item["status"] = {"phase": phase}
        item["spec"]["initContainers"][0]["env"][0]["value"] = OTHER.certificate.pem()

    evidence = with_pod(healthy(), "web-1", ended)
    view = evidence.view
    evidence = replace(
        evidence, view=replace(view, proxies=tuple(item for item in view.proxies if item.peer.pod != "web-1"))
    )
    found = check(evidence, MATCH)
    assert found.status is Status.OK
    assert "shop/web-1 is stale (it has ended: no process of it is left)" in found.message


@proves("roots by reference outside the control plane: linkerd check reads no valueFrom")
def test_a_pod_that_takes_its_roots_by_reference_is_judged_by_what_it_holds():
    def by_reference(item):
        item["spec"]["initContainers"][0]["env"][0] = {
            "name": "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS", "valueFrom": {"configMapKeyRef": {"name": "x"}}
        }  # fmt: skip

    found = check(with_pod(healthy(), "web-1", by_reference), MATCH)
    assert found.status is Status.OK
    assert "takes its roots by reference" in found.message


@proves("stale control-plane proxies: linkerd check leaves their namespace out")
def test_a_stale_control_plane_proxy_is_found():
    found = check(with_peer(healthy(), "linkerd-identity-1", trusts=BOTH.fingerprints), MATCH)
    assert found.status is Status.WARNING
    assert "nothing of linkerd/linkerd-identity-1 (it leaves out the control plane)" in found.message


@proves("a process that holds other roots than its pod's spec says")
def test_a_process_that_holds_other_roots_than_its_spec_is_found():
    found = check(with_peer(healthy(), "web-1", trusts=BOTH.fingerprints), MATCH)
    assert found.status is Status.WARNING
    assert "shop/web-1 (its spec has the declared text, its process holds other roots)" in found.message


@pytest.mark.parametrize("group", ["initContainers", "containers"])
@pytest.mark.parametrize("namespace", ["shop", "linkerd-multicluster"])
@proves("both agree on a proxy that is stale in spec and process, sidecar or init container, in any namespace")
def test_what_both_call_stale_carries_no_remark(group, namespace):
    name = {"shop": "web-1", "linkerd-multicluster": "linkerd-gateway-1"}[namespace]

    def stale(item):
        proxy = item["spec"]["initContainers"].pop()
        proxy["env"][0]["value"] = OTHER.certificate.pem()
        item["spec"][group] = [*item["spec"][group], proxy]

    found = check(with_peer(with_pod(healthy(), name, stale), name, trusts=BOTH.fingerprints), MATCH)
    assert found.status is Status.WARNING
    assert "linkerd check" not in found.message


@proves("one expired anchor that nothing chains to: a warning; linkerd check fails and skips all later checks")
def test_an_expired_anchor_that_nobody_needs_only_warns():
    found = check(healthy(bundle=Bundle.of(ROOT.certificate, EXPIRED.certificate)), IN_TIME)
    assert (found.level, found.status) == (Severity.FATAL, Status.WARNING)
    assert "old.linkerd.cluster.local" in found.message
    assert "linkerd check would say: ×, and none of the checks after it" in found.message


@proves("an expired anchor beside a leaf that chains to no valid one is an outage, and fails")
def test_an_expired_anchor_is_not_excused_while_a_leaf_may_need_it():
    evidence = healthy(bundle=Bundle.of(ROOT.certificate, EXPIRED.certificate))
    assert check(with_peer(evidence, "web-1", leaf=None, unreadable="x"), IN_TIME).status is Status.ERROR
    strange = replace(evidence.view.proxies[0].peer.leaf, anchors=frozenset())
    assert check(with_peer(evidence, "web-1", leaf=strange), IN_TIME).status is Status.ERROR


@proves("anchors of linkerd-config that differ from those that run (linkerd2 issue 7449)")
def test_anchors_that_only_linkerd_config_has_do_not_change_the_verdict():
    values = {**healthy().values, "identityTrustAnchorsPEM": EXPIRED.certificate.pem()}
    found = check(healthy(values=values), IN_TIME)
    assert found.status is Status.OK
    assert "linkerd check would say: × old.linkerd.cluster.local" in found.message
    found = check(healthy(values=values), "issuer cert is issued by the trust anchor")
    assert found.status is Status.OK
    assert "linkerd check would say: ×" in found.message


@proves("anchors that run and have expired, while linkerd-config has good ones")
def test_good_anchors_in_linkerd_config_do_not_hide_bad_ones_that_run():
    values = {**healthy().values, "identityTrustAnchorsPEM": ROOT.certificate.pem()}
    found = check(healthy(bundle=Bundle.of(EXPIRED.certificate), values=values), IN_TIME)
    assert found.status is Status.ERROR
    assert "linkerd check would say: √" in found.message


@proves("a trailing blank line in linkerd-config (linkerd2 issue 3880): the tool fails, the mesh works")
def test_unclean_text_that_no_process_reads_only_warns():
    values = {**healthy().values, "identityTrustAnchorsPEM": BUNDLE.pem() + "\n\n"}
    found = check(healthy(values=values), "certificate config is valid")
    assert (found.level, found.status) == (Severity.FATAL, Status.WARNING)
    assert "not a PEM certificate" in found.message


@proves("scheme kubernetes.io/tls without ca.crt: identity runs, linkerd check and upgrade fail")
def test_a_missing_ca_crt_only_warns():
    found = check(healthy(scheme=Scheme.KUBERNETES), "certificate config is valid")
    assert found.status is Status.WARNING
    assert "key ca.crt containing the trust anchors needs to exist in secret linkerd-identity-issuer" in found.message
    item = secret(ISSUER, scheme=Scheme.KUBERNETES)
    item["data"]["ca.crt"] = encoded(BUNDLE.pem())
    complete = healthy(scheme=Scheme.KUBERNETES, issuer_secret=Answer(item))
    assert check(complete, "certificate config is valid").status is Status.OK


@proves("the keys of another scheme than the one identity runs with")
@pytest.mark.parametrize(
    ("runs", "holds", "missing"),
    [(Scheme.LINKERD, Scheme.KUBERNETES, "crt.pem"), (Scheme.KUBERNETES, Scheme.LINKERD, "tls.crt")],
)
def test_the_entries_of_the_other_scheme_are_no_issuer(runs, holds, missing):
    found = check(
        healthy(scheme=runs, issuer_secret=Answer(secret(ISSUER, scheme=holds))), "certificate config is valid"
    )
    assert found.status is Status.ERROR
    assert f"key {missing} containing the issuer certificate needs to exist" in found.message


@proves("an empty scheme in linkerd-config means linkerd.io/tls, for both")
def test_an_empty_scheme_is_linkerds_own():
    values = {**healthy().values, "identity": {"issuer": {"scheme": ""}}}
    assert check(healthy(values=values), "certificate config is valid").status is Status.OK


@proves("the flag that identity runs with and linkerd-config name two schemes")
def test_two_schemes_are_named():
    values = {**healthy().values, "identity": {"issuer": {"scheme": "kubernetes.io/tls"}}}
    found = check(healthy(values=values), "certificate config is valid")
    assert "linkerd-config says issuer scheme kubernetes.io/tls, but identity runs with linkerd.io/tls" in found.message


@proves("an issuer of 48 hours that cert-manager renews is healthy; linkerd check warns about it for ever")
def test_a_short_lived_issuer_that_cert_manager_renews_is_no_finding():
    issuer = make("identity.linkerd.cluster.local", ROOT, path_length=0, start=NOW - DAY, end=NOW + DAY)
    annotated = with_secret(
        healthy(issuer=issuer),
        lambda item: item["metadata"].update(
            annotations={"cert-manager.io/certificate-name": "linkerd-identity-issuer"}
        ),
    )
    found = check(annotated, "issuer cert is valid for at least 60 days")
    assert found.status is Status.OK
    assert "linkerd check would say: ‼" in found.message
    late = check(replace(annotated, now=NOW + timedelta(hours=20)), "issuer cert is valid for at least 60 days")
    assert late.status is Status.WARNING
    assert "cert-manager should have renewed it" in late.message
    assert check(healthy(issuer=issuer), "issuer cert is valid for at least 60 days").status is Status.WARNING


@proves("a Lease shows a skew of seconds, a heartbeat none below five minutes")
def test_a_skew_below_five_minutes_is_seen_by_the_lease():
    ahead = healthy(leases=Answer((lease("a", NOW + timedelta(seconds=90)), lease("b", NOW))))
    found = check(ahead, "no clock skew detected")
    assert found.status is Status.WARNING
    assert "linkerd check would say: √" in found.message


@proves("a heartbeat of nearly six minutes ago, and a Lease of now: no skew")
def test_an_old_heartbeat_beside_a_fresh_lease_is_no_skew():
    evidence = healthy(nodes=Answer((node("a", heartbeat=NOW - timedelta(minutes=6)), node("b"))))
    found = check(evidence, "no clock skew detected")
    assert found.status is Status.OK
    assert "linkerd check would say: ‼ clock skew detected for node(s): a" in found.message


@proves("without Leases the heartbeats are judged, as linkerd check does")
@pytest.mark.parametrize(("age", "skewed"), [(309, False), (311, True), (-309, False), (-311, True)])
def test_heartbeats_are_judged_by_linkerds_bound_where_there_is_no_lease(age, skewed):
    evidence = healthy(nodes=Answer((node("a", heartbeat=NOW - timedelta(seconds=age)),)), leases=Answer(()))
    found = check(evidence, "no clock skew detected")
    assert (found.status is Status.WARNING) is skewed
    assert "linkerd check" not in found.message


@proves("a webhook that still serves its old certificate (linkerd2 issue 7519): every call fails, linkerd check passes")
def test_what_a_webhook_serves_counts_and_not_its_secret_alone():
    stale = serving("linkerd-policy-validator.linkerd.svc").certificate
    evidence = with_hook(healthy(), "policy-validator", served=(Served("linkerd-destination-1", (stale,)),))
    found = check(evidence, "policy-validator webhook has valid cert")
    assert found.status is Status.ERROR
    assert "pod linkerd-destination-1 serves another" in found.message
    assert "linkerd check would say: √ (it looks at the Secret, not at what the process serves)" in found.message


@proves("an expired certificate left over in a caBundle: the API server needs one, linkerd check all")
def test_an_expired_certificate_beside_the_one_in_use_is_no_finding():
    name = "linkerd-sp-validator.linkerd.svc"
    old = serving(name, start=NOW - YEAR, end=NOW - DAY).certificate
    reading = next(item for item in healthy().hooks if item.hook.name == "sp-validator")
    evidence = with_hook(healthy(), "sp-validator", anchors=Bundle.of(old, reading.chain[0]))
    found = check(evidence, "sp-validator webhook has valid cert")
    assert found.status is Status.OK
    assert "linkerd check would say: × anchors not within their validity period" in found.message


@proves("old and new certificate in one caBundle, as during a rotation of a webhook")
def test_old_and_new_certificate_in_a_ca_bundle_pass():
    reading = next(item for item in healthy().hooks if item.hook.name == "proxy-injector")
    new = serving(reading.dns_name).certificate
    evidence = with_hook(
        healthy(), "proxy-injector", anchors=Bundle.of(reading.chain[0], new), chain=(new,),
    )  # fmt: skip
    assert check(evidence, "proxy-injector webhook has valid cert").status is Status.OK
    behind = check(evidence, "every webhook serves the certificate of its Secret")
    assert behind.status is Status.WARNING


@proves("a webhook's certificate from cert-manager: chain, name, renewal")
def test_a_webhooks_certificate_may_come_from_a_ca():
    ca = make("webhook-issuer", end=NOW + YEAR)
    name = "tap.linkerd-viz.svc"
    pair = make(
        name, ca, ca=False, start=NOW - timedelta(hours=2), end=NOW + timedelta(hours=22), eku=[SERVER],
        san=[x509.DNSName(name)],
    )  # fmt: skip
    changes = {"chain": (pair.certificate,), "served": (Served("tap-1", (pair.certificate,)),), "renewed": True}
    evidence = with_hook(healthy(), "tap", anchors=Bundle.of(ca.certificate), **changes)
    assert check(evidence, "tap API server has valid cert").status is Status.OK
    ends = check(evidence, "tap API server cert is valid for at least 60 days")
    assert ends.status is Status.OK
    assert "cert-manager renews it" in ends.message
    late = replace(evidence, now=NOW + timedelta(hours=20))
    assert check(late, "tap API server cert is valid for at least 60 days").status is Status.WARNING
    other = with_hook(healthy(), "tap", anchors=Bundle.of(OTHER.certificate), **changes)
    assert check(other, "tap API server has valid cert").status is Status.ERROR


@proves("a webhook's certificate for another name, expired, or not served at all")
def test_a_webhooks_certificate_must_be_valid_for_its_service_and_served():
    valid = "proxy-injector webhook has valid cert"
    wrong = serving("linkerd-proxy-injector.elsewhere.svc").certificate
    found = check(with_hook(healthy(), "proxy-injector", anchors=Bundle.of(wrong), chain=(wrong,), served=()), valid)
    assert "not linkerd-proxy-injector.linkerd.svc" in found.message
    assert "no ready pod serves linkerd-proxy-injector.linkerd.svc" in found.message
    later = check(replace(healthy(), now=NOW + 2 * YEAR), valid)
    assert later.status is Status.ERROR
    assert "expired on" in later.message
    silent = with_hook(healthy(), "proxy-injector", served=(Served("p", (), "no TLS answer"),))
    assert "pod p: no TLS answer" in check(silent, valid).message


@proves("a pod whose proxy has not started holds nobody up; linkerd check fails on it")
def test_a_pod_that_has_not_started_only_warns():
    def pending(item):
        item["status"] = {"phase": "Pending"}

    found = check(with_pod(healthy(), "web-1", pending), READY)
    assert (found.level, found.status) == (Severity.FATAL, Status.WARNING)
    assert "shop/web-1: its proxy has not started (Pending)" in found.message
    assert "linkerd check would say:\n* × shop/web-1" in found.message


@proves("a pod that is being deleted, or was evicted, is no broken proxy")
def test_pods_that_go_or_went_are_no_broken_proxies():
    evidence = with_pod(healthy(), "web-1", lambda item: item["metadata"].update(deletionTimestamp="now"))
    evidence = with_pod(evidence, "db-0", lambda item: item.update(status={"phase": "Failed", "reason": "Evicted"}))
    found = check(evidence, READY)
    assert found.status is Status.OK
    assert "it is being deleted" in found.message
    assert "was evicted" in found.message


@proves("a mesh without workloads")
def test_a_mesh_without_workloads_is_skipped_and_linkerds_verdict_is_told():
    evidence = healthy(pods=tuple(item for item in healthy().pods if item["metadata"]["namespace"] == "linkerd"))
    found = check(evidence, READY)
    assert found.status is Status.SKIPPED
    assert 'no "linkerd-proxy" containers found' in found.message


@proves("shared anchors of clusters are judged over all clusters named, not by comparing two linkerd-configs")
def test_one_cluster_alone_says_nothing_about_shared_anchors():
    found = check(healthy(), "clusters share trust anchors")
    assert (found.category, found.level, found.status) == ("linkerd-multicluster", Severity.ERROR, Status.SKIPPED)
    assert found.hint.endswith("#l5d-multicluster-clusters-share-anchors")
    assert "--context" in found.message


def test_no_message_ever_carries_a_private_key():
    from capstan.systems.linkerd.checks import judge

    body = key_pem(ISSUER).splitlines()[1][:20]
    broken = with_secret(healthy(), lambda item: item["data"].update({"crt.pem": item["data"]["key.pem"]}))
    assert not any(body in item.message for item in judge(broken))
