"""What every demo does: start a lab, turn its trust (or have it turned as documented), report every handshake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.text import Text

from capstan.cli import labs, live, prefect_local
from capstan.cli.approving import ApprovalOptions
from capstan.cli.entry_points import MODULES
from capstan.cli.output import Exit, print_table, stderr, stdout
from capstan.config import System, home
from capstan.errors import CapstanError, Permanent

if TYPE_CHECKING:
    from capstan.cli.live import Handshakes
    from capstan.config import TrustDomain
    from capstan.rotation import Outcome

# Handshakes before the first and after the last change show that the lab itself drops nothing.
QUIET_SECONDS = 3.0
_FAILURES_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Turn:
    """One rotation of a demo.

    Attributes:
        what: Its name in the report: `root`, `intermediate`, `redate`.
        run: Runs it; told where the handshakes are counted.
    """

    what: str
    run: Callable[[Callable[[], Handshakes | None]], Outcome]


@dataclass(frozen=True, slots=True)
class Documented:
    """A published procedure that the lab carries out to the letter.

    Attributes:
        name: Its name in the report.
        module: In `infra.lab.procedures`.
        steps: What it does, for a person who watches.
    """

    name: str
    module: str
    steps: str


@dataclass(frozen=True, slots=True)
class Demo:
    """What is shown, and where.

    Attributes:
        name: `aks-istio`; of the report's `system` and the directory.
        where: Directory of lab, vault and evidence.
        lab: Options of `capstan lab up`.
        leaf_seconds: Life of the lab's leaves.
    """

    name: str
    system: System
    where: Path
    lab: Sequence[str]
    leaf_seconds: int

    @property
    def home(self) -> Path:
        """Capstan's own directory."""
        return self.where / "capstan"


def directory_of(name: str, given: Path | None) -> Path:
    """Where a demo keeps its things, an absolute path: its vault is named by it."""
    return given.absolute() if given else home() / "demo" / datetime.now(UTC).strftime(f"{name}-%Y%m%dT%H%M%SZ")


def run(
    demo: Demo,
    turns: Callable[[labs.Lab], Sequence[Turn]],
    documented: Documented | None,
    report: Path | None,
) -> int:
    """Run a demo to its report; exit 1 if ours dropped a handshake or did not end.

    Args:
        turns: Our rotations, made for the lab that runs.
        documented: Carried out instead of ours, if given.
        report: JSON file.

    Raises:
        CapstanError: As the rotation; the lab could not be started.
    """
    labs.require_lab()
    if documented is None:
        prefect_local.start_early(demo.home, MODULES[demo.system])
    with _started(demo) as lab:
        result = _follow(demo, lab, documented) if documented else _rotate(demo, lab, turns(lab))
    if report:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(result, indent=2) + "\n")
    _print_result(result, demo.where, report)
    if documented is None and (not result["completed"] or result["handshakes"]["failed"]):
        return Exit.FAILURE
    return Exit.OK


def turn(
    domain: TrustDomain,
    what: str,
    approve: Literal["auto", "ask"],
    title: str,
    signing: AbstractContextManager[None] | None = None,
) -> Turn:
    """A rotation of root or intermediate, called as what it turns.

    Args:
        signing: Entered while it runs: somebody who signs what it asks to be signed.
    """
    from capstan.cli.entry_points import What
    from capstan.cli.rotate import run_rotation

    def rotate(handshakes: Callable[[], Handshakes | None]) -> Outcome:
        with signing or nullcontext():
            return run_rotation(
                domain, what=What(what), rotation=what, approvals=ApprovalOptions(approve=approve), title=title,
                handshakes=handshakes,
            )  # fmt: skip

    return Turn(what, rotate)


@contextmanager
def offline_signer(domain: TrustDomain, rotation: str, root: Path) -> Iterator[None]:
    """Whoever sits at the machine without network: answers the requests of a rotation by `capstan sign`.

    Args:
        root: Directory with root-cert.pem and root-key.pem.
    """
    from capstan.rotation.offline import chain_path, directory_of

    requests, chain, done = directory_of(domain, rotation), chain_path(domain, rotation), threading.Event()

    def wait_and_sign() -> None:
        while not done.wait(0.5):
            asked = sorted(requests.glob("*.csr.pem"))
            if len(asked) < len(domain.clusters) or chain.exists():
                continue
            command = [sys.executable, "-m", "capstan.cli", "sign", "--yes", "--out", str(chain)]
            command += ["--root-cert", str(root / "root-cert.pem"), "--root-key", str(root / "root-key.pem")]
            command += [part for file in asked for part in ("--request", str(file))]
            told = subprocess.run(command, capture_output=True, text=True, check=False)
            if told.returncode:
                stderr().print(told.stderr, soft_wrap=True)
                return

    thread = threading.Thread(target=wait_and_sign, name="offline root", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=30.0)


@contextmanager
def _started(demo: Demo) -> Iterator[labs.Lab]:
    console = stderr()
    console.print(f"starting the lab in {demo.where}")

    def seen(line: str) -> None:
        console.print(Text(f"  {line}", style="dim"))

    with labs.running_lab(demo.where, [*demo.lab, "--leaf-seconds", str(demo.leaf_seconds)], seen) as lab:
        # What the lab stands in for (a vault, a cloud's API) is found the way the real one is: by the environment.
        before = dict(os.environ)
        os.environ.update(lab.environment)
        try:
            time.sleep(QUIET_SECONDS)
            yield lab
        finally:
            os.environ.clear()
            os.environ.update(before)


