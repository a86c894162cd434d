"""The verdict against its own definition, and the claim that makes it worth having: safe stays safe by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from capstan.trust.safety import RenewLeaf, Restart, Safe, Unsafe, verdict, who_would_break
from tests.trust.domains import NEW, NOW, OLD, OTHER, cluster, domain, peer

if TYPE_CHECKING:
    from capstan.trust.observation import Observation

roots = st.sets(st.sampled_from([OLD, NEW, OTHER]), min_size=1).map(frozenset)
plenty = roots | st.just(frozenset({OLD, NEW, OTHER}))


def one_cluster(name: str) -> st.SearchStrategy[object]:
    def build(
        peers: list[tuple[frozenset[str], frozenset[str]]], bundle: frozenset[str], issuer: frozenset[str]
    ) -> object:
        made = [peer(f"p{n}", cluster=name, trusts=t, anchors=a, owner=f"o{n % 2}") for n, (t, a) in enumerate(peers)]
        return cluster(made, name=name, bundle=bundle, issuer=issuer)

    return st.builds(build, st.lists(st.tuples(plenty, roots), max_size=4), plenty, roots)


observations = st.tuples(one_cluster("east"), one_cluster("west")).map(lambda both: domain(*both))  # type: ignore[arg-type]  # clusters


@settings(max_examples=200, deadline=None)
@given(observations)
def test_the_grouped_verdict_is_the_pairwise_definition(observation: Observation) -> None:
    believers = [(c.name, c.bundle) for c in observation.clusters]
    believers += [(p.name, p.trusts or frozenset()) for p in observation.peers]
    chains = [(c.name, c.issuer.anchors) for c in observation.clusters if c.issuer]
    chains += [(p.name, p.leaf.anchors) for p in observation.peers if p.leaf]
    mistrusts = sum(not trusts & anchors for _, trusts in believers for _, anchors in chains)
    found = verdict(observation)
    counted = sum(len(pair.who) * len(pair.whom) for pair in found.pairs) if isinstance(found, Unsafe) else 0
    assert counted == mistrusts
    assert isinstance(found, Safe) is (mistrusts == 0)


@settings(max_examples=200, deadline=None)
@given(observations, st.data())
def test_a_safe_domain_stays_safe_under_any_restart_and_any_renewal(
    observation: Observation, data: st.DataObject
) -> None:
    if not observation.peers or not verdict(observation).safe:
        return
    chosen = data.draw(st.sampled_from(observation.peers))
    for action in (Restart(chosen.name), Restart(chosen.owner), RenewLeaf(chosen.name)):
        assert who_would_break(observation, action).safe
    assert observation.taken_at == NOW
