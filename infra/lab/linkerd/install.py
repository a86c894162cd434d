"""Install Linkerd into a cluster and wait until its control plane is ready."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from infra.lab import pki
from infra.lab.client import ApiError, Informer
from infra.lab.linkerd import manifests
from infra.lab.objects import create, wait_until_available

if TYPE_CHECKING:
    from infra.lab.client import KubeClient
    from infra.lab.services import ServiceAddresses

JSON = dict[str, Any]

READY_SECONDS = 90.0


def mint(
    addresses: ServiceAddresses, namespace: str = "linkerd", *, default_certificates: bool = False
) -> manifests.Material:
    """A new root, issuer and webhook certificate, and addresses for the two services.

    Args:
        default_certificates: Root and issuer are one certificate, as `linkerd install` makes it by itself.
    """
    now = datetime.now(UTC)
    root = pki.mint_self_signed_issuer(now=now) if default_certificates else pki.mint_root(now=now)
    injector_address = addresses.take()
    names = [f"linkerd-proxy-injector.{namespace}.svc", injector_address]
    return manifests.Material(
        root=root,
        issuer=root if default_certificates else pki.mint_issuer(root, now=now),
        webhook=pki.mint_serving(names, now=now),
        identity_address=addresses.take(),
        injector_address=injector_address,
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
    await create(client, manifests.webhook(options, material))


async def is_installed(client: KubeClient, namespace: str = "linkerd") -> bool:
    """Whether there already is a control plane."""
    try:
        await client.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/linkerd-identity")
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    return True
