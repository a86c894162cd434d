"""`capstan approve`: answer a run in Prefect that waits for an approval, signed where the domain demands it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

from cyclopts import Parameter
from rich.markdown import Markdown
from rich.prompt import Confirm, Prompt

from capstan.approvals.signing import NAMESPACE, sign, verify_own
from capstan.approvals.statement import Answer, Statement, plain
from capstan.cli.approving import passphrase, user
from capstan.cli.output import Exit, Output, print_data, print_table, stderr, stdout
from capstan.errors import InvalidInput, VerificationFailed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from capstan.approvals.block import RequestBlock
    from capstan.cli.asked_runs import AskedRun

_HELP = "capstan approve --help"


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """The answer, as far as it is not asked for on the terminal."""

    decision: Literal["approve", "reject", "hold"] | None = None
    """approve, reject, or hold: not now, ask again."""

    name: str = ""
    """Who answers; default: the user of this machine. Where approvers are listed: one of them."""

    ticket: str = ""
    """Reference to the change."""

    comment: str = ""
    """Reason."""

    key: Path | None = None
    """Sign with this key: a file of OpenSSH or PEM, or the .pub file of a key that an agent or a token holds."""

    certificate: Path | None = None
    """The listed X.509 certificate of a PEM key, if it is in another file."""

    signature: Path | None = None
    """A signature made elsewhere over what --print-statement prints, with the same options."""


def approve(
    run: str | None = None,
    options: AnswerOptions = AnswerOptions(),  # frozen: cyclopts fills the fields in
    *,
    print_statement: Annotated[bool, Parameter(negative=())] = False,
    yes: Annotated[bool, Parameter(alias="-y", negative=())] = False,
    output: Annotated[Output, Parameter(alias="-o")] = Output.TABLE,
) -> int:
    """Answer a run that waits for an approval; without RUN, list those that wait (exit 4 if any does).

    Parameters
    ----------
    run
        Id of the flow run, the beginning of one, or the run's name.
    print_statement
        Only print what has to be signed, to be signed elsewhere.
    yes
        Send without asking again.
    output
        table, json or yaml.
    """
    from capstan.cli import asked_runs
    from capstan.cli.prefect_server import connected

    with connected("no request for approval can be answered") as client:
        if run is None:
            return _list(asked_runs.waiting(client), output)
        asked = asked_runs.find(client, run)
        terminal = sys.stdin.isatty() and sys.stderr.isatty()
        if options.decision is None and not terminal:
            _show(asked, output)
            return Exit.WAITING_FOR_APPROVAL
        if terminal and not print_statement and not yes:
            _print_page(stderr(), asked)
        statement = _statement(asked.block, options, ask=terminal)
        if print_statement:
            sys.stdout.write(statement.text())
            sys.stdout.flush()
            _tell_how_to_sign(asked)
            return Exit.OK
        signature = _signature(asked.block, statement, options, ask=terminal)
        if not (yes or _confirmed(asked, statement, terminal=terminal)):
            stderr().print("nothing was sent; the run still waits")
            return Exit.WAITING_FOR_APPROVAL
        asked_runs.send(client, asked, _filled_in(statement, signature))
    _report(asked, statement, signed=bool(signature), output=output)
    return Exit.OK


def _list(runs: list[AskedRun], output: Output) -> int:
    if output in (Output.JSON, Output.YAML):
        print_data([_as_data(run) for run in runs], output)
    elif runs:
        print_table(
            ("run", "domain", "approve", "rotation", "until (UTC)", "name"),
            [
                (
                    str(run.id)[:8], run.block.domain, run.block.gate, run.block.rotation,
                    f"{run.block.until:%Y-%m-%d %H:%M}", run.name,
                )
                for run in runs
            ],
        )  # fmt: skip
    else:
        stdout().print("nothing waits for an approval")
    return Exit.WAITING_FOR_APPROVAL if runs else Exit.OK


def _as_data(run: AskedRun) -> dict[str, Any]:
    return {"run": str(run.id), "name": run.name, "url": run.url, **run.block.model_dump(mode="json")}


def _show(run: AskedRun, output: Output) -> None:
    if output in (Output.JSON, Output.YAML):
        print_data({**_as_data(run), "page": run.page}, output)
    else:
        _print_page(stdout(), run)


def _print_page(console: Console, run: AskedRun) -> None:
    # The page comes from a server: nothing in it may steer the terminal.
    page = "".join(character for character in run.page if character == "\n" or character.isprintable())
    console.print(Markdown(page), width=min(console.width, 100))
    console.print(f"\nrequest {run.block.request}, digest {run.block.digest}\n")


def _statement(block: RequestBlock, options: AnswerOptions, *, ask: bool) -> Statement:
    """What is answered; asked for where no decision was given."""
    decision: str | None = options.decision
    name, ticket, comment = options.name or _default_name(block), options.ticket, options.comment
    if decision is None and ask:
        decision = _asked_for("Decision", choices=("approve", "reject", "hold"))
        name = options.name or _asked_for("Name", default=name, choices=tuple(block.keys))
        ticket = ticket or _asked_for("Ticket")
        comment = comment or _asked_for("Comment")
    if decision not in get_args(Answer):
        raise InvalidInput(
            "there is no answer to send", observed=f"decision {decision}", expected="--decision approve|reject|hold",
            next_command=_HELP,
        )  # fmt: skip
    if block.keys and plain(name) not in block.keys:
        raise InvalidInput(
            "this answer would never count: its name is not listed", where=f"trust domain {block.domain}",
            observed=name or "no --name", expected=f"--name, one of: {', '.join(block.keys)}", next_command=_HELP,
        )  # fmt: skip
    return Statement(
        block.domain, block.rotation, block.turn, block.gate, block.request, block.digest, cast("Answer", decision),
        plain(name), plain(ticket), plain(comment),
    )  # fmt: skip


def _asked_for(label: str, *, default: str = "", choices: Sequence[str] = ()) -> str:
    console = stderr()
    if choices and default not in choices:
        return Prompt.ask(label, console=console, choices=list(choices))
    return Prompt.ask(
        label, console=console, choices=list(choices) or None, default=default, show_default=bool(default)
    )


def _default_name(block: RequestBlock) -> str:
    if len(block.keys) == 1:
        return next(iter(block.keys))
    name = user()
    return name if not block.keys or name in block.keys else ""


def _signature(block: RequestBlock, statement: Statement, options: AnswerOptions, *, ask: bool) -> str:
    """The signature, refused here if it could never count; empty where none is needed and no key was given."""
    key = options.key
    if options.signature is None and key is None:
        if not block.keys:
            return ""
        if not ask:
            raise InvalidInput(
                "this answer would never count: it is not signed", where=f"trust domain {block.domain}",
                observed="neither --key nor --signature", expected=f"a signature of {' or '.join(block.keys)}",
                next_command="add --key FILE, or sign by hand what --print-statement prints",
            )  # fmt: skip
        key = Path(_asked_for("Key to sign with", default="~/.ssh/id_ed25519")).expanduser()
    if options.signature is not None:
        signature = _read(options.signature)
    else:
        assert key is not None  # noqa: S101  # one of the two is there
        signature = sign(statement, key, certificate=options.certificate, passphrase=passphrase)
    made_with = verify_own(statement, signature)
    listed = block.keys.get(statement.name, [])
    if block.keys and made_with not in listed:
        raise VerificationFailed(
            "this answer would never count: it is signed with a key that is not listed",
            where=f"approver {statement.name} of trust domain {block.domain}", observed=made_with,
            expected=" or ".join(listed), next_command="sign with a listed key, or have this one listed",
        )  # fmt: skip
    return signature


def _read(path: Path) -> str:
    try:
        return path.expanduser().read_text(encoding="utf-8").strip() + "\n"
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            "the signature cannot be read", where=str(path), observed=str(error), expected="a file with a signature",
            next_command=_HELP,
        ) from error  # fmt: skip


def _confirmed(run: AskedRun, statement: Statement, *, terminal: bool) -> bool:
    if not terminal:
        raise InvalidInput(
            "nobody can be asked whether this answer is to be sent", where=f"flow run {run.id}",
            observed="no terminal", expected="--yes", next_command="add --yes",
        )  # fmt: skip
    question = f"Send {statement.decision!r} for {statement.gate} of {statement.domain}, as {statement.name}"
    return Confirm.ask(question, console=stderr(), default=False)


def _filled_in(statement: Statement, signature: str) -> dict[str, str]:
    """The form (flows/suspending.py:Answer)."""
    return {
        "decision": statement.decision,
        "name": statement.name,
        "ticket": statement.ticket,
        "comment": statement.comment,
        "signature": signature,
        "request": statement.request,
    }


def _tell_how_to_sign(run: AskedRun) -> None:
    stderr().print(
        "\nsign the text above, byte for byte, such as\n"
        f"  ssh-keygen -Y sign -f KEY -n {NAMESPACE} statement.json\n"
        f"and send it with the same options:\n  capstan approve {run.id} ... --signature statement.json.sig",
        soft_wrap=True,
    )


def _report(run: AskedRun, statement: Statement, *, signed: bool, output: Output) -> None:
    if output in (Output.JSON, Output.YAML):
        sent = {"run": str(run.id), "url": run.url, "signed": signed, "sent": datetime.now(UTC).isoformat()}
        print_data({**sent, **statement.fields()}, output)
        return
    how = "signed answer" if signed else "answer"
    about = f"{statement.gate} of {statement.domain}"
    stdout().print(f"{statement.decision}: the {how} of {statement.name} about {about} was taken down", soft_wrap=True)
    stdout().print(f"the run goes on: {run.url}", soft_wrap=True)
