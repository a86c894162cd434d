"""`capstan demo`: whole rotations on the embedded lab, judged by the lab's own prober, from nothing to a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter

from capstan.cli import demos
from capstan.cli.demos import Demo, Documented, Turn
from capstan.cli.entry_points import redate_flow
from capstan.config import ClusterRef, PluginCa, System, TrustDomain

if TYPE_CHECKING:
    from capstan.cli.labs import Lab
    from capstan.cli.live import Handshakes
    from capstan.rotation import Outcome

app = App(name="demo", help="A whole rotation on the embedded lab, with a report of every handshake.")

Approve = Literal["auto", "ask"]
Size = Literal["demo", "small"]
Directory = Annotated[Path | None, Parameter(name="--dir")]

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
    *,
    report: Path | None = None,
    procedure: Literal["capstan", "documented-blog"] = "capstan",
    approve: Approve = "auto",
    directory: Directory = None,
    size: Size = "demo",
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
    demo = _demo("linkerd", System.LINKERD, directory, ["--system", "linkerd", "--size", size], leaf_seconds)

    def turns(lab: Lab) -> Sequence[Turn]:
        return [demos.turn(_domain(demo, lab), "root", approve, "Linkerd trust anchor rotation on the lab")]

    return demos.run(demo, turns, _BLOG if procedure != "capstan" else None, report)


@app.command
def istio_plugin(
    *,
    report: Path | None = None,
    procedure: Literal["capstan", "documented"] = "capstan",
    approve: Approve = "auto",
    directory: Directory = None,
    size: Size = "demo",
    leaf_seconds: int = 40,
    istio_version: str = "1.30.1",
    multiroot: bool = True,
    xds_agent: bool = False,
    envoys: int = 2,
) -> int:
    """Rotate the root and the intermediate of an upstream Istio with a plug-in CA (Secret cacerts).

    Parameters
    ----------
    report
        Write the result as JSON to this file.
    procedure
        capstan: ours. documented: delete and create the Secret, restart istiod, as recipes have it; to compare.
    approve
        auto: no questions. ask: each approval is asked on the terminal.
    directory
        Where the lab, the vault and the evidence go; default: a new directory under the home.
    size
        demo has more than 40 meshed pods, small has a handful.
    leaf_seconds
        Life of a workload's leaf certificate in seconds, instead of 24 hours.
    istio_version
        What the lab's istiod behaves as: it decides what is taken without a restart.
    multiroot
        ISTIO_MULTIROOT_MESH, without which an istiod takes no other root before it is restarted.
    xds_agent
        PROXY_CONFIG_XDS_AGENT, with which proxies are told of new roots at once.
    envoys
        How many of the proxies are real Envoys.
    """
    lab_options = ["--system", "istio", "--ca", "plugin", "--istio-version", istio_version, "--size", size]
    lab_options += ["--envoys", str(envoys), *(["--multiroot"] if multiroot else [])]
    lab_options += ["--xds-agent"] if xds_agent else []
    demo = _demo("istio-plugin", System.ISTIO, directory, lab_options, leaf_seconds)

    def turns(lab: Lab) -> Sequence[Turn]:
        return [demos.turn(_domain(demo, lab), "root", approve, "Istio plug-in CA: root rotation on the lab")]

    return demos.run(demo, turns, _DELETE_CREATE if procedure != "capstan" else None, report)


@app.command
def istio_self_signed(
    *,
    report: Path | None = None,
    procedure: Literal["capstan", "documented"] = "capstan",
    approve: Approve = "auto",
    directory: Directory = None,
    size: Size = "demo",
    leaf_seconds: int = 40,
    istio_version: str = "1.30.1",
    multiroot: bool = True,
    envoys: int = 2,
) -> int:
    """Give Istio's self-signed root a new end (same key), then replace it by a new one (Secret cacerts).

    Parameters
    ----------
    report
        Write the result as JSON to this file.
    procedure
        capstan: ours. documented: a new key patched into istio-ca-secret in place; to compare.
    approve
        auto: no questions. ask: each approval is asked on the terminal.
    directory
        Where the lab, the vault and the evidence go; default: a new directory under the home.
    size
        demo has more than 40 meshed pods, small has a handful.
    leaf_seconds
        Life of a workload's leaf certificate in seconds, instead of 24 hours.
    istio_version
        What the lab's istiod behaves as.
    multiroot
        ISTIO_MULTIROOT_MESH, without which an istiod takes no other root before it is restarted.
    envoys
        How many of the proxies are real Envoys.
    """
    lab_options = ["--system", "istio", "--ca", "self-signed", "--istio-version", istio_version, "--size", size]
    lab_options += ["--envoys", str(envoys), *(["--multiroot"] if multiroot else [])]
    demo = _demo("istio-self-signed", System.ISTIO, directory, lab_options, leaf_seconds)

    def turns(lab: Lab) -> Sequence[Turn]:
        domain = _domain(demo, lab)
        return [
            Turn("redate", _redating(domain, approve)),
            demos.turn(domain, "root", approve, "Istio self-signed CA: root rotation on the lab"),
        ]

    return demos.run(demo, turns, _NEW_KEY if procedure != "capstan" else None, report)


@app.command
def aks_istio(
    *,
    report: Path | None = None,
    procedure: Literal["capstan", "documented"] = "capstan",
    approve: Approve = "auto",
    directory: Directory = None,
    size: Size = "demo",
    leaf_seconds: int = 40,
    revisions: str = "asm-1-30",
    ca_delivery: Literal["csi", "cacerts", "cronjob"] = "csi",
    envoys: int = 2,
) -> int:
    """Rotate the intermediate, then the root, of an AKS Istio add-on whose CA is in a Key Vault.

    Parameters
    ----------
    report
        Write the result as JSON to this file.
    procedure
        capstan: ours. documented: the two steps of the vendor's page, to compare.
    approve
        auto: no questions. ask: each approval is asked on the terminal.
    directory
        Where the lab, the vault and the evidence go; default: a new directory under the home.
    size
        demo has more than 40 meshed pods, small has a handful.
    leaf_seconds
        Life of a workload's leaf certificate in seconds, instead of 24 hours.
    revisions
        Revisions of the add-on; two, with a comma between, as during an upgrade.
    ca_delivery
        How the vault's secrets reach istiod: mounted (csi), by Secret cacerts, or with the CronJob that restarts it.
    envoys
        How many of the proxies are real Envoys.
    """
    lab_options = ["--system", "aks-istio", "--revisions", revisions, "--ca-delivery", ca_delivery, "--size", size]
    lab_options += ["--envoys", str(envoys)]
    demo = _demo("aks-istio", System.AKS_ISTIO, directory, lab_options, leaf_seconds)

    def turns(lab: Lab) -> Sequence[Turn]:
        domain = _domain(demo, lab, PluginCa(cluster_id=str(lab.facts["cluster_id"])))
        # The first root was made elsewhere, as the vendor's page has it: its key is on a machine without network.
        offline = domain.model_copy(update={"policy": domain.policy.model_copy(update={"offline_root": True})})
        signing = demos.offline_signer(offline, "intermediate", Path(lab.facts["offline_ca"]))
        intermediate = "AKS Istio add-on: intermediate rotation on the lab, signed by the offline root"
        return [
            demos.turn(offline, "intermediate", approve, intermediate, signing),
            demos.turn(domain, "root", approve, "AKS Istio add-on: root rotation on the lab"),
        ]

    return demos.run(demo, turns, _TWO_STEP if procedure != "capstan" else None, report)


def _demo(name: str, system: System, directory: Path | None, lab: Sequence[str], leaf_seconds: int) -> Demo:
    return Demo(name, system, demos.directory_of(name, directory), lab, leaf_seconds)


def _domain(demo: Demo, lab: Lab, plugin_ca: PluginCa | None = None) -> TrustDomain:
    cluster = ClusterRef(kubeconfig=str(lab.kubeconfig), plugin_ca=plugin_ca)
    return TrustDomain(
        name=demo.system.value,
        system=demo.system,
        control_plane_namespace=demo.system.namespace,
        clusters=(cluster,),
        home=str(demo.home),
    )


def _redating(domain: TrustDomain, approve: Approve) -> Callable[[Callable[[], Handshakes | None]], Outcome]:
    def run(handshakes: Callable[[], Handshakes | None]) -> Outcome:
        from capstan.cli.approving import ApprovalOptions
        from capstan.cli.rotate import run_flow

        return run_flow(
            domain, redate_flow, (None, False), approvals=ApprovalOptions(approve=approve),
            title="Istio self-signed CA: a new end for the root, on the lab", handshakes=handshakes,
        )  # fmt: skip

    return run
