"""The fenced block at the end of an approval page: what `capstan approve` reads back from Prefect.

The page is all that Prefect hands to whoever resumes a run, so the ids an answer is bound to travel in it. Reading them
decides nothing: the flow compares every answer with its own record.
"""

from __future__ import annotations

from datetime import datetime  # noqa: TC003  # pydantic reads the annotations at run time
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from capstan.errors import InvalidInput

HEADING: Final = "### For signing and scripts"
FENCE: Final = "```capstan-request"


class RequestBlock(BaseModel):
    """The ids of one asking.

    Attributes:
        domain: Trust domain.
        rotation: Rotation id.
        turn: Turn of the rotation.
        gate: What would begin.
        request: Id of this asking.
        digest: SHA-256 (hex) of what is decided on.
        until: When it runs out, aware UTC.
        quorum: How many different approvers must agree.
        keys: Approver -> fingerprints of the keys that count; empty where nobody is listed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    domain: str
    rotation: str
    turn: int
    gate: str
    request: str
    digest: str
    until: datetime
    quorum: int = 1
    keys: dict[str, list[str]] = Field(default_factory=dict)

    def fenced(self) -> str:
        """The block as it stands on the page."""
        return f"{FENCE}\n{self.model_dump_json(indent=2)}\n```\n"


def without_block(markdown: str) -> str:
    """An approval page without what only programs read at its end."""
    return markdown.partition(f"\n{HEADING}\n")[0]


def read_block(markdown: str) -> RequestBlock:
    """The request at the end of an approval page.

    Raises:
        InvalidInput: There is none, or it is of another version of Capstan.
    """
    _, found, rest = markdown.rpartition(f"\n{FENCE}\n")
    body, closed, _ = rest.partition("\n```")
    if not found or not closed:
        raise InvalidInput(
            "this run does not ask for an approval of ours",
            observed="a page without a capstan-request block",
            expected=f"a page that ends with {FENCE}",
            next_command="capstan approve  # lists the runs that wait",
        )
    try:
        return RequestBlock.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidInput(
            "the request for approval cannot be read",
            where="capstan-request block, field " + (".".join(str(part) for part in first["loc"]) or "(all)"),
            observed=first["msg"],
            expected="a block of this version of Capstan",
            next_command="use the Capstan version that the flow runs with",
        ) from error
