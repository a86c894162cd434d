"""The command line: `capstan check|plan|rotate|rollback|status|evidence|lab|demo`.

Commands are imported when they are called, so that `check` and `plan` start without Prefect.
"""

from __future__ import annotations

import os
import sys

from cyclopts import App, CycloptsError

from capstan.cli.output import Exit, exit_code, print_error
from capstan.errors import CapstanError

app = App(
    name="capstan",
    help="Turns the trust anchors of a running mesh or cluster without dropping a handshake.",
    version_flags=["--version"],
)
app.command("capstan.cli.check:check", help="Check a trust domain on evidence read from every live proxy.")
app.command("capstan.cli.plan:plan", help="Show what a rotation would do from here, changing nothing.")
app.command("capstan.cli.rotate:rotate", help="Rotate the trust anchor and the issuer; run again, it goes on.")
app.command("capstan.cli.rollback:rollback", help="Take a rotation back to what there was before it, from any phase.")
app.command("capstan.cli.approve:approve", help="Answer a run in Prefect that waits for an approval.")
app.command("capstan.cli.sign:sign", help="Sign an issuer's request with a root kept offline, or make such a root.")
app.command("capstan.cli.status:status", help="Show where a rotation is and who is being waited for.")
app.command("capstan.cli.inventory:app", name="inventory", help="Read and judge a file of trust domains.")
app.command("capstan.cli.deploy:deploy", help="Bring a file of trust domains to Prefect: deployments and schedules.")
app.command(
    "capstan.cli.istio:app", name="istio", help="Look at an Istio's CA and who holds it; re-date a self-signed root."
)
app.command("capstan.cli.evidence:app", name="evidence", help="Read and verify the signed account of a rotation.")
app.command("capstan.cli.lab:app", name="lab", help="Run the embedded lab cluster.")
app.command("capstan.cli.demo:app", name="demo", help="Run a whole rotation on the lab, and count every handshake.")


def main() -> None:
    """Run the command line and exit with a code that has a meaning (`capstan.cli.output.Exit`)."""
    # Prefect asks nobody before it reports usage; we do: off unless an operator switched it on.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    try:
        result = app(sys.argv[1:], exit_on_error=False, result_action="return_value")
    except CycloptsError:  # printed already; cyclopts itself would exit with 2, which here means "changes pending"
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
