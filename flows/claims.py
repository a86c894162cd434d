"""This flow run as the owner of a rotation, and what Prefect says of other runs that claim it."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled
from prefect.utilities.urls import url_for

from capstan.cluster.record import Claim, RotationRecord
from capstan.errors import Retryable
from flows.durable import deployed
from flows.errors import prefect_errors
from flows.faults import has_tries_left

ROTATION_FLOWS = frozenset(
    {
        "linkerd-trust-anchor",
        "linkerd-issuer",
        "linkerd-webhooks",
        "linkerd-expired",
        "istio-root",
        "istio-intermediate",
        "istio-redate",
        "aks-istio-root",
        "aks-istio-intermediate",
    }
)
"""Names of the flows whose waiting runs a roll-back ends."""

_NOT_AT_WORK = frozenset({StateType.SCHEDULED, StateType.PENDING, StateType.PAUSED})


class FlowRunClaimant:
    """The flow run around the call. Only a deployed run claims: any other ends with its process."""

    def claim(self, at: datetime) -> Claim | None:
        """This run's claim."""
        context = FlowRunContext.get()
        if context is None or context.flow_run is None or not deployed():
            return None
        run = context.flow_run
        # Without a UI there is no URL, and Prefect warns instead of raising.
        return Claim(run=str(run.id), name=run.name, url=url_for(run) or "", at=at)

    def has_ended(self, claim: Claim) -> bool | None:
        """Whether that run's state is final, by the word of this run's Prefect server; None if it does not know it."""
        try:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(UUID(claim.run)).state
        except (ObjectNotFound, ValueError):
            return None
        return None if state is None else state.is_final()

    def comes_back(self, error: Exception) -> bool:
        """Whether it is a fault that may pass, and the run has tries left."""
        return isinstance(error, Retryable) and has_tries_left()


def cancel_waiting_run(record: RotationRecord) -> None:
    """End the run that has claimed the rotation, if it is a rotation's run that is not at work just now.

    It waits, or is suspended, or is about to go on; nothing is lost by ending it, for the rotation is in the cluster. A
    run that is at work holds the Lease and is left alone, and so is another roll-back.

    Raises:
        CapstanError: As `flows.errors.prefect_errors`.
    """
    claim = record.claim
    context = FlowRunContext.get()
    own = context.flow_run.id if context is not None and context.flow_run is not None else None
    if claim is None or record.finished is not None or claim.run == str(own):
        return
    with prefect_errors(f"cancel flow run {claim.name}"), get_client(sync_client=True) as client:
        try:
            run = client.read_flow_run(UUID(claim.run))
            flow = client.read_flow(run.flow_id)
        except (ObjectNotFound, ValueError):
            return  # another server's: whoever opens the rotation says so
        if flow.name not in ROTATION_FLOWS or run.state is None or run.state.type not in _NOT_AT_WORK:
            return
        cancelled: State[None] = Cancelled(message=f"flow run {own} rolls the rotation back")
        client.set_flow_run_state(run.id, cancelled, force=True)
