"""The page of what is proven says what the tests say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.proofs import PAGE, UnreadableMarkError, page, proofs

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


def test_the_page_is_the_one_that_the_tests_make() -> None:
    assert PAGE.read_text() == page(proofs()), "run: python -m tests.support.proofs --write"


def test_a_row_is_told_once_with_all_that_was_shown_of_it(tmp_path: Path) -> None:
    (tmp_path / "test_marked.py").write_text(MARKED)
    text = page(proofs(tmp_path))
    assert text.count("a \\| b") == 1
    assert "| said clearly | [says so](../test_marked.py) (slow) |" in text
    assert "| nothing lost | [each](../test_marked.py) (slow) |" in text


def test_a_mark_that_is_no_literal_text_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "test_marked.py").write_text(MARKED.replace('"said clearly"', "WHAT"))
    with pytest.raises(UnreadableMarkError, match=r"test_marked.py:7"):
        proofs(tmp_path)
