"""The adapter against a whole Linkerd of the lab: real TLS, live proxies, an independent judge.

The tests of this file share one lab and run in order: what is refused first, then a whole rotation.
"""

from __future__ import annotations

import base64
import time
from datetime import UTC, datetime, timedelta

import pytest

from capstan.cluster.resources import CONFIG_MAPS, DEPLOYMENTS, MUTATING_WEBHOOKS, NAMESPACES, PODS, SECRETS
from capstan.cluster.values import PatchKind
from capstan.errors import GateRefused, GateTimedOut, InvalidInput, OwnedElsewhere
from capstan.pki.bundle import Bundle
from capstan.pki.inspect import Certificate
from capstan.pki.mint import IssuerPolicy, Minted, RootPolicy, mint_issuer, mint_leaf, mint_root
from capstan.systems.base import IssuerMaterial, Status, Verdict
from capstan.systems.linkerd import Linkerd, Tool
from capstan.systems.linkerd.data_plane import why_restart_is_useless
from capstan.systems.linkerd.rehearsal import await_injector
from capstan.systems.linkerd.values import get_value, set_value
from capstan.trust.observation import Owner, Role

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROBE = "probe.capstan.serviceaccount.identity.linkerd.cluster.local"


@pytest.fixture(scope="module")
def minted(lab):
    """A second generation: root and issuer."""
    linkerd = Linkerd(lab.connect())
    view = linkerd.view()
    policy, now = RootPolicy(common_name="root.linkerd.cluster.local"), datetime.now(UTC)
    root = mint_root(policy, policy.next_generation(view.bundle), now)
    return root, mint_issuer(IssuerPolicy(common_name=view.layout.identity_name), root, now)


def probe_with(linkerd, issuer: Minted):
    leaf = mint_leaf(issuer, PROBE, datetime.now(UTC))
    return linkerd.probe((leaf.certificate.pem() + "\n" + issuer.certificate.pem()).encode(), leaf.key)


def versions(cluster):
    objects = [
        cluster.get(CONFIG_MAPS, "linkerd-identity-trust-roots", "linkerd"),
        cluster.get(CONFIG_MAPS, "linkerd-config", "linkerd"),
        cluster.get(SECRETS, "linkerd-config-overrides", "linkerd"),
        cluster.get(SECRETS, "linkerd-identity-issuer", "linkerd"),
    ]
    return [item["metadata"]["resourceVersion"] for item in objects]


def test_an_observation_has_every_meshed_pod_with_its_own_roots_and_leaf(linkerd, cluster):
    view = linkerd.view()
    meshed = cluster.list(PODS, label_selector="linkerd.io/control-plane-ns=linkerd").items
    assert {proxy.peer.pod for proxy in view.proxies} == {pod["metadata"]["name"] for pod in meshed}
    assert len(view.proxies) >= 9
    observation = view.observation
    for peer in observation.peers:
        assert peer.unreadable == ""
        assert peer.trusts == observation.bundle
        assert peer.leaf is not None
        assert peer.leaf.issuer == observation.issuer.fingerprint
        assert peer.leaf.anchors == observation.bundle
        assert peer.leaf.identity.endswith(".serviceaccount.identity.linkerd.cluster.local")
    roles = {peer.role for peer in observation.peers}
    assert roles == {Role.CONTROL_PLANE, Role.WORKLOAD}
    assert {peer.owner.kind for peer in observation.peers} == {"Deployment", "StatefulSet", "DaemonSet"}
    assert {place for place, _ in observation.declared} == {"linkerd-config", "linkerd-config-overrides"}
    assert all(found == observation.bundle for _, found in observation.declared)


@pytest.mark.proves("checks", "capstan-trust: every identity holds the configured issuer in memory", "asked live")
@pytest.mark.proves("checks", "linkerd-webhooks-and-apisvc-tls: proxy-injector webhook has valid cert", "seen served")
def test_a_healthy_mesh_passes_every_check(linkerd):
    found = {check.description: check for check in linkerd.checks(now=datetime.now(UTC))}
    assert [check for check in found.values() if check.status not in (Status.OK, Status.SKIPPED)] == []
    for description in (
        "every identity holds the configured issuer in memory",
        "proxy-injector webhook has valid cert",
        "no clock skew detected",
    ):
        assert found[description].status is Status.OK


def test_checks_fail_when_time_has_passed(linkerd):
    later = linkerd.view().issuer.not_after + timedelta(days=1)
    failed = {check.description for check in linkerd.checks(now=later) if check.status is Status.ERROR}
    assert "issuer cert is within its validity period" in failed


