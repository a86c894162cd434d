"""One lab for all tests of a worker until one of them fails; every chain has a Prefect server of its own on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.labs import RunningLab, start_lab

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

# A leaf is renewed at 70 % of its life, and not while the API server is down (linkerd-identity asks it for a
# TokenReview); after a failure, as Linkerd's proxy does, at 70 % of what remains. So the remaining 30 % have to be
# several times longer than an outage, or handshakes fail that Capstan has nothing to do with. And the 70 % have to be
# longer than the kills around the switch of the issuer, so that there is something left to wait for.
LEAF_SECONDS = 90


_SPOILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and "lab" in getattr(item, "fixturenames", ()):
        item.session.stash[_SPOILED] = True
    return report


@pytest.fixture(scope="session")
def shared_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLab]:
    running = _started(tmp_path_factory)
    yield running
    running.stop()


@pytest.fixture
def lab(request: pytest.FixtureRequest, shared_lab: RunningLab, tmp_path_factory: pytest.TempPathFactory) -> RunningLab:
    """A lab that no failed case left in the middle of a rotation."""
    if request.session.stash.get(_SPOILED, False):
        shared_lab.stop()
        another = _started(tmp_path_factory)
        shared_lab.directory, shared_lab.process = another.directory, another.process
        request.session.stash[_SPOILED] = False
    return shared_lab


def _started(directories: pytest.TempPathFactory) -> RunningLab:
    options = ["--size", "small", "--leaf-seconds", str(LEAF_SECONDS), "--probes-per-second", "20"]
    return start_lab(directories.mktemp("lab"), *options, program=("infra.lab",))
