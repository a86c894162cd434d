"""Install Istio into a cluster and wait until its control plane serves."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from infra.lab.client import ApiError, Informer
from infra.lab.istio import citadel_manifests, gateway, hierarchy, manifests, webhooks, ztunnel
from infra.lab.objects import create, is_available, wait_until_available

if TYPE_CHECKING:
    from infra.lab.client import KubeClient
    from infra.lab.services import ServiceAddresses

JSON = dict[str, Any]

READY_SECONDS = 90.0
CA_BUNDLE_SECONDS = 30.0
_MUTATING = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"


def mint(addresses: ServiceAddresses, options: manifests.Options) -> manifests.Material:
    """An address for istiod's Service and, for a plug-in CA, a new offline root with an intermediate."""
    address = addresses.take()
    if options.ca != manifests.PLUGIN:
        return manifests.Material(address)
    now = datetime.now(UTC)
    root = hierarchy.mint_root(now=now, identifiers=options.identifiers)
    intermediate = hierarchy.mint_intermediate(root, now=now, identifiers=options.identifiers)
    return manifests.Material(address, root, intermediate)


async def install(client: KubeClient, options: manifests.Options, material: manifests.Material) -> None:
    """Create everything: istiod, then its webhooks, then (when it serves) gateway and ztunnel.

    Raises:
        ApiError: If the cluster refuses an object.
        TimeoutError: If istiod is not available within 90 s, or has not filled in the webhooks' caBundle within 30 s.
    """
    if options.ca == manifests.CITADEL:
        await _citadel(client, options)
    else:
        await control_plane(client, options, manifests.objects(options, material))
    if options.gateway:
        await create_all(client, gateway.objects(options))
    if options.ambient:
        await create_all(client, ztunnel.objects(options))
    await _available(client, options.namespace)


async def control_plane(client: KubeClient, options: manifests.Options, objects: list[JSON]) -> None:
    """Create an istiod's objects and its webhooks, and wait until both serve; raises as `install`."""
    await create_all(client, [*objects, webhooks.mutating(options), webhooks.validating(options)])
    await _available(client, options.namespace)
    await _patched(client, webhooks.mutating(options)["metadata"]["name"])


async def _patched(client: KubeClient, name: str) -> None:
    """Wait until whoever serves this webhook has filled in its caBundle; raises TimeoutError."""
    informer = Informer(client, _MUTATING)
    try:
        await informer.wait_for(lambda found: any(key[1] == name and _filled(item) for key, item in found.items()),
                                CA_BUNDLE_SECONDS)  # fmt: skip
    finally:
        await informer.stop()


async def _citadel(client: KubeClient, options: manifests.Options) -> None:
    webhook = citadel_manifests.webhook(options)
    await create_all(client, [*citadel_manifests.objects(options), webhook])
    await _available(client, options.namespace)
    await _patched(client, webhook["metadata"]["name"])


async def create_all(client: KubeClient, objects: list[JSON]) -> None:
    """Create objects in order; what is there already (a second revision's namespace) stays. Raises ApiError."""
    for item in objects:
        try:
            await create(client, item)
        except ApiError as error:
            if error.status != 409 or item["kind"] != "Namespace":
                raise


async def is_installed(client: KubeClient, options: manifests.Options) -> bool:
    """Whether there already is a control plane of this name."""
    name = citadel_manifests.CITADEL if options.ca == manifests.CITADEL else options.istiod
    path = f"/apis/apps/v1/namespaces/{options.namespace}/deployments/{name}"
    try:
        await client.get(path)
    except ApiError as error:
        if error.status == 404:
            return False
        raise
    return True


async def _available(client: KubeClient, namespace: str) -> None:
    deployments = Informer(client, f"/apis/apps/v1/namespaces/{namespace}/deployments")
    try:
        await wait_until_available(deployments, READY_SECONDS)
    except TimeoutError as error:
        missing = sorted(name for (_, name), found in deployments.objects.items() if not is_available(found))
        text = f"not available after {READY_SECONDS:g} s in {namespace}: {', '.join(missing) or 'every Deployment'}"
        raise TimeoutError(f"{text}; see the logs of their pods") from error
    finally:
        await deployments.stop()


def _filled(configuration: JSON) -> bool:
    return all(entry["clientConfig"].get("caBundle") for entry in configuration.get("webhooks") or [])
