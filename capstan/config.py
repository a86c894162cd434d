"""What a person declares about one trust domain: its clusters, its vault, its policy.

The models are Pydantic, so that a flow parameter of this type is a form in the Prefect UI and a validated body in its
API. They hold references only; no key material ever enters a parameter (Prefect stores parameters in clear text).
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from capstan.errors import InvalidInput
from capstan.pki.keys import KeyAlgorithm
from capstan.window import MaintenanceWindow, TimeZone

# A name ends up in ConfigMap, Lease and Key Vault secret names: RFC 1123 label (RFC 1123 section 2.1, Kubernetes
# "DNS label"), short enough to leave room for our own prefixes and suffixes.
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def _dns_label(value: str) -> str:
    if not _LABEL.fullmatch(value) or len(value) > 40:
        msg = f"{value!r} is no DNS label of at most 40 characters (lower-case letters, digits, hyphens inside)"
        raise ValueError(msg)
    return value


DnsLabel = Annotated[str, AfterValidator(_dns_label)]


# A rotation's id names files, tags of the vault and stamps on workloads: the syntax of a label's value (Kubernetes,
# "Labels and Selectors"), which all of them take.
_ROTATION_ID = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")


def require_rotation_id(rotation: str) -> None:
    """Refuse an id that a rotation cannot have, before anything is named by it.

    Raises:
        InvalidInput: It is not a Kubernetes label's value, or is empty.
    """
    if not _ROTATION_ID.fullmatch(rotation) or len(rotation) > 63:
        raise InvalidInput(
            "this cannot be a rotation's id", where="rotation", observed=repr(rotation),
            expected="1 to 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends",
            next_command="another id, such as 2027-spring; or none: it is then named after today",
        )  # fmt: skip


def home() -> Path:
    """Where Capstan keeps what it writes on this machine: `$CAPSTAN_HOME`, else the XDG state directory.

    Source: XDG Base Directory Specification, `$XDG_STATE_HOME`.
    """
    explicit = os.environ.get("CAPSTAN_HOME")
    if explicit:
        return Path(explicit)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "capstan"


def request_timeout() -> float:
    """Seconds that one request to an API server may take: `$CAPSTAN_REQUEST_TIMEOUT`, else 30.

    Raises:
        InvalidInput: The variable is no number above zero.
    """
    return _seconds("CAPSTAN_REQUEST_TIMEOUT", 30.0, least=0.1)


def retry_for() -> float:
    """Seconds for which a step is tried again on a fault that may pass: `$CAPSTAN_RETRY_FOR`, else 68.

    By default that outlasts an API server's restart and a Lease's hand-over. A deployed run then leaves its process
    and comes back later; any other ends with the fault, to be run again.

    Raises:
        InvalidInput: The variable is no number, or below zero.
    """
    return _seconds("CAPSTAN_RETRY_FOR", 68.0, least=0.0)


def _seconds(variable: str, default: float, *, least: float) -> float:
    text = os.environ.get(variable, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value < math.inf:
        raise InvalidInput(
            "an environment variable cannot be used", where=f"${variable}", observed=repr(text),
            expected=f"seconds, at least {least:g}", next_command=f"unset {variable}, or set it to seconds",
        )  # fmt: skip
    return value


class System(StrEnum):
    """The kinds of trust systems Capstan can rotate."""

    LINKERD = "linkerd"
    ISTIO = "istio"
    AKS_ISTIO = "aks-istio"

    @property
    def namespace(self) -> str:
        """Where its control plane runs unless somebody chose otherwise."""
        return {System.LINKERD: "linkerd", System.ISTIO: "istio-system", System.AKS_ISTIO: "aks-istio-system"}[self]


class PluginCa(BaseModel):
    """The Key Vault secrets from which the AKS Istio add-on takes its CA (`az aks mesh enable`, plug-in CA)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key_vault: str = Field(
        default="", description="https://NAME.vault.azure.net; default: as the cluster's profile says"
    )
    cluster_id: str = Field(
        default="",
        description="ARM id of the managed cluster; with it vault and object names are read from its profile",
    )
    root_cert: str = Field(default="root-cert", description="Name of the secret with the root certificates")
    ca_cert: str = Field(default="ca-cert", description="Name of the secret with the intermediate's certificate")
    ca_key: str = Field(default="ca-key", description="Name of the secret with the intermediate's private key")
    cert_chain: str = Field(default="cert-chain", description="Name of the secret with the intermediate and its root")


