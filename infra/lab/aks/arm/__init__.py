"""Azure Resource Manager on loopback: enough of Microsoft.ContainerService/managedClusters for the unmodified
azure-mgmt-containerservice client to read a cluster and to enable its Istio add-on.

Sources: the REST reference of Managed Clusters (2026-08-01), "Track asynchronous Azure operations", the error codes of
Azure Resource Manager, and the checks that azure-cli makes of a plug-in CA's parameters.
"""

from infra.lab.aks.arm.server import ResourceManager

__all__ = ["ResourceManager"]
