"""Who counts as a live peer, and what makes one stale: decided on plain values."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from capstan.cluster.workloads import PodRef
from capstan.pki.bundle import Bundle
from capstan.pki.mint import RootPolicy, mint_root
from capstan.systems.linkerd.checks_data_plane import readiness
from capstan.systems.linkerd.control_plane import why_stale
from capstan.systems.linkerd.observe import Proxy, _not_started
from capstan.systems.linkerd.pods import proxy_is_over
from capstan.systems.linkerd.probe import spread
from capstan.trust.observation import Leaf, Owner, Peer, Role

NOW = datetime(2026, 11, 21, tzinfo=UTC)
OLD, NEW = (mint_root(RootPolicy(common_name="root"), generation, NOW).certificate for generation in (1, 2))
OWNER = Owner("Deployment", "shop", "web")


def pod(anchors):
    env = [] if anchors is None else [{"name": "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS", "value": anchors}]
    container = {"name": "linkerd-proxy", "env": env}
    return {"metadata": {"name": "web-1", "namespace": "shop"}, "spec": {"initContainers": [container]}}, container


def test_a_pod_that_will_start_with_stale_roots_is_a_peer_already():
    item, container = pod(OLD.pem())
    reading = _not_started(item, OWNER, container, Bundle.of(OLD, NEW), "sni", 4191)
    assert reading.trusts.fingerprints == {OLD.fingerprint}
    assert "will start with other roots" in reading.unreadable


def test_a_pod_that_will_start_with_the_declared_roots_holds_nobody_up():
    item, container = pod(NEW.pem() + "\n" + OLD.pem())
    assert _not_started(item, OWNER, container, Bundle.of(OLD, NEW), "sni", 4191) is None


def test_a_pod_that_takes_its_roots_by_reference_will_start_with_the_declared_ones():
    item, container = pod(None)
    assert _not_started(item, OWNER, container, Bundle.of(OLD, NEW), "sni", 4191) is None


def test_a_pod_with_unreadable_roots_written_into_it_is_the_worst_case():
    item, container = pod("no pem")
    reading = _not_started(item, OWNER, container, Bundle.of(OLD), "sni", 4191)
    assert reading.trusts is None
    assert reading.unreadable


def ended(*, restart="Never", code=0, native=False, leaving=False):
    """A pod that goes on, and whose proxy has ended."""
    proxy = {"name": "linkerd-proxy", **({"restartPolicy": "Always"} if native else {})}
    group = "initContainers" if native else "containers"
    status = {"name": "linkerd-proxy", "state": {"terminated": {"exitCode": code}}}
    return {
        "metadata": {
            "name": "work-1",
            "namespace": "shop",
            **({"deletionTimestamp": "2026-11-21T00:00:00Z"} if leaving else {}),
        },
        "spec": {"restartPolicy": restart, group: [proxy]},
        "status": {"phase": "Running", f"{group[:-1]}Statuses": [status]},
    }


@pytest.mark.proves("workloads", "Jobs that run", "a proxy that has ended for good is no peer to come")
@pytest.mark.parametrize(
    ("item", "over"),
    [
        (ended(), True),
        (ended(restart="OnFailure"), True),
        (ended(restart="OnFailure", code=1), False),
        (ended(restart="Always"), False),
        (ended(native=True), False),
        (ended(restart="Always", leaving=True), True),
        (ended(native=True, leaving=True), True),
        ({**ended(leaving=True), "status": {"containerStatuses": []}}, False),
    ],
)
def test_a_proxy_that_is_never_started_again_is_told_from_one_that_is_yet_to_start(item, over):
    assert proxy_is_over(item) is over


def test_a_check_says_of_a_proxy_that_is_over_that_it_ended_and_not_that_it_is_yet_to_start():
    broken, others, _ = readiness([ended()])
    assert broken == []
    assert others == ["shop/work-1: its proxy has ended, and is not started again; its own containers go on without it"]


def peer(trusts=frozenset({"a", "b"}), issuer="i", *, leaf=True, name="web-1", namespace="shop"):
    shown = Leaf("f", "web.shop", issuer, frozenset({"a"}), NOW, NOW + timedelta(days=1)) if leaf else None
    unreadable = "" if leaf and trusts is not None else "no answer"
    return Peer("east", namespace, name, Role.WORKLOAD, OWNER, trusts, shown, unreadable)


@pytest.mark.parametrize(
    ("item", "issuer", "reason"),
    [
        (peer(), None, ""),
        (peer(), "i", ""),
        (peer(frozenset({"a"})), None, "holds roots {a}"),
        (peer(frozenset({"a", "b", "c"})), None, "holds roots"),
        (peer(None), None, "could not be read"),
        (peer(leaf=False), None, ""),
        (peer(leaf=False), "i", "leaf could not be read"),
        (peer(issuer="old-issuer"), "i", "leaf of issuer old-issu"),
        (peer(issuer=None), "i", "leaf of issuer unknown"),
    ],
)
def test_a_peer_is_as_wanted_only_with_exactly_the_roots_and_the_issuer(item, issuer, reason):
    found = why_stale(item, frozenset({"a", "b"}), issuer)
    assert (reason in found) if reason else found == ""


def test_a_limited_probe_takes_namespaces_in_turn():
    places = [("shop", "a"), ("shop", "b"), ("shop", "c"), ("edge", "d"), ("ledger", "e")]
    proxies = [
        Proxy(peer(name=name, namespace=space), PodRef(space, name, ""), "", "sni", 4191, leaving=False)
        for space, name in places
    ]
    assert [proxy.peer.namespace for proxy in spread(proxies)[:3]] == ["edge", "ledger", "shop"]
    assert len(spread(proxies)) == 5
