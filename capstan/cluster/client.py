"""`Cluster`: one Kubernetes API, raw JSON in and out."""

from __future__ import annotations

from capstan.cluster.connection import user_agent
from capstan.cluster.reading import Reading
from capstan.cluster.watching import Watching
from capstan.cluster.writing import Writing

__all__ = ["Cluster", "user_agent"]


class Cluster(Reading, Writing, Watching):
    """One Kubernetes API. Get one with `Cluster.connect`, or from a configuration of the official client.

    Thread-safe: `map_bounded` calls it from many threads.
    """
