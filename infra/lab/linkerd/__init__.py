"""Linkerd in the lab: identity, proxy-injector and data plane as clients of any Kubernetes API."""
