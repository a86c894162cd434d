"""What a pod on one of the lab's nodes goes through is what it would go through on a real one."""

from __future__ import annotations

import asyncio
import base64
import ssl
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from infra.lab.client import ApiError, Informer
from tests.lab.cluster.cluster_lab import PODS, pod, ready

if TYPE_CHECKING:
    from infra.lab.kubelet.runtime import Container
    from tests.lab.cluster.cluster_lab import ClusterLab

JSON = dict[str, Any]
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


def config_map(name: str, **data: str) -> JSON:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


async def eventually(check: Any, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not check():
            await asyncio.sleep(0.02)


def test_a_changed_config_map_reaches_the_mounted_file_but_not_the_environment(lab: ClusterLab) -> None:
    async def script() -> None:
        await lab.client.create(CONFIG_MAPS, config_map("settings", color="red"))
        container = {
            "name": "main",
            "image": "watched",
            "env": [
                {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}},
                {"name": "PLACE", "value": "$(COLOR)-$(NOBODY)-$$(COLOR)"},
            ],
            "volumeMounts": [
                {"name": "v", "mountPath": "/etc/settings"},
                {"name": "v", "mountPath": "/etc/frozen", "subPath": "color"},
            ],
        }
        volume = {"name": "v", "configMap": {"name": "settings"}}
        await lab.client.create(PODS, pod("reader", container, volumes=[volume]))
        instance = await lab.instance("reader")
        file = instance.path("/etc/settings/color")
        assert file.read_text() == "red"
        data = instance.path("/etc/settings/..data")
        assert data.is_symlink()
        before = data.readlink()
        await lab.client.patch(f"{CONFIG_MAPS}/settings", {"data": {"color": "blue"}})
        await eventually(lambda: file.read_text() == "blue")
        assert data.readlink() != before
        assert instance.env["COLOR"] == "red"
        assert instance.path("/etc/frozen").read_text() == "red"  # a subPath does not follow
        assert instance.env["PLACE"] == "red-$(NOBODY)-$(COLOR)"

    lab.run(script())


def test_a_pod_whose_secret_is_missing_waits_for_it_and_starts_once_it_is_there(lab: ClusterLab) -> None:
    async def script() -> None:
        volume = {"name": "v", "secret": {"secretName": "late"}}
        container = {"name": "main", "image": "watched", "volumeMounts": [{"name": "v", "mountPath": "/s"}]}
        await lab.client.create(PODS, pod("patient", container, volumes=[volume]))
        waiting = await lab.pod("patient", lambda p: bool(p.get("status", {}).get("containerStatuses")))
        assert waiting["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ContainerCreating"
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "late"}, "stringData": {"k": "v"}}
        await lab.client.create("/api/v1/namespaces/default/secrets", body)
        await lab.pod("patient", ready)
        assert (await lab.instance("patient")).path("/s/k").read_text() == "v"

    lab.run(script())


def test_init_containers_run_in_order_and_a_sidecar_is_up_before_the_next_one(lab: ClusterLab) -> None:
    order: list[str] = []

    async def step(container: Container) -> int:
        order.append(container.name)
        return 0

    async def sidecar(container: Container) -> int:
        await asyncio.sleep(0.1)
        order.append("sidecar up")
        container.set_ready(True)
        await container.stopping.wait()
        order.append("sidecar down")
        return 0

    async def main(container: Container) -> int:
        order.append("main")
        container.set_ready(True)
        await container.stopping.wait()
        await asyncio.sleep(0.1)
        order.append("main down")
        return 0

    async def script() -> None:
        lab.programs.register("order-step", step)
        lab.programs.register("order-sidecar", sidecar)
        lab.programs.register("order-main", main)
        init = [
            {"name": "first", "image": "order-step"},
            {
                "name": "proxy",
                "image": "order-sidecar",
                "restartPolicy": "Always",
                "startupProbe": {"httpGet": {"port": 1}},
            },
            {"name": "second", "image": "order-step"},
        ]
        await lab.client.create(PODS, pod("ordered", {"name": "main", "image": "order-main"}, initContainers=init))
        await lab.pod("ordered", ready)
        await lab.client.delete(f"{PODS}/ordered")
        await lab.gone(f"{PODS}/ordered")

    lab.run(script())
    assert order == ["first", "sidecar up", "second", "main", "main down", "sidecar down"]


