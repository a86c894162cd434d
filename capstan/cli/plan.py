"""`capstan plan`: what a rotation would do from here. Read-only; starts without Prefect."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from rich.text import Text

from capstan.cli.domain_view import DomainView, print_verdict, viewed
from capstan.cli.options import DomainOptions
from capstan.cli.output import Exit, Output, print_data, print_table, stdout
from capstan.trust.plan import Step, StepKind
from capstan.trust.safety import Unsafe


def plan(
    options: DomainOptions = DomainOptions(),  # noqa: B008  # frozen: cyclopts fills the fields in
    *,
    output: Annotated[Output, Parameter(alias="-o")] = Output.TABLE,
) -> int:
    """Show the steps of a rotation from the present state, changing nothing; exit 2 because changes are pending.

    Exit 3: the domain is not safe as it is, and a rotation would be refused.

    Parameters
    ----------
    output
        table, json or yaml.
    """
    with viewed(options.resolve()) as view:
        if output in (Output.JSON, Output.YAML):
            print_data(view.plan.as_json(), output)
        else:
            _print(view)
        if isinstance(view.plan.verdict, Unsafe):
            return Exit.GATE_REFUSED
        return Exit.CHANGES_PENDING if view.plan.pending else Exit.OK


def _print(view: DomainView) -> None:
    console = stdout()
    under_way = view.record is not None and view.record.finished is None
    what = f"rotation {view.record.rotation_id}" if view.record and under_way else "a new rotation"
    peers = view.observation.peers
    console.print(f"Plan of {what} of trust domain {view.domain.name}")
    console.print(
        f"{len(peers)} live proxies, {len({peer.owner for peer in peers})} workloads, "
        f"{len(view.observation.clusters)} cluster(s)"
    )
    print_verdict(view.plan.verdict)
    for root in sorted(view.plan.old):
        certificate = view.certificates.get(root)
        detail = f"{certificate.common_name}, until {certificate.not_after:%Y-%m-%d}" if certificate else "not met"
        console.print(f"away from  {root[:16]}  {detail}")
    console.print(f"to         {view.plan.new[:16] if view.plan.new else '(minted in phase prepare)'}")
    console.print()
    print_table(("phase", "step", "changes"), [_row(step) for step in view.plan.steps])
    console.print()
    for phase in dict.fromkeys(step.phase for step in view.plan.steps):
        # The first step that acts says how its phase is taken back; gates and approvals have nothing to take back.
        way = next((s.reversible for s in view.plan.steps if s.phase is phase and s.kind is not StepKind.APPROVE), "")
        console.print(f"back from {phase.value}: {way}")
    console.print()
    console.print(f"digest {view.plan.digest()}")


def _row(step: Step) -> tuple[Text, ...]:
    style = "dim" if step.done else ""
    changes = "already true" if step.done else step.changes
    return tuple(Text(text, style=style) for text in (step.phase.value, step.kind.value, changes))
