"""A Linkerd whose CLI made its certificates: one is both anchor and issuer, until a rotation gives it a hierarchy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from capstan.pki.inspect import Certificate
from capstan.vaults.opening import open_vault
from tests.rotation.rotations import Rotations, wait_for
from tests.support.labs import RunningLab, start_lab

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.rotation.runner import Runner

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture
def default_install(tmp_path: Path) -> Iterator[RunningLab]:
    options = ["--size", "small", "--leaf-seconds", "40", "--probes-per-second", "30", "--default-certificates"]
    running = start_lab(tmp_path / "lab", *options, program=("infra.lab",))
    yield running
    running.stop()


@pytest.mark.proves("owners", "CLI, default certificates", "an anchor that signs leaves itself gets an issuer below it")
def test_an_anchor_that_is_its_own_issuer_is_said_to_be_and_turned_into_a_hierarchy(
    default_install: RunningLab, runner: Runner, tmp_path: Path
) -> None:
    case = Rotations(default_install, runner, tmp_path / "home", "proper")
    case.forget_earlier()
    issuers = {pod["leaf"]["issuer"] for pod in default_install.pods()}
    assert issuers == case.old, "the lab's anchor does not sign its leaves itself"
    # 1. There is no issuer to rotate: refused, with what to run instead, and nothing is changed.
    refused = case.run("--what", "issuer", rotation="alone")
    assert refused.code != 0
    assert "leaves are signed by the root itself" in refused.stderr, refused.stderr[-2000:]
    assert "capstan rotate --what" in " ".join(refused.stderr.split())  # lines are broken anywhere
    assert case.live_roots() == case.old
    # 2. Anchor and issuer together: a root whose key is in the vault alone, and an issuer of its own.
    case.forget_earlier()
    ran = case.run("--what", "anchor")
    case.require_finished(ran)
    vault = open_vault(f"local:{case.home / 'vault'}")
    (reference,) = case.minted_roots()
    root = Certificate.from_pem(vault.get(reference).certificate_pem, "the vault")
    assert root.common_name.startswith("root.linkerd.cluster.local")
    assert {pod["leaf"]["issuer"] for pod in default_install.pods()}.isdisjoint(case.live_roots())
    # 3. And back: one certificate is both again, the one there was, and nobody was dropped on the way.
    case.require_rolled_back(case.roll_back())
    wait_for(
        lambda: {pod["leaf"]["issuer"] for pod in default_install.pods() if not pod["stopping"]} == issuers,
        "leaves of the anchor itself",
    )
