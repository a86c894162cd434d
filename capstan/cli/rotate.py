"""`capstan rotate`: run a rotation here, watched by whoever started it."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.panel import Panel
from rich.prompt import Confirm, Prompt
from rich.text import Text

from capstan.approvals import Approver, Decision, Request, decided_by, nobody
from capstan.cli import live, prefect_local
from capstan.cli.interrupts import leaving_at_once
from capstan.cli.live import Handshakes, TerminalWatcher
from capstan.cli.options import DomainOptions
from capstan.cli.output import Exit, Output, print_data, print_table, stderr
from capstan.config import TrustDomain
from capstan.progress import Watcher

if TYPE_CHECKING:
    from capstan.rotation import Outcome


def rotate(
    options: DomainOptions = DomainOptions(),  # noqa: B008  # frozen: cyclopts fills the fields in
    *,
    rotation: str | None = None,
    approve: Literal["ask", "auto"] = "ask",
    output: Annotated[Output, Parameter(alias="-o")] = Output.TABLE,
) -> int:
    """Rotate the trust anchor and issuer; killed anywhere and run again, it goes on.

    Parameters
    ----------
    rotation
        Id of the rotation. An unfinished one is gone on with; a new one is named after today (UTC) by default.
    approve
        ask: each phase that changes the mesh is shown and asked for on the terminal. auto: nobody is asked.
    output
        How the outcome is printed: table, json or yaml.
    """
    outcome = run_rotation(options.resolve(), rotation=rotation, approve=approve)
    _print_outcome(outcome, output)
    return Exit.OK if outcome.completed else Exit.FAILURE


def run_rotation(
    domain: TrustDomain,
    *,
    rotation: str | None,
    approve: Literal["ask", "auto"],
    title: str = "",
    handshakes: Callable[[], Handshakes | None] | None = None,
) -> Outcome:
    """Run the flow in this process.

    Raises:
        CapstanError: As the flow.
    """
    prefect_local.prepare(domain.home_path())
    with live.watching(title or f"rotation of trust domain {domain.name}", handshakes) as watcher:
        watcher.step("start Prefect")
        prefect_local.await_early_start()
        from flows.errors import prefect_errors
        from flows.linkerd import rotate_trust_anchor

        with leaving_at_once(), decided_by(_approver(approve, watcher)), prefect_errors("rotate with Prefect"):
            return rotate_trust_anchor(domain, rotation)


def _approver(approve: Literal["ask", "auto"], watcher: Watcher) -> Approver:
    if approve == "auto":
        return _automatic
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return nobody

    def ask(request: Request) -> Decision:
        paused = watcher.paused() if isinstance(watcher, TerminalWatcher) else nullcontext()
        with paused:
            console = stderr()
            console.print(Panel(Text(request.text), title=f"approve {request.gate}?", width=100))
            yes = Confirm.ask("Begin this phase", console=console, default=False)
            comment = Prompt.ask("Ticket or comment", console=console, default="")
        return Decision("approved" if yes else "rejected", by=_whoever(), at=datetime.now(UTC), comment=comment)

    return ask


def _automatic(request: Request) -> Decision:
    return Decision(
        "approved", by=f"--approve auto, given by {_whoever()}", at=datetime.now(UTC), comment=f"phase {request.gate}"
    )


def _whoever() -> str:
    """The user of this machine: a claim, as every name typed or inherited is."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown user"


def _print_outcome(outcome: Outcome, output: Output) -> None:
    if output not in (Output.TABLE, Output.SHORT):
        print_data(
            {
                "rotation": outcome.rotation,
                "completed": outcome.completed,
                "resumed": outcome.resumed,
                "phases": [{"name": phase.name, "seconds": round(phase.seconds, 3)} for phase in outcome.phases],
                "roots": {"before": list(outcome.roots_before), "after": list(outcome.roots_after)},
                "peers": outcome.peers,
                "old_root_refused": outcome.old_root_refused,
                "api_requests": outcome.api_requests,
                "evidence": outcome.evidence,
            },
            output,
        )
        return
    print_table(
        ("rotation", outcome.rotation),
        [
            ("completed", "yes" if outcome.completed else "no"),
            ("went on from an earlier run", "yes" if outcome.resumed else "no"),
            ("phases", ", ".join(f"{phase.name} {phase.seconds:.1f} s" for phase in outcome.phases)),
            ("roots before", ", ".join(root[:16] for root in outcome.roots_before)),
            ("roots after", ", ".join(root[:16] for root in outcome.roots_after)),
            ("live proxies", str(outcome.peers)),
            ("old root", "refused by every one" if outcome.old_root_refused else "not shown to be refused"),
            ("API requests", str(outcome.api_requests)),
            ("evidence", f"capstan evidence verify {outcome.evidence}"),
        ],
    )
