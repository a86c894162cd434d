"""`capstan lab`: the embedded cluster, for trying Capstan without one and for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Group, Parameter, validators

from capstan.cli import labs
from capstan.errors import InvalidInput

_AT_LEAST_ONE = validators.Number(gte=1)

app = App(name="lab", help="The embedded lab cluster: real X.509, real TLS, real HTTP, short leaf lifetimes.")


@Parameter(name="*", group=Group("Linkerd", sort_key=1))
@dataclass(frozen=True, kw_only=True)
class LinkerdOptions:
    """What only a lab with Linkerd has."""

    linkerd_version: str | None = None
    """What it behaves as; default: a current one."""

    viz: Annotated[bool, Parameter(negative=())] = False
    """With the extension viz, its tap and tap-injector."""

    anchor_seconds: int = 0
    """Life of the trust anchor; default: years."""

    issuer_seconds: int = 0
    """Life of the issuer; default: a year."""

    def arguments(self, system: str) -> list[str]:
        """As the lab's own command line takes them.

        Raises:
            InvalidInput: An option was given for another system.
        """
        if system != "linkerd":
            _only_defaults(self, system, fields(self))
            return []
        given = [found for found in fields(self) if getattr(self, found.name) != found.default]
        values = [(f"--{found.name.replace('_', '-')}", getattr(self, found.name)) for found in given]
        return [part for name, value in values for part in ((name,) if value is True else (name, str(value)))]


@Parameter(name="*", group=Group("Istio and the AKS add-on", sort_key=2))
@dataclass(frozen=True, kw_only=True)
class IstioOptions:
    """What only a lab with Istio has."""

    ca: Literal["plugin", "self-signed", "citadel"] = "plugin"
    """Upstream Istio: where its CA comes from: Secret cacerts, istio-ca-secret, or Citadel's."""

    istio_version: str | None = None
    """Upstream Istio: what istiod behaves as; default: a current one."""

    multiroot: Annotated[bool, Parameter(negative=())] = False
    """Upstream Istio: ISTIO_MULTIROOT_MESH, without which an istiod takes no other root before it is restarted."""

    xds_agent: Annotated[bool, Parameter(negative=())] = False
    """Upstream Istio: PROXY_CONFIG_XDS_AGENT, with which proxies are told of new roots at once."""

    revisions: str | None = None
    """AKS add-on: revisions of its control plane; two, with a comma between, as during an upgrade."""

    ca_delivery: Literal["csi", "cacerts", "cronjob"] = "csi"
    """AKS add-on: how the Key Vault's secrets reach istiod."""

    envoys: int = 0
    """How many of the proxies are real Envoys."""

    def arguments(self, system: str) -> list[str]:
        """As the lab's own command line takes them.

        Raises:
            InvalidInput: An option of another system was given.
        """
        if system in ("linkerd", "none"):
            _only_defaults(self, system, fields(self))
            return []
        upstream = [found for found in fields(self) if found.name in _UPSTREAM]
        if system == "aks-istio":
            _only_defaults(self, system, upstream)
            own = ["--ca-delivery", self.ca_delivery, *(["--revisions", self.revisions] if self.revisions else [])]
        else:
            _only_defaults(self, system, [found for found in fields(self) if found.name in _ADD_ON])
            own = ["--ca", self.ca, *(["--istio-version", self.istio_version] if self.istio_version else [])]
            own += ["--multiroot"] if self.multiroot else []
            own += ["--xds-agent"] if self.xds_agent else []
        return [*own, "--envoys", str(self.envoys)]


_UPSTREAM = ("ca", "istio_version", "multiroot", "xds_agent")
_ADD_ON = ("revisions", "ca_delivery")


def _only_defaults(options: LinkerdOptions | IstioOptions, system: str, unused: Sequence[Field[Any]]) -> None:
    for field in unused:
        if getattr(options, field.name) != field.default:
            raise InvalidInput(
                "this option has no meaning for that system", where=f"--system {system}",
                observed=f"--{field.name.replace('_', '-')}", expected="options of this system",
                next_command="capstan lab up --help",
            )  # fmt: skip


@app.command
def up(
    *,
    system: Literal["linkerd", "istio", "aks-istio", "none"] = "linkerd",
    directory: Annotated[Path, Parameter(name="--dir")] = Path("capstan-lab"),
    kubeconfig: Path | None = None,
    size: Literal["demo", "small"] = "demo",
    leaf_seconds: Annotated[int | None, Parameter(validator=_AT_LEAST_ONE)] = None,
    nodes: Annotated[int, Parameter(validator=_AT_LEAST_ONE)] = 3,
    linkerd: LinkerdOptions = LinkerdOptions(),  # frozen: cyclopts fills the fields in
    istio: IstioOptions = IstioOptions(),  # frozen, too
) -> None:
    """Run a lab until SIGTERM; when ready, DIR/kubeconfig and DIR/lab.json exist.

    What else it can play, down to a clock that is wrong: python -m infra.lab up --help.

    Parameters
    ----------
    system
        What to install, with meshed sample workloads and the prober; or nothing.
    directory
        Where to write kubeconfig and lab.json; made if absent. The AKS add-on's Key Vault is in DIR/keyvault.
    kubeconfig
        Run the controllers against this API server instead of starting one.
    size
        Number of sample workloads: demo has more than 40 meshed pods, small has a handful.
    leaf_seconds
        Life of a workload's leaf certificate in seconds, instead of 24 hours; default: 24 (Linkerd) or 40 (Istio).
    nodes
        Number of nodes (kubelets).
    """
    life = leaf_seconds if leaf_seconds is not None else 40 if "istio" in system else 24
    arguments = ["--system", system, "--dir", str(directory), "--size", size]
    arguments += ["--leaf-seconds", str(life), "--nodes", str(nodes)]
    arguments += [*linkerd.arguments(system), *istio.arguments(system)]
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
