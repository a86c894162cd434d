"""The page of what is proven says what the tests say."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.proofs import PAGE, REPOSITORY, Proof, page

if TYPE_CHECKING:
    from pathlib import Path

MARKED = """
import pytest

pytestmark = [pytest.mark.slow]

@pytest.mark.proves("faults", "a | b", "said clearly")
def test_says_so(): ...

@pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.proves("faults", "a | b", "nothing lost"))])
def test_each(n): ...
"""


def made(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.support.proofs", *arguments],
        capture_output=True, text=True, check=False, cwd=REPOSITORY,
    )  # fmt: skip


@pytest.mark.slow
def test_the_page_is_the_one_that_the_tests_make() -> None:
    done = made()
    assert done.returncode == 0, done.stderr[-2000:]
    assert PAGE.read_text() == done.stdout, "run: python -m tests.support.proofs --write"


def test_a_row_is_told_once_with_all_that_was_shown_of_it() -> None:
    text = page(
        [
            Proof("faults", "a | b", "said clearly", "tests/x/test_marked.py::test_says_so", "slow"),
            Proof("faults", "a | b", "nothing lost", "tests/x/test_marked.py::test_each"),
        ]
    )
    assert text.count("a \\| b") == 1
    assert "| said clearly | [says so](../tests/x/test_marked.py) (slow) |" in text
    assert "| nothing lost | [each](../tests/x/test_marked.py) |" in text


@pytest.mark.slow
def test_marks_are_collected_from_wherever_pytest_finds_them_and_a_mark_of_no_kind_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "test_marked.py"
    file.write_text(MARKED)
    done = made("--of", str(tmp_path))
    assert "nothing lost | [each]" in done.stdout, done.stderr[-2000:]
    assert "(slow)" in done.stdout
    file.write_text(MARKED.replace('"faults"', '"fawlts"'))
    refused = made("--of", str(tmp_path))
    assert refused.returncode != 0
    assert "test_marked.py::test_each[1]" in refused.stdout + refused.stderr
