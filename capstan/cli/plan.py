"""`capstan plan`: what a rotation would do from here. Read-only; starts without Prefect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter
from rich.text import Text

from capstan.cli.domain_view import DomainView, direction, print_verdict, viewed
from capstan.cli.entry_points import OF, What, kind_of, require_rotation
from capstan.cli.options import DomainOptions
from capstan.cli.output import Exit, Output, print_data, print_table, stdout
from capstan.trust.plan import Plan, Step, StepKind
from capstan.trust.safety import Unsafe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from capstan.pki.inspect import Certificate
    from capstan.trust.observation import Observation

_MENDING: Final = ("webhooks", "expired")  # what fails is what they mend: they are not refused for it


def plan(
    options: DomainOptions = DomainOptions(),  # noqa: B008  # frozen: cyclopts fills the fields in
    *,
    what: What | None = None,
    output: Annotated[Output, Parameter(alias="-o")] = Output.TABLE,
) -> int:
    """Show the steps of a rotation from the present state, changing nothing; exit 2 because changes are pending.

    Exit 3: the rotation would be refused as things are: the domain is not safe, or has not what it is of.

    Parameters
    ----------
    what
        As for `capstan rotate`; by default whatever is under way, and for a new rotation the root.
    output
        table, json or yaml.
    """
    domain = options.resolve()
    if what is not None:
        require_rotation(domain.system, what)
    with viewed(domain, kind_of(what) if what else None, beginning=True) as view:
        if output in (Output.JSON, Output.YAML):
            print_data(view.plan.as_json(), output)
        else:
            _print(view)
        if isinstance(view.plan.verdict, Unsafe) and view.plan.kind not in _MENDING:
            return Exit.GATE_REFUSED
        return Exit.CHANGES_PENDING if view.plan.pending else Exit.OK


def _print(view: DomainView) -> None:
    under_way = view.record if view.record is not None and view.record.finished is None else None
    what = (f"rotation {under_way.rotation_id}" if under_way else "a new rotation") + OF[view.plan.kind]
    turned = f" ({direction(under_way)})" if under_way and direction(under_way) else ""
    back = under_way is not None and under_way.direction == "back"
    title = f"Plan of {what} of trust domain {view.domain.name}{turned}"
    print_plan(title, view.plan, view.observation, view.certificates, back=back)
    for remark in view.remarks:
        stdout().print(remark, highlight=False, soft_wrap=True)


def print_plan(
    title: str, planned: Plan, observation: Observation, certificates: Mapping[str, Certificate], *, back: bool = False
) -> None:
    """A plan for a person: what is turned away from, to what, by which steps, and how each phase is taken back."""
    console = stdout()
    peers = observation.peers
    console.print(title)
    owners, clusters = len({peer.owner for peer in peers}), len(observation.clusters)
    if planned.kind == "webhooks":
        console.print(f"{clusters} webhooks, served by {len(peers)} processes of {owners} workloads")
    else:
        console.print(f"{len(peers)} live proxies, {owners} workloads, {clusters} cluster(s)")
    print_verdict(planned.verdict)
    for label, roots in (("away from", planned.old), ("to", planned.stays)):
        for root in sorted(roots):
            certificate = certificates.get(root)
            detail = f"{certificate.common_name}, until {certificate.not_after:%Y-%m-%d}" if certificate else "not met"
            console.print(f"{label:<9}  {root[:16]}  {detail}")
    if not planned.stays:
        console.print("to         (minted in phase prepare)")
    console.print()
    print_table(("phase", "step", "changes"), [_row(step) for step in planned.steps])
    console.print()
    for phase in dict.fromkeys(step.phase for step in planned.steps if not back):
        # The first step that acts says how its phase is taken back; gates and approvals have nothing to take back.
        way = next((s.reversible for s in planned.steps if s.phase is phase and s.kind is not StepKind.APPROVE), "")
        console.print(f"back from {phase.value}: {way}")
    if back:
        console.print("capstan rotate --forward turns it forward again, until its way back has ended")
    console.print()
    console.print(f"digest {planned.digest()}")


def _row(step: Step) -> tuple[Text, ...]:
    style = "dim" if step.done else ""
    changes = "already true" if step.done else step.changes
    return tuple(Text(text, style=style) for text in (step.phase.value, step.kind.value, changes))
