"""What an approver is asked to decide on before what has expired is replaced: asked once, and it names the downtime."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from capstan.approvals.policy import approver_policy
from capstan.rotation.expired import Found, look
from capstan.rotation.proposing import proposed
from capstan.trust.expired import Scope

if TYPE_CHECKING:
    from capstan.approvals.proposal import Proposal
    from capstan.rotation.session import Rotation
    from capstan.trust.plan import Plan

GATE: Final = "replace-expired"
_SHOWN: Final = 12
_DOES: Final = {
    Scope.ANCHOR: "A new anchor and new issuers take the place of what there is, in one step; identity, then the rest "
    "of the control plane, then every workload are started anew, many at a time.",
    Scope.ISSUER: "A new issuer under the present anchor takes the place of the one that has ended; identity, then the "
    "rest of the control plane, then every workload without an identity are started anew, many at a time.",
    Scope.LEAVES: "Identity, then the rest of the control plane, then every workload without an identity are started "
    "anew, many at a time. Anchor and issuer stay.",
    Scope.REMNANT: "The anchor that has ended is removed; control plane and workloads are started anew, so that nobody "
    "trusts it any more.",
}


def propose_replacement(rotation: Rotation, plan: Plan) -> Proposal:
    """What is asked, from the plan as it is now.

    Raises:
        InvalidInput, Denied: As `propose`.
    """
    record, seen = rotation.record(), rotation.recent()
    found = Found.of(record)
    scope = found.scope if found is not None else Scope.ANCHOR
    asked = proposed(
        rotation.domain, record, plan, seen, "issue", approver_policy(rotation.domain), rotation.known(),
        rotation.now(), judged=rotation.aim.may_enter,
    )  # fmt: skip
    restart = rotation.domain.policy.restart_deadline.total_seconds() / 60
    return replace(
        asked,
        gate=GATE,
        asked_before=(GATE,),
        meaning=f"{_sentence(found.told()) if found is not None else ''} {_DOES[scope]}".strip(),
        irreversible="All of it: there is nothing worth going back to, what there was has expired. Connections that "
        "are open go on; workloads lose them as they are started anew.",
        bound=f"All restarts of a cluster's control plane, and of its workloads, take at most {restart:g} min each; "
        f"then it waits at most {restart:g} min until each live proxy has a leaf. Nothing waits for leaves to end.",
        way_back="none once it has begun; before that, capstan rollback ends it and nothing is changed.",
        on_reject="Nothing is changed: the mesh stays down, and the rotation "
        + ("ends." if rotation.domain.policy.on_reject == "roll-back" else "stays where it is."),
        evidence=replace(asked.evidence, sentences=_evidence(rotation)),
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _evidence(rotation: Rotation) -> tuple[str, ...]:
    """Who is down, and since when, as seen now; no part of what is decided on."""
    seen = rotation.recent()
    certificates = {f: c for system in rotation.systems.values() for f, c in system.certificates().items()}
    now = look(seen, certificates, rotation.now())
    lines = [f"{now.without} of {now.proxies} live proxies have no valid identity"]
    lines += [
        f"{each.workload}: {each.proxies} without since {each.since:%Y-%m-%d %H:%M:%S} UTC"
        for each in now.workloads[:_SHOWN]
    ]
    if len(now.workloads) > _SHOWN:
        lines.append(f"and {len(now.workloads) - _SHOWN} more workloads")
    return tuple(lines)
