"""The API server is killed and comes back: what clients see, and that kubelets and controllers go on."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import kubernetes
import pytest

from infra.lab.client import ApiError, Informer, KubeClient

if TYPE_CHECKING:
    from tests.lab.cluster.cluster_lab import ClusterLab

DEPLOYMENTS = "/apis/apps/v1/namespaces/default/deployments"
PODS = "/api/v1/namespaces/default/pods"
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


def config_map(name: str, value: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": value}}


def test_killed_it_ends_what_is_open_and_refuses_what_is_new_until_it_is_started(lab: ClusterLab) -> None:
    port = lab.server.port
    try:
        with socket.create_connection(("127.0.0.1", port)) as idle:
            lab.run(lab.server.kill())
            idle.settimeout(5)
            with suppress(ConnectionResetError):  # an end instead of a reset, where it was not accepted yet
                assert idle.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    finally:
        lab.run(lab.server.start())
    assert lab.server.port == port
    assert lab.run(lab.client.get("/api/v1/namespaces/default"))["kind"] == "Namespace"


def test_a_watch_of_the_official_client_breaks_and_must_list_again(lab: ClusterLab) -> None:
    configuration = kubernetes.client.Configuration()
    kubernetes.config.load_kube_config(str(lab.server.kubeconfig), client_configuration=configuration)
    configuration.proxy = None
    configuration.retries = False
    with kubernetes.client.ApiClient(configuration) as api:
        core = kubernetes.client.CoreV1Api(api)
        before = core.list_namespaced_config_map("default").metadata.resource_version
        lab.run(lab.client.create(CONFIG_MAPS, config_map("seen", "1")))
        lab.run(lab.server.kill())
        with pytest.raises(Exception, match=r"refused|Connection"):
            core.list_namespaced_config_map("default")
        lab.run(lab.server.start())
        # The state is etcd's and survived; the watch cache is new and does not reach back.
        assert core.read_namespaced_config_map("seen", "default").data == {"a": "1"}
        with pytest.raises(kubernetes.client.ApiException) as gone:
            list(kubernetes.watch.Watch().stream(core.list_namespaced_config_map, "default", resource_version=before))
        assert gone.value.status == 410


def test_an_informer_misses_nothing_that_happened_around_an_outage(lab: ClusterLab) -> None:
    async def outage() -> dict[str, str]:
        writer = KubeClient.from_kubeconfig(lab.server.kubeconfig, user_agent="writer")
        informer = Informer(lab.client, CONFIG_MAPS)
        try:
            await informer.synced()
            await writer.create(CONFIG_MAPS, config_map("around", "before"))
            await lab.server.kill()
            with pytest.raises(ApiError):
                await writer.get(f"{CONFIG_MAPS}/around")
            await lab.server.start()
            await writer.patch(f"{CONFIG_MAPS}/around", {"data": {"a": "after"}})
            await informer.wait_for(lambda o: o.get(("default", "around"), {}).get("data") == {"a": "after"}, 20)
            return dict(informer.objects["default", "around"]["data"])
        finally:
            await informer.stop()
            await writer.close()

    assert lab.run(outage()) == {"a": "after"}


@pytest.mark.slow
def test_kubelets_and_controllers_go_on_after_several_outages_and_pods_live_through_them(lab: ClusterLab) -> None:
    labels = {"app": "survivor"}
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "main", "image": "watched"}], "terminationGracePeriodSeconds": 1},
    }
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "survivor"},
        "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": template},
    }

    def ready(count: int) -> Any:
        return lambda found: found["default", "survivor"].get("status", {}).get("readyReplicas", 0) == count

    async def uids() -> set[str]:
        pods = await lab.client.list(PODS, labelSelector="app=survivor")
        return {pod["metadata"]["uid"] for pod in pods["items"]}

    async def scenario() -> None:
        await lab.client.create(DEPLOYMENTS, body)
        await lab.until(DEPLOYMENTS, lambda o: ("default", "survivor") in o and ready(2)(o))
        first = await uids()
        for seconds in (0.0, 0.5, 0.0):
            await lab.server.kill()
            await asyncio.sleep(seconds)
            await lab.server.start()
        # Scaling needs the deployment controller, the scheduler and a kubelet.
        await lab.client.patch(f"{DEPLOYMENTS}/survivor", {"spec": {"replicas": 3}})
        await lab.until(DEPLOYMENTS, ready(3))
        assert first < await uids(), "an outage of the API server restarted a pod"
        await lab.client.delete(f"{DEPLOYMENTS}/survivor")

    lab.run(scenario())
