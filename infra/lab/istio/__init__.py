"""A lab mesh of Istio: istiod (or Citadel, before 1.5), agents with real or light proxies, gateways, ztunnel."""
