"""How this Linkerd is installed: names, flags, issuer scheme, version, and which tool owns its objects.

Names and rules: Linkerd's charts and CLI, edge-26.8.3 and back to stable-2.12.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from capstan.cluster.resources import CONFIG_MAPS, DEPLOYMENTS
from capstan.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable

    from capstan.cluster.client import Cluster
    from capstan.cluster.values import Object
    from capstan.trust.observation import Fingerprint

TRUST_ROOTS: Final = "linkerd-identity-trust-roots"
TRUST_ROOTS_KEY: Final = "ca-bundle.crt"
CONFIG: Final = "linkerd-config"
CONFIG_KEY: Final = "values"
OVERRIDES: Final = "linkerd-config-overrides"
OVERRIDES_KEY: Final = "linkerd-config-overrides"
ISSUER: Final = "linkerd-identity-issuer"
IDENTITY: Final = "linkerd-identity"
CONTROL_PLANE: Final = ("linkerd-identity", "linkerd-destination", "linkerd-proxy-injector")
"""In the order of restarts: roots are born in identity, and the injector hands them on."""

ANCHORS: Final = "identityTrustAnchorsPEM"
ANCHORS_ENV: Final = "LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS"
LOCAL_NAME_ENV: Final = "LINKERD2_PROXY_IDENTITY_LOCAL_NAME"
MESH_LABEL: Final = "linkerd.io/control-plane-ns"
COMPONENT_LABEL: Final = "linkerd.io/control-plane-component"
PROXY: Final = "linkerd-proxy"
INIT: Final = "linkerd-init"
ADMIN_PORT_NAME: Final = "linkerd-admin"
ADMIN_PORT: Final = 4191

DEFAULT_LIFETIME: Final = 86400.0
DEFAULT_SKEW: Final = 10.0
"""Seconds that identity takes where it is told none, or what is no duration (it warns, and goes on): identity main.go,
pkg/identity `DefaultIssuanceLifetime`, pkg/tls `DefaultClockSkewAllowance`. The charts say 20 s."""

_DURATION: Final = re.compile(r"([0-9]*\.?[0-9]+)(ns|us|µs|ms|s|m|h)")
_UNIT: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Scheme(StrEnum):
    """Which keys of the issuer Secret are read; decided by identity's flag, not by the Secret's type."""

    LINKERD = "linkerd.io/tls"
    KUBERNETES = "kubernetes.io/tls"

    @property
    def keys(self) -> tuple[str, str]:
        """Names of the certificate's and the key's entries."""
        return ("crt.pem", "key.pem") if self is Scheme.LINKERD else ("tls.crt", "tls.key")


class Tool(StrEnum):
    """What manages an object and might revert a write to it."""

    PLAIN = "plain"
    CLI = "linkerd cli"
    HELM = "helm"
    ARGO = "argo cd"
    FLUX = "flux"
    TRUST_MANAGER = "trust-manager"
    CERT_MANAGER = "cert-manager"
    EXTERNAL_SECRETS = "external-secrets"
    SEALED_SECRETS = "sealed-secrets"
    SECRETS_STORE = "secrets-store csi driver"
    VAULT_OPERATOR = "vault secrets operator"
    CONTROLLER = "a controller"
    """One that is not known here: its ownerReference says that it keeps the object as it wants it."""

    @property
    def reverts(self) -> bool:
        """Whether it undoes a direct write: at once, at its next sync, or (Helm) at the next upgrade."""
        return self not in (Tool.PLAIN, Tool.CLI)


_BY_OWNER_KIND: Final = {
    "Bundle": Tool.TRUST_MANAGER,
    "ClusterBundle": Tool.TRUST_MANAGER,
    "Certificate": Tool.CERT_MANAGER,
    "ExternalSecret": Tool.EXTERNAL_SECRETS,
    "SealedSecret": Tool.SEALED_SECRETS,
    "VaultStaticSecret": Tool.VAULT_OPERATOR,
    "VaultDynamicSecret": Tool.VAULT_OPERATOR,
    "VaultPKISecret": Tool.VAULT_OPERATOR,
}
_BY_LABEL: Final = {
    "trust.cert-manager.io/bundle": Tool.TRUST_MANAGER,
    "trust-manager.io/bundle": Tool.TRUST_MANAGER,
    "reconcile.external-secrets.io/managed": Tool.EXTERNAL_SECRETS,
    "reconcile.external-secrets.io/created-by": Tool.EXTERNAL_SECRETS,
    "secrets-store.csi.k8s.io/managed": Tool.SECRETS_STORE,
    "secrets.hashicorp.com/vso-ownerRefUID": Tool.VAULT_OPERATOR,
}
_ARGO_MANAGERS: Final = frozenset({"argocd-controller", "argocd-application-controller"})
"""Argo CD's field manager since it names one, and before, when it was the name of its program."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One installation.

    Attributes:
        namespace: The control plane's.
        scheme: How the issuer Secret is to be read and written.
        issuance_lifetime: Seconds a leaf lives, without skew.
        clock_skew: Seconds of allowance on both ends of a leaf's life.
        trust_domain: SPIFFE-like suffix of identities, `cluster.local`.
        version: What the control plane says it is; empty if it does not.
        external_ca: Whether the chart leaves the trust roots to somebody else (`identity.externalCA`).
    """

    namespace: str
    scheme: Scheme
    issuance_lifetime: float
    clock_skew: float
    trust_domain: str
    version: str
    external_ca: bool

    @property
    def leaf_lifetime(self) -> float:
        """Seconds from a leaf's notBefore to its notAfter: the lifetime, and the skew on both ends."""
        return self.issuance_lifetime + 2 * self.clock_skew

    @property
    def identity_name(self) -> str:
        """The name that Linkerd gives an issuer: `identity.linkerd.cluster.local`."""
        return f"identity.{self.namespace}.{self.trust_domain}"