def test_an_issuer_of_a_root_nobody_trusts_is_refused_and_nothing_is_written(linkerd, cluster, minted):
    _root, issuer = minted
    before = versions(cluster)
    with pytest.raises(GateRefused, match="does not verify against the declared trust roots"):
        linkerd.ensure_issuer(IssuerMaterial.of(issuer))
    assert versions(cluster) == before


def test_taking_away_a_root_that_is_still_needed_is_refused_and_nothing_is_written(linkerd, cluster, minted):
    before = versions(cluster)
    with pytest.raises(GateRefused) as caught:
        linkerd.ensure_bundle(Bundle.of(minted[0].certificate))
    assert "the configured issuer" in caught.value.observed
    assert "lab/shop/" in caught.value.observed
    assert versions(cluster) == before


def test_a_proxy_lets_in_a_leaf_of_the_present_issuer_and_refuses_a_strangers(linkerd, minted):
    present = linkerd.read_issuer()
    assert probe_with(linkerd, Minted(present.certificate, present.key)).unanimous(Verdict.ACCEPTED)
    strangers = probe_with(linkerd, minted[1])
    assert strangers.unanimous(Verdict.REFUSED)
    assert len(strangers.probes) >= 9
    assert all("alert" in probe.detail for probe in strangers.probes)


def test_a_stream_that_cannot_be_opened_is_no_refusal_and_no_silence(lab, linkerd, minted, lab_faults):
    lab_faults(path="/portforward", times=0, action={"status": 503})
    slow = Linkerd(lab.connect(sleep=lambda _seconds: None), timeout=3)
    view = slow.view()
    assert all(peer.trusts is None and peer.leaf is None for peer in view.observation.peers)
    assert all("503" in peer.unreadable for peer in view.observation.peers)
    assert probe_with(slow, minted[1]).unanimous(Verdict.NO_ANSWER)


def test_a_restart_for_roots_that_are_not_declared_is_refused(linkerd, minted):
    wanted = frozenset({minted[0].certificate.fingerprint})
    with pytest.raises(GateRefused, match="are not the ones to restart for"):
        linkerd.restart_control_plane(wanted, "never", seconds=20)


def test_an_injector_that_does_not_inject_is_found_out_by_rehearsal(linkerd, cluster):
    (webhook,) = [item for item in cluster.list(MUTATING_WEBHOOKS).items if "injector" in item["metadata"]["name"]]
    bundle = linkerd.view().observation.bundle
    await_injector(cluster, "linkerd", bundle, until=cluster.clock() + 5)
    body = {key: value for key, value in webhook.items() if key != "metadata"}
    cluster.delete(MUTATING_WEBHOOKS, webhook["metadata"]["name"])
    try:
        with pytest.raises(GateTimedOut) as caught:
            await_injector(cluster, "linkerd", bundle, until=cluster.clock())
        assert "no linkerd-proxy was injected" in caught.value.observed
    finally:
        kept = {key: webhook["metadata"].get(key) or {} for key in ("labels", "annotations")}
        meta = {"name": webhook["metadata"]["name"], **kept}
        api = {"apiVersion": MUTATING_WEBHOOKS.api_version, "kind": MUTATING_WEBHOOKS.kind}
        cluster.create(MUTATING_WEBHOOKS, {**body, **api, "metadata": meta})


@pytest.mark.parametrize(
    ("marks", "tool"),
    [
        ({"labels": {"trust.cert-manager.io/bundle": "linkerd-identity-trust-roots"}}, "trust-manager"),
        ({"annotations": {"argocd.argoproj.io/tracking-id": "linkerd:/ConfigMap:x"}}, "argo cd"),
        ({"labels": {"helm.toolkit.fluxcd.io/name": "linkerd"}}, "flux"),
        ({"annotations": {"meta.helm.sh/release-name": "linkerd"}}, "helm"),
    ],
)
def test_roots_that_another_tool_owns_are_not_written_but_shown(linkerd, cluster, minted, marks, tool):
    wanted = linkerd.view().bundle.union([minted[0].certificate])
    cluster.patch(CONFIG_MAPS, "linkerd-identity-trust-roots", {"metadata": marks}, "linkerd")
    before = versions(cluster)
    try:
        with pytest.raises(OwnedElsewhere) as caught:
            linkerd.ensure_bundle(wanted)
    finally:
        undo = {field: dict.fromkeys(values) for field, values in marks.items()}
        cluster.patch(CONFIG_MAPS, "linkerd-identity-trust-roots", {"metadata": undo}, "linkerd")
    assert tool in str(caught.value)
    assert minted[0].certificate.pem().splitlines()[1] in str(caught.value)
    assert versions(cluster)[1:] == before[1:]


