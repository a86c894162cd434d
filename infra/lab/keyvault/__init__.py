"""An Azure Key Vault on loopback: enough of its secrets REST API for the unmodified azure-keyvault-secrets client.

What it does, and how it answers, follows Microsoft's "Azure Key Vault REST API reference" (secrets) and "REST API error
codes". Its state is a file in its directory, from which a killed one goes on.
`python -m infra.lab.keyvault --dir DIR` serves one.
"""

from infra.lab.keyvault.faults import Fault, Faults
from infra.lab.keyvault.server import KeyVault

__all__ = ["Fault", "Faults", "KeyVault"]
