"""What the phases of a rotation are made of, whichever system it is of; each flow puts it in its vendor's order.

Every function here leaves alone what is true already, so that a phase may be taken again from its beginning.
"""

from __future__ import annotations

from capstan.rotation import Rotation
from capstan.trust.phase import Phase
from flows.approval import approved
from flows.waiting import await_convergence, await_gate, await_window
from tasks import steps


def cleared(rotation: Rotation, phase: Phase) -> None:
    """Return when a phase may begin: on evidence, with a person's word, and inside the domain's maintenance window.

    Raises:
        GateRefused, GateTimedOut: As `await_gate`.
        ApprovalRequired, ApprovalRejected: As `approved`.
        Pause: The process is left; the run goes on later.
    """
    await_gate(rotation, phase)
    approved(rotation, phase)
    await_window(rotation, phase)


def rolled_out(rotation: Rotation, phase: Phase) -> None:
    """Have what was written taken over by everything that signs, and then by the workloads, cluster by cluster.

    Workloads are started anew where only that gives it to them, and where the domain's policy does not wait for leaves.
    """
    for cluster in rotation.systems:
        steps.restart_control_plane(rotation, cluster, phase)
        if rotation.restarts_workloads(phase):
            steps.restart_data_plane(rotation, cluster, phase)


def issuers_switched(rotation: Rotation) -> None:
    """Replace each cluster's issuer, keeping the one before it, and have it taken over before the next cluster's is."""
    for cluster in rotation.systems:
        steps.back_up_issuer(rotation, cluster)  # the way back
        steps.switch_issuer(rotation, cluster)  # refused while any live proxy or signer would not trust it
        steps.restart_control_plane(rotation, cluster, Phase.ISSUE)
        if rotation.restarts_workloads(Phase.ISSUE):
            steps.restart_data_plane(rotation, cluster, Phase.ISSUE)


def refusal_proven(rotation: Rotation) -> None:
    """Return when every live trust store is exactly what is to stay, and each live proxy refused a leaf of what goes.

    Raises:
        GateRefused, GateTimedOut: As `await_gate`.
        Pause: The process is left; the run goes on later.
    """
    await_convergence(rotation)
    steps.prove_refusal(rotation)
    await_gate(rotation, Phase.DONE)