def read_layout(cluster: Cluster, namespace: str) -> Layout:
    """Read how Linkerd is installed in `namespace`.

    Raises:
        NotFound: There is no Linkerd there.
        InvalidInput: Its identity Deployment has flags we do not understand.
    """
    deployment = cluster.get(DEPLOYMENTS, IDENTITY, namespace)
    flags = _flags(deployment)
    values = config_values(cluster.find(CONFIG_MAPS, CONFIG, namespace))
    identity = values.get("identity") or {}
    scheme = flags.get("identity-scheme") or str((identity.get("issuer") or {}).get("scheme") or Scheme.LINKERD)
    try:
        known = Scheme(scheme)
    except ValueError:
        raise InvalidInput(
            "unknown issuer scheme", where=f"deployment {namespace}/{IDENTITY}", observed=f"-identity-scheme={scheme}",
            expected=" or ".join(Scheme), next_command=f"kubectl get deployment {IDENTITY} -n {namespace} -o yaml",
        ) from None  # fmt: skip
    labels = deployment["metadata"].get("labels") or {}
    return Layout(
        namespace=namespace,
        scheme=known,
        issuance_lifetime=_seconds_or(flags.get("identity-issuance-lifetime", ""), DEFAULT_LIFETIME),
        clock_skew=_seconds_or(flags.get("identity-clock-skew-allowance", ""), DEFAULT_SKEW),
        trust_domain=flags.get("identity-trust-domain")
        or str(values.get("identityTrustDomain") or values.get("clusterDomain") or "cluster.local"),
        version=str(labels.get("app.kubernetes.io/version") or values.get("linkerdVersion") or ""),
        external_ca=bool(identity.get("externalCA")),
    )


def config_values(config: Object | None) -> dict[str, Any]:
    """The Helm values that `linkerd-config` carries as YAML text; empty if there are none or they do not parse."""
    text = ((config or {}).get("data") or {}).get(CONFIG_KEY, "")
    try:
        values = YAML(typ="safe").load(text)
    except YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def overrides_text(secret: Object | None) -> str:
    """The YAML text of the CLI's Secret of overrides; empty if there is none."""
    data = ((secret or {}).get("data") or {}).get(OVERRIDES_KEY, "")
    return base64.b64decode(data).decode("utf-8") if data else ""


def owner_of(item: Object, *, cli_install: bool = False) -> Tool:
    """Which tool manages this object, by the marks each leaves on what it makes.

    Args:
        cli_install: Whether the CLI's Secret of overrides exists beside it.
    """
    metadata = item["metadata"]
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    managers = {str(entry.get("manager", "")) for entry in metadata.get("managedFields") or []}
    for label, tool in _BY_LABEL.items():
        if label in labels:
            return tool
    references = metadata.get("ownerReferences") or []
    for reference in references:
        if tool_found := _BY_OWNER_KIND.get(str(reference.get("kind"))):
            return tool_found
    if "trust-manager" in managers:
        return Tool.TRUST_MANAGER
    if "cert-manager.io/certificate-name" in annotations:
        return Tool.CERT_MANAGER
    if any(reference.get("controller") for reference in references):
        return Tool.CONTROLLER
    if "argocd.argoproj.io/tracking-id" in annotations or "argocd.argoproj.io/instance" in labels:
        return Tool.ARGO
    if {"helm.toolkit.fluxcd.io/name", "kustomize.toolkit.fluxcd.io/name"} & set(labels):
        return Tool.FLUX
    if "meta.helm.sh/release-name" in annotations:
        return Tool.HELM
    # Argo CD's older way of tracking; other tools set this label too, but theirs is named "Linkerd", not an app
    if labels.get("app.kubernetes.io/instance") and _ARGO_MANAGERS & managers:
        return Tool.ARGO
    return Tool.CLI if cli_install else Tool.PLAIN


def short(fingerprints: Iterable[Fingerprint]) -> str:
    """`{1a2b3c4d, 5e6f7a8b}`, for messages."""
    return "{" + ", ".join(sorted(fingerprint[:8] for fingerprint in fingerprints)) + "}"


def _flags(deployment: Object) -> dict[str, str]:
    """Go-style flags of the identity container: `-name=value`, `--name=value`, `-name value`."""
    flags: dict[str, str] = {}
    for container in deployment["spec"]["template"]["spec"].get("containers") or []:
        if container["name"] != "identity":
            continue
        arguments = [*(container.get("command") or []), *(container.get("args") or [])]
        for index, argument in enumerate(arguments):
            if not argument.startswith("-"):
                continue
            name, equals, value = argument.lstrip("-").partition("=")
            if not equals and index + 1 < len(arguments) and not arguments[index + 1].startswith("-"):
                value = arguments[index + 1]
            flags[name] = value
    return flags


def _seconds_or(text: str, default: float) -> float:
    """Seconds of a flag as identity takes it, which no mistake in it keeps from starting."""
    try:
        return _seconds(text)
    except InvalidInput:
        return default


def _seconds(text: str) -> float:
    """Seconds of a Go duration (time.ParseDuration): `24h0m0s`, `1m30s`, `0`."""
    if text == "0":
        return 0.0
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InvalidInput("not a duration", observed=repr(text), expected="a Go duration such as 24h0m0s")
    return sum(float(number) * _UNIT[unit] for number, unit in parts)
