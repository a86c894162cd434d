"""What an approver is shown, and the digest that holds still until what he decides on changes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from capstan.approvals.block import FENCE, RequestBlock, read_block
from capstan.approvals.policy import ApproverPolicy
from capstan.approvals.proposal import Anchor, Gate, Proposal, ProposedStep
from capstan.approvals.rendering import escaped
from capstan.cluster.record import RotationRecord
from capstan.cluster.workloads import WHY_NOT
from capstan.config import ClusterRef, RotationPolicy, TrustDomain
from capstan.errors import InvalidInput
from capstan.rotation.proposing import _asked_before, proposed
from capstan.trust.observation import Observation, Owner, Peer
from capstan.trust.plan import NEVER_RESTARTED, plan
from tests.approvals.people import listing, person
from tests.trust.domains import BOTH, HOUR, NEW, NOW, OLD, OTHER, domain, only, peer, settled

if TYPE_CHECKING:
    import datetime as dt

BEFORE: dict[str, Observation] = {
    "trust": domain(settled(only(OLD), OLD), settled(only(OLD), OLD, name="west")),
    "issue": domain(settled(BOTH, OLD), settled(BOTH, OLD, name="west")),
    "distrust": domain(settled(BOTH, NEW), settled(BOTH, NEW, name="west")),
}
GATES: tuple[Gate, ...] = ("trust", "issue", "distrust")
REQUEST, UNTIL = "0d9f8f2c11aa", NOW + 7 * 24 * HOUR


def propose(
    gate: Gate = "issue",
    seen: Observation | None = None,
    *,
    policy: ApproverPolicy | None = None,
    rotation_policy: RotationPolicy | None = None,
    old: str = OLD,
    new: str = NEW,
    now: dt.datetime = NOW,
    vault: str = "local:/keys",
    clusters: tuple[ClusterRef, ...] = (ClusterRef(name="east"), ClusterRef(name="west", context="prod-west")),
    **record: Any,
) -> Proposal:
    seen = seen or BEFORE[gate]
    trust_domain = TrustDomain(
        name="prod-eu", vault=vault, clusters=clusters, policy=rotation_policy or RotationPolicy()
    )
    fields = {"rotation_id": "2026-11-21", "domain": "prod-eu", "system": "linkerd", "started": NOW, **record}
    steps = plan(seen, only(old), new)
    return proposed(
        trust_domain, RotationRecord(**fields), steps, seen, gate, policy or ApproverPolicy(), (), now
    )  # fmt: skip


@pytest.mark.parametrize(
    ("gate", "kind", "asked"),
    [
        ("issue", "anchor", ("trust", "issue", "distrust")),
        ("issue", "issuer", ("issue",)),
        ("trust", "webhooks", ("trust", "issue", "distrust")),
    ],
)
def test_it_says_before_what_else_somebody_is_asked_and_nothing_that_never_comes(
    gate: Gate, kind: Any, asked: tuple[str, ...]
) -> None:
    steps = dataclasses.replace(plan(BEFORE[gate], only(OLD), NEW), kind=kind)
    assert _asked_before(steps, gate, ApproverPolicy()) == asked


@pytest.mark.parametrize("gate", ["roll-back", "re-date"])
def test_what_is_asked_for_once_says_so(gate: Gate) -> None:
    assert _asked_before(plan(BEFORE["trust"], only(OLD), NEW), gate, ApproverPolicy()) == (gate,)


def with_peers(seen: Observation, *peers: Peer) -> Observation:
    first, *rest = seen.clusters
    return dataclasses.replace(seen, clusters=(dataclasses.replace(first, peers=(*first.peers, *peers)), *rest))


@pytest.mark.parametrize("gate", GATES)
def test_pods_that_come_and_go_and_leaves_that_renew_change_no_digest(gate: Gate) -> None:
    seen = BEFORE[gate]
    before = propose(gate, seen)
    trusts, root = (only(OLD), OLD) if gate == "trust" else (BOTH, OLD if gate == "issue" else NEW)
    churned = dataclasses.replace(
        seen,
        taken_at=NOW + 30 * HOUR,
        clusters=tuple(
            dataclasses.replace(
                cluster,
                peers=tuple(
                    peer(f"{each.pod}-again", cluster=cluster.name, trusts=trusts, anchors=only(root), role=each.role,
                         owner=each.owner.name, until=NOW + 50 * HOUR)
                    for each in (*cluster.peers, cluster.peers[0])
                ),
            )
            for cluster in seen.clusters
        ),
    )  # fmt: skip
    after = propose(gate, churned, now=NOW + 30 * HOUR)
    assert after.evidence != before.evidence
    assert after.digest == before.digest


@pytest.mark.parametrize("kind", sorted(NEVER_RESTARTED))
def test_a_pod_that_no_step_would_restart_changes_no_digest(kind: str) -> None:
    night = dataclasses.replace(peer("backup-28911", trusts=BOTH), owner=Owner(kind, "app", "backup"))
    assert propose("issue", with_peers(BEFORE["issue"], night)).digest == propose("issue").digest


def test_the_kinds_that_are_never_restarted_are_those_that_the_restarts_pass_over() -> None:
    assert frozenset(WHY_NOT) == NEVER_RESTARTED


def test_a_new_workload_changes_the_digest() -> None:
    grown = with_peers(BEFORE["trust"], peer("shop-1", owner="shop"))
    assert propose("trust", grown).digest != propose("trust").digest


def test_a_root_a_cluster_a_step_a_turn_or_a_direction_that_changes_changes_the_digest() -> None:
    seen = BEFORE["issue"]
    one_cluster = dataclasses.replace(seen, clusters=seen.clusters[:1])
    renamed = dataclasses.replace(seen, clusters=(seen.clusters[0], settled(BOTH, OLD, name="north")))
    with_foreign_root = domain(settled(BOTH | {OTHER}, OLD), settled(BOTH, OLD, name="west"))
    half_switched = domain(settled(BOTH, NEW), settled(BOTH, OLD, name="west"))
    ada, bob = person("ada"), person("bob")
    unasked = ApproverPolicy(gates=frozenset({"issue"}))
    digests = [
        propose().digest,
        propose(new=OTHER).digest,
        propose(seen=one_cluster).digest,
        propose(seen=renamed).digest,
        propose(seen=with_foreign_root).digest,
        propose(seen=half_switched).digest,
        propose("trust").digest,
        propose("distrust").digest,
        propose("roll-back", BEFORE["issue"]).digest,
        propose(turn=2).digest,
        propose(direction="back").digest,
        propose(vault="https://another.vault.azure.net").digest,
        propose(clusters=(ClusterRef(name="east", context="prod-us"),)).digest,
        propose(policy=unasked).digest,
        propose(rotation_id="2026-11-22").digest,
        propose(rotation_policy=RotationPolicy(on_reject="stop")).digest,
        propose(policy=listing(ada)).digest,
        propose(policy=listing(ada, bob)).digest,
        propose(policy=listing(ada, bob, quorum=2)).digest,
    ]  # fmt: skip
    assert len(set(digests)) == len(digests)


def test_the_digest_is_the_same_on_every_machine() -> None:
    # Written down once: an approval given before an upgrade of Capstan still counts after it.
    fixed = Proposal(
        domain="prod-eu", system="linkerd", rotation="2026-11-21", turn=1, direction="forward", gate="issue",
        meaning="what it means", clusters=("west", "east"), vault="local:/keys",
        leaving=(Anchor(OLD, "root.linkerd", NOW),), staying=(Anchor(NEW),), plan="d" * 64,
        steps=(ProposedStep("issue/switch-issuer", "every issuer := new", ("east",)),),
        workloads=("east: workload: deployment/web -n app",), irreversible="nothing", bound="24 h", way_back="back",
        on_reject="stop", on_timeout="nothing", asked_before=("trust",), approvers=("bob", "Zoë"), quorum=2,
        evidence=propose().evidence,
    )  # fmt: skip
    assert fixed.digest == "72a368e013c4b873cd7f77c7df58cc9e026e53e7e77d369ca50283c8257aa233"


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Proposal) if f.name not in ("evidence", "keys")])
def test_every_field_but_the_evidence_and_the_fingerprints_is_decided_on(field: str) -> None:
    first = propose()
    value = getattr(first, field)
    other: object
    match value:
        case int():
            other = value + 1
        case str():
            other = value + "x"
        case (Anchor(), *_):
            other = (dataclasses.replace(value[0], not_after=NOW),)
        case _:
            other = value[1:] if value else ("somebody",)
    assert dataclasses.replace(first, **{field: other}).digest != first.digest


@pytest.mark.parametrize("gate", [*GATES, "roll-back"])
def test_the_text_says_what_happens_and_how_to_go_back_in_100_columns(gate: Gate) -> None:
    ada, bob = person("ada"), person("bob")
    proposal = propose(gate, BEFORE.get(gate, BEFORE["issue"]), policy=listing(ada, bob, quorum=2))
    text = proposal.text()
    assert max(map(len, text.splitlines())) <= 100
    parts = ("way back", "irreversible", "if rejected", "no answer", "east, west", "ada, bob", "local:/keys")
    before = "roll-back" if gate == "roll-back" else "trust, issue, distrust"
    for part in (*parts, "west: context prod-west", f"asked before {before}", NEW, OLD, proposal.digest):
        assert part in " ".join(text.split())
    assert all(step.changes in " ".join(text.split()) for step in proposal.steps)


NASTY = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


@settings(max_examples=60, deadline=None)
@given(name=NASTY, cluster=NASTY, workloads=st.lists(NASTY, max_size=30), sentences=st.lists(NASTY, max_size=4))
def test_whatever_names_hold_the_text_fits_and_the_page_keeps_its_shape(
    name: str, cluster: str, workloads: list[str], sentences: list[str]
) -> None:
    first = propose()
    odd = dataclasses.replace(
        first,
        leaving=(Anchor(OLD, name, NOW),),
        clusters=(cluster,),
        workloads=tuple(workloads),
        evidence=dataclasses.replace(first.evidence, sentences=tuple(sentences)),
    )
    lines = odd.text().split("\n")
    assert max(map(len, lines)) <= 100
    assert all(line.isprintable() for line in lines)
    page = odd.markdown(REQUEST, UNTIL)
    # Nobody can forge a heading, a table's row or the request through the name of a root or of a workload.
    plain = first.markdown(REQUEST, UNTIL)
    for mark in ("\n#", "\n|", FENCE):
        assert page.count(mark) == plain.count(mark)
    assert read_block(page).digest == odd.digest


def test_the_page_ends_with_the_request_and_it_is_read_back() -> None:
    ada, bob = person("ada"), person("bob", "x509")
    policy = listing(ada, bob, quorum=2)
    proposal = propose(policy=policy)
    assert read_block(proposal.markdown(REQUEST, UNTIL)) == RequestBlock(
        domain="prod-eu", rotation="2026-11-21", turn=1, gate="issue", request=REQUEST, digest=proposal.digest,
        until=UNTIL, quorum=2, keys={"ada": [policy.keys[0].id], "bob": [policy.keys[1].id]},
    )  # fmt: skip


def test_what_became_of_earlier_answers_stands_on_the_page() -> None:
    page = propose().markdown(REQUEST, UNTIL, ["An answer by eve does not count: it is not signed."])
    assert "> An answer by eve does not count: it is not signed." in page
    assert page.index("> An answer") < page.index("## What changes")


@pytest.mark.parametrize(
    ("page", "observed"),
    [
        ("# Approve?\n", "without a capstan-request block"),
        (f"text\n{FENCE}\n{{}}\n", "without a capstan-request block"),
        (f"text\n{FENCE}\nnot json\n```\n", "JSON"),
        (f'text\n{FENCE}\n{{"domain": "x"}}\n```\n', "Field required"),
    ],
)
def test_a_page_that_asks_for_nothing_of_ours_is_one_clear_error(page: str, observed: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        read_block(page)
    assert observed in raised.value.observed


def test_markdown_in_a_name_is_shown_as_it_is() -> None:
    assert escaped("a|b\n# *c* `d` [e](f) <g>") == r"a\|b \# \*c\* \`d\` \[e\](f) \<g\>"


def test_a_rejection_does_what_the_policy_says() -> None:
    assert "rolled back" in propose().on_reject
    assert "stays as it is" in propose(rotation_policy=RotationPolicy(on_reject="stop")).on_reject
    assert "Nothing" in propose("roll-back", BEFORE["issue"]).on_reject


def test_the_wait_is_bounded_by_the_leaves_that_are_observed() -> None:
    assert "at most 24 h after the switch" in propose("issue").bound
    assert "at most 30 min" in propose("trust").bound
