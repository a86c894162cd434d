"""`python -m infra.lab.keyvault --dir DIR [--port PORT]`: serve a vault until SIGTERM or SIGINT.

Beside it runs a Resource Manager that knows the vault and one managed cluster; it keeps the cluster's bodies, and
carries nothing out, since there is no cluster.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

from infra.lab.aks import azure
from infra.lab.keyvault.server import KeyVault

JSON = dict[str, Any]


async def serve(directory: Path, port: int) -> None:
    """Serve until told to stop; `DIR/vault.json` and `DIR/arm.json` exist while it runs."""
    vault = KeyVault(directory, port=port)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await vault.start()
    arm = azure.resource_manager(directory, vault, _nothing, azure.cluster_body())
    await arm.start()
    exports = " ".join(f"{name}={value}" for name, value in vault.environment.items())
    sys.stdout.write(f"Key Vault at {vault.url}, pid {os.getpid()}\nexport {exports}\n")
    sys.stdout.flush()
    await stop.wait()
    await arm.stop()
    with contextlib.suppress(FileNotFoundError):
        (directory / "vault.json").unlink()
    await vault.stop()


async def _nothing(new: JSON, old: JSON | None) -> None:
    """Carry out what a cluster's new body asks for: there is no cluster."""
    del new, old


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m infra.lab.keyvault", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="directory for certificates, state and vault.json")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; default: as before, else a free one")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.dir.absolute(), arguments.port))


if __name__ == "__main__":
    main()