def test_a_crashing_container_backs_off_and_keeps_the_log_of_its_previous_life(lab: ClusterLab) -> None:
    async def crash(container: Container) -> int:
        container.log("about to fail")
        raise RuntimeError("boom")

    async def script() -> None:
        lab.programs.register("crasher", crash)
        await lab.client.create(PODS, pod("crashing", {"name": "main", "image": "crasher"}))

        def backing_off(item: JSON) -> bool:
            status = (item.get("status", {}).get("containerStatuses") or [{}])[0]
            return status.get("restartCount", 0) >= 2 and "waiting" in status["state"]

        found = await lab.pod("crashing", backing_off)
        status = found["status"]["containerStatuses"][0]
        assert status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        assert status["lastState"]["terminated"]["exitCode"] == 1
        assert found["status"]["phase"] == "Running"
        log = await lab.client.get_text(f"{PODS}/crashing/log", previous=True)
        assert log.startswith("about to fail\n")
        assert "RuntimeError: boom" in log

    lab.run(script())


def test_a_deleted_pod_goes_on_until_its_program_ends_and_is_killed_at_the_end_of_its_grace(lab: ClusterLab) -> None:
    ends: dict[str, str] = {}

    async def polite(container: Container) -> int:
        container.set_ready(True)
        await container.stopping.wait()
        await asyncio.sleep(0.2)
        ends[container.pod_name] = "finished"
        return 0

    async def deaf(container: Container) -> int:
        container.set_ready(True)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ends[container.pod_name] = "killed"
            raise
        return 0

    async def script() -> float:
        lab.programs.register("polite", polite)
        lab.programs.register("deaf", deaf)
        for name in ("polite", "deaf"):
            body = pod(name, {"name": "main", "image": name}, terminationGracePeriodSeconds=1)
            await lab.client.create(PODS, body)
            await lab.pod(name, ready)
        began = time.monotonic()
        for name in ("polite", "deaf"):
            await lab.client.delete(f"{PODS}/{name}")
        await lab.gone(f"{PODS}/polite")
        between = time.monotonic() - began
        await lab.gone(f"{PODS}/deaf")
        assert between < time.monotonic() - began
        return time.monotonic() - began

    assert lab.run(script()) >= 1.0
    assert ends == {"polite": "finished", "deaf": "killed"}


def test_a_forced_deletion_stops_the_program_at_once(lab: ClusterLab) -> None:
    async def script() -> None:
        await lab.client.create(PODS, pod("forced"))
        await lab.pod("forced", ready)
        instance = await lab.instance("forced")
        await lab.client.delete(f"{PODS}/forced", gracePeriodSeconds=0)
        await eventually(lambda: instance.logs.closed)

    lab.run(script())


def test_a_program_talks_to_the_api_as_its_own_service_account(lab: ClusterLab) -> None:
    seen: JSON = {}

    async def introspect(container: Container) -> int:
        client = container.client()
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        answer = await client.create("/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
        seen.update(answer["status"]["userInfo"])
        container.set_ready(True)
        await container.stopping.wait()
        return 0

    async def script() -> None:
        lab.programs.register("introspect", introspect)
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "robot"}}
        await lab.client.create("/api/v1/namespaces/default/serviceaccounts", account)
        body = pod("robot", {"name": "main", "image": "introspect"}, serviceAccountName="robot")
        await lab.client.create(PODS, body)
        await lab.pod("robot", ready)

    lab.run(script())
    assert seen["username"] == "system:serviceaccount:default:robot"
    assert seen["extra"]["authentication.kubernetes.io/pod-name"] == ["robot"]


def test_pods_have_loopback_addresses_of_their_own(lab: ClusterLab) -> None:
    async def script() -> list[JSON]:
        for name in ("left", "right"):
            await lab.client.create(PODS, pod(name))
        return [await lab.pod(name, ready) for name in ("left", "right")]

    left, right = lab.run(script())
    addresses = {item["status"]["podIP"] for item in (left, right)}
    assert len(addresses) == 2
    assert all(address.startswith("127.") for address in addresses)
    assert left["status"]["hostIP"] not in addresses


