"""An image of a registry that cannot exist is never pulled, and says so as a kubelet does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.lab.cluster.cluster_lab import PODS, pod

if TYPE_CHECKING:
    from tests.lab.cluster.cluster_lab import ClusterLab


def test_an_image_of_a_registry_that_cannot_exist_is_backed_off_from(lab: ClusterLab) -> None:
    image = "registry.invalid/shop/web:2"

    def waits(reason: str) -> Any:
        def look(item: dict[str, Any]) -> bool:
            found = (item.get("status", {}).get("containerStatuses") or [{}])[0]
            return found.get("state", {}).get("waiting", {}).get("reason") == reason

        return look

    async def script() -> None:
        await lab.client.create(PODS, pod("unpulled", {"name": "main", "image": image}))
        found = await lab.pod("unpulled", waits("ErrImagePull"))
        message = found["status"]["containerStatuses"][0]["state"]["waiting"]["message"]
        assert message.startswith(f'failed to pull and unpack image "{image}": failed to resolve reference')
        assert message.endswith("dial tcp: lookup registry.invalid: no such host")
        found = await lab.pod("unpulled", waits("ImagePullBackOff"))
        assert found["status"]["phase"] == "Pending"
        await lab.client.delete(f"{PODS}/unpulled")
        await lab.gone(f"{PODS}/unpulled")

    lab.run(script())
