"""What people see of a rotation in Prefect besides its log: the run's name, the plan, the account, and the timeline.

All of it is for eyes only, published by `flows.publishing` and refreshed when a phase begins or ends, when the run is
left, and every few seconds of a step. The same key is used for every rotation of a trust domain, so that Prefect keeps
one version a run.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prefect.logging import get_logger

from capstan.errors import CapstanError
from capstan.evidence import rows
from capstan.evidence.story import HANDSHAKES, LOOK, story
from capstan.evidence.timeline import draw
from capstan.progress import watcher
from capstan.rotation import Rotation
from capstan.trust.plan import Plan, StepKind
from flows.publishing import Send, Sender, publisher
from flows.watching import PrefectWatcher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from capstan.evidence import Entry

DONE = "✓ done"
# Rows of the account a page shows: Prefect draws all of them, and an artifact is one JSON value in its database.
MAX_ROWS = 500
# Seconds between two refreshes while a phase lasts.
SECONDS_BETWEEN = 10.0

_log = get_logger("capstan")


def key(domain: str, what: str) -> str:
    """Key of a trust domain's artifact; its name is a DNS label, which Prefect's keys allow."""
    return f"capstan-{domain}-{what}"


def rename_run(rotation: Rotation, phase: str) -> None:
    """Name the flow run after its domain, where it is, and the rotation, such as `prod-eu: issue (2026-11-22)`."""
    _put("name", lambda sender: sender.rename(_run_name(rotation, phase)))


def publish_plan(rotation: Rotation, plan: Plan) -> None:
    """Show the plan as a table: what is done, where, and what is still to do."""
    table = plan_rows(plan, refused=bool(rotation.old_root_refused))
    done = sum(row["state"] == DONE for row in table)
    about = (
        f"Phase **{plan.phase.value}**: {done} of {len(table)} steps done\n\nRotation {rotation.id} of"
        f" `{rotation.domain.name}`. {str(plan.verdict).capitalize()}.\n\nDigest `{plan.digest()}`"
    )
    _put("plan", lambda sender: sender.artifact(key(rotation.domain.name, "plan"), "table", table, about))


def publish_evidence(rotation: Rotation) -> None:
    """Show the account as a table, with its head and how to verify it."""
    entries, head, path = rotation.evidence.entries, rotation.evidence.head, rotation.evidence.path
    finished = rotation.evidence.finished

    def send(sender: Sender) -> None:
        table = evidence_rows(entries)
        about = (
            f"**{len(entries)} entries**, {'complete' if finished else 'goes on'}\n\nRotation {rotation.id} of"
            f" `{rotation.domain.name}`. The account is signed and hash-chained; this is a copy of {len(table)} of its"
            f" entries, without counters (the timeline has them).\n\n`capstan evidence verify {path} --head {head}`"
        )
        sender.artifact(key(rotation.domain.name, "evidence"), "table", table, about)

    _put("evidence", send)


def publish_timeline(rotation: Rotation) -> None:
    """Show the account as a picture."""
    entries = rotation.evidence.entries

    def send(sender: Sender) -> None:
        about = f"Rotation **{rotation.id}** of `{rotation.domain.name}`"
        sender.artifact(key(rotation.domain.name, "timeline"), "markdown", timeline_page(entries), about)

    _put("timeline", send)


def plan_rows(plan: Plan, *, refused: bool = False) -> list[dict[str, str]]:
    """One row a step.

    Args:
        refused: Whether the last step, the refusal of the old roots, was proven: that cannot be observed from outside.
    """
    return [
        {
            "step": f"{step.phase.value}: {step.kind.value}",
            "state": DONE if refused and step.kind is StepKind.PROBE_REFUSAL else _state(step.clusters, step.pending),
            "changes": step.changes,
            "way back": step.reversible,
        }
        for step in plan.steps
    ]


def evidence_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """One row an entry that is no counter; of a very long account the last ones."""
    told = [entry for entry in entries if entry.kind not in (LOOK, HANDSHAKES)]
    return [{"#": row.n, "time": row.time, "what": row.kind, "facts": row.facts} for row in rows(told)[-MAX_ROWS:]]


def timeline_page(entries: Sequence[Entry]) -> str:
    """Markdown with the picture inside: Prefect's image artifact writes the whole data URL below the picture."""
    picture = base64.b64encode(draw(entries).encode()).decode()
    return f"![timeline](data:image/svg+xml;base64,{picture})"


@contextmanager
def shown(rotation: Rotation) -> Iterator[None]:
    """Show an open rotation at once, whenever its phase changes, and when the enclosed block ends, however it ends."""
    watching = watcher()
    if publisher() is None or not isinstance(watching, PrefectWatcher):
        yield
        return
    _name(rotation)
    refresh(rotation)
    watching.followed_by(_Follower(rotation))
    planned = True
    try:
        yield
    except Exception:
        planned = False
        raise
    finally:
        watching.followed_by(None)
        if rotation.evidence.finished:
            rename_run(rotation, str(rotation.evidence.entries[-1].body.get("outcome", "over")))
        refresh(rotation, planned=planned)


class _Follower:
    """Told by the watcher of each phase and step."""

    def __init__(self, rotation: Rotation) -> None:
        self._rotation = rotation
        self._last = time.monotonic()

    def phase(self, name: str) -> None:
        _name(self._rotation, name)
        self._refresh()

    def step(self) -> None:
        if time.monotonic() - self._last > SECONDS_BETWEEN:
            self._refresh()

    def _refresh(self) -> None:
        refresh(self._rotation)
        self._last = time.monotonic()


def _name(rotation: Rotation, phase: str = "") -> None:
    entries, back = rotation.evidence.entries, rotation.direction == "back"

    def send(sender: Sender) -> None:
        if where := _where(entries, phase, back=back):
            sender.rename(_run_name(rotation, where))

    _put("name", send)


def _where(entries: Sequence[Entry], phase: str, *, back: bool) -> str:
    """The furthest phase of this turn: a run that goes on passes the earlier ones again in seconds."""
    wanted = f"{phase} back" if phase and back else phase
    told = [span.name for span in story(entries).phases]
    if told and told[-1].endswith(" back") == back and (not wanted or wanted in told):
        return told[-1]
    return wanted


def _run_name(rotation: Rotation, where: str) -> str:
    return f"{rotation.domain.name}: {where} ({rotation.id})"


def refresh(rotation: Rotation, *, planned: bool = True) -> None:
    """Publish evidence, timeline and plan as they are now; never raises.

    Args:
        planned: Whether to plan too: that reads the record, which a cluster that has just failed may not answer.
    """
    if publisher() is None:
        return
    publish_evidence(rotation)
    publish_timeline(rotation)
    seen = rotation.seen
    if seen is None or not planned:
        return
    try:
        publish_plan(rotation, rotation.plan(seen))
    except CapstanError as error:
        _log.warning("what people see of rotation %s is not up to date: %s", rotation.id, error)


def _state(clusters: tuple[str, ...], pending: tuple[str, ...]) -> str:
    if not pending:
        return DONE
    if len(pending) == len(clusters):
        return "pending"
    return f"pending in {', '.join(pending)}"


def _put(what: str, send: Send) -> None:
    if (to := publisher()) is not None:
        to.put(what, send)
