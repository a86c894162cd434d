"""`capstan lab`: the embedded cluster, for trying Capstan without one and for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from capstan.cli import labs

app = App(name="lab", help="The embedded lab cluster: real X.509, real TLS, real HTTP, short leaf lifetimes.")


@app.command
def up(
    *,
    system: Literal["linkerd", "none"] = "linkerd",
    directory: Annotated[Path, Parameter(name="--dir")] = Path("capstan-lab"),
    kubeconfig: Path | None = None,
    size: Literal["demo", "small"] = "demo",
    leaf_seconds: int = 24,
    nodes: int = 3,
) -> None:
    """Run a lab until SIGTERM; when ready, DIR/kubeconfig and DIR/lab.json exist.

    Parameters
    ----------
    system
        What to install: Linkerd with meshed sample workloads and the prober, or nothing.
    directory
        Where to write kubeconfig and lab.json; made if absent.
    kubeconfig
        Run the controllers against this API server instead of starting one.
    size
        Number of sample workloads: demo has more than 40 meshed pods, small has a handful.
    leaf_seconds
        Life of a workload's leaf certificate in seconds, instead of 24 hours.
    nodes
        Number of nodes (kubelets).
    """
    arguments = ["--system", system, "--dir", str(directory), "--size", size]
    arguments += ["--leaf-seconds", str(leaf_seconds), "--nodes", str(nodes)]
    if kubeconfig:
        arguments += ["--kubeconfig", str(kubeconfig)]
    labs.exec_lab("up", *arguments)


@app.command
def vault(*, directory: Annotated[Path, Parameter(name="--dir")] = Path("capstan-vault"), port: int = 0) -> None:
    """Run a Key Vault that Microsoft's own client works against, until SIGTERM; when ready, DIR/vault.json exists.

    Parameters
    ----------
    directory
        Where secrets, certificates and vault.json are kept; made if absent, gone on with if not.
    port
        Port on 127.0.0.1; default: the one used before in this directory, else a free one.
    """
    labs.exec_vault("--dir", str(directory), *(["--port", str(port)] if port else []))
