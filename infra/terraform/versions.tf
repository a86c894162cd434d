terraform {
  required_version = ">= 1.9.0"

  required_providers {
    azurerm = {
      source = "hashicorp/azurerm"
      # 4.65 brought user_assigned_identity_id on federated credentials; every argument used here is in 5.x too.
      version = ">= 4.65.0, < 6.0.0"
    }
  }
}

provider "azurerm" {
  subscription_id = var.subscription_id

  features {
    key_vault {
      # A vault of CA keys is never purged by a `terraform destroy`.
      purge_soft_delete_on_destroy    = false
      recover_soft_deleted_key_vaults = true
    }
  }
}
