"""The phases that are the same whichever system is rotated, and what every phase is made of.

Each flow puts them in its vendor's order, and says what they are on its vendor's page. Every function here leaves alone
what is true already, so that a phase may be taken again from its beginning.
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


def issue(rotation: Rotation) -> None:
    """Every issuer := the new one while every bundle holds old and new; ends when nobody presents a leaf of the old."""
    with rotation.phase(Phase.ISSUE):
        cleared(rotation, Phase.ISSUE)
        _switch_issuers(rotation)
        await_gate(rotation, Phase.DISTRUST)


def renew(rotation: Rotation) -> None:
    """Every issuer := another one under the same root; ends when nobody presents a leaf of the one before."""
    with rotation.phase(Phase.ISSUE):
        cleared(rotation, Phase.ISSUE)
        _switch_issuers(rotation)
        await_gate(rotation, Phase.DONE)


def distrust(rotation: Rotation) -> None:
    """Every bundle := new alone; ends when every live trust store is that, and a leaf of the old root was refused."""
    with rotation.phase(Phase.DISTRUST):
        if steps.locate(rotation) is not Phase.DONE:
            cleared(rotation, Phase.DISTRUST)
            narrowed(rotation)
        else:
            taken_over_unseen(rotation, Phase.DISTRUST)
        refusal_proven(rotation)


def narrowed(rotation: Rotation) -> None:
    """Every bundle := what is to stay, taken over by everything that signs, and by the workloads."""
    for cluster in rotation.systems:
        steps.narrow_bundle(rotation, cluster)
    rolled_out(rotation, Phase.DISTRUST)


def taken_over_unseen(rotation: Rotation, phase: Phase) -> None:
    """See to what no proxy shows, where a run was killed right after a write and proxies followed by themselves.

    Whom istiod lets in, ztunnels that ask by the roots of their start, ConfigMaps and webhooks. Does nothing twice.
    """
    if rotation.signers_admit_as_they_began:
        for cluster in rotation.systems:
            steps.restart_control_plane(rotation, cluster, phase)


def refusal_proven(rotation: Rotation) -> None:
    """Return when every live trust store is exactly what is to stay, and each live proxy refused a leaf of what goes.

    Raises:
        GateRefused, GateTimedOut: As `await_gate`.
        Pause: The process is left; the run goes on later.
    """
    await_convergence(rotation)
    steps.prove_refusal(rotation)
    await_gate(rotation, Phase.DONE)


def _switch_issuers(rotation: Rotation) -> None:
    for cluster in rotation.systems:
        steps.back_up_issuer(rotation, cluster)  # the way back
        steps.switch_issuer(rotation, cluster)  # refused while any live proxy or signer would not trust it
        steps.restart_control_plane(rotation, cluster, Phase.ISSUE)
        if rotation.restarts_workloads(Phase.ISSUE):
            steps.restart_data_plane(rotation, cluster, Phase.ISSUE)
