"""Istio, upstream and as the AKS add-on: `capstan.systems.istio.adapter` is the way in."""

from capstan.systems.istio.adapter import Istio, open_istio

__all__ = ["Istio", "open_istio"]
