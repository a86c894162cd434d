"""One Prefect server with its pages, a worker, and a browser for all tests of a worker."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.pages import CHROMIUM, PrefectPages, browser_page

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.prefect_deployment import Deployed


@pytest.fixture(scope="session")
def chromium() -> None:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"no browser at {CHROMIUM} (Debian's package chromium)")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the runs write: evidence, vault, diaries."""
    return tmp_path_factory.mktemp("capstan")


@pytest.fixture
def pages(deployed: Deployed) -> Iterator[PrefectPages]:
    with browser_page() as page:
        yield PrefectPages(page, deployed.ui_url)