def test_a_tool_that_was_accepted_is_written_over(cluster, linkerd):
    marks = {"annotations": {"meta.helm.sh/release-name": "linkerd"}}
    cluster.patch(CONFIG_MAPS, "linkerd-identity-trust-roots", {"metadata": marks}, "linkerd")
    cluster.patch(CONFIG_MAPS, "linkerd-identity-trust-roots", {"data": {"ca-bundle.crt": unclean(linkerd)}}, "linkerd")
    changes = Linkerd(cluster, accept=[Tool.HELM]).ensure_bundle(linkerd.view().bundle)
    assert [change.written for change in changes] == [True, False, False]
    undo = {"annotations": {"meta.helm.sh/release-name": None}}
    cluster.patch(CONFIG_MAPS, "linkerd-identity-trust-roots", {"metadata": undo}, "linkerd")


def unclean(linkerd) -> str:
    """The same roots, in a text that makes identity crash at its next start."""
    return linkerd.view().bundle.pem() + "\n\n"


def test_the_same_roots_in_unclean_text_are_found_and_written_anew(linkerd, cluster):
    bundle = linkerd.view().bundle
    patch = {"data": {"ca-bundle.crt": unclean(linkerd)}}
    cluster.patch(CONFIG_MAPS, "linkerd-identity-trust-roots", patch, "linkerd")
    failed = [check for check in linkerd.checks(now=datetime.now(UTC)) if check.status is Status.ERROR]
    assert [check.description for check in failed] == ["the trust bundle is text that every reader understands"]
    changes = linkerd.ensure_bundle(bundle)
    assert changes[0].written
    assert changes[0].before == changes[0].after
    text = cluster.get(CONFIG_MAPS, "linkerd-identity-trust-roots", "linkerd")["data"]["ca-bundle.crt"]
    assert text == bundle.pem()


def test_declared_roots_that_drifted_are_seen_and_brought_back(linkerd, cluster, minted):
    config = cluster.get(CONFIG_MAPS, "linkerd-config", "linkerd")
    kept = config["data"]["values"]
    drifted = set_value(kept, ("identityTrustAnchorsPEM",), minted[0].certificate.pem(), "x")
    cluster.patch(CONFIG_MAPS, "linkerd-config", {"data": {"values": drifted}}, "linkerd")
    warned = [check for check in linkerd.checks(now=datetime.now(UTC)) if check.status is Status.WARNING]
    assert "all places that declare the trust anchors agree" in [check.description for check in warned]
    changes = {change.place: change.written for change in linkerd.ensure_bundle(linkerd.view().bundle)}
    assert changes["configmap linkerd/linkerd-config"]
    after = cluster.get(CONFIG_MAPS, "linkerd-config", "linkerd")["data"]["values"]
    assert [line for line in after.splitlines() if line not in kept.splitlines()] in (
        [],
        ["identityTrustAnchorsPEM: |-"],
    )


def test_a_key_that_does_not_belong_to_the_issuer_is_refused_without_being_shown(linkerd, minted):
    root, issuer = minted
    with pytest.raises(InvalidInput) as caught:
        linkerd.ensure_issuer(IssuerMaterial((issuer.certificate,), root.key))
    key = root.key.pem().decode()
    assert not any(line in str(caught.value) + repr(caught.value) for line in key.splitlines())


def test_the_read_issuer_never_shows_its_key(linkerd):
    material = linkerd.read_issuer()
    body = material.key.pem().decode().splitlines()[1]
    assert body not in repr(material)
    assert body not in f"{material}"


