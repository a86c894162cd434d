"""Turns a rotation's plan into what an approver is asked to decide on."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Final

from capstan.approvals.policy import ApproverPolicy, approver_policy
from capstan.approvals.proposal import Anchor, Evidence, Gate, Proposal, ProposedStep
from capstan.config import System
from capstan.trust.aim import RootAim
from capstan.trust.phase import Phase
from capstan.trust.steps import StepKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from datetime import datetime

    from capstan.cluster.record import RotationRecord
    from capstan.config import ClusterRef, RotationPolicy, TrustDomain
    from capstan.pki.inspect import Certificate
    from capstan.rotation.session import Rotation
    from capstan.trust.gates import GateResult
    from capstan.trust.observation import Observation
    from capstan.trust.plan import Plan

    Judge = Callable[[Phase, Observation, datetime], GateResult]

_MEANING: Final = {
    "trust": "Every bundle gets the new root beside the old; control plane and workloads are restarted, so that every "
    "live proxy trusts both.",
    "issue": "The issuer is replaced by one under the new root, and the control plane is restarted. Leaves renew by "
    "themselves; every proxy trusts both roots meanwhile.",
    "distrust": "The old root is removed from every bundle; control plane and workloads are restarted. From then on a "
    "leaf of the old root is refused.",
    "roll-back": "The rotation turns round: issuer and bundles go back to what they were, in the order that keeps "
    "every handshake, until only the old roots are trusted.",
}
_ISTIO: Final = {
    "trust": "Every bundle gets the new root beside the old, and every istiod hands out both. Proxies take it with "
    "their next leaf; none is cut off meanwhile.",
    "issue": "The intermediate is replaced by one under the new root, and every istiod signs with it. Leaves renew by "
    "themselves; every proxy trusts both roots meanwhile.",
    "distrust": "The old root is removed from every bundle, and every istiod is restarted once. From the next leaf "
    "on a proxy refuses a leaf of the old root.",
    "roll-back": _MEANING["roll-back"],
}
_ISSUER: Final = {
    "issue": "The issuer is replaced by another one under the same root, and everything that signs takes it over. "
    "Nobody's trust changes, and leaves renew by themselves.",
    "roll-back": "The rotation turns round: the issuer goes back to what it was. Nobody's trust changes.",
}
_REDATE: Final = {
    "re-date": "Each cluster's self-signed root gets another certificate of the same key and the same name, with "
    "another life, and every istiod is restarted once. Old and new verify each other's leaves: nobody is cut off.",
    "roll-back": "The root gets the certificate again that it had before. Nobody's trust changes.",
}
_REDATE_IRREVERSIBLE: Final = {
    "re-date": "Nothing: the certificate there was is kept in the vault, and can be written again until it ends. This "
    "does not cure a stolen key: who has the old root's key has the new one's.",
    "roll-back": "The approvals given so far end with this turn.",
}
_ISSUER_IRREVERSIBLE: Final = {
    "issue": "Nothing: the replaced issuer is kept in the vault, and stays trusted under its root until it expires. "
    "This does not cure a stolen issuer key: only another root does.",
    "roll-back": "The approvals given so far end with this turn. The new issuers stay in the vault, and trusted under "
    "their root until they expire.",
}
_WEBHOOKS: Final = {
    "trust": "Every caBundle gets the new serving certificate beside the old, so that the API server accepts either. "
    "No server and no workload is restarted.",
    "issue": "Every webhook's serving Secret gets the new pair. Servers read it by themselves; only the Deployment of "
    "one that does not is restarted, and no workload.",
    "distrust": "Every caBundle loses the old serving certificate, after every process was seen to serve the new one.",
    "roll-back": "The rotation turns round: Secrets and caBundles go back to what they were, in the order that fails "
    "no call of the API server.",
}
_WEBHOOKS_IRREVERSIBLE: Final = {
    "trust": "Nothing: the old certificates are served and accepted as before.",
    "issue": "Nothing: the old pairs are kept in the vault, and accepted until the caBundles are narrowed.",
    "distrust": "Nothing, while the old pairs are in the vault and have not ended.",
    "roll-back": "The approvals given so far end with this turn. The new pairs stay in the vault.",
}
_BY_RESTART: Final = " Workloads are restarted, so that none waits for its leaf to renew."
_IRREVERSIBLE: Final = {
    "trust": "Nothing: the old root stays trusted and the old issuer goes on signing.",
    "issue": "Nothing yet: the old issuer is kept in the vault and can be written back until the bundles are narrowed.",
    "distrust": "A leaf of the old root that turns up later is refused. The step itself can be taken back while the "
    "old issuer's key is kept in the vault.",
    "roll-back": "The approvals given so far end with this turn. The new root and issuers stay in the vault.",
}
_WAITS: Final = {
    "trust": "until every live trust store holds the new root",
    "distrust": "until every live trust store is exactly the new root, and a leaf of the old one is refused",
}
_ON_TIMEOUT: Final = "Nothing: a request that runs out is neither an approval nor a rejection; it is asked anew."
_WAITING: Final = frozenset(
    {StepKind.GATE_TRUST, StepKind.AWAIT_LEAVES, StepKind.GATE_DISTRUST, StepKind.PROBE_REFUSAL}
)


def propose(rotation: Rotation, plan: Plan, gate: Gate, policy: ApproverPolicy | None = None) -> Proposal:
    """What is asked before `gate`, from the plan as it is now.

    Args:
        plan: The plan of the direction in which the rotation would go on: for `roll-back` the way back.
        policy: Whose answers count; by default as `approver_policy` of the domain.

    Raises:
        InvalidInput: The domain's approvers cannot be used.
        Denied: The worker's file of approvers does not list the domain.
    """
    return proposed(
        rotation.domain,
        rotation.record(),
        plan,
        rotation.recent(),
        gate,
        policy or approver_policy(rotation.domain),
        rotation.known(),
        rotation.now(),
        judged=rotation.aim.may_enter,
    )


def proposed(
    domain: TrustDomain,
    record: RotationRecord,
    plan: Plan,
    seen: Observation,
    gate: Gate,
    policy: ApproverPolicy,
    known: Iterable[Certificate],
    now: datetime,
    *,
    judged: Judge | None = None,
) -> Proposal:
    """The same from plain values.

    Args:
        seen: What the evidence is read from.
        known: Certificates to name roots with.
        now: Aware UTC.
        judged: Judges the gate for the evidence; by default as a rotation of the roots.
    """
    steps = _steps(plan, gate)
    certificates = {certificate.fingerprint: certificate for certificate in known}
    irreversible = {
        "issuer": _ISSUER_IRREVERSIBLE,
        "re-date": _REDATE_IRREVERSIBLE,
        "webhooks": _WEBHOOKS_IRREVERSIBLE,
    }.get(record.kind, _IRREVERSIBLE)
    return Proposal(
        domain=domain.name,
        system=domain.system.value,
        rotation=record.rotation_id,
        turn=record.turn,
        direction="back" if gate == "roll-back" else record.direction,
        gate=gate,
        meaning=_meaning(domain, record, gate),
        clusters=tuple(_reached(cluster, domain) for cluster in domain.clusters),
        vault=domain.vault_url(),
        leaving=_anchors(sorted(plan.old), certificates),
        staying=_anchors(sorted(plan.stays), certificates),
        plan=plan.digest(),
        steps=steps,
        workloads=_workloads(plan, steps),
        irreversible=irreversible[gate],
        bound=_bound(domain, gate, seen) if record.kind != "webhooks" else _webhooks_bound(domain),
        way_back=_way_back(plan, gate),
        on_reject=_on_reject(domain.policy, gate),
        on_timeout=_ON_TIMEOUT,
        asked_before=_asked_before(plan, gate, policy),
        approvers=policy.names,
        quorum=policy.quorum,
        evidence=_evidence(plan, gate, seen, now, judged or _judged_as_roots(plan)),
        keys=policy.key_ids,
        kind=record.kind,
    )


def _judged_as_roots(plan: Plan) -> Judge:
    return RootAim(plan.old, plan.stays or None).may_enter


def _meaning(domain: TrustDomain, record: RotationRecord, gate: Gate) -> str:
    by_system = _MEANING if domain.system is System.LINKERD else _ISTIO
    said = {"issuer": _ISSUER, "re-date": _REDATE, "webhooks": _WEBHOOKS}.get(record.kind, by_system)[gate]
    if domain.system is System.LINKERD or record.kind == "re-date":
        return said
    return said + _BY_RESTART if domain.policy.leaf_renewal == "restart" else said


def _reached(cluster: ClusterRef, domain: TrustDomain) -> str:
    """A cluster and how it is reached, as the parameters say; not its address, which may differ between workers."""
    if cluster.kubeconfig is None and cluster.context is None:
        how = "where the worker runs, or its default kubeconfig"
    else:
        how = f"context {cluster.context or '(current)'} of {cluster.kubeconfig or 'the default kubeconfig'}"
    return f"{cluster.name}: {how}, namespace {domain.control_plane_namespace}"


def _steps(plan: Plan, gate: Gate) -> tuple[ProposedStep, ...]:
    pending = [step for step in plan.pending if step.kind not in (StepKind.APPROVE, StepKind.MINT)]
    wanted = pending if gate in ("roll-back", "re-date") else [step for step in pending if step.phase.value == gate]
    return tuple(ProposedStep(step.name, step.changes, step.pending, acts=step.kind not in _WAITING) for step in wanted)


def _workloads(plan: Plan, steps: Iterable[ProposedStep]) -> tuple[str, ...]:
    if not any("restart" in step.name for step in steps):
        return ()
    return tuple(f"{cluster['name']}: {owner}" for cluster in plan.domain for owner in cluster["owners"])


def _anchors(fingerprints: Iterable[str], known: Mapping[str, Certificate]) -> tuple[Anchor, ...]:
    return tuple(
        Anchor(root, known[root].common_name, known[root].not_after) if root in known else Anchor(root)
        for root in fingerprints
    )


def _bound(domain: TrustDomain, gate: Gate, seen: Observation) -> str:
    policy = domain.policy
    restart = _duration(policy.restart_deadline)
    life = timedelta(seconds=max((cluster.leaf_lifetime for cluster in seen.clusters), default=0.0))
    if gate == "re-date":
        return f"Restarts take at most {restart} each; proxies have it with their next leaf, at most {_duration(life)}."
    if gate in _WAITS and domain.system is not System.LINKERD:
        return (
            f"Every istiod takes it within {restart}, or is restarted; then it waits {_WAITS[gate]}: until the last "
            f"leaf of today has ended, at most {_duration(life)}."
        )
    if gate in _WAITS:
        return f"Restarts take at most {restart} each; then it waits at most {restart} {_WAITS[gate]}."
    leaf = _duration(life)
    leaves = f"the last leaf of the other issuer ends at most {leaf} after the switch"
    if gate == "issue":
        return f"It waits until every live leaf is of the new issuer; {leaves}."
    return f"Restarts take at most {restart} each; {leaves}."


def _webhooks_bound(domain: TrustDomain) -> str:
    reload, restart = _duration(domain.policy.webhook_reload), _duration(domain.policy.restart_deadline)
    return f"A server has {reload} to serve what its Secret holds, and is restarted else; each gate waits {restart}."


def _asked_before(plan: Plan, gate: Gate, policy: ApproverPolicy) -> tuple[str, ...]:
    if gate in ("roll-back", "re-date"):
        return (gate,)  # asked once, whatever the policy's phases
    phases = (Phase.ISSUE,) if plan.kind == "issuer" else tuple(Phase)
    return tuple(phase.value for phase in phases if phase.value in policy.gates)


def _way_back(plan: Plan, gate: Gate) -> str:
    if gate == "roll-back":
        return "The rotation can be turned forward again, with new approvals, while the new root is in the vault."
    phase = Phase.TRUST.value if gate == "re-date" else gate
    acting = next((s for s in plan.steps if s.phase.value == phase and s.kind is not StepKind.APPROVE), None)
    return f"capstan rollback: {acting.reversible}." if acting else "capstan rollback"


def _on_reject(policy: RotationPolicy, gate: Gate) -> str:
    if gate in ("roll-back", "re-date"):
        return "Nothing: the rotation stays where it is."
    if policy.on_reject == "roll-back":
        return "The rotation is rolled back to what there was before it (policy on_reject: roll-back)."
    return "The rotation stops and everything stays as it is (policy on_reject: stop)."


def _evidence(plan: Plan, gate: Gate, seen: Observation, now: datetime, judged: Judge) -> Evidence:
    if gate == "roll-back":
        sentences: tuple[str, ...] = (f"the domain is in phase {plan.phase.value} of the way back",)
    else:
        sentences = judged(Phase.TRUST if gate == "re-date" else Phase(gate), seen, now).evidence
    return Evidence(
        at=seen.taken_at,
        sentences=(*sentences, str(plan.verdict)),
        peers=len(seen.peers),
        workloads=len({peer.owner for peer in seen.peers}),
    )


def _duration(value: timedelta) -> str:
    seconds = round(value.total_seconds())
    for size, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds} s"
