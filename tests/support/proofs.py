"""The table of what is proven: one row for each mark `proves(kind, row, what)` of a test.

    python -m tests.support.proofs          print docs/coverage.md
    python -m tests.support.proofs --write  write it

Tests are collected for it and not run; that each of them passes is the business of `make test`, `make test-slow` and
`make test-long`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

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
    """A mark that is not three texts of a known kind."""


class Collector:
    """A pytest plugin: collects tests, runs none, and keeps their marks."""

    def __init__(self) -> None:
        self.found: set[Proof] = set()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Called by pytest."""
        for item in session.items:
            test = f"{item.location[0]}::{getattr(item, 'originalname', item.name)}"
            run_by = next((name for name in ("long", "slow") if item.get_closest_marker(name)), "")
            for mark in item.iter_markers("proves"):
                if len(mark.args) != 3 or mark.args[0] not in TITLES or not all(isinstance(a, str) for a in mark.args):
                    raise UnreadableMarkError(
                        f"{item.nodeid}: expected proves(kind, row, what), kind one of {[*TITLES]}"
                    )
                self.found.add(Proof(*mark.args, test, run_by))


def proofs(directory: Path = REPOSITORY / "tests") -> list[Proof]:
    """Every mark of the tests under a directory, sorted.

    Raises:
        UnreadableMarkError: One cannot be read; names the test.
    """
    files = [str(file) for file in sorted(directory.rglob("test_*.py")) if "proves" in file.read_text()]
    collector = Collector()
    if files:
        # Whatever it prints goes with it; the page is all that is wanted of stdout.
        with contextlib.redirect_stdout(io.StringIO()) as said:
            code = pytest.main(["--collect-only", "-q", "-m", "", "-p", "no:cacheprovider", *files], [collector])
        if code != pytest.ExitCode.OK:
            raise UnreadableMarkError(said.getvalue())
    return sorted(collector.found)


def page(found: list[Proof]) -> str:
    """docs/coverage.md."""
    parts = [HEAD]
    for kind, title in TITLES.items():
        rows: dict[str, dict[str, list[Proof]]] = defaultdict(lambda: defaultdict(list))
        for proof in found:
            if proof.kind == kind:
                rows[_cell(proof.row)][_cell(proof.what)].append(proof)
        if not rows:
            continue
        parts.append(f"\n## {title}\n\n| | shown | by |\n|---|---|---|\n")
        for row in rows:
            for number, (what, by) in enumerate(rows[row].items()):
                tests = "<br>".join(f"{_link(proof)}{f' ({proof.marks})' if proof.marks else ''}" for proof in by)
                parts.append(f"| {row if number == 0 else ''} | {what} | {tests} |\n")
    return "".join(parts)


def _link(proof: Proof) -> str:
    file, _, function = proof.test.partition("::")
    return f"[{(function or Path(file).name).replace('_', ' ').removeprefix('test ')}](../{file})"


def _cell(text: str) -> str:
    # Certificates are made anew for every run: their fingerprints say nothing here.
    return re.sub(r"\b[0-9a-f]{8,}\b", "FINGERPRINT", text).replace("|", "\\|")


def main() -> None:
    """Print or write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.proofs", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/coverage.md")
    parser.add_argument("--of", type=Path, default=REPOSITORY / "tests", help="directory of the tests")
    arguments = parser.parse_args()
    text = page(proofs(arguments.of))
    if arguments.write:
        PAGE.write_text(text)
    else:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
