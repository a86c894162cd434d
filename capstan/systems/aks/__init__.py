"""The managed cluster around the Istio add-on: its profile in Azure Resource Manager, and enabling a plug-in CA."""
