"""This flow run as the owner of a rotation, and what Prefect says of other runs that claim it."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.utilities.urls import url_for

from capstan.cluster.record import Claim
from flows.durable import deployed


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
