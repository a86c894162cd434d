"""What is wrong with an inventory: each problem with its line, the field, what was given and what is expected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing an author has to change (error), or should look at (warning).

    Attributes:
        level: error or warning.
        line: Line in the file, from 1.
        column: Column in that line, from 1.
        path: The field, such as `("domains", 0, "policy", "quorum")`; empty for the file as a whole.
        given: What is there.
        expected: What belongs there.
    """

    level: Literal["error", "warning"]
    line: int
    column: int
    path: Path
    given: str
    expected: str

    @property
    def field(self) -> str:
        """The path as people write it: `domains[0].policy.quorum`."""
        text = ""
        for part in self.path:
            text += f"[{part}]" if isinstance(part, int) else f".{part}"
        return text.removeprefix(".")

    def as_json(self) -> dict[str, str | int]:
        """As plain data."""
        return {
            "level": self.level, "line": self.line, "column": self.column,
            "field": self.field, "given": self.given, "expected": self.expected,
        }  # fmt: skip
