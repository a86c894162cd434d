"""Istio as a `TrustSystem`: one mesh's control plane in one cluster, all its revisions."""

from __future__ import annotations
