"""An Azure Key Vault on loopback: enough of its secrets REST API for the unmodified azure-keyvault-secrets client.

What it does, and how it answers, follows Microsoft's "Azure Key Vault REST API reference" (secrets) and "REST API error
codes"; state is in memory and gone when the process ends. `python -m infra.lab.keyvault --dir DIR` serves one.
"""

from infra.lab.keyvault.faults import Fault, Faults
from infra.lab.keyvault.server import KeyVault

__all__ = ["Fault", "Faults", "KeyVault"]
