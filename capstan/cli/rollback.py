"""`capstan rollback`: take a rotation back to what there was before it, or show how that would go."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from capstan.cli.approving import ApprovalOptions
from capstan.cli.entry_points import roll_back_flow
from capstan.cli.options import DomainOptions
from capstan.cli.output import Exit, Output, print_data, stdout
from capstan.cli.plan import print_plan
from capstan.cli.rotate import print_outcome, run_flow
from capstan.config import TrustDomain
from capstan.rotation.looking_back import WayBack, look_back
from capstan.rotation.turning import ROLLED_BACK


def rollback(
    options: DomainOptions = DomainOptions(),  # noqa: B008  # frozen: cyclopts fills the fields in
    *,
    rotation: str | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    approvals: ApprovalOptions = ApprovalOptions(),  # noqa: B008  # frozen, too
    take_over: Annotated[bool, Parameter(negative=())] = False,
    output: Annotated[Output, Parameter(alias="-o")] = Output.TABLE,
) -> int:
    """Take a rotation back to the roots and issuers there were before it; killed anywhere and run again, it goes on.

    Possible in every phase, and after the end as long as the previous issuer is in the vault and has not expired.

    Parameters
    ----------
    rotation
        Id of the rotation; by default the one under way, else the last one.
    dry_run
        Show the steps of the way back from here, changing nothing; exit 2 because changes would be pending.
    take_over
        Go on with a rotation that a run of a Prefect deployment has claimed: only if that run is never to go on.
    output
        table, json or yaml.
    """
    domain = options.resolve()
    if dry_run:
        return _show(domain, look_back(domain, rotation), output)
    outcome = run_flow(
        domain,
        lambda: roll_back_flow(domain.system),
        (rotation, take_over),
        approvals=approvals,
        title=f"roll-back of trust domain {domain.name}",
        doing="the way back was not run by Prefect",
    )
    print_outcome(outcome, output)
    return Exit.OK if outcome.completed else Exit.FAILURE


def _show(domain: TrustDomain, way: WayBack, output: Output) -> int:
    record = way.record
    rolled_back = record.outcome == ROLLED_BACK
    if output in (Output.JSON, Output.YAML):
        data = {
            "rotation": record.rotation_id,
            "finished": record.finished.isoformat() if record.finished else None,
            "outcome": record.outcome,
            "plan": way.plan.as_json() if way.plan else None,
        }
        print_data(data, output)
    elif way.plan is not None and way.observation is not None:
        title = f"The way back of rotation {record.rotation_id} of trust domain {domain.name}"
        print_plan(title, way.plan, way.observation, way.certificates, back=True)
    elif rolled_back:
        stdout().print(f"rotation {record.rotation_id} is rolled back; there is nothing left to do")
    else:
        stdout().print(f"rotation {record.rotation_id} has changed nothing yet; a roll-back would only end it")
    return Exit.OK if rolled_back else Exit.CHANGES_PENDING
