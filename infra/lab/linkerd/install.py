"""Install Linkerd into a cluster and wait until its control plane is ready."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from infra.lab import pki
from infra.lab.client import ApiError, Informer
from infra.lab.linkerd import hook_manifests, manifests
from infra.lab.objects import create, wait_until_available

if TYPE_CHECKING:
    from infra.lab.client import KubeClient
    from infra.lab.services import ServiceAddresses

JSON = dict[str, Any]

READY_SECONDS = 90.0


def mint(addresses: ServiceAddresses, options: manifests.Options) -> manifests.Material:
    """A new root and issuer with the lives that the options give them, a pair for each webhook, and addresses for the
    two services. An issuer may outlive its root: nothing clamps it in the field."""
    namespace, default_certificates = options.namespace, options.default_certificates
    anchor_seconds, issuer_seconds = options.anchor_seconds, options.issuer_seconds
    now = datetime.now(UTC)
    root_life: dict[str, Any] = {"lifetime": timedelta(seconds=anchor_seconds)} if anchor_seconds else {}
    life: dict[str, Any] = {"lifetime": timedelta(seconds=issuer_seconds)} if issuer_seconds else {}
    make_root = pki.mint_self_signed_issuer if default_certificates else pki.mint_root
    root = make_root(now=now, **root_life)
    injector_address = addresses.take()
    names = [f"linkerd-proxy-injector.{namespace}.svc", *([injector_address] if options.by_url else [])]
    return manifests.Material(
        root=root,
        issuer=root if default_certificates else pki.mint_issuer(root, now=now, **life),
        webhook=pki.mint_serving(names, now=now),
        identity_address=addresses.take(),
        injector_address=injector_address,
        hooks={
            secret: pki.mint_serving([name], now=now) for secret, name in hook_manifests.serving_names(options).items()
        },
    )


async def install(client: KubeClient, options: manifests.Options, material: manifests.Material) -> None:
    """Create everything; the webhook configuration last, once the injector is ready.

    Raises:
        ApiError: If the cluster refuses an object.
        TimeoutError: If the control plane is not ready within 90 s.
    """
    for item in manifests.objects(options, material):
        await create(client, item)
    deployments = Informer(client, f"/apis/apps/v1/namespaces/{options.namespace}/deployments")
    try:
        await wait_until_available(deployments, READY_SECONDS)
    finally:
        await deployments.stop()
    for item in (manifests.webhook(options, material), *hook_manifests.configurations(options, material.hooks)):
        await create(client, item)
    if options.viz:
        await _install_viz(client, options, material)


async def _install_viz(client: KubeClient, options: manifests.Options, material: manifests.Material) -> None:
    """The extension, whose pods are injected like any other; its configurations last."""
    for item in hook_manifests.viz(options, material.hooks):
        await create(client, item)
    deployments = Informer(client, f"/apis/apps/v1/namespaces/{hook_manifests.VIZ}/deployments")
    try:
        await wait_until_available(deployments, READY_SECONDS)
    finally:
        await deployments.stop()
    for item in hook_manifests.viz_configurations(options, material.hooks):
        await create(client, item)


async def is_installed(client: KubeClient, namespace: str = "linkerd") -> bool:
    """Whether there already is a control plane."""
    try:
        await client.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/linkerd-identity")
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    return True
