"""The lab's Kubernetes API server."""

from .faults import Faults
from .server import ApiServer

__all__ = ["ApiServer", "Faults"]
