"""One lab for all tests of a worker; every chain has a Prefect server of its own on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.labs import RunningLab, start_lab

if TYPE_CHECKING:
    from collections.abc import Iterator

# A leaf is renewed at 70 % of its life, and not while the API server is down (linkerd-identity asks it for a
# TokenReview); after a failure, as Linkerd's proxy does, at 70 % of what remains. So the remaining 30 % have to be
# several times longer than an outage, or handshakes fail that Capstan has nothing to do with. And the 70 % have to be
# longer than the kills around the switch of the issuer, so that there is something left to wait for.
LEAF_SECONDS = 90


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    options = ["--size", "small", "--leaf-seconds", str(LEAF_SECONDS), "--probes-per-second", "20"]
    running = start_lab(tmp_path_factory.mktemp("lab"), *options, program=("infra.lab",))
    yield running
    running.stop()
