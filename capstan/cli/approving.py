"""Who is asked where a rotation runs in this process: the terminal, nobody, or the key that was given."""

from __future__ import annotations

import getpass
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from cyclopts import Parameter
from rich.prompt import Prompt
from rich.text import Text

from capstan.approvals import Approver, Decision, Request, Statement, nobody
from capstan.approvals.signing import sign
from capstan.approvals.statement import ANSWERS, CHOICES, Answer
from capstan.cli.live import TerminalWatcher
from capstan.cli.output import stderr
from capstan.errors import ApprovalRequired, InvalidInput
from capstan.progress import Watcher


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ApprovalOptions:
    """How approvals are given to a rotation that runs here."""

    approve: Literal["ask", "auto"] = "ask"
    """ask: each phase that changes the mesh is shown and asked for on the terminal. auto: nobody is asked."""

    name: str = ""
    """Who approves; default: the user of this machine. Where approvers are listed: one of them."""

    key: Path | None = None
    """Sign approvals with this key: a file of OpenSSH or PEM, or the .pub file of a key that an agent holds."""

    def approver(self, watcher: Watcher) -> Approver:
        """Whoever decides."""
        if self.approve == "auto":
            return _Automatic(self)
        if not (sys.stdin.isatty() and sys.stderr.isatty()):
            return nobody
        return _Terminal(self, watcher)

    def require_key(self) -> None:
        """Refuse a key that is not there, before anything is begun that will be signed with it.

        Raises:
            InvalidInput: There is no such file.
        """
        if self.key is not None and not self.key.expanduser().is_file():
            raise InvalidInput(
                "the key to sign approvals with is not there", where=str(self.key), observed="no such file",
                expected="a file of OpenSSH or PEM, or the .pub file of a key that an agent holds",
                next_command="ssh-add -L; ls ~/.ssh",
            )  # fmt: skip

    def who(self) -> str:
        """The name of whoever approves: a claim, as every name typed or inherited is."""
        return self.name or user()

    def signed(self, request: Request, decision: Decision) -> Decision:
        """The decision, signed where a key was given.

        Raises:
            ApprovalRequired: This domain takes signed approvals of listed people only, and this would be none.
            InvalidInput: The key cannot be used.
        """
        if request.approvers and (self.key is None or decision.by not in request.approvers):
            raise _unsigned(request, decision.by if self.key else "no --key")
        if self.key is None:
            return decision
        statement = Statement(
            request.domain, request.rotation, request.turn, request.gate, request.id, request.digest,
            ANSWERS[decision.choice], decision.by, decision.ticket, decision.comment,
        )  # fmt: skip
        return replace(decision, signature=sign(statement, self.key, passphrase=passphrase))


class _Automatic:
    """Approves each request once: where more people are needed, it is not several."""

    def __init__(self, options: ApprovalOptions) -> None:
        self._options = options
        self._given: set[str] = set()

    def __call__(self, request: Request) -> Decision:
        if request.id in self._given:
            raise ApprovalRequired(
                f"{request.gate} waits for more approvals",
                where=f"rotation {request.rotation}",
                observed=f"one, by {self._options.who()}",
                expected="the domain's quorum of different approvers",
                next_command="another approver runs the same command with their own --name and --key; it goes on here",
            )
        self._given.add(request.id)
        by = self._options.who()
        decision = Decision(
            "approved", by if self._options.key else f"--approve auto, given by {by}", datetime.now(UTC),
            comment=f"phase {request.gate}", answered=request.answered + 1,
        )  # fmt: skip
        return self._options.signed(request, decision)


class _Terminal:
    """Shows the request and asks."""

    def __init__(self, options: ApprovalOptions, watcher: Watcher) -> None:
        self._options = options
        self._watcher = watcher

    def __call__(self, request: Request) -> Decision:
        paused = self._watcher.paused() if isinstance(self._watcher, TerminalWatcher) else nullcontext()
        with paused:
            console = stderr()
            console.rule(f"approve {request.gate}?", align="left")
            console.print(Text(request.text))  # 100 columns: a frame would break its lines anew
            console.print()
            answer = Prompt.ask("Decision", console=console, choices=list(_ANSWERS), default="hold")
            if answer == "hold":
                raise _held(request)
            ticket = Prompt.ask("Ticket", console=console, default="", show_default=False)
            comment = Prompt.ask("Comment", console=console, default="", show_default=False)
        decision = Decision(
            CHOICES[_ANSWERS[answer]], self._options.who(), datetime.now(UTC), ticket, comment,
            answered=request.answered + 1,
        )  # fmt: skip
        return self._options.signed(request, decision)


_ANSWERS: Final[dict[str, Answer]] = {"approve": "approve", "reject": "reject", "hold": "hold"}


def _held(request: Request) -> ApprovalRequired:
    return ApprovalRequired(
        f"{request.gate} is held and waits for approval",
        where=f"rotation {request.rotation}",
        observed="hold",
        expected=f"a decision on plan {request.digest[:12]}",
        next_command="run the same command again to decide; nothing was changed, and it goes on from here",
    )


def _unsigned(request: Request, observed: str) -> ApprovalRequired:
    return ApprovalRequired(
        f"{request.gate} waits for a signed approval",
        where=f"rotation {request.rotation}",
        observed=observed,
        expected=f"a signature of {' or '.join(request.approvers)}",
        next_command="run the same command again with --name NAME --key FILE; it goes on from here",
    )


def passphrase() -> str:
    """Asked on the terminal, for a key that is encrypted."""
    return getpass.getpass("Passphrase of the key: ", stream=sys.stderr)


def user() -> str:
    """The user of this machine: a claim."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown user"
