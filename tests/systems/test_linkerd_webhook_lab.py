"""The lab's webhook servers: they read a renewed Secret, or never do; and an API server takes their manifests."""

from __future__ import annotations

import asyncio
import json
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from capstan.cluster.resources import DEPLOYMENTS, NAMESPACES
from infra.lab import pki
from infra.lab.kubelet import atomic
from infra.lab.kubelet.addresses import AddressPool
from infra.lab.kubelet.runtime import Container
from infra.lab.linkerd import hook_manifests, hooks, manifests, serving, workload
from tests.support.apiserver import Running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def address() -> Iterator[str]:
    pool = AddressPool()
    yield pool.take()
    pool.close()


def pair() -> pki.KeyPair:
    return pki.mint_serving(["linkerd-sp-validator.linkerd.svc"], now=datetime.now(UTC))


def mount(directory: Path, held: pki.KeyPair) -> None:
    """As a kubelet does: all files at once, by the swap of one link."""
    files = {"tls.crt": held.certificate_pem, "tls.key": held.key_pem}
    atomic.write(directory, {name: atomic.Entry(text.encode()) for name, text in files.items()})


def presented(address: str, port: int) -> str:
    return ssl.get_server_certificate((address, port)).strip()


async def served_within(address: str, port: int, wanted: pki.KeyPair, seconds: float) -> bool:
    async with asyncio.timeout(10):
        for _ in range(max(int(seconds / 0.05), 1)):
            if await asyncio.to_thread(presented, address, port) == wanted.certificate_pem.strip():
                return True
            await asyncio.sleep(0.05)
    return False


@pytest.mark.parametrize(("env", "reads"), [({}, True), ({serving.NO_RELOAD_ENV: "true"}, False)], ids=["reads", "not"])
def test_a_server_reads_its_renewed_secret_unless_it_is_one_that_never_does(
    tmp_path: Path, address: str, env: dict[str, str], reads: bool
) -> None:
    first, second = pair(), pair()
    volume = tmp_path / "tls"
    mount(volume, first)
    container = Container(
        {"metadata": {"name": "linkerd-destination", "namespace": "linkerd"}}, "sp-validator", "x", tmp_path,
        env=env, ip=address, mounts={serving.TLS_MOUNT: volume},
    )  # fmt: skip

    async def run() -> bool:
        program = asyncio.create_task(hooks.SP_VALIDATOR.program(container))
        while not container.ready:
            await asyncio.sleep(0.01)
        assert await served_within(address, hooks.SP_VALIDATOR_PORT, first, 1.0)
        mount(volume, second)
        found = await served_within(address, hooks.SP_VALIDATOR_PORT, second, 5.0 if reads else 0.6)
        container.stopping.set()
        assert await program == 0
        return found

    assert asyncio.run(run()) is reads


def test_a_server_without_a_usable_pair_does_not_start(tmp_path: Path, address: str) -> None:
    volume = tmp_path / "tls"
    mount(volume, pki.KeyPair(pair().certificate, pair().key))
    container = Container(
        {"metadata": {"name": "tap", "namespace": "linkerd-viz"}}, "tap", "x", tmp_path, ip=address,
        mounts={serving.TLS_MOUNT: volume},
    )  # fmt: skip
    assert asyncio.run(hooks.TAP.program(container)) == 1


@pytest.mark.parametrize(
    ("judge", "spec", "kind", "allowed"),
    [
        (hooks.judge_profile, {"routes": [{"name": "GET /", "condition": {"pathRegex": "/"}}]}, "ServiceProfile", True),
        (hooks.judge_profile, {"routes": [{"name": "GET /"}]}, "ServiceProfile", False),
        (hooks.judge_policy, {"podSelector": {}, "port": 80}, "Server", True),
        (hooks.judge_policy, {"port": 80}, "Server", False),
    ],
    ids=["a profile", "a route without condition", "a server", "a server that selects nothing"],
)
def test_the_validators_judge(judge: Callable[[Any], Any], spec: dict[str, Any], kind: str, allowed: bool) -> None:
    assert judge({"kind": {"kind": kind}, "object": {"spec": spec}})["allowed"] is allowed


def test_tap_answers_the_discovery_of_its_group_version() -> None:
    from infra.lab.linkerd.httpd import Request

    answer = asyncio.run(hooks.serve_tap(Request("GET", "/apis/tap.linkerd.io/v1alpha1")))
    assert json.loads(answer.body)["groupVersion"] == "tap.linkerd.io/v1alpha1"


def test_an_api_server_takes_the_deployments_with_their_named_ports_and_mounts(tmp_path: Path) -> None:
    running = Running(tmp_path)
    cluster = running.connect()
    try:
        options = manifests.Options(viz=True, stale_policy_validator=True)
        names = hook_manifests.serving_names(options)
        pairs = {secret: pki.mint_serving([name], now=datetime.now(UTC)) for secret, name in names.items()}
        for namespace in ("linkerd", "linkerd-viz"):
            item = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
            cluster.create(NAMESPACES, item)
        wanted = [*workload.deployments(options, "bundle"), *hook_manifests.viz(options, pairs)]
        made = [cluster.create(DEPLOYMENTS, item) for item in wanted if item["kind"] == "Deployment"]
        found = {
            (item["metadata"]["name"], container["name"]): [port["name"] for port in container["ports"]]
            for item in made
            for container in item["spec"]["template"]["spec"]["containers"]
        }
        assert "sp-validator" in found["linkerd-destination", "sp-validator"]
        assert "policy-https" in found["linkerd-destination", "policy"]
        assert found["tap", "tap"] == ["apiserver"]
        assert found["tap-injector", "tap-injector"] == ["tap-injector"]
    finally:
        cluster.close()
        running.stop()
