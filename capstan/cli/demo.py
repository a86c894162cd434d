"""`capstan demo`: a whole rotation on the embedded lab, judged by the lab's own prober, from nothing to a report."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.text import Text

from capstan.cli import labs, live, prefect_local
from capstan.cli.output import Exit, print_table, stderr, stdout
from capstan.config import ClusterRef, TrustDomain, home

app = App(name="demo", help="A whole rotation on the embedded lab, with a report of every handshake.")

# Handshakes before the first and after the last change show that the lab itself drops nothing.
QUIET_SECONDS = 3.0


@app.command
def linkerd(
    *,
    report: Path | None = None,
    procedure: Literal["capstan", "documented-blog"] = "capstan",
    approve: Literal["auto", "ask"] = "auto",
    directory: Annotated[Path | None, Parameter(name="--dir")] = None,
    size: Literal["demo", "small"] = "demo",
    leaf_seconds: int = 40,
) -> int:
    """Rotate Linkerd's trust anchor and issuer in a lab with more than 40 meshed pods, and count every handshake.

    Parameters
    ----------
    report
        Write the result as JSON to this file.
    procedure
        capstan: ours. documented-blog: the order of the published CronJob, on the same lab, to compare.
    approve
        auto: no questions. ask: each approval is asked on the terminal.
    directory
        Where the lab, the vault and the evidence go; default: a new directory under the home.
    size
        demo has more than 40 meshed pods, small has a handful.
    leaf_seconds
        Life of a workload's leaf certificate in seconds, instead of 24 hours.
    """
    labs.require_lab()
    where = directory or home() / "demo" / datetime.now(UTC).strftime("linkerd-%Y%m%dT%H%M%SZ")
    if procedure == "capstan":
        prefect_local.start_early(where / "capstan")
    arguments = ["--system", "linkerd", "--size", size, "--leaf-seconds", str(leaf_seconds)]
    with _started(where, arguments) as lab:
        result = _rotate(lab, where, approve) if procedure == "capstan" else _documented_blog(lab, leaf_seconds)
    if report:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(result, indent=2) + "\n")
    _print_result(result, where, report)
    if procedure == "capstan" and (not result["completed"] or result["handshakes"]["failed"]):
        return Exit.FAILURE
    return Exit.OK


@contextmanager
def _started(where: Path, arguments: list[str]) -> Iterator[labs.Lab]:
    console = stderr()
    console.print(f"starting the lab in {where}")

    def seen(line: str) -> None:
        console.print(Text(f"  {line}", style="dim"))

    with labs.running_lab(where, arguments, seen) as lab:
        time.sleep(QUIET_SECONDS)
        yield lab


def _rotate(lab: labs.Lab, where: Path, approve: Literal["auto", "ask"]) -> dict[str, Any]:
    from capstan.cli.approving import ApprovalOptions
    from capstan.cli.rotate import run_rotation

    domain = TrustDomain(
        name="linkerd", clusters=(ClusterRef(kubeconfig=str(lab.kubeconfig)),), home=str(where / "capstan")
    )
    outcome = run_rotation(
        domain,
        rotation=None,
        approvals=ApprovalOptions(approve=approve),
        title="Linkerd trust anchor rotation on the lab",
        handshakes=lab.handshakes,
    )
    time.sleep(QUIET_SECONDS)
    counts = lab.prober()
    return {
        "system": "linkerd",
        "procedure": "capstan",
        "completed": outcome.completed,
        "phases": [{"name": phase.name, "seconds": round(phase.seconds, 3)} for phase in outcome.phases],
        "handshakes": {"attempted": counts["attempted"], "failed": counts["failed"]},
        "failures": counts["failures"][:20],
        "pods": outcome.peers,
        "roots": {"before": list(outcome.roots_before), "after": list(outcome.roots_after)},
        "old_root_refused": outcome.old_root_refused,
        "api_requests": outcome.api_requests,
        "resumed": outcome.resumed,
        "evidence": outcome.evidence,
    }


def _documented_blog(lab: labs.Lab, leaf_seconds: int) -> dict[str, Any]:
    before = lab.roots()
    with live.watching("the published CronJob order on the lab", lab.handshakes) as watcher:
        watcher.step("documented procedure", "renew anchor, sleep, renew issuer, sleep, restart Deployments, drop")
        done = subprocess.run(
            [
                *(sys.executable, "-m", "infra.lab.procedures.documented_blog"),
                *("--kubeconfig", str(lab.kubeconfig), "--control", str(lab.facts["control"])),
                # Long enough for every leaf to be renewed once: what the order breaks shows until then.
                *("--watch-seconds", str(leaf_seconds)),
            ],
            stdout=subprocess.PIPE,
            check=True,
        )
    told: dict[str, Any] = json.loads(done.stdout)
    return {
        "system": "linkerd",
        "procedure": "documented-blog",
        "completed": True,
        "phases": [{"name": "documented-blog", "seconds": told["seconds"]}],
        "handshakes": told["handshakes"],
        "failures": lab.prober()["failures"][:20],
        "pods": lab.pods(),
        "roots": {"before": before, "after": lab.roots()},
        "old_root_refused": None,
        "api_requests": None,
        "resumed": False,
        "evidence": None,
    }


def _print_result(result: dict[str, Any], where: Path, report: Path | None) -> None:
    handshakes = result["handshakes"]
    rows = [
        ("procedure", result["procedure"]),
        ("completed", "yes" if result["completed"] else "no"),
        ("phases", ", ".join(f"{phase['name']} {phase['seconds']:.1f} s" for phase in result["phases"])),
        ("meshed pods", str(result["pods"])),
        ("handshakes", f"{handshakes['attempted']:,} new mTLS connections, {handshakes['failed']} failed"),
    ]
    if result["roots"]:
        for side in ("before", "after"):
            rows.append((f"roots {side}", ", ".join(root[:16] for root in result["roots"][side])))
    if result["old_root_refused"] is not None:
        rows.append(("old root", "refused" if result["old_root_refused"] else "STILL ACCEPTED"))
    if result["evidence"]:
        rows.append(("evidence", f"capstan evidence verify {result['evidence']}"))
    if report:
        rows.append(("report", str(report)))
    rows.append(("kept in", str(where)))
    stdout().print()
    print_table(("result", ""), rows)
