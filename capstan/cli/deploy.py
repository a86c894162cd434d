"""`capstan deploy`: bring an inventory to Prefect; what would change is shown first."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.prompt import Confirm
from rich.text import Text

from capstan.cli import prefect_server
from capstan.cli.inventory import spoken
from capstan.cli.output import Exit, Output, print_data, stderr, stdout
from capstan.errors import Conflict, InvalidInput, Permanent

if TYPE_CHECKING:
    from deployments.apply import Plan
    from deployments.inventory import Inventory

_MARKS = {
    "create": ("+", "green"), "change": ("~", "yellow"), "remove": ("-", "red"), "unchanged": ("=", "dim"),
    "left": ("!", "yellow"), "busy": ("!", "bold red"), "taken": ("!", "bold red"),
}  # fmt: skip
_LONG = 90  # characters of one line of a difference


def deploy(
    file: Path,
    *,
    yes: Annotated[bool, Parameter(alias="-y", negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    prune: Annotated[bool, Parameter(negative=())] = False,
    force_prune: Annotated[bool, Parameter(negative=())] = False,
    adopt: Annotated[bool, Parameter(negative=())] = False,
    output: Annotated[Output, Parameter(alias="-o")] = Output.TABLE,
) -> int:
    """Make Prefect's deployments, work pools and notifications what an inventory says; a second time does nothing.

    Exit 2: changes are pending, and were not made (with --dry-run, or answered with no).

    Parameters
    ----------
    file
        The inventory, a YAML file.
    yes
        Do not ask.
    dry_run
        Show what would be done, and do nothing.
    prune
        Remove what left the inventory. What still has an unfinished run is not removed.
    force_prune
        As --prune, and also what has an unfinished run: such a run cannot be resumed any more.
    adopt
        Take over deployments of the same names that another inventory, or nobody, made.
    output
        table, json or yaml.
    """
    from deployments.reading import load

    inventory = load(file)
    with prefect_server.connected("the inventory cannot be deployed") as client:
        from deployments.apply import apply, plan

        planned = plan(client, inventory, file, prune=prune, force_prune=force_prune, adopt=adopt)
        for_programs = output in (Output.JSON, Output.YAML)
        if not for_programs:
            _print(planned, inventory)
        _refuse_blocked(planned, file)
        applied = planned.pending and not dry_run and _agreed(yes)
        if applied:
            for change in apply(client, inventory, planned):
                if not for_programs:
                    stderr().print(f"{change.action.value}d {change.key}", style="dim")
            left = plan(client, inventory, file, prune=prune, force_prune=force_prune, adopt=adopt)
            if left.pending:
                raise Conflict(
                    "Prefect does not hold what was written",
                    where=", ".join(change.key for change in left.deployments if change.pending) or "notifications",
                    observed="a difference is left: somebody else edits, or this Prefect stores it in another form",
                    expected="no difference after a deploy",
                    next_command=f"capstan deploy {file} --dry-run",
                )
    if for_programs:
        print_data({"inventory": inventory.name, "applied": applied, **planned.as_json()}, output)
    elif applied:
        stdout().print("deployed")
    return Exit.CHANGES_PENDING if planned.pending and not applied else Exit.OK


def _agreed(yes: bool) -> bool:
    if yes:
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise InvalidInput(
            "the changes were not made",
            where="capstan deploy",
            observed="nobody can be asked: this is no terminal",
            expected="a yes to what is shown",
            next_command="the same command with --yes; or with --dry-run, to look only",
        )
    return Confirm.ask("Apply", console=stderr(), default=False)


def _refuse_blocked(planned: Plan, file: Path) -> None:
    if planned.blocked:
        raise Permanent(
            "nothing was deployed",
            where=str(file),
            observed="; ".join(planned.blocked),
            expected="names that are free or ours, and no unfinished run of what is to be removed",
            next_command="prefect deployment ls; then one of the options named above",
        )


def _print(planned: Plan, inventory: Inventory) -> None:
    console = stdout()
    console.print(f"Inventory {inventory.name} at {prefect_server.api_url()}")
    console.print()
    answer = planned.as_json()
    starts = _next_starts(inventory)
    counts: dict[str, int] = {}
    for kind, name in (("work_pools", "work_pool"), ("deployments", "deployment"), ("notifications", "name")):
        for change in answer[kind]:
            counts[change["action"]] = counts.get(change["action"], 0) + 1
            if change["action"] == "unchanged" and not change.get("notes"):
                continue
            title = f"{'work pool ' if kind == 'work_pools' else ''}{change[name]}"
            if kind == "notifications":
                title = f"{change['kind']} {title}"
            hint = starts.get(str(change[name]), "") if change["action"] != "left" else ""
            _print_change(change, title, hint)
    if counts.keys() - {"unchanged"}:
        console.print()
    order = ("create", "change", "remove", "unchanged", "left", "busy", "taken")
    console.print(", ".join(f"{counts[action]} to {action}" if action in order[:3] else f"{counts[action]} {action}"
                            for action in order if action in counts))  # fmt: skip


def _print_change(change: Mapping[str, Any], title: str, hint: str) -> None:
    console = stdout()
    mark, style = _MARKS[change["action"]]
    line = Text.assemble((f"{mark} ", style), (title, "dim" if change["action"] == "unchanged" else ""))
    if hint:
        line.append(f"  {hint}", style="dim")
    console.print(line)
    left = ("not in the inventory; --prune removes it",) if change["action"] == "left" else ()
    for note in change.get("notes") or left:
        console.print(Text(f"    {note}", style="yellow"))
    if change["action"] == "change":
        for field in change["fields"]:
            _print_field(field)


def _print_field(field: Mapping[str, Any]) -> None:
    before, after = _shown(field["before"]), _shown(field["after"])
    console = stdout()
    if len(before) + len(after) + len(field["name"]) < 85:
        console.print(Text.assemble(f"    {field['name']}  ", (before, "red"), " -> ", (after, "green")))
        return
    console.print(f"    {field['name']}")
    same = next((at for at, (one, other) in enumerate(zip(before, after, strict=False)) if one != other), 0)
    for mark, style, value in (("-", "red", before), ("+", "green", after)):
        console.print(Text(f"      {mark} {_around(value, same)}", style=style))


def _around(text: str, same: int) -> str:
    """What fits a line of a long text, from a little before it differs."""
    begin = 0 if len(text) <= _LONG else max(0, same - 20)
    cut = text[begin : begin + _LONG]
    return f"{'…' if begin else ''}{cut}{'…' if begin + _LONG < len(text) else ''}"


def _shown(value: Any) -> str:
    if value is None:
        return "(none)"
    if isinstance(value, str):
        return " ".join(value.split()) or "(empty)"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value) or "(empty)"
    return json.dumps(value, sort_keys=True)


def _next_starts(inventory: Inventory) -> dict[str, str]:
    from deployments.entrypoints import FLOWS
    from deployments.timetable import intermediates, timetable, upcoming

    now = datetime.now(UTC)
    starts = timetable(inventory)
    halves = intermediates(inventory, starts)
    found: dict[str, str] = {}
    for entry in inventory.domains:
        system = entry.system
        for flow, start in (
            (FLOWS[system].root_name, starts.get(entry.name)),
            (FLOWS[system].intermediate_name, halves.get(entry.name)),
        ):
            if start is not None:
                found[f"{flow}/{entry.name}"] = f"next {spoken(upcoming(start, now)[0])} {start.time_zone}"
    return found
