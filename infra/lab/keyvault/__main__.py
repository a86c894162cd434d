"""`python -m infra.lab.keyvault --dir DIR [--port PORT]`: serve a vault until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

from infra.lab.keyvault.server import KeyVault


async def serve(directory: Path, port: int) -> None:
    """Serve until told to stop; `DIR/vault.json` exists while it runs."""
    vault = KeyVault(directory, port=port)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await vault.start()
    exports = " ".join(f"{name}={value}" for name, value in vault.environment.items())
    sys.stdout.write(f"Key Vault at {vault.url}, pid {os.getpid()}\nexport {exports}\n")
    sys.stdout.flush()
    await stop.wait()
    with contextlib.suppress(FileNotFoundError):
        (directory / "vault.json").unlink()
    await vault.stop()


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m infra.lab.keyvault", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="directory for certificates, state and vault.json")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; default: as before, else a free one")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.dir.absolute(), arguments.port))


if __name__ == "__main__":
    main()
