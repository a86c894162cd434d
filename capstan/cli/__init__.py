"""The command line: `capstan check|plan|rotate|rollback|approve|status|...`.

Commands are imported when they are called, so that `check` and `plan` start without Prefect.
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from enum import Enum
from typing import Any, Final

from cyclopts import App, CycloptsError, Parameter

from capstan.cli.output import Exit, exit_code, print_error
from capstan.errors import CapstanError, InvalidInput


def _default(value: Any) -> str | None:
    """How a default is shown in help; None for one that says nothing: off, empty, none of them."""
    if isinstance(value, timedelta):
        return f"{value.total_seconds() / 60:g}m"
    if isinstance(value, Enum):
        return str(value.value)
    return None if value in (None, False, "", (), 0) else str(value)


# Where each command is, and its line in the list of all.
_COMMANDS: Final = {
    "check": ("check:check", "Check a trust domain on evidence read from every live proxy."),
    "plan": ("plan:plan", "Show what a rotation would do from here, changing nothing."),
    "rotate": ("rotate:rotate", "Rotate a trust anchor, an issuer, webhooks, what has expired; run again, it goes on."),
    "rollback": ("rollback:rollback", "Take a rotation back to what there was before it, from any phase."),
    "approve": ("approve:approve", "Answer a run in Prefect that waits for an approval."),
    "sign": ("sign:sign", "Sign an issuer's request with a root kept offline, or make such a root."),
    "status": ("status:status", "Show where a rotation is and who is being waited for."),
    "inventory": ("inventory:app", "Read and judge a file of trust domains."),
    "deploy": ("deploy:deploy", "Bring a file of trust domains to Prefect: deployments and schedules."),
    "istio": (
        "istio:app",
        "Look at an Istio's CA and who holds it; re-date a self-signed root; enable the AKS add-on.",
    ),
    "evidence": ("evidence:app", "Read, verify and draw the signed account of a rotation."),
    "lab": ("lab:app", "Run the embedded lab cluster."),
    "demo": ("demo:app", "Run a whole rotation on the lab, and count every handshake."),
}
_EXIT_CODES: Final = "Exit codes: 0 well, 1 failed, 2 changes pending, 3 a gate refused, 4 waiting for approval"


def _app(chosen: str) -> App:
    """The whole command line.

    Args:
        chosen: The command that will be called: its help is its own text instead of its line in the list.
    """
    made = App(
        name="capstan",
        help="Turns the trust anchors of a running mesh or cluster without dropping a handshake.",
        help_epilogue=_EXIT_CODES,
        version_flags=["--version"],
        default_parameter=Parameter(show_default=_default),
    )
    for name, (where, line) in _COMMANDS.items():
        made.command(f"capstan.cli.{where}", name=name, help=None if name == chosen else line)
    return made


app = _app("")


def _misread(error: CycloptsError) -> InvalidInput:
    """A command line that cannot be understood, told as every other error is."""
    command = " ".join(("capstan", *(error.command_chain or ())))
    return InvalidInput(str(error).strip(), next_command=f"{command} --help")


def main() -> None:
    """Run the command line and exit with a code that has a meaning (`capstan.cli.output.Exit`)."""
    # Prefect asks nobody before it reports usage; we do: off unless an operator switched it on.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    try:
        result = _app(sys.argv[1] if sys.argv[1:] else "")(
            sys.argv[1:], exit_on_error=False, print_error=False, result_action="return_value"
        )
    except CycloptsError as error:  # cyclopts itself would exit with 2, which here means "changes pending"
        print_error(_misread(error))
        sys.exit(Exit.FAILURE)
    except CapstanError as error:
        print_error(error)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; nothing is lost: run the same command again and it goes on from here\n")
        sys.exit(Exit.INTERRUPTED)
    except BrokenPipeError:
        # The reader went away (`| head`); point stdout at nothing so that the interpreter's exit stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.FAILURE)
    sys.exit(int(result) if isinstance(result, int) else Exit.OK)
