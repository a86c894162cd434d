"""`capstan demo`: whole rotations on the embedded lab, judged by the lab's own prober, from nothing to a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from capstan.cli import demos
from capstan.cli.demos import Demo, Documented, Turn
from capstan.cli.entry_points import What, phases_of, redate_flow
from capstan.config import ClusterRef, PluginCa, System, TrustDomain

if TYPE_CHECKING:
    from capstan.cli.labs import Lab
    from capstan.cli.live import Handshakes
    from capstan.rotation import Outcome

app = App(name="demo", help="A whole rotation on the embedded lab, with a report of every handshake.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What every demo can be told."""

    report: Path | None = None
    """Write the result as JSON to this file."""

    approve: Literal["auto", "ask"] = "auto"
    """auto: no questions. ask: each approval is asked on the terminal."""

    directory: Annotated[Path | None, Parameter(name="--dir")] = None
    """Where the lab, the vault and the evidence go; default: a new directory under the home."""

    size: Literal["demo", "small"] = "demo"
    """demo has more than 40 meshed pods, small has a handful."""

    leaf_seconds: int = 40
    """Life of a workload's leaf certificate in seconds, instead of 24 hours."""

    def demo(self, name: str, system: System, *lab: str) -> Demo:
        """The demo of a system, on a lab with these further options."""
        where = demos.directory_of(name, self.directory)
        return Demo(name, system, where, ["--system", system.value, "--size", self.size, *lab], self.leaf_seconds)


_BLOG = Documented(
    "documented-blog", "documented_blog", "renew anchor, sleep, renew issuer, sleep, restart Deployments, drop"
)
_TWO_STEP = Documented(
    "documented", "aks_two_step", "root-cert A+B, wait, then root, intermediate, key and chain of B in one update"
)
_DELETE_CREATE = Documented(
    "documented", "delete_create", "delete Secret cacerts and create it with the new CA, restart istiod"
)
_NEW_KEY = Documented("documented", "in_place_new_key", "patch istio-ca-secret with a new key and certificate")


@app.command
def linkerd(
    options: DemoOptions = DemoOptions(),  # frozen: cyclopts fills the fields in
    *,
    procedure: Literal["capstan", "documented-blog"] = "capstan",
) -> int:
    """Rotate Linkerd's trust anchor and issuer in a lab with more than 40 meshed pods, and count every handshake.

    Parameters
    ----------
    procedure
        capstan: ours. documented-blog: the order of the published CronJob, on the same lab, to compare.
    """
    demo = options.demo("linkerd", System.LINKERD)

    def turns(lab: Lab) -> Sequence[Turn]:
        return [demos.turn(_domain(demo, lab), "root", options.approve, "Linkerd trust anchor rotation on the lab")]

    return demos.run(demo, turns, _BLOG if procedure != "capstan" else None, options.report)


@app.command
def istio_plugin(
    options: DemoOptions = DemoOptions(),  # frozen: cyclopts fills the fields in
    *,
    procedure: Literal["capstan", "documented"] = "capstan",
    istio_version: str = "1.30.1",
    multiroot: bool = True,
    xds_agent: bool = False,
    envoys: int = 2,
) -> int:
    """Rotate the root and the intermediate of an upstream Istio with a plug-in CA (Secret cacerts).

    Parameters
    ----------
    procedure
        capstan: ours. documented: delete and create the Secret, restart istiod, as recipes have it; to compare.
    istio_version
        What the lab's istiod behaves as: it decides what is taken without a restart.
    multiroot
        ISTIO_MULTIROOT_MESH, without which an istiod takes no other root before it is restarted.
    xds_agent
        PROXY_CONFIG_XDS_AGENT, with which proxies are told of new roots at once.
    envoys
        How many of the proxies are real Envoys.
    """
    switches = [name for name, on in (("--multiroot", multiroot), ("--xds-agent", xds_agent)) if on]
    lab_options = ("--ca", "plugin", "--istio-version", istio_version, "--envoys", str(envoys), *switches)
    demo = options.demo("istio-plugin", System.ISTIO, *lab_options)

    def turns(lab: Lab) -> Sequence[Turn]:
        return [demos.turn(_domain(demo, lab), "root", options.approve, "Istio plug-in CA: root rotation on the lab")]

    return demos.run(demo, turns, _DELETE_CREATE if procedure != "capstan" else None, options.report)


