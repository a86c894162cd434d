"""The table of what is proven: one row for each mark `proves(kind, row, what)` of a test.

    python -m tests.support.proofs          print docs/coverage.md
    python -m tests.support.proofs --write  write it

The marks are read from the source, so that the table costs no import and no test needs to run for it; that each of the
tests passes is the business of `make test`, `make test-slow` and `make test-long`.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "coverage.md"
TITLES = {
    "checks": "Checks",
    "owners": "Owners",
    "workloads": "Workloads",
    "versions": "Versions",
    "identity": "Identity",
    "faults": "Faults",
    "api": "The API server",
}
HEAD = """# What is proven, and by which test

Each row is a claim about Capstan or its lab, with the tests that prove it. The page is made from the tests themselves
(`python -m tests.support.proofs --write`); a test fails when the two differ. `slow` tests are run by continuous
integration, `long` ones by `make test-long`.
"""


@dataclass(frozen=True, order=True)
class Proof:
    """One mark.

    Attributes:
        kind: A key of `TITLES`.
        row: What the claim is about, such as the description of a check.
        what: What was shown.
        test: `tests/.../test_file.py::test_name`; the file alone for a mark outside of a test function.
        marks: `slow` or `long`, where the test has them.
    """

    kind: str
    row: str
    what: str
    test: str
    marks: str = ""


class UnreadableMarkError(ValueError):
    """A mark that is not three literal texts of a known kind."""


def proofs(directory: Path = REPOSITORY / "tests") -> list[Proof]:
    """Every mark under a directory, sorted.

    Raises:
        UnreadableMarkError: One cannot be read; names the file and line.
    """
    return sorted(proof for file in sorted(directory.rglob("test_*.py")) for proof in _of_file(file))


def page(found: list[Proof]) -> str:
    """docs/coverage.md."""
    parts = [HEAD]
    for kind, title in TITLES.items():
        rows: dict[str, dict[str, list[Proof]]] = defaultdict(lambda: defaultdict(list))
        for proof in found:
            if proof.kind == kind:
                rows[proof.row][proof.what].append(proof)
        if not rows:
            continue
        parts.append(f"\n## {title}\n\n| | shown | by |\n|---|---|---|\n")
        for row in rows:
            for number, (what, by) in enumerate(rows[row].items()):
                tests = "<br>".join(f"{_link(proof)}{f' ({proof.marks})' if proof.marks else ''}" for proof in by)
                parts.append(f"| {_cell(row) if number == 0 else ''} | {_cell(what)} | {tests} |\n")
    return "".join(parts)


def _of_file(file: Path) -> Iterator[Proof]:
    tree = ast.parse(file.read_text(), str(file))
    name = file.relative_to(REPOSITORY).as_posix() if file.is_relative_to(REPOSITORY) else file.name
    everywhere = _marks([node for node in tree.body if isinstance(node, ast.Assign)])
    for node in tree.body:
        function = node if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else None
        test = f"{name}::{function.name}" if function else name
        marks = everywhere or (_marks(function.decorator_list) if function else "")
        for call in _calls(node):
            texts = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
            if len(texts) != 3 or not all(isinstance(text, str) for text in texts) or texts[0] not in TITLES:
                raise UnreadableMarkError(
                    f"{name}:{call.lineno}: proves(kind, row, what) of literal texts, {[*TITLES]}"
                )
            kind, row, what = (str(text) for text in texts)
            yield Proof(kind, row, what, test, marks)


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    for each in ast.walk(node):
        if isinstance(each, ast.Call) and isinstance(each.func, ast.Attribute) and each.func.attr == "proves":
            yield each


def _marks(nodes: list[ast.Assign] | list[ast.expr]) -> str:
    attributes = {each.attr for node in nodes for each in ast.walk(node) if isinstance(each, ast.Attribute)}
    return "long" if "long" in attributes else "slow" if "slow" in attributes else ""


def _link(proof: Proof) -> str:
    file, _, function = proof.test.partition("::")
    return f"[{(function or Path(file).name).replace('_', ' ').removeprefix('test ')}](../{file})"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Print or write the page."""
    text = page(proofs())
    if "--write" in sys.argv[1:]:
        PAGE.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
