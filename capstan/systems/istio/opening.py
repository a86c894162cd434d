"""Which source an istiod takes its CA from, found out from the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from capstan.cluster.resources import SECRETS
from capstan.errors import NotFound
from capstan.systems.istio.cacerts import CacertsSource
from capstan.systems.istio.citadel import CitadelSource
from capstan.systems.istio.layout import CACERTS, ISTIO_GENERATED, SELF_SIGNED, Layout, read_layout
from capstan.systems.istio.self_signed import SelfSignedSource
from capstan.systems.istio.source import CaSource, Mode

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from datetime import datetime

    from capstan.cluster.client import Cluster
    from capstan.config import PluginCa
    from capstan.systems.istio.owners import Tool


def open_source(
    cluster: Cluster,
    namespace: str,
    plugin_ca: PluginCa | None,
    *,
    accept: Collection[Tool] = (),
    now: Callable[[], datetime],
) -> CaSource:
    """The CA source of the control plane in this namespace.

    Args:
        plugin_ca: AKS add-on: which Key Vault secrets its CA comes from; None for upstream Istio.

    Raises:
        NotFound: There is no istiod, or its CA is not where it should be.
        InvalidInput: The Key Vault cannot be used.
    """
    if plugin_ca is not None:
        # Imported here: upstream Istio needs no Azure.
        from capstan.systems.istio.key_vault import open_key_vault

        return open_key_vault(cluster, plugin_ca, now=now)
    return source_of(cluster, read_layout(cluster, namespace), accept=accept, now=now)


def source_of(
    cluster: Cluster, layout: Layout, *, accept: Collection[Tool] = (), now: Callable[[], datetime]
) -> CaSource:
    """The CA source of an installation whose CA is in the cluster.

    Raises:
        NotFound: Nothing in the cluster holds its CA.
    """
    namespace = layout.namespace
    if layout.mode is Mode.CITADEL:
        return CitadelSource(cluster, namespace, now=now)
    if layout.mode is Mode.KEY_VAULT:
        raise NotFound(
            "the CA of this istiod is not in the cluster", where=f"namespace {namespace} of cluster {cluster.name}",
            observed="a volume of the secrets-store CSI driver", expected="the Key Vault that it comes from",
            next_command="use --system aks-istio, with plugin_ca.cluster_id or plugin_ca.key_vault",
        )  # fmt: skip
    if layout.mode is Mode.PLUG_IN:
        return CacertsSource(cluster, namespace, layout.ca_secret or CACERTS, accept=accept, now=now)
    # Self-signed; with USE_CACERTS_FOR_SELF_SIGNED_CA istiod keeps even that in `cacerts`, marked as its own.
    if layout.ca_secret != SELF_SIGNED:
        secret = cluster.find(SECRETS, layout.ca_secret, namespace)
        if secret is not None and ISTIO_GENERATED in (secret.get("data") or {}):
            return CacertsSource(cluster, namespace, layout.ca_secret, accept=accept, now=now)
    return SelfSignedSource(cluster, namespace, now=now)
