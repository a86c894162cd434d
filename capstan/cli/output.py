"""How answers are printed: kubectl's habits (`-o table|json|yaml|short`), errors on stderr, telling exit codes."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from enum import IntEnum, StrEnum
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from capstan import errors


class Output(StrEnum):
    """Formats of `-o`."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    SHORT = "short"


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0
    FAILURE = 1
    CHANGES_PENDING = 2
    GATE_REFUSED = 3
    WAITING_FOR_APPROVAL = 4
    INTERRUPTED = 130


def exit_code(error: errors.CapstanError) -> Exit:
    """The exit code that tells a script what kind of failure this was."""
    if isinstance(error, errors.ApprovalRequired):
        return Exit.WAITING_FOR_APPROVAL
    if isinstance(error, errors.GateRefused | errors.GateTimedOut | errors.NotYet | errors.VerificationFailed):
        return Exit.GATE_REFUSED
    return Exit.FAILURE


# Where nobody can be asked how wide the screen is: wide enough for every table, narrow enough for a review comment.
_WIDTH = 100


def stdout() -> Console:
    """The console for answers; plain when it is no terminal."""
    return _console(sys.stdout)


def stderr() -> Console:
    """The console for progress and errors."""
    return _console(sys.stderr)


def _console(file: IO[str]) -> Console:
    # COLUMNS is honoured by rich; markup is off because names and messages may hold square brackets, emoji because
    # what was read may hold ":x:".
    width = None if file.isatty() or "COLUMNS" in os.environ else _WIDTH
    return Console(file=file, highlight=False, markup=False, emoji=False, width=width)


def print_error(error: errors.CapstanError) -> None:
    """An error as a person reads it: what and where first, then observed, expected, next command."""
    console = stderr()
    where = f" ({error.where})" if error.where else ""
    console.print(Text.assemble(("error: ", "bold red"), error.what + where))
    for label, value in (("observed", error.observed), ("expected", error.expected), ("next", error.next_command)):
        if value:
            # A grid, so that a second line stands under the first; what was read elsewhere keeps its own lines.
            grid = Table.grid(padding=(0, 1, 0, 0))
            grid.add_column(width=10, no_wrap=True, style="dim")
            grid.add_column(overflow="fold")
            grid.add_row(f"  {label}", value)
            console.print(grid)


def print_data(value: Any, output: Output) -> None:
    """A value as JSON or YAML, for programs."""
    if output is Output.YAML:
        from ruamel.yaml import YAML

        buffer = io.StringIO()
        yaml = YAML(typ="safe")
        yaml.default_flow_style = False
        yaml.dump(json.loads(json.dumps(value)), buffer)
        sys.stdout.write(buffer.getvalue())
    else:
        sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, upper: bool = True) -> None:
    """Rows under upper-case titles without borders, as kubectl prints them; fits 100 columns by folding cells."""
    table = Table(box=None, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 3, 0, 0))
    for column in columns:
        table.add_column(column.upper() if upper else column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    stdout().print(table)