@app.command
def istio_self_signed(
    options: DemoOptions = DemoOptions(),  # frozen: cyclopts fills the fields in
    *,
    procedure: Literal["capstan", "documented"] = "capstan",
    istio_version: str = "1.30.1",
    multiroot: bool = True,
    envoys: int = 2,
) -> int:
    """Give Istio's self-signed root a new end (same key), then replace it by a new one (Secret cacerts).

    Parameters
    ----------
    procedure
        capstan: ours. documented: a new key patched into istio-ca-secret in place; to compare.
    istio_version
        What the lab's istiod behaves as.
    multiroot
        ISTIO_MULTIROOT_MESH, without which an istiod takes no other root before it is restarted.
    envoys
        How many of the proxies are real Envoys.
    """
    switches = ["--multiroot"] if multiroot else []
    lab_options = ("--ca", "self-signed", "--istio-version", istio_version, "--envoys", str(envoys), *switches)
    demo = options.demo("istio-self-signed", System.ISTIO, *lab_options)

    def turns(lab: Lab) -> Sequence[Turn]:
        domain = _domain(demo, lab)
        return [
            Turn("redate", _redating(domain, options.approve)),
            demos.turn(domain, "root", options.approve, "Istio self-signed CA: root rotation on the lab"),
        ]

    return demos.run(demo, turns, _NEW_KEY if procedure != "capstan" else None, options.report)


@app.command
def aks_istio(
    options: DemoOptions = DemoOptions(),  # frozen: cyclopts fills the fields in
    *,
    procedure: Literal["capstan", "documented"] = "capstan",
    revisions: str = "asm-1-30",
    ca_delivery: Literal["csi", "cacerts", "cronjob"] = "csi",
    envoys: int = 2,
) -> int:
    """Rotate the intermediate, then the root, of an AKS Istio add-on whose CA is in a Key Vault.

    Parameters
    ----------
    procedure
        capstan: ours. documented: the two steps of the vendor's page, to compare.
    revisions
        Revisions of the add-on; two, with a comma between, as during an upgrade.
    ca_delivery
        How the vault's secrets reach istiod: mounted (csi), by Secret cacerts, or with the CronJob that restarts it.
    envoys
        How many of the proxies are real Envoys.
    """
    lab_options = ("--revisions", revisions, "--ca-delivery", ca_delivery, "--envoys", str(envoys))
    demo = options.demo("aks-istio", System.AKS_ISTIO, *lab_options)

    def turns(lab: Lab) -> Sequence[Turn]:
        domain = _domain(demo, lab, PluginCa(cluster_id=str(lab.facts["cluster_id"])))
        # The first root was made elsewhere, as the vendor's page has it: its key is on a machine without network.
        offline = domain.model_copy(update={"policy": domain.policy.model_copy(update={"offline_root": True})})
        signing = demos.offline_signer(offline, "intermediate", Path(lab.facts["offline_ca"]))
        intermediate = "AKS Istio add-on: intermediate rotation on the lab, signed by the offline root"
        return [
            demos.turn(offline, "intermediate", options.approve, intermediate, signing),
            demos.turn(domain, "root", options.approve, "AKS Istio add-on: root rotation on the lab"),
        ]

    return demos.run(demo, turns, _TWO_STEP if procedure != "capstan" else None, options.report)


def _domain(demo: Demo, lab: Lab, plugin_ca: PluginCa | None = None) -> TrustDomain:
    cluster = ClusterRef(kubeconfig=str(lab.kubeconfig), plugin_ca=plugin_ca)
    return TrustDomain(
        name=demo.system.value,
        system=demo.system,
        control_plane_namespace=demo.system.namespace,
        clusters=(cluster,),
        home=str(demo.home),
    )


def _redating(
    domain: TrustDomain, approve: Literal["auto", "ask"]
) -> Callable[[Callable[[], Handshakes | None]], Outcome]:
    def run(handshakes: Callable[[], Handshakes | None]) -> Outcome:
        from capstan.cli.approving import ApprovalOptions
        from capstan.cli.rotate import run_flow

        return run_flow(
            domain, redate_flow, (None, False), approvals=ApprovalOptions(approve=approve),
            title="Istio self-signed CA: a new end for the root, on the lab", handshakes=handshakes,
            phases=phases_of(What.RE_DATE),
        )  # fmt: skip

    return run