def test_annotations_make_a_pod_slow_or_never_ready_or_crash(lab: ClusterLab) -> None:
    async def script() -> None:
        slow = pod("slow", annotations={"lab.capstan.dev/start-seconds": "0.5"})
        never = pod("never", annotations={"lab.capstan.dev/never-ready": "true"})
        crash = pod("crash", annotations={"lab.capstan.dev/crash": "0.1"}, restartPolicy="Never")
        began = time.monotonic()
        for body in (slow, never, crash):
            await lab.client.create(PODS, body)
        await lab.pod("slow", ready)
        assert time.monotonic() - began >= 0.5
        found = await lab.pod("never", lambda p: p["status"]["phase"] == "Running")
        assert not ready(found)
        failed = await lab.pod("crash", lambda p: p["status"]["phase"] == "Failed")
        assert failed["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 1

    lab.run(script())


def test_a_followed_log_ends_when_the_container_does(lab: ClusterLab) -> None:
    async def script() -> tuple[str, str]:
        command = ["sh", "-c", "echo one; sleep 0.3; echo two"]
        body = pod("talker", {"name": "main", "image": "busybox", "command": command}, restartPolicy="Never")
        await lab.client.create(PODS, body)
        await lab.pod("talker", lambda p: p["status"]["phase"] == "Running")
        followed = await lab.client.get_text(f"{PODS}/talker/log", follow=True)
        last = await lab.client.get_text(f"{PODS}/talker/log", tailLines=1)
        return followed, last

    followed, last = lab.run(script())
    assert followed == "one\ntwo\n"
    assert last == "two\n"


def test_a_kubelet_answers_nobody_without_a_certificate_of_the_cluster(lab: ClusterLab) -> None:
    kubelet = next(iter(lab.cluster.fleet.kubelets.values()))  # type: ignore[union-attr]  # the fixture starts nodes
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    url = f"https://{kubelet.address}:{kubelet.port}/pods"
    assert httpx.get(url, verify=context, trust_env=False).status_code == 401
    certificate, key = lab.server.pki.kubelet_client
    context.load_cert_chain(certificate, key)
    assert httpx.get(url, verify=context, trust_env=False).json()["kind"] == "PodList"


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_status_write_whose_answer_is_lost_is_made_again(lab: ClusterLab, when: str) -> None:
    rule = {"method": "PATCH", "path": f"/pods/lost-{when}/status$", "userAgent": "kubelet", "action": {"drop": when}}

    async def script() -> JSON:
        await lab.client.create("/lab/faults", rule)
        try:
            await lab.client.create(PODS, pod(f"lost-{when}"))
            return await lab.pod(f"lost-{when}", ready)
        finally:
            await lab.client.delete("/lab/faults")

    assert lab.run(script())["status"]["phase"] == "Running"


def test_token_secrets_are_filled_and_their_token_works(lab: ClusterLab) -> None:
    async def script() -> str:
        notes = {"kubernetes.io/service-account.name": "default"}
        kind = "kubernetes.io/service-account-token"
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "legacy", "annotations": notes},
            "type": kind,
        }
        secrets = "/api/v1/namespaces/default/secrets"
        await lab.client.create(secrets, body)
        found = await lab.until(secrets, lambda o: "token" in (o.get(("default", "legacy")) or {}).get("data", {}))
        token = base64.b64decode(found["default", "legacy"]["data"]["token"]).decode()
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        answer = await lab.client.create("/apis/authentication.k8s.io/v1/tokenreviews", review)
        return str(answer["status"]["user"]["username"])

    assert lab.run(script()) == "system:serviceaccount:default:default"


def test_an_informer_misses_nothing_while_the_api_server_is_away(lab: ClusterLab) -> None:
    async def script() -> None:
        seen: list[tuple[str, str]] = []
        informer = Informer(lab.client, CONFIG_MAPS)
        informer.on_change(lambda kind, _, new: seen.append((kind, new["metadata"]["name"])))
        await informer.synced()
        await lab.client.create(CONFIG_MAPS, config_map("outage"))
        await lab.server.stop()
        with pytest.raises(ApiError) as caught:
            await lab.client.get(CONFIG_MAPS)
        assert caught.value.status == 0
        await lab.server.start()
        await lab.client.delete(f"{CONFIG_MAPS}/outage")
        await informer.wait_for(lambda o: ("default", "outage") not in o and ("DELETED", "outage") in seen, 20)
        assert [kind for kind, name in seen if name == "outage"] == ["ADDED", "DELETED"]
        await informer.stop()

    lab.run(script())
