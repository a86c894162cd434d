"""`capstan status`: where a rotation is, who is being waited for, and until when. Read-only."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.padding import Padding
from rich.text import Text

from capstan.cli.domain_view import DomainView, direction, print_verdict, viewed, whose
from capstan.cli.options import DomainOptions
from capstan.cli.output import Exit, Output, print_data, print_table, stdout
from capstan.trust.gates import GateResult
from capstan.trust.phase import Phase, Progress

if TYPE_CHECKING:
    from capstan.cluster.record import RotationRecord

_NEXT = {
    Phase.PREPARE: Phase.TRUST,
    Phase.TRUST: Phase.ISSUE,
    Phase.ISSUE: Phase.DISTRUST,
    Phase.DISTRUST: Phase.DONE,
}
_SHOWN = 20


def status(
    options: DomainOptions = DomainOptions(),  # noqa: B008  # frozen: cyclopts fills the fields in
    *,
    output: Annotated[Output, Parameter(alias="-o")] = Output.TABLE,
) -> int:
    """Show where the domain's rotation is, derived from the certificates as they are; exit 2 while it is unfinished.

    Parameters
    ----------
    output
        table, json or yaml.
    """
    with viewed(options.resolve()) as view:
        record = view.record
        if record is None or record.finished is not None:
            gate = None
            steps: tuple[Progress, ...] = ()
        else:
            phases = (Phase.TRUST, Phase.ISSUE, Phase.DISTRUST)
            steps = tuple(view.aim.progress(view.observation, phase) for phase in phases)
            following = _NEXT.get(view.plan.phase)
            gate = view.aim.may_enter(following, view.observation, datetime.now(UTC)) if following else None
        if output in (Output.JSON, Output.YAML):
            print_data(_as_data(view, steps, gate), output)
        else:
            _print(view, steps, gate)
        return Exit.OK if record is None or record.finished else Exit.CHANGES_PENDING


def _as_data(view: DomainView, steps: tuple[Progress, ...], gate: GateResult | None) -> dict[str, Any]:
    record = view.record
    return {
        "schemaVersion": 1,
        "domain": view.domain.name,
        "rotation": record.rotation_id if record else None,
        "finished": record.finished.isoformat() if record and record.finished else None,
        "outcome": record.outcome if record else None,
        "phase": view.plan.phase.value if record and record.finished is None else None,
        "direction": record.direction if record else None,
        "turn": record.turn if record else None,
        "safe": view.plan.verdict.safe,
        "verdict": str(view.plan.verdict),
        "peers": len(view.observation.peers),
        "progress": [
            {"phase": s.phase.value, "done": s.done, "total": s.total, "waitingFor": list(s.waiting_for)} for s in steps
        ],
        "gate": None
        if gate is None
        else {
            "before": gate.phase.value,
            "open": gate.open,
            "waitingFor": list(gate.waiting_for),
            "contradictions": list(gate.contradictions),
            "bound": gate.bound.isoformat() if gate.bound else None,
        },
        "run": record.claim.model_dump(mode="json") if record and record.claim else None,
        "asked": {gate: asked.model_dump(mode="json") for gate, asked in record.asked.items()} if record else {},
        "deadlines": {wait: until.isoformat() for wait, until in record.deadlines.items()} if record else {},
        "restartsLeft": record.budget if record else None,
        "approvals": [entry.model_dump(mode="json") for entry in record.approvals] if record else [],
    }


def _approval(record: RotationRecord, phase: Phase) -> str:
    """The last decision that counts in this turn; a way back is approved as a whole, before it is turned to."""
    gate = "roll-back" if record.direction == "back" else phase.value
    asked = record.asked.get(gate)
    counts = [
        a
        for a in record.approvals
        if a.gate == gate and (record.turn == 1 or gate == "roll-back" or (asked and a.request == asked.id))
    ]
    return f"{counts[-1].decision} by {counts[-1].by}" if counts else "-"


def _print(view: DomainView, steps: tuple[Progress, ...], gate: GateResult | None) -> None:
    console = stdout()
    record = view.record
    console.print(f"trust domain {view.domain.name}")
    print_verdict(view.plan.verdict)
    if record is None:
        console.print("no rotation was ever begun here; `capstan plan` shows what one would do")
        return
    if record.finished is not None:
        console.print(f"rotation {record.rotation_id}: {record.outcome} at {record.finished:%Y-%m-%d %H:%M:%S} UTC")
        return
    begun = f"{record.started:%Y-%m-%d %H:%M:%S} UTC"
    console.print(f"rotation {record.rotation_id}, begun {begun}, is in phase {view.plan.phase.value}")
    if turned := direction(record):
        console.print(turned)
    for line in whose(record, datetime.now(UTC)):
        console.print(line, highlight=False, soft_wrap=True)
    console.print()
    rows = []
    for step in steps:
        style = "bold cyan" if step.phase is view.plan.phase else "green" if step.reached else "dim"
        rows.append((Text(step.phase.value, style=style), f"{step.done}/{step.total}", _approval(record, step.phase)))
    print_table(("phase", "proxies", "approval"), rows)
    if gate is not None and (gate.waiting_for or gate.contradictions):
        console.print()
        until = f", at the latest until {gate.bound:%Y-%m-%d %H:%M:%S} UTC" if gate.bound else ""
        console.print(f"before {gate.phase.value} it waits for{until}:")
        for name in (*gate.contradictions, *gate.waiting_for)[:_SHOWN]:
            console.print(Padding(Text(name), (0, 0, 0, 2), expand=False))  # its further lines under its first
        if len(gate.waiting_for) > _SHOWN:
            console.print(f"  and {len(gate.waiting_for) - _SHOWN} more (-o json shows all)")
