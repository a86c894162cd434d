"""`python -m infra.lab up`: run a lab until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

from infra.lab import workloads
from infra.lab.client import ApiError
from infra.lab.linkerd import manifests
from infra.lab.linkerd.issuer import SCHEME_FILES
from infra.lab.linkerd.metrics import minor_version
from infra.lab.prober import DEFAULT_RATE
from infra.lab.up import SYSTEMS, Lab, Options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m infra.lab", description="Capstan's embedded cluster.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="run a lab until SIGTERM or SIGINT")
    up.add_argument("--system", choices=SYSTEMS, default="linkerd", help="trust system to install")
    up.add_argument("--dir", type=Path, default=Path(".capstan-lab"), help="where kubeconfig and lab.json appear")
    up.add_argument("--kubeconfig", type=Path, help="use this cluster instead of starting an API server")
    up.add_argument("--size", choices=sorted(workloads.SIZES), default="demo", help="of the sample workloads")
    up.add_argument("--nodes", type=int, default=3, help="kubelets to run")
    up.add_argument("--port", type=int, default=0, help="of the API server; 0 takes a free one")
    up.add_argument("--leaf-seconds", type=int, default=24, help="issuance lifetime of leaves")
    up.add_argument("--skew-seconds", type=int, default=1, help="clock-skew allowance of leaves")
    up.add_argument("--min-refresh", default="1s", help="floor of the proxies' renewal interval (Go duration)")
    up.add_argument("--linkerd-version", default=manifests.DEFAULT_VERSION, help="version to behave as")
    up.add_argument("--scheme", choices=sorted(SCHEME_FILES), default="linkerd.io/tls", help="of the issuer Secret")
    up.add_argument("--no-native-sidecar", action="store_true", help="put linkerd-proxy into spec.containers")
    up.add_argument("--control-plane-replicas", type=int, default=1)
    up.add_argument("--probes-per-second", type=float, default=DEFAULT_RATE, help="new mTLS connections")
    up.add_argument("--verbose", action="store_true", help="log what the lab's parts do")
    return parser


def options(arguments: argparse.Namespace) -> Options:
    """The options behind parsed arguments."""
    minor_version(arguments.linkerd_version)
    linkerd = manifests.Options(
        version=arguments.linkerd_version,
        leaf_seconds=arguments.leaf_seconds,
        skew_seconds=arguments.skew_seconds,
        min_refresh=arguments.min_refresh,
        scheme=arguments.scheme,
        native_sidecar=not arguments.no_native_sidecar,
        replicas=arguments.control_plane_replicas,
    )
    return Options(
        directory=arguments.dir.absolute(),
        system=arguments.system,
        kubeconfig=arguments.kubeconfig,
        size=arguments.size,
        nodes=arguments.nodes,
        port=arguments.port,
        probes_per_second=arguments.probes_per_second,
        linkerd=linkerd,
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
    parser = _parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if arguments.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("httpcore").setLevel(logging.WARNING)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        chosen = options(arguments)
    except ValueError as error:
        parser.error(str(error))
    return asyncio.run(run(chosen))


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
