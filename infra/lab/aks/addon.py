"""An AKS cluster's Azure side, as one thing a lab starts: Key Vault, Resource Manager, CSI driver, Istio add-on.

    addon = Addon(options, directory)
    await addon.start(client, programs)      # before the kubelets: it gives them a CSI driver
    await addon.install(client, addresses)   # when services are up: control planes until they are ready
    await addon.stop()

In `directory` appear `keyvault/vault.json` and `keyvault/arm.json` (URL, CA, and the environment in which Azure's
clients find both), as beside each other in `capstan lab vault`.
"""
