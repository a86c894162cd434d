"""The AKS side of the lab: the Istio add-on with its CA in a Key Vault, and what Azure runs around it.

Everything here is a client of the API server and of the Key Vault's endpoint, as the real parts are: the secrets-store
CSI driver with the Azure provider, the add-on's control planes (one for each revision), the cert-validator CronJob of
older revisions, and Azure Resource Manager.
"""
