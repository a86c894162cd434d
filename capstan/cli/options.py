"""Options that several commands share: which domain, which clusters, which vault."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from pydantic import ValidationError

from capstan.config import ClusterRef, TrustDomain
from capstan.errors import InvalidInput


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class DomainOptions:
    """Which trust domain is meant."""

    kubeconfig: Annotated[Path | None, Parameter(env_var="KUBECONFIG")] = None
    """Kubeconfig file; default: $KUBECONFIG, ~/.kube/config, or the pod's own service account."""

    context: Annotated[tuple[str, ...], Parameter(consume_multiple=False, negative=())] = ()
    """Context of the kubeconfig. Repeat it for a trust domain of several clusters: they are rotated together."""

    domain: Annotated[str, Parameter(env_var="CAPSTAN_DOMAIN")] = "linkerd"
    """Name of the trust domain in records, vault and evidence."""

    namespace: Annotated[str, Parameter(alias="-n")] = "linkerd"
    """Namespace of the control plane."""

    vault: Annotated[str, Parameter(env_var="CAPSTAN_VAULT")] = ""
    """Where private keys live: local:/path or https://NAME.vault.azure.net; default: local, in the home."""

    home: Annotated[Path | None, Parameter(env_var="CAPSTAN_HOME")] = None
    """Directory for evidence and the local vault; default: $XDG_STATE_HOME/capstan."""

    def resolve(self) -> TrustDomain:
        """The domain these options describe.

        Raises:
            InvalidInput: An option's value cannot be used.
        """
        path = str(self.kubeconfig) if self.kubeconfig else None
        if self.kubeconfig and not self.kubeconfig.exists() and ":" not in str(self.kubeconfig):
            raise InvalidInput(
                "the kubeconfig file does not exist",
                where=str(self.kubeconfig),
                expected="a readable kubeconfig",
                next_command="pass --kubeconfig FILE or set KUBECONFIG",
            )
        clusters: tuple[ClusterRef, ...]
        try:
            if len(self.context) > 1:
                clusters = tuple(
                    ClusterRef(name=_cluster_name(context), kubeconfig=path, context=context)
                    for context in self.context
                )
            else:
                clusters = (ClusterRef(kubeconfig=path, context=self.context[0] if self.context else None),)
            return TrustDomain(
                name=self.domain,
                clusters=clusters,
                control_plane_namespace=self.namespace,
                vault=self.vault,
                home=str(self.home) if self.home else "",
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise InvalidInput(
                f"option cannot be used: {first['msg'].removeprefix('Value error, ')}",
                where=".".join(str(part) for part in first["loc"]),
                observed=repr(first.get("input")),
                next_command="capstan rotate --help",
            ) from error


def _cluster_name(context: str) -> str:
    """A DNS label made of a context's name (contexts may hold slashes, colons, at signs)."""
    label = "".join(character if character.isalnum() else "-" for character in context.lower()).strip("-")
    return label[-40:].strip("-") or "cluster"
