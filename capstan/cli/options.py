"""Options that several commands share: which domain, which clusters, which vault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter
from pydantic import ValidationError

from capstan.config import ClusterRef, PluginCa, RotationPolicy, System, TrustDomain
from capstan.errors import InvalidInput
from capstan.vaults.opening import require_url

_RESTARTS: timedelta = RotationPolicy.model_fields["restart_deadline"].default

# Help has a command's own options first, then these.
_WHERE = Group("Cluster, trust domain, vault", sort_key=1)
_ADD_ON = Group("AKS add-on", sort_key=2)


@Parameter(name="*", group=_WHERE)
@dataclass(frozen=True, kw_only=True)
class DomainOptions:
    """Which trust domain is meant."""

    kubeconfig: Annotated[Path | None, Parameter(env_var="KUBECONFIG")] = None
    """Kubeconfig file; default: $KUBECONFIG, ~/.kube/config, or the pod's own service account."""

    context: Annotated[tuple[str, ...], Parameter(consume_multiple=False, negative=())] = ()
    """Context of the kubeconfig. Repeat it for a trust domain of several clusters: they are rotated together."""

    system: System | None = None
    """What holds the trust anchor; default: what runs in the (first) cluster."""

    domain: Annotated[str | None, Parameter(env_var="CAPSTAN_DOMAIN")] = None
    """Name of the trust domain in records, vault and evidence; default: that of its system."""

    namespace: Annotated[str | None, Parameter(alias="-n")] = None
    """Namespace of the control plane; default: linkerd, istio-system or aks-istio-system."""

    vault: Annotated[str, Parameter(env_var="CAPSTAN_VAULT")] = ""
    """Where private keys live: local:/path or https://NAME.vault.azure.net; default: local, in the home."""

    home: Annotated[Path | None, Parameter(env_var="CAPSTAN_HOME")] = None
    """Directory for evidence and the local vault; default: $XDG_STATE_HOME/capstan."""

    leaf_renewal: Literal["await", "restart"] = "await"
    """Istio: leaves renew by themselves within their life (await), or by rolling restarts (restart)."""

    restart_deadline: timedelta = _RESTARTS
    """Longest time that all restarts of one step may take together, and that a gate waits for processes: 30m, 2h."""

    offline_root: Annotated[bool, Parameter(negative=())] = False
    """The root's key is kept on a machine without network: each issuer's request is signed there (capstan sign)."""

    cluster_id: Annotated[tuple[str, ...], Parameter(group=_ADD_ON, consume_multiple=False, negative=())] = ()
    """ARM id of the managed cluster, whose profile names Key Vault and secrets; once for each --context."""

    key_vault: Annotated[str, Parameter(group=_ADD_ON)] = ""
    """https://NAME.vault.azure.net with the CA's secrets; default: as the cluster's profile says."""

    root_cert_object_name: Annotated[str, Parameter(group=_ADD_ON)] = "root-cert"
    """Name of the secret with the root certificates, as in `az aks mesh enable`."""

    ca_cert_object_name: Annotated[str, Parameter(group=_ADD_ON)] = "ca-cert"
    """Name of the secret with the intermediate's certificate."""

    ca_key_object_name: Annotated[str, Parameter(group=_ADD_ON)] = "ca-key"
    """Name of the secret with the intermediate's private key."""

    cert_chain_object_name: Annotated[str, Parameter(group=_ADD_ON)] = "cert-chain"
    """Name of the secret with the intermediate and its root."""

    def resolve(self, among: Sequence[System] = tuple(System)) -> TrustDomain:
        """The domain these options describe; a system that is not named is looked for in the first cluster.

        Args:
            among: Systems that are looked for, and that may be named; the first is taken where none is found.

        Raises:
            InvalidInput: An option's value cannot be used, or a cluster has more than one trust system.
            CapstanError: The cluster cannot be read.
        """
        path = str(self.kubeconfig) if self.kubeconfig else None
        if self.kubeconfig and not self.kubeconfig.exists() and ":" not in str(self.kubeconfig):
            raise InvalidInput(
                "the kubeconfig file does not exist",
                where=str(self.kubeconfig),
                expected="a readable kubeconfig",
                next_command="pass --kubeconfig FILE or set KUBECONFIG",
            )
        # What was written wrongly is said before any cluster is asked.
        domain = self._domain(path, self.system or among[0])
        require_url(domain.vault_url())
        if self.system is not None and self.system not in among:
            raise InvalidInput(
                "this command is of other trust systems",
                observed=f"--system {self.system.value}",
                expected=" or ".join(system.value for system in among),
                next_command="capstan --help",
            )
        if self.system is None:
            from capstan.cli.detecting import detect

            domain = self._domain(path, detect(domain.clusters[0], self.namespace, among))
        if domain.system is not System.AKS_ISTIO and (self.cluster_id or self.key_vault):
            raise InvalidInput(
                "these options are the AKS add-on's alone",
                where=f"trust system {domain.system.value}",
                observed="--cluster-id" if self.cluster_id else "--key-vault",
                expected="--system aks-istio",
                next_command="capstan rotate --help",
            )
        return domain

    def _domain(self, kubeconfig: str | None, system: System) -> TrustDomain:
        contexts: tuple[str | None, ...] = self.context or (None,)
        if len(self.cluster_id) not in (0, len(contexts)):
            raise InvalidInput(
                "each cluster has its own id",
                where="--cluster-id",
                observed=f"{len(self.cluster_id)} for {len(contexts)} clusters",
                expected="one for each --context, in the same order",
                next_command="capstan rotate --help",
            )
        ids = self.cluster_id or ("",) * len(contexts)
        try:
            clusters = []
            for context, cluster_id in zip(contexts, ids, strict=True):
                named = {"name": _cluster_name(context)} if context and len(contexts) > 1 else {}
                plugin_ca = self._plugin_ca(cluster_id) if system is System.AKS_ISTIO else None
                clusters.append(ClusterRef(kubeconfig=kubeconfig, context=context, plugin_ca=plugin_ca, **named))
            return TrustDomain(
                name=self.domain if self.domain is not None else system.value,
                system=system,
                clusters=tuple(clusters),
                control_plane_namespace=self.namespace if self.namespace is not None else system.namespace,
                vault=self.vault,
                # A local vault is named by its absolute path.
                home=str(self.home.expanduser().absolute()) if self.home else "",
                policy=RotationPolicy(**self._policy()),
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise InvalidInput(
                f"option cannot be used: {first['msg'].removeprefix('Value error, ')}",
                where=".".join(str(part) for part in first["loc"]),
                observed=repr(first.get("input")),
                next_command="capstan rotate --help",
            ) from error

    def _policy(self) -> dict[str, Any]:
        return {
            "leaf_renewal": self.leaf_renewal,
            "restart_deadline": self.restart_deadline,
            "offline_root": self.offline_root,
        }

    def _plugin_ca(self, cluster_id: str) -> PluginCa:
        return PluginCa(
            key_vault=self.key_vault,
            cluster_id=cluster_id,
            root_cert=self.root_cert_object_name,
            ca_cert=self.ca_cert_object_name,
            ca_key=self.ca_key_object_name,
            cert_chain=self.cert_chain_object_name,
        )


def _cluster_name(context: str) -> str:
    """A DNS label made of a context's name (contexts may hold slashes, colons, at signs)."""
    label = "".join(character if character.isalnum() else "-" for character in context.lower()).strip("-")
    return label[-40:].strip("-") or "cluster"
