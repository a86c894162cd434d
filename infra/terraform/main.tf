# Where Capstan keeps private keys in production, and who may touch them: one Key Vault, one identity that rotates, one
# that reads. Pods become them by workload identity; there is no client secret anywhere.

data "azurerm_client_config" "current" {}

data "azurerm_resource_group" "capstan" {
  name = var.resource_group_name
}

resource "azurerm_key_vault" "capstan" {
  name                = var.key_vault_name
  location            = data.azurerm_resource_group.capstan.location
  resource_group_name = data.azurerm_resource_group.capstan.name
  tenant_id           = data.azurerm_client_config.current.tenant_id
  sku_name            = var.sku_name
  tags                = var.tags

  # Roles, not access policies: whoever may edit the vault may not thereby read it.
  rbac_authorization_enabled = true

  # Nobody, no administrator either, destroys a key before its time.
  purge_protection_enabled   = true
  soft_delete_retention_days = var.soft_delete_retention_days

  public_network_access_enabled = var.public_network_access_enabled

  network_acls {
    default_action             = "Deny"
    bypass                     = "None"
    ip_rules                   = var.allowed_ip_ranges
    virtual_network_subnet_ids = var.allowed_subnet_ids
  }

  lifecycle {
    prevent_destroy = true
  }
}

locals {
  audience = ["api://AzureADTokenExchange"]

  # ServiceAccount => the built-in role that its identity has on the vault.
  roles = {
    # Makes, reads, tags and disables secrets. Purging is out of its reach: the vault has purge protection.
    capstan-rotator = "Key Vault Secrets Officer"
    # Metadata only: `capstan check`, `plan` and `status` never open the vault, and a reader needs no private key.
    capstan-reader = "Key Vault Reader"
  }

  federations = {
    for pair in setproduct(keys(local.roles), keys(var.clusters)) :
    "${pair[0]}/${pair[1]}" => { account = pair[0], cluster = pair[1] }
  }
}

resource "azurerm_user_assigned_identity" "capstan" {
  for_each = local.roles

  name                = "${var.name_prefix}-${trimprefix(each.key, "capstan-")}"
  location            = data.azurerm_resource_group.capstan.location
  resource_group_name = data.azurerm_resource_group.capstan.name
  tags                = var.tags
}

resource "azurerm_federated_identity_credential" "capstan" {
  for_each = local.federations

  name                      = each.value.cluster
  user_assigned_identity_id = azurerm_user_assigned_identity.capstan[each.value.account].id
  audience                  = local.audience
  issuer                    = var.clusters[each.value.cluster]
  subject                   = "system:serviceaccount:${var.kubernetes_namespace}:${each.value.account}"
}

resource "azurerm_role_assignment" "capstan" {
  for_each = local.roles

  scope                = azurerm_key_vault.capstan.id
  role_definition_name = each.value
  principal_id         = azurerm_user_assigned_identity.capstan[each.key].principal_id
  principal_type       = "ServicePrincipal"
}

resource "azurerm_monitor_diagnostic_setting" "audit" {
  count = var.log_analytics_workspace_id == "" ? 0 : 1

  name                       = "capstan-audit"
  target_resource_id         = azurerm_key_vault.capstan.id
  log_analytics_workspace_id = var.log_analytics_workspace_id

  enabled_log {
    category = "AuditEvent"
  }
}
