"""The lab's controllers, and the one function that makes an API server into a cluster."""

from infra.lab.controllers.cluster import Cluster, start_cluster

__all__ = ["Cluster", "start_cluster"]
