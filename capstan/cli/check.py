"""`capstan check`: is this mesh fit to be rotated, and does it work? Read-only; starts without Prefect."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from capstan.cli.options import DomainOptions
from capstan.cli.output import Exit, Output, print_data, stdout
from capstan.cli.rbac import For, check_rights
from capstan.config import System
from capstan.errors import InvalidInput
from capstan.systems.base import RECENT, CheckResult, Severity, Status, observe_domain
from capstan.systems.linkerd.checks_clusters import shared_anchors
from capstan.systems.opening import open_systems

_MARKS = {
    Status.OK: Text("√", style="green"),
    Status.WARNING: Text("‼", style="yellow"),
    Status.ERROR: Text("×", style="bold red"),
    Status.SKIPPED: Text("-", style="dim"),
}


def check(
    options: DomainOptions = DomainOptions(),  # noqa: B008  # frozen: cyclopts fills the fields in
    *,
    output: Annotated[Output, Parameter(alias="-o")] = Output.TABLE,
    since: timedelta = RECENT,
    rbac: Annotated[bool, Parameter(negative=())] = False,
    for_: Annotated[For, Parameter(name="--for")] = For.ROTATE,
) -> int:
    """Check the trust domain on evidence read from every live proxy; exit 1 if a check fails.

    Warnings do not change the exit code. Where `linkerd check` would come to another verdict, the output says so.

    Parameters
    ----------
    output
        table, json, yaml, or short (only what is not ok).
    since
        How far back Events and crashes count: 30m, 24h. What is live is judged as it is now.
    rbac
        Check rights instead: ask the API server for each one that reading and rotating need, list what is missing, and
        print the roles that would grant it; exit 1 if anything is.
    for_
        With --rbac: what the caller is to be able to do. With `read`, rights that only a rotation needs may be missing;
        `webhooks` is rotating Linkerd's webhook certificates, too.
    """
    if for_ is not For.ROTATE and not rbac:
        raise InvalidInput(
            "--for goes with --rbac", where="--for", observed=for_.value, expected="--rbac beside it",
            next_command=f"capstan check --rbac --for {for_.value}",
        )  # fmt: skip
    if since <= timedelta(0):
        raise InvalidInput(
            "nothing can be looked back on",
            where="--since",
            observed=str(since),
            expected="a duration above zero, such as 30m or 24h",
            next_command="capstan check --since 24h",
        )
    domain = options.resolve()
    if rbac:
        return check_rights(domain, for_, output)
    clusters, systems = open_systems(domain)
    try:
        results = {name: system.checks(now=datetime.now(UTC), since=since) for name, system in systems.items()}
        if len(systems) > 1 and domain.system is System.LINKERD:
            results["all clusters"] = (shared_anchors(observe_domain(tuple(systems.values())).clusters),)
    finally:
        for cluster in clusters.values():
            cluster.close()
    failed = any(_fails(result) for found in results.values() for result in found)
    if output in (Output.JSON, Output.YAML):
        print_data(_as_data(results, failed), output)
    else:
        for name, found in results.items():
            _print_cluster(name if len(results) > 1 else "", found, short=output is Output.SHORT)
        stdout().print(Text("Status check results are " + ("×" if failed else "√"), style="bold"))
    return Exit.FAILURE if failed else Exit.OK


def _fails(result: CheckResult) -> bool:
    return result.status is Status.ERROR and result.level is not Severity.WARNING


def _as_data(results: dict[str, tuple[CheckResult, ...]], failed: bool) -> dict[str, object]:
    return {
        "schemaVersion": 1,
        "success": not failed,
        "clusters": [
            {
                "name": name,
                "checks": [
                    {
                        "category": result.category,
                        "description": result.description,
                        "hint": result.hint,
                        "level": result.level.value,
                        "status": result.status.value,
                        "message": result.message,
                    }
                    for result in found
                ],
            }
            for name, found in results.items()
        ],
    }


def _print_cluster(name: str, found: tuple[CheckResult, ...], *, short: bool) -> None:
    console = stdout()
    category = ""
    rows: list[tuple[Text, Text]] = []

    def flush() -> None:
        if rows:
            title = f"{category} ({name})" if name else category
            console.print(Text(f"{title}\n{'-' * len(title)}", style="bold"))
            for mark, text in rows:
                grid = Table.grid(padding=(0, 1))
                grid.add_row(mark, text)
                console.print(grid)
            console.print()
            rows.clear()

    # Each category once, where its first check stands: the order of checks is that of what they need to read.
    places = {result.category: place for place, result in reversed(list(enumerate(found)))}
    for result in sorted(found, key=lambda result: places[result.category]):
        if short and result.status in (Status.OK, Status.SKIPPED):
            continue
        if result.category != category:
            flush()
            category = result.category
        text = Text(result.description)
        quiet = result.status in (Status.OK, Status.SKIPPED)
        if result.message:
            text.append(f"\n{result.message}", style="dim" if quiet else "")
        if not quiet:
            text.append(f"\nsee {result.hint} for hints", style="dim")
        rows.append((_MARKS[result.status], text))
    flush()
