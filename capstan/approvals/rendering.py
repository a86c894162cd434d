"""A proposal as plain text and as a page."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Final

from capstan.approvals.block import HEADING, RequestBlock

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from capstan.approvals.proposal import Anchor, Proposal

WIDTH: Final = 100
_LABEL: Final = 14
_SHOWN: Final = 12
_SUBJECTS: Final = {"issuer": "Issuer", "webhooks": "Certificate"}


def as_text(proposal: Proposal) -> str:
    """Plain text of at most 100 columns."""
    evidence = proposal.evidence
    lines = [*_wrapped(title(proposal)), "", *_wrapped(proposal.meaning), ""]
    lines += _fields("clusters", proposal.clusters)
    lines += _field("keys", proposal.vault)
    for label, roots in (("leaving", proposal.leaving), ("staying", proposal.staying)):
        lines += _fields(label, [line for root in roots for line in (_named(root), f"SHA-256 {root.fingerprint}")])
    lines += ["", "steps"]
    for step in proposal.steps:
        lines += _field(step.name.partition("/")[2] or step.name, f"{step.changes}  [{', '.join(step.clusters)}]", 24)
    lines += [""]
    lines += _fields("may restart", some(proposal.workloads))
    lines += _field("irreversible", proposal.irreversible)
    lines += _field("time", proposal.bound)
    lines += _field("way back", proposal.way_back)
    lines += _field("if rejected", proposal.on_reject)
    lines += _field("no answer", proposal.on_timeout)
    lines += _field("who decides", who(proposal))
    lines += _field("asked before", ", ".join(proposal.asked_before))
    lines += ["", f"evidence at {evidence.at:%Y-%m-%d %H:%M:%S} UTC"]
    lines += _field("", f"{evidence.peers} {_peers(proposal)} of {evidence.workloads} workloads")
    for sentence in evidence.sentences:
        lines += _field("", sentence)
    lines += ["", f"digest {proposal.digest}"]
    return "\n".join(lines)


def _peers(proposal: Proposal) -> str:
    return "serving processes" if proposal.kind == "webhooks" else "live proxies"


def as_markdown(proposal: Proposal, request: str, until: datetime, notes: Sequence[str] = ()) -> str:
    """A page for the Prefect UI, ending with the request as a fenced block."""
    evidence, subject = proposal.evidence, _SUBJECTS.get(proposal.kind, "Root")
    lines = [
        f"## {escaped(title(proposal))}",
        "",
        escaped(proposal.meaning),
        "",
        f"**Decide until {until:%Y-%m-%d %H:%M} UTC.** {escaped(who(proposal))}",
        *(line for note in notes for line in ("", f"> {escaped(note)}")),
        "",
        "### What changes",
        "",
        # Lists, not tables: Prefect's dialog is 470 pixels wide, and a table in it is cut off at the right.
        *(
            f"{number}. **{escaped(step.name.partition('/')[2] or step.name)}**: {escaped(step.changes)}"
            f" ({escaped(', '.join(step.clusters))})"
            for number, step in enumerate(proposal.steps, 1)
        ),
        "",
        *(
            f"- {subject} that {role}: {escaped(_named(root))}, SHA-256 {_grouped(root.fingerprint)}"
            for role, roots in (("leaves", proposal.leaving), ("stays", proposal.staying))
            for root in roots
        ),
        f"- Workloads that may restart ({len(proposal.workloads)}): "
        + escaped("; ".join(some(proposal.workloads)) or "none"),
        *(f"- Cluster {escaped(cluster)}" for cluster in proposal.clusters),
        f"- Keys live in {escaped(proposal.vault)}",
        "",
        "### What if",
        "",
        *(
            f"- **{what}** {escaped(text)}"
            for what, text in (
                ("Irreversible:", proposal.irreversible),
                ("How long:", proposal.bound),
                ("Way back:", proposal.way_back),
                ("If rejected:", proposal.on_reject),
                ("If nobody answers:", proposal.on_timeout),
                ("Somebody is asked before:", ", ".join(proposal.asked_before)),
            )
        ),
        "",
        f"### Evidence, observed {evidence.at:%Y-%m-%d %H:%M:%S} UTC",
        "",
        f"{evidence.peers} {_peers(proposal)} of {evidence.workloads} workloads.",
        "",
        *(f"- {escaped(sentence)}" for sentence in evidence.sentences),
        "",
        HEADING,
        "",
    ]
    block = RequestBlock(
        domain=proposal.domain, rotation=proposal.rotation, turn=proposal.turn, gate=proposal.gate, request=request,
        digest=proposal.digest, until=until, quorum=proposal.quorum,
        keys={name: [key for owner, key in proposal.keys if owner == name] for name in proposal.approvers},
    )  # fmt: skip
    return "\n".join(lines) + "\n" + block.fenced()


def title(proposal: Proposal) -> str:
    """One line that says what is asked."""
    what = {
        "roll-back": "roll back",
        "re-date": "re-date the root by",
        "replace-expired": "replace what has expired by",
    }.get(proposal.gate)
    what = what or f"begin phase {proposal.gate} of"
    back = " (on the way back)" if proposal.direction == "back" and proposal.gate != "roll-back" else ""
    of = " of" if proposal.gate == "roll-back" else ""
    return f"{proposal.domain}: {what}{of} rotation {proposal.rotation}?{back}"


def who(proposal: Proposal) -> str:
    """Whose answers count."""
    if not proposal.approvers:
        return "Whoever can answer this decides; the name given is a claim."
    names = ", ".join(proposal.approvers)
    return f"Needs signed approvals of {proposal.quorum} of: {names}. One rejection of theirs rejects."


def some(names: Sequence[str]) -> list[str]:
    """The first few, and how many more."""
    rest = len(names) - _SHOWN
    return [*names[:_SHOWN], *([f"and {rest} more"] if rest > 0 else [])]


def flat(text: str) -> str:
    """One line without anything that steers a terminal or turns the reading direction.

    Names come from certificates and clusters and may hold whatever somebody put there.
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def escaped(text: str) -> str:
    """One line of text as it is, in markdown."""
    return "".join("\\" + c if c in "\\`*_{}[]<>#|~!" else c for c in flat(text))


def _grouped(fingerprint: str) -> str:
    """Hexadecimal digits in groups of eight, so that a narrow page can break the line."""
    return " ".join(fingerprint[start : start + 8] for start in range(0, len(fingerprint), 8))


def _named(root: Anchor) -> str:
    end = f", until {root.not_after:%Y-%m-%d}" if root.not_after else ""
    return f"{root.common_name or '(no name)'}{end}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(flat(text), WIDTH) or [""]


def _field(label: str, text: str, width: int = _LABEL) -> list[str]:
    indent = " " * (width + 2)
    first = f"  {label:<{width - 1}} " if len(label) < width else f"  {label} "
    return textwrap.wrap(flat(text), WIDTH, initial_indent=first, subsequent_indent=indent) or [first.rstrip()]


def _fields(label: str, texts: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for number, text in enumerate(texts or ("none",)):
        lines += _field(label if number == 0 else "", text)
    return lines
