"""What the evidence tests share: a clock that ticks, a signer, a finished account."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from capstan.evidence import Evidence
from capstan.evidence.signer import Signer, mint_signing_key
from tests.evidence.ticking import Clock

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer(mint_signing_key())


@pytest.fixture
def account(tmp_path: Path, signer: Signer) -> Path:
    """A finished account of six lines."""
    path = tmp_path / "r-1.jsonl"
    evidence = Evidence.open(path, signer, "r-1", clock=Clock())
    evidence.append("planned", {"digest": "ab" * 32, "clusters": ["east", "west"]})
    evidence.append("phase", {"phase": "trust", "proxies": {"trusting": 40, "of": 40}})
    evidence.append("phase", {"phase": "issue", "bound": None, "seconds": 1.25})
    evidence.append("phase", {"phase": "distrust", "refused": True})
    evidence.finish("done", {"roots": ["cd" * 32]})
    return path
