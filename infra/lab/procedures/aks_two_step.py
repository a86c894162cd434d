"""Root rotation of the AKS Istio add-on as Microsoft's page has it ("Plug in CA certificates", root certificate
rotation).

Its order: root-cert := A+B with the old intermediate; wait until istiod has it; wait 24 hours; then root-cert := B
together with the intermediate, key and chain of B in one update. Workloads that renew first then trust B alone, while
their peers still present leaves of A.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from azure.keyvault.secrets.aio import SecretClient

from infra.lab.aks import hierarchy
from infra.lab.aks.azure import SECRET_NAMES
from infra.lab.aks.install import NAMESPACE
from infra.lab.aks.provider import ManagedIdentity
from infra.lab.procedures import judged

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from infra.lab.procedures.judged import Script


async def run(script: Script) -> None:
    """All steps in the page's order."""
    new = hierarchy.mint("B", now=datetime.now(UTC))
    async with open_vault(script.arguments.vault or script.directory / "keyvault" / "vault.json") as vault:
        held = {file: (await vault.get_secret(name)).value or "" for file, name in SECRET_NAMES.items()}
        both = held[hierarchy.ROOT_CERT] + new.root.certificate_pem
        first = {**held, hierarchy.ROOT_CERT: both}
        await script.step("az keyvault secret set, four times: root-cert holds A and B", upload(vault, first))
        await script.step("wait until istiod has taken both roots up", script.published(NAMESPACE, both))
        await script.wait_a_leaf_life()
        await script.step("az keyvault secret set, four times: all of B", upload(vault, new.texts()))
        only = new.root.certificate_pem
        await script.step("wait until istiod has taken the new root up", script.published(NAMESPACE, only))


async def upload(vault: SecretClient, texts: Mapping[str, str]) -> None:
    """One secret after the other, in the page's order."""
    for file, name in SECRET_NAMES.items():
        await vault.set_secret(name, texts[file])


def open_vault(file: Path) -> SecretClient:
    """A client of the Key Vault that `vault.json` tells of."""
    told = json.loads(file.read_text())
    environment = told["environment"]
    identity = ManagedIdentity(environment["IDENTITY_ENDPOINT"], environment["IDENTITY_HEADER"], told["ca"])
    return SecretClient(told["url"], identity, connection_verify=told["ca"])


if __name__ == "__main__":
    sys.exit(judged.main("aks-two-step", run, judged.parser(__doc__ or "").parse_args()))
