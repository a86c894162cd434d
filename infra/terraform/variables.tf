variable "subscription_id" {
  description = "Azure subscription of everything made here."
  type        = string

  validation {
    condition     = can(regex("^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$", var.subscription_id))
    error_message = "subscription_id is a UUID."
  }
}

variable "resource_group_name" {
  description = "Existing resource group that receives the vault and the identities."
  type        = string

  validation {
    condition     = can(regex("^[-\\w._()]{0,89}[-\\w_()]$", var.resource_group_name))
    error_message = "resource_group_name has 1 to 90 letters, digits, -, _, ., ( or ) and does not end with a dot."
  }
}

variable "key_vault_name" {
  description = "Name of the Key Vault, unique in all of Azure. Capstan's vault URL is https://NAME.vault.azure.net."
  type        = string

  validation {
    condition = (
      can(regex("^[a-zA-Z][-a-zA-Z0-9]{1,22}[a-zA-Z0-9]$", var.key_vault_name))
      && !strcontains(var.key_vault_name, "--")
    )
    error_message = "key_vault_name has 3 to 24 letters, digits and single hyphens inside, and begins with a letter."
  }
}

variable "name_prefix" {
  description = "Prefix of the identities' names."
  type        = string
  default     = "capstan"

  validation {
    condition     = can(regex("^[a-zA-Z0-9][-a-zA-Z0-9_]{0,62}$", var.name_prefix))
    error_message = "name_prefix begins with a letter or digit and has at most 63 letters, digits, '-' or '_'."
  }
}

variable "clusters" {
  description = <<-EOT
    The clusters whose workers use the vault: a name of your own => the issuer URL of the cluster's ServiceAccount
    tokens (AKS: az aks show --query oidcIssuerProfile.issuerUrl). Only clusters that run a Capstan worker belong here;
    those that are rotated from elsewhere need no Azure identity.
  EOT
  type        = map(string)

  validation {
    condition     = length(var.clusters) > 0 && length(var.clusters) <= 20
    error_message = "clusters has 1 to 20 entries: Azure takes 20 federated credentials for each identity."
  }

  validation {
    condition     = alltrue([for name in keys(var.clusters) : can(regex("^[a-zA-Z0-9][-a-zA-Z0-9_]{0,79}$", name))])
    error_message = "A name in clusters begins with a letter or digit and has at most 80 letters, digits, '-' or '_'."
  }

  validation {
    condition     = alltrue([for issuer in values(var.clusters) : can(regex("^https://[^\\s?#]+$", issuer))])
    error_message = "An issuer in clusters is an https URL, exactly as in the tokens' iss claim (mind the final slash)."
  }
}

variable "kubernetes_namespace" {
  description = "Namespace of Capstan's ServiceAccounts (infra/kubernetes/cluster)."
  type        = string
  default     = "capstan"

  validation {
    condition     = can(regex("^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", var.kubernetes_namespace))
    error_message = "kubernetes_namespace is a DNS label (RFC 1123): at most 63 lower-case letters, digits, hyphens inside."
  }
}

variable "sku_name" {
  description = "standard, or premium for a vault whose keys are held in HSMs (secrets are encrypted under them)."
  type        = string
  default     = "standard"

  validation {
    condition     = contains(["standard", "premium"], var.sku_name)
    error_message = "sku_name is standard or premium."
  }
}

variable "soft_delete_retention_days" {
  description = "Days a deleted secret, or the deleted vault, can be recovered. Cannot be changed later."
  type        = number
  default     = 90

  validation {
    condition     = var.soft_delete_retention_days >= 7 && var.soft_delete_retention_days <= 90
    error_message = "soft_delete_retention_days is 7 to 90."
  }
}

variable "allowed_ip_ranges" {
  description = "Public IPv4 addresses or CIDR blocks (/30 or larger) that may reach the vault; the rest is denied."
  type        = set(string)
  default     = []

  validation {
    condition = alltrue([
      for range in var.allowed_ip_ranges :
      can(cidrhost(strcontains(range, "/") ? range : "${range}/32", 0))
      && !strcontains(range, ":") && !startswith(range, "0.0.0.0")
    ])
    error_message = "allowed_ip_ranges holds IPv4 addresses or CIDR blocks, and never all of the Internet."
  }
}

variable "allowed_subnet_ids" {
  description = "Subnets (with the service endpoint Microsoft.KeyVault) that may reach the vault."
  type        = set(string)
  default     = []

  validation {
    condition = alltrue([
      for id in var.allowed_subnet_ids :
      can(regex(
        "^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\\.Network/virtualNetworks/[^/]+/subnets/[^/]+$", id
      ))
    ])
    error_message = "allowed_subnet_ids holds resource ids of subnets."
  }
}

variable "public_network_access_enabled" {
  description = "false where the vault is reached by private endpoints only; then the two rules above have no effect."
  type        = bool
  default     = true
}

variable "log_analytics_workspace_id" {
  description = "Workspace that receives the vault's audit log (who read which secret); empty for none."
  type        = string
  default     = ""

  validation {
    condition = var.log_analytics_workspace_id == "" || can(regex(
      "^/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\\.OperationalInsights/workspaces/[^/]+$",
      var.log_analytics_workspace_id
    ))
    error_message = "log_analytics_workspace_id is the resource id of a Log Analytics workspace, or empty."
  }
}

variable "tags" {
  description = "Tags of all that is made here."
  type        = map(string)
  default     = {}

  validation {
    condition     = length(var.tags) <= 50
    error_message = "Azure takes at most 50 tags."
  }
}
