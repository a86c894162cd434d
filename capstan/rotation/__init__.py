"""A rotation of one trust domain: what is remembered while it runs, and its steps over all clusters.

Below the tasks (which add retries) and above the adapters (which know one cluster each). Knows no Prefect.
"""

from capstan.rotation.opening import open_rotation
from capstan.rotation.outcome import Outcome, PhaseTime
from capstan.rotation.session import Rotation

__all__ = ["Outcome", "PhaseTime", "Rotation", "open_rotation"]
