"""Where the flows live: modules that are installed with Capstan, wherever a worker runs. No code is pulled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from capstan.config import System

RADAR: Final = "flows.radar.radar"
SWEEP: Final = "flows.sweep.sweep"


@dataclass(frozen=True, slots=True)
class Flows:
    """The flows of one trust system, as `module.function`; empty where a system has none.

    Attributes:
        root: Rotates the trust anchor and the issuer.
        root_name: Its name in Prefect.
        roll_back: Takes a rotation back.
        intermediate: Rotates the issuer alone.
        intermediate_name: Its name in Prefect.
        redate: Gives a self-signed root a new end.
        enable: Gives a mesh its CA in the first place.
        expired: Replaces what has expired.
        expired_name: Its name in Prefect.
        webhooks: Rotates the serving certificates of the mesh's webhooks.
        webhooks_name: Its name in Prefect.
    """

    root: str
    root_name: str
    roll_back: str
    intermediate: str
    intermediate_name: str
    redate: str = ""
    enable: str = ""
    expired: str = ""
    expired_name: str = ""
    webhooks: str = ""
    webhooks_name: str = ""


FLOWS: Final = {
    System.LINKERD: Flows(
        "flows.linkerd.rotate_trust_anchor",
        "linkerd-trust-anchor",
        roll_back="flows.linkerd.roll_back",
        intermediate="flows.linkerd.rotate_issuer",
        intermediate_name="linkerd-issuer",
        expired="flows.linkerd_expired.replace_expired",
        expired_name="linkerd-expired",
        webhooks="flows.linkerd_webhooks.rotate_webhooks",
        webhooks_name="linkerd-webhooks",
    ),
    System.ISTIO: Flows(
        "flows.istio.rotate_root",
        "istio-root",
        roll_back="flows.istio.roll_back",
        intermediate="flows.istio.rotate_intermediate",
        intermediate_name="istio-intermediate",
        redate="flows.istio.redate_root",
    ),
    System.AKS_ISTIO: Flows(
        "flows.aks_istio.rotate_root",
        "aks-istio-root",
        roll_back="flows.aks_istio.roll_back",
        intermediate="flows.aks_istio.rotate_intermediate",
        intermediate_name="aks-istio-intermediate",
        enable="flows.aks_istio.enable_plugin_ca",
    ),
}

# Names in Prefect of everything that rotates: `system-*`.
ROTATIONS: Final = tuple(f"{system.value}-*" for system in System)
