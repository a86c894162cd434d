"""Linkerd, its trust anchor and issuer held by plain objects, its CLI or Helm."""

from capstan.systems.linkerd.adapter import Linkerd
from capstan.systems.linkerd.layout import Tool

__all__ = ["Linkerd", "Tool"]
