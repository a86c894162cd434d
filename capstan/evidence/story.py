"""An account, read as what went on when: phases, who was asked, who trusted what. Pure; `timeline` draws it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from capstan.errors import InvalidInput
from capstan.evidence.chain import FINISHED, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Kinds of entries that are written for this view of an account alone.
LOOK: Final = "look"  # peers, and how many of them trust, present, and trust only what stays
HANDSHAKES: Final = "handshakes"  # what somebody outside has counted: attempted, failed
ASKED: Final = "approval-asked"


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when; the end is None while it goes on."""

    name: str
    start: datetime
    end: datetime | None


@dataclass(frozen=True, slots=True)
class Decided:
    """A person's decision."""

    at: datetime
    gate: str
    decision: str
    by: str


@dataclass(frozen=True, slots=True)
class Restart:
    """An owner whose pods are all new."""

    at: datetime
    owner: str
    control_plane: bool


@dataclass(frozen=True, slots=True)
class Look:
    """Live peers at one moment, and how many trust the roots that stay, present a leaf of them, and trust only them."""

    at: datetime
    peers: int
    trust: int
    present: int
    only: int


@dataclass(frozen=True, slots=True)
class Counted:
    """A counter of handshakes at one moment; it may have been set to 0 in between."""

    at: datetime
    attempted: int
    failed: int


@dataclass(frozen=True, slots=True)
class Story:
    """What an account tells.

    Attributes:
        domain: Trust domain; empty where the account ends before it is named.
        rotation: Rotation id.
        start: Time of the first entry.
        end: Time of the last entry.
        outcome: How it ended; empty while it goes on.
        phases: In order; a phase of the way back is named so. A phase that a resumed run only passes again is not
            told again.
        asking: While a person was asked, by gate.
        away: While no process worked on it: the run had left its process, or it had died.
        decided: Decisions of people.
        restarts: Restarted owners.
        looks: What the gates have seen.
        counted: Handshakes, where somebody counts them.
    """

    domain: str
    rotation: str
    start: datetime
    end: datetime
    outcome: str
    phases: tuple[Span, ...]
    asking: tuple[Span, ...]
    away: tuple[Span, ...]
    decided: tuple[Decided, ...]
    restarts: tuple[Restart, ...]
    looks: tuple[Look, ...]
    counted: tuple[Counted, ...]


def story(entries: Sequence[Entry]) -> Story:
    """Read an account, finished or not.

    Raises:
        InvalidInput: It has no entry.
    """
    if not entries:
        raise InvalidInput("there is nothing to tell: the account is empty", expected="at least one entry")
    last = entries[-1]
    return Story(
        domain=next((str(entry.body.get("domain", "")) for entry in entries if entry.kind in _BEGINS), ""),
        rotation=last.rotation,
        start=entries[0].time,
        end=last.time,
        outcome=str(last.body.get("outcome", "")) if last.kind == FINISHED else "",
        phases=tuple(_phases(entries)),
        asking=tuple(_asking(entries)),
        away=tuple(
            Span("no process", before.time, entry.time)
            for before, entry in itertools.pairwise(entries)
            if entry.kind == "rotation-resumed"
        ),
        decided=tuple(
            Decided(entry.time, _text(entry, "gate"), _text(entry, "decision"), _text(entry, "by"))
            for entry in entries
            if entry.kind == "approval"
        ),
        restarts=tuple(_restarts(entries)),
        looks=tuple(
            Look(entry.time, *(_number(entry, name) for name in ("peers", "trust", "present", "only")))
            for entry in entries
            if entry.kind == LOOK
        ),
        counted=tuple(
            Counted(entry.time, _number(entry, "attempted"), _number(entry, "failed"))
            for entry in entries
            if entry.kind == HANDSHAKES
        ),
    )


_BEGINS = {"rotation-begun", "rotation-resumed"}


def _phases(entries: Sequence[Entry]) -> Iterator[Span]:
    """One span a phase and turn: from its first entry to the first time it was left."""
    began: dict[tuple[int, str], datetime] = {}
    ended: dict[tuple[int, str], datetime] = {}
    turn, direction = 0, "forward"
    for entry in entries:
        if entry.kind == "phase-entered":
            if _text(entry, "direction", "forward") != direction:
                turn, direction = turn + 1, _text(entry, "direction", "forward")
            began.setdefault((turn, _name(entry, direction)), entry.time)
        elif entry.kind == "phase-left":
            ended.setdefault((turn, _name(entry, direction)), entry.time)
    for key, start in began.items():
        yield Span(key[1], start, ended.get(key))


def _name(entry: Entry, direction: str) -> str:
    return _text(entry, "phase") + (" back" if direction == "back" else "")


def _asking(entries: Sequence[Entry]) -> Iterator[Span]:
    """From when a request was made until it was decided; asked again for something else, it is another request."""
    open_: dict[str, datetime] = {}
    for entry in entries:
        gate = _text(entry, "gate")
        if entry.kind == ASKED:
            open_.setdefault(gate, entry.time)
        elif entry.kind == "approval" and gate in open_ and _text(entry, "decision") != "held":
            yield Span(gate, open_.pop(gate), entry.time)
    for gate, start in open_.items():
        yield Span(gate, start, None)


def _restarts(entries: Sequence[Entry]) -> Iterator[Restart]:
    """Each owner once a phase and turn: a run that goes on finds the ones that were restarted before it again."""
    told: set[tuple[object, ...]] = set()
    turn, direction = 0, "forward"
    for entry in entries:
        if entry.kind == "phase-entered" and _text(entry, "direction", "forward") != direction:
            turn, direction = turn + 1, _text(entry, "direction", "forward")
        if entry.kind != "restarted":
            continue
        ended: dict[str, Any] = dict(entry.body.get("ended", {}))
        for owner in entry.body.get("owners", ()):
            key = (turn, *(_text(entry, name) for name in ("cluster", "phase", "what")), owner)
            if key not in told:
                told.add(key)
                at = datetime.fromisoformat(ended[owner]) if owner in ended else entry.time
                yield Restart(at, str(owner), _text(entry, "what") == "control plane")


def _text(entry: Entry, name: str, default: str = "") -> str:
    return str(entry.body.get(name, default))


def _number(entry: Entry, name: str) -> int:
    return int(entry.body.get(name, 0))
