"""What keeps a replacement from making things worse: who lives is not cut off, nobody comes back without a proxy."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from capstan.errors import GateRefused
from capstan.pki.bundle import Bundle
from capstan.systems.linkerd.checks_hooks import HOOKS, Served
from capstan.systems.linkerd.data_plane import stale_owners
from capstan.systems.linkerd.expired import _why_expired, require_nobody_living_needs_others
from tests.pki.ca import NOW, make
from tests.systems.linkerd_evidence import ISSUER, ROOT, healthy, hook, leaf, serving, with_peer

if TYPE_CHECKING:
    from capstan.systems.linkerd.observe import View

DAY = dt.timedelta(days=1)
NEW = make("root.linkerd.cluster.local G2").certificate


def view_of(*, ends: dt.datetime) -> View:
    """A healthy mesh whose leaves all end then."""
    view = healthy().view
    ended = replace(leaf(), not_after=ends)
    observation = replace(view.observation, peers=tuple(replace(peer, leaf=ended) for peer in view.observation.peers))
    return replace(view, observation=observation)


def test_a_living_root_by_which_somebody_lives_is_never_taken_away() -> None:
    view = view_of(ends=NOW + DAY)
    with pytest.raises(GateRefused, match="live by a root that has not ended") as refused:
        require_nobody_living_needs_others(view, Bundle.of(NEW), NOW)
    assert "web-1" in refused.value.observed
    require_nobody_living_needs_others(view, Bundle.of(NEW, ROOT.certificate), NOW)


def test_a_root_by_which_nobody_lives_any_more_may_go_and_one_that_has_ended_whoever_chains_to_it() -> None:
    require_nobody_living_needs_others(view_of(ends=NOW - DAY), Bundle.of(NEW), NOW)
    later = ROOT.certificate.not_after + DAY
    require_nobody_living_needs_others(view_of(ends=later + DAY), Bundle.of(NEW), later)


def test_a_dead_leaf_makes_its_workload_stale_and_a_living_one_of_the_same_issuer_does_not() -> None:
    roots, issuer = frozenset({ROOT.certificate.fingerprint}), ISSUER.certificate.fingerprint
    evidence = with_peer(healthy(), "web-1", leaf=replace(leaf(), not_after=NOW - DAY))
    (owner,) = stale_owners(evidence.view, roots, issuer, NOW)
    assert owner.name == "web"
    # An ordinary restart asks for the issuer alone: it is not its business whether a leaf has ended.
    assert stale_owners(evidence.view, roots, issuer) == {}


@pytest.mark.proves("faults", "expired issuer", "nothing is begun while the injector's own certificate has ended, too")
@pytest.mark.parametrize("which", HOOKS, ids=lambda item: item.name)
def test_a_webhook_that_is_refused_for_its_end_is_told_from_one_that_is_refused_for_anything_else(
    which: object,
) -> None:
    good = hook(which)
    assert _why_expired(good, NOW) == ""
    ended = serving(good.dns_name, start=NOW - 2 * DAY, end=NOW - DAY).certificate
    dead = replace(good, anchors=Bundle.of(ended), chain=(ended,), served=(Served("one", (ended,)),))
    assert f"ended on {NOW - DAY:%F %T}Z" in _why_expired(dead, NOW)
    # Renewed in the Secret and not read yet: what is served counts.
    behind = replace(good, anchors=Bundle.of(ended, good.chain[0]), served=(Served("one", (ended,)),))
    assert _why_expired(behind, NOW) != ""
    # Of another name, of another CA: broken, and no matter of time.
    other = serving("another.linkerd.svc").certificate
    foreign = replace(good, chain=(other,), served=(Served("one", (other,)),))
    assert _why_expired(foreign, NOW) == ""
    assert _why_expired(replace(good, chain=(), served=()), NOW) == ""
