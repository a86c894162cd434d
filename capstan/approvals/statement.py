"""What an approver signs: one short text that names everything his answer is bound to.

The text is written the same way on every machine, byte for byte, so that a signature made anywhere over it (by
`capstan approve --key`, or by hand with `ssh-keygen -Y sign`) can be verified from the rotation record alone.
"""

from __future__ import annotations

import json
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from datetime import datetime

    from capstan.approvals.asking import Choice
    from capstan.cluster.record import Approval, RotationRecord

TYPE: Final = "capstan-approval/1"

Answer = Literal["approve", "reject", "hold"]
CHOICES: Final[dict[Answer, Choice]] = {"approve": "approved", "reject": "rejected", "hold": "held"}
ANSWERS: Final[dict[Choice, Answer]] = {choice: answer for answer, choice in CHOICES.items()}


def plain(text: str) -> str:
    """Text as it is signed: Unicode NFC, lines ended by a line feed, nothing but content at both ends.

    Forms and terminals add such differences; no two texts that a person would tell apart become one. Halves of
    surrogate pairs, which JSON can carry and UTF-8 cannot, become replacement characters.
    """
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    lines = unicodedata.normalize("NFC", whole).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines).strip()


@dataclass(frozen=True, slots=True)
class Statement:
    """One answer to one request, as it is signed.

    Attributes:
        domain: Trust domain.
        rotation: Rotation id.
        turn: Turn of the rotation.
        gate: What would begin.
        request: Id of the request that is answered.
        digest: SHA-256 (hex) of what was shown.
        decision: approve, reject or hold.
        name: Who answers, as listed.
        ticket: Reference to the change.
        comment: Reason.
    """

    domain: str
    rotation: str
    turn: int
    gate: str
    request: str
    digest: str
    decision: Answer
    name: str
    ticket: str = ""
    comment: str = ""

    def fields(self) -> dict[str, str | int]:
        """The fields in their order, the type first."""
        return {
            "type": TYPE,
            "domain": self.domain,
            "rotation": self.rotation,
            "turn": self.turn,
            "gate": self.gate,
            "request": self.request,
            "digest": self.digest,
            "decision": self.decision,
            "name": plain(self.name),
            "ticket": plain(self.ticket),
            "comment": plain(self.comment),
        }

    def text(self) -> str:
        """JSON, a field a line, in this order, UTF-8, ended by one line feed."""
        return json.dumps(self.fields(), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True, slots=True)
class Question:
    """One asking, as answers are compared with it.

    Attributes:
        domain: Trust domain.
        rotation: Rotation id.
        turn: Turn of the rotation.
        gate: What would begin.
        request: Id of this asking.
        digest: SHA-256 (hex) of what is shown.
        asked: When it was asked first, aware UTC.
    """

    domain: str
    rotation: str
    turn: int
    gate: str
    request: str
    digest: str
    asked: datetime

    @classmethod
    def of(cls, record: RotationRecord, gate: str) -> Question | None:
        """The request last made for the gate; None if nobody was asked."""
        asked = record.asked.get(gate)
        if asked is None:
            return None
        return cls(record.domain, record.rotation_id, record.turn, gate, asked.id, asked.digest, asked.at)

    def statement(self, given: Approval) -> Statement:
        """What must have been signed for this approval to be an answer to this question."""
        return Statement(
            self.domain, self.rotation, self.turn, self.gate, self.request, self.digest,
            ANSWERS[given.decision], given.by, given.ticket, given.comment,
        )  # fmt: skip
