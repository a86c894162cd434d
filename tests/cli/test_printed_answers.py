"""How checks and errors look on a screen of 100 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstan.cli.check import _print_cluster
from capstan.cli.output import print_error
from capstan.errors import InvalidInput
from capstan.systems.base import CheckResult, Severity, Status

if TYPE_CHECKING:
    import pytest


def check(category: str, description: str) -> CheckResult:
    return CheckResult(category, description, "https://hint", Severity.WARNING, Status.OK, "")


def test_a_category_of_checks_is_printed_once_and_in_the_order_in_which_they_were_made(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _print_cluster("", (check("viz", "a"), check("trust", "b"), check("viz", "c"), check("trust", "d")), short=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if line and set(line) != {"-"}]
    assert lines == ["viz", "√ a", "√ c", "trust", "√ b", "√ d"]


def test_a_long_line_of_an_error_goes_on_under_its_beginning_and_within_100_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_error(InvalidInput("no", observed="word " * 60, expected="one\ntwo", next_command="capstan status"))
    lines = [line.rstrip() for line in capsys.readouterr().err.splitlines()]
    assert lines[0] == "error: no"
    assert lines[1].startswith("  observed word")
    assert all(line.startswith(" " * 11 + "word") for line in lines[2:4])
    assert lines[-3:] == ["  expected one", "           two", "  next     capstan status"]
    assert max(map(len, lines)) <= 100
