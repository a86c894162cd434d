"""Ctrl-C and SIGTERM: the rotation leaves within seconds, and goes on when it is run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from capstan.cli.output import Exit

if TYPE_CHECKING:
    from tests.rotation.rotations import Rotations

LEAVES_WITHIN = 10.0  # seconds; Prefect's own unwinding took minutes, waiting for a server that got the same signal


@pytest.mark.slow
def test_an_interrupted_rotation_leaves_at_once_gives_back_its_lease_and_goes_on_when_run_again(
    rotations: Rotations,
) -> None:
    code, said = stopped_while_it_restarts(rotations, signal.SIGINT)
    assert code == Exit.INTERRUPTED, said
    assert "run the same command again" in said
    leases = "/apis/coordination.k8s.io/v1/namespaces/capstan-system/leases"
    lease = rotations.lab.call("GET", f"{leases}/capstan-rotation-linkerd")
    assert not lease["spec"].get("holderIdentity")
    rotations.require_finished(rotations.run())


@pytest.mark.slow
def test_a_terminated_rotation_ends_at_once_and_its_lease_is_taken_over_when_it_is_run_again(
    rotations: Rotations,
) -> None:
    code, said = stopped_while_it_restarts(rotations, signal.SIGTERM)
    assert code == -signal.SIGTERM, said
    rotations.require_finished(rotations.run())


def stopped_while_it_restarts(rotations: Rotations, number: signal.Signals) -> tuple[int, str]:
    """(exit code, what it said) of a rotation that gets a signal, as on a terminal: its whole process group does."""
    # A process of its own, with Prefect's temporary server, in a group of its own.
    process = subprocess.Popen(
        [sys.executable, "-m", "capstan.cli", "rotate", "--rotation", rotations.rotation, "--approve", "auto"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True, start_new_session=True,
        env={**os.environ, "CAPSTAN_HOME": str(rotations.home), "KUBECONFIG": str(rotations.lab.kubeconfig)},
    )  # fmt: skip
    lines: list[str] = []
    restarting = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if "restart workloads" in line:
                restarting.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert restarting.wait(180), "".join(lines)
        os.killpg(process.pid, number)
        code = process.wait(LEAVES_WITHIN)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    reader.join(5)
    return code, "".join(lines)
