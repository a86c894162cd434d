output "vault_uri" {
  description = "The `vault` of a trust domain."
  value       = trimsuffix(azurerm_key_vault.capstan.vault_uri, "/")
}

output "client_ids" {
  description = "ServiceAccount => value of its annotation azure.workload.identity/client-id."
  value       = { for account, identity in azurerm_user_assigned_identity.capstan : account => identity.client_id }
}

output "tenant_id" {
  description = "Tenant of vault and identities."
  value       = data.azurerm_client_config.current.tenant_id
}

output "key_vault_id" {
  description = "Resource id of the vault, for private endpoints and further role assignments."
  value       = azurerm_key_vault.capstan.id
}

output "annotate" {
  description = "Commands that tie each cluster's ServiceAccounts to the identities."
  value = [
    for account, identity in azurerm_user_assigned_identity.capstan :
    join(" ", [
      "kubectl annotate serviceaccount", account, "-n", var.kubernetes_namespace,
      "azure.workload.identity/client-id=${identity.client_id}",
    ])
  ]
}
