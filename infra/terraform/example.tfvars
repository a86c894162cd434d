subscription_id     = "00000000-0000-0000-0000-000000000000"
resource_group_name = "rg-trust-weu"
key_vault_name      = "kv-capstan-weu-1"

clusters = {
  ops = "https://westeurope.oic.prod-aks.azure.com/11111111-1111-1111-1111-111111111111/22222222-2222-2222-2222-222222222222/"
}

allowed_ip_ranges = ["203.0.113.7", "198.51.100.0/28"]
allowed_subnet_ids = [
  "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg-net/providers/Microsoft.Network/virtualNetworks/vnet-ops/subnets/nodes",
]

log_analytics_workspace_id = "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg-logs/providers/Microsoft.OperationalInsights/workspaces/log-trust"

tags = {
  product = "capstan"
}