def _rotate(demo: Demo, lab: labs.Lab, turns: Sequence[Turn]) -> dict[str, Any]:
    done: list[tuple[str, Outcome]] = []
    for one in turns:
        outcome = one.run(lab.handshakes)
        done.append((one.what, outcome))
        if not outcome.completed:
            break
    time.sleep(QUIET_SECONDS)
    counts = lab.prober()
    told = [_told(what, outcome) for what, outcome in done]
    refused = [outcome.old_root_refused for _, outcome in done if outcome.old_root_refused is not None]
    result = {
        "system": demo.name,
        "procedure": "capstan",
        "completed": len(done) == len(turns) and all(outcome.completed for _, outcome in done),
        "phases": [phase for rotation in told for phase in rotation["phases"]],
        "handshakes": {"attempted": counts["attempted"], "failed": counts["failed"]},
        "failures": counts["failures"][:_FAILURES_SHOWN],
        "pods": done[-1][1].peers,
        "roots": {"before": told[0]["roots"]["before"], "after": told[-1]["roots"]["after"]},
        "old_root_refused": all(refused) if refused else None,
        "api_requests": sum(outcome.api_requests for _, outcome in done),
        "resumed": any(outcome.resumed for _, outcome in done),
        "evidence": done[-1][1].evidence,
    }
    return result if len(turns) == 1 else {**result, "rotations": told}


def _told(what: str, outcome: Outcome) -> dict[str, Any]:
    return {
        "what": what,
        "rotation": outcome.rotation,
        "completed": outcome.completed,
        "phases": [{"name": phase.name, "seconds": round(phase.seconds, 3)} for phase in outcome.phases],
        "roots": {"before": list(outcome.roots_before), "after": list(outcome.roots_after)},
        "old_root_refused": outcome.old_root_refused,
        "evidence": outcome.evidence,
    }


def _follow(demo: Demo, lab: labs.Lab, documented: Documented) -> dict[str, Any]:
    before = lab.roots()
    command = [
        *(sys.executable, "-m", f"infra.lab.procedures.{documented.module}"),
        *("--kubeconfig", str(lab.kubeconfig), "--control", str(lab.facts["control"])),
        # Long enough for every leaf to be renewed once: what the order breaks shows until then.
        *("--watch-seconds", str(demo.leaf_seconds)),
        *(["--vault", str(lab.vault_file)] if lab.vault_file else []),
    ]
    with live.watching(f"{documented.name} on the lab", lab.handshakes) as shown:
        shown.step("documented procedure", documented.steps)
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    try:
        told: dict[str, Any] = json.loads(done.stdout)
    except json.JSONDecodeError as error:
        raise _broken(documented, done.returncode) from error
    if done.returncode:
        raise _broken(documented, done.returncode)
    return {
        "system": demo.name,
        "procedure": documented.name,
        "completed": True,
        "phases": [{"name": documented.name, "seconds": told["seconds"]}],
        "handshakes": told["handshakes"],
        "failures": lab.prober()["failures"][:_FAILURES_SHOWN],
        "pods": lab.pods(),
        "roots": {"before": before, "after": lab.roots()},
        "old_root_refused": None,
        "api_requests": None,
        "resumed": False,
        "evidence": None,
    }


def _broken(documented: Documented, code: int) -> CapstanError:
    return Permanent(
        "the documented procedure could not be carried out on the lab",
        where=f"infra.lab.procedures.{documented.module}", observed=f"exit code {code}", expected="a result as JSON",
        next_command="read its lines above, and the lab's log",
    )  # fmt: skip


def _print_result(result: dict[str, Any], where: Path, report: Path | None) -> None:
    handshakes = result["handshakes"]
    rotations = result.get("rotations", [])
    rows = [
        ("procedure", result["procedure"]),
        ("completed", "yes" if result["completed"] else "no"),
        *[(f"{rotation['what']}", _phases(rotation["phases"])) for rotation in rotations],
        *([] if rotations else [("phases", _phases(result["phases"]))]),
        ("meshed pods", str(result["pods"])),
        ("handshakes", f"{handshakes['attempted']:,} new mTLS connections, {handshakes['failed']} failed"),
    ]
    if result["roots"]:
        for side in ("before", "after"):
            rows.append((f"roots {side}", ", ".join(root[:16] for root in result["roots"][side])))
    if result["old_root_refused"] is not None:
        rows.append(("old root", "refused" if result["old_root_refused"] else "STILL ACCEPTED"))
    accounts = [rotation["evidence"] for rotation in rotations] or [result["evidence"]]
    rows += [("evidence", f"capstan evidence verify {account}") for account in accounts if account]
    if report:
        rows.append(("report", str(report)))
    rows.append(("kept in", str(where)))
    stdout().print()
    print_table(("result", ""), rows)


def _phases(phases: Sequence[dict[str, Any]]) -> str:
    return ", ".join(f"{phase['name']} {phase['seconds']:.1f} s" for phase in phases)
