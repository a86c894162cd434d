"""The lab's Key Vault as a process of its own, which can be killed and started again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pathlib import Path

READY_SECONDS = 60.0


class KeyVaultProcess:
    """Context manager: `with KeyVaultProcess(directory) as vault: vault.url, vault.environment`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self.kill()

    def start(self) -> None:
        """Serve; on the port it had before in this directory.

        Raises:
            AssertionError: It does not come up.
        """
        (self.directory / "vault.json").unlink(missing_ok=True)
        with (self.directory / "vault.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "infra.lab.keyvault", "--dir", str(self.directory)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        deadline = time.monotonic() + READY_SECONDS
        while not (self.directory / "vault.json").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"no Key Vault: {(self.directory / 'vault.log').read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None, "it is not running"
        self._process.kill()
        self._process.wait()
        self._process = None

    @property
    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.directory / "vault.json").read_text())
        return facts

    @property
    def url(self) -> str:
        return str(self._facts["url"])

    @property
    def ca_file(self) -> str:
        return str(self._facts["ca"])

    @property
    def environment(self) -> dict[str, str]:
        """What DefaultAzureCredential and the client's TLS need to find in their environment."""
        return dict(self._facts["environment"])
