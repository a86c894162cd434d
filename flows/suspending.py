"""Asking for an approval by suspending the run: the form in the Prefect UI, and the same question in its REST API.

The form is stored before the run is suspended, and its answer is read under the name of this asking: killed at any
instruction, the run asks the same question again or finds the answer to it, and never takes an answer to another one.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectHTTPStatusError
from prefect.input.run_input import Keyset, keyset_from_paused_state
from prefect.states import Suspended
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from capstan.approvals import Choice, Decision, Request
from capstan.approvals.block import without_block
from flows import durable

_CHOICES: dict[str, Choice] = {"approve": "approved", "reject": "rejected", "hold": "held"}

_HOLD = "*hold*: not now; nothing changes, and the question is asked again."


class Answer(BaseModel):
    """What an approver fills in."""

    model_config = ConfigDict(extra="forbid", title="Approval")

    decision: Literal["approve", "reject", "hold"] = Field(title="Decision", description=_HOLD)
    name: str = Field(
        min_length=1, max_length=100, pattern=r"\S", title="Your name",
        description="A claim, unless the answer is signed",
    )  # fmt: skip
    ticket: str = Field(default="", max_length=200, title="Ticket", description="Reference to the change")
    comment: str = Field(default="", max_length=2000, title="Comment")
    signature: str = Field(
        default="", max_length=8000, title="Signature",
        description="Made by `capstan approve --key`, where this domain demands signed approvals",
    )  # fmt: skip
    request: str = Field(title="Request", description="Names this asking; leave it as it is")


def form(request: Request) -> type[Answer]:
    """The form of one request: its own id is the only one accepted, and where approvers are listed, only they sign."""
    fields: dict[str, Any] = {
        "decision": (
            Annotated[Literal["approve", "reject", "hold"], Field(title="Decision", description=_shown(request))],
            ...,
        ),
        "request": (
            Annotated[str, Field(title="Request", pattern=f"^{request.id}$", description="Leave it as it is")],
            request.id,
        ),
    }
    if request.approvers:
        fields["name"] = (
            Annotated[Literal[request.approvers], Field(title="Your name", description="As listed for this domain")],
            ...,
        )
        fields["signature"] = (
            Annotated[
                str,
                Field(
                    title="Signature", min_length=1, max_length=8000,
                    description="Made by `capstan approve --key FILE`, or by hand over the statement it prints",
                ),
            ],
            ...,
        )  # fmt: skip
    return create_model("Approval", __base__=Answer, **fields)


def _shown(request: Request) -> str:
    """What is asked, as the description of the form's first field.

    Prefect's dialog (3.8.8) shows the request's own description too, but shrinks it to make room for the fields: on a
    common screen nothing of it is left. A field's description scrolls with the form. There the page replaces single
    line feeds by blanks; a carriage return ends a line as well (CommonMark 0.31, section 2.1) and is left alone.
    """
    return f"{without_block(request.markdown)}\n\n{_HOLD}".replace("\n", "\r")


def ask_by_suspending(request: Request) -> Decision:
    """Take the answer to this request, or suspend the run until there is one.

    Raises:
        Pause: The run is suspended and its process ends; it comes back here with the answer.
    """
    run = durable.flow_run_id()
    asked = form(request)
    number = request.answered
    with get_client(sync_client=True) as client:
        while True:
            answer = answered_or_suspend(
                client,
                run,
                key=f"{request.gate}-{request.id}-{number}",
                until=request.until,
                message=f"waits for approval: {request.gate}",
                form=asked,
                description=request.markdown,
            )
            if answer is not None:
                return _decision(asked, answer, number + 1)
            # Somebody set the run going again without an answer: the same question, under the next key.
            number += 1


def answered_or_suspend(
    client: SyncPrefectClient,
    run: UUID,
    *,
    key: str,
    until: datetime,
    message: str,
    form: type[BaseModel],
    description: str,
) -> Any:
    """The answer to a form, or suspend the run until there is one; None if the run was set going again without one.

    Args:
        key: Names this asking in the run.
        until: When it runs out, aware UTC.
        message: Shown as the state's message.
        description: Markdown, shown with the form.

    Raises:
        Pause: The run is suspended and its process ends; it comes back here.
    """
    state: State[Any] = Suspended(pause_expiration_time=until, pause_key=key, message=message)
    keys = keyset_from_paused_state(state)
    state.state_details.run_input_keyset = {str(kind): name for kind, name in keys.items()}
    answer = _read(client, run, keys["response"])
    if answer is not None:
        return answer
    offer(client, run, keys, form, description)
    try:
        _suspend(state)
    except durable.Refused:
        return None


def _suspend(state: State[Any]) -> None:
    durable.propose(state)


def offer(client: SyncPrefectClient, run: UUID, keys: Keyset, form: type[BaseModel], description: str) -> None:
    """Write the form, and the page that is shown with it, for a run that is about to be suspended; each once.

    Args:
        keys: Names of both inputs, as Prefect derives them from the state.
        description: Markdown.

    Raises:
        PrefectHTTPStatusError: The server refuses it.
    """
    for key, value in ((keys["schema"], form.model_json_schema()), (keys["description"], description)):
        if _read(client, run, key) is None:
            _create(client, run, key, value)


def _create(client: SyncPrefectClient, run: UUID, key: str, value: Any) -> None:
    """Write an input that nobody changes afterwards; it is there already where only the answer was lost.

    Prefect's client sends a request again when the server goes away before it answers, and the server takes a key once.
    """
    try:
        client.create_flow_run_input(flow_run_id=run, key=key, value=json.dumps(value))
    except (PrefectHTTPStatusError, httpx.HTTPStatusError) as error:
        if error.response.status_code != httpx.codes.CONFLICT:
            raise


def _read(client: SyncPrefectClient, run: UUID, key: str) -> Any:
    try:
        return json.loads(client.read_flow_run_input(run, key))
    except (PrefectHTTPStatusError, httpx.HTTPStatusError) as error:
        if error.response.status_code == httpx.codes.NOT_FOUND:
            return None
        raise


def _decision(asked: type[Answer], raw: Any, answered: int) -> Decision:
    """The answer, checked again: the server checked it against the form; whoever writes to its database does not."""
    try:
        answer = asked.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return Decision(
            "held", by="nobody", at=datetime.now(UTC), answered=answered,
            comment=f"an answer that does not fit its form was set aside: {where}: {first['msg']}",
        )  # fmt: skip
    return Decision(
        _CHOICES[answer.decision],
        by=answer.name.strip(),
        at=datetime.now(UTC),
        ticket=answer.ticket,
        comment=answer.comment,
        signature=answer.signature,
        answered=answered,
    )