class ClusterRef(BaseModel):
    """How to reach one cluster. With neither field set: the pod's own service account, else the default kubeconfig."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: DnsLabel = Field(default="cluster", description="Name of the cluster within the trust domain")
    kubeconfig: str | None = Field(default=None, description="Path of a kubeconfig file on the machine that runs this")
    context: str | None = Field(default=None, description="Context in the kubeconfig; default: its current one")
    plugin_ca: PluginCa | None = Field(default=None, description="AKS Istio add-on only: where its CA is kept")


class ApproverKey(BaseModel):
    """A person whose signature counts as an approval, and the public key it is made with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=100, description="Who this is; two keys of one name are one person")
    key: str = Field(description="One line of an OpenSSH public key file, or a PEM certificate")


class RotationPolicy(BaseModel):
    """What new CAs look like, how long each wait may take, and who decides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root_validity: timedelta = Field(default=timedelta(days=3650), description="Life of a new trust anchor")
    issuer_validity: timedelta = Field(default=timedelta(days=365), description="Life of a new issuer")
    root_algorithm: KeyAlgorithm = Field(default=KeyAlgorithm.P256, description="Key of a new trust anchor")
    offline_root: bool = Field(
        default=False,
        description="The root's key is kept on a machine without network: each new issuer is signed there",
    )
    leaf_renewal: Literal["await", "restart"] = Field(
        default="await", description="How leaves are renewed: by themselves within their life, or by rolling restarts"
    )
    restart_deadline: timedelta = Field(
        default=timedelta(minutes=30), description="Longest time all rollouts of one restart may take together"
    )
    webhook_reload: timedelta = Field(
        default=timedelta(seconds=150),
        description="How long a webhook's server has to serve what its Secret holds, before it is restarted for it",
    )
    parallel_restarts: int = Field(default=4, ge=1, le=64, description="Workloads that are restarted at the same time")
    approvals: frozenset[Literal["trust", "issue", "distrust"]] = Field(
        default=frozenset({"trust", "issue", "distrust"}),
        min_length=1,
        description="Phases before which a person is asked; each can be switched off, never all",
    )
    approval_timeout: timedelta = Field(
        default=timedelta(days=7), description="How long a request for approval stays open; running out decides nothing"
    )
    on_reject: Literal["roll-back", "stop"] = Field(
        default="roll-back", description="After a rejection: go back to the old roots, or leave all as it is"
    )
    approvers: tuple[ApproverKey, ...] = Field(
        default=(), description="Whose signed approvals count; with none listed, whoever can resume the run decides"
    )
    quorum: int = Field(default=1, ge=1, description="How many different approvers must agree")
    leave_process_after: timedelta = Field(
        default=timedelta(minutes=2),
        description="In a deployment, a wait that will last longer than this gives its process back and is resumed",
    )
    window: MaintenanceWindow | None = Field(
        default=None, description="A phase that changes the mesh begins only while it is open; default: at any time"
    )
    time_zone: TimeZone = Field(default="UTC", description="IANA name; the window is in its local time")


class TrustDomain(BaseModel):
    """One trust domain: the clusters that share roots, rotated together, every phase a barrier across all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: DnsLabel = Field(default="linkerd", description="Name of this trust domain in records, vault and evidence")
    system: System = Field(default=System.LINKERD, description="What holds the trust anchor")
    clusters: tuple[ClusterRef, ...] = Field(
        default=(ClusterRef(),), min_length=1, description="Clusters that share one trust anchor, rotated together"
    )
    control_plane_namespace: DnsLabel = Field(default="linkerd", description="Namespace of the mesh's control plane")
    vault: str = Field(
        default="",
        description="Where private keys live: local:/path or https://NAME.vault.azure.net; default: local, in the home",
    )
    home: str = Field(default="", description="Directory for evidence and the local vault; default: $CAPSTAN_HOME")
    policy: RotationPolicy = Field(
        default=RotationPolicy(), description="What new certificates look like, how long waits last, and who decides"
    )

    @model_validator(mode="before")
    @classmethod
    def _namespace_of_its_system(cls, given: Any) -> Any:
        """A namespace that nobody named is the one the system comes with."""
        if isinstance(given, dict) and "system" in given and "control_plane_namespace" not in given:
            with contextlib.suppress(ValueError):
                return {**given, "control_plane_namespace": System(given["system"]).namespace}
        return given

    def home_path(self) -> Path:
        """The directory this domain's evidence and local vault live under."""
        return Path(self.home) if self.home else home()

    def vault_url(self) -> str:
        """The vault's URL, with the default filled in."""
        return self.vault or f"local:{self.home_path() / 'vault'}"
