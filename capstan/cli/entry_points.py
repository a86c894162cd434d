"""Which flow a command runs: by trust system and by what is to be rotated. Imported only when it is run."""

from __future__ import annotations

import importlib
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from capstan.config import System
from capstan.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from capstan.cluster.record import Kind
    from capstan.rotation import Outcome
    from capstan.rotation.enabling import Enabled


class What(StrEnum):
    """What `capstan rotate` replaces."""

    ROOT = "root"
    """The trust anchor, and the issuer with it."""
    INTERMEDIATE = "intermediate"
    """The issuer alone, under the root there is."""
    ANCHOR = "anchor"
    """What Linkerd calls its root."""
    ISSUER = "issuer"
    """What Linkerd calls its intermediate."""
    EXPIRED = "expired"
    """Whatever of Linkerd's has expired: anchor, issuer or leaves. Downtime is unavoidable."""
    WEBHOOKS = "webhooks"
    """The serving certificates of Linkerd's webhooks; no root and no workload is concerned."""
    RE_DATE = "re-date"
    """The end of Istio's self-signed root: the same key and the same name, with another life."""


MODULES: Final = {
    System.LINKERD: "flows.linkerd",
    System.ISTIO: "flows.istio",
    System.AKS_ISTIO: "flows.aks_istio",
}
WEBHOOKS_MODULE: Final = "flows.linkerd_webhooks"
EXPIRED_MODULE: Final = "flows.linkerd_expired"
_ROTATE: Final = {
    (System.LINKERD, What.ROOT): "rotate_trust_anchor",
    (System.LINKERD, What.ANCHOR): "rotate_trust_anchor",
    (System.LINKERD, What.ISSUER): "rotate_issuer",
    (System.LINKERD, What.WEBHOOKS): "rotate_webhooks",
    (System.LINKERD, What.EXPIRED): "replace_expired",
    (System.ISTIO, What.ROOT): "rotate_root",
    (System.ISTIO, What.INTERMEDIATE): "rotate_intermediate",
    (System.ISTIO, What.RE_DATE): "redate_root",
    (System.AKS_ISTIO, What.ROOT): "rotate_root",
    (System.AKS_ISTIO, What.INTERMEDIATE): "rotate_intermediate",
}


_KINDS: Final[Mapping[What, Kind]] = {
    What.ROOT: "anchor",
    What.ANCHOR: "anchor",
    What.INTERMEDIATE: "issuer",
    What.ISSUER: "issuer",
    What.EXPIRED: "expired",
    What.WEBHOOKS: "webhooks",
    What.RE_DATE: "re-date",
}


OF: Final[Mapping[Kind, str]] = {
    "anchor": "",
    "issuer": " of the issuers",
    "re-date": " of the root's end",
    "webhooks": " of webhook certificates",
    "expired": " of what has expired",
}
"""What a rotation is of, in a title; the roots go without saying."""

_PHASES: Final[Mapping[Kind, tuple[str, ...]]] = {
    "issuer": ("prepare", "issue"),
    "re-date": ("prepare", "trust"),
    "expired": ("prepare", "issue"),
}


def phases_of(what: What) -> tuple[str, ...]:
    """The phases that its flow goes through."""
    return _PHASES.get(kind_of(what), ("prepare", "trust", "issue", "distrust"))


def kind_of(what: What) -> Kind:
    """What a rotation of it is called in its record."""
    return _KINDS[what]


def require_rotation(system: System, what: What) -> None:
    """Refuse what no flow does, before anything is started.

    Raises:
        InvalidInput: This system's rotation of that kind does not exist.
    """
    if (system, what) not in _ROTATE:
        known = ", ".join(kind.value for known, kind in _ROTATE if known is system)
        raise InvalidInput(
            "this trust system has no such rotation", where=f"trust system {system.value}", observed=f"--what {what}",
            expected=known, next_command="capstan rotate --help",
        )  # fmt: skip


def rotation_flow(system: System, what: What) -> Callable[..., Outcome]:
    """The flow that rotates.

    Raises:
        InvalidInput: As `require_rotation`.
    """
    require_rotation(system, what)
    if what is What.WEBHOOKS:
        return _flow_of(WEBHOOKS_MODULE, _ROTATE[system, what])
    if what is What.EXPIRED:
        return _flow_of(EXPIRED_MODULE, _ROTATE[system, what])
    return _flow(system, _ROTATE[system, what])


def roll_back_flow(system: System) -> Callable[..., Outcome]:
    """The flow that takes a rotation back."""
    return _flow(system, "roll_back")


def redate_flow() -> Callable[..., Outcome]:
    """The flow that gives Istio's self-signed root a new end."""
    return _flow(System.ISTIO, "redate_root")


def enable_flow() -> Callable[..., Enabled]:
    """The flow that gives AKS clusters their add-on with a plug-in CA."""
    return _flow(System.AKS_ISTIO, "enable_plugin_ca")


def _flow(system: System, name: str) -> Callable[..., Any]:
    return _flow_of(MODULES[system], name)


def _flow_of(module: str, name: str) -> Callable[..., Any]:
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found
