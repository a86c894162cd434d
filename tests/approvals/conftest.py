"""Keys that are costly to make are made once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.approvals import people

if TYPE_CHECKING:
    from capstan.approvals.sshsig import PrivateKey


@pytest.fixture(scope="session")
def every_key() -> dict[str, PrivateKey]:
    """One private key of each kind that may sign."""
    return people.keys()