def test_a_whole_rotation_drops_no_handshake_and_ends_with_the_old_root_refused(lab, linkerd, cluster, minted):
    root, issuer = minted
    old_issuer = linkerd.read_issuer()
    old = linkerd.view().bundle
    (old_root,) = old
    both, new = old.union([root.certificate]), Bundle.of(root.certificate)
    before = lab.judged()

    # trust: everybody learns the new root
    assert [change.written for change in linkerd.ensure_bundle(both)] == [True, True, True]
    assert [change.written for change in linkerd.ensure_bundle(both)] == [False, False, False]
    linkerd.restart_control_plane(both.fingerprints, "widen", seconds=120)
    refused = pytest.raises(GateRefused, match="would not trust this issuer")
    with refused as caught:  # the data plane does not know it yet
        linkerd.ensure_issuer(IssuerMaterial.of(issuer))
    assert "lab/shop/" in caught.value.observed
    assert "lab/linkerd/linkerd-identity" not in caught.value.observed
    report = linkerd.restart_data_plane(both.fingerprints, "widen", seconds=180)
    assert report.skipped == ()
    assert {peer.trusts for peer in linkerd.observe().peers} == {both.fingerprints}
    # once more: nobody is restarted
    assert linkerd.restart_control_plane(both.fingerprints, "widen", seconds=60).restarted == ()
    assert linkerd.restart_data_plane(both.fingerprints, "widen", seconds=60).restarted == ()

    # issue: the new issuer signs, every leaf follows by itself
    with pytest.raises(GateRefused, match="still need a root"):
        linkerd.ensure_bundle(new)
    changes = linkerd.ensure_issuer(IssuerMaterial.of(issuer))
    assert [change.written for change in changes] == [True, True, True]
    assert not any(change.written for change in linkerd.ensure_issuer(IssuerMaterial.of(issuer)))
    values = cluster.get(CONFIG_MAPS, "linkerd-config", "linkerd")["data"]["values"]
    repeated = get_value(values, ("identity", "issuer", "tls", "crtPEM"), "x")
    assert Certificate.from_pem(repeated).fingerprint == issuer.certificate.fingerprint
    wanted = issuer.certificate.fingerprint
    until = time.monotonic() + 90
    while any(peer.leaf is None or peer.leaf.issuer != wanted for peer in linkerd.observe().peers):
        assert time.monotonic() < until
        time.sleep(1)

    # distrust: everybody forgets the old root
    linkerd.ensure_bundle(new)
    linkerd.restart_control_plane(new.fingerprints, "narrow", seconds=120, issuer=issuer.certificate.fingerprint)
    linkerd.restart_data_plane(new.fingerprints, "narrow", seconds=180)
    until = time.monotonic() + 30
    while {peer.trusts for peer in linkerd.observe().peers} != {new.fingerprints}:  # old pods may still be ending
        assert time.monotonic() < until
        time.sleep(1)

    # proof, both ways
    assert probe_with(linkerd, Minted(old_issuer.certificate, old_issuer.key)).unanimous(Verdict.REFUSED)
    assert probe_with(linkerd, issuer).unanimous(Verdict.ACCEPTED)
    failed = [
        check for check in linkerd.checks(now=datetime.now(UTC)) if check.status not in (Status.OK, Status.SKIPPED)
    ]
    assert failed == []
    for place in (CONFIG_MAPS, SECRETS):
        for item in cluster.list(place, "linkerd").items:
            texts = [*(item.get("data") or {}).values()]
            if place is SECRETS:
                texts = [base64.b64decode(text).decode("utf-8", "replace") for text in texts]
            assert not any(old_root.pem().splitlines()[3] in text for text in texts), item["metadata"]["name"]
    # what signs is started anew although it looks right, and once for a stamp
    for first in (True, False):
        (signer,) = linkerd.restart_signers("turned", seconds=120, issuer=wanted).restarted
        assert (signer.owner.name, signer.changed) == ("linkerd-identity", first)
    after = lab.judged()
    assert after["attempted"] - before["attempted"] > 500
    assert after["failures"][len(before["failures"]) :] == []


def test_a_workload_injected_by_hand_is_returned_and_not_restarted_in_vain(linkerd, cluster, minted):
    """Its template carries proxy and roots; a restart would only copy them."""
    bundle = linkerd.view().bundle
    name = "storefront"
    (pod, *_) = cluster.list(PODS, "shop", label_selector="linkerd.io/proxy-deployment=storefront").items
    proxy = next(c for c in pod["spec"]["initContainers"] if c["name"] == "linkerd-proxy")
    proxy = {key: proxy[key] for key in ("name", "image", "env", "ports", "args", "restartPolicy") if key in proxy}
    body = {"spec": {"template": {"spec": {"initContainers": [proxy]}}}}
    owner = Owner("Deployment", "shop", name)
    namespace = cluster.get(NAMESPACES, "shop")
    assert why_restart_is_useless(cluster, owner, namespace) == ""
    dry = cluster.patch(DEPLOYMENTS, name, body, "shop", kind=PatchKind.STRATEGIC, dry_run=True)
    assert len(dry["spec"]["template"]["spec"]["initContainers"]) == 1
    cluster.patch(DEPLOYMENTS, name, {"spec": {"paused": True}}, "shop")
    cluster.patch(DEPLOYMENTS, name, body, "shop", kind=PatchKind.STRATEGIC)
    assert "injected by hand" in why_restart_is_useless(cluster, owner, namespace)
    assert bundle == linkerd.view().bundle
