"""`capstan inventory validate|show|schema`: a file of trust domains, before it is deployed. No server is asked."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.table import Table
from rich.text import Text

from capstan.cli.output import Exit, Output, print_data, print_table, stderr, stdout

app = App(name="inventory")


@app.command
def validate(file: Path, *, output: Annotated[Output, Parameter(alias="-o")] = Output.TABLE) -> int:
    """Say everything that is wrong with an inventory, each with line and field; exit 1 if it has an error.

    Parameters
    ----------
    file
        The inventory, a YAML file.
    output
        table, json or yaml.
    """
    from deployments.reading import read

    reading = read(file)
    if output in (Output.JSON, Output.YAML):
        print_data({"file": str(file), "problems": [problem.as_json() for problem in reading.problems]}, output)
        return Exit.FAILURE if reading.errors else Exit.OK
    console = stdout()
    for problem in reading.problems:
        style = "bold red" if problem.level == "error" else "bold yellow"
        head = Text.assemble(f"{file}:{problem.line}:{problem.column}: ", (problem.level, style))
        console.print(head.append(f": {problem.field}" if problem.field else ""))
        for label, text in (("given", problem.given), ("expected", problem.expected)):
            line = Table.grid(padding=(0, 1))
            line.add_row(Text(f"  {label:<8}", style="dim"), text)
            console.print(line)
    warnings = len(reading.problems) - len(reading.errors)
    counts = f"{_counted(len(reading.errors), 'error')}, {_counted(warnings, 'warning')}"
    domains = f"{_counted(len(reading.inventory.domains), 'trust domain')}, " if reading.inventory else ""
    console.print(f"{file}: {domains}{counts}")
    return Exit.FAILURE if reading.errors else Exit.OK


@app.command
def show(file: Path, *, years: int = 2, output: Annotated[Output, Parameter(alias="-o")] = Output.TABLE) -> int:
    """Show when each domain is rotated next; Prefect itself shows a run only 100 days before it.

    Parameters
    ----------
    file
        The inventory, a YAML file.
    years
        How many starts are shown of each domain.
    output
        table, json or yaml.
    """
    from deployments.reading import load
    from deployments.timetable import timetable, upcoming

    inventory = load(file)
    starts = timetable(inventory)
    now = datetime.now(UTC)
    rows: list[dict[str, Any]] = []
    for entry in inventory.domains:
        start = starts.get(entry.name)
        rows.append({
            "domain": entry.name,
            "starts": [moment.isoformat() for moment in upcoming(start, now, years)] if start else [],
            "week": start.week if start else None,
            "chosen_by": start.how if start else "disabled",
            "time_zone": inventory.zone(entry),
            "maintenance_window": str(inventory.window(entry)),
            "work_pool": inventory.pool(entry),
            "clusters": [cluster.name for cluster in entry.clusters],
        })  # fmt: skip
    rows.sort(key=lambda row: (not row["starts"], row["starts"]))
    if output in (Output.JSON, Output.YAML):
        print_data({"inventory": inventory.name, "domains": rows}, output)
        return Exit.OK
    print_table(
        ("domain", "next starts", "week", "window", "time zone", "pool"),
        [
            (
                str(row["domain"]),
                "\n".join(spoken(datetime.fromisoformat(start)) for start in row["starts"]) or "by hand",
                f"{row['week'] or '-'} ({row['chosen_by']})",
                str(row["maintenance_window"]),
                str(row["time_zone"]),
                str(row["work_pool"]),
            )
            for row in rows
        ],
    )
    return Exit.OK


@app.command
def schema(*, output: Annotated[Literal["json", "yaml"], Parameter(alias="-o")] = "json") -> int:
    """Print the JSON Schema of an inventory, for editors.

    Parameters
    ----------
    output
        json or yaml.
    """
    from deployments.inventory import schema as inventory_schema

    print_data(inventory_schema(), Output(output))
    if sys.stdout.isatty():
        stderr().print("# for editors: capstan inventory schema > inventory.schema.json, and as the file's first line")
        stderr().print("# yaml-language-server: $schema=inventory.schema.json", highlight=False)
    return Exit.OK


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def spoken(moment: datetime) -> str:
    """A moment with its day of the week, in its own zone's time."""
    return f"{moment:%a %Y-%m-%d %H:%M}"
