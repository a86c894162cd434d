"""`python -m infra.lab up`: run a lab until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from infra.lab import workloads
from infra.lab.aks.install import DELIVERIES, AksOptions
from infra.lab.client import ApiError
from infra.lab.istio import manifests as istio
from infra.lab.linkerd import manifests
from infra.lab.linkerd.identity import CLOCK_ANNOTATION, DEAD_WATCHER_ANNOTATION
from infra.lab.linkerd.issuer import SCHEME_FILES
from infra.lab.linkerd.metrics import minor_version
from infra.lab.prober import DEFAULT_RATE
from infra.lab.up import SYSTEMS, Lab, Options


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(prog="python -m infra.lab", description="Capstan's embedded cluster.")
    commands = whole.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="run a lab until SIGTERM or SIGINT")
    up.add_argument("--system", choices=SYSTEMS, default="linkerd", help="trust system to install")
    up.add_argument("--dir", type=Path, default=Path(".capstan-lab"), help="where kubeconfig and lab.json appear")
    up.add_argument("--kubeconfig", type=Path, help="use this cluster instead of starting an API server")
    up.add_argument("--size", choices=sorted(workloads.SIZES), default="demo", help="of the sample workloads")
    up.add_argument("--nodes", type=int, default=3, help="kubelets to run")
    up.add_argument("--port", type=int, default=0, help="of the API server; 0 takes a free one")
    up.add_argument("--leaf-seconds", type=int, help="lifetime of leaves; 24 (Linkerd) or 40 (Istio) by default")
    up.add_argument("--control-plane-replicas", type=int, help="1 (Linkerd) or 2 (Istio) by default")
    up.add_argument("--probes-per-second", type=float, default=DEFAULT_RATE, help="new mTLS connections")
    up.add_argument("--verbose", action="store_true", help="log what the lab's parts do")
    _linkerd(up.add_argument_group("linkerd"))
    _istio(up.add_argument_group("istio, aks-istio"))
    return whole


def _linkerd(up: argparse._ArgumentGroup) -> None:
    up.add_argument("--skew-seconds", type=int, default=1, help="clock-skew allowance of leaves")
    up.add_argument("--min-refresh", default="1s", help="floor of the proxies' renewal interval (Go duration)")
    up.add_argument("--linkerd-version", default=manifests.DEFAULT_VERSION, help="version to behave as")
    up.add_argument("--scheme", choices=sorted(SCHEME_FILES), default="linkerd.io/tls", help="of the issuer Secret")
    up.add_argument(
        "--default-certificates", action="store_true", help="one self-signed certificate is both anchor and issuer"
    )
    up.add_argument("--anchor-seconds", type=int, default=0, help="life of the trust anchor; 0 for years")
    up.add_argument("--issuer-seconds", type=int, default=0, help="life of the issuer; 0 for a year")
    up.add_argument("--viz", action="store_true", help="install the extension, with tap and tap-injector")
    up.add_argument(
        "--webhook-failure-policy", choices=("Ignore", "Fail"), default="Ignore", help="Fail: as highly available"
    )
    up.add_argument(
        "--stale-policy-validator", action="store_true", help="it never reads a renewed Secret (linkerd2 issue 7519)"
    )
    up.add_argument(
        "--native-sidecar",
        action=argparse.BooleanOptionalAction,
        help="linkerd-proxy among the init containers, or beside the others; as the version has it unless told",
    )
    up.add_argument(
        "--identity-watcher-dead", metavar="NODE", help="identity there (or `true`: anywhere) never reloads"
    )
    up.add_argument("--identity-clock", metavar="NODE=SECONDS", help="by how much identity's clock there is ahead")


def _istio(up: argparse._ArgumentGroup) -> None:
    up.add_argument("--ca", choices=istio.CA_MODES, default=istio.PLUGIN, help="where istiod's CA comes from")
    up.add_argument("--istio-version", help=f"version to behave as; {istio.DEFAULT_VERSION}, or 1.4.3 with Citadel")
    up.add_argument("--revision", default="default", help="of the control plane")
    up.add_argument("--multiroot", action="store_true", help="ISTIO_MULTIROOT_MESH of istiod")
    up.add_argument("--xds-agent", action="store_true", help="PROXY_CONFIG_XDS_AGENT of every proxy")
    up.add_argument("--tls-secret", action="store_true", help="Secret cacerts in the form of kubernetes.io/tls")
    up.add_argument("--no-ski", action="store_true", help="CA certificates without key identifiers")
    up.add_argument("--ambient", action="store_true", help="ztunnel on every node, and an ambient namespace")
    up.add_argument("--envoys", type=int, default=0, help="pods that run a real Envoy")
    up.add_argument("--revisions", help="of the AKS add-on, e.g. asm-1-29,asm-1-30")
    up.add_argument("--ca-delivery", choices=DELIVERIES, default="csi", help="how the AKS add-on's CA comes to istiod")
    up.add_argument("--poll-seconds", type=float, default=AksOptions.poll_seconds, help="of the CSI driver's rotation")
    up.add_argument("--no-secret-rotation", action="store_true", help="the CSI driver never looks for new versions")
    up.add_argument("--between-objects", type=float, default=0.0, help="seconds between two reads of the Key Vault")
    up.add_argument("--not-enabled", action="store_true", help="leave it to Resource Manager to enable the add-on")


def options(arguments: argparse.Namespace) -> Options:
    """The options behind parsed arguments."""
    minor_version(arguments.linkerd_version)
    replicas = arguments.control_plane_replicas
    linkerd = manifests.Options(
        version=arguments.linkerd_version,
        leaf_seconds=arguments.leaf_seconds or 24,
        skew_seconds=arguments.skew_seconds,
        min_refresh=arguments.min_refresh,
        scheme=arguments.scheme,
        native_sidecar=arguments.native_sidecar,
        identity_annotations=tuple(
            (name, value)
            for name, value in (
                (DEAD_WATCHER_ANNOTATION, arguments.identity_watcher_dead),
                (CLOCK_ANNOTATION, arguments.identity_clock),
            )
            if value
        ),
        default_certificates=arguments.default_certificates,
        anchor_seconds=arguments.anchor_seconds,
        issuer_seconds=arguments.issuer_seconds,
        replicas=1 if replicas is None else replicas,
        viz=arguments.viz,
        failure_policy=arguments.webhook_failure_policy,
        stale_policy_validator=arguments.stale_policy_validator,
    )
    ca = arguments.ca if arguments.system == "istio" else istio.PLUGIN
    leaf_seconds = arguments.leaf_seconds or istio.default_leaf_seconds(ca)
    return Options(
        directory=arguments.dir.absolute(),
        system=arguments.system,
        kubeconfig=arguments.kubeconfig,
        size=arguments.size,
        nodes=arguments.nodes,
        port=arguments.port,
        probes_per_second=arguments.probes_per_second,
        linkerd=linkerd,
        istio=istio.Options(
            version=arguments.istio_version or istio.default_version(ca),
            revision=arguments.revision,
            ca=ca,
            tls_secret=arguments.tls_secret,
            identifiers=not arguments.no_ski,
            multiroot=arguments.multiroot,
            xds_agent=arguments.xds_agent,
            leaf_seconds=leaf_seconds,
            replicas=2 if replicas is None else replicas,
            ambient=arguments.ambient,
            envoys=arguments.envoys,
        ),
        aks=AksOptions(
            revisions=tuple(filter(None, (arguments.revisions or "").split(","))),
            ca_delivery=arguments.ca_delivery,
            xds_agent=arguments.xds_agent,
            leaf_seconds=leaf_seconds,
            replicas=2 if replicas is None else replicas,
            identifiers=not arguments.no_ski,
            rotation=not arguments.no_secret_rotation,
            poll_seconds=arguments.poll_seconds,
            between_objects=arguments.between_objects,
        ),
        aks_envoys=arguments.envoys,
        aks_enabled=not arguments.not_enabled,
    )


async def run(chosen: Options) -> int:
    """Run until a signal; 0 after a clean stop, 1 if the lab could not start."""
    asked = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    lab = Lab(chosen, progress=_say)
    starting = asyncio.create_task(lab.start())
    waiting = asyncio.create_task(asked.wait())
    await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
    try:
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return 0
        try:
            await starting
        except (ApiError, OSError, TimeoutError) as error:
            _say(f"lab: could not start: {type(error).__name__}: {error}")
            return 1
        await waiting
        _say("lab: stopping")
        await lab.stop()
    finally:
        waiting.cancel()
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    command_line = parser()
    arguments = command_line.parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if arguments.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("httpcore").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        chosen = options(arguments)
    except ValueError as error:
        command_line.error(str(error))
    return asyncio.run(run(chosen))


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
