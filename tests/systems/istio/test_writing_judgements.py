"""Before and after a write: who would be cut off, who is behind, who has to be restarted, and why."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from capstan.cluster.resources import CONFIG_MAPS, CRON_JOBS
from capstan.cluster.workloads import PodRef
from capstan.errors import GateRefused
from capstan.pki.bundle import Bundle
from capstan.pki.keys import PrivateKey
from capstan.systems.base import IssuerMaterial
from capstan.systems.istio import changing, data_plane, delivery, redate, settle
from capstan.systems.istio.cacerts import CacertsSource
from capstan.systems.istio.istiods import Istiod
from capstan.systems.istio.key_vault import Kept
from capstan.systems.istio.layout import Layout, Revision, read_layout
from capstan.systems.istio.observe import View
from capstan.systems.istio.predicting import predict
from capstan.systems.istio.proxies import Proxy
from capstan.systems.istio.source import Mode
from capstan.systems.istio.versions import Taken, parse_version
from capstan.trust.observation import ClusterObservation, Issuer, Leaf, Owner, Peer, Role, Signer
from tests.pki.ca import NOW
from tests.systems.istio.test_writing_redate import control_plane, istiods_root
from tests.systems.istio.writing import Ca, clock, entries_of, make_secret, new_namespace, pem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capstan.cluster.client import Cluster
    from tests.support.apiserver import Running

OLD, NEW = Ca.of("A"), Ca.of("B")
A, B = OLD.root.certificate, NEW.root.certificate
BOTH = frozenset({A.fingerprint, B.fingerprint})
KNOWN = {each.fingerprint: each for each in (A, B, OLD.issuer.certificate, NEW.issuer.certificate)}


def signer(ca: Ca | None = OLD, roots: frozenset[str] | None = BOTH, name: str = "istiod-1", **more: Any) -> Signer:
    issuer = ca.issuer.certificate.fingerprint if ca else None
    anchors = frozenset({ca.root.certificate.fingerprint}) if ca else frozenset()
    return Signer(f"pod istio-system/{name}", issuer, anchors, roots, **more)


def istiod(
    found: Signer, revision: str = "default", version: str = "1.30.1", env: Any = None, leaving: bool = False
) -> Istiod:
    ref = PodRef("istio-system", found.name.rpartition("/")[2], "uid")
    return Istiod(ref, revision, parse_version(version), dict(env or {}), True, (), None, (), found, leaving)


def proxy(
    ca: Ca | None = OLD, roots: frozenset[str] | None = BOTH, pod: str = "web-1", kind: str = "sidecar",
    version: str = "1.30.1", leaving: bool = False, env: Any = None,
) -> Proxy:  # fmt: skip
    owner = Owner("DaemonSet", "istio-system", "ztunnel") if kind == "ztunnel" else Owner("Deployment", "shop", "web")
    leaf = None
    if ca is not None:
        leaf = Leaf(
            "f", "spiffe://cluster.local/ns/shop/sa/web", ca.issuer.certificate.fingerprint,
            frozenset({ca.root.certificate.fingerprint}), NOW, NOW + dt.timedelta(days=1),
        )  # fmt: skip
    unreadable = "" if ca and roots is not None else "no answer"
    peer = Peer("lab", "shop", pod, Role.WORKLOAD, owner, roots, leaf, unreadable)
    return Proxy(peer, PodRef("shop", pod, "uid"), kind, "", parse_version(version), dict(env or {}), None, leaving)


def view(
    istiods: tuple[Istiod, ...] = (istiod(signer()),), proxies: tuple[Proxy, ...] = (proxy(),), configured: Ca = OLD
) -> View:
    anchor = frozenset({configured.root.certificate.fingerprint})
    issuer = Issuer(configured.issuer.certificate.fingerprint, anchor, NOW + dt.timedelta(days=9))
    names = sorted({each.revision for each in istiods}) or ["default"]
    spec = {"template": {"spec": {"containers": [{"name": "discovery", "image": "docker.io/istio/pilot:1.30.1"}]}}}
    revisions = tuple(
        Revision(name, {"metadata": {"name": f"istiod-{name}", "namespace": "istio-system"}, "spec": spec},
                 "discovery", ()) for name in names
    )  # fmt: skip
    observation = ClusterObservation(
        "lab", BOTH, (), issuer, tuple(each.peer for each in proxies), 86400.0,
        tuple(each.signer for each in istiods), roots_with_leaf=True,
    )  # fmt: skip
    layout = Layout("istio-system", Mode.PLUG_IN, revisions, "cluster.local", "cacerts")
    bundle = Bundle.of(A, B)
    return View(layout, None, bundle, configured.issuer.certificate, istiods, proxies, dict(KNOWN), observation)


# --- taking a root away ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "names"),
    [
        (view(proxies=(proxy(), proxy(NEW, pod="web-2")), configured=NEW), "lab/shop/web-1 presents"),
        (view((istiod(signer(NEW)), istiod(signer(OLD, name="istiod-2"))), (), NEW), "istiod-2 signs by"),
        (view((istiod(signer(NEW)),), (), OLD), "the configured issuer"),
    ],
)
def test_a_root_somebody_still_needs_is_not_taken_away_and_they_are_named(seen: View, names: str) -> None:
    with pytest.raises(GateRefused, match=names):
        changing.require_nobody_needs_others(seen, Bundle.of(B), "secret x")


def test_a_root_nobody_needs_may_go() -> None:
    seen = view((istiod(signer(NEW)),), (proxy(NEW),), NEW)
    changing.require_nobody_needs_others(seen, Bundle.of(B), "secret x")


# --- switching the issuer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "names"),
    [
        (view(proxies=(proxy(), proxy(roots=frozenset({A.fingerprint}), pod="web-2"))), "lab/shop/web-2"),
        (view(proxies=(proxy(roots=None),)), r"lab/shop/web-1: its roots could not be read \(no answer\)"),
        (view((istiod(signer(roots=frozenset({A.fingerprint}))),)), "istiod-1: "),
        (view((istiod(signer(roots=None, unreadable="no token")),)), r"hands out could not be read \(no token\)"),
        (view((), (proxy(),)), "no istiod is running"),
        (view(proxies=(proxy(roots=frozenset({"0" * 64})),)), "holds no root that is known here"),
    ],
)
def test_an_issuer_is_not_switched_while_anybody_alive_does_not_trust_it_or_cannot_say(seen: View, names: str) -> None:
    with pytest.raises(GateRefused, match=names):
        changing.require_trusted_by_all(seen, NEW.material, NOW, "secret x")


def test_an_issuer_whom_all_trust_may_sign() -> None:
    changing.require_trusted_by_all(view(), NEW.material, NOW, "secret x")


@pytest.fixture
def shared(api: Running) -> Iterator[Cluster]:
    cluster = api.connect(sleep=lambda _seconds: None)
    yield cluster
    cluster.close()


@pytest.mark.parametrize(
    ("multiroot", "agent", "listed"), [("true", "true", [A, B, B]), ("true", "false", [A, B]), ("", "true", [A, B])]
)
def test_the_roots_are_listed_once_more_only_where_proxies_sign_anew_for_it(
    shared: Cluster, multiroot: str, agent: str, listed: list
) -> None:
    namespace = new_namespace(shared)
    make_secret(shared, namespace, OLD.entries(pem(A, B)))
    source = CacertsSource(shared, namespace, now=clock)
    seen = view(
        (istiod(signer(), env={"ISTIO_MULTIROOT_MESH": multiroot}),),
        (proxy(env={"PROXY_CONFIG_XDS_AGENT": agent}),),
    )
    for _ in range(2):
        changing.ensure_issuer(source, NEW.material, view=seen, now=NOW)
        assert entries_of(shared, namespace) == NEW.entries(pem(*listed))


def test_a_version_that_loses_roots_is_refused_before_anything_is_written(shared: Cluster) -> None:
    namespace = new_namespace(shared)
    make_secret(shared, namespace, OLD.entries())
    seen = view((istiod(signer(), version="1.25.1"),))
    with pytest.raises(GateRefused, match="several roots"):
        changing.ensure_bundle(CacertsSource(shared, namespace, now=clock), Bundle.of(A, B), look=lambda: seen)
    assert entries_of(shared, namespace) == OLD.entries()


# --- which istiod is behind --------------------------------------------------------------------------------------


def test_every_replica_of_a_revision_counts_but_those_on_their_way_out() -> None:
    seen = view(
        (
            istiod(signer(NEW)),
            istiod(signer(OLD, name="old")),
            istiod(signer(None, name="mute", unreadable="no answer")),
            istiod(signer(OLD, name="leaving"), leaving=True),
            istiod(signer(OLD, name="other"), revision="canary"),
        )
    )
    want = settle.Want(BOTH, NEW.issuer.certificate.fingerprint)
    wrong = settle.wrong_istiods(seen, "default", want)
    assert [line.split(":")[0] for line in wrong] == ["old", "mute"]
    assert "no answer" in wrong[1]


@pytest.mark.parametrize("roots", [None, frozenset({A.fingerprint}), frozenset()])
def test_other_roots_and_unreadable_ones_are_wrong(roots: frozenset[str] | None) -> None:
    assert settle.wrong_istiods(view((istiod(signer(roots=roots)),)), "default", settle.Want(BOTH, None))


def test_a_revision_without_a_pod_is_not_done() -> None:
    (line,) = settle.wrong_istiods(view(()), "default", settle.Want(BOTH, None))
    assert "no running pod" in line


def test_what_a_running_istiod_makes_of_the_files_follows_its_oldest_replica(shared: Cluster) -> None:
    namespace = new_namespace(shared)
    make_secret(shared, namespace, OLD.entries(pem(A, B)))
    config = {
        "apiVersion": "v1", "kind": "ConfigMap", "data": {"root-cert.pem": pem(A)},
        "metadata": {"name": "istio-ca-root-cert", "namespace": namespace},
    }  # fmt: skip
    shared.create(CONFIG_MAPS, config)
    source = CacertsSource(shared, namespace, now=clock)
    hot = {"ISTIO_MULTIROOT_MESH": "true"}

    def taken(*istiods: Istiod) -> Taken:
        seen = view(istiods)
        seen = replace(seen, layout=replace(seen.layout, namespace=namespace))
        return predict(shared, source, seen, seen.layout.revisions[0]).taken

    assert taken(istiod(signer(), env=hot)) is Taken.HOT
    assert taken(istiod(signer())) is Taken.RESTART
    assert taken(istiod(signer(), env=hot), istiod(signer(), version="1.19.3", env=hot)) is Taken.RESTART
    assert taken(istiod(signer(), version="1.24.4", env=hot)) is Taken.REFUSED


# --- the data plane ----------------------------------------------------------------------------------------------


def test_who_holds_what_is_wanted_is_not_restarted() -> None:
    seen = view(proxies=(proxy(NEW, BOTH), proxy(NEW, frozenset({B.fingerprint}), "web-2"), proxy(None, pod="web-3")))
    new = NEW.issuer.certificate.fingerprint
    (found,) = data_plane.stale_owners(seen, BOTH, new).items()
    assert [ref.name for ref in found[1]] == ["web-2", "web-3"]
    assert data_plane.stale_owners(view(proxies=(proxy(NEW, BOTH),)), BOTH, new) == {}


def test_pods_on_their_way_out_and_machines_outside_are_not_restarted() -> None:
    seen = view(proxies=(proxy(roots=frozenset(), leaving=True), proxy(roots=None, kind="unknown")))
    assert data_plane.stale_owners(seen, BOTH, None) == {}
    assert settle.has_strangers(seen)


def test_a_ztunnel_is_one_pod_however_many_certificates_it_has() -> None:
    seen = view(proxies=tuple(proxy(roots=frozenset(), pod="ztunnel-1", kind="ztunnel") for _ in range(3)))
    assert [len(refs) for refs in data_plane.stale_owners(seen, BOTH, None).values()] == [1]


@pytest.mark.parametrize(
    ("version", "outdated"), [("1.28.5", True), ("1.28.6", False), ("1.29.1", True), ("1.30.0", False), ("x", True)]
)
def test_ztunnels_that_keep_their_first_roots_are_restarted_while_both_are_trusted(
    version: str, outdated: bool
) -> None:
    found = data_plane.outdated_ztunnels(view(proxies=(proxy(kind="ztunnel", version=version), proxy())))
    assert found == ((Owner("DaemonSet", "istio-system", "ztunnel"),) if outdated else ())


# --- re-dating ---------------------------------------------------------------------------------------------------


def test_whoever_does_not_have_the_redated_root_is_waited_for_but_places_of_another_ca_are_not() -> None:
    old = istiods_root()
    new = redate.redated(IssuerMaterial((old.certificate,), PrivateKey(old.key)), dt.timedelta(days=3650), NOW)
    was, now = frozenset({old.certificate.fingerprint}), frozenset({new.fingerprint})
    foreign = frozenset({A.fingerprint})
    seen = view(
        (istiod(signer(roots=now)), istiod(signer(roots=was, name="late"))),
        (
            proxy(roots=now),
            proxy(roots=was, pod="late-1"),
            proxy(roots=None, pod="mute-1"),
            proxy(roots=was, leaving=True),
        ),
    )
    places = (("configmap a", now), ("configmap b", was), ("configmap c", frozenset()), ("webhook", foreign))
    known = {**seen.certificates, old.certificate.fingerprint: old.certificate, new.fingerprint: new}
    seen = replace(seen, certificates=known, observation=replace(seen.observation, declared=places))
    behind = " | ".join(redate.not_redated(seen, new.fingerprint))
    for name in ("pod istio-system/late", "configmap b", "configmap c", "lab/shop/late-1", "lab/shop/mute-1"):
        assert name in behind
    assert behind.count(" | ") == 4


# --- delivery ----------------------------------------------------------------------------------------------------


def test_a_synced_secret_is_behind_until_all_four_are_the_vaults(shared: Cluster) -> None:
    namespace = new_namespace(shared)
    control_plane(shared, namespace)
    make_secret(shared, namespace, OLD.entries(pem(A, B)))
    layout = read_layout(shared, namespace)
    assert delivery.detect(shared, layout) == delivery.Delivery(delivery.Way.CACERTS, None)
    same = Kept(OLD.files(pem(A, B)), {}, OLD.key)
    other = Kept(NEW.files(pem(A, B)), {}, NEW.key)
    assert delivery.outstanding(shared, layout, same, delivery.Way.CACERTS) == ()
    (line,) = delivery.outstanding(shared, layout, other, delivery.Way.CACERTS)
    assert line.endswith("another ca-cert.pem, cert-chain.pem, ca-key.pem than in the vault")


def test_where_nothing_is_to_be_seen_nothing_is_assumed(shared: Cluster) -> None:
    namespace = new_namespace(shared)
    control_plane(shared, namespace)
    assert delivery.detect(shared, read_layout(shared, namespace)).way is delivery.Way.UNKNOWN


@pytest.mark.parametrize(("schedule", "seconds"), [("*/10 * * * *", 600.0), ("*/5 * * * *", 300.0), ("0 * * * *", 600)])
def test_the_add_ons_cron_job_is_found_with_its_interval(shared: Cluster, schedule: str, seconds: float) -> None:
    namespace = new_namespace(shared)
    control_plane(shared, namespace)
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}
    job = {
        "apiVersion": "batch/v1", "kind": "CronJob",
        "metadata": {"name": "istio-cert-validator-cronjob-asm-1-17", "namespace": namespace},
        "spec": {"schedule": schedule, "jobTemplate": {"spec": {"template": template}}},
    }  # fmt: skip
    shared.create(CRON_JOBS, job)
    assert delivery.detect(shared, read_layout(shared, namespace)).validator_interval == seconds
