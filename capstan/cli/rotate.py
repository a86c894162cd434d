"""`capstan rotate`: run a rotation here, watched by whoever started it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from cyclopts import Parameter

from capstan.approvals import decided_by
from capstan.cli import live, prefect_local
from capstan.cli.approving import ApprovalOptions
from capstan.cli.entry_points import OF, What, kind_of, phases_of, require_rotation, rotation_flow
from capstan.cli.interrupts import leaving_at_once
from capstan.cli.live import Handshakes
from capstan.cli.options import DomainOptions
from capstan.cli.outages import print_outages
from capstan.cli.output import Exit, Output, print_data, print_table
from capstan.config import TrustDomain, require_rotation_id
from capstan.errors import InvalidInput

if TYPE_CHECKING:
    from capstan.rotation import Outcome

_Result = TypeVar("_Result")


def rotate(
    options: DomainOptions = DomainOptions(),  # noqa: B008  # frozen: cyclopts fills the fields in
    *,
    what: What = What.ROOT,
    rotation: str | None = None,
    signed_chain: Path | None = None,
    approvals: ApprovalOptions = ApprovalOptions(),  # noqa: B008  # frozen, too
    take_over: Annotated[bool, Parameter(negative=())] = False,
    forward: Annotated[bool, Parameter(negative=())] = False,
    output: Annotated[Output, Parameter(alias="-o")] = Output.TABLE,
) -> int:
    """Rotate what --what names, the trust anchor and issuer unless told; killed anywhere and run again, it goes on.

    Parameters
    ----------
    what
        root, or anchor as Linkerd says: the trust anchor and the issuer. intermediate (Istio) or issuer (Linkerd): the
        issuer alone, under the present root. webhooks (Linkerd): the serving certificates of what the API server calls.
        expired (Linkerd): whatever has expired, anchor or issuer or leaves, at once and with the downtime there is.
        re-date (self-signed Istio): another life for the root's same key.
    rotation
        Id of the rotation. An unfinished one is gone on with; a new one is named after today (UTC) by default.
    signed_chain
        With --offline-root: the chain that `capstan sign` made of this rotation's requests.
    take_over
        Go on with a rotation that a run of a Prefect deployment has claimed: only if that run is never to go on.
    forward
        Turn a rotation that is being rolled back, and go forward again; everything is asked for anew.
    output
        How the outcome is printed: table, json or yaml.
    """
    if rotation is not None:
        require_rotation_id(rotation)
    domain = options.resolve()
    require_rotation(domain.system, what)
    if signed_chain is not None and not signed_chain.is_file():
        raise InvalidInput(
            "the signed chain is not there", where=str(signed_chain), observed="no such file",
            expected="what `capstan sign` wrote", next_command="capstan sign --help",
        )  # fmt: skip
    outcome = run_rotation(
        domain,
        what=what,
        rotation=rotation,
        signed_chain=signed_chain,
        approvals=approvals,
        take_over=take_over,
        forward=forward,
    )
    print_outcome(outcome, output)
    # A rejection may have taken it back; then what was asked for was not done.
    return Exit.OK if outcome.completed and outcome.direction == "forward" else Exit.FAILURE


def run_rotation(
    domain: TrustDomain,
    *,
    rotation: str | None,
    approvals: ApprovalOptions,
    what: What = What.ROOT,
    signed_chain: Path | None = None,
    take_over: bool = False,
    forward: bool = False,
    title: str = "",
    handshakes: Callable[[], Handshakes | None] | None = None,
) -> Outcome:
    """Run the flow in this process.

    Raises:
        CapstanError: As the flow.
    """
    from capstan.rotation.offline import signed_chain_at

    with signed_chain_at(signed_chain):
        return run_flow(
            domain,
            lambda: rotation_flow(domain.system, what),
            (rotation, take_over, forward),
            approvals=approvals,
            title=title or f"rotation{OF[kind_of(what)]} of trust domain {domain.name}",
            handshakes=handshakes,
            phases=phases_of(what),
        )


def run_flow(
    domain: TrustDomain,
    flow: Callable[[], Callable[..., _Result]],
    arguments: Sequence[Any],
    *,
    approvals: ApprovalOptions,
    title: str,
    doing: str = "the rotation was not run by Prefect",
    handshakes: Callable[[], Handshakes | None] | None = None,
    phases: Sequence[str] = (),
) -> _Result:
    """Run a flow of one domain in this process, watched and asked on the terminal.

    Args:
        flow: Imports the flow: Prefect is imported with it.
        arguments: What follows the domain.
        doing: What failed where Prefect itself does.
        phases: Those that will come, for the display.

    Raises:
        CapstanError: As the flow.
    """
    # What was written wrongly is said before Prefect is started, which takes seconds.
    approvals.require_key()
    prefect_local.prepare(domain.home_path())
    with live.watching(title, handshakes, phases) as watcher:
        watcher.step("start Prefect")
        prefect_local.await_early_start()
        from flows.errors import prefect_errors

        loaded = flow()
        with leaving_at_once(), decided_by(approvals.approver(watcher)), prefect_errors(doing):
            return loaded(domain, *arguments)


def _refused(outcome: Outcome) -> str:
    if outcome.old_root_refused:
        return "refused by every one"
    if outcome.completed:
        return "nowhere" if not outcome.roots_before else "refused by every one, as an earlier run has shown"
    return "not shown to be refused"


def print_outcome(outcome: Outcome, output: Output) -> None:
    """What a run came to, as a table or as data."""
    back = outcome.direction == "back"
    if output not in (Output.TABLE, Output.SHORT):
        print_data(
            {
                "rotation": outcome.rotation,
                "direction": outcome.direction,
                "completed": outcome.completed,
                "resumed": outcome.resumed,
                "phases": [{"name": phase.name, "seconds": round(phase.seconds, 3)} for phase in outcome.phases],
                "roots": {"before": list(outcome.roots_before), "after": list(outcome.roots_after)},
                "peers": outcome.peers,
                "old_root_refused": outcome.old_root_refused,
                "api_requests": outcome.api_requests,
                "evidence": outcome.evidence,
                "kind": outcome.kind,
                "issuers": list(outcome.issuers_after),
                **({"outages": [each.as_json() for each in outcome.outages]} if outcome.kind == "expired" else {}),
            },
            output,
        )
        return
    subject = "certificates" if outcome.kind == "webhooks" else "roots"
    print_table(
        ("ROTATION", outcome.rotation),
        [
            ("rolled back" if back else "completed", "yes" if outcome.completed else "no"),
            ("went on from an earlier run", "yes" if outcome.resumed else "no"),
            ("phases", ", ".join(f"{phase.name} {phase.seconds:.1f} s" for phase in outcome.phases)),
            (f"{subject} before", ", ".join(root[:16] for root in outcome.roots_before)),
            (f"{subject} after", ", ".join(root[:16] for root in outcome.roots_after)),
            ("serving processes" if outcome.kind == "webhooks" else "live proxies", str(outcome.peers)),
            _turned_away(outcome, back=back),
            ("API requests", str(outcome.api_requests)),
            ("evidence", f"capstan evidence verify {outcome.evidence}"),
        ],
        upper=False,
    )
    print_outages(outcome.outages)


def _turned_away(outcome: Outcome, *, back: bool) -> tuple[str, str]:
    if outcome.kind == "webhooks":
        which = "new certificates" if back else "old certificates"
        return which, "in no caBundle, and served by nobody" if outcome.completed else "still in use"
    if outcome.kind == "issuer":
        which = "new issuer" if back else "old issuer"
        return which, "signs no more; whoever trusts the root trusts it until it ends"
    if outcome.kind == "expired":
        if back:
            return "what has expired", "is still in place: nothing was changed"
        return "what had expired", "trusted by nobody any more" if outcome.completed else "still in place"
    if outcome.kind == "re-date":
        return "key", "the one there was: each of the two dates verifies what the other has signed"
    return ("new root" if back else "old root"), _refused(outcome)
