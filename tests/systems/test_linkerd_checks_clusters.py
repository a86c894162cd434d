"""Whether clusters share their trust anchors is judged by what their proxies hold and present."""

from __future__ import annotations

from dataclasses import replace

import pytest

from capstan.systems.base import Severity, Status
from capstan.systems.linkerd.checks_clusters import shared_anchors
from tests.systems.linkerd_evidence import healthy, leaf

A, B = "a" * 64, "b" * 64
ROW = "linkerd-multicluster: clusters share trust anchors"


def cluster(name, trusts, anchors, *, bundle=None):
    """A cluster whose proxies all hold these roots, and present leaves below those."""
    observation = healthy().view.observation
    shown = replace(leaf(), anchors=frozenset(anchors))
    held = None if trusts is None else frozenset(trusts)
    peers = tuple(replace(peer, cluster=name, trusts=held, leaf=shown) for peer in observation.peers[:2])
    declared = frozenset(trusts or ()) if bundle is None else frozenset(bundle)
    return replace(observation, name=name, bundle=declared, peers=peers)


def proves(what):
    return pytest.mark.proves("checks", ROW, what)


@proves("passes where all hold the same roots")
def test_clusters_of_one_root_share_it():
    found = shared_anchors([cluster("east", {A}, {A}), cluster("west", {A}, {A})])
    assert (found.level, found.status, found.message) == (Severity.ERROR, Status.OK, "")
    assert found.hint == "https://linkerd.io/2/checks/#l5d-multicluster-clusters-share-anchors"


@proves("warns in the middle of a rotation, where the sets differ and everybody trusts everybody; linkerd check fails")
def test_a_cluster_that_is_ahead_in_a_rotation_only_warns():
    found = shared_anchors([cluster("east", {A, B}, {A}), cluster("west", {A}, {A})])
    assert found.status is Status.WARNING
    assert "linkerd check would say: ×" in found.message


@proves("fails where a proxy would refuse the other cluster's leaves")
def test_a_cluster_whose_leaves_another_refuses_fails():
    found = shared_anchors([cluster("east", {A, B}, {B}), cluster("west", {A}, {A})])
    assert found.status is Status.ERROR
    assert "west/linkerd/linkerd-identity-1 does not trust east/linkerd/linkerd-identity-1" in found.message


@proves("fails where the sets are equal and a proxy still holds others")
def test_equal_declarations_do_not_hide_a_proxy_that_holds_other_roots():
    found = shared_anchors([cluster("east", {A}, {A}), cluster("west", {B}, {A}, bundle={A})])
    assert found.status is Status.ERROR


@proves("two empty sets are no agreement; linkerd check passes")
def test_two_empty_sets_share_nothing():
    found = shared_anchors([cluster("east", {A}, {A}, bundle=()), cluster("west", {A}, {A}, bundle=())])
    assert found.status is Status.ERROR
    assert "east has no trust anchors" in found.message


@proves("a proxy that could not be asked is taken for one that refuses")
def test_a_proxy_that_could_not_be_asked_fails_the_check():
    found = shared_anchors([cluster("east", None, {A}, bundle={A}), cluster("west", {A}, {A})])
    assert found.status is Status.ERROR
